"""Makers of cases for quantization's own operators and for subgraphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.conformance.drafts import NUMPY, Draft, Operand, data
from tapeout.compiler.conformance.draws import Maker, Wish
from tapeout.compiler.conformance.makers.elementwise import shape
from tapeout.compiler.operators import DTYPES

INTEGERS = ("int8", "uint8", "int16")


def scale_of(w: Wish) -> np.ndarray[Any, Any]:
    return np.asarray(w.draws.rng.uniform(0.01, 0.1), np.float32)


def quantize(w: Wish, op: str) -> Draft:
    """QuantizeLinear of reals by one scale, or along an axis."""
    dims = shape(w, w.rank("x", low=1, high=4), "x")
    dtype = w.dtype("T3", ("y_zero_point", "y"), INTEGERS)
    x = data(w.draws.rng, dims, w.dtype("T1", ("x",)))
    count, axis = _per_axis(w, dims, "y_scale")
    scale = np.full(count, scale_of(w), np.float32) if count else scale_of(w)
    zero = np.full(count or (), 0 if dtype == "int16" else w.pick([0, 3, 5]), NUMPY[dtype])
    fixed = [bool(w.value(f"{n}.constant", (True,))) for n in ("y_scale", "y_zero_point")]
    return Draft(
        op, [Operand(x), Operand(scale, fixed[0]), Operand(zero, fixed[1])], {"axis": axis} if count else {}
    )


def _per_axis(w: Wish, dims: list[int], port: str) -> tuple[int, int]:
    """The number of scales along an axis, 0 for one scale."""
    one = w.limits.get(f"{port}.elements")
    broken = w.outside == f"quantity.{port}.elements"
    if (one and not broken) or (not broken and not w.flip(3)) or len(dims) < 1:
        return 0, 0
    axis = w.pick(range(len(dims)))
    dims[axis] = max(dims[axis], 2)
    return dims[axis], axis


def dequantize(w: Wish, op: str) -> Draft:
    """DequantizeLinear (or DequantizeLong) of integers, constants where the row wants them."""
    long = op.endswith("DequantizeLong")
    x_port, scale_port = ("x", "scale") if long else ("x", "x_scale")
    dims = shape(w, w.rank("x", low=1, high=4), "x")
    dtype = w.dtype("T1", (x_port,), INTEGERS)
    count, axis = _per_axis(w, dims, scale_port)
    span = {"int4": 7, "int2": 1, "uint4": 7}.get(dtype, 100)
    codes = np.asarray(w.draws.rng.integers(0 if dtype[0] == "u" else -span, span + 1, dims)).astype(
        DTYPES[dtype].numpy()
    )
    rule = w.row.ports.get(x_port) if w.row is not None else None
    constant = (rule is not None and rule.role == "const") != (w.outside == f"ports.{x_port}.constant")
    scale = w.draws.rng.uniform(0.01, 0.1, count or ()).astype(np.float32)
    operands = [Operand(codes, constant), Operand(scale, bool(w.value(f"{scale_port}.constant", (True,))))]
    if not long:
        zero = np.zeros(count or (), DTYPES[dtype].numpy())
        if dtype in ("int8", "uint8") and not count:
            zero = np.asarray(w.pick([0, 3, 5]), DTYPES[dtype].numpy())
        operands.append(Operand(zero, bool(w.value("x_zero_point.constant", (True,)))))
    return Draft(op, list(operands), {"axis": axis} if count and not long else {})


def _value(name: str, dtype: str, dims: tuple[int, ...]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(DTYPES[dtype]), shape=ir.Shape(dims))


def _step(
    op: str, inputs: list[ir.Value], like: ir.Value, name: str, attributes: dict[str, Any] | None = None
) -> ir.Node:
    node = ir.node(op, inputs, attributes or {}, name=name)
    (made,) = node.outputs
    made.name, made.type, made.shape = name, like.type, like.shape
    return node


def _graph(inputs: list[ir.Value], nodes: list[ir.Node], outputs: list[ir.Value], name: str) -> ir.Graph:
    return ir.Graph(inputs, outputs, nodes=nodes, name=name)


def _states(w: Wish) -> str:
    return w.dtype("V", (), ("float32", "int32"))


def if_(w: Wish, op: str) -> Draft:
    """If between two constants, which a node of each branch hands out."""
    dtype = _states(w)
    dims = tuple(shape(w, w.rank(low=0, high=4)))
    branches = {}
    for name in ("then_branch", "else_branch"):
        array = data(w.draws.rng, dims, dtype)
        held = _value(f"{name}_c", dtype, dims)
        held.const_value = ir.tensor(array, name=held.name)
        node = _step("Identity", [held], held, f"{name}_y")
        made = _graph([], [node], [node.outputs[0]], name)
        made.register_initializer(held)
        branches[name] = made
    condition = np.asarray(w.pick([True, False]))
    return Draft(op, [Operand(condition)], {}, 1, branches)


def loop(w: Wish, op: str) -> Draft:
    """Loop over a state that is doubled (or turned) for some trips, and collected."""
    dtype = _states(w)
    dims = tuple(shape(w, w.rank(low=1, high=3)))
    count, condition, state = _value("i", "int64", ()), _value("c", "bool", ()), _value("s", dtype, dims)
    going = _step("Identity", [condition], condition, "c_out")
    work = (
        "Not" if dtype == "bool" else "Identity" if dtype in ("float16", "uint8", "int8", "int16") else "Add"
    )
    step = _step(work, [state, state] if work == "Add" else [state], state, "s_out")
    kept = _step("Identity", [step.outputs[0]], state, "kept")
    body = _graph(
        [count, condition, state], [going, step, kept], [n.outputs[0] for n in (going, step, kept)], "body"
    )
    trips = Operand(np.asarray(w.pick([3, 1, 2, 5]), np.int64), w.flip())
    start = Operand(np.asarray(True), True)
    return Draft(op, [trips, start, Operand(data(w.draws.rng, dims, dtype))], {}, 2, {"body": body})


def scan(w: Wish, op: str) -> Draft:
    """Scan along the first axis with a running sum."""
    dtype = _states(w)
    work = "Identity" if dtype in ("bool", "float16", "uint8", "int8", "int16") else "Add"
    dims = tuple(shape(w, w.rank(low=1, high=2)))
    state, element = _value("s", dtype, dims), _value("e", dtype, dims)
    step = _step(work, [state, element] if work == "Add" else [element], state, "s_out")
    kept = _step("Identity", [step.outputs[0]], state, "kept")
    body = _graph([state, element], [step, kept], [step.outputs[0], kept.outputs[0]], "body")
    length = w.pick([3, 2, 5])
    arrays = [data(w.draws.rng, dims, dtype), data(w.draws.rng, (length, *dims), dtype)]
    return Draft(op, [Operand(a) for a in arrays], {"num_scan_inputs": 1}, 2, {"body": body})


MAKERS: dict[str, Maker] = {
    "QuantizeLinear": quantize,
    "DequantizeLinear": dequantize,
    "tapeout::DequantizeLong": dequantize,
    "If": if_,
    "Loop": loop,
    "Scan": scan,
}
