"""Layer by layer from the inputs: new codes and biases for the products of a Q/DQ graph, from what the layers
before them have become.

At each product an algorithm offers candidates (codes and a shift of the bias, per output channel); those rows of
the calibration data that it has not seen decide, channel by channel, and rounding to nearest stays where nothing
is better on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.origin import merged_origin, set_origin
from tapeout.compiler.schemes import levels
from tapeout.passes.quantization.attended import attended, counting
from tapeout.passes.quantization.products import Product, product
from tapeout.passes.quantization.walk import Walk

Array = np.ndarray[Any, Any]

# Rows of all samples together that one product is fitted on, and the inputs beyond which it is left alone.
ROWS = 4096
WIDEST = 4096
# One sample in so many is held out; where there are fewer samples, one row.
HELD_OUT = 5
# Samples that are walked with.
SAMPLES = 64
# Inputs are rounded to so many steps of their largest magnitude: sums of their products are then exact in float64,
# in whatever order a machine adds them.
STEPS = 2**13
# A candidate must be better than rounding by this share to be taken.
MARGIN = 1e-2
# What the samples of one piece may hold, in bytes.
SAMPLE_BYTES = 400 << 20


class Problem(NamedTuple):
    """One group of a product: `weight` [O, K] in steps of the input, `scale` [O] of its codes; rows [R, K] of the
    inputs in integers, as the float model has them and as the quantized model makes them."""

    weight: Array
    codes: Array
    scale: Array
    highest: int
    wanted: Array
    inputs: Array
    out: Array  # which rows are held out


class Candidate(NamedTuple):
    """Codes [O, K]; the bias is chosen so that the outputs' means are kept, where `keep_mean`."""

    codes: Array
    keep_mean: bool


class Algorithm(Protocol):
    """What offers candidates for a problem."""

    @property
    def name(self) -> str: ...

    def offer(self, problem: Problem, /) -> Iterable[Candidate]: ...


class Edit(NamedTuple):
    """New codes of a product (None: as they are), and what is added to its bias [O]."""

    node: str
    codes: Array | None
    shift: Array


@dataclass
class Found:
    """What became of one product: its error on held-out rows, as a share of its output's variance, by rounding to
    nearest and afterwards."""

    node: str
    before: float
    after: float
    changed: int
    channels: int


@dataclass
class Fit:
    """Fits the products of `quantized`, a Q/DQ graph made of `source`, on `feeds`."""

    source: ir.Model
    quantized: ir.Model
    feeds: Sequence[Mapping[str, Array]]
    algorithms: Sequence[Algorithm]
    rows: int = ROWS
    found: list[Found] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    _read: Sequence[Array] = ()

    def run(self) -> int:
        """Fit them all in place; the number of products that changed. `edits` tells what was done."""
        feeds = spread(self.feeds, min(SAMPLES, self._samples()))
        theirs = {n.name: n for n in self.source.graph}
        self._read = attended(self.source, feeds)
        wanted, made = Walk(self.source, feeds), Walk(self.quantized, feeds)
        count = 0
        for node in list(self.quantized.graph):
            found = product(node)
            other = theirs.get(node.name)
            if found is None or found.scale is None or other is None or not self._fits(found):
                continue
            wanted.until(other)
            made.until(node)
            assert other.inputs[0] is not None and node.inputs[0] is not None
            count += self._fit(found, other, wanted.values(other.inputs[0]), made.values(node.inputs[0]))
        return count

    def _samples(self) -> int:
        """How many samples can be held at once."""
        sizes = [
            4 * int(np.prod([d if isinstance(d, int) else 1 for d in g.dims(v) or ()], dtype=np.int64))
            for n in self.source.graph
            for v in n.outputs
        ]
        return max(4, int(SAMPLE_BYTES // max(3 * max(sizes, default=1), 1)))

    @staticmethod
    def _fits(found: Product) -> bool:
        shape = g.static_dims(found.weight)
        if shape is None or found.weight.const_value is None:
            return False
        bias = found.node.inputs[2] if len(found.node.inputs) > 2 else None
        stored = None if bias is None else bias.producer()
        real = g.is_constant(bias)  # kernels of the target add it in floats
        if (
            bias is not None
            and not real
            and (stored is None or stored.op_type != "DequantizeLinear" or g.only_use(bias) is None)
        ):
            return False
        return int(np.prod(shape[1:], dtype=np.int64)) <= WIDEST * (1 if found.groups == 1 else found.groups)

    def _fit(self, found: Product, other: ir.Node, wanted: Sequence[Array], made: Sequence[Array]) -> bool:
        assert found.scale is not None and found.weight.const_value is not None
        codes = found.weight.const_value.numpy()
        scale = found.scale.const_value.numpy().astype(np.float64)  # type: ignore[union-attr]
        floats = self._floats(other, codes, scale)
        share = max(1, -(-self.rows // len(made)))
        pieces = []
        for i, (x, y) in enumerate(zip(wanted, made, strict=True)):
            read = self._read[i] if self._read else None
            both = (counting(x, read), counting(y, read))
            pieces.append(tuple(found.rows(each, codes.shape, share, i) for each in both))
        theirs, ours = (np.concatenate([p[k] for p in pieces]) for k in (0, 1))
        step = max(float(np.abs(theirs).max(initial=0)), float(np.abs(ours).max(initial=0))) / STEPS or 1.0
        theirs, ours = (np.rint(a.astype(np.float64) / step) for a in (theirs, ours))
        owner = np.repeat(np.arange(len(pieces)), [len(p[0]) for p in pieces])
        out = (owner if len(pieces) >= HELD_OUT else np.arange(len(ours))) % HELD_OUT == HELD_OUT - 1
        weights, held = found.matrix(floats), found.matrix(codes.astype(np.float64))
        scales = scale.reshape(found.groups, -1)
        highest = levels(found.weight.dtype)[1]  # type: ignore[arg-type]
        new, shift = np.empty_like(held), np.zeros(scales.shape)
        before = after = power = 0.0
        changed = 0
        for k in range(found.groups):
            problem = Problem(weights[k], held[k], scales[k], highest, theirs[:, k], ours[:, k], out)
            new[k], shift[k], errors = solve(problem, self.algorithms)
            before, after, power = before + errors[0], after + errors[1], power + errors[2]
            changed += int(errors[3])
        power = max(power, 1e-30)
        self.found.append(Found(found.node.name or "", before / power, after / power, changed, scale.size))
        if not changed:
            return False
        tensor = np.ascontiguousarray(new.reshape(codes.shape)).astype(codes.dtype)
        edit = Edit(
            found.node.name or "", None if np.array_equal(tensor, codes) else tensor, shift.reshape(-1) * step
        )
        self.edits.append(edit)
        apply(self.quantized, found.node, edit)
        return True

    @staticmethod
    def _floats(other: ir.Node, codes: Array, scale: Array) -> Array:
        """The weight that the codes stand for, from the float graph."""
        cast = g.producer(other.inputs[1], "Cast")
        array = g.constant(other.inputs[1] if cast is None else cast.inputs[0])
        if array is None or array.shape != codes.shape:
            return codes * scale.reshape(-1, *[1] * (codes.ndim - 1))
        return array.astype(np.float64)


def solve(
    problem: Problem, algorithms: Sequence[Algorithm]
) -> tuple[Array, Array, tuple[float, float, float, int]]:
    """The best codes [O, K] and shift of the bias [O] (in steps of the input), with the squared errors on
    held-out rows before and after, the variance there, and how many channels changed."""
    out = problem.out
    seen = problem._replace(wanted=problem.wanted[~out], inputs=problem.inputs[~out])
    mean_wanted, mean_made = seen.wanted.mean(0), seen.inputs.mean(0)
    target = problem.wanted[out] @ problem.weight.T
    scale = problem.scale

    def error(codes: Array, shift: Array) -> Array:
        real = codes * scale[:, None]
        return np.asarray(((problem.inputs[out] @ real.T + shift - target) ** 2).sum(0))

    best, moved = np.array(problem.codes), np.zeros(len(scale))
    least = error(best, moved)
    before = least.copy()
    for algorithm in algorithms:
        for codes, keep_mean in algorithm.offer(seen):
            shift = moved * 0
            if keep_mean:
                shift = problem.weight @ mean_wanted - (codes * scale[:, None]) @ mean_made
            found = error(codes, shift)
            better = found < least * (1 - MARGIN)
            best[better], moved[better], least[better] = codes[better], shift[better], found[better]
    changed = int(np.count_nonzero((best != problem.codes).any(1) | (moved != 0)))
    power = float(((target - target.mean(0)) ** 2).sum())
    return best, moved, (float(before.sum()), float(least.sum()), power, changed)


def apply(model: ir.Model, node: ir.Node, edit: Edit) -> None:
    """Carry out `edit` at the quantized product `node`."""
    found = product(node)
    assert found is not None
    if edit.codes is not None:
        found.weight.const_value = ir.tensor(edit.codes, dtype=found.weight.dtype, name=found.weight.name)
    shift_bias(model, node, edit.shift)


def shift_bias(model: ir.Model, node: ir.Node, shift: Array) -> None:
    """Add `shift` [O] to the bias of a quantized product: to the numbers where it is real, else in codes of int32 with
    the scale of X times that of W; a product without a bias gets one."""
    if not shift.any():
        return
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    graph = model.graph
    numbers = g.constant(bias)
    if bias is not None and numbers is not None:
        moved = (numbers.astype(np.float64) + shift).astype(numbers.dtype)
        node.replace_input_with(2, g.add_constant(graph, moved, bias.name or "bias"))
        return
    if bias is not None:
        stored = bias.producer()
        assert stored is not None
        codes, scale = (g.constant(v) for v in stored.inputs[:2])
        assert codes is not None and scale is not None
        new = bounded(codes.astype(np.float64) + np.rint(shift / scale.astype(np.float64)))
        held = stored.inputs[0]
        assert held is not None
        if g.only_use(held) is stored:
            held.const_value = ir.tensor(new, name=held.name)
        else:
            stored.replace_input_with(0, g.add_constant(graph, new, held.name or "bias"))
        return
    factors = [g.constant(v.producer().inputs[1]) for v in node.inputs[:2]]  # type: ignore[union-attr]
    if any(f is None for f in factors):
        return
    scale = (factors[0].astype(np.float64) * factors[1].astype(np.float64)).astype(np.float32)  # type: ignore[union-attr]
    hint = f"{node.outputs[0].name}_bias"
    values = [
        g.add_constant(graph, bounded(np.rint(shift / scale.astype(np.float64))), hint),
        g.add_constant(graph, scale, f"{hint}_scale"),
        g.add_constant(graph, np.zeros(scale.shape, np.int32), f"{hint}_zero"),
    ]
    real = ir.node("DequantizeLinear", values, {"axis": 0}, name=g.fresh(graph, f"{hint}_dequantize"))
    made = real.outputs[0]
    made.name, made.dtype, made.shape = g.fresh(graph, hint), ir.DataType.FLOAT, ir.Shape(scale.shape)
    set_origin(real, merged_origin([node]))
    graph.insert_before(node, real)
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, made)


def spread(feeds: Sequence[Mapping[str, Array]], count: int) -> list[Mapping[str, Array]]:
    """At most `count` of `feeds`, evenly over all of them."""
    if len(feeds) <= count:
        return list(feeds)
    return [feeds[i * len(feeds) // count] for i in range(count)]


def bounded(codes: Array) -> Array:
    """`codes` as int32."""
    return np.asarray(np.clip(codes, -(2**31) + 1, 2**31 - 1)).astype(np.int32)
