"""The scripts beside the ONNX file: `OUT.build.sh` for trtexec, `OUT.build.py` for TensorRT's Python package."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import NamedTuple

import onnx

from tapeout.sdk import Request, UsageError
from tapeout.targets.nvidia.sizes import DEFAULT, OPTION, Size, bound, free_sizes, size

HERE = Path(__file__).parent
LEVEL = 3


class Input(NamedTuple):
    """An input of the file by its name, with free sizes by theirs."""

    name: str
    shape: tuple[int | str, ...]


class Shapes(NamedTuple):
    """An input's least, best and largest shape."""

    name: str
    least: tuple[int, ...]
    best: tuple[int, ...]
    most: tuple[int, ...]


def also(place: Path, request: Request) -> dict[Path, Callable[[Path], bytes]]:
    """The scripts for the artifact at `place`, with what makes each of the artifact. Raises UsageError."""
    options = request.options
    settings(options, place)
    return {
        place.with_name(place.name + ".build.sh"): lambda file: shell(file, place, options),
        place.with_name(place.name + ".build.py"): lambda file: python(file, place, options),
    }


def settings(options: Mapping[str, str], place: Path) -> dict[str, str]:
    """What the options say about the build, as the templates call it. Raises UsageError."""
    for key, text in options.items():
        if key.startswith(OPTION):
            size(key, text)
    level = options.get("level", str(LEVEL))
    if level not in ("0", "1", "2", "3", "4", "5"):
        raise UsageError(f"option level: '{level}', expected 0 to 5")
    refit = options.get("refit", "false")
    if refit not in ("true", "false"):
        raise UsageError(f"option refit: '{refit}', expected true or false")
    cache = options.get("cache", "timing.cache")
    return {"model": place.name, "stem": _stem(place), "level": level, "refit": refit, "cache": cache}


def shell(file: Path, place: Path, options: Mapping[str, str]) -> bytes:
    """A script that builds an engine with trtexec; what follows its name goes to trtexec as it is."""
    known = {k: shlex.quote(v) for k, v in settings(options, place).items()}
    flags = []
    shapes = profile(inputs(file), options)
    for flag, field in (("minShapes", 1), ("optShapes", 2), ("maxShapes", 3)):
        texts = [f"{_trtexec_name(s.name)}:{'x'.join(map(str, s[field]))}" for s in shapes]
        flags += [f"--{flag}=" + shlex.quote(",".join(texts))] if texts else []
    flags += ["--refit"] if known["refit"] == "true" else []
    lines = "".join(f"    {flag} \\\n" for flag in flags)
    return _template("build.sh.tmpl").substitute(known, flags=lines).encode()


def python(file: Path, place: Path, options: Mapping[str, str]) -> bytes:
    """A program that builds the same engine with the package `tensorrt`."""
    known = settings(options, place)
    shapes = "".join(
        f"    {s.name!r}: ({s.least}, {s.best}, {s.most}),\n" for s in profile(inputs(file), options)
    )
    quoted = {k: repr(v) for k, v in known.items() if k in ("model", "cache")}
    engine, refit = repr(known["stem"] + ".engine"), known["refit"] == "true"
    made = _template("build.py.tmpl").substitute(
        quoted, engine=engine, level=known["level"], refit=refit, shapes=shapes
    )
    return made.encode()


def profile(found: Sequence[Input], options: Mapping[str, str]) -> list[Shapes]:
    """The shapes that inputs with free sizes may have."""
    free = free_sizes([i.shape for i in found])
    sizes: dict[str, Size] = {
        n: size(OPTION + n, options[OPTION + n]) if OPTION + n in options else DEFAULT for n in free
    }
    made = []
    for i in found:
        if all(isinstance(d, int) for d in i.shape):
            continue
        least, best, most = (bound(i.shape, {n: s[k] for n, s in sizes.items()}) for k in range(len(DEFAULT)))
        made.append(Shapes(i.name, least, best, most))
    return made


def inputs(file: Path) -> list[Input]:
    """The inputs of an ONNX file that are no initializers."""
    graph = onnx.load(file, load_external_data=False).graph
    weights = {t.name for t in graph.initializer}
    return [
        Input(i.name, tuple(d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim))
        for i in graph.input
        if i.name not in weights
    ]


def _trtexec_name(name: str) -> str:
    """A name as trtexec reads it before a shape: what separates shapes is quoted."""
    return f"'{name}'" if any(c in name for c in ":,") else name


def _stem(place: Path) -> str:
    return place.name.removesuffix(".onnx").removesuffix(".trt")


def _template(name: str) -> Template:
    return Template((HERE / name).read_text(encoding="utf-8"))
