"""What a graph becomes: calls of kernels with their arguments in C, weights, and how long each tensor lives."""

import math
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from tapeout import sdk
from tapeout.sdk import graph as g

Lives = dict[ir.Value, tuple[int, int]]  # the first and the last step of each tensor in the arena


class Step(NamedTuple):
    kernel: str
    arguments: str
    reads: tuple[ir.Value, ...]
    result: ir.Value


class Program:
    """The steps of a graph, and weights: each its type in C and its numbers."""

    def __init__(self, model: ir.Model, rows: sdk.Declaration) -> None:
        self.steps, self.weights = list[Step](), list[tuple[str, ir.Value | np.ndarray[Any, Any]]]()
        self.constants, self.lives = dict[str, ir.Value](), Lives()
        self.grids, self._shares = dict[ir.Value, tuple[float, int]](), dict[ir.Value, ir.Value]()
        self._elsewhere = {*model.graph.inputs, *model.graph.outputs}
        for node, row in sdk.lowered(model, rows):
            self._lower(node, row)
        for value in model.graph.outputs:
            self._live(value)

    def root(self, value: ir.Value) -> ir.Value:
        """The tensor whose memory `value` shares: itself, or what it is a reshape of."""
        return self._shares.get(value, value)

    def _live(self, value: ir.Value) -> None:
        value, now = self.root(value), len(self.steps)
        if g.is_constant(value) and value not in self.constants.values():
            self.constants[self._weight(ctype(value), value)] = value
        elif not g.is_constant(value) and value not in self._elsewhere:
            self.lives[value] = self.lives.get(value, (now, now))[0], now

    def _weight(self, kind: str, numbers: ir.Value | np.ndarray[Any, Any]) -> str:
        self.weights.append((kind, numbers))
        return f"w{len(self.weights) - 1}"

    def _lower(self, node: ir.Node, row: sdk.Row) -> None:
        """The step of a node; none for what the kernel beside it reads, writes or computes along."""
        kernel, x, y = row.lower or "", node.inputs[0], node.outputs[0]
        if kernel == "fused" or (kernel == "dequantize" and not y.is_graph_output()):
            return
        read, made = sdk.storage(x), sdk.storage(y, output=True, fuses=row.fuses)
        if node.op_type == "QuantizeLinear":
            made = sdk.Storage(y, y.dtype, True, node.inputs[1], (*node.inputs, None)[2])
        elif kernel == "dequantize":
            read, made = sdk.storage(y), sdk.Storage(y, y.dtype)
        if made.value in self._shares or any(step.result is made.value for step in self.steps):
            return  # a kernel writes it as integers
        if kernel == "alias" and made.value not in self._elsewhere:
            self._shares[made.value] = self.root(read.value)
            return
        act = sdk.fused_activation(y, row.fuses) or (node if node.op_type in ("Relu", "Clip") else None)
        self.grids |= {stored.value: stored.grid for stored in (read, made) if stored.quantized}
        (sx, zx), (sy, zy), (m, shift) = read.grid, made.grid, _scale(read.grid[0] / made.grid[0])
        top = min(127, zy + round(6 / sy)) if act is not None and act.op_type == "Clip" else 127
        limits = _literal("range_t", zx, zy, -128 if act is None else zy, top)
        reads, shape = [read.value], made.value.shape.numpy()
        count = math.prod(shape)
        if row.lower in ("conv", "fully_connected"):
            kernel, arguments = "conv", f"$0, {self._factors(node, sx, sy)}, $y, {_window(node)}, {limits}"
        elif row.lower in ("average_pool", "max_pool"):
            kind = 2 if row.lower == "max_pool" else g.attribute(node, "count_include_pad", 0)
            factor = _literal("scale_t", m, shift)
            kernel, arguments = "pool", f"$0, $y, {_window(node)}, {factor}, {kind}, {limits}"
        elif kernel == "add":
            other = sdk.storage(node.inputs[1])
            (sb, zb), shift = other.grid, _scale(max(sx, other.grid[0]) / sy)[1]
            reads.append(other.value)
            factors = ", ".join(str(min(round(math.ldexp(s / sy, shift)), 2**31 - 1)) for s in (sx, sb))
            arguments = f"$0, $1, $y, {count}, {factors}, {shift}, {zb}, {limits}"
        elif kernel == "softmax":
            arguments = f"$0, $y, {count // shape[-1]}, {shape[-1]}, {np.float32(sx):.9e}f, {limits}"
        elif kernel == "transpose":
            sizes = read.value.shape.numpy()
            perm = g.attribute(node, "perm") or tuple(reversed(range(len(sizes))))
            strides = [math.prod(sizes[p + 1 :]) for p in perm]
            both = [_literal("const int[]", *([n] * 4 + list(v))[-4:]) for n, v in ((1, shape), (0, strides))]
            arguments = f"$0, $y, {', '.join(both)}"
        elif kernel == "alias":
            kernel, arguments = "memcpy", f"$y, $0, {count}"
        elif kernel == "rescale":  # a sum with nothing
            kernel, arguments = "add", f"$0, $0, $y, {count}, {m}, 0, {shift}, 0, {limits}"
        else:  # quantize, dequantize
            arguments = f"$0, $y, {count}, {np.float32(sy if kernel == 'quantize' else sx):.9e}f, {limits}"
        for value in (*reads, made.value):
            self._live(value)
        self.steps.append(Step(kernel, arguments, tuple(reads), made.value))

    def _factors(self, node: ir.Node, sx: float, sy: float) -> str:
        """Weights, bias in units of the sum, and the factors of the outputs."""
        weight, bias = (None if v is None else sdk.storage(v) for v in (*node.inputs, None)[1:3])
        step = sx * np.resize(g.constant(weight.scale).astype(np.float64), weight.value.shape[0])
        sums = np.zeros(len(step)) if bias is None else np.asarray(g.constant(bias.value), np.float64)
        sums = np.rint(sums if bias is None or bias.quantized else sums / step).astype(np.int64)
        factors = np.array([_scale(s / sy) for s in step], [("m", np.int64), ("s", np.int64)])
        parts = (("int8_t", weight.value), ("int32_t", sums), ("scale_t", factors))
        return ", ".join(self._weight(*part) for part in parts)


def _window(node: ir.Node) -> str:
    """A window_t: of an operator that slides one, or of a product, which has a single place."""
    x, y = (v.shape.numpy() for v in (node.inputs[0], node.outputs[0]))
    numbers = [math.prod(x[:-1]), 1, 1, x[-1], 1, 1, y[-1], 1, 1, 1, 1, 1, 1, 0, 0, 1]
    if node.op_type != "FullyConnected":
        size = g.attribute(node, "kernel_shape") or node.inputs[1].shape.numpy()[1:3]
        sliding = [n for key in ("strides", "dilations") for n in g.attribute(node, key, (1, 1))]
        pads, group = g.attribute(node, "pads", (0, 0))[:2], g.attribute(node, "group", 1)
        numbers = [*x, *y[1:], *size, *sliding, *pads, group]
    return "&" + _literal("const window_t", *numbers)


def _literal(kind: str, *numbers: int) -> str:
    return f"({kind}){{{', '.join(map(str, numbers))}}}"


def bytes_of(value: ir.Value) -> int:
    return int(math.prod(value.shape.numpy()) * value.dtype.itemsize)


def ctype(value: ir.Value) -> str:
    return {ir.DataType.FLOAT: "float", ir.DataType.INT8: "int8_t"}.get(value.dtype, "char")


def _scale(real: float) -> tuple[int, int]:
    """m and s with real = m / 2^s: 31 bits of m where s allows."""
    shift = min(max(31 - math.frexp(real)[1], 1), 62)
    return min(round(math.ldexp(real, shift)), 2**31 - 1), shift
