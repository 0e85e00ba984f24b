"""The sizes that free dimensions may have: least, best and most, as `--option size.N=1:8:32` says them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import onnx_ir as ir

from tapeout.compiler.ir.dimensions import bind, parse, symbols
from tapeout.sdk import UsageError
from tapeout.sdk import graph as g

OPTION = "size."
LARGEST = 1 << 31


class Size(NamedTuple):
    """What a free dimension may be; kernels are chosen for `best`."""

    least: int
    best: int
    most: int

    def __str__(self) -> str:
        return f"{self.least}:{self.best}:{self.most}"


DEFAULT = Size(1, 1, 32)


def profiles_of(model: ir.Model, options: Mapping[str, str]) -> list[dict[str, Size]]:
    """For each profile the size of every symbol in the shapes of the inputs, `DEFAULT` where no option says it. An
    option that says several, "1:1:1,2:8:32", says one for each profile.

    Raises UsageError where an option is malformed, names a size that the model does not have, or says another number
    of profiles than the rest.
    """
    free = free_sizes([g.dims(v) or () for v in model.graph.inputs])
    found = {name: [DEFAULT] for name in free}
    for key, text in options.items():
        if not key.startswith(OPTION):
            continue
        name = key.removeprefix(OPTION)
        if name not in found:
            raise UsageError(
                f"option {key}: the inputs have no free size '{name}', they have {', '.join(free) or 'none'}",
                hint="--shape INPUT=NAME,... names a free size",
            )
        found[name] = [size(key, part) for part in text.split(",")]
    counts = {name: len(said) for name, said in found.items() if len(said) > 1}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{OPTION}{name} {count}" for name, count in counts.items())
        raise UsageError(
            f"sizes say different numbers of profiles: {shown}", hint="say one, or as many, for each"
        )
    most = max(counts.values(), default=1)
    return [{n: said[i if len(said) > 1 else 0] for n, said in found.items()} for i in range(most)]


def size(key: str, text: str) -> Size:
    """The value of an option: "8" or "1:8:32". Raises UsageError."""
    parts = re.fullmatch(r"(\d{1,10})(?::(\d{1,10}):(\d{1,10}))?", text)
    if parts is None:
        raise UsageError(
            f"option {key}: '{text}', expected one size or LEAST:BEST:MOST, such as {key}=1:8:32"
        )
    made = Size(*(int(p if p is not None else parts[1]) for p in parts.groups()))
    if not 0 < made.least <= made.best <= made.most < LARGEST:
        raise UsageError(f"option {key}: '{text}', expected 0 < LEAST <= BEST <= MOST < 2^31")
    return made


def free_sizes(shapes: Sequence[Sequence[int | str]]) -> list[str]:
    """The names of the free sizes in `shapes`, in order."""
    found: dict[str, None] = {}
    for shape in shapes:
        for dim in shape:
            if isinstance(dim, str):
                found.update(dict.fromkeys(sorted(symbols(parse(dim)))))
    return list(found)


def bound(shape: Sequence[int | str], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """`shape` for these sizes."""
    return tuple(d if isinstance(d, int) else bind(parse(d), sizes) for d in shape)
