"""Local response normalization, resizing, and the moves between depth and space, on channels-last tensors."""

from __future__ import annotations

import onnx_ir as ir
from ai_edge_litert import schema_py_generated as s

from tapeout.sdk import graph as g
from tapeout.targets.tflite.builder import Builder, Lowering
from tapeout.targets.tflite.lower.shape import concatenate, cut, shape_of


def local_response_normalization(
    b: Builder, node: ir.Node, *, size: int, alpha: float = 0.0001, beta: float = 0.75, bias: float = 1.0
) -> None:
    """x / (bias + alpha/size * sum of squares over `size` channels) ** beta; TFLite takes the radius."""
    options = s.LocalResponseNormalizationOptionsT()
    options.radius, options.bias, options.alpha, options.beta = size // 2, bias, alpha / size, beta
    b.operator("LOCAL_RESPONSE_NORMALIZATION", node.inputs, node.outputs, options)


def resize_bilinear(
    b: Builder,
    node: ir.Node,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "linear",
    **_: object,
) -> None:
    """Resize of H and W of [N,H,W,C] by two-tap interpolation, without antialiasing."""
    options = s.ResizeBilinearOptionsT()
    options.alignCorners = coordinate_transformation_mode == "align_corners"
    options.halfPixelCenters = coordinate_transformation_mode in ("half_pixel", "pytorch_half_pixel")
    b.operator("RESIZE_BILINEAR", [node.inputs[0], _size(b, node)], node.outputs, options)


def resize_nearest_neighbor(
    b: Builder,
    node: ir.Node,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    mode: str = "nearest",
    **_: object,
) -> None:
    """Resize of H and W of [N,H,W,C]; the rows list which coordinates and roundings are TFLite's."""
    options = s.ResizeNearestNeighborOptionsT()
    options.alignCorners = coordinate_transformation_mode == "align_corners"
    options.halfPixelCenters = coordinate_transformation_mode in ("half_pixel", "pytorch_half_pixel")
    b.operator("RESIZE_NEAREST_NEIGHBOR", [node.inputs[0], _size(b, node)], node.outputs, options)


def _size(b: Builder, node: ir.Node) -> int:
    """The height and width of the result: known, or the input's times whole scales, or computed sizes."""
    shape = g.dims(node.outputs[0])
    assert shape is not None
    if all(isinstance(d, int) for d in shape[1:3]):
        return b.ints((int(d) for d in shape[1:3]), "size")
    x, _, scales, sizes = (*node.inputs, None, None, None)[:4]
    assert x is not None
    axes = [a % 4 for a in g.attribute(node, "axes") or range(4)]
    known = g.constant(scales)
    if known is not None and known.size:
        factors = dict(zip(axes, known.tolist(), strict=True))
        sides = cut(b, shape_of(b, x, 4), 1, 2)
        made = b.tensor("size", [2], ir.DataType.INT32)
        times = b.ints([int(factors.get(1, 1)), int(factors.get(2, 1))])
        b.operator("MUL", [sides, times], [made], s.MulOptionsT())
        return made
    assert sizes is not None
    asked = b.as_int32(sizes)
    if 1 in axes and axes.index(1) + 1 < len(axes) and axes[axes.index(1) + 1] == 2:
        return cut(b, asked, axes.index(1), 2)
    sides = shape_of(b, x, 4)
    return concatenate(
        b, [cut(b, asked, axes.index(a), 1) if a in axes else cut(b, sides, a, 1) for a in (1, 2)], 2
    )


def depth_to_space(b: Builder, node: ir.Node, *, blocksize: int, mode: str = "DCR") -> None:
    options = s.DepthToSpaceOptionsT()
    options.blockSize = blocksize
    b.operator("DEPTH_TO_SPACE", node.inputs, node.outputs, options)


def space_to_depth(b: Builder, node: ir.Node, *, blocksize: int) -> None:
    options = s.SpaceToDepthOptionsT()
    options.blockSize = blocksize
    b.operator("SPACE_TO_DEPTH", node.inputs, node.outputs, options)


LOWERINGS: dict[str, Lowering] = {
    "LOCAL_RESPONSE_NORMALIZATION": local_response_normalization,
    "RESIZE_BILINEAR": resize_bilinear,
    "RESIZE_NEAREST_NEIGHBOR": resize_nearest_neighbor,
    "DEPTH_TO_SPACE": depth_to_space,
    "SPACE_TO_DEPTH": space_to_depth,
}
