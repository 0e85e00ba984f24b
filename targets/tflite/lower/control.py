"""If, Loop and Scan: IF and WHILE over subgraphs of the file.

A subgraph of TFLite sees nothing of the graph around it: every computed value that a body reads is handed in,
and for WHILE handed round as a loop variable that does not change. What a Scan collects step by step goes
into a buffer of known length (DYNAMIC_UPDATE_SLICE); what a Loop collects is appended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from ai_edge_litert import schema_py_generated as s

from tapeout.sdk import graph as g
from tapeout.targets.tflite.builder import TYPES, Builder, Lowering
from tapeout.targets.tflite.lower.shape import concatenate, cut, reshaped, shape_of
from tapeout.targets.tflite.nodes import captures

BOOL, INT32, INT64 = ir.DataType.BOOL, ir.DataType.INT32, ir.DataType.INT64

Dims = Sequence[int | str] | None


def if_(b: Builder, node: ir.Node, *, then_branch: ir.Graph, else_branch: ir.Graph) -> None:
    """One of two subgraphs, which read the same outer values."""
    (condition,) = node.inputs
    outer = captures(then_branch, else_branch)
    numbers = []
    for branch in (then_branch, else_branch):
        child = b.subgraph(branch.name or "branch")
        for value in outer:
            child.input(value)
        child.lower(branch)
        numbers.append(child.finish([_own(child, v) for v in branch.outputs]))
    options = s.IfOptionsT()
    options.thenSubgraphIndex, options.elseSubgraphIndex = numbers
    b.operator("IF", [condition, *outer], node.outputs, options)


def _own(b: Builder, value: ir.Value) -> int:
    """The tensor of an output of a subgraph: computed in it, neither a constant nor an input."""
    index = b.index(value)
    if not g.is_constant(value) and index not in b.graph.inputs:
        return index
    assert value.dtype is not None
    made = b.tensor(value.name or "copy", g.dims(value), value.dtype)
    options = s.CastOptionsT()
    options.inDataType = options.outDataType = TYPES[value.dtype]
    b.operator("CAST", [index], [made], options)
    return made


class _Loop:
    """The loop variables of one WHILE: what each is called, its first tensor outside, its shape and type."""

    def __init__(self, b: Builder) -> None:
        self.b = b
        self.first: list[int] = []
        self.kinds: list[tuple[str, Dims, ir.DataType]] = []

    def add(self, hint: str, first: ir.Value | int, dims: Dims, dtype: ir.DataType) -> int:
        """A further loop variable; returns its place."""
        self.first.append(first if isinstance(first, int) else self.b.index(first))
        self.kinds.append((hint, dims, dtype))
        return len(self.first) - 1

    def inputs(self, child: Builder) -> list[int]:
        """The loop variables as the inputs of a subgraph."""
        return [child.extra_input(*kind) for kind in self.kinds]

    def run(self, condition: Builder, body: Builder, results: dict[int, ir.Value]) -> list[int]:
        """The WHILE; `results` says which IR values the last states of which loop variables are."""
        options = s.WhileOptionsT()
        options.condSubgraphIndex, options.bodySubgraphIndex = condition.number, body.number
        made = [
            self.b.index(results[i]) if i in results else self.b.tensor(hint, dims, dtype)
            for i, (hint, dims, dtype) in enumerate(self.kinds)
        ]
        self.b.operator("WHILE", self.first, made, options)
        return made


def _binary(b: Builder, code: str, x: int, y: int, dtype: ir.DataType, options: Any, dims: Dims = ()) -> int:
    made = b.tensor(code.lower(), dims, dtype)
    b.operator(code, [x, y], [made], options)
    return made


def _number(b: Builder, value: int, dtype: type[np.integer[Any]] = np.int32) -> int:
    return b.constant(np.asarray(value, dtype))


def _dimension(b: Builder, value: ir.Value, axis: int) -> int:
    """One dimension of a tensor as an int32 vector of one element."""
    return cut(b, shape_of(b, value, g.rank(value) or 0), axis, 1)


def _shape_vector(b: Builder, length: int, dims: Sequence[int | str], known: Sequence[ir.Value]) -> int:
    """[length, *dims] as an int32 vector; symbolic dimensions are read from the values that have them."""
    parts = [length]
    for dim in dims:
        if isinstance(dim, int):
            parts.append(b.ints([dim]))
        else:
            value, axis = next((v, d.index(dim)) for v in known if (d := g.dims(v)) and dim in d)
            parts.append(_dimension(b, value, axis))
    return concatenate(b, parts, len(parts))


def _filled(b: Builder, shape: int, dims: Dims, dtype: ir.DataType) -> int:
    made = b.tensor("buffer", dims, dtype)
    b.operator("FILL", [shape, b.constant(np.zeros((), dtype.numpy()))], [made], s.FillOptionsT())
    return made


def _write(
    b: Builder, buffer: int, step: int, place: int, dims: Sequence[int | str], dtype: ir.DataType
) -> int:
    """`buffer` with `step` at `place` of its first axis."""
    row = b.tensor("row", (1, *dims), dtype)
    b.operator("EXPAND_DIMS", [step, _number(b, 0)], [row], s.ExpandDimsOptionsT())
    head = b.tensor("place", [1], INT32)
    reshaped(b, place, [1], head)
    starts = concatenate(b, [head, *([b.ints([0] * len(dims))] if dims else [])], 1 + len(dims))
    made = b.tensor("buffer", b.shape(buffer), dtype)
    b.operator("DYNAMIC_UPDATE_SLICE", [buffer, row, starts], [made])
    return made


def _turned(b: Builder, made: int, axis: int, output: ir.Value) -> None:
    """`output` with the first axis of `made` moved to `axis`."""
    rank = g.rank(output) or 1
    order = list(range(1, rank))
    order.insert(axis % rank, 0)
    b.operator("TRANSPOSE", [made, b.ints(order)], [output], s.TransposeOptionsT())


def scan(
    b: Builder,
    node: ir.Node,
    *,
    body: ir.Graph,
    num_scan_inputs: int,
    scan_input_axes: Sequence[int] = (),
    scan_output_axes: Sequence[int] = (),
    scan_input_directions: Sequence[int] = (),
    scan_output_directions: Sequence[int] = (),
) -> None:
    """A loop over the slices of the scanned inputs, with states, which collects outputs."""
    given = [v for v in node.inputs if v is not None]
    states, scanned = given[: len(given) - num_scan_inputs], given[len(given) - num_scan_inputs :]
    count, outer = len(states), captures(body)
    axes = [a % (g.rank(v) or 1) for a, v in zip(scan_input_axes or [0] * len(scanned), scanned, strict=True)]
    collected = list(zip(node.outputs[count:], body.outputs[count:], strict=True))
    steps = (g.dims(scanned[0]) or ())[axes[0]]

    loop = _Loop(b)
    length = b.ints([steps]) if isinstance(steps, int) else _dimension(b, scanned[0], axes[0])
    limit = b.tensor("steps", [], INT32)
    reshaped(b, length, [], limit)
    counter = loop.add("step", _number(b, 0), (), INT32)
    end = loop.add("steps", limit, (), INT32)
    held = {
        v: loop.add(v.name or "v", v, g.dims(v), v.dtype) for v in (*scanned, *outer) if v.dtype is not None
    }
    state = [
        loop.add(v.name or "state", v, g.dims(inner), v.dtype)
        for v, inner in zip(states, body.inputs, strict=False)
        if v.dtype is not None
    ]
    buffers = []
    for _, inner in collected:
        dims = g.dims(inner) or ()
        assert inner.dtype is not None
        shape = _shape_vector(b, length, dims, [*given, *outer, *body.inputs[:count]])
        buffers.append(
            loop.add("buffer", _filled(b, shape, (steps, *dims), inner.dtype), (steps, *dims), inner.dtype)
        )

    condition = b.subgraph("scan_condition")
    variables = loop.inputs(condition)
    condition.finish([_binary(condition, "LESS", variables[counter], variables[end], BOOL, s.LessOptionsT())])

    child = b.subgraph("scan_body")
    variables = loop.inputs(child)
    for value in outer:
        child.bind(value, variables[held[value]])
    last = _binary(child, "SUB", variables[end], _number(child, 1), INT32, s.SubOptionsT())
    back = _binary(child, "SUB", last, variables[counter], INT32, s.SubOptionsT())

    def place(directions: Sequence[int], i: int) -> int:
        return back if directions and directions[i] else variables[counter]

    for inner, variable in zip(body.inputs[:count], state, strict=True):
        child.bind(inner, variables[variable])
    for i, (inner, value) in enumerate(zip(body.inputs[count:], scanned, strict=True)):
        assert inner.dtype is not None
        taken = child.tensor(inner.name or "slice", g.dims(inner), inner.dtype)
        options = s.GatherOptionsT()
        options.axis, options.batchDims = axes[i], 0
        child.operator("GATHER", [variables[held[value]], place(scan_input_directions, i)], [taken], options)
        child.bind(inner, taken)
    child.lower(body)
    outputs = list(variables)
    outputs[counter] = _binary(child, "ADD", variables[counter], _number(child, 1), INT32, s.AddOptionsT())
    for variable, inner in zip(state, body.outputs, strict=False):
        outputs[variable] = _own(child, inner)
    for i, (variable, (_, inner)) in enumerate(zip(buffers, collected, strict=True)):
        assert inner.dtype is not None
        where, dims = place(scan_output_directions, i), g.dims(inner) or ()
        outputs[variable] = _write(child, variables[variable], child.index(inner), where, dims, inner.dtype)
    child.finish(outputs)

    results = dict(zip(state, node.outputs, strict=False))
    moved = {v: a for v, a in zip(buffers, scan_output_axes, strict=False) if a}
    results |= {v: out for v, (out, _) in zip(buffers, collected, strict=True) if v not in moved}
    made = loop.run(condition, child, results)
    for variable, (out, _) in zip(buffers, collected, strict=True):
        if variable in moved:
            _turned(b, made[variable], moved[variable], out)


def loop(b: Builder, node: ir.Node, *, body: ir.Graph) -> None:
    """A loop with a bound, a condition or both, with states; what it collects is appended step by step."""
    bound, start, *states = node.inputs
    count, outer = len(states), captures(body)
    collected = list(zip(node.outputs[count:], body.outputs[1 + count :], strict=True))

    run = _Loop(b)
    counter = run.add("step", _number(b, 0, np.int64), (), INT64)
    end = None if bound is None else run.add("bound", _scalar(b, bound, INT64), (), INT64)
    going = run.add(
        "going", b.constant(np.array(True)) if start is None else _scalar(b, start, BOOL), (), BOOL
    )
    held = {v: run.add(v.name or "v", v, g.dims(v), v.dtype) for v in outer if v.dtype is not None}
    state = [
        run.add(v.name or "state", v, g.dims(inner), v.dtype)
        for v, inner in zip(states, body.inputs[2:], strict=True)
        if v is not None and v.dtype is not None
    ]
    buffers = []
    for _, inner in collected:
        dims = g.dims(inner) or ()
        assert inner.dtype is not None
        known = [*(v for v in node.inputs if v is not None), *outer, *body.inputs]
        empty = _filled(b, _shape_vector(b, b.ints([1]), dims, known), ("steps", *dims), inner.dtype)
        buffers.append(run.add("buffer", empty, ("steps", *dims), inner.dtype))

    condition = b.subgraph("loop_condition")
    variables = run.inputs(condition)
    if end is None:
        more = condition.tensor("more", (), BOOL)
        both = [variables[going], variables[going]]
        condition.operator("LOGICAL_AND", both, [more], s.LogicalAndOptionsT())
    else:
        below = _binary(condition, "LESS", variables[counter], variables[end], BOOL, s.LessOptionsT())
        more = _binary(condition, "LOGICAL_AND", below, variables[going], BOOL, s.LogicalAndOptionsT())
    condition.finish([more])

    child = b.subgraph("loop_body")
    variables = run.inputs(child)
    for value in outer:
        child.bind(value, variables[held[value]])
    child.bind(body.inputs[0], variables[counter])
    child.bind(body.inputs[1], variables[going])
    for inner, variable in zip(body.inputs[2:], state, strict=True):
        child.bind(inner, variables[variable])
    child.lower(body)
    outputs = list(variables)
    one = _number(child, 1, np.int64)
    outputs[counter] = _binary(child, "ADD", variables[counter], one, INT64, s.AddOptionsT())
    outputs[going] = _scalar(child, body.outputs[0], BOOL)
    for variable, inner in zip(state, body.outputs[1:], strict=False):
        outputs[variable] = _own(child, inner)
    for variable, (_, inner) in zip(buffers, collected, strict=True):
        assert inner.dtype is not None
        dims = g.dims(inner) or ()
        row = child.tensor("row", (1, *dims), inner.dtype)
        child.operator("EXPAND_DIMS", [inner, _number(child, 0)], [row], s.ExpandDimsOptionsT())
        options = s.ConcatenationOptionsT()
        options.axis = 0
        grown = child.tensor("buffer", ("steps", *dims), inner.dtype)
        child.operator("CONCATENATION", [variables[variable], row], [grown], options)
        outputs[variable] = grown
    child.finish(outputs)

    made = run.run(condition, child, dict(zip(state, node.outputs, strict=False)))
    for variable, (out, _) in zip(buffers, collected, strict=True):
        # WHILE does not start from an empty tensor: the first row is no step's.
        rank = g.rank(out) or 1
        sizes = [b.ints([1] + [0] * (rank - 1)), b.ints([-1] * rank)]
        b.operator("SLICE", [made[variable], *sizes], [out], s.SliceOptionsT())


def _scalar(b: Builder, value: ir.Value, dtype: ir.DataType) -> int:
    """A tensor of one element as a scalar, computed where it is a constant of a subgraph."""
    if g.is_constant(value):
        array = g.constant(value)
        assert array is not None
        return b.constant(array.reshape(()))
    if g.rank(value) == 0:
        return b.index(value)
    made = b.tensor("scalar", [], dtype)
    reshaped(b, value, [], made)
    return made


LOWERINGS: dict[str, Lowering] = {"IF": if_, "WHILE": loop, "WHILE_SCAN": scan}
