"""Options that several commands share, how their values are read, and how results are printed."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

ModelPath = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help="ONNX, .pt2, .keras, .h5, or a SavedModel's folder.", show_default=False
    ),
]
ArtifactPath = Annotated[
    Path, typer.Argument(metavar="ARTIFACT", help="The file that export wrote.", show_default=False)
]
TargetName = Annotated[
    str, typer.Option("--target", "-t", metavar="NAME", help="What to compile for; see 'tapeout targets'.")
]
Device = Annotated[
    str | None, typer.Option("--device", metavar="D", help="The target's device.", show_default=False)
]
Shape = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="NAME=N,3,224,224",
        help="State an input's shape: a number fixes a size, a name or ? keeps it free.",
        show_default=False,
    ),
]
Layout = Annotated[
    list[str] | None,
    typer.Option(
        "--layout", metavar="NAME=NHWC", help="Axis order of an input or output.", show_default=False
    ),
]
Outputs = Annotated[
    list[str] | None,
    typer.Option("--outputs", metavar="NAME,..", help="Keep only these outputs.", show_default=False),
]
TargetOption = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="KEY=VALUE", help="An option of the target.", show_default=False),
]
Scheme = Annotated[
    str | None,
    typer.Option(
        "--quantize",
        metavar="SCHEME",
        help="float32, float16, what the target offers, or auto (export).",
        show_default=False,
    ),
]
DataPath = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="D",
        help="Samples: an .npz named after the inputs, or a folder.",
        show_default=False,
    ),
]
CALIBRATION_HELP = (
    "Typical inputs: .npz, a folder of arrays or images, stats.json, FILE.py:FUNCTION, or 'random'."
)
CalibrationData = Annotated[
    str | None,
    typer.Option("--calibration", metavar="DATA", help=CALIBRATION_HELP, show_default=False),
]
Preprocess = Annotated[
    str | None,
    typer.Option(
        "--preprocess",
        metavar="STEPS",
        help="For images: 'rgb resize=224,224 mean=127.5 scale=0.00784 layout=NHWC'.",
        show_default=False,
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option("--cache", metavar="DIR", help="Keep what was measured, by content.", show_default=False),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        metavar="FILE",
        help="Steps and rules in TOML: what is pruned, factorized and quantized how.",
        show_default=False,
    ),
]
Dtype = Annotated[
    list[str] | None,
    typer.Option(
        "--dtype",
        metavar="NAME=TYPE",
        help="Type of an input or output of an integer model: int8, uint8, int16. Default: as the source.",
        show_default=False,
    ),
]
TargetOf = Annotated[
    str | None,
    typer.Option(
        "--target",
        "-t",
        metavar="NAME",
        help="Default: as its manifest or its name says.",
        show_default=False,
    ),
]
Samples = Annotated[
    int, typer.Option("--samples", min=1, metavar="N", help="At most so many samples of the data.")
]
Gate = Annotated[
    list[str] | None,
    typer.Option(
        "--gate",
        metavar="METRIC=BOUND",
        help="Fail unless sqnr, cosine, argmax (at least) or error, relative (at most) holds.",
        show_default=False,
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", "-j", min=1, metavar="N", help="At most so many threads.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on standard output.")]


def pairs(values: Sequence[str] | None, option: str, example: str) -> dict[str, str]:
    """NAME=VALUE options; the last `=` splits, since names may hold one; of --option the first does, since values
    may. Raises UsageError."""
    from tapeout.compiler.errors import UsageError

    result: dict[str, str] = {}
    for text in values or ():
        name, equals, value = text.partition("=") if option == "--option" else text.rpartition("=")
        if not equals or not name or not value:
            raise UsageError(f"{option} '{text}': expected {example}")
        if name in result:
            raise UsageError(f"{option} names '{name}' twice")
        result[name] = value
    return result


def shapes(values: Sequence[str] | None) -> dict[str, tuple[int | str, ...]]:
    """--shape NAME=N,3,64,48: sizes, names of free ones, ? or -1 for one left as it is; a scalar is `NAME=()`."""
    from tapeout.compiler.errors import UsageError

    result: dict[str, tuple[int | str, ...]] = {}
    for name, text in pairs(values, "--shape", "NAME=1,3,224,224").items():
        parts = text.split("x") if re.fullmatch(r"\d+(x\d+)+", text) else text.split(",")
        found = () if text == "()" else tuple(_size(part.strip()) for part in parts)
        if "" in found:
            raise UsageError(
                f"--shape '{name}={text}': expected sizes, such as {name}=1,3,224,224 or {name}=N,3,?,?"
            )
        result[name] = found
    return result


def _size(text: str) -> int | str:
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else text


def names(values: Sequence[str] | None) -> list[str]:
    """--outputs a,b --outputs c"""
    return [n.strip() for v in values or () for n in v.split(",") if n.strip()]


def gates(values: Sequence[str] | None) -> dict[str, float]:
    """--gate METRIC=BOUND"""
    from tapeout.compiler.errors import UsageError

    result = {}
    for metric, text in pairs(values, "--gate", "METRIC=BOUND").items():
        try:
            result[metric] = float(text)
        except ValueError:
            raise UsageError(f"--gate '{metric}={text}': the bound is no number") from None
    return result


def drop(text: str | None) -> float | None:
    """--max-drop: a share of the outputs' variance, or as a ratio in decibels: 0.01 is 20dB."""
    from tapeout.compiler.errors import UsageError

    if text is None:
        return None
    number = text.lower().removesuffix("db").strip()
    try:
        found = float(number)
    except ValueError:
        raise UsageError(
            f"--max-drop '{text}': expected a share of the outputs' variance, such as 0.01, or 20dB"
        ) from None
    return found if number == text.lower().strip() else float(10 ** (-found / 10))


def size(text: str | None, option: str = "--max-size") -> int | None:
    """--max-size and its like: bytes, or with k, M, G (powers of 1000) or Ki, Mi, Gi."""
    from tapeout.compiler.errors import UsageError

    if text is None:
        return None
    units = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
    number = text.lower().removesuffix("b")
    unit = number.lstrip("0123456789. ")
    try:
        return int(float(number.removesuffix(unit)) * units[unit])
    except (ValueError, KeyError):
        raise UsageError(f"{option} '{text}': expected a size such as 500k, 4M or 1.5Gi") from None


def say(text: str) -> None:
    """Words for people, on standard error."""
    print(text, file=sys.stderr)


def print_json(content: Mapping[str, Any]) -> None:
    """The result for programs, on standard output."""
    from tapeout.compiler.artifact import json_bytes

    sys.stdout.write(json_bytes(content).decode())
    sys.stdout.flush()


@contextlib.contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str], None] | None]:
    """A line that tells what is being done, on a terminal only. `quiet`: the result goes out as JSON."""
    from tapeout.compiler import last_resort

    last_resort.end = functools.partial(_end, quiet)
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    words = {
        "read": "reading",
        "passes": "rewriting",
        "measure": "measuring",
        "emit": "writing",
        "verify": "verifying",
        "write": "publishing",
    }
    with Console(stderr=True).status("starting") as status:
        yield lambda part: status.update(f"{words.get(part, part)} ...")


def _end(as_json: bool, error: Any) -> None:
    """End the process where the native code of a plugin does not come back."""
    from tapeout.cli import say_error
    from tapeout.compiler.artifact import discard_all

    discard_all()
    code = say_error(error.exit_code, error.kind, error.message, error.hint, as_json, error)
    sys.stderr.flush()
    os._exit(code)


def bytes_text(count: int) -> str:
    """A size for people."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}" if count < 1000 * scale else f"{count / scale:.0f} {unit}"
    return f"{count} bytes"
