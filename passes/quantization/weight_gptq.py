"""Codes for stored weights by GPTQ, layer by layer, from what the layers before them have become.

    q_k = round(w_k / s_k);  w_j += (q_k s_k - w_k) U[k, j] / U[k, k]  for j > k,   U = chol(inverse(H)), upper

after E. Frantar et al., GPTQ (ICLR 2023), with scales that stay as they were chosen (by the least error weighted with
the inputs' power), the strongest inputs first. Each product gets several candidates, some of which undo what earlier
layers lost; samples that none of them has seen decide, and plain rounding stays where nothing is better on them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from tapeout.compiler.calibration import Calibration
from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Changes
from tapeout.passes.quantization.attended import attended, counting
from tapeout.passes.quantization.codes import COARSE, SHRINKS, Grid, codes, packed, real, storable
from tapeout.passes.quantization.gptq import truncated
from tapeout.passes.quantization.islands import spectral
from tapeout.passes.quantization.moments import DAMP, Moments, Rows
from tapeout.passes.quantization.products import Product
from tapeout.passes.quantization.refined import distances
from tapeout.passes.quantization.walk import Walk
from tapeout.passes.quantization.weights import BITS, StoreWeights, place_of

Array = np.ndarray[Any, Any]

# Rows that a product is fitted on and judged by, all samples together; samples that are read for it.
ROWS = 8192
SAMPLES = 256
# One sample in so many is held out.
HELD_OUT = 5
# Samples that run together where the model's batch is free.
JOINED = 16
# With so many bits plain rounding loses next to nothing: there is nothing to fit.
FINE = 8
# Products with more inputs are left as they are.
WIDEST = 8192
# Inputs are rounded to so many steps of their largest magnitude: sums of their products are then exact in float64,
# in whatever order a machine adds them.
STEPS = 2**13
# Samples that whole models are judged by.
JUDGING = 8
# How often codes are gone through once more.
SWEEPS = 2
# Ways to choose codes: plain, with the bias made good, by GPTQ, and by GPTQ of what undoes earlier losses.
CANDIDATES = ("rounding", "bias", "gptq", "upstream")
# A candidate must be better than rounding by this share to be taken.
MARGIN = 1e-3
# Inputs worked on together.
BLOCK = 64


class Stored(NamedTuple):
    """A product and the codes of its weight: the constants, how they are read, and the float weight [O, ...]."""

    product: Product
    codes: ir.Value
    scale: ir.Value
    grid: Grid
    weight: Array


class Fitted(NamedTuple):
    """What became of one product: its error on held-out rows as a share of its output's variance, by plain
    rounding and by the way that was taken; that way."""

    node: str
    before: float
    after: float
    how: str


@dataclass(frozen=True)
class FitWeights:
    """Store weights as `store` says, then choose codes and scales that make the outputs right on the samples of
    `calibration`. Raises UsageError where that has statistics only."""

    store: StoreWeights
    calibration: Calibration
    name: str = "fit-weights"

    def __call__(self, model: ir.Model) -> Changes:
        source = model.clone()
        done = self.store(model)
        plain = model.clone()
        feeds = list(itertools.islice(self.calibration.feeds(), SAMPLES))
        fit = Fit(source, model, together(model, feeds), spectral(source))
        fit.run()
        if not fit.found:
            return done
        before, after = distances(source, (plain, model), feeds[:: max(1, -(-len(feeds) // JUDGING))])
        if after > before:
            fit.undo()
        model.meta["tapeout.fitted"] = fit.found
        return done


def together(model: ir.Model, feeds: Sequence[Mapping[str, Array]]) -> list[Mapping[str, Array]]:
    """Samples joined along the first axis, some at a time, where the model leaves that free."""
    free = all((d := g.dims(v)) and isinstance(d[0], str) for v in model.graph.inputs)
    alike = len({tuple((k, v.shape) for k, v in f.items()) for f in feeds}) == 1
    size = min(JOINED, len(feeds) // (2 * HELD_OUT))
    if not free or not alike or size < 2:
        return list(feeds)
    parts = [feeds[i : i + size] for i in range(0, len(feeds), size)]
    return [{k: np.concatenate([f[k] for f in part]) for k in part[0]} for part in parts]


@dataclass
class Fit:
    """Fits the stored weights of `model`, which was made of `source`, on `feeds`."""

    source: ir.Model
    model: ir.Model
    feeds: Sequence[Mapping[str, Array]]
    left: frozenset[str] = frozenset()  # nodes that keep plain rounding
    found: list[Fitted] = field(default_factory=list)
    _undo: list[Callable[[], None]] = field(default_factory=list)
    _read: list[Array] = field(default_factory=list)  # positions that count, for each sample
    _same: tuple[Any, Any] | None = None

    def run(self) -> None:
        theirs = {n.name: n for n in self.source.graph}
        self._read = attended(self.source, self.feeds)
        wanted, made = Walk(self.source, self.feeds), Walk(self.model, self.feeds)
        for node in list(self.model.graph):
            other = theirs.get(node.name)
            if other is None or node.name in self.left:
                continue
            held = stored(node, other)
            if held is None:
                continue
            wanted.until(other)
            made.until(node)
            assert other.inputs[0] is not None and node.inputs[0] is not None
            self._fit(held, other.inputs[0], node.inputs[0], (wanted, made))

    def undo(self) -> None:
        """Take back all that was changed."""
        for step in self._undo:
            step()
        self.found = [f._replace(after=f.before, how="rounding") for f in self.found]

    def _fit(self, held: Stored, wanted: ir.Value, made: ir.Value, walks: tuple[Walk, Walk]) -> None:
        product, shape = held.product, held.weight.shape
        key = (wanted, made, product.groups, shape[1:], str(dict(product.node.attributes)))
        if self._same is None or self._same[0] != key:
            self._same = key, self._rows(product, shape, walks[0].values(wanted), walks[1].values(made))
        rows, step = self._same[1]
        weights = product.matrix(held.weight.astype(np.float64))
        new, scales, shift = [], [], []
        before = after = power = 0.0
        names: dict[str, int] = {}
        for k in range(product.groups):
            best = solve(weights[k], held.grid, rows[k])
            new.append(best.codes)
            scales.append(best.scale)
            shift.append(best.shift * step)
            before, after, power = before + best.before, after + best.error, power + best.power
            names[best.how] = names.get(best.how, 0) + 1
        how = max(names, key=lambda n: names[n])
        power = max(power, 1e-30)
        self.found.append(Fitted(product.node.name or "", before / power, after / power, how))
        if set(names) == {"rounding"}:
            return
        array = np.concatenate(new).reshape(shape).astype(np.int8)
        scale = np.concatenate(scales).reshape(g.static_dims(held.scale) or ()).astype(np.float32)
        self._undo.append(functools.partial(_restore, held, held.codes.const_value, held.scale.const_value))
        held.codes.const_value = _named(packed(array, held.grid.dtype), held.codes.name)
        held.scale.const_value = ir.tensor(scale, name=held.scale.name)
        self._move(product.node, np.concatenate(shift))

    def _rows(
        self, product: Product, shape: tuple[int, ...], wanted: Sequence[Array], made: Sequence[Array]
    ) -> tuple[list[Rows], float]:
        """What each group of `product` reads, and the step that integers are multiples of."""
        share = max(1, -(-ROWS // len(made)))
        theirs = [product.rows(self._counting(x, i), shape, share, i) for i, x in enumerate(wanted)]
        ours = [product.rows(self._counting(x, i), shape, share, i) for i, x in enumerate(made)]
        out = [np.full(len(x), i % HELD_OUT == HELD_OUT // 2) for i, x in enumerate(ours)]
        rows, inputs, apart = np.concatenate(theirs), np.concatenate(ours), np.concatenate(out)
        if len(made) < HELD_OUT:
            apart = np.arange(len(rows)) % HELD_OUT == HELD_OUT // 2
        step = max(float(np.abs(rows).max(initial=0)), float(np.abs(inputs).max(initial=0))) / STEPS or 1.0
        rows, inputs = (np.rint(a.astype(np.float64) / step) for a in (rows, inputs))
        return [Rows.of(rows[:, k], inputs[:, k], apart) for k in range(product.groups)], step

    def _counting(self, x: Array, sample: int) -> Array:
        """The rows of `x` at the positions that attention reads; all of `x` where its axes are no positions."""
        return counting(x, self._read[sample]) if self._read else x

    def _move(self, node: ir.Node, shift: Array) -> None:
        """Add `shift` [O] to the bias of a product that has one in floats."""
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        array = g.constant(bias)
        if bias is None or array is None or not shift.any():
            return
        moved = (array.astype(np.float64) + shift).astype(np.float32)
        self._undo.append(functools.partial(node.replace_input_with, 2, bias))
        node.replace_input_with(2, g.add_constant(self.model.graph, moved, bias.name or "bias"))


def stored(node: ir.Node, other: ir.Node) -> Stored | None:
    """`node` as a product by stored codes, `other` being the same node with the float weight."""
    place = place_of(node)
    if place is None or place.rounds is None or place.axis != 0 or "Transpose" in node.op_type:
        return None
    if len(node.inputs) < 2:
        return None
    dequantize = g.producer(node.inputs[1], "DequantizeLinear")
    weight = _floats(other.inputs[1])
    if dequantize is None or weight is None:
        return None
    held, scale = dequantize.inputs[:2]
    if held is None or scale is None or held.dtype is None or (weight.ndim > 4 and node.op_type == "Conv"):
        return None
    if any(u.node is not node for u in dequantize.outputs[0].uses()) or g.only_use(held) is not dequantize:
        return None
    plain = node.op_type == "FullyConnected"
    groups = 1 if plain else int(g.attribute(node, "group", 1))
    size = int(np.prod(weight.shape[1:]))
    if size > WIDEST:
        return None
    block = int(g.attribute(dequantize, "block_size", 0))
    bits = int(held.metadata_props.get(BITS, 0))
    product = Product(node, held, scale, groups, plain or node.op_type != "Conv")
    grid = Grid(held.dtype, bits, block)
    return Stored(product, held, scale, grid, weight) if grid.width < FINE else None


def _floats(value: ir.Value | None) -> Array | None:
    """A constant as float32, stored as that or in half behind Cast."""
    cast = g.producer(value, "Cast")
    array = g.constant(value if cast is None else cast.inputs[0])
    return None if array is None else array.astype(np.float32)


class Choice(NamedTuple):
    """Codes [O, K], their scales, a shift of the bias [O] in steps of the input, and the errors on held-out rows."""

    codes: Array
    scale: Array
    shift: Array
    error: float
    before: float
    power: float
    how: str


def solve(weight: Array, grid: Grid, rows: Rows) -> Choice:
    """The best candidate for `weight` [O, K] by the rows that are held out, then made of all rows."""
    target = rows.wanted_out @ weight.T
    power = float(((target - target.mean(0)) ** 2).sum())
    best, before, error = "rounding", 0.0, 0.0
    for how in CANDIDATES:
        made = candidate(how, weight, grid, rows.seen)
        if made is None:
            continue
        dense = real(made[0], made[1], grid.block).astype(np.float64)
        found = float(((rows.inputs_out @ dense.T + made[2] - target) ** 2).sum())
        if how == "rounding":
            before = error = found
        elif found < error * (1 - MARGIN):
            best, error = how, found
    chosen = candidate(best, weight, grid, rows.all) or candidate("rounding", weight, grid, rows.all)
    assert chosen is not None
    return Choice(*chosen, error, before, power, best)


def candidate(how: str, weight: Array, grid: Grid, moments: Moments) -> tuple[Array, Array, Array] | None:
    """Codes, scales and the shift of the bias [O] by one way to choose them; None where it cannot be gone."""
    single = weight.astype(np.float32)
    if how in ("rounding", "bias"):
        scale = weighted_scales(single, grid, None)
        found = codes(single, scale, grid)
        if how == "rounding":
            return found, scale, np.zeros(len(weight))
    else:
        upper, order = moments.upper, moments.order
        if upper is None or not moments.hessian.any():
            return None
        wanted = weight
        if how == "upstream":
            if not moments.cross.any():
                return None
            change = (weight @ moments.cross)[:, order] @ upper.T @ upper
            wanted = np.empty_like(weight)
            wanted[:, order] = weight[:, order] + truncated(change)
        scale = weighted_scales(wanted.astype(np.float32), grid, np.diag(moments.hessian))
        found = gptq(wanted, moments, scale, grid)
        scale = refined(wanted, found, scale, grid, moments.hessian)
        found = settled(wanted, found, scale, grid, moments.hessian)
        scale = refined(wanted, found, scale, grid, moments.hessian)
    dense = real(found, scale, grid.block).astype(np.float64)
    return found, scale, weight @ moments.mean_wanted - dense @ moments.mean


def refined(weight: Array, found: Array, scale: Array, grid: Grid, hessian: Array) -> Array:
    """The scales that make the least output error with these codes, block by block."""
    size = len(hessian)
    width = grid.block or size
    moments = hessian + DAMP * float(np.mean(np.diag(hessian))) * np.eye(size)
    made = scale.reshape(len(weight), -1).astype(np.float64)
    whole = found.astype(np.float64)
    gap = weight - whole * np.repeat(made, width, 1)
    for i in range(size // width):
        part = slice(i * width, (i + 1) * width)
        here = whole[:, part]
        power = np.einsum("ok,ok->o", here @ moments[part, part], here)
        slope = np.einsum("ok,ok->o", gap @ moments[:, part], here)
        step = np.divide(slope, power, out=np.zeros_like(slope), where=power > 0)
        better = np.clip(made[:, i] + step, 0.7 * made[:, i], 1.4 * made[:, i])
        if grid.block:
            better = storable(better.astype(np.float32)).astype(np.float64)
        gap[:, part] -= here * (better - made[:, i])[:, None]
        made[:, i] = better
    return made.astype(np.float32).reshape(scale.shape)


def weighted_scales(weight: Array, grid: Grid, power: Array | None) -> Array:
    """Scales [O] or [O, K / block] with the least squared error, each input weighted with its `power` [K]."""
    rows, size = weight.shape
    width = grid.block or size
    groups = weight.reshape(rows, -1, width)
    share = np.ones(size) if power is None else power / max(float(power.mean()), 1e-30) + 1e-3
    share = share.reshape(1, -1, width).astype(np.float32)
    plain = np.maximum(np.abs(groups).max(2) / np.float32(grid.highest), np.float32(2.0**-60))
    best, least = plain, np.full(plain.shape, np.inf, np.float32)
    for shrink in SHRINKS if grid.width >= 4 else COARSE:
        tried = plain * np.float32(shrink)
        if grid.block:
            tried = storable(tried)
        steps = groups / tried[:, :, None]
        lost = (np.clip(np.rint(steps), grid.lowest, grid.highest) - steps) * tried[:, :, None]
        error = (lost * lost * share).sum(2)
        better = error < least
        best, least = np.where(better, tried, best), np.where(better, error, least)
    return np.asarray(best if grid.block else best[:, 0])


def settled(weight: Array, found: Array, scale: Array, grid: Grid, hessian: Array) -> Array:
    """Codes after each in turn has taken the best value beside the others, `SWEEPS` times over."""
    size = len(hessian)
    moments = hessian + DAMP * float(np.mean(np.diag(hessian))) * np.eye(size)
    wide = scale[:, None] if not grid.block else np.repeat(scale, grid.block, 1)
    steps = np.ascontiguousarray(np.broadcast_to(wide, weight.shape).T, np.float64)
    made = np.ascontiguousarray(found.T, np.float64)
    slope = moments @ (weight.T - made * steps)
    for _ in range(SWEEPS):
        for start in range(0, size, BLOCK):
            part = slice(start, min(start + BLOCK, size))
            here, moved = slope[part].copy(), np.zeros((part.stop - start, made.shape[1]))
            for k in range(start, part.stop):
                better = made[k] + here[k - start] / (moments[k, k] * steps[k])
                better = np.clip(np.rint(better), grid.lowest, grid.highest)
                change = (made[k] - better) * steps[k]
                made[k] = better
                moved[k - start] = change
                here += moments[part, k, None] * change
            slope += moments[:, part] @ moved
    return np.ascontiguousarray(made.T).astype(np.int8)


def gptq(weight: Array, rows: Moments, scale: Array, grid: Grid) -> Array:
    """Codes int8 [O, K] of `weight` [O, K] for what it reads."""
    upper, order = rows.upper, rows.order
    assert upper is not None
    wide = scale[:, None] if not grid.block else np.repeat(scale, grid.block, 1)
    # One input is one row here: what is worked on lies together.
    steps = np.ascontiguousarray(np.broadcast_to(wide, weight.shape)[:, order].T, np.float64)
    rest = np.ascontiguousarray(weight[:, order].T, np.float64)
    made = np.empty_like(rest)
    size = len(rest)
    for start in range(0, size, BLOCK):
        end = min(start + BLOCK, size)
        lost = np.empty((end - start, rest.shape[1]))
        for k in range(start, end):
            made[k] = np.clip(np.rint(rest[k] / steps[k]), grid.lowest, grid.highest)
            lost[k - start] = (rest[k] - made[k] * steps[k]) / upper[k, k]
            rest[k + 1 : end] -= upper[k, k + 1 : end, None] * lost[k - start]
        rest[end:] -= upper[start:end, end:].T @ lost
    result = np.empty(weight.shape, np.int8)
    result[:, order] = made.T
    return result


def _restore(held: Stored, codes: ir.TensorProtocol | None, scale: ir.TensorProtocol | None) -> None:
    held.codes.const_value, held.scale.const_value = codes, scale


def _named(tensor: ir.TensorProtocol, name: str | None) -> ir.TensorProtocol:
    tensor.name = name
    return tensor
