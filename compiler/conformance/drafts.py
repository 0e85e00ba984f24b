"""A draft: one node with its data, before it is a model. Operands know whether they are constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.conformance.case import Array
from tapeout.compiler.ir import functions
from tapeout.compiler.ir.graph import Shape
from tapeout.compiler.ir.origin import set_origin
from tapeout.compiler.ir.shapes import infer_node
from tapeout.compiler.operators import DTYPES

NUMPY = {name: dtype.numpy() for name, dtype in DTYPES.items() if name not in ("string",)}


@dataclass(frozen=True)
class Operand:
    """An input: its data, whether it is a constant, and which of its axes are free ("N")."""

    array: Array
    constant: bool = False
    free: Mapping[int, str] = field(default_factory=dict)

    @property
    def shape(self) -> Shape:
        return tuple(self.free.get(i, d) for i, d in enumerate(self.array.shape))


@dataclass
class Draft:
    """One node: `op` as declarations spell it ("Add", "tapeout::ConvNHWC"), operands (None: left out),
    attributes, and how many outputs it has."""

    op: str
    operands: list[Operand | None]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    graphs: dict[str, ir.Graph] = field(default_factory=dict)

    def constant(self, *places: int) -> Draft:
        """The same with these operands as constants."""
        made = [
            replace(o, constant=True, free={}) if o is not None and i in places else o
            for i, o in enumerate(self.operands)
        ]
        return replace(self, operands=made)


@dataclass
class Built:
    """A draft as a model: the node, and the data of the graph's inputs."""

    model: ir.Model
    node: ir.Node
    inputs: dict[str, Array]
    draft: Draft


def empty_model(opset: int = functions.OPSET) -> ir.Model:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": opset}, name="case")
    return ir.Model(graph, ir_version=10)


def leaf(model: ir.Model, name: str, operand: Operand, inputs: dict[str, Array]) -> ir.Value:
    """An operand as an initializer or as an input of the graph."""
    dtype = _dtype(operand.array)
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(list(operand.shape)))
    if operand.constant:
        value.const_value = ir.Tensor(
            np.ascontiguousarray(operand.array).reshape(operand.array.shape), dtype=dtype, name=name
        )
        value.shape = ir.Shape(operand.array.shape)
        model.graph.register_initializer(value)
    else:
        model.graph.inputs.append(value)
        inputs[name] = operand.array
    return value


def _dtype(array: Array) -> ir.DataType:
    return ir.DataType.from_numpy(array.dtype)


def call(
    model: ir.Model, op: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any], outputs: int = 1,
    name: str = "case",
) -> ir.Node:  # fmt: skip
    """Add a node of `op` to the graph, with the function that it calls, and infer its outputs."""
    domain, _, op_type = op.rpartition("::")
    if domain:
        known = functions.DECLARED.get((domain, op_type, ""))
        if known is not None and known.identifier() not in model.functions:
            model.functions[known.identifier()] = known.clone()
        model.graph.opset_imports.setdefault(domain, 1)
    given = {k: v for k, v in attributes.items() if v is not None}
    node = ir.node(op_type, list(inputs), given, domain=domain, num_outputs=outputs, name=name)
    set_origin(node, [name])
    for i, value in enumerate(node.outputs):
        value.name = f"{name}_y{i}" if outputs > 1 else f"{name}_y"
    model.graph.append(node)
    infer_node(node)
    return node


def build(draft: Draft) -> Built:
    """The draft alone in a model; every output of the node is an output of the graph."""
    model = empty_model()
    inputs: dict[str, Array] = {}
    values = [None if o is None else leaf(model, f"x{i}", o, inputs) for i, o in enumerate(draft.operands)]
    while values and values[-1] is None:
        values.pop()
    node = call(model, draft.op, values, {**draft.attributes, **draft.graphs}, draft.outputs)
    model.graph.outputs.extend(node.outputs)
    return Built(model, node, inputs, draft)


# --- data -----------------------------------------------------------------------------------------------------


def data(rng: np.random.Generator, shape: Sequence[int], dtype: str, kind: str = "plain") -> Array:
    """Random data of a type: "plain" (normal; integers within +-9), "positive" (0.1 to 4), "unit" (-1 to 1),
    "wide" (integers of the whole range), "distinct" (no two elements equal, for orders)."""
    made = NUMPY[dtype]
    size = tuple(shape)
    if made == np.bool_:
        return np.asarray(rng.random(size) < 0.5)
    real = np.issubdtype(made, np.floating) or made.kind == "V"
    if kind == "distinct":
        count = int(np.prod(size, dtype=np.int64))
        numbers = rng.permutation(count).reshape(size)
        if real:
            return np.asarray((numbers - count / 2) * 0.25).astype(made)
        span = np.iinfo(made)
        return np.asarray((numbers + max(-count // 2, span.min)) % min(2**31, span.max)).astype(made)
    if real:
        if kind == "positive":
            return np.asarray(rng.uniform(0.1, 4, size)).astype(made)
        if kind == "unit":
            return np.asarray(rng.uniform(-0.99, 0.99, size)).astype(made)
        return np.asarray(rng.standard_normal(size) * 2).astype(made)
    span = np.iinfo(made)
    if kind == "wide":
        return np.asarray(rng.integers(span.min, span.max, size, dtype=made, endpoint=True))
    low = 1 if kind == "positive" else max(span.min, -9)
    return np.asarray(rng.integers(low, 10, size)).astype(made)
