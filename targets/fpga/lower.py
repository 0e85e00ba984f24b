"""From the quantized graph to the circuit's, not yet folded: every node with its integers, exact, and proven ranges.

Accumulators are sums over codes (dialect.py); what each can be follows from the ranges of the inputs, and the
requantization is exact over that range (requantize.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout import sdk
from tapeout.compiler.ir.evaluate import evaluate
from tapeout.sdk import graph as g
from tapeout.targets.fpga import adding, ranges
from tapeout.targets.fpga import dialect as d
from tapeout.targets.fpga.dialect import Array
from tapeout.targets.fpga.integer import requantize
from tapeout.targets.fpga.reading import HIGH, LOW, Step, clamp_of, grid_of, hwc, window_of, without_groups
from tapeout.targets.fpga.requantize import exact

REAL = frozenset({"fused", "dequantize", "quantize"})  # what stands for real numbers between integers
PASSING = ("Reshape", "Transpose")


@dataclass(frozen=True, eq=False)
class View:
    """An array of the graph as a tensor's stream: `order` as in Port, `shape` height, width, channels."""

    tensor: str
    shape: tuple[int, int, int]
    order: Array | None = None


def lower(model: ir.Model, rows: sdk.Declaration, device: str) -> d.Graph:
    """The circuit of a model that `rows` accept, not folded: every PE, SIMD and lane is 1.

    Raises UnsupportedError where a row refuses a node, or where nothing is left to compute.
    """
    lowering = Lowering(model.graph)
    for node, row in sdk.lowered(model, rows):
        lowering.add(node, row)
    if not lowering.nodes:
        raise sdk.UnsupportedError("nothing is left for a circuit: no node of the model computes on integers")
    return lowering.finished(model.graph, device)


class Lowering:
    """A circuit in the making."""

    def __init__(self, graph: ir.Graph) -> None:
        self.nodes: list[d.Node] = []
        self.tensors: dict[str, d.Tensor] = {}
        self._ports: dict[str, d.Port] = {}  # of inputs, by tensor
        self._views: dict[ir.Value, View] = {}
        for value in graph.inputs:
            self._input(value)

    def add(self, node: ir.Node, row: sdk.Row) -> None:
        """Lower one node."""
        kind, y = row.lower or "", node.outputs[0]
        if kind in REAL:
            return
        if kind == "requantize":
            made, grid = y, grid_of(node)
        else:
            stored = sdk.storage(y, output=True, fuses=row.fuses)
            made, grid = stored.value, stored.grid
        step = Step(node, made, grid, clamp_of(grid, sdk.fused_activation(y, row.fuses)))
        if kind == "reshape":
            self._views[made] = replace(self._views[step.codes()], shape=step.shape)
        elif kind == "transpose":
            self._transpose(step)
        else:
            found = LOWERINGS[kind](self, step)
            self.nodes.append(found)
            self.tensors[found.output.name] = found.output
            self._views.setdefault(made, View(found.output.name, found.output.shape))

    def finished(self, graph: ir.Graph, device: str) -> d.Graph:
        """The circuit with its borders."""
        outputs = []
        for value in graph.outputs:
            dequantize = g.producer(value, "DequantizeLinear")
            codes = value if dequantize is None else dequantize.inputs[0]
            assert codes is not None
            view = self._views[codes]
            shape, real = g.static_dims(value) or (), value.dtype == ir.DataType.FLOAT
            outputs.append(d.Port(value.name or "", shape, view.tensor, view.order, real))
        read = {s.tensor for n in self.nodes for s in n.inputs} | {p.tensor for p in outputs}
        inputs = [p for p in self._ports.values() if p.tensor in read]
        tensors = tuple(self.tensors[p.tensor] for p in inputs)
        return d.Graph(
            graph.name or "model", device, tensors, tuple(self.nodes), tuple(inputs), tuple(outputs)
        )

    # Streams.

    def _input(self, value: ir.Value) -> None:
        codes, reader = value, next((u.node for u in value.uses()), None)
        real = reader is not None and reader.op_type == "QuantizeLinear" and value.dtype == ir.DataType.FLOAT
        if real and reader is not None:
            codes = reader.outputs[0]
        while reader is not None and reader.op_type in PASSING:
            reader = next((u.node for u in reader.outputs[0].uses()), None)
        if reader is None or (codes.dtype != ir.DataType.INT8):
            return  # nothing reads it
        shape, name = hwc(codes), codes.name or ""
        self.tensors[name] = _whole(name, shape, grid_of(reader))
        self._ports[name] = d.Port(value.name or "", g.static_dims(value) or (), name, real=real)
        self._views[codes] = View(name, shape)

    def _transpose(self, step: Step) -> None:
        view, dims = self._views[step.codes()], g.static_dims(step.node.inputs[0]) or ()
        perm = g.attribute(step.node, "perm") or tuple(range(len(dims)))[::-1]
        order = np.arange(math.prod(dims)) if view.order is None else view.order
        order = order.reshape(dims).transpose(perm).reshape(-1)
        self._views[step.made] = View(view.tensor, step.shape, _order(order))

    def read(self, value: ir.Value) -> d.Tensor:
        """The tensor whose stream holds a value's elements in their order, in the value's shape."""
        view = self._views[value]
        tensor = self.tensors[view.tensor]
        if view.order is None and view.shape == tensor.shape:
            return tensor
        if view.tensor in self._ports and not any(
            s.tensor == view.tensor for n in self.nodes for s in n.inputs
        ):
            return self._reordered(view, tensor)
        if view.order is not None:
            raise sdk.InternalError(f"the stream of '{view.tensor}' would have to change its order")
        low, high = np.full(view.shape[2], tensor.low.min()), np.full(view.shape[2], tensor.high.max())
        made = replace(tensor, name=value.name or "", shape=view.shape, low=low, high=high)
        self.nodes.append(d.Reshape(name=f"{made.name}~shape", inputs=(d.Stream(tensor.name),), output=made))
        self.tensors[made.name] = made
        self._views[value] = View(made.name, made.shape)
        return made

    def _reordered(self, view: View, tensor: d.Tensor) -> d.Tensor:
        """An input that the host sends in the order and the shape in which it is read first."""
        made = _whole(tensor.name, view.shape, (tensor.scale, tensor.zero_point))
        self.tensors[tensor.name] = made
        back = np.arange(tensor.elements) if view.order is None else np.argsort(view.order)
        port = self._ports[tensor.name]
        self._ports[tensor.name] = replace(
            port, order=_order(back if port.order is None else back[port.order])
        )
        for value, seen in list(self._views.items()):
            if seen.tensor == tensor.name:
                self._views[value] = replace(
                    seen, order=_order(back if seen.order is None else back[seen.order])
                )
        return made

    def elementwise(self, step: Step, count: int = 1) -> list[d.Tensor]:
        """The tensors of a node's inputs where it works element by element: any order does, if it is the same."""
        views = [self._views[step.codes(i)] for i in range(count)]
        tensors = [self.tensors[v.tensor] for v in views]
        same = all(np.array_equal(v.order, views[0].order) for v in views[1:])  # type: ignore[arg-type]
        if not same or any(t.shape != tensors[0].shape for t in tensors):
            return [self.read(step.codes(i)) for i in range(count)]
        self._views[step.made] = View(step.made.name or "", step.shape, views[0].order)
        return tensors

    # Operators.

    def convolution(self, step: Step) -> d.Node:
        tensor, (weights, scale) = self.read(step.codes()), step.weights()
        group = g.attribute(step.node, "group", 1)
        window = window_of(step.node, tensor, weights.shape[1:3])
        if group == tensor.channels == len(weights):
            made: d.Folded = d.Depthwise(**_unscaled(step, tensor), weights=weights[..., 0], window=window)
        else:
            weights = weights if group == 1 else without_groups(weights, group)
            made = d.Conv(**_unscaled(step, tensor), weights=weights, window=window)
        return _scaled(step, made, tensor, step.bias(tensor.scale, scale), weights, scale)

    def dense(self, step: Step) -> d.Node:
        view, (weights, scale) = self._views[step.codes()], step.weights()
        tensor = self.tensors[view.tensor]
        if view.order is not None:  # the weights follow the stream's order
            turned = np.empty_like(weights)
            turned[:, view.order] = weights
            weights = turned
        made = d.Dense(**_unscaled(step, tensor), weights=weights)
        return _scaled(step, made, tensor, step.bias(tensor.scale, scale), weights, scale)

    def average_pool(self, step: Step) -> d.Node:
        tensor = self.read(step.codes())
        window = window_of(step.node, tensor, g.attribute(step.node, "kernel_shape"))
        if window.kernel == tensor.shape[:2] and not any(window.pads):
            return self.mean(step)
        made = d.AveragePool(**_unscaled(step, tensor), window=window)
        return _averaged(step, made, tensor, math.prod(window.kernel))

    def mean(self, step: Step) -> d.Node:
        tensor = self.read(step.codes())
        return _averaged(step, d.GlobalAverage(**_unscaled(step, tensor)), tensor, tensor.pixels)

    def max_pool(self, step: Step) -> d.Node:
        tensor = self.read(step.codes())
        window = window_of(step.node, tensor, g.attribute(step.node, "kernel_shape"))
        output = _tensor(step, tensor.low, tensor.high)
        return d.MaxPool(**_plain(step, (tensor,), output), window=replace(window, fill=LOW))

    def add_pair(self, step: Step) -> d.Node:
        a, b = self.elementwise(step, 2)
        grids = [adding.Grid(t.scale, t.zero_point, int(t.low.min()), int(t.high.max())) for t in (a, b)]
        form = adding.exact(grids[0], grids[1], step.grid[0], step.clamp)
        left, right = form.multipliers
        least, most = left * a.low + right * b.low, left * a.high + right * b.high
        width = ranges.bits(
            least + min(0, form.offset, form.start), most + max(0, form.offset + 1, form.start)
        )
        low, high = (np.clip((s + form.offset + u) >> form.shift, step.clamp.low, step.clamp.high)
                     for s, u in ((least, 0), (most, form.ties_to_even)))  # fmt: skip
        return d.Add(
            **_plain(step, (a, b), replace(_tensor(step, low, high), shape=a.shape)), **form._asdict(),
            low=step.clamp.low, high=step.clamp.high, accumulator=width,
        )  # fmt: skip

    def lookup(self, step: Step) -> d.Node:
        (tensor,) = self.elementwise(step)
        others = [None if v is None else g.constant(v) for v in step.node.inputs[1:]]
        with np.errstate(all="ignore"):
            return _table(step, tensor, evaluate(step.node, [_reals(tensor), *others])[0])

    def requantize(self, step: Step) -> d.Node:
        (tensor,) = self.elementwise(step)
        return _table(step, tensor, _reals(tensor))


LOWERINGS: dict[str, Callable[[Lowering, Step], d.Node]] = {
    "convolution": Lowering.convolution,
    "dense": Lowering.dense,
    "average_pool": Lowering.average_pool,
    "mean": Lowering.mean,
    "max_pool": Lowering.max_pool,
    "add": Lowering.add_pair,
    "lookup": Lowering.lookup,
    "requantize": Lowering.requantize,
}


def _order(order: Array) -> Array | None:
    """None for elements in their order."""
    return None if np.array_equal(order, np.arange(len(order))) else order


def _whole(name: str, shape: tuple[int, int, int], grid: tuple[float, int]) -> d.Tensor:
    """A tensor that can hold any code."""
    return d.Tensor(name, shape, *grid, np.full(shape[2], LOW, np.int64), np.full(shape[2], HIGH, np.int64))


def _tensor(step: Step, low: Array, high: Array) -> d.Tensor:
    return d.Tensor(step.made.name or "", step.shape, *step.grid, low.astype(np.int64), high.astype(np.int64))


def _plain(step: Step, inputs: tuple[d.Tensor, ...], output: d.Tensor) -> dict[str, Any]:
    streams = tuple(d.Stream(t.name) for t in inputs)
    return {"name": step.name, "inputs": streams, "output": output, "source": sdk.origin(step.node)}


def _unscaled(step: Step, x: d.Tensor) -> dict[str, Any]:
    """What every sum of products has, before its accumulators are known."""
    empty = np.zeros(0, np.int64)
    form = d.Requantize(empty, empty, 0, LOW, HIGH)
    return {
        **_plain(step, (x,), _tensor(step, empty, empty)),
        "bias": empty,
        "requantize": form,
        "accumulator": 0,
    }


def _scaled(step: Step, node: d.Folded, x: d.Tensor, bias: Array, weights: Array, scale: Array) -> d.Folded:
    """The node with its bias, which takes the input's zero point, and its exact requantization.

    bias: int64 [outputs], of sums of (code - zero point); scale: float32 [outputs], of a weight.
    """
    bias = bias - x.zero_point * weights.reshape(len(weights), -1).sum(axis=1, dtype=np.int64)
    least, most = (e + bias for e in ranges.of_sums(node, x))
    factor = np.float32(x.scale) * scale.astype(np.float32) / np.float32(step.grid[0])
    form = exact(factor, step.clamp, least, most)
    output = _tensor(step, requantize(least, form), requantize(most, form))
    width = ranges.bits(least, most + 1)  # one more: a threshold that is never reached
    return replace(node, output=output, bias=bias, requantize=form, accumulator=width)


def _averaged(step: Step, node: d.Folded, x: d.Tensor, area: int) -> d.Folded:
    """The mean of `area` codes: a sum whose scale is divided."""
    ones, none = np.ones((x.channels, area), np.int8), np.zeros(x.channels, np.int64)
    return _scaled(step, node, x, none, ones, np.full(x.channels, 1 / area))


def _reals(tensor: d.Tensor) -> Array:
    """The real number of every code."""
    codes = np.arange(LOW, HIGH + 1)
    made: Array = (codes - tensor.zero_point).astype(np.float32) * np.float32(tensor.scale)
    return made


def _table(step: Step, x: d.Tensor, real: Array) -> d.Node:
    """A lookup of what the codes become: float32 [256], quantized."""
    with np.errstate(all="ignore"):
        steps = np.nan_to_num(np.rint(real / np.float32(step.grid[0])).astype(np.float64))
    table = np.clip(steps + step.grid[1], LOW, HIGH).astype(np.int8)
    spans = [table[a - LOW : b - LOW + 1] for a, b in zip(x.low, x.high, strict=True)]
    output = _tensor(step, np.array([s.min() for s in spans]), np.array([s.max() for s in spans]))
    return d.Lookup(**_plain(step, (x,), replace(output, shape=x.shape)), table=table)
