"""Named arithmetic of a node, which declarations bound in data: `stride.max`, `W.abs_sum`, `kernel.area`.

A quantity is a function of a call (a node through its operator's interface) that returns a number, a string, a bool
or a tuple; None where it is not known statically. A port's quantity is written `PORT.NAME` and is a function of the
value at that port as well. A name that ends in `.*` takes the rest of the name as an argument: `attr.mode`, `X.dim.-1`.

Plugins add their own with `@quantity(...)` on functions that they hand to `Declaration.load(quantities=...)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.operators import ABSENT, Call, Interface, dtype_name, storage, type_name

Measure = Callable[[Call], Any]


@dataclass(frozen=True)
class Quantity:
    """`label` is what messages call it; `port` is true where it needs a port in front of its name."""

    name: str
    label: str
    function: Callable[..., Any]
    port: bool = False

    @property
    def doc(self) -> str:
        return (self.function.__doc__ or "").strip()


REGISTRY: dict[str, Quantity] = {}
PORTS: dict[str, Quantity] = {}


def quantity(
    name: str, label: str | None = None, *, port: bool = False
) -> Callable[[Callable[..., Any]], Quantity]:
    """Make a quantity of a documented function; `label` is its name in messages."""

    def make(function: Callable[..., Any]) -> Quantity:
        assert function.__doc__, f"quantity {name} needs a docstring"
        return Quantity(name, label or name.removesuffix(".*").replace(".", " "), function, port)

    return make


def _own(
    name: str, label: str | None = None, *, port: bool = False
) -> Callable[[Callable[..., Any]], Quantity]:
    def make(function: Callable[..., Any]) -> Quantity:
        made = quantity(name, label, port=port)(function)
        (PORTS if port else REGISTRY)[name] = made
        return made

    return make


class Vocabulary:
    """The quantities that a declaration may name: ours and the target's own."""

    def __init__(self, extra: Iterable[Quantity] = ()) -> None:
        own = list(extra)
        self.calls = REGISTRY | {q.name: q for q in own if not q.port}
        self.ports = PORTS | {q.name: q for q in own if q.port}

    def names(self, interface: Interface | None) -> list[str]:
        """Every name that is valid for an operator, for the nearest-name hint."""
        ports = interface.ports if interface else ()
        attributes = [f"attr.{a}" for a in interface.attributes] if interface else []
        return [*self.calls, *attributes, *(f"{p}.{n}" for p in ports for n in self.ports)]

    def resolve(self, name: str, interface: Interface | None) -> tuple[str, Measure] | None:
        """The label and the function of a name; None where there is no such quantity for this operator.

        Without an interface (a function that no model has brought yet) every port and attribute is taken.
        """
        found = _lookup(self.calls, name)
        if found is not None:
            which, argument = found
            if which.name == "attr.*" and interface is not None and argument not in interface.attributes:
                return None
            label = (argument or "") if which.name == "attr.*" else _label(which, argument)
            return label, (lambda call: which.function(call)) if argument is None else (
                lambda call: which.function(call, argument)
            )
        port, _, rest = name.partition(".")
        if not rest or (interface is not None and port not in interface.ports):
            return None
        found = _lookup(self.ports, rest)
        if found is None:
            return None
        which, argument = found
        arguments = () if argument is None else (argument,)

        def measure(call: Call) -> Any:
            return which.function(call, port, *arguments)

        return f"{_label(which, argument)} of {port}", measure


def _lookup(table: dict[str, Quantity], name: str) -> tuple[Quantity, str | None] | None:
    if name in table:
        return table[name], None
    head = name
    while "." in head:
        head, _, _ = head.rpartition(".")
        if f"{head}.*" in table:
            return table[f"{head}.*"], name[len(head) + 1 :]
    return None


def _label(which: Quantity, argument: str | None) -> str:
    return which.label if argument is None else f"{which.label} {argument}"


# --- sliding windows: convolution and pooling in either layout --------------------------------------------------


def channels_last(call: Call) -> bool:
    """True for our NHWC functions, whose X is [N, spatial..., C] and whose W is [O, spatial..., I/group]."""
    return call.node.op_type.endswith("NHWC")


def spatial(call: Call) -> tuple[int | str, ...] | None:
    """The spatial dimensions of the first input, symbolic ones as text; None where the rank is unknown."""
    shape = g.dims(call.input(0))
    if shape is None or len(shape) < 2:
        return None
    return shape[1:-1] if channels_last(call) else shape[2:]


def kernel(call: Call) -> tuple[int, ...] | None:
    """The window: `kernel_shape`, else the spatial dimensions of W."""
    stated = call.attribute("kernel_shape")
    if stated:
        return tuple(stated)
    shape = g.static_dims(call.value("W"))
    if shape is None or len(shape) < 3:
        return None
    return shape[1:-1] if channels_last(call) else shape[2:]


def _window_rank(call: Call) -> int | None:
    window = kernel(call) or spatial(call)
    return None if window is None else len(window)


def _per_axis(call: Call, name: str, default: int, repeat: int = 1) -> tuple[int, ...] | None:
    stated = call.attribute(name)
    if stated:
        return tuple(stated)
    rank = _window_rank(call)
    return None if rank is None else (default,) * rank * repeat


def strides(call: Call) -> tuple[int, ...] | None:
    """Strides of a window, ones where they are not stated."""
    return _per_axis(call, "strides", 1)


def dilations(call: Call) -> tuple[int, ...] | None:
    """Dilations of a window, ones where they are not stated."""
    return _per_axis(call, "dilations", 1)


def pads(call: Call) -> tuple[int, ...] | None:
    """Begins then ends of the padding in numbers, with `auto_pad` worked out; None where dimensions are unknown."""
    mode = call.attribute("auto_pad") or "NOTSET"
    if mode == "NOTSET":
        return _per_axis(call, "pads", 0, 2)
    rank = _window_rank(call)
    if mode == "VALID":
        return None if rank is None else (0,) * rank * 2
    totals = _same_totals(call)
    if totals is None:
        return None
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return tuple(small + large if mode == "SAME_UPPER" else large + small)


def _same_totals(call: Call) -> list[int] | None:
    window, steps, holes, size = kernel(call), strides(call), dilations(call), spatial(call)
    if window is None or steps is None or holes is None:
        return None
    totals = []
    for axis, (k, s, d) in enumerate(zip(window, steps, holes, strict=True)):
        reach = (k - 1) * d + 1
        if s == 1:
            totals.append(reach - 1)
            continue
        n = size[axis] if size is not None else None
        if not isinstance(n, int):
            return None
        totals.append(max((-(-n // s) - 1) * s + reach - n, 0))
    return totals


def _at(values: tuple[int, ...] | None, axis: int) -> int | None:
    return None if values is None or len(values) < -axis else values[axis]


@_own("stride.max", "stride")
def _(call: Call) -> Any:
    """The largest stride of a window."""
    return None if (v := strides(call)) is None else max(v, default=1)


@_own("stride.h", "vertical stride")
def _(call: Call) -> Any:
    """The stride along the axis before the last spatial axis (height)."""
    return _at(strides(call), -2)


@_own("stride.w", "horizontal stride")
def _(call: Call) -> Any:
    """The stride along the last spatial axis (width)."""
    return _at(strides(call), -1)


@_own("dilation.max", "dilation")
def _(call: Call) -> Any:
    """The largest dilation of a window."""
    return None if (v := dilations(call)) is None else max(v, default=1)


@_own("dilation.h", "vertical dilation")
def _(call: Call) -> Any:
    """The dilation along height."""
    return _at(dilations(call), -2)


@_own("dilation.w", "horizontal dilation")
def _(call: Call) -> Any:
    """The dilation along width."""
    return _at(dilations(call), -1)


@_own("kernel.max", "kernel size")
def _(call: Call) -> Any:
    """The longest side of a window, before dilation."""
    return None if (v := kernel(call)) is None else max(v, default=1)


@_own("kernel.h", "kernel height")
def _(call: Call) -> Any:
    """The height of a window, before dilation."""
    return _at(kernel(call), -2)


@_own("kernel.w", "kernel width")
def _(call: Call) -> Any:
    """The width of a window, before dilation."""
    return _at(kernel(call), -1)


@_own("kernel.area", "kernel area")
def _(call: Call) -> Any:
    """Elements of the last two axes of a window."""
    return None if (v := kernel(call)) is None else math.prod(v[-2:])


@_own("kernel.volume", "kernel volume")
def _(call: Call) -> Any:
    """Elements of a window over all of its axes."""
    return None if (v := kernel(call)) is None else math.prod(v)


@_own("pads.max", "padding")
def _(call: Call) -> Any:
    """The largest padding on any side."""
    return None if (v := pads(call)) is None else max(v, default=0)


@_own("pads.min", "padding")
def _(call: Call) -> Any:
    """The smallest padding on any side; negative where the window crops."""
    return None if (v := pads(call)) is None else min(v, default=0)


@_own("pads.total", "padding")
def _(call: Call) -> Any:
    """The padding of all sides together; 0 is a valid window."""
    return None if (v := pads(call)) is None else sum(v)


@_own("padding.kind", "padding")
def _(call: Call) -> Any:
    """ "valid" (none), "same" (TensorFlow's: the odd one at the end), else "explicit"; None where that needs an
    unknown dimension."""
    mode = call.attribute("auto_pad") or "NOTSET"
    if mode == "SAME_UPPER":
        return "same"
    stated = pads(call)
    if stated is None:
        return None
    if not any(stated):
        return "valid"
    totals = _same_totals(call)
    if totals is None:
        return None
    half = len(stated) // 2
    same = [t // 2 for t in totals] + [t - t // 2 for t in totals]
    return "same" if list(stated[:half]) + list(stated[half:]) == same else "explicit"


@_own("padding.same_or_valid", "SAME or VALID padding")
def _(call: Call) -> Any:
    """True where the padding is none or TensorFlow's SAME."""
    kind = REGISTRY["padding.kind"].function(call)
    return None if kind is None else kind != "explicit"


@_own("spatial.rank", "spatial axes")
def _(call: Call) -> Any:
    """How many axes a window slides along: 1, 2 or 3."""
    return _window_rank(call)


@_own("group", "group")
def _(call: Call) -> Any:
    """The number of groups of a convolution."""
    return call.attribute("group") or 1


@_own("channels.in", "input channels")
def _(call: Call) -> Any:
    """Channels of the first input: axis 1, or the last axis of an NHWC function."""
    shape = g.dims(call.input(0))
    size = None if shape is None or len(shape) < 2 else shape[-1 if channels_last(call) else 1]
    return size if isinstance(size, int) else None


@_own("channels.out", "output channels")
def _(call: Call) -> Any:
    """Channels of the first output: axis 1, or the last axis of an NHWC function."""
    shape = g.dims(call.output(0))
    size = None if shape is None or len(shape) < 2 else shape[-1 if channels_last(call) else 1]
    return size if isinstance(size, int) else None


@_own("depthwise.multiplier", "depthwise multiplier")
def _(call: Call) -> Any:
    """Outputs per input channel where every channel is a group of its own, 0 for any other convolution."""
    inner, outer = REGISTRY["channels.in"].function(call), REGISTRY["channels.out"].function(call)
    group = REGISTRY["group"].function(call)
    if inner is None or outer is None:
        weights = g.static_dims(call.value("W"))  # [O, ..., I/group]: knows both where X does not
        if weights is None:
            return None
        inner = weights[-1 if channels_last(call) else 1] * group
        outer = weights[0]
    return outer // inner if group == inner and group > 0 else 0


# --- any operator -----------------------------------------------------------------------------------------------


@_own("attr.*", "attribute")
def _(call: Call, name: str) -> Any:
    """An attribute with ONNX's default; a list gives a tuple, "absent" where it is left out and has no default."""
    value = call.attribute(name)
    return ABSENT if value is None else value


@_own("input.count", "number of inputs")
def _(call: Call) -> Any:
    """How many inputs are there; optional ones that are left out do not count."""
    return sum(v is not None for v in call.node.inputs)


@_own("output.count", "number of outputs")
def _(call: Call) -> Any:
    """How many outputs are there; unnamed ones do not count."""
    return sum(v.name != "" for v in call.node.outputs)


@_own("batch", "batch")
def _(call: Call) -> Any:
    """The first dimension of the first input."""
    shape = g.dims(call.input(0))
    return shape[0] if shape and isinstance(shape[0], int) else None


@_own("elements", "number of elements")
def _(call: Call) -> Any:
    """Elements of the first output."""
    shape = g.static_dims(call.output(0))
    return None if shape is None else math.prod(shape)


def axes(call: Call) -> tuple[int, ...] | None:
    """The axes that an operator works along, from 0: its `axis` attribute, else its `axes` attribute or input, all
    axes where that is left out; None where the rank or the axes are not known."""
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


@_own("axis.from_start", "axis")
def _(call: Call) -> Any:
    """The axis counted from 0; a tuple where there are several."""
    found = axes(call)
    return None if found is None else found[0] if len(found) == 1 else found


@_own("axis.from_end", "axis from the end")
def _(call: Call) -> Any:
    """The axis counted from the end, 1 for the last one; a tuple where there are several."""
    found, rank = axes(call), g.rank(call.input(0))
    if found is None or rank is None:
        return None
    back = tuple(rank - a for a in found)
    return back[0] if len(back) == 1 else back


@_own("axes.count", "number of axes")
def _(call: Call) -> Any:
    """How many axes the operator works along."""
    return None if (found := axes(call)) is None else len(found)


@_own("rank.max", "rank")
def _(call: Call) -> Any:
    """The largest rank of any input or output."""
    ranks = [g.rank(v) for _, v in call.ports()]
    return None if None in ranks else max((r for r in ranks if r is not None), default=0)


@_own("dim.static", "static shapes")
def _(call: Call) -> Any:
    """True where every dimension of every input and output is a number."""
    return all(g.static_dims(v) is not None for _, v in call.ports())


@_own("dim.max", "dimension")
def _(call: Call) -> Any:
    """The largest dimension of any input or output; None where one is not known."""
    shapes = [g.static_dims(v) for _, v in call.ports()]
    return None if None in shapes else max((d for s in shapes for d in s or ()), default=1)


@_own("shape.same", "equal shapes")
def _(call: Call) -> Any:
    """True where all inputs and outputs have one shape, symbols included."""
    shapes = {g.dims(v) for _, v in call.ports()}
    return None if None in shapes or any("?" in s for s in shapes if s) else len(shapes) == 1


@_own("dtype.same", "equal types")
def _(call: Call) -> Any:
    """True where all inputs and outputs are stored as one type."""
    return len({storage(v).dtype for v in call.node.inputs if v is not None}
               | {storage(v, output=True).dtype for v in call.node.outputs if v.name != ""}) == 1  # fmt: skip


@_own("broadcast.rank", "rank after broadcasting")
def _(call: Call) -> Any:
    """The largest rank among the inputs where shapes differ, 0 where nothing is broadcast."""
    shapes = [g.dims(v) for v in call.node.inputs if v is not None]
    if None in shapes:
        return None
    return 0 if len(set(shapes)) == 1 else max(len(s) for s in shapes if s is not None)


# --- one port ---------------------------------------------------------------------------------------------------


def _stored(call: Call, port: str) -> ir.Value | None:
    value = call.value(port)
    return None if value is None else storage(value, output=port in call.output_values).value


def _data(call: Call, port: str, limit: int | None = None) -> np.ndarray[Any, Any] | None:
    return g.constant(_stored(call, port), limit)


@_own("present", "presence", port=True)
def _(call: Call, port: str) -> Any:
    """True where something is connected to the port."""
    return call.value(port) is not None


@_own("count", "number of values", port=True)
def _(call: Call, port: str) -> Any:
    """How many values are at a variadic port."""
    return len(call.values(port))


@_own("constant", "being constant", port=True)
def _(call: Call, port: str) -> Any:
    """True where every value at the port is an initializer (behind its DequantizeLinear); True where it is left out."""
    return all(g.is_constant(storage(v).value) for v in call.input_values.get(port, ()))


@_own("value", "value", port=True)
def _(call: Call, port: str) -> Any:
    """The number in a constant of one element, a tuple of up to 64; "absent" where the port is left out."""
    if call.value(port) is None:
        return ABSENT
    array = _data(call, port, 64)
    if array is None:
        return None
    return array.reshape(()).item() if array.size == 1 else tuple(array.reshape(-1).tolist())


@_own("rank", "rank", port=True)
def _(call: Call, port: str) -> Any:
    """Number of dimensions."""
    return g.rank(call.value(port))


@_own("elements", "number of elements", port=True)
def _(call: Call, port: str) -> Any:
    """Number of elements."""
    shape = g.static_dims(call.value(port))
    return None if shape is None else math.prod(shape)


@_own("dim.*", "dimension", port=True)
def _(call: Call, port: str, axis: str) -> Any:
    """One dimension; a negative axis counts from the end."""
    shape = g.dims(call.value(port))
    index = int(axis)
    if shape is None or not -len(shape) <= index < len(shape):
        return None
    size = shape[index]
    return size if isinstance(size, int) else None


@_own("dim.max", "dimension", port=True)
def _(call: Call, port: str) -> Any:
    """The largest dimension."""
    shape = g.static_dims(call.value(port))
    return None if shape is None else max(shape, default=1)


@_own("dim.static", "static shape", port=True)
def _(call: Call, port: str) -> Any:
    """True where every dimension is a number."""
    return all(g.static_dims(v) is not None for v in call.values(port))


@_own("dim.dynamic", "number of dynamic dimensions", port=True)
def _(call: Call, port: str) -> Any:
    """How many dimensions are not numbers."""
    shape = g.dims(call.value(port))
    return None if shape is None else sum(not isinstance(d, int) for d in shape)


@_own("dtype", "type", port=True)
def _(call: Call, port: str) -> Any:
    """The type in the graph, such as "float32"; "absent" where the port is left out."""
    value = call.value(port)
    return ABSENT if value is None else type_name(value)


@_own("storage", "stored type", port=True)
def _(call: Call, port: str) -> Any:
    """The type behind DequantizeLinear or after QuantizeLinear; "absent" where the port is left out."""
    value = call.value(port)
    return ABSENT if value is None else dtype_name(storage(value, output=port in call.output_values).dtype)


@_own("abs_max", "largest magnitude", port=True)
def _(call: Call, port: str) -> Any:
    """The largest absolute value in a constant; 0 where the port is left out."""
    if call.value(port) is None:
        return 0
    array = _data(call, port)
    return None if array is None else float(np.abs(array.astype(np.float64)).max(initial=0.0))


@_own("abs_sum", "sum of absolute weights", port=True)
def _(call: Call, port: str) -> Any:
    """The largest sum of absolute values, less the zero point, over the outputs (axis 0) of a constant."""
    array = _data(call, port)
    if array is None or array.ndim == 0:
        return None
    value = call.value(port)
    zero = g.constant(storage(value).zero_point) if value is not None else None
    wide = array.astype(np.float64).reshape(array.shape[0], -1)
    if zero is not None:
        wide = wide - zero.astype(np.float64).reshape(-1, 1)
    return float(np.abs(wide).sum(axis=1).max(initial=0.0))
