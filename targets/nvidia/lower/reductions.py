"""Reductions, softmax and normalizations: over the middle of [outer, n, inner]."""

from __future__ import annotations

import onnx_ir as ir

from tapeout.sdk import graph as g
from tapeout.targets.nvidia.lower.builder import Builder, strides
from tapeout.targets.nvidia.lower.moving import constant
from tapeout.targets.nvidia.plan import expressions as e
from tapeout.targets.nvidia.plan.expressions import Code

KINDS = {
    "ReduceSum": "sum", "ReduceMean": "mean", "ReduceMax": "max", "ReduceMin": "min", "ReduceProd": "prod",
    "ReduceL1": "l1", "ReduceL2": "l2", "ReduceSumSquare": "squares", "ReduceLogSum": "logsum",
    "ReduceLogSumExp": "logsumexp", "ArgMax": "argmax", "ArgMin": "argmin",
}  # fmt: skip


def reduce(b: Builder, node: ir.Node) -> None:
    """Reduce*(x, axes): axes that do not stand together are brought to the end first"""
    x = b.read(node.inputs[0])
    shape = b.tensors[x].shape
    given = constant(node, 1, ())
    axes = sorted(int(a) % len(shape) for a in given)
    if not axes and g.attribute(node, "noop_with_empty_axes", 0):
        b.view(node.outputs[0], x, node)
        return
    axes = axes or list(range(len(shape)))
    if not axes:  # a number
        shape, axes = (e.number(1),), [0]
    outer, count, inner = parts(shape, axes)
    if axes != list(range(axes[0], axes[-1] + 1)):
        x, outer, count, inner = _together(b, node, x, axes)
    target = b.output(node.outputs[0])
    b.launch("reduce", node, [x], [target], [outer, count, inner], {"kind": KINDS[node.op_type]})


def arg(b: Builder, node: ir.Node) -> None:
    """ArgMax, ArgMin: the first, or the last, of equal ones"""
    x = b.read(node.inputs[0])
    shape = b.tensors[x].shape
    axis = g.attribute(node, "axis", 0) % len(shape)
    last = g.attribute(node, "select_last_index", 0)
    target = b.output(node.outputs[0])
    kind = {"kind": KINDS[node.op_type], "last": last}
    b.launch("reduce", node, [x], [target], parts(shape, [axis]), kind)


def softmax(b: Builder, node: ir.Node) -> None:
    """Softmax, LogSoftmax along one axis"""
    x = b.read(node.inputs[0])
    shape = b.tensors[x].shape
    axis = g.attribute(node, "axis", -1) % len(shape)
    target = b.output(node.outputs[0])
    b.launch("softmax", node, [x], [target], parts(shape, [axis]), {"log": int(node.op_type == "LogSoftmax")})


def normalize(b: Builder, node: ir.Node) -> None:
    """LayerNormalization, RMSNormalization over the last axes: rows of n, scale and bias of n"""
    x = b.read(node.inputs[0])
    shape = b.tensors[x].shape
    axis = g.attribute(node, "axis", -1) % len(shape)
    rows, count = e.product(shape[:axis]), e.product(shape[axis:])
    reads = [x, *(b.read(v) for v in node.inputs[1:] if v is not None)]
    rms = int(node.op_type == "RMSNormalization")
    facts = {"epsilon": float(g.attribute(node, "epsilon", 1e-5)), "rms": rms}
    b.launch("normalize", node, reads, [b.output(node.outputs[0])], [rows, count], facts)


def parts(shape: tuple[Code, ...], axes: list[int]) -> tuple[Code, Code, Code]:
    """Elements before, along and behind neighbouring axes."""
    first, last = axes[0], axes[-1]
    return e.product(shape[:first]), e.product(shape[first : last + 1]), e.product(shape[last + 1 :])


def _together(b: Builder, node: ir.Node, x: int, axes: list[int]) -> tuple[int, Code, Code, Code]:
    shape, value = b.tensors[x].shape, node.inputs[0]
    assert value is not None
    kept = [a for a in range(len(shape)) if a not in axes]
    order = [*kept, *axes]
    own, made = strides(shape), [shape[a] for a in order]
    target = b.temporary(value, made)
    b.copy(x, target, made, [own[a] for a in order], strides(made), node)
    return target, e.product(made[: len(kept)]), e.product(made[len(kept) :]), e.number(1)
