"""What moves elements: views without a launch, and strided copies."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from tapeout.sdk import graph as g
from tapeout.targets.nvidia.lower.builder import Builder, broadcast, strides
from tapeout.targets.nvidia.plan import expressions as e

ONE, ZERO = e.number(1), e.number(0)


def view(b: Builder, node: ir.Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze, Identity -> the same bytes"""
    b.view(node.outputs[0], b.read(node.inputs[0]), node)


def transpose(b: Builder, node: ir.Node) -> None:
    """Transpose -> a copy by permuted strides; a view where only axes of size 1 move"""
    x = b.read(node.inputs[0])
    shape = b.tensors[x].shape
    perm = g.attribute(node, "perm", tuple(reversed(range(len(shape)))))
    kept = [axis for axis in perm if shape[axis] != ONE]
    if kept == sorted(kept):
        b.view(node.outputs[0], x, node)
        return
    own, target = strides(shape), b.output(node.outputs[0])
    made = b.tensors[target].shape
    b.copy(x, target, made, [own[axis] for axis in perm], strides(made), node)


def expand(b: Builder, node: ir.Node) -> None:
    """Expand -> a copy whose strides are 0 where it repeats"""
    x, target = b.read(node.inputs[0]), b.output(node.outputs[0])
    made = b.tensors[target].shape
    b.copy(x, target, made, broadcast(b.tensors[x].shape, made), strides(made), node)


def tile(b: Builder, node: ir.Node) -> None:
    """Tile -> for each axis the copies, then the axis: [r0, d0, r1, d1, ...]"""
    x, target = b.read(node.inputs[0]), b.output(node.outputs[0])
    old, made = b.tensors[x].shape, b.tensors[target].shape
    repeats = [int(r) for r in constant(node, 1)]
    own, new = strides(old), strides(made)
    dims, source, destination = [], [], []
    for axis, count in enumerate(repeats):
        dims += [e.number(count), old[axis]]
        source += [ZERO, own[axis]]
        destination += [e.product([old[axis], new[axis]]), new[axis]]
    b.copy(x, target, dims, source, destination, node)


def concat(b: Builder, node: ir.Node) -> None:
    """Concat -> each input copied to its place"""
    target = b.output(node.outputs[0])
    made = b.tensors[target].shape
    axis = g.attribute(node, "axis") % len(made)
    steps, place = strides(made), ZERO
    for value in node.inputs:
        x = b.read(value)
        shape = b.tensors[x].shape
        offset = e.product([place, steps[axis]]) if place != ZERO else ZERO
        b.copy(x, target, shape, strides(shape), steps, node, target_offset=offset)
        place = shape[axis] if place == ZERO else e.join(e.ADD, place, shape[axis])


def split(b: Builder, node: ir.Node) -> None:
    """Split -> a copy of each part"""
    x = b.read(node.inputs[0])
    own = strides(b.tensors[x].shape)
    axis, place = g.attribute(node, "axis", 0) % len(own), ZERO
    for value in node.outputs:
        shape = b.shape(value)
        if value.uses() or value.is_graph_output():
            offset = e.product([place, own[axis]]) if place != ZERO else ZERO
            b.copy(x, b.output(value), shape, own, strides(shape), node, offset=offset)
        place = shape[axis] if place == ZERO else e.join(e.ADD, place, shape[axis])


def slice_(b: Builder, node: ir.Node) -> None:
    """Slice with constant bounds -> a copy by multiplied strides from an offset"""
    x, target = b.read(node.inputs[0]), b.output(node.outputs[0])
    old, made = b.tensors[x].shape, b.tensors[target].shape
    starts = [int(s) for s in constant(node, 1)]
    axes = [int(a) % len(old) for a in constant(node, 3, range(len(starts)))]
    steps = [int(s) for s in constant(node, 4, [1] * len(starts))]
    own = strides(old)
    stepped, offset = list(own), ZERO
    for start, axis, step in zip(starts, axes, steps, strict=True):
        first = _first(start, old[axis], step)
        stepped[axis] = e.product([own[axis], e.number(step)])
        part = e.product([first, own[axis]])
        offset = part if offset == ZERO else e.join(e.ADD, offset, part)
    b.copy(x, target, made, stepped, strides(made), node, offset=offset)


def _first(start: int, size: e.Code, step: int) -> e.Code:
    """Where a slice begins: negative starts count from the end, and it never leaves the axis."""
    begin = e.number(max(-e.LARGEST + 1, min(start, e.LARGEST - 1)))
    begin = begin if start >= 0 else e.join(e.ADD, size, begin)
    last = size if step > 0 else e.join(e.SUB, size, ONE)
    return e.join(e.MAX, e.join(e.MIN, begin, last), ZERO)


def pad(b: Builder, node: ir.Node) -> None:
    """Pad(constant) -> the whole filled, then the middle copied; other modes -> `_mirrored`"""
    x = b.read(node.inputs[0])
    old = b.tensors[x].shape
    amounts = [int(p) for p in constant(node, 1)]
    axes = [int(a) % len(old) for a in constant(node, 3, range(len(old)))]
    begins, ends = [0] * len(old), [0] * len(old)
    for index, axis in enumerate(axes):
        begins[axis], ends[axis] = amounts[index], amounts[index + len(axes)]
    if g.attribute(node, "mode", "constant") != "constant":
        _mirrored(b, node, x, begins, ends)
        return
    target = b.output(node.outputs[0])
    made = b.tensors[target].shape
    filling = (*node.inputs, None, None)[2]
    value = 0.0 if filling is None else float(constant(node, 2).reshape(-1)[0])
    b.launch("fill", node, [], [target], [e.product(made)], {"value": value})
    own, new = strides(old), strides(made)
    dims, offset, place = list(old), ZERO, ZERO
    for axis, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        cut = max(-begin, 0) + max(-end, 0)  # negative pads cut
        dims[axis] = e.join(e.SUB, old[axis], e.number(cut)) if cut else old[axis]
        offset = _plus(offset, e.product([e.number(max(-begin, 0)), own[axis]])) if begin < 0 else offset
        place = _plus(place, e.product([e.number(begin), new[axis]])) if begin > 0 else place
    b.copy(x, target, dims, own, new, node, offset=offset, target_offset=place)


def _mirrored(b: Builder, node: ir.Node, x: int, begins: list[int], ends: list[int]) -> None:
    """Pad(edge | reflect | wrap), axis by axis: the middle copied, then its borders by strides of 0, -1 or 1"""
    mode, value = g.attribute(node, "mode"), node.inputs[0]
    assert value is not None
    padded = [axis for axis in range(len(begins)) if begins[axis] or ends[axis]]
    if not padded:
        b.view(node.outputs[0], x, node)
    for axis in padded:
        shape, begin, end = list(b.tensors[x].shape), e.number(begins[axis]), e.number(ends[axis])
        size = shape[axis]
        made = [*shape[:axis], e.join(e.ADD, e.join(e.ADD, size, begin), end), *shape[axis + 1 :]]
        target = b.output(node.outputs[0]) if axis == padded[-1] else b.temporary(value, made)
        own, new = strides(shape), strides(made)
        last = e.join(e.SUB, size, ONE)
        # How many there are, where they begin in the source and in the result.
        before = {"edge": (0, ZERO), "reflect": (-1, begin), "wrap": (1, e.join(e.SUB, size, begin))}[mode]
        behind = {"edge": (0, last), "reflect": (-1, e.join(e.SUB, last, ONE)), "wrap": (1, ZERO)}[mode]
        pieces = ((size, 1, ZERO, begin), (begin, *before, ZERO), (end, *behind, e.join(e.ADD, begin, size)))
        for count, step, first, place in pieces:
            if count == ZERO:
                continue
            dims, source = [*shape[:axis], count, *shape[axis + 1 :]], list(own)
            source[axis] = e.product([own[axis], e.number(step)])
            at, to = e.product([first, own[axis]]), e.product([place, new[axis]])
            b.copy(x, target, dims, source, new, node, offset=at, target_offset=to)
        x = target


def _plus(a: e.Code, b: e.Code) -> e.Code:
    return b if a == ZERO else e.join(e.ADD, a, b)


def depth_to_space(b: Builder, node: ir.Node) -> None:
    """DepthToSpaceNHWC: [N, H, W, C b b] -> [N, H, b, W, b, C] by strides"""
    x, target = b.read(node.inputs[0]), b.output(node.outputs[0])
    (n, h, w, c), size = b.tensors[target].shape, e.number(g.attribute(node, "blocksize"))
    _, small_h, small_w, deep = b.tensors[x].shape
    columns = g.attribute(node, "mode", "DCR") == "CRD"
    rows = [e.product([size, size]), e.product([size, ONE]), ONE]  # strides of channel, row, column
    channel, row, column = rows if columns else [ONE, e.product([size, c]), c]
    plane = e.product([small_w, deep])
    dims = [n, small_h, size, small_w, size, c]
    source = [e.product([small_h, plane]), plane, row, deep, column, channel]
    line = e.product([w, c])
    destination = [
        e.product([h, line]), e.product([size, line]), line, e.product([size, c]), c, ONE
    ]  # fmt: skip
    b.copy(x, target, dims, source, destination, node)


def space_to_depth(b: Builder, node: ir.Node) -> None:
    """SpaceToDepthNHWC: [N, H, b, W, b, C] -> [N, H, W, b b C] by strides"""
    x, target = b.read(node.inputs[0]), b.output(node.outputs[0])
    (n, h, w, c), size = b.tensors[x].shape, e.number(g.attribute(node, "blocksize"))
    _, small_h, small_w, deep = b.tensors[target].shape
    line, plane = e.product([w, c]), e.product([small_w, deep])
    dims = [n, small_h, size, small_w, size, c]
    source = [e.product([h, line]), e.product([size, line]), line, e.product([size, c]), c, ONE]
    destination = [e.product([small_h, plane]), plane, e.product([size, c]), deep, c, ONE]
    b.copy(x, target, dims, source, destination, node)


def gather(b: Builder, node: ir.Node) -> None:
    """Gather along an axis: [outer, size, inner] by [count] -> [outer, count, inner]"""
    x, indices, target = b.read(node.inputs[0]), b.read(node.inputs[1]), b.output(node.outputs[0])
    shape = b.tensors[x].shape
    axis = g.attribute(node, "axis", 0) % len(shape)
    outer, inner = e.product(shape[:axis]), e.product(shape[axis + 1 :])
    count = e.product(b.tensors[indices].shape)
    b.launch("gather", node, [x, indices], [target], [outer, shape[axis], inner, count])


def gather_elements(b: Builder, node: ir.Node) -> None:
    """GatherElements: like the indices, but that one place comes from them"""
    x, indices, target = b.read(node.inputs[0]), b.read(node.inputs[1]), b.output(node.outputs[0])
    shape = b.tensors[x].shape
    axis = g.attribute(node, "axis", 0) % len(shape)
    numbers = [*b.tensors[indices].shape, *strides(shape), shape[axis]]
    b.launch("gather_elements", node, [x, indices], [target], numbers, {"axis": axis, "rank": len(shape)})


def gather_nd(b: Builder, node: ir.Node) -> None:
    """GatherND: indices of the first k axes, [count, k], each of which picks `inner` elements"""
    x, indices, target = b.read(node.inputs[0]), b.read(node.inputs[1]), b.output(node.outputs[0])
    shape, places = b.tensors[x].shape, b.tensors[indices].shape
    depth = int((g.dims(node.inputs[1]) or (0,))[-1])
    numbers = [*shape[:depth], e.product(shape[depth:]), e.product(places[:-1])]
    b.launch("gather_nd", node, [x, indices], [target], numbers, {"depth": depth})


def sizes(b: Builder, node: ir.Node) -> None:
    """Shape, Size -> the numbers themselves"""
    value = node.inputs[0]
    assert value is not None
    shape = b.shape(value)
    if node.op_type == "Size":
        numbers: list[e.Code] = [e.product(shape)]
    else:
        start, end = g.attribute(node, "start", 0), g.attribute(node, "end")
        numbers = list(shape[start:end])
    b.launch("sizes", node, [], [b.output(node.outputs[0])], numbers)


def filled(b: Builder, node: ir.Node) -> None:
    """ConstantOfShape -> a fill"""
    tensor = g.attribute(node, "value")
    value = 0.0 if tensor is None else float(tensor.numpy().reshape(-1)[0])
    target = b.output(node.outputs[0])
    b.launch("fill", node, [], [target], [e.product(b.tensors[target].shape)], {"value": value})


def constant(node: ir.Node, index: int, default: Any = None) -> Any:
    """The constant at an input of `node`, as an array."""
    value = (*node.inputs, None, None, None, None)[index]
    return default if value is None else g.constant(value)
