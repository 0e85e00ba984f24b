"""One cluster of integers on the whole road: DequantizeLinear* -> operator -> QuantizeLinear, both resolvers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler import pipeline
from tapeout.compiler.cluster_check import Deviation
from tapeout.compiler.declaration import Row
from tapeout.compiler.ir.load import from_proto
from tapeout.compiler.target import Request
from tapeout.targets.tflite import TARGET
from tapeout.targets.tflite.run import RESOLVERS, LiteRT
from tests.targets.tflite.road import HEADER, emitted, operators, reference

Array = np.ndarray[Any, Any]
NAMES = {"float32": "float"}
SCHEMES = {"int8": "int8", "int16": "int16x8"}


def constant(name: str, array: Any) -> str:
    """An initializer in ONNX's text syntax."""
    array = np.asarray(array)
    dims = f"[{','.join(map(str, array.shape))}]" if array.ndim else ""
    kind = NAMES.get(array.dtype.name, array.dtype.name)
    return f"{kind}{dims} {name} = {{{', '.join(map(str, array.reshape(-1).tolist()))}}}"


@dataclass
class Cluster:
    """`body` computes `y` from `inputs` (shapes by name) in real numbers, and from `weights`: codes with their
    scales, along axis 0 where there are several. Weights of int32 are biases in units of `a` times `w`.

    `act` is the type of the activations. The inputs' scales and zero points are drawn, or given by `scales`;
    the output's follow from what it is, are `fixed`, or are those of the first input (`same`).
    """

    body: str
    inputs: Mapping[str, Sequence[int]]
    weights: Mapping[str, tuple[Array, Array]] = field(default_factory=dict)
    constants: Mapping[str, Array] = field(default_factory=dict)
    act: str = "int8"
    fixed: tuple[float, int] | None = None
    same: bool = False
    scales: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    output: str | None = None  # of a result that is no real number: its type
    seed: int = 0

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        drawn: dict[str, tuple[float, int]] = {}
        for name in self.inputs:
            zero = int(rng.integers(-40, 40)) if self.act == "int8" else 0
            steps = 100 if self.act == "int8" else 30000
            drawn[name] = (float(np.float32(rng.uniform(1.5, 4.0) / steps)), zero)
        if self.same:
            first = next(iter(drawn.values()))
            drawn = dict.fromkeys(drawn, first)
        self.params = {**drawn, **self.scales}
        limits = np.iinfo(self.act)
        self.feed: dict[str, Array] = {
            f"{name}q": rng.integers(limits.min, limits.max + 1, shape).astype(self.act)
            for name, shape in self.inputs.items()
        }
        self.result = self.fixed or (next(iter(self.params.values())) if self.same else None)
        if self.result is None and self.output is None:
            real = reference(self.model(integers=False), self.feed)["y"]
            self.result = range_of(real, self.act)

    def text(self, integers: bool = True) -> str:
        """The model; without `integers` its output is a real number."""
        data = [constant(name, array) for name, array in self.constants.items()]
        lines = []
        for name, (scale, zero) in self.params.items():
            data += [
                constant(f"{name}_s", np.float32(scale)),
                constant(f"{name}_z", np.array(zero, self.act)),
            ]
            lines.append(f"{name} = DequantizeLinear({name}q, {name}_s, {name}_z)")
        for name, (codes, scale) in self.weights.items():
            if codes.dtype == np.int32:
                scale = (np.float64(self.params["a"][0]) * self.weights["w"][1]).astype(np.float32)
            scale = np.asarray(scale, np.float32)
            shown = codes if codes.dtype.kind == "i" else codes.astype(np.int8)  # until `model` narrows it
            data += [constant(f"{name}q", shown), constant(f"{name}_s", scale)]
            data.append(constant(f"{name}_z", np.zeros(scale.shape, shown.dtype)))
            axis = "<axis = 0>" if scale.ndim else ""
            lines.append(f"{name} = DequantizeLinear {axis} ({name}q, {name}_s, {name}_z)")
        lines.append(self.body)
        given = ", ".join(f"{self.act}[{_dims(s)}] {n}q" for n, s in self.inputs.items())
        out = "float[] y"
        if integers and self.output is None:
            assert self.result is not None
            scale, zero = self.result
            data += [constant("y_s", np.float32(scale)), constant("y_z", np.array(zero, self.act))]
            lines.append("yq = QuantizeLinear(y, y_s, y_z)")
            out = f"{self.act}[] yq"
        elif self.output is not None:
            out = f"{self.output}[] y"
        return f"{HEADER}agraph ({given}) => ({out})\n<{', '.join(data)}>\n{{ {' '.join(lines)} }}"

    def model(self, integers: bool = True) -> ir.Model:
        """The model; the shape of its output is inferred."""
        import onnx

        proto = onnx.parser.parse_model(self.text(integers).replace("[] y", " y"))
        narrow = {f"{n}{end}": c.dtype for n, (c, _) in self.weights.items() for end in ("q", "_z")}
        for held in proto.graph.initializer:
            if held.name in narrow and narrow[held.name].kind != "i":
                codes = onnx.numpy_helper.to_array(held).astype(narrow[held.name])
                held.CopyFrom(onnx.numpy_helper.from_array(codes, held.name))
        for output in proto.graph.output:
            output.type.tensor_type.ClearField("shape")
        return from_proto(proto)

    def legalized(self) -> ir.Model:
        model = self.model()
        # What arrives quantized is taken as it is: nothing is put right on the way.
        steps = TARGET.passes(Request(SCHEMES[self.act]))
        pipeline.run(model, [s for s in steps if getattr(s, "name", "") != "quantize"])
        return model


def _dims(shape: Sequence[int]) -> str:
    return ",".join(map(str, shape))


def range_of(real: Array, act: str) -> tuple[float, int]:
    """Scale and zero point for what `real` holds; int16 is symmetric."""
    low, high = min(float(real.min()), 0.0), max(float(real.max()), 0.0)
    if act == "int16":
        return float(np.float32(max(-low, high, 1e-6) / 32767)), 0
    scale = float(np.float32(max(high - low, 1e-6) / 255))
    return scale, int(np.clip(round(-128 - low / scale), -128, 127))


@dataclass
class Result:
    """What came out on one resolver: the largest difference in quanta, and how many elements differ."""

    quanta: int
    differing: int
    elements: int


def rows_of(model: ir.Model) -> list[tuple[ir.Node, Row]]:
    """Every node with its row; nothing is refused."""
    acceptance = TARGET.declaration("cpu").accept(model)
    assert [str(r) for r in acceptance.refused] == []
    return acceptance.placed


def run(cluster: Cluster, taken: bool = True) -> tuple[list[str], dict[str, Result], Row | None]:
    """The operators of the file, how far each resolver is from ONNX Runtime, and the row that took the
    operator in integers: the one that names a stored type, which there must be where it is `taken`."""
    model = cluster.legalized()
    rows = rows_of(model)
    mine = [
        (n, r) for n, r in rows
        if any(p.dtypes for p in r.ports.values()) and n.op_type not in ("QuantizeLinear", "DequantizeLinear")
    ]  # fmt: skip
    content = emitted(model)
    expected = reference(cluster.model(), cluster.feed)
    ((name, right),) = expected.items()
    found: dict[str, Result] = {}
    for resolver in RESOLVERS:
        value = LiteRT(content, resolver).run(cluster.feed)[name]
        assert value.shape == right.shape and value.dtype == right.dtype
        apart = np.abs(value.astype(np.int64) - right.astype(np.int64))
        found[resolver] = Result(int(apart.max(initial=0)), int((apart > 0).sum()), apart.size)
    assert mine or not taken, f"no row took integers: {[r.where for _, r in rows]}"
    return operators(content), found, mine[-1][1] if mine else None


def holds(cluster: Cluster) -> list[str]:
    """Hold the cluster against the bound of its row on both resolvers; returns the operators of the file."""
    made, found, row = run(cluster)
    assert row is not None
    for resolver, result in found.items():
        kept = Deviation(row.where, row.op, row, resolver, result.quanta, result.differing, result.elements)
        assert kept.holds, kept.text()
    assert "DEQUANTIZE" not in made and "QUANTIZE" not in made, made
    return made
