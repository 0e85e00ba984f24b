"""Makers of cases for convolutions, pools, products and what works on images, in both layouts."""

from __future__ import annotations

from typing import Any

import numpy as np

from tapeout.compiler.conformance.drafts import Draft, Operand, data
from tapeout.compiler.conformance.draws import Impossible, Maker, Wish
from tapeout.compiler.conformance.makers.elementwise import broadcast, free, shape

LARGEST = 1 << 18  # elements of one operand of a case


def last(op: str) -> bool:
    """Whether the channels come last."""
    return op.endswith(("NWC", "NHWC", "NDHWC"))


def spatial_rank(w: Wish, op: str) -> int:
    for suffix, count in (("NDHWC", 3), ("NHWC", 2), ("NWC", 1)):
        if op.endswith(suffix):
            return count
    return w.rank("X", low=3, high=5) - 2


def window(w: Wish, count: int, sizes: tuple[int, ...] = (3, 1, 2, 5)) -> list[int]:
    """The sides of a window, within what the row says about height, width and area."""
    names = (
        [("kernel.h", "kernel.max"), ("kernel.w", "kernel.max")][-count:]
        if count < 3
        else [("kernel.max",)] * 3
    )
    found = [w.number(n, sizes, low=1, high=300) for n in names]
    if np.prod(found) > 4096 and not w.flip(
        4
    ):  # large windows in both directions are costly and rarely needed
        found[-1] = 1
    return found


def padding(w: Wish, sides: list[int], reach: list[int], strides: list[int]) -> tuple[list[int], str | None]:
    """Pads and auto_pad: none, TensorFlow's SAME, or anything, as the row takes it."""
    kinds = ["valid", "same", "explicit", "auto"]
    broken = str(w.outside).removeprefix("quantity.")
    if w.limits.get("padding.same_or_valid"):
        kinds = ["explicit", "lower"] if broken == "padding.same_or_valid" else ["valid", "same", "auto"]
    elif w.limits.get("padding.kind"):
        fitting = [k for k in ("valid", "same", "explicit") if w.limits["padding.kind"][0].broken(k) is None]
        kinds = [k for k in ("same", "valid") if k not in fitting] if broken == "padding.kind" else fitting
    elif w.limits.get("pads.total"):
        kinds = ["explicit"] if broken == "pads.total" else ["valid"]
    kind = w.pick(kinds)
    totals = [max((-(-n // s) - 1) * s + r - n, 0) for n, r, s in zip(sides, reach, strides, strict=True)]
    if kind == "auto":
        if any((-(-n // t) - 1) * t + r < n for n, r, t in zip(sides, reach, strides, strict=True)):
            raise Impossible("ONNX Runtime crops here, ONNX's own reference does not")
        return [0] * (2 * len(sides)), w.pick(["SAME_UPPER", "VALID"])
    if kind == "lower":
        return [t - t // 2 for t in totals] + [t // 2 for t in totals], "SAME_LOWER"
    if kind == "same":
        return [t // 2 for t in totals] + [t - t // 2 for t in totals], None
    if kind == "explicit":
        return [w.number("pads.max", range(min(3, r)), high=max(r - 1, 0)) for r in (*reach, *reach)], None
    return [0] * (2 * len(sides)), None


def stepping(w: Wish, count: int) -> tuple[list[int], list[int]]:
    """Strides and dilations."""
    alike = w.flip()
    strides = [w.number(("stride.max", "attr.strides"), (1, 2, 3, 4), low=1, high=8) for _ in range(count)]
    if alike:
        strides = [strides[0]] * count
    wide = max(strides) > 1  # TFLite's kernels take dilations at stride 1 alone; ONNX has no such rule
    dilations = [
        1 if wide and not w.flip(6) else w.number("dilation.max", (1, 1, 2, 3), low=1, high=8)
        for _ in range(count)
    ]
    return strides, dilations


def conv(w: Wish, op: str) -> Draft:
    """Conv, ConvNHWC, ...: with groups, depthwise, with and without a bias."""
    count = spatial_rank(w, op)
    group, inner, outer = _groups(w)
    kernel = window(w, count)
    strides, dilations = stepping(w, count)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    sides = [r + w.pick([2, 3, 0, 1, 5, 6]) for r in reach]
    pads, auto = padding(w, sides, reach, strides)
    batch = w.number("batch", (1, 2), low=1, high=4)
    _bounded(batch, *sides, group * inner)
    rng = w.draws.rng
    x = data(
        rng,
        [batch, *sides, group * inner] if last(op) else [batch, group * inner, *sides],
        w.dtype("X", ("X",)),
    )
    weight = data(rng, [outer, *kernel, inner] if last(op) else [outer, inner, *kernel], w.dtype("W", ("W",)))
    limits = w.limits.get("W.abs_sum")
    if limits and limits[0].max and x.dtype == np.float32 and w.flip(8):
        weight = np.abs(weight) + 1
    bias = data(rng, [outer], w.dtype("B", ("B",)))
    attributes: dict[str, Any] = {
        "kernel_shape": kernel if not last(op) and w.flip() else None,
        "group": group,
    }
    attributes |= {"strides": strides, "dilations": dilations}
    attributes |= {"auto_pad": auto} if auto else {"pads": pads}
    made = Draft(
        op,
        [free(w, Operand(x)), Operand(weight, True), None if w.flip(4) else Operand(bias, True)],
        attributes,
    )
    if w.outside is not None and w.outside.startswith("ports."):
        return made
    return made if not w.flip(12) or "int" in str(x.dtype) else _computed(made, 1)


def _computed(made: Draft, place: int) -> Draft:
    operands = [Operand(o.array) if i == place and o is not None else o for i, o in enumerate(made.operands)]
    return Draft(made.op, operands, made.attributes, made.outputs)


def _groups(w: Wish) -> tuple[int, int, int]:
    """Groups, channels per group, output channels: what the row says about groups and depthwise."""
    if w.limits.get("depthwise.multiplier"):
        multiplier = w.number("depthwise.multiplier", (1, 2, 3, 0), high=8)
        if multiplier:
            group = w.pick([2, 3, 4, 1, 8])
            return group, 1, group * multiplier
        return 1, w.pick([2, 3, 4]), w.pick([2, 3, 4, 1])
    group = w.number("group", (1, 1, 2, 3), low=1, high=8)
    return group, w.pick([2, 1, 3, 4]), group * w.pick([2, 1, 3, 4])


def _bounded(*sizes: int) -> None:
    if np.prod(sizes, dtype=np.int64) > LARGEST:
        raise Impossible("too large a tensor")


def conv_transpose(w: Wish, op: str) -> Draft:
    """ConvTranspose, ConvTransposeNHWC: W [I, O/group, ...] there, [O/group, ..., I] here."""
    count = spatial_rank(w, op)
    group = w.number("group", (1, 2), low=1, high=4)
    inner, outer = group * w.pick([2, 1, 3]), w.pick([2, 1, 3, 4])
    kernel = window(w, count, (3, 2, 1, 4))
    chosen = w.value("attr.strides", ((1,) * count, (2,) * count, (3,) * count, (2, 1, 1)[:count], "none"))
    strides = list(chosen) if isinstance(chosen, tuple) and len(chosen) == count else [1] * count
    dilations = [w.number("dilation.max", (1, 1, 2), low=1, high=4)] * count
    sides = [w.pick([3, 2, 1, 4, 5]) for _ in range(count)]
    outside = str(w.outside).removeprefix("quantity.")
    crops = (
        ["none", "same"]
        if w.limits.get("cropping.same_or_valid")
        else ["none", "same", "explicit", "out", "shape"]
    )
    if outside == "cropping.same_or_valid":
        crops = ["explicit", "out", "shape", "auto"]
    attributes: dict[str, Any] = {"strides": strides, "dilations": dilations, "group": group}
    kind = w.pick(crops)
    if kind == "same":
        totals = [max(k - s, 0) for k, s in zip(kernel, strides, strict=True)]
        attributes["pads"] = [t // 2 for t in totals] + [t - t // 2 for t in totals]
    elif kind == "explicit":
        attributes["pads"] = [w.pick(range(min(k, 3))) for k in kernel] * 2
    elif kind == "out":
        if max(strides) == 1:
            raise Impossible("nothing to add")
        attributes["output_padding"] = [min(1, s - 1) for s in strides]
    elif kind == "shape":
        attributes["output_shape"] = [n * s for n, s in zip(sides, strides, strict=True)]
    elif kind == "auto":
        attributes["auto_pad"] = w.pick(["SAME_UPPER", "SAME_LOWER"])
    rng = w.draws.rng
    x = data(rng, [1, *sides, inner] if last(op) else [1, inner, *sides], w.dtype("X", ("X",)))
    weight = data(rng, [outer, *kernel, inner] if last(op) else [inner, outer, *kernel], w.dtype("W", ("W",)))
    bias = None if w.flip(4) else Operand(data(rng, [outer * group], w.dtype("B", ("B",))), True)
    return Draft(op, [free(w, Operand(x)), Operand(weight, True), bias], attributes)


def pool(w: Wish, op: str) -> Draft:
    """MaxPool, AveragePool and their channels-last forms."""
    count = spatial_rank(w, op)
    kernel = window(w, count, (2, 3, 1, 4))
    strides, dilations = stepping(w, count)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    sides = [r + w.pick([2, 3, 0, 1, 4]) for r in reach]
    pads, auto = padding(w, sides, reach, strides)
    if any(p >= k for p, k in zip(pads, kernel * 2, strict=True)):
        raise Impossible("padding as large as the window")
    channels = w.pick([2, 3, 1, 5])
    _bounded(*sides, channels)
    x = data(w.draws.rng, [1, *sides, channels] if last(op) else [1, channels, *sides], w.dtype("X", ("X",)))
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "dilations": dilations}
    attributes |= {"auto_pad": auto} if auto else {"pads": pads}
    attributes["ceil_mode"] = _of(w, "attr.ceil_mode", (0, 0, 0, 1))
    if "AveragePool" in op:
        attributes["count_include_pad"] = _of(w, "attr.count_include_pad", (0, 1))
        if max(dilations) == 1 and w.flip():
            attributes["dilations"] = None
    return Draft(op, [free(w, Operand(x))], attributes)


def _of(w: Wish, name: str, options: tuple[Any, ...]) -> Any:
    value = w.value(name, options)
    return None if value == "absent" else value


def lrn(w: Wish, op: str) -> Draft:
    """LRN and its channels-last form."""
    rank = 4 if last(op) else w.rank("X", low=3, high=5)
    size = w.number("attr.size", (3, 1, 5, 2, 4), low=1, high=22)
    dims = shape(w, rank, "X")
    dims[-1 if last(op) else 1] = w.pick([4, 3, 8, 24])
    attributes = {
        "size": size,
        "alpha": w.pick([1e-4, 0.5]),
        "beta": w.pick([0.75, 0.5]),
        "bias": w.pick([1.0, 2.0]),
    }
    return Draft(op, [free(w, Operand(data(w.draws.rng, dims, w.dtype("X", ("X",)))))], attributes)


def depth_to_space(w: Wish, op: str) -> Draft:
    """DepthToSpace, SpaceToDepth and their channels-last forms."""
    block = w.number("attr.blocksize", (2, 3), low=1, high=4)
    sides, channels = [w.pick([1, 2, 3]), w.pick([1, 2, 3])], w.pick([1, 2, 3])
    attributes: dict[str, Any] = {"blocksize": block}
    if "SpaceToDepth" in op:
        sides = [n * block for n in sides]
    else:
        channels *= block * block
        attributes["mode"] = _of(w, "attr.mode", ("DCR", "CRD"))
    dims = [w.pick([1, 2]), *sides, channels] if last(op) else [w.pick([1, 2]), channels, *sides]
    dtype = w.dtype("X", ("X", "T", "input"))
    return Draft(
        op,
        [free(w, Operand(data(w.draws.rng, dims, dtype, "plain" if dtype[0] == "f" else "wide")))],
        attributes,
    )


def resize(w: Wish, op: str) -> Draft:
    """Resize by scales or to sizes, along the axes that the row's layout resizes."""
    planar = bool(w.limits.get("resize.planar") or w.limits.get("resize.factors") or w.limits.get("input.hw"))
    if w.outside == "quantity.resize.planar":
        planar = False
    rank = 4 if planar else w.rank("X", low=2, high=5)
    axes = [1, 2] if planar else [i for i in range(rank) if w.flip()] or [rank - 1]
    dims = [w.pick([1, 2])] + [w.pick([2, 3, 4, 1, 5]) for _ in range(rank - 1)]
    mode = w.value("attr.mode", ("nearest", "linear", "cubic"))
    mode = "nearest" if mode == "absent" else mode
    ways = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    attributes: dict[str, Any] = {
        "mode": mode, "coordinate_transformation_mode": w.value("attr.coordinate_transformation_mode", ways),
    }  # fmt: skip
    if mode == "nearest":
        attributes["nearest_mode"] = w.pick(["round_prefer_floor", "floor", "round_prefer_ceil", "ceil"])
    if mode == "cubic":
        attributes["cubic_coeff_a"] = w.pick([-0.75, -0.5])
    factors = [
        w.number("resize.factors", (2, 1, 3, 4), low=1, high=8) if i in axes else 1 for i in range(rank)
    ]
    if w.flip(3) and not w.limits.get("resize.factors"):
        sizes = [w.pick([d, 2 * d, d + 1, 2 * d - 1]) if i in axes else d for i, d in enumerate(dims)]
        operands = [None, None, Operand(np.array(sizes, np.int64), True)]
    else:
        operands = [None, Operand(np.array(factors, np.float32), True), None]
    x = data(w.draws.rng, dims, w.dtype("T1", ("X",)))
    return Draft(op, [free(w, Operand(x)), *operands], attributes)


def matmul(w: Wish, op: str) -> Draft:
    """MatMul of stacks of matrices."""
    left, right = w.rank("A", low=1, high=5), w.rank("B", low=1, high=5)
    m, k, n = (
        w.number(names, (2, 3, 4, 1, 5), low=1)
        for names in (("A.dim.-2",), ("A.dim.-1", "B.dim.-2"), ("B.dim.-1",))
    )
    stack = [w.pick([1, 2, 3]) for _ in range(max(left, right) - 2)]
    heads = [[1 if w.flip(4) else d for d in stack[len(stack) - (r - 2) :]] for r in (left, right)]
    _bounded(*heads[0], m, k)
    _bounded(*heads[1], k, n)
    rng, dtype = w.draws.rng, w.dtype("T")
    a = data(rng, [*heads[0], m, k] if left > 1 else [k], dtype)
    b = data(rng, [*heads[1], k, n] if right > 1 else [k], dtype)
    made = Draft(op, [free(w, Operand(a)), Operand(b)])
    constant = w.row is not None and any(r.role in ("weight", "const") for r in w.row.ports.values())
    return made.constant(1) if constant or w.flip(3) else made


def fully_connected(w: Wish, op: str) -> Draft:
    """FullyConnected(X [..., I], W [O, I], B [O])"""
    rank = w.rank("X", low=1, high=5)
    inner, outer = (
        w.number("W.dim.1", (4, 3, 8, 1, 5, 16, 32), low=1, high=256),
        w.number("W.dim.0", (3, 2, 5, 1, 8), low=1, high=256),
    )
    if w.limits.get("weight.block"):
        inner = w.pick([256, 512])
    rng = w.draws.rng
    x = data(rng, [*(w.pick([2, 1, 3]) for _ in range(rank - 1)), inner], w.dtype("X", ("X",)))
    weight, bias = data(rng, [outer, inner], w.dtype("W", ("W",))), data(rng, [outer], w.dtype("B", ("B",)))
    return Draft(op, [free(w, Operand(x)), Operand(weight, True), Operand(bias, True)])


def gemm(w: Wish, op: str) -> Draft:
    """Gemm with its attributes."""
    m, k, n = (w.pick([2, 3, 4, 1]) for _ in range(3))
    flags = {"transA": w.value("attr.transA", (0, 1)), "transB": w.value("attr.transB", (0, 1))}
    rng, dtype = w.draws.rng, w.dtype("T")
    a = data(rng, [k, m] if flags["transA"] else [m, k], dtype)
    b = data(rng, [n, k] if flags["transB"] else [k, n], dtype)
    c = data(rng, broadcast(w, [m, n]), dtype)
    made = Draft(op, [Operand(a), Operand(b), None if w.flip(3) else Operand(c)],
                 {**flags, "alpha": w.pick([1.0, 0.5]), "beta": w.pick([1.0, 2.0])})  # fmt: skip
    return made if w.flip(3) else made.constant(1, 2)


def normalization(w: Wish, op: str) -> Draft:
    """BatchNormalization, InstanceNormalization, LayerNormalization, GroupNormalization, RMSNormalization."""
    rank = w.rank("X", "input", low=3, high=5)
    dims = shape(w, rank)
    dims[1] = w.pick([2, 4, 6])
    rng, attributes = w.draws.rng, {"epsilon": w.pick([1e-5, 1e-3])}
    dtype = w.dtype("T")
    x = Operand(data(rng, dims, dtype))
    channels = dims[1]
    if op == "LayerNormalization":
        axis = w.pick([-1, -2])
        parts = [data(rng, dims[axis:], dtype) for _ in range(2)]
        return Draft(op, [x, *(Operand(p, True) for p in parts)], {**attributes, "axis": axis})
    if op == "RMSNormalization":
        axis = w.pick([-1, -2])
        scale = data(rng, dims[axis:], _own(w, "V", dtype))
        return Draft(op, [x, Operand(scale, True)], {**attributes, "axis": axis})
    kind = _own(w, "T1", dtype) if op == "BatchNormalization" else dtype
    parts = [data(rng, [channels], kind) for _ in range(2)]
    if op == "BatchNormalization":
        kind = _own(w, "T2", dtype)
        parts += [data(rng, [channels], kind), data(rng, [channels], kind, "positive")]
    if op == "GroupNormalization":
        attributes["num_groups"] = 2
    return Draft(op, [x, *(Operand(p, True) for p in parts)], attributes)


def _own(w: Wish, variable: str, dtype: str) -> str:
    """A type for parameters with a type variable of their own: what the row says of it, else the data's or float32."""
    if w.row is not None and variable in w.row.types:
        return w.dtype(variable)
    return w.pick([dtype, "float32"])


def global_pool(w: Wish, op: str) -> Draft:
    """GlobalAveragePool, GlobalMaxPool."""
    return Draft(
        op, [free(w, Operand(data(w.draws.rng, shape(w, w.rank("X", low=3, high=5)), w.dtype("T"))))]
    )


MAKERS: dict[str, Maker] = {
    **dict.fromkeys(("Conv", "tapeout::ConvNHWC", "tapeout::ConvNDHWC", "tapeout::ConvNWC"), conv),
    **dict.fromkeys(("ConvTranspose", "tapeout::ConvTransposeNHWC", "tapeout::ConvTransposeNDHWC"), conv_transpose),
    **dict.fromkeys(
        ("MaxPool", "AveragePool", "tapeout::MaxPoolNHWC", "tapeout::AveragePoolNHWC", "tapeout::MaxPoolNDHWC",
         "tapeout::AveragePoolNDHWC"), pool
    ),
    **dict.fromkeys(("LRN", "tapeout::LRNNHWC"), lrn),
    **dict.fromkeys(
        ("DepthToSpace", "SpaceToDepth", "tapeout::DepthToSpaceNHWC", "tapeout::SpaceToDepthNHWC"), depth_to_space
    ),
    **dict.fromkeys(
        ("BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization",
         "RMSNormalization"), normalization
    ),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), global_pool),
    "Resize": resize,
    "MatMul": matmul,
    "tapeout::FullyConnected": fully_connected,
    "Gemm": gemm,
}  # fmt: skip
