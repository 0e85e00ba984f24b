"""The rules of Arm's Vela for Ethos-U55, written as a declaration, and the arithmetic that only they need."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir

from tapeout.compiler.declaration import Declaration
from tapeout.compiler.ir import graph as g
from tapeout.compiler.operators import Call, Storage, dtype_name, storage
from tapeout.compiler.quantities import Quantity, quantity

MAPS = ("input", "input1", "input2", "inputs", "output", "outputs")
QUANTITIES: list[Quantity] = []


def own(name: str, label: str | None = None, *, port: bool = False) -> Any:
    def make(function: Any) -> Quantity:
        QUANTITIES.append(quantity(name, label, port=port)(function))
        return QUANTITIES[-1]

    return make


def load() -> Declaration:
    """The declaration with its quantities."""
    return Declaration.load(Path(__file__).parent / "target.toml", quantities=QUANTITIES)


def stored(call: Call, ports: tuple[str, ...] | None = None) -> Iterator[Storage]:
    for name, value in call.ports():
        if ports is None or name in ports:
            yield storage(value, output=name in call.output_values)


def shape(call: Call, port: str = "input") -> tuple[int, ...] | None:
    return g.static_dims(call.value(port))


def hwc(call: Call) -> tuple[int, ...] | None:
    """The last three dimensions of the input, ones in front."""
    dims = shape(call)
    return None if dims is None else (1, 1, 1, *dims)[-3:]


def numbers(call: Call, port: str) -> tuple[int, ...] | None:
    array = g.constant(call.value(port))
    return None if array is None else tuple(int(v) for v in array.reshape(-1))


@own("map.dtypes", "types of feature maps")
def _(call: Call) -> Any:
    """The stored types of all feature maps."""
    return tuple(sorted({dtype_name(s.dtype) or "unknown" for s in stored(call, MAPS)}))


@own("map.bits", "bits of feature maps")
def _(call: Call) -> Any:
    """The bits of the widest feature map."""
    return max((s.dtype.bitwidth for s in stored(call, MAPS) if s.dtype is not None), default=0)


@own("scales.positive", "positive scales")
def _(call: Call) -> Any:
    """True where every scale is known, finite and above 0."""
    scales = [g.constant(s.scale) for s in stored(call) if s.quantized]
    return all(s is not None and bool(((s > 0) & (s < math.inf)).all()) for s in scales)


def zero_points(call: Call, *dtypes: ir.DataType) -> list[int]:
    found = [g.constant(s.zero_point) for s in stored(call) if s.quantized and s.dtype in dtypes]
    return [int(v) for z in found if z is not None for v in z.reshape(-1)]


@own("int32.zero_point", "zero point of 32-bit tensors")
def _(call: Call) -> Any:
    """The largest magnitude of the zero point of an int32 tensor."""
    return max((abs(z) for z in zero_points(call, ir.DataType.INT32)), default=0)


@own("unsigned.zero_point", "zero point of unsigned tensors")
def _(call: Call) -> Any:
    """The smallest zero point of an unsigned tensor."""
    return min(zero_points(call, ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32), default=0)


@own("in_last_axis", "PORT along the channels", port=True)
def _(call: Call, port: str) -> Any:
    """True where all elements lie along the last axis, or there are none."""
    dims = shape(call, port)
    return True if call.value(port) is None else None if dims is None else math.prod(dims) == dims[-1]


@own("inner_ones", "ones between the ends of PORT", port=True)
def _(call: Call, port: str) -> Any:
    """True where only the first and the last dimension are above 1."""
    dims = shape(call, port)
    return None if dims is None else len(dims) > 1 and math.prod(dims[1:-1]) == 1


@own("contraction", "summed dimension")
def _(call: Call) -> Any:
    """The dimension that a matrix product sums over."""
    dims = shape(call, "input1" if "input1" in call.input_values else "input")
    return None if dims is None else dims[-2 if call.attribute("adj_x") else -1]


@own("splits.surplus", "stated less real parts")
def _(call: Call) -> Any:
    """The stated number of parts less the number of outputs."""
    return call.attribute("num_splits") - len(call.values("outputs"))


@own("upscale.surplus", "size beyond what the stride gives")
def _(call: Call) -> Any:
    """Rows and columns of a transposed convolution beyond input * stride, plus kernel - stride where padding
    is VALID."""
    x, y, w = shape(call), shape(call, "output"), shape(call, "weights")
    if x is None or y is None or w is None:
        return None
    valid, steps = call.attribute("padding") == "VALID", call.attribute("strides")
    return tuple(
        y[i + 1] - x[i + 1] * s - (max(w[i + 1] - s, 0) if valid else 0) for i, s in enumerate(steps)
    )


def factors(call: Call) -> tuple[float, ...] | None:
    """How much a resize enlarges each of height and width that is not 1 before and after."""
    x, y = shape(call), shape(call, "output")
    if x is None or y is None:
        return None
    less = 1 if call.attribute("align_corners") else 0
    pairs = [(a, b) for a, b in zip(x[1:3], y[1:3], strict=True) if (a, b) != (1, 1)]
    return tuple((b - less) / (a - less) if a > less else 0.0 for a, b in pairs)


@own("resize.factors", "factor")
def _(call: Call) -> Any:
    """The enlargement of height and width, without axes that stay 1; from corner to corner where these are
    aligned."""
    return factors(call)


@own("resize.uniform", "one factor for height and width")
def _(call: Call) -> Any:
    """True where height and width are enlarged alike."""
    found = factors(call)
    return None if found is None else len(set(found)) <= 1


@own("resize.unchanged", "one size before and after")
def _(call: Call) -> Any:
    """True where the output has the shape of the input."""
    x, y = shape(call), shape(call, "output")
    return None if x is None or y is None else x == y


@own("hw.area", "height times width")
def _(call: Call) -> Any:
    """Height times width of the input."""
    dims = hwc(call)
    return None if dims is None else dims[0] * dims[1]


def reduced(call: Call) -> list[tuple[int, int]] | None:
    """Axes that are reduced, counted from the end (1 is the depth), with their sizes."""
    dims, stated = shape(call), numbers(call, "axis")
    if dims is None or stated is None:
        return None
    return [(len(dims) - a % len(dims), dims[a]) for a in stated]


@own("reduced.elements", "elements in one mean")
def _(call: Call) -> Any:
    """How many elements go into one element of the output."""
    found = reduced(call)
    return None if found is None else math.prod(n for _, n in found)


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


@own("slice.volume", "volume to cut out")
def _(call: Call) -> Any:
    """True where the end lies behind the begin on every axis."""
    begin, end = numbers(call, "begin"), numbers(call, "end")
    return None if begin is None or end is None else all(e > b for b, e in zip(begin, end, strict=True))


@own("slice.slowest", "step")
def _(call: Call) -> Any:
    """The smallest step of a slice."""
    steps = numbers(call, "steps")
    return None if steps is None else min(steps)


@own("slice.outer", "step of batch or depth")
def _(call: Call) -> Any:
    """The largest step along an axis that is neither height nor width."""
    steps = numbers(call, "steps")
    if steps is None:
        return None
    return max((s for i, s in enumerate(steps) if len(steps) - i not in (2, 3)), default=1)


@own("perm.letters", "permutation")
def _(call: Call) -> Any:
    """The permutation in letters, NHWC being none; "other" where it moves an axis in front of these."""
    perm = numbers(call, "perm")
    if perm is None:
        return None
    extra = len(perm) - 4
    wide = (
        tuple(range(-extra)) + tuple(p - extra for p in perm)
        if extra < 0
        else tuple(p - extra for p in perm[extra:])
    )
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


@own("nh.elements", "batch times height")
def _(call: Call) -> Any:
    """The product of the dimensions in front of the last two."""
    dims = shape(call)
    return None if dims is None else math.prod(dims[:-2])


@own("products.longest", "product of all but two dimensions")
def _(call: Call) -> Any:
    """The largest product of all dimensions but two."""
    dims = shape(call)
    return None if dims is None else max(map(math.prod, itertools.combinations(dims, max(len(dims) - 2, 0))))
