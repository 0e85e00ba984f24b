"""One node on arrays: NumPy for cheap arithmetic, an ONNX Runtime session of one node for the rest, under a
budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.errors import ResourceError
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.kernels import KERNELS, Array, Declined, Undefined, ints, range_length
from tapeout.compiler.ir.origin import origin

__all__ = ["RANDOM", "Declined", "evaluate"]

# Operators whose result is another one each time: never folded, never merged.
RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
)

# Operators whose result may have any size but never one past what their inputs bound.
BOUNDED = frozenset({"NonZero", "Unique", "Compress", "NonMaxSuppression", "TopK"})

LIMIT = 1 << 28


def evaluate(node: ir.Node, inputs: Sequence[Array | None], limit: int = LIMIT) -> list[Array]:
    """The outputs of `node` on `inputs` (one array per input, None for an absent one), in output order.

    The size of what will be allocated is known before it is: past `limit` bytes it is a ResourceError that
    names the source nodes. Raises `Declined` for what cannot be evaluated: random operators, subgraphs,
    operators without a kernel, inputs that ONNX leaves undefined.
    """
    if node.domain != "" or node.op_type in RANDOM or g.has_subgraph(node):
        raise Declined(f"{node.domain or 'ai.onnx'}::{node.op_type} is not evaluated")
    kernel = KERNELS.get(node.op_type)
    if kernel is not None:
        _check(node, _bytes(node, inputs), limit)
        attributes = {name: g.attribute(node, name) for name in node.attributes}
        try:
            result = kernel(*inputs, **attributes)
        except Undefined:
            raise
        except Declined:
            pass
        except (TypeError, ValueError, IndexError, OverflowError, AttributeError) as error:
            raise Declined(str(error)) from None
        else:
            return list(result) if isinstance(result, list) else [result]
    return _in_runtime(node, inputs, limit)


def _check(node: ir.Node, size: int, limit: int) -> None:
    if size > limit:
        raise ResourceError(
            f"{node.op_type} '{node.name}' makes {size:,} bytes, at most {limit:,} are allowed here",
            hint="is a shape in the model wrong?",
            nodes=origin(node),
        )


def _bytes(node: ir.Node, inputs: Sequence[Array | None]) -> int:
    """The bytes of what a kernel will allocate, from the inputs, for operators whose result can outgrow
    them."""
    first = inputs[0] if inputs else None
    if first is None:
        return 0
    item, op = int(first.dtype.itemsize), node.op_type
    if op == "ConstantOfShape":
        value = g.attribute(node, "value")
        return _product(ints(first)) * (4 if value is None else max(1, int(value.dtype.bitwidth) // 8))
    arrays = [x for x in inputs if x is not None]
    if op == "Range":
        return range_length(*(x.reshape(()) for x in arrays)) * item
    if op == "Tile":
        return _product([a * b for a, b in zip(first.shape, ints(inputs[1]), strict=False)]) * item
    if op == "Expand":
        return _broadcast([first.shape, ints(inputs[1])]) * item
    if op == "Gather":
        axis = g.attribute(node, "axis", 0)
        rest = first.size // max(1, first.shape[axis]) if first.ndim > axis >= -first.ndim else 0
        return int(rest * arrays[1].size * item)
    if op in ("Where", "Mod") or (len(inputs) == 2 and op not in ("Reshape", "Squeeze", "Unsqueeze")):
        return _broadcast([x.shape for x in arrays]) * max(int(x.dtype.itemsize) for x in arrays)
    return 0


def _product(shape: Sequence[Any]) -> int:
    return math.prod(max(0, int(d)) for d in shape)


def _broadcast(shapes: Sequence[Sequence[Any]]) -> int:
    rank = max(len(s) for s in shapes)
    padded = [[1] * (rank - len(s)) + list(s) for s in shapes]
    return _product([0 if 0 in sizes else max(sizes) for sizes in zip(*padded, strict=True)])


def _in_runtime(node: ir.Node, inputs: Sequence[Array | None], limit: int) -> list[Array]:
    model = _alone(node, inputs)
    _check(node, _inferred_bytes(node, model), limit)
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    feeds = {v.name: x for v, x in zip(model.graph.inputs, [x for x in inputs if x is not None], strict=True)}
    try:
        session = ort.InferenceSession(
            ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return [np.asarray(x) for x in session.run(None, feeds)]
    except Exception as error:  # the runtime's own exception types have no common base but this
        raise Declined(f"ONNX Runtime: {error}") from None


def _alone(node: ir.Node, inputs: Sequence[Array | None]) -> ir.Model:
    """A model of this node only, its inputs in order (the same value twice: two inputs)."""
    made: list[ir.Value | None] = []
    for i, x in enumerate(inputs):
        if x is None:
            made.append(None)
            continue
        source = node.inputs[i] if i < len(node.inputs) else None
        dtype = (
            source.dtype
            if source is not None and source.dtype is not None
            else ir.DataType.from_numpy(x.dtype)
        )
        # Small inputs are given to shape inference as constants: they may be sizes.
        known = ir.tensor(x) if x.size <= 256 and x.dtype.kind in "biuf" else None
        made.append(
            ir.Value(name=f"i{i}", type=ir.TensorType(dtype), shape=ir.Shape(x.shape), const_value=known)
        )
    copy = ir.Node(
        "", node.op_type, made, node.attributes.values(), num_outputs=len(node.outputs), name="node"
    )
    for i, value in enumerate(copy.outputs):
        value.name = f"o{i}"
    graph = ir.Graph(
        [v for v in made if v is not None], copy.outputs, nodes=[copy], opset_imports={"": 25}, name="one"
    )
    return ir.Model(graph, ir_version=10)


def _inferred_bytes(node: ir.Node, model: ir.Model) -> int:
    from tapeout.compiler.ir.shapes import infer_node

    (copy,) = model.graph
    infer_node(copy)
    total = 0
    for value in copy.outputs:
        shape = g.static_dims(value)
        if shape is None and node.op_type not in BOUNDED:
            raise Declined(f"the size of what {node.op_type} makes is not known")
        if shape is not None and value.dtype is not None:
            total += math.prod(shape) * max(1, value.dtype.bitwidth // 8)
    return total
