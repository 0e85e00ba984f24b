"""Convolutions and pools over images with the channels last."""

from __future__ import annotations

import onnx_ir as ir

from tapeout.sdk import graph as g
from tapeout.targets.nvidia.lower.builder import Builder
from tapeout.targets.nvidia.plan import expressions as e
from tapeout.targets.nvidia.plan.parts import Value

ZERO, ONE = e.number(0), e.number(1)
# A window that sees each element once.
POINTWISE = {"kernel": (1, 1), "strides": (1, 1), "pads": (0, 0, 0, 0)}


def convolution(b: Builder, node: ir.Node) -> None:
    """ConvNHWC(X [N,H,W,C], W [O,KH,KW,C/group], B [O]) -> conv, depthwise where each channel is a group, and the
    product of matrices that it is where its window is one element

    Numbers: n, h, w, c, output h, output w, o; then of each operand of the epilogue its strides over the rows
    (positions) and columns (channels) of the result.
    """
    x, w = b.read(node.inputs[0]), b.read(node.inputs[1])
    target = b.output(node.outputs[0])
    (n, h, wide, c), (_, oh, ow, o) = b.tensors[x].shape, b.tensors[target].shape
    kernel = g.static_dims(node.inputs[1]) or ()
    group = int(g.attribute(node, "group", 1))
    bias = (*node.inputs, None)[2]
    reads, numbers = [x, w], [n, h, wide, c, oh, ow, o]
    program: tuple[str, ...] = ("x0",)
    if bias is not None:
        reads.append(b.read(bias))
        numbers += [ZERO, e.number(1)]
        program = ("x0", "x1", "add")
    facts: dict[str, Value] = {"group": group, "program": program, **window(node, kernel[1:3])}
    if group == 1 and all(facts[name] == plain for name, plain in POINTWISE.items()):
        rows = e.product([n, h, wide])
        product = [ONE, rows, o, c, ZERO, c, ONE, ZERO, ONE, c]
        further = [ZERO, ZERO, ONE] if bias is not None else []
        b.launch("gemm", node, reads, [target], [*product, *further], {"program": program})
        return
    name = "depthwise" if group > 1 and kernel[3] == 1 and c == o else "conv"
    b.launch(name, node, reads, [target], numbers, facts)


def pool(b: Builder, node: ir.Node) -> None:
    """MaxPoolNHWC, AveragePoolNHWC. Numbers: n, h, w, c, output h, output w"""
    x, target = b.read(node.inputs[0]), b.output(node.outputs[0])
    (n, h, wide, c), (_, oh, ow, _) = b.tensors[x].shape, b.tensors[target].shape
    kind = "max" if node.op_type.startswith("Max") else "mean"
    facts: dict[str, Value] = {
        "kind": kind,
        "padding": int(g.attribute(node, "count_include_pad", 0)),
        **window(node, g.attribute(node, "kernel_shape")),
    }
    b.launch("pool", node, [x], [target], [n, h, wide, c, oh, ow], facts)


def window(node: ir.Node, kernel: tuple[int, ...]) -> dict[str, Value]:
    """Kernel, strides, dilations and pads of a node over two axes."""
    strides = tuple(map(int, g.attribute(node, "strides", (1, 1))))
    dilations = tuple(map(int, g.attribute(node, "dilations", (1, 1))))
    pads = tuple(map(int, g.attribute(node, "pads", (0, 0, 0, 0))))
    auto = g.attribute(node, "auto_pad", "NOTSET")
    if auto.startswith("SAME"):
        pads = _same(node, kernel, strides, dilations, upper=auto == "SAME_UPPER")
    return {"kernel": tuple(map(int, kernel)), "strides": strides, "dilations": dilations, "pads": pads}


def _same(
    node: ir.Node,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    *,
    upper: bool,
) -> tuple[int, ...]:
    """The pads of auto_pad SAME_*: the odd one at the end, or at the beginning."""
    found, result = g.static_dims(node.inputs[0]) or (), g.static_dims(node.outputs[0]) or ()
    begins, ends = [], []
    for i in range(2):
        total = max((result[1 + i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 - found[1 + i], 0)
        small, large = total // 2, total - total // 2
        begins.append(small if upper else large)
        ends.append(large if upper else small)
    return (*begins, *ends)
