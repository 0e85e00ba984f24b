"""Quantities that only the NPU's rows bound, as Vela's report of supported operators defines them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from tapeout.sdk import Call, Quantity, axes, quantity, storage
from tapeout.sdk import graph as g

QUANTITIES: list[Quantity] = []
_QUANTIZED = ("QuantizeLinear", "DequantizeLinear")
_FUSING = ("ConvNHWC", "ConvTransposeNHWC", "FullyConnected", "MaxPoolNHWC", "AveragePoolNHWC")


def own(name: str, label: str) -> Callable[[Callable[[Call], Any]], Quantity]:
    def make(function: Callable[[Call], Any]) -> Quantity:
        QUANTITIES.append(quantity(name, label)(function))
        return QUANTITIES[-1]

    return make


def shape(call: Call) -> tuple[int, ...] | None:
    """The shape of the first input, a free batch counted as 1."""
    dims = g.dims(call.input(0))
    if dims is None or any(not isinstance(d, int) for d in dims[1:]):
        return None
    return tuple(d if isinstance(d, int) else 1 for d in dims)


def hwc(call: Call) -> tuple[int, ...] | None:
    """The last three dimensions of the first input, ones in front."""
    dims = shape(call)
    return None if dims is None else (1, 1, 1, *dims)[-3:]


def result(call: Call) -> tuple[int, ...] | None:
    dims = g.dims(call.output(0))
    if dims is None or any(not isinstance(d, int) for d in dims[1:]):
        return None
    return tuple(d if isinstance(d, int) else 1 for d in dims)


@own("border.real", "real numbers at the border")
def _(call: Call) -> Any:
    """True where a conversion has real numbers on one side that no kernel of the NPU makes or takes."""
    node = call.node
    if node.op_type == "DequantizeLinear":
        return node.outputs[0].is_graph_output()
    x = node.inputs[0]
    return x is None or x.producer() is None or (x.is_graph_output() and g.producer(x, *_QUANTIZED) is None)


@own("activation.fused", "an activation behind a kernel that fuses it")
def _(call: Call) -> Any:
    """True where the input is made by a kernel that computes this activation too, and is read only here."""
    x = call.input(0)
    made = None if x is None else x.producer()
    if x is None or made is None or g.only_use(x) is not call.node:
        return False
    named = made.domain == "tapeout" and made.op_type in _FUSING
    return named or (made.domain == "" and made.op_type in ("Add", "Sub", "Mul"))


@own("upscale.surplus", "size beyond what the stride gives")
def _(call: Call) -> Any:
    """Rows and columns of a transposed convolution beyond input * stride, plus kernel - stride where padding
    is VALID."""
    x, y, w = shape(call), result(call), g.static_dims(call.value("W"))
    if x is None or y is None or w is None:
        return None
    valid = not any(g.attribute(call.node, "pads") or ())
    steps = g.attribute(call.node, "strides") or (1, 1)
    return tuple(
        y[i + 1] - x[i + 1] * s - (max(w[i + 1] - s, 0) if valid else 0) for i, s in enumerate(steps)
    )


def factors(call: Call) -> tuple[float, ...] | None:
    """How much a resize enlarges each of height and width that is not 1 before and after."""
    x, y = shape(call), result(call)
    if x is None or y is None:
        return None
    less = 1 if g.attribute(call.node, "coordinate_transformation_mode") == "align_corners" else 0
    pairs = [(a, b) for a, b in zip(x[1:3], y[1:3], strict=True) if (a, b) != (1, 1)]
    return tuple((b - less) / (a - less) if a > less else 0.0 for a, b in pairs)


@own("resize.factors", "factor")
def _(call: Call) -> Any:
    """The enlargement of height and width, without axes that stay 1."""
    return factors(call)


@own("resize.uniform", "one factor for height and width")
def _(call: Call) -> Any:
    """True where height and width are enlarged alike."""
    found = factors(call)
    return None if found is None else len(set(found)) <= 1


@own("resize.unchanged", "one size before and after")
def _(call: Call) -> Any:
    """True where the output has the shape of the input."""
    x, y = shape(call), result(call)
    return None if x is None or y is None else x == y


@own("map.rank", "least rank of what is computed")
def _(call: Call) -> Any:
    """The least rank of the first output and of inputs that are no constants."""
    read = [v for _, v in call.ports() if v.producer() is not call.node]
    computed = [v for v in (*read, call.output(0)) if v is not None and not g.is_constant(storage(v).value)]
    ranks = [rank for v in computed if (rank := g.rank(v)) is not None]
    return min(ranks) if len(ranks) == len(computed) and ranks else None


@own("batch.kept", "a free batch before and after")
def _(call: Call) -> Any:
    """True where a free first dimension of the input is one of the output too: Vela takes it for 1."""
    x, y = g.dims(call.input(0)), g.dims(call.output(0))
    if x is None or y is None:
        return None
    return not isinstance((*x, 1)[0], str) or isinstance((*y, 1)[0], str)


@own("input.hw", "height and width")
def _(call: Call) -> Any:
    """Height and width of the input."""
    dims = shape(call)
    return None if dims is None or len(dims) != 4 else dims[1:3]


@own("hw.area", "height times width")
def _(call: Call) -> Any:
    """Height times width of the input."""
    dims = hwc(call)
    return None if dims is None else dims[0] * dims[1]


def reduced(call: Call) -> list[tuple[int, int]] | None:
    """Axes that are reduced, counted from the end (1 is the depth), with their sizes."""
    dims, stated = shape(call), axes(call)
    if dims is None or stated is None:
        return None
    return [(len(dims) - a, dims[a]) for a in stated]


@own("reduced.elements", "elements in one mean")
def _(call: Call) -> Any:
    """How many elements go into one element of the output."""
    found = reduced(call)
    return None if found is None else math.prod(n for _, n in found)


@own("batch.of_four", "batch")
def _(call: Call) -> Any:
    """What lies in front of height, width and depth: 1 for less than four dimensions."""
    dims = shape(call)
    return None if dims is None else math.prod(dims[:-3])


@own("reduced.longest", "reduced axis")
def _(call: Call) -> Any:
    """The longest axis that is reduced."""
    found = reduced(call)
    return None if found is None else max((n for _, n in found), default=1)


@own("reduced.depth", "smallest of height, width and depth")
def _(call: Call) -> Any:
    """The smallest of height, width and depth where the depth is reduced, else 1."""
    found, dims = reduced(call), hwc(call)
    if found is None or dims is None:
        return None
    return min(dims) if any(back == 1 for back, _ in found) else 1


def _steps(call: Call) -> list[tuple[int, int]] | None:
    """The steps of a slice with their axes, counted from the end (1 is the depth)."""
    rank, stated = g.rank(call.input(0)), axes(call)
    steps = g.constant(call.value("steps"))
    if rank is None or stated is None or (steps is None and call.value("steps") is not None):
        return None
    numbers = [1] * len(stated) if steps is None else [int(v) for v in steps.reshape(-1)]
    return [(rank - a, s) for a, s in zip(stated, numbers, strict=False)]


@own("slice.slowest", "step")
def _(call: Call) -> Any:
    """The smallest step of a slice."""
    found = _steps(call)
    return None if found is None else min((s for _, s in found), default=1)


@own("slice.outer", "step of batch or depth")
def _(call: Call) -> Any:
    """The largest step along an axis that is neither height nor width."""
    found = _steps(call)
    return None if found is None else max((s for back, s in found if back not in (2, 3)), default=1)


@own("perm.letters", "permutation")
def _(call: Call) -> Any:
    """The permutation in letters, NHWC being none; "other" where it moves an axis in front of these."""
    rank = g.rank(call.input(0))
    if rank is None:
        return None
    perm = g.attribute(call.node, "perm") or tuple(range(rank))[::-1]
    extra = rank - 4
    wide = tuple(range(-extra)) + tuple(p - extra for p in perm) if extra < 0 else perm[extra:]
    wide = wide if extra < 0 else tuple(p - extra for p in wide)
    return "".join("NHWC"[p] for p in wide) if all(p >= 0 for p in wide) else "other"


@own("outer.elements", "elements outside height, width and depth")
def _(call: Call) -> Any:
    """The product of all dimensions in front of the last three."""
    dims = shape(call)
    return None if dims is None else math.prod(dims[:-3])


@own("hwc.longest", "height, width or depth")
def _(call: Call) -> Any:
    """The longest of the last three dimensions."""
    dims = hwc(call)
    return None if dims is None else max(dims)


@own("products.longest", "product of all but two dimensions")
def _(call: Call) -> Any:
    """The largest product of all dimensions but two."""
    dims = shape(call)
    return None if dims is None else max(map(math.prod, itertools.combinations(dims, max(len(dims) - 2, 0))))


def is_border(node: ir.Node) -> bool:
    """Whether `node` converts between integers and real numbers, or stands for a constant."""
    return node.op_type in (*_QUANTIZED, "DequantizeLong")
