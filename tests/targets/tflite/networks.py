"""Networks whose batch, sequence and image sizes are free, spelled as exporters spell them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Sizes = Mapping[str, int]
FAR = 2**63 - 1  # how an exporter says "to the end"


class Net:
    """A graph being written down: each call adds a node and gives the name of its first output."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.count = 0

    def name(self, hint: str) -> str:
        self.count += 1
        return f"{hint}_{self.count}"

    def many(self, op: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        outputs = [self.name(op.lower()) for _ in range(count)]
        self.nodes.append(helper.make_node(op, list(inputs), outputs, name=outputs[0], **attributes))
        return outputs

    def __call__(self, op: str, *inputs: str, **attributes: Any) -> str:
        return self.many(op, 1, *inputs, **attributes)[0]

    def const(self, value: Any, dtype: Any = np.int64) -> str:
        name = self.name("c")
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def weight(self, *shape: int, scale: float | None = None) -> str:
        fan = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        std = scale if scale is not None else (1.4 / np.sqrt(fan) if len(shape) > 1 else 0.2)
        return self.const(self.rng.standard_normal(shape) * std, np.float32)

    def model(self, inputs: Mapping[str, tuple[int, Sequence[int | str]]], *outputs: str) -> onnx.ModelProto:
        given = [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()]
        results = [helper.make_empty_tensor_value_info(n) for n in outputs]
        graph = helper.make_graph(self.nodes, "net", given, results, self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        typed = onnx.shape_inference.infer_shapes(model, data_prop=True)
        onnx.checker.check_model(typed)
        return typed

    # --- what exporters write often ---

    def conv(self, x: str, i: int, o: int, k: int = 3, stride: int = 1, group: int = 1, **more: Any) -> str:
        pads = more.pop("pads", [k // 2] * 4)
        return self(
            "Conv", x, self.weight(o, i // group, k, k), self.weight(o), kernel_shape=[k, k],
            strides=[stride] * 2, pads=pads, group=group, **more,
        )  # fmt: skip

    def block(self, x: str, i: int, o: int, k: int = 3, stride: int = 1, group: int = 1) -> str:
        y = self.conv(x, i, o, k, stride, group)
        mean, var = self.weight(o), self.const(self.rng.uniform(0.5, 2, o), np.float32)
        return self("Relu", self("BatchNormalization", y, self.weight(o, scale=1), self.weight(o), mean, var))

    def size(self, x: str, axis: int) -> str:
        """x.size(axis), a scalar."""
        return self("Gather", self("Shape", x), self.const(axis), axis=0)

    def vector(self, *parts: str | int) -> str:
        """A shape from sizes and numbers."""
        zero = self.const([0])
        each = [self.const([p]) if isinstance(p, int) else self("Unsqueeze", p, zero) for p in parts]
        return self("Concat", *each, axis=0)

    def sized(self, x: str, like: str, **attributes: Any) -> str:
        """F.interpolate(x, size=like.shape[-2:]) as torch exports it."""
        kept = self("Slice", self("Shape", x), self.const([0]), self.const([2]), self.const([0]))
        wanted = self("Slice", self("Shape", like), self.const([2]), self.const([FAR]), self.const([0]))
        sizes = self("Concat", kept, wanted, axis=0)
        return self("Resize", x, "", "", sizes, **attributes)

    def scaled(self, x: str, *scales: float, **attributes: Any) -> str:
        return self("Resize", x, "", self.const(scales, np.float32), **attributes)

    def norm(self, x: str, channels: int) -> str:
        """nn.LayerNorm spelled out over the last axis."""
        centred = self("Sub", x, self("ReduceMean", x, self.const([-1]), keepdims=1))
        square = self("Pow", centred, self.const(2.0, np.float32))
        mean = self("ReduceMean", square, self.const([-1]), keepdims=1)
        std = self("Sqrt", self("Add", mean, self.const(1e-5, np.float32)))
        y = self("Mul", self("Div", centred, std), self.weight(channels, scale=1))
        return self("Add", y, self.weight(channels))

    def linear(self, x: str, i: int, o: int) -> str:
        return self("Add", self("MatMul", x, self.weight(i, o, scale=i**-0.5)), self.weight(o))


NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
BILINEAR = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
TORCH_BILINEAR = {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}
CORNERS = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
F, L = TensorProto.FLOAT, TensorProto.INT64
IMAGE = {"x": (F, ["N", 3, "H", "W"])}


def unet(upsampling: str = "nearest") -> onnx.ModelProto:
    """Segmentation: strided convolutions, skip connections, upsampling by 2, the sides multiples of 8."""
    n = Net(1)
    how = {"nearest": NEAREST, "bilinear": BILINEAR, "torch": TORCH_BILINEAR}[upsampling]
    skips, y, c = [], "x", 3
    for o in (8, 12, 16):
        y = n.block(y, c, o)
        skips.append((y, o))
        y, c = n.block(y, o, o, stride=2), o
    for skip, o in reversed(skips):
        y = n("Concat", n.scaled(y, 1, 1, 2, 2, **how), skip, axis=1)
        y, c = n.block(y, c + o, o), o
    return n.model(IMAGE, n("Softmax", n.conv(y, c, 4, 1), axis=1))


def pyramid() -> onnx.ModelProto:
    """Detector: a residual network with a padded max pool, features resized to those before, any sides."""
    n = Net(2)
    y = n.block("x", 3, 8, 7, 2)
    y = n("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    levels, c = [], 8
    for o, stride in ((8, 1), (12, 2), (16, 2)):
        short = y if (c, stride) == (o, 1) else n.conv(y, c, o, 1, stride)
        y = n("Relu", n("Add", n.conv(n.block(y, c, o, 3, stride), o, o), short))
        levels.append((y, o))
        c = o
    top = None
    outputs = []
    for level, o in reversed(levels):
        lateral = n.conv(level, o, 8, 1)
        top = lateral if top is None else n("Add", lateral, n.sized(top, lateral, **NEAREST))
        head = n("Transpose", n.conv(top, 8, 6, 3), perm=[0, 2, 3, 1])
        flat = n("Reshape", head, n.vector(n.size(head, 0), -1, 3))
        outputs.append(n("Sigmoid", flat))
    return n.model(IMAGE, n("Concat", *outputs, axis=1))


def heads(mode: str = "bilinear") -> onnx.ModelProto:
    """Segmentation whose answer has the sides of the image."""
    n = Net(3)
    y = n.block(n.block("x", 3, 8, stride=2), 8, 8, stride=2)
    y = n.conv(n.block(y, 8, 8, group=8), 8, 3, 1)
    how = {"bilinear": BILINEAR, "torch": TORCH_BILINEAR, "corners": CORNERS, "nearest": NEAREST}[mode]
    logits = n.sized(y, "x", **how)
    return n.model(IMAGE, logits, n("ArgMax", logits, axis=1, keepdims=0))


def autoencoder() -> onnx.ModelProto:
    """Down by strided convolutions, up by transposed ones of stride 2."""
    n = Net(4)
    y = n.block(n.block("x", 3, 8, 4, 2), 8, 12, 3, 2)
    y = n("Relu", n("ConvTranspose", y, n.weight(12, 8, 2, 2), n.weight(8), strides=[2, 2]))
    y = n("ConvTranspose", y, n.weight(8, 6, 4, 4), n.weight(6), strides=[2, 2], pads=[1] * 4)
    y = n(
        "ConvTranspose", n("LeakyRelu", y), n.weight(6, 3, 3, 3), strides=[2, 2], pads=[1] * 4,
        output_padding=[1, 1],
    )  # fmt: skip
    return n.model(IMAGE, n("Tanh", y))


def classifier(pool: str = "GlobalAveragePool") -> onnx.ModelProto:
    """Any sides and batch, a pool over all of it, squeeze and excitation, Gemm."""
    n = Net(5)
    y = n.block(n.block("x", 3, 8, stride=2), 8, 8, 5, 2, 8)
    gate = n("HardSigmoid", n.conv(n("Relu", n.conv(n("GlobalAveragePool", y), 8, 4, 1)), 4, 8, 1))
    y = n("HardSwish", n("Mul", y, gate))
    y = n("AveragePool", y, kernel_shape=[2, 2], strides=[2, 2])
    mean = pool == "ReduceMean"
    y = n(pool, y, n.const([2, 3]), keepdims=0) if mean else n("Flatten", n(pool, y))
    return n.model(IMAGE, n("Gemm", y, n.weight(10, 8), n.weight(10), transB=1))


def encoder(causal: bool = False) -> onnx.ModelProto:
    """Text encoder: table lookups, a mask from Shape, Range, Where and Expand, two layers of attention."""
    n = Net(6)
    dim, heads_, words, most = 16, 4, 50, 40
    batch, length = n.size("ids", 0), n.size("ids", 1)
    positions = n("Range", n.const(0), length, n.const(1))
    places = n("Expand", n("Unsqueeze", positions, n.const([0])), n.vector(batch, length))
    y = n("Add", n("Gather", n.weight(words, dim, scale=1), "ids"), n("Gather", n.weight(most, dim), places))
    y = n.norm(y, dim)
    if causal:
        row = n("Unsqueeze", positions, n.const([1]))
        seen = n("LessOrEqual", n("Unsqueeze", positions, n.const([0])), row)
        seen = n("Expand", n("Unsqueeze", seen, n.const([0, 1])), n.vector(batch, 1, length, length))
    else:
        wide = n("Unsqueeze", "mask", n.const([1, 2]))
        seen = n("Expand", wide, n.vector(batch, 1, length, length))
        seen = n("Cast", seen, to=TensorProto.BOOL)
    bias = n("Where", seen, n.const(0.0, np.float32), n.const(-1e9, np.float32))
    for _ in range(2):
        split = []
        for part in range(3):
            z = n("Reshape", n.linear(y, dim, dim), n.const([0, 0, heads_, dim // heads_]))
            split.append(n("Transpose", z, perm=[0, 2, 3, 1] if part == 1 else [0, 2, 1, 3]))
        q, k, v = split
        scores = n("Div", n("MatMul", q, k), n.const(np.sqrt(dim / heads_), np.float32))
        weights = n("Softmax", n("Add", scores, bias), axis=-1)
        z = n("Transpose", n("MatMul", weights, v), perm=[0, 2, 1, 3])
        z = n("Reshape", z, n.const([0, 0, dim]))
        y = n.norm(n("Add", y, n.linear(z, dim, dim)), dim)
        z = n.linear(y, dim, 2 * dim)
        erf = n("Add", n("Erf", n("Div", z, n.const(np.sqrt(2), np.float32))), n.const(1.0, np.float32))
        z = n("Mul", n("Mul", z, erf), n.const(0.5, np.float32))
        y = n.norm(n("Add", y, n.linear(z, 2 * dim, dim)), dim)
    first = n("Gather", y, n.const(0), axis=1)
    pooled = n("Tanh", n("Gemm", first, n.weight(dim, dim), n.weight(dim), transB=1))
    inputs = {"ids": (L, ["N", "S"])} | ({} if causal else {"mask": (L, ["N", "S"])})
    return n.model(inputs, y, pooled)


def audio() -> onnx.ModelProto:
    """1-D convolutions of a free length, dilated and causal ones too, frames back to samples."""
    n = Net(7)
    y, c = "x", 1
    for o, k, stride in ((8, 8, 4), (12, 5, 2)):
        y = n(
            "Conv",
            y,
            n.weight(o, c, k),
            n.weight(o),
            strides=[stride],
            pads=[k // 2, k // 2],
            kernel_shape=[k],
        )
        y, c = n("PRelu", y, n.weight(o, 1)), o
    for dilation in (1, 2, 4):
        padded = n("Pad", y, n.const([0, 0, 2 * dilation, 0, 0, 0]))
        z = n("Conv", padded, n.weight(c, c, 3), n.weight(c), dilations=[dilation])
        gate = n("Conv", padded, n.weight(c, c, 3), n.weight(c), dilations=[dilation])
        y = n("Add", y, n("Mul", n("Tanh", z), n("Sigmoid", gate)))
    for i, o, stride in ((12, 8, 2), (8, 1, 4)):
        k = 2 * stride
        y = n(
            "ConvTranspose", y, n.weight(i, o, k), n.weight(o), strides=[stride],
            pads=[stride // 2, stride - stride // 2],
        )  # fmt: skip
    return n.model({"x": (F, ["N", 1, "T"])}, y)


def recurrent(kind: str = "LSTM", direction: str = "bidirectional") -> onnx.ModelProto:
    """Recurrent layers of a free batch and length; the state starts at zero as torch exports it."""
    n = Net(8)
    ways, size, gates = 2 if direction == "bidirectional" else 1, 6, 4 if kind == "LSTM" else 3
    y, c = n("Transpose", "x", perm=[1, 0, 2]), 5
    zero = n("Expand", n.const(0.0, np.float32), n.vector(ways, n.size("x", 0), size))
    last = ""
    for _ in range(2):
        inputs = [
            y, n.weight(ways, gates * size, c, scale=0.4), n.weight(ways, gates * size, size, scale=0.4),
            n.weight(ways, 2 * gates * size), "", zero, *([zero] if kind == "LSTM" else []),
        ]  # fmt: skip
        more = {"linear_before_reset": 1} if kind == "GRU" else {}
        outputs = n.many(
            kind, 3 if kind == "LSTM" else 2, *inputs, hidden_size=size, direction=direction, **more
        )
        y, last = outputs[0], outputs[1]
        y = n("Reshape", n("Transpose", y, perm=[0, 2, 1, 3]), n.const([0, 0, -1]))
        c = ways * size
    frames = n.linear(n("Transpose", y, perm=[1, 0, 2]), c, 4)
    return n.model({"x": (F, ["N", "T", 5])}, n("LogSoftmax", frames, axis=-1), last)


def multiples(mode: str = "constant") -> onnx.ModelProto:
    """An image padded to multiples of 8 by amounts that are computed, and cut back afterwards."""
    n = Net(9)
    height, width = n.size("x", 2), n.size("x", 3)
    eight = n.const(8)
    down, right = (n("Mod", n("Sub", eight, n("Mod", s, eight)), eight) for s in (height, width))
    padded = n("Pad", "x", n.vector(0, 0, 0, 0, 0, 0, down, right), mode=mode)
    y = n.block(padded, 3, 8, stride=2)
    y = n.block(n.scaled(y, 1, 1, 2, 2, **NEAREST), 8, 6)
    y = n("Slice", y, n.const([0, 0]), n.vector(height, width), n.const([2, 3]))
    return n.model(IMAGE, n("Add", n.conv(y, 6, 3, 1), "x"))


def normalized() -> onnx.ModelProto:
    """Group and instance normalization over free sides, as torch spells them, and a gated unit."""
    n = Net(10)
    y, c = n.conv("x", 3, 8), 8
    flat = n("Reshape", y, n.const([0, 4, -1]))
    flat = n("InstanceNormalization", flat, n.const(np.ones(4), np.float32), n.const(np.zeros(4), np.float32))
    y = n("Reshape", flat, n("Shape", y))
    y = n("Add", n("Mul", y, n.weight(c, 1, 1, scale=1)), n.weight(c, 1, 1))
    y = n("Mul", y, n("Sigmoid", y))
    y = n.conv(y, c, c, stride=2)
    y = n("InstanceNormalization", y, n.weight(c, scale=1), n.weight(c))
    left, right = n.many("Split", 2, y, axis=1, num_outputs=2)
    return n.model(IMAGE, n("Mul", left, n("Sigmoid", right)))


def patches() -> onnx.ModelProto:
    """Vision transformer: patches of a free number, a token in front of them, tokens back to an image."""
    n = Net(11)
    y = n("Conv", "x", n.weight(16, 3, 4, 4), n.weight(16), kernel_shape=[4, 4], strides=[4, 4])
    batch, high, wide = (n.size(y, a) for a in (0, 2, 3))
    tokens = n("Transpose", n("Reshape", y, n.const([0, 16, -1])), perm=[0, 2, 1])
    front = n("Expand", n.weight(1, 1, 16), n.vector(batch, 1, 16))
    tokens = n("Concat", front, tokens, axis=1)
    qkv = n("Reshape", n.linear(tokens, 16, 48), n.vector(batch, n.size(tokens, 1), 3, 4, 4))
    turned = n("Transpose", qkv, perm=[2, 0, 3, 1, 4])
    q, k, v = (n("Squeeze", part, n.const([0])) for part in n.many("Split", 3, turned, axis=0, num_outputs=3))
    scores = n("Mul", n("MatMul", q, n("Transpose", k, perm=[0, 1, 3, 2])), n.const(0.5, np.float32))
    z = n("Transpose", n("MatMul", n("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    tokens = n.norm(n("Add", tokens, n("Reshape", z, n.vector(batch, -1, 16))), 16)
    rest = n("Slice", tokens, n.const([1]), n.const([FAR]), n.const([1]))
    image = n("Reshape", n("Transpose", rest, perm=[0, 2, 1]), n.vector(batch, 16, high, wide))
    up = n("DepthToSpace", image, blocksize=2, mode="CRD")
    return n.model(IMAGE, up, n("Gather", tokens, n.const(0), axis=1))


def windows() -> onnx.ModelProto:
    """Windowed attention: an image cut into windows of 4 by 4 by reshapes, rolled by half of one."""
    n = Net(12)
    y = n("Transpose", n.conv("x", 3, 8), perm=[0, 2, 3, 1])
    batch, high, wide = (n.size("x", a) for a in (0, 2, 3))
    for axis in (1, 2):
        a, b = (n("Slice", y, n.const([s]), n.const([e]), n.const([axis])) for s, e in ((2, FAR), (0, 2)))
        y = n("Concat", a, b, axis=axis)
    four = n.const(4)
    rows, columns = n("Div", high, four), n("Div", wide, four)
    y = n("Reshape", y, n.vector(batch, rows, 4, columns, 4, 8))
    y = n("Reshape", n("Transpose", y, perm=[0, 1, 3, 2, 4, 5]), n.vector(-1, 16, 8))
    weights = n("Softmax", n("MatMul", y, n("Transpose", y, perm=[0, 2, 1])), axis=-1)
    y = n.linear(n("MatMul", weights, y), 8, 8)
    y = n("Reshape", y, n.vector(batch, rows, columns, 4, 4, 8))
    y = n("Reshape", n("Transpose", y, perm=[0, 1, 3, 2, 4, 5]), n.vector(batch, high, wide, 8))
    return n.model(IMAGE, n("Transpose", y, perm=[0, 3, 1, 2]))


def pooling() -> onnx.ModelProto:
    """Pyramid pooling: pools of several reaches at stride 1, side by side; a pool with ceil and padding."""
    n = Net(13)
    y = n.block("x", 3, 6)
    pools = [y]
    for k in (3, 5):
        pools.append(n("MaxPool", y, kernel_shape=[k, k], strides=[1, 1], pads=[k // 2] * 4))
    y = n("Concat", *pools, axis=1)
    average = n("AveragePool", y, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4, count_include_pad=1)
    whole = n("ReduceMean", average, n.const([2, 3]), keepdims=1)
    spread = n("Expand", whole, n("Shape", average))
    return n.model(IMAGE, n("Concat", average, spread, axis=1), n("ReduceMax", y, n.const([1]), keepdims=0))


def grid() -> onnx.ModelProto:
    """Detector head that decodes boxes on a grid made from the sizes, then takes the best."""
    n = Net(14)
    y = n.conv(n.block("x", 3, 8, stride=2), 8, 5, 3, 2)
    high, wide = n.size(y, 2), n.size(y, 3)
    column = n("Cast", n("Range", n.const(0), wide, n.const(1)), to=F)
    row = n("Cast", n("Range", n.const(0), high, n.const(1)), to=F)
    shape = n.vector(high, wide)
    columns = n("Expand", n("Unsqueeze", column, n.const([0])), shape)
    rows = n("Expand", n("Unsqueeze", row, n.const([1])), shape)
    places = n(
        "Unsqueeze",
        n("Concat", *(n("Unsqueeze", v, n.const([2])) for v in (columns, rows)), axis=2),
        n.const([0]),
    )
    y = n("Transpose", y, perm=[0, 2, 3, 1])
    centre = n("Slice", y, n.const([0]), n.const([2]), n.const([3]))
    extent = n("Slice", y, n.const([2]), n.const([4]), n.const([-1]))
    score = n("Slice", y, n.const([4]), n.const([FAR]), n.const([-1]))
    centre = n("Mul", n("Add", n("Sigmoid", centre), places), n.const(4.0, np.float32))
    boxes = n("Concat", centre, n("Exp", extent), n("Sigmoid", score), axis=-1)
    flat = n("Reshape", boxes, n.vector(n.size(y, 0), -1, 5))
    scores = n("Squeeze", n("Slice", flat, n.const([4]), n.const([5]), n.const([2])), n.const([2]))
    best, index = n.many("TopK", 2, scores, n.const([3]), axis=1)
    taken = n("Expand", n("Unsqueeze", index, n.const([2])), n.vector(n.size(y, 0), 3, 5))
    return n.model(IMAGE, n("GatherElements", flat, taken, axis=1), best)


def resizes() -> onnx.ModelProto:
    """Every kind of resize that exporters write: fractions, thirds, cubic, down, to the size of another."""
    n = Net(15)
    small, y = n.conv("x", 3, 4, stride=2), n.conv("x", 3, 4)
    cubic = {"mode": "cubic", "coordinate_transformation_mode": "pytorch_half_pixel", "cubic_coeff_a": -0.75}
    thirds = n.scaled(small, 1, 1, 3, 3, **TORCH_BILINEAR)
    outputs = [
        n.scaled(small, 1, 1, 1.5, 1.5, **NEAREST),
        n.scaled(y, 1, 1, 0.5, 0.5, **NEAREST),
        n.scaled(y, 1, 1, 0.5, 0.5, **TORCH_BILINEAR),
        n.scaled(small, 1, 1, 3, 2, **NEAREST),
        n.scaled(small, 1, 1, 41, 1, **NEAREST),
        n.scaled(small, 1, 1, 2, 4),
        thirds,
        n.scaled(small, 1, 1, 2, 2, **CORNERS),
        n.scaled(small, 1, 1, 2, 2, **cubic),
        n.sized(y, small, **cubic),
        n.sized(small, y),
        n.sized(small, thirds, mode="nearest", coordinate_transformation_mode="align_corners"),
    ]
    return n.model(IMAGE, *outputs)


def sound_up() -> onnx.ModelProto:
    """1-D features brought back to the length of the input, linear and nearest."""
    n = Net(16)
    y = n("Conv", "x", n.weight(6, 2, 5), n.weight(6), strides=[3], pads=[2, 2])
    linear = n.scaled(n("Relu", y), 1, 1, 3, **BILINEAR)
    linear = n("Conv", linear, n.weight(4, 6, 3), n.weight(4), pads=[1, 1])
    nearest = n.scaled(y, 1, 1, 2, **NEAREST)
    whole = n.sized(y, "x", **TORCH_BILINEAR)
    joined = n("Concat", whole, "x", axis=1)
    return n.model({"x": (F, ["N", 2, "T"])}, linear, nearest, joined)


def convnext() -> onnx.ModelProto:
    """Depthwise convolutions and normalization over the channels of an image, transposed there and back."""
    n = Net(17)
    y = n("Conv", "x", n.weight(8, 3, 4, 4), n.weight(8), strides=[4, 4], kernel_shape=[4, 4])
    for _ in range(2):
        z = n("Transpose", n.conv(y, 8, 8, 7, group=8), perm=[0, 2, 3, 1])
        z = n("LayerNormalization", z, n.weight(8, scale=1), n.weight(8), axis=-1, epsilon=1e-6)
        z = n.linear(n("Tanh", n.linear(z, 8, 32)), 32, 8)
        z = n("Mul", z, n.weight(8))
        y = n("Add", y, n("Transpose", z, perm=[0, 3, 1, 2]))
    centred = n("Sub", y, n("ReduceMean", y, n.const([1]), keepdims=1))
    deviation = n("ReduceMean", n("Mul", centred, centred), n.const([1]), keepdims=1)
    y = n("Div", centred, n("Sqrt", n("Add", deviation, n.const(1e-6, np.float32))))
    y = n("Conv", y, n.weight(12, 8, 2, 2), n.weight(12), strides=[2, 2], kernel_shape=[2, 2])
    return n.model(IMAGE, n("ReduceMean", y, n.const([-2, -1]), keepdims=0), y)


def decoder() -> onnx.ModelProto:
    """One step of a language model: a cache of a free length, rotary positions, grouped heads."""
    n = Net(18)
    dim, heads_, groups, words = 16, 4, 2, 40
    side = dim // heads_
    batch, length, past = n.size("ids", 0), n.size("ids", 1), n.size("past_k", 2)
    y = n("Gather", n.weight(words, dim, scale=1), "ids")
    whole = n("Add", past, length)
    positions = n("Range", past, whole, n.const(1))
    angles = n(
        "Mul", n("Unsqueeze", n("Cast", positions, to=F), n.const([1])), n.const([[1.0, 0.1]], np.float32)
    )
    angles = n("Concat", angles, angles, axis=-1)
    cos, sin = n("Cos", angles), n("Sin", angles)

    def turned(z: str) -> str:
        low = n("Slice", z, n.const([0]), n.const([side // 2]), n.const([-1]))
        high = n("Slice", z, n.const([side // 2]), n.const([FAR]), n.const([-1]))
        return n("Add", n("Mul", z, cos), n("Mul", n("Concat", n("Neg", high), low, axis=-1), sin))

    def split(z: str, count: int) -> str:
        return n("Transpose", n("Reshape", z, n.vector(batch, length, count, side)), perm=[0, 2, 1, 3])

    q = turned(split(n.linear(y, dim, dim), heads_))
    k = n("Concat", "past_k", turned(split(n.linear(y, dim, groups * side), groups)), axis=2)
    v = n("Concat", "past_v", split(n.linear(y, dim, groups * side), groups), axis=2)
    keys, values = (
        n(
            "Reshape",
            n(
                "Expand",
                n("Unsqueeze", part, n.const([2])),
                n.vector(batch, groups, heads_ // groups, whole, side),
            ),
            n.vector(batch, heads_, whole, side),
        )
        for part in (k, v)
    )
    columns = n("Unsqueeze", n("Range", n.const(0), whole, n.const(1)), n.const([0]))
    seen = n("LessOrEqual", columns, n("Unsqueeze", positions, n.const([1])))
    mask = n("Where", seen, n.const(0.0, np.float32), n.const(float(np.finfo(np.float32).min), np.float32))
    scores = n("Mul", n("MatMul", q, n("Transpose", keys, perm=[0, 1, 3, 2])), n.const(0.5, np.float32))
    weights = n("Softmax", n("Add", scores, mask), axis=-1)
    z = n("Transpose", n("MatMul", weights, values), perm=[0, 2, 1, 3])
    z = n("Reshape", z, n.vector(batch, length, dim))
    last = n("Slice", n.linear(z, dim, words), n.const([-1]), n.const([FAR]), n.const([1]))
    cache = (F, ["N", groups, "P", side])
    return n.model({"ids": (L, ["N", "S"]), "past_k": cache, "past_v": cache}, last, k, v)


def fields() -> onnx.ModelProto:
    """3-D convolutions of free sides, an einsum, a running sum, values scattered where indices say."""
    n = Net(19)
    y = n("Conv", "v", n.weight(4, 2, 3, 3, 3), n.weight(4), pads=[1] * 6, strides=[1, 2, 2])
    y = n("Relu", y)
    flat = n("Reshape", y, n.const([0, 4, -1]))
    gram = n("Einsum", flat, flat, equation="nci,ndi->ncd")
    running = n("CumSum", n("ReduceSum", y, n.const([1, 3, 4]), keepdims=0), n.const(1))
    return n.model({"v": (F, ["N", 2, "D", "H", "W"])}, gram, running)


@dataclass(frozen=True)
class Case:
    """A network, the sizes to run it at, and what its integer inputs stay below."""

    build: Callable[[], onnx.ModelProto]
    sizes: tuple[Sizes, ...]
    below: int = 2


def _images(*sides: tuple[int, int, int]) -> tuple[Sizes, ...]:
    return tuple({"N": b, "H": h, "W": w} for b, h, w in sides)


EIGHTS = _images((1, 16, 24), (3, 32, 8), (2, 40, 64))
ANY = _images((1, 33, 47), (2, 64, 40), (3, 21, 50))
TEXT: tuple[Sizes, ...] = ({"N": 1, "S": 5}, {"N": 3, "S": 12}, {"N": 2, "S": 1})
STEPS: tuple[Sizes, ...] = ({"N": 1, "T": 4}, {"N": 3, "T": 9}, {"N": 2, "T": 1})
SOUND: tuple[Sizes, ...] = ({"N": 1, "T": 64}, {"N": 2, "T": 101}, {"N": 1, "T": 250})

CASES: dict[str, Case] = {
    "unet": Case(unet, EIGHTS),
    "unet_bilinear": Case(lambda: unet("bilinear"), EIGHTS),
    "unet_torch_bilinear": Case(lambda: unet("torch"), EIGHTS),
    "pyramid": Case(pyramid, ANY),
    "heads_bilinear": Case(heads, ANY),
    "heads_torch": Case(lambda: heads("torch"), ANY),
    "heads_corners": Case(lambda: heads("corners"), ANY),
    "heads_nearest": Case(lambda: heads("nearest"), ANY),
    "autoencoder": Case(autoencoder, ANY),
    "classifier": Case(classifier, ANY),
    "classifier_max": Case(lambda: classifier("GlobalMaxPool"), ANY),
    "classifier_mean": Case(lambda: classifier("ReduceMean"), ANY),
    "encoder": Case(encoder, TEXT),
    "encoder_causal": Case(lambda: encoder(True), TEXT, 50),
    "audio": Case(audio, SOUND),
    "lstm": Case(recurrent, STEPS),
    "lstm_forward": Case(lambda: recurrent("LSTM", "forward"), STEPS),
    "gru": Case(lambda: recurrent("GRU"), STEPS),
    "gru_forward": Case(lambda: recurrent("GRU", "forward"), STEPS),
    "multiples": Case(multiples, ANY),
    "multiples_reflect": Case(lambda: multiples("reflect"), ANY),
    "multiples_edge": Case(lambda: multiples("edge"), ANY),
    "normalized": Case(normalized, ANY),
    "patches": Case(patches, EIGHTS),
    "windows": Case(windows, EIGHTS),
    "pooling": Case(pooling, ANY),
    "grid": Case(grid, ANY),
    "resizes": Case(resizes, (*ANY, {"N": 1, "H": 1, "W": 2})),
    "sound_up": Case(sound_up, SOUND),
    "convnext": Case(convnext, EIGHTS),
    "decoder": Case(
        decoder, tuple({"N": b, "S": s, "P": p} for b, s, p in ((1, 4, 3), (3, 1, 7), (2, 5, 1))), 40
    ),
    "fields": Case(fields, ({"N": 2, "D": 4, "H": 6, "W": 8}, {"N": 1, "D": 3, "H": 9, "W": 7})),
}
