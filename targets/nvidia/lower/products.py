"""Products of matrices: `gemm` launches over strided operands, with what follows them as an epilogue."""

from __future__ import annotations

import onnx_ir as ir

from tapeout.sdk import graph as g
from tapeout.targets.nvidia.lower.builder import Builder, broadcast, strides
from tapeout.targets.nvidia.plan import expressions as e
from tapeout.targets.nvidia.plan.expressions import Code

ONE, ZERO = e.number(1), e.number(0)
PLAIN = ("x0",)


def matmul(b: Builder, node: ir.Node) -> None:
    """MatMul with NumPy's rules; vectors are matrices of one row or column"""
    left, right = b.read(node.inputs[0]), b.read(node.inputs[1])
    first, second = b.tensors[left].shape, b.tensors[right].shape
    first = (ONE, *first) if len(first) == 1 else first
    second = (*second, ONE) if len(second) == 1 else second
    *batch_a, m, k = first
    *batch_b, _, n = second
    if all(d == ONE for d in batch_b):
        rows = e.product([*batch_a, m])  # the batch is more rows
        batch, numbers = ONE, [rows, n, k, ZERO, k, ONE, ZERO, n, ONE]
    else:
        left, step_a = _batched(b, node, 0, left, first, batch_b)
        right, step_b = _batched(b, node, 1, right, second, batch_a)
        longer = batch_a if len(batch_a) >= len(batch_b) else batch_b
        batch = e.product(_joined(batch_a, batch_b)) if longer else ONE
        numbers = [m, n, k, step_a, k, ONE, step_b, n, ONE]
    _launch(b, node, [left, right], b.output(node.outputs[0]), [batch, *numbers], PLAIN)


def _joined(first: list[Code], second: list[Code]) -> list[Code]:
    """The shape that two batches broadcast to."""
    length = max(len(first), len(second))
    pairs = zip([ONE] * (length - len(first)) + first, [ONE] * (length - len(second)) + second, strict=True)
    return [y if x == ONE else x for x, y in pairs]


def _batched(
    b: Builder, node: ir.Node, index: int, tensor: int, shape: tuple[Code, ...], other: list[Code]
) -> tuple[int, Code]:
    """The operand with the stride from one matrix of the batch to the next: what repeats only in part is
    written out."""
    own = list(shape[:-2])
    whole = _joined(own, other)
    matrix = e.product(shape[-2:])
    if all(d == ONE for d in own):
        return tensor, ZERO
    if whole == own:
        return tensor, matrix
    value = node.inputs[index]
    assert value is not None
    made = [*whole, *shape[-2:]]
    target = b.temporary(value, made)
    b.copy(tensor, target, made, broadcast(shape, made), strides(made), node)
    return target, matrix


def gemm(b: Builder, node: ir.Node) -> None:
    """Gemm: alpha A' B' + beta C"""
    left, right = b.read(node.inputs[0]), b.read(node.inputs[1])
    (rows, inner), (_, columns) = b.tensors[left].shape, b.tensors[right].shape
    across, down = g.attribute(node, "transA", 0), g.attribute(node, "transB", 0)
    m, k = (inner, rows) if across else (rows, inner)
    n = b.tensors[right].shape[0] if down else columns
    by_a = [ONE, inner] if across else [inner, ONE]
    by_b = [ONE, columns] if down else [columns, ONE]
    alpha, beta = float(g.attribute(node, "alpha", 1.0)), float(g.attribute(node, "beta", 1.0))
    program: tuple[str, ...] = PLAIN if alpha == 1 else ("x0", repr(alpha), "mul")
    numbers = [ONE, m, n, k, ZERO, *by_a, ZERO, *by_b]
    added = (*node.inputs, None)[2]
    reads, target = [left, right], b.output(node.outputs[0])
    if added is not None and beta:
        reads.append(b.read(added))
        scaled = ("x1",) if beta == 1 else ("x1", repr(beta), "mul")
        program = (*program, *scaled, "add")
    _launch(b, node, reads, target, numbers, program)


def _launch(
    b: Builder, node: ir.Node, reads: list[int], target: int, numbers: list[Code], program: tuple[str, ...]
) -> None:
    """Numbers: batch, m, n, k, strides of a (batch, row, column) and of b; then for each further operand of the
    epilogue its strides over the batch, rows and columns of the result."""
    batch, m, n = numbers[:3]
    for extra in reads[2:]:
        numbers += [ZERO, *broadcast(b.tensors[extra].shape, (m, n))]
    assert batch
    b.launch("gemm", node, reads, [target], numbers, {"program": program})
