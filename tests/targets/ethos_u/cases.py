"""Clusters of integers on both sides of what the NPU takes, drawn at random; and what Vela does with them."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler import pipeline
from tapeout.compiler.declaration import Refusal
from tapeout.compiler.ir import graph as g
from tapeout.compiler.target import Request
from tapeout.targets.ethos_u import declaration
from tapeout.targets.ethos_u.finish import compile_file
from tapeout.targets.ethos_u.quantities import is_border
from tapeout.targets.tflite import TARGET
from tests.targets.tflite.integers import SCHEMES, Array, Cluster

RNG = np.random.Generator
DEVICE = "ethos-u55-128"


@dataclass(frozen=True)
class Case:
    """A cluster, how it is written in short, and the node that it is about."""

    text: str
    cluster: Cluster


def weight(rng: RNG, *shape: int) -> tuple[Array, Array]:
    codes = rng.integers(-127, 128, shape).astype(np.int8)
    return codes, rng.uniform(0.002, 0.01, shape[0]).astype(np.float32)


def bias(rng: RNG, channels: int) -> tuple[Array, Array]:
    return rng.integers(-3000, 3000, channels).astype(np.int32), np.float32(0)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def convolution(rng: RNG, act: str) -> Cluster:
    k, s, d = (int(rng.integers(1, n)) for n in (5, 6, 4))
    depthwise = bool(rng.integers(2))
    channels, outer = int(rng.integers(1, 9)), int(rng.integers(1, 9))
    size = (k - 1) * d + 1 + int(rng.integers(0, 3)) * s
    group, kernel = (channels, (channels, 1, k, k)) if depthwise else (1, (outer, channels, k, k))
    same = d == 1 and bool(rng.integers(2))
    attributes = f"strides = [{s},{s}], dilations = [{d},{d}], group = {group}"
    pads = ', auto_pad = "SAME_UPPER"' if same else ""
    body = f"y = Conv <{attributes}{pads}> (a, w, b)"
    weights = {"w": weight(rng, *kernel), "b": bias(rng, kernel[0])}
    return Cluster(body, {"a": (1, channels, size, size)}, weights, act=act, seed=int(rng.integers(99)))


def transposed(rng: RNG, act: str) -> Cluster:
    s, k, size = int(rng.integers(1, 4)), int(rng.integers(2, 5)), int(rng.integers(2, 6))
    codes = rng.integers(-127, 128, (4, 6, k, k)).astype(np.int8)
    weights = {"w": (codes, np.float32(0.005)), "b": bias(rng, 6)}
    auto = ', auto_pad = "SAME_UPPER"' if rng.integers(2) and k >= s else ""
    body = f"y = ConvTranspose <strides = [{s},{s}]{auto}> (a, w, b)"
    return Cluster(body, {"a": (1, 4, size, size)}, weights, act=act)


def matrix(rng: RNG, act: str) -> Cluster:
    rows, inner, outer = (int(rng.integers(1, 40)) for _ in range(3))
    weights = {"w": weight(rng, outer, inner), "b": bias(rng, outer)}
    return Cluster("y = Gemm <transB = 1> (a, w, b)", {"a": (rows, inner)}, weights, act=act)


def product(rng: RNG, act: str) -> Cluster:
    lead = [int(v) for v in rng.integers(1, 4, int(rng.integers(0, 3)))]
    m, k, n = (int(rng.integers(1, 20)) for _ in range(3))
    return Cluster("y = MatMul (a, c)", {"a": (*lead, m, k), "c": (*lead, k, n)}, act=act)


def pool(rng: RNG, act: str) -> Cluster:
    kind = str(rng.choice(["MaxPool", "AveragePool"]))
    k, s = int(rng.choice([1, 2, 3, 8, 9, 12])), int(rng.integers(1, 6))
    same = bool(rng.integers(2))
    pads = ', auto_pad = "SAME_UPPER"' if same else ""
    size = k + int(rng.integers(0, 3)) * s
    body = f"y = {kind} <kernel_shape = [{k},{k}], strides = [{s},{s}]{pads}> (a)"
    return Cluster(body, {"a": (1, 4, size, size)}, act=act, same=True)


def binary(rng: RNG, act: str) -> Cluster:
    op = str(rng.choice(["Add", "Sub", "Mul", "Max", "Min"]))
    shape = [int(v) for v in rng.integers(1, 6, int(rng.integers(1, 5)))]
    other = [d if rng.integers(3) else 1 for d in shape][int(rng.integers(0, len(shape))) :]
    return Cluster(f"y = {op} (a, c)", {"a": shape, "c": other}, act=act, same=op in ("Max", "Min"))


UNARY = {
    "Relu": ("int8", "int16"),
    "LeakyRelu <alpha = 0.1>": ("int8", "int16"),
    "Elu": ("int8",),
    "Gelu": ("int8",),
    "HardSwish": ("int8",),
    "Abs": ("int8", "int16"),
    "Exp": ("int8",),
    "Neg": ("int8",),
}
FIXED = {
    "Sigmoid": ((1 / 256, -128), (1 / 32768, 0)),
    "Tanh": ((1 / 128, 0), (1 / 32768, 0)),
    "Softmax <axis = -1>": ((1 / 256, -128), (1 / 32768, 0)),
    "LogSoftmax <axis = -1>": ((1 / 16, 127), None),
}


def unary(rng: RNG, act: str) -> Cluster:
    shape = [int(v) for v in rng.integers(1, 7, int(rng.integers(1, 5)))]
    if rng.integers(3) == 0:
        name = str(rng.choice(list(FIXED)))
        fixed = FIXED[name][0 if act == "int8" else 1]
        if fixed is None:
            name, fixed = "Sigmoid", FIXED["Sigmoid"][1]
        op, _, attributes = name.partition(" ")
        return Cluster(f"y = {op} {attributes} (a)", {"a": shape}, act=act, fixed=fixed)
    name = str(rng.choice([n for n, acts in UNARY.items() if act in acts]))
    op, _, attributes = name.partition(" ")
    return Cluster(f"y = {op} {attributes} (a)", {"a": shape}, act=act)


def reduction(rng: RNG, act: str) -> Cluster:
    op = str(rng.choice(["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"]))
    rank = int(rng.integers(2, 5))
    shape = [int(rng.choice([1, 1, 2])) if rank == 4 else int(rng.integers(1, 7))]
    shape += [int(v) for v in rng.integers(1, 9, rank - 1)]
    axes = sorted(int(v) for v in rng.choice(rank, int(rng.integers(1, rank)), replace=False))
    keep = int(rng.integers(2))
    body = f"y = {op} <keepdims = {keep}> (a, axes)"
    same = op in ("ReduceMax", "ReduceMin")
    return Cluster(body, {"a": shape}, constants={"axes": ints(*axes)}, act=act, same=same)


def move(rng: RNG, act: str) -> Cluster:
    rank = int(rng.integers(2, 6))
    shape = [int(v) for v in rng.integers(1, 7, rank)]
    kind = str(rng.choice(["Transpose", "Reshape", "Concat", "Slice", "Pad", "Tile", "Expand", "Gather"]))
    inputs: dict[str, Any] = {"a": shape}
    constants: dict[str, Array] = {}
    if kind == "Transpose":
        # Behind an Abs, for one at the border is moved across it.
        perm = ",".join(str(int(v)) for v in rng.permutation(rank))
        body = f"y = Transpose <perm = [{perm}]> (a)"
    elif kind == "Reshape":
        body, constants = "y = Reshape (a, s)", {"s": ints(-1, shape[-1])}
    elif kind == "Concat":
        inputs["c"] = shape
        body = f"y = Concat <axis = {int(rng.integers(rank))}> (a, c)"
    elif kind == "Slice":
        axis, step = int(rng.integers(rank)), int(rng.choice([-1, 1, 1, 2, 3]))
        ends = (-1, -(10**6)) if step < 0 else (0, 10**6)
        body = "y = Slice (a, b, e, x, s)"
        constants = {"b": ints(ends[0]), "e": ints(ends[1]), "x": ints(axis), "s": ints(step)}
    elif kind == "Pad":
        mode = ' <mode = "reflect">' if rng.integers(2) and min(shape) > 1 else ""
        body, constants = f"y = Pad{mode} (a, p)", {"p": ints(*rng.integers(0, 2, 2 * rank))}
    elif kind == "Tile":
        body, constants = "y = Tile (a, r)", {"r": ints(*rng.integers(1, 3, rank))}
    elif kind == "Expand":
        body, constants = "y = Expand (a, s)", {"s": ints(*[2, *shape])}
    else:
        body = "y = Gather <axis = 0> (a, i)"
        constants = {"i": ints(0)}
    return Cluster(body, inputs, constants=constants, act=act, same=True)


def resize(rng: RNG, act: str) -> Cluster:
    mode = str(rng.choice(["linear", "nearest"]))
    by = [float(rng.choice([1, 2, 3, 4, 8])) for _ in range(2)]
    by = by if rng.integers(2) else [by[0], by[0]]
    size = [int(rng.integers(1, 5)) for _ in range(2)]
    coordinates = "half_pixel" if mode == "linear" else "asymmetric"
    rounding = "" if mode == "linear" else ', nearest_mode = "floor"'
    body = (
        f'y = Resize <mode = "{mode}", coordinate_transformation_mode = "{coordinates}"{rounding}>'
        " (a, , scales)"
    )
    return Cluster(
        body, {"a": (1, 4, *size)}, constants={"scales": np.float32([1, 1, *by])}, act=act, same=True
    )


def positions(rng: RNG, act: str) -> Cluster:
    depth = int(rng.choice([5, 100, 127, 128, 140]))
    axis = int(rng.choice([-1, -1, 1]))
    keep = int(depth == 100)
    return Cluster(
        f"y = ArgMax <axis = {axis}, keepdims = {keep}> (a)", {"a": (1, 3, 3, depth)}, output="int64"
    )


FAMILIES: tuple[Callable[[RNG, str], Cluster], ...] = (
    convolution, convolution, transposed, matrix, product, pool, pool, binary, unary, reduction, move, move, resize,
    positions,
)  # fmt: skip


def draw(count: int, seed: int = 0) -> Iterator[Case]:
    """`count` clusters, the families in turn."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        family = FAMILIES[i % len(FAMILIES)]
        act = "int16" if rng.integers(4) == 0 and family is not positions else "int8"
        cluster = family(rng, act)
        yield Case(f"{cluster.body} {dict(cluster.inputs)} {act}", cluster)


@dataclass(frozen=True)
class Placed:
    """Where the nodes of a case go: by the declaration, and by Vela."""

    declared: bool
    compiled: bool
    why: str


def place(case: Case) -> Placed | None:
    """Where the operator of a case goes; None where nothing of it is an operator of integers on TFLite."""
    model = case.cluster.model()
    steps = TARGET.passes(Request(SCHEMES[case.cluster.act]))
    pipeline.run(model, [s for s in steps if getattr(s, "name", "") != "quantize"])
    rows, host = declaration(DEVICE), TARGET.declaration("cpu")
    answers = {n: rows.match(n, model.functions) for n in model.graph if not is_border(n)}
    for node in answers:
        row = host.match(node, model.functions)
        assert not isinstance(row, Refusal), str(row)
        if not row.file.startswith("quantized/") and node.op_type not in ("Relu", "Clip", "Transpose"):
            return None
    sink = io.BytesIO()
    TARGET.emit(model, sink, Request(SCHEMES[case.cluster.act]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "case.tflite")
        path.write_bytes(sink.getvalue())
        made = compile_file(path, DEVICE)
    return _compare(model, answers, made.operators)


def _compare(
    model: ir.Model, answers: dict[ir.Node, Any], operators: tuple[tuple[str, str, str], ...]
) -> Placed | None:
    """The nodes that a layout pass has put at the border (Transpose) are no part of the case where there is
    another."""
    about = [n for n in answers if n.op_type != "Transpose"] or list(answers)
    if not about:
        return None
    refused = [str(answers[n]) for n in about if isinstance(answers[n], Refusal)]
    others = {v.name for n in answers if n not in about for v in _results(n)}
    on_cpu = [f"{kind} {name}" for where, kind, name in operators if where == "CPU" and name not in others]
    return Placed(not refused, not on_cpu, f"declared {refused or 'NPU'}; Vela leaves {on_cpu or 'nothing'}")


def _results(node: ir.Node) -> list[ir.Value]:
    """The outputs of a node, and what stands for them behind QuantizeLinear."""
    found = list(node.outputs)
    for value in node.outputs:
        reader = g.only_use(value)
        if reader is not None and reader.op_type == "QuantizeLinear":
            found.append(reader.outputs[0])
    return found
