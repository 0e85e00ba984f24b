"""Makes integers of a draft as a row's ports say: DequantizeLinear before the node, QuantizeLinear behind it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from tapeout.compiler.conformance.case import Array
from tapeout.compiler.conformance.drafts import Built, Draft, Operand, build, call, empty_model, leaf
from tapeout.compiler.conformance.draws import Impossible, Wish
from tapeout.compiler.declaration import PortRule, Row
from tapeout.compiler.declaration.rows import ANY_PORT
from tapeout.compiler.ir import functions
from tapeout.compiler.ir.save import to_proto
from tapeout.compiler.operators import DTYPES, Call, Interface
from tapeout.compiler.reference import evaluate

STEPS = {"int8": 100, "uint8": 100, "int16": 30000, "int4": 7, "int2": 1, "uint4": 7, "int32": 1 << 20}
ORDINARY = ("int8", "uint8", "int16", "int32")


@dataclass(frozen=True)
class Grid:
    """How a tensor is stored: its type, scale (one, or one for each place along `axis`) and zero point."""

    dtype: str
    scale: Array
    zero: int = 0
    axis: int | None = None
    block: int = 0  # elements along axis 1 that share a scale

    @property
    def attributes(self) -> dict[str, int]:
        if self.block:
            return {"axis": 1, "block_size": self.block}
        return {} if self.axis is None else {"axis": self.axis}

    def codes(self, real: Array) -> Array:
        """The nearest codes; the scale is spread along the axis."""
        limits = _span(self.dtype)
        scale = self.spread(real.ndim).astype(np.float64)
        steps = np.rint(real.astype(np.float64) / scale) + self.zero
        return np.asarray(np.clip(steps, *limits)).astype(DTYPES[self.dtype].numpy())

    def spread(self, rank: int) -> Array:
        """The scales as they meet a tensor of that rank."""
        if self.block:
            return np.repeat(self.scale, self.block, axis=1)
        if self.axis is None:
            return self.scale
        return self.scale.reshape([-1 if i == self.axis else 1 for i in range(rank)])

    @property
    def zeros(self) -> Array:
        return np.full(self.scale.shape, self.zero, np.int64).astype(DTYPES[self.dtype].numpy())


def _span(dtype: str) -> tuple[int, int]:
    if dtype == "uint4":
        return 0, 15
    bits = {"int4": 4, "int2": 2}.get(dtype)
    if bits:
        return -(1 << bits - 1) + 1, (1 << bits - 1) - 1
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def wants_integers(row: Row) -> bool:
    """Whether the row is for stored integers: some port that is no weight names their types."""
    rules = row.ports.values()
    return any(d not in ("float32", "float16") for r in rules for d in r.dtypes)


def rule_of(row: Row, port: str) -> PortRule | None:
    rule = row.rule(port)
    return rule if rule is not None and rule.dtypes else None


@dataclass
class Maker:
    """Quantizes one draft for one row."""

    w: Wish
    row: Row
    draft: Draft
    grids: dict[str, Grid] = field(default_factory=dict)

    @property
    def least(self) -> float:
        """The least magnitude that a range spans: a share of what goes in, as calibration leaves it. Next to no
        range makes factors between scales that runtimes have no integers for."""
        steps = [float(g.scale.max()) * STEPS[g.dtype] for g in self.grids.values()]
        return 1e-3 * max(steps, default=1000.0)

    def broken(self, port: str, key: str) -> bool:
        """Whether this demand of the port is the one that is to be broken."""
        return self.w.outside == f"ports.{port if port in self.row.ports else ANY_PORT}.{key}"

    def dtype(self, port: str, rule: PortRule) -> str:
        """The storage type: one for all activations, any that the rule names for weights."""
        offered = [d for d in rule.dtypes if d in STEPS]
        if self.broken(port, "dtype"):
            other = [d for d in ORDINARY[:3] if d not in offered]
            return self.w.pick(other)
        if rule.role in ("weight", "bias", "const"):
            return self.w.pick([d for d in offered if d != "int64"])
        known = {
            g.dtype for p, g in self.grids.items() if (r := rule_of(self.row, p)) and r.role in (None, "act")
        }
        shared = [d for d in offered if d in known]
        return shared[0] if shared else self.w.pick([d for d in offered if d in ORDINARY])

    def grid(self, port: str, rule: PortRule, real: Array, weights: bool) -> Grid:
        """How `real` is stored at a port."""
        first = next(iter(self.row.same_scale), None)
        if port in self.row.same_scale and first in self.grids and self.w.outside != "same_scale":
            return self.grids[first]
        dtype = self.dtype(port, rule)
        largest = max(float(np.abs(real[np.isfinite(real)]).max(initial=0.0)), self.least)
        spread = float(self.w.draws.rng.uniform(0.8, 1.3))
        if isinstance(rule.scale, float) != self.broken(port, "scale") and isinstance(rule.scale, float):
            scale = rule.scale
        else:
            scale = largest * spread / STEPS[dtype]
        zero = 0
        if dtype != "int16" and not weights and not rule.symmetric:
            zero = int(self.w.draws.rng.integers(-40, 40)) + (128 if dtype == "uint8" else 0)
        if dtype == "uint4":
            zero = 8
        if rule.zp is not None:
            zero = rule.zp
        if self.broken(port, "zp") or self.broken(port, "symmetric"):
            zero += 3
        axis: int | None = None
        block = self.w.number("weight.block", (0,)) if weights and "weight.block" in self.w.limits else 0
        if block and real.ndim == 2 and real.shape[1] % block == 0:
            parts = np.abs(real).reshape(len(real), -1, block).max(axis=2)
            # Kernels read the scales of blocks in half precision, of 8 bits at the least.
            bits = (np.maximum(parts, 1e-2) / STEPS[dtype]).astype(np.float32).view(np.uint32)
            scales = (bits & np.uint32(0xFFFF0000)).view(np.float32)
            return Grid(dtype, scales, zero, None, block)
        single = rule.per_tensor or not weights
        if single and self.broken(port, "per_tensor"):
            single, axis = False, 0
        if not single and real.ndim:
            axis = rule.axis if rule.axis is not None and not self.broken(port, "axis") else axis
            axis = (1 if real.ndim > 1 else 0) if axis is None and self.broken(port, "axis") else axis
        if axis is not None and real.ndim > axis and real.shape[axis] > 1:
            parts = np.moveaxis(real, axis, 0).reshape(real.shape[axis], -1)
            peaks = np.maximum(np.abs(parts).max(axis=1, initial=0.0), 1e-3)
            return Grid(dtype, (peaks / STEPS[dtype]).astype(np.float32), zero, axis)
        return Grid(dtype, np.asarray(scale, np.float32), zero)

    def bias(self, rule: PortRule, real: Array, names: list[str]) -> Grid | None:
        """A bias in units of the product of the scales that the rule names; None where it stays real."""
        if "int32" not in rule.dtypes or (self.w.flip(3) and "float32" in rule.dtypes):
            return None
        if not isinstance(rule.scale, str):
            return Grid("int32", np.asarray(1e-3, np.float32))
        product = np.ones((), np.float64)
        for name in rule.scale.split("*"):
            if name.strip() not in self.grids:
                return None
            product = product * self.grids[name.strip()].scale.astype(np.float64)
        if self.broken("B", "scale"):
            product = product * 2
        scale = product.astype(np.float32)
        return Grid("int32", scale, 0, 0 if scale.ndim else None)

    def snapped(self, rule: PortRule, operand: Operand) -> Operand:
        """A real bias on the grid of the accumulator, where a kernel in integers puts it: beside weights of few
        bits its rounding is as large as a quantum of the output, and no fault of the kernel."""
        if not isinstance(rule.scale, str) or any(n.strip() not in self.grids for n in rule.scale.split("*")):
            return operand
        factors = [self.grids[n.strip()].scale.astype(np.float64) for n in rule.scale.split("*")]
        step = math.prod(factors, start=np.ones(()))
        return replace(operand, array=(np.rint(operand.array / step) * step).astype(np.float32))


def quantized(w: Wish, row: Row, draft: Draft, interface: Interface) -> Built:
    """The draft with integers where the row's ports name their types."""
    plain = build(draft)
    bound = Call(plain.node, interface)
    ports: dict[int, str] = {}
    for name, found in bound.input_values.items():
        for value in found:
            ports[list(plain.node.inputs).index(value)] = name
    maker = Maker(w, row, draft)
    model, inputs = empty_model(), dict[str, Array]()
    values: list[ir.Value | None] = []
    stand_ins: list[Operand | None] = []  # the reals that the codes stand for
    for i, operand in enumerate(draft.operands):
        if operand is None:
            values.append(None)
            stand_ins.append(None)
            continue
        rule = rule_of(row, ports.get(i, ""))
        grid = None
        if rule is not None and operand.array.dtype == np.float32:
            if rule.role == "bias":
                grid = maker.bias(rule, operand.array, list(maker.grids))
            else:
                weights = rule.role in ("weight", "const")
                grid = maker.grid(ports[i], rule, operand.array, weights)
                maker.grids.setdefault(ports[i], grid)
        if rule is not None and maker.broken(ports.get(i, ""), "constant"):
            operand = Operand(operand.array)
        if rule is not None and rule.role == "bias" and grid is None and operand.array.dtype == np.float32:
            operand = maker.snapped(rule, operand)
        if grid is None:
            values.append(_rounded(w, model, leaf(model, f"x{i}", operand, inputs), i))
            stand_ins.append(operand)
            continue
        values.append(_stored(model, f"x{i}", operand, grid, inputs))
        real = _real(grid, grid.codes(operand.array))
        stand_ins.append(Operand(real, operand.constant, operand.free))
    while values and values[-1] is None:
        values.pop()
    node = call(model, draft.op, values, {**draft.attributes, **draft.graphs}, draft.outputs)
    reals = _results(Draft(draft.op, stand_ins, draft.attributes, draft.outputs, draft.graphs))
    names = [name for name, vs in Call(node, interface).output_values.items() for _ in vs]
    for i, (value, port) in enumerate(zip(node.outputs, names, strict=True)):
        model.graph.outputs.append(_border(maker, model, value, port, reals[i], i))
    return Built(model, node, inputs, draft)


def _rounded(w: Wish, model: ir.Model, value: ir.Value, place: int) -> ir.Value:
    """The activations of a kernel that rounds them while it runs, which the graph says by a function."""
    limits = w.limits.get("activations.rounded")
    if place or not limits or (w.outside == "quantity.activations.rounded"):
        return value
    op = f"{functions.DOMAIN}::Round{str(limits[0].equal).capitalize()}"
    if (functions.DOMAIN, op.partition("::")[2], "") not in functions.DECLARED:
        raise Impossible(f"{op} is not known")
    return call(model, op, [value], {}, name="rounded").outputs[0]


def _stored(model: ir.Model, name: str, operand: Operand, grid: Grid, inputs: dict[str, Array]) -> ir.Value:
    codes = leaf(
        model, f"{name}q", Operand(grid.codes(operand.array), operand.constant, operand.free), inputs
    )
    parameters = _parameters(model, name, grid)
    return call(model, "DequantizeLinear", [codes, *parameters], grid.attributes, name=f"{name}_d").outputs[0]


def _parameters(model: ir.Model, name: str, grid: Grid) -> list[ir.Value]:
    ignored: dict[str, Array] = {}
    return [
        leaf(model, f"{name}_scale", Operand(grid.scale, True), ignored),
        leaf(model, f"{name}_zero", Operand(grid.zeros, True), ignored),
    ]


def _real(grid: Grid, codes: Array) -> Array:
    steps = (codes.astype(np.int64) - grid.zero).astype(np.float32)
    return np.asarray(steps * grid.spread(codes.ndim)).astype(np.float32)


def _results(draft: Draft) -> list[Array]:
    """What the node gives on the reals."""
    built = build(draft)
    names = [v.name or "" for v in built.model.graph.outputs]
    found = evaluate(to_proto(built.model), built.inputs, names, threads=1)
    return [found[n] for n in names]


def _border(maker: Maker, model: ir.Model, value: ir.Value, port: str, real: Array, place: int) -> ir.Value:
    """The output as integers, an activation that the row fuses before it in one case of four."""
    rule = rule_of(maker.row, port)
    if rule is None or value.dtype != ir.DataType.FLOAT:
        return value
    if maker.row.fuses and maker.w.outside is None and maker.w.flip(4):
        wanted = maker.w.pick(maker.row.fuses)
        low, high = (0.0, None) if wanted.op == "Relu" else (wanted.low, wanted.high)
        ignored: dict[str, Array] = {}
        bounds = [
            leaf(model, f"clip{i}", Operand(np.asarray(b, np.float32), True), ignored)
            for i, b in enumerate((low, high))
            if wanted.op == "Clip" and b is not None
        ]
        value = call(model, wanted.op, [value, *bounds], {}, name=f"act{place}").outputs[0]
        real = np.clip(real, low, high)
    grid = maker.grids.get(port) if port in maker.grids else None
    grid = grid or _output_grid(maker, rule, port, real)
    parameters = _parameters(model, f"y{place}", grid)
    return call(model, "QuantizeLinear", [value, *parameters], grid.attributes, name=f"q{place}").outputs[0]


def _output_grid(maker: Maker, rule: PortRule, port: str, real: Array) -> Grid:
    """What spans the result; fixed, or shared with an input, where the row says so."""
    first = next(iter(maker.row.same_scale), None)
    shared = first is not None and first in maker.grids and port in maker.row.same_scale
    fixed = rule.scale is not None or rule.zp is not None or shared or maker.w.outside is not None
    if fixed or rule.symmetric or real.ndim == 0:
        return maker.grid(port, rule, real, False)
    dtype = maker.dtype(port, rule)
    finite = real[np.isfinite(real)]
    low, high = min(float(finite.min(initial=0.0)), 0.0), max(float(finite.max(initial=0.0)), 0.0)
    if dtype == "int16":
        return Grid(dtype, np.asarray(max(-low, high, maker.least) * 1.03 / 32767, np.float32))
    if dtype not in ("int8", "uint8"):
        raise Impossible(f"no range for {dtype}")
    # Not the very range: results at whole ratios of scales are ties, which no two runtimes round alike.
    scale = max(high - low, maker.least) * float(maker.w.draws.rng.uniform(1.01, 1.1)) / 255
    lowest = -128 if dtype == "int8" else 0
    return Grid(
        dtype, np.asarray(scale, np.float32), int(np.clip(round(lowest - low / scale), lowest, lowest + 255))
    )
