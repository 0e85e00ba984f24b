"""Quantities of any operator: attributes, axes, counts, shapes as a whole."""

from __future__ import annotations

import math
from typing import Any

from tapeout.compiler.ir import graph as g
from tapeout.compiler.operators import ABSENT, Call, storage
from tapeout.compiler.quantities.registry import own


@own("attr.*", "attribute")
def _(call: Call, name: str) -> Any:
    """An attribute with ONNX's default; a list gives a tuple, "absent" where it is left out and has no
    default."""
    value = call.attribute(name)
    return ABSENT if value is None else value


@own("input.count", "number of inputs")
def _(call: Call) -> Any:
    """How many inputs are there; optional ones that are left out do not count."""
    return sum(v is not None for v in call.node.inputs)


@own("output.count", "number of outputs")
def _(call: Call) -> Any:
    """How many outputs are there; unnamed ones do not count."""
    return sum(v.name != "" for v in call.node.outputs)


@own("batch", "batch")
def _(call: Call) -> Any:
    """The first dimension of the first input."""
    shape = g.dims(call.input(0))
    return shape[0] if shape and isinstance(shape[0], int) else None


@own("elements", "number of elements")
def _(call: Call) -> Any:
    """Elements of the first output."""
    shape = g.static_dims(call.output(0))
    return None if shape is None else math.prod(shape)


def axes(call: Call) -> tuple[int, ...] | None:
    """The axes that an operator works along, from 0: its `axis` attribute, else its `axes` attribute or
    input, all axes where that is left out; None where the rank or the axes are not known."""
    rank = g.rank(call.input(0))
    stated = call.attribute("axis")
    if stated is None:
        stated = call.attribute("axes")
    if stated is None and "axis" in call.input_values:
        array = g.constant(call.value("axis"), limit=64)
        stated = None if array is None else array.reshape(-1).tolist()
    if stated is None and (value := call.value("axes")) is not None:
        array = g.constant(value, limit=64)
        if array is None:
            return None
        stated = array.reshape(-1).tolist()
    if rank is None:
        return None
    if stated is None:
        return tuple(range(rank))
    many = (stated,) if isinstance(stated, int) else tuple(stated)
    return tuple(int(a) % rank if rank else 0 for a in many)


@own("axis.from_start", "axis")
def _(call: Call) -> Any:
    """The axis counted from 0; a tuple where there are several."""
    found = axes(call)
    return None if found is None else found[0] if len(found) == 1 else found


@own("axis.from_end", "axis from the end")
def _(call: Call) -> Any:
    """The axis counted from the end, 1 for the last one; a tuple where there are several."""
    found, rank = axes(call), g.rank(call.input(0))
    if found is None or rank is None:
        return None
    back = tuple(rank - a for a in found)
    return back[0] if len(back) == 1 else back


@own("axes.count", "number of axes")
def _(call: Call) -> Any:
    """How many axes the operator works along."""
    return None if (found := axes(call)) is None else len(found)


@own("rank.max", "rank")
def _(call: Call) -> Any:
    """The largest rank of any input or output."""
    ranks = [g.rank(v) for _, v in call.ports()]
    return None if None in ranks else max((r for r in ranks if r is not None), default=0)


@own("dim.static", "static shapes")
def _(call: Call) -> Any:
    """True where every dimension of every input and output is a number."""
    return all(g.static_dims(v) is not None for _, v in call.ports())


@own("dim.inner.static", "static dimensions after the first")
def _(call: Call) -> Any:
    """True where every dimension but the first of each input and output is a number."""
    shapes = [g.dims(v) for _, v in call.ports()]
    return None if None in shapes else all(isinstance(d, int) for s in shapes for d in (s or ())[1:])


@own("dim.max", "dimension")
def _(call: Call) -> Any:
    """The largest dimension of any input or output; None where one is not known."""
    shapes = [g.static_dims(v) for _, v in call.ports()]
    return None if None in shapes else max((d for s in shapes for d in s or ()), default=1)


@own("shape.same", "equal shapes")
def _(call: Call) -> Any:
    """True where all inputs and outputs have one shape, symbols included."""
    shapes = {g.dims(v) for _, v in call.ports()}
    return None if None in shapes or any("?" in s for s in shapes if s) else len(shapes) == 1


@own("dtype.same", "equal types")
def _(call: Call) -> Any:
    """True where all inputs and outputs are stored as one type."""
    return len({storage(v).dtype for v in call.node.inputs if v is not None}
               | {storage(v, output=True).dtype for v in call.node.outputs if v.name != ""}) == 1  # fmt: skip


@own("quantized", "quantization of every tensor")
def _(call: Call) -> Any:
    """True where every floating-point input is behind a DequantizeLinear and every output before a
    QuantizeLinear."""
    stored = [
        (v, storage(v, output=name in call.output_values))
        for name, v in call.ports()
        if v.dtype is None or v.dtype.is_floating_point()
    ]
    return all(s.quantized for _, s in stored)


@own("broadcast.rank", "rank after broadcasting")
def _(call: Call) -> Any:
    """The largest rank among the inputs where shapes differ, 0 where nothing is broadcast."""
    shapes = [g.dims(v) for v in call.node.inputs if v is not None]
    if None in shapes:
        return None
    return 0 if len(set(shapes)) == 1 else max(len(s) for s in shapes if s is not None)
