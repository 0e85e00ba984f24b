"""Normalizations that exporters spell out, as one operator, read as polynomials.

All spellings of a formula are one rule (x centred once or twice, squares as products or powers, divided or
multiplied by a reciprocal root, scale and shift outside or distributed).

With m = mean(x) and v = mean((x - m)^2) over the same axes, r = 1 / sqrt(v + eps):

    (x - m) r g + b, over the last axes                 -> LayerNormalization(x, g, b)
    (x - m) r g + b, over all axes after the channels   -> InstanceNormalization(x, g, b)
    (x - m) r g + b, over all axes but the batch        -> GroupNormalization(x, g, b, num_groups=1)
    x / sqrt(mean(x^2) + eps) g, over the last axes     -> RMSNormalization(x, g)
    x / sqrt(sum(x^2)), over one axis                   -> LpNormalization(x, p=2)
    Norm(x, g, b) * s + t                               -> Norm(x, g s, b s + t)
    Reshape(Norm(Reshape(x, [N, G, ...])))              -> GroupNormalization(x, num_groups=G)

Equal up to rounding for finite x. LpNormalization gives 0 where the spelled form divides 0 by 0. A root that
is clamped from below or has an epsilon added is no LpNormalization and stays spelled out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Builder, NodeRule, Rewrite
from tapeout.passes.fusion.affine import LIMIT, Array, affine
from tapeout.passes.fusion.algebra import (
    ARITHMETIC,
    Atom,
    Monomial,
    Polynomial,
    Reader,
    Region,
    RegionRule,
    call,
    equal,
    monomial,
    upstream,
)

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_THROUGH = ARITHMETIC | {"Sqrt", "ReduceMean", "ReduceSum", "ReduceL2", "GlobalAveragePool"}


@dataclass(frozen=True)
class Reduction:
    """`node` reduces `x` over `axes` (counted from the front), keeping them as 1."""

    node: ir.Node
    kind: str  # "mean", "sum" or "l2"
    x: ir.Value
    axes: tuple[int, ...]


def reduction(value: ir.Value | None) -> Reduction | None:
    """What `value` is a mean, sum or euclidean length of, its reduced axes kept."""
    node = g.producer(value, "ReduceMean", "ReduceSum", "ReduceL2", "GlobalAveragePool")
    if node is None or node.inputs[0] is None:
        return None
    x = node.inputs[0]
    rank = g.rank(x)
    if rank is None:
        return None
    if node.op_type == "GlobalAveragePool":
        return Reduction(node, "mean", x, tuple(range(2, rank)))
    axes = g.constant(node.inputs[1], 16) if len(node.inputs) > 1 else None
    if axes is None or axes.size == 0 or not g.attribute(node, "keepdims", 1):
        return None
    kind = {"ReduceMean": "mean", "ReduceSum": "sum", "ReduceL2": "l2"}[node.op_type]
    return Reduction(node, kind, x, tuple(sorted(int(a) % rank for a in axes)))


def _squares(found: Polynomial | None) -> bool:
    return found is not None and len(found) == 1


def _split(found: Polynomial, atoms: tuple[Atom, ...]) -> tuple[float, list[ir.Value]] | None:
    """The only term of `found` with all of `atoms`: its coefficient and its other factors, all constants."""
    terms = [(key, number) for key, number in found.items() if atoms[0] in key]
    if len(terms) != 1:
        return None
    key, rest = terms[0][0], list(terms[0][0])
    for atom in atoms:
        if atom not in rest:
            return None
        rest.remove(atom)
    if any(a[0] != "value" or not g.is_constant(a[1]) for a in rest):
        return None
    return found[key], [a[1] for a in rest]


def _product(number: float, values: list[ir.Value]) -> Array | None:
    """The float64 product of a number and constants."""
    result = np.asarray(number, np.float64)
    for v in values:
        array = g.constant(v, LIMIT)
        if array is None:
            return None
        result = result * array.astype(np.float64)
    return result


def _constant_part(found: Polynomial, used: list[Monomial]) -> Array | None:
    """The float64 sum of the terms of `found` that are not in `used`, all constants."""
    total: Array = np.zeros(())
    for key, number in found.items():
        if key in used:
            continue
        if any(a[0] != "value" or not g.is_constant(a[1]) for a in key):
            return None
        part = _product(number, [a[1] for a in key])
        if part is None:
            return None
        total = total + part
    return total


class SpelledNormalization(RegionRule):
    """(x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * g + b -> LayerNormalization and its kin;
    x / sqrt(mean(x^2) + eps) * g -> RMSNormalization"""

    ops = ("Add", "Sub", "Mul", "Div")

    def find(self, node: ir.Node) -> Region | str | None:
        if node.outputs[0].dtype not in FLOATS:
            return None
        region = upstream(node.outputs[0], _THROUGH, limit=32)
        means = [r for n in region for r in [reduction(n.outputs[0])] if r is not None and r.kind == "mean"]
        for mean in means:
            for x in _factors(mean.x):
                found = self._normalized(node, x, mean)
                if found is not None:
                    return found
        return None

    def _normalized(self, node: ir.Node, x: ir.Value, last: Reduction) -> Region | str | None:
        """`node` as a normalization of x whose `last` mean is that of squares."""
        reader = Reader([x])
        found = reader.read(node.outputs[0])
        roots = {a for key in found or () for a in key if a[0] == "rsqrt"}
        if found is None or len(roots) != 1:
            return None
        (root,) = roots
        variance = reader.read(root[1])
        if variance is None or variance.keys() != {(), monomial(last.node.outputs[0])}:
            return None
        if abs(variance[monomial(last.node.outputs[0])] - 1.0) > 1e-6 or variance[()] < 0:
            return None
        epsilon = variance[()]
        squares = reader.read(last.x)
        scale = _split(found, (("value", x), root))
        if scale is None or g.rank(x) != g.rank(node.outputs[0]):
            return None
        used = [monomial(x, root, *scale[1])]
        nodes = (*reader.nodes, last.node)
        if equal(squares, {monomial(x, x): 1.0}):
            if len(found) != 1:
                return None
            return _rms(node, x, last.axes, epsilon, _product(*scale), nodes)
        means = [
            r for a in {a for key in squares or () for a in key} for r in [reduction(a[1])] if r is not None
        ]
        centre = next((r for r in means if r.kind == "mean" and r.x is x and r.axes == last.axes), None)
        if centre is None:
            return None
        m = centre.node.outputs[0]
        if not equal(squares, {monomial(x, x): 1.0, monomial(x, m): -2.0, monomial(m, m): 1.0}):
            return None
        minus = _split(found, (("value", m), root))
        if minus is None or {id(v) for v in minus[1]} != {id(v) for v in scale[1]}:
            return None
        if abs(minus[0] + scale[0]) > 2e-6 * abs(scale[0]):
            return None
        shift = _constant_part(found, [*used, monomial(m, root, *scale[1])])
        factor = _product(*scale)
        if shift is None or factor is None:
            return None
        return _centred(node, x, last.axes, epsilon, factor, shift, (*nodes, centre.node))


def _factors(square: ir.Value) -> list[ir.Value]:
    """The values whose squares `square` may be a mean of: x of x * x, of (x - m) * (x - m)."""
    node = g.producer(square, "Mul", "Pow")
    if node is None or node.inputs[0] is None:
        return []
    inner = g.producer(node.inputs[0], "Sub")
    # The centred form comes first: it is an RMSNormalization of x - m too.
    return ([] if inner is None or inner.inputs[0] is None else [inner.inputs[0]]) + [node.inputs[0]]


def _trailing(axes: tuple[int, ...], rank: int) -> bool:
    return axes == tuple(range(rank - len(axes), rank))


def _fit(array: Array, dims: tuple[int, ...]) -> Array | None:
    """`array` broadcast to `dims`, or None where it varies along other axes too."""
    shape = array.shape
    while len(shape) > len(dims) and shape[0] == 1:
        shape = shape[1:]
    if len(shape) > len(dims) or any(s not in (1, d) for s, d in zip(shape[::-1], dims[::-1], strict=False)):
        return None
    return np.broadcast_to(array.reshape(shape), dims)


def _numbers(shape: g.Shape | None, start: int, end: int | None = None) -> tuple[int, ...] | None:
    part = None if shape is None else shape[start:end]
    return None if part is None or not all(isinstance(d, int) for d in part) else tuple(int(d) for d in part)


def _rms(
    node: ir.Node,
    x: ir.Value,
    axes: tuple[int, ...],
    epsilon: float,
    scale: Array | None,
    nodes: tuple[ir.Node, ...],
) -> Region | str | None:
    rank = g.rank(x)
    assert rank is not None
    dims = _numbers(g.dims(x), axes[0])
    if not _trailing(axes, rank):
        return "the axes of the mean are not the last ones"
    if dims is None or scale is None:
        return "the normalized dimensions are not known"
    fitted = _fit(scale, dims)
    if fitted is None:
        return "the scale varies along other axes than the mean"

    def make(op: Builder) -> Any:
        gamma = op.constant(fitted, x.dtype, hint="scale")
        return op.RMSNormalization(x, gamma, axis=axes[0] - rank, epsilon=epsilon)

    return Region(nodes, make)


def _centred(
    node: ir.Node, x: ir.Value, axes: tuple[int, ...], epsilon: float, scale: Array, shift: Array,
    nodes: tuple[ir.Node, ...],
) -> Region | str | None:  # fmt: skip
    shape, rank = g.dims(x), g.rank(x)
    assert rank is not None and shape is not None
    if not _trailing(axes, rank):
        return "the axes of the mean are not the last ones"
    dims = _numbers(shape, axes[0])
    gamma, beta = (None, None) if dims is None else (_fit(scale, dims), _fit(shift, dims))
    # A scale for every element of an image is a weight that nobody wrote: channels are tried first there.
    channels = _numbers(shape, 1, 2)
    perchannel = [None, None]
    if channels is not None and rank >= 3:
        perchannel = [_fit(a, (*channels, *[1] * (rank - 2))) for a in (scale, shift)]  # type: ignore[misc]
    if (
        None not in [None if p is None else 0 for p in perchannel]
        and axes[0] <= 2
        and (axes[0] == 2 or rank > 3)
    ):
        first, second = (np.asarray(p).reshape(-1) for p in perchannel)
        if axes[0] == 2 and (rank > 3 or gamma is None or beta is None):
            return Region(nodes, lambda op: op.InstanceNormalization(
                x, op.constant(first, x.dtype, hint="scale"), op.constant(second, x.dtype, hint="bias"),
                epsilon=epsilon))  # fmt: skip
        if axes[0] == 1:
            return Region(nodes, lambda op: op.GroupNormalization(
                x, op.constant(first, x.dtype, hint="scale"), op.constant(second, x.dtype, hint="bias"),
                epsilon=epsilon, num_groups=1))  # fmt: skip
    if dims is None:
        return "the normalized dimensions are not known"
    if gamma is None or beta is None:
        return "scale or shift vary along other axes than the mean"

    def make(op: Builder) -> Any:
        bias = None if np.all(beta == 0) else op.constant(beta, x.dtype, hint="bias")
        return op.LayerNormalization(
            x, op.constant(gamma, x.dtype, hint="scale"), bias, axis=axes[0] - rank, epsilon=epsilon
        )

    return Region(nodes, make)


class EuclideanNormalization(RegionRule):
    """x / sqrt(sum(x^2)) -> LpNormalization(x, p=2), over one axis"""

    ops = ("Mul", "Div")

    def find(self, node: ir.Node) -> Region | str | None:
        if node.outputs[0].dtype not in FLOATS:
            return None
        region = upstream(node.outputs[0], _THROUGH | {"Max", "Clip"}, limit=16)
        for n in region:
            r = reduction(n.outputs[0])
            if r is None or r.kind == "mean":
                continue
            for x in [r.x] if r.kind == "l2" else _factors(r.x)[-1:]:
                found = self._lengths(node, x, r)
                if found is not None:
                    return found
        return None

    def _lengths(self, node: ir.Node, x: ir.Value, r: Reduction) -> Region | str | None:
        reader = Reader([x])
        length = ("recip" if r.kind == "l2" else "rsqrt", r.node.outputs[0])
        found = reader.read(node.outputs[0])
        if r.kind == "sum" and not equal(reader.read(r.x), {monomial(x, x): 1.0}):
            return None
        if equal(found, {monomial(x, length): 1.0}) and g.rank(x) == g.rank(node.outputs[0]):
            if len(r.axes) != 1:
                return "the length is taken over several axes"
            return Region((*reader.nodes, r.node), call("LpNormalization", x, axis=r.axes[0], p=2))
        last = node.inputs[1] if node.op_type == "Div" and node.inputs[0] is x else None
        if g.producer(last, "Max", "Clip", "Add") is not None:
            return "the length is clamped from below: short vectors differ from LpNormalization's"
        return None


_NORMS = ("LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization")


class ScaleIntoNormalization(NodeRule):
    """Norm(x, g, b) * s + t -> Norm(x, g s, b s + t), s and t constants of the shape of g"""

    ops = ("Mul", "Div", "Add", "Sub")

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        for value in node.inputs[:2]:
            norm = g.producer(value, *_NORMS)
            if norm is None or any(v.uses() for v in norm.outputs[1:]):
                continue
            scale, bias = norm.inputs[1], norm.inputs[2] if len(norm.inputs) > 2 else None
            gamma = g.constant(scale, LIMIT)
            beta = None if bias is None else g.constant(bias, LIMIT)
            channels = norm.op_type in ("InstanceNormalization", "GroupNormalization")
            found = affine(node, 1 if channels else -1)
            if found is None or found.x is not value or gamma is None or (bias is not None and beta is None):
                continue
            if not channels and gamma.ndim != 1:
                return f"{norm.op_type} normalizes several axes"
            if g.only_use(norm.outputs[0]) is not node:
                return f"'{norm.outputs[0].name}' is read elsewhere"
            size = gamma.shape
            new_gamma = np.broadcast_to(gamma.astype(np.float64) * found.scale, size)
            old_beta = np.zeros(size) if beta is None else beta.astype(np.float64)
            new_beta = np.broadcast_to(old_beta * found.scale + found.shift, size)
            if norm.op_type == "RMSNormalization" and np.any(new_beta):
                return "RMSNormalization has no shift"
            op.covers([norm, node])
            inputs: list[Any] = [norm.inputs[0], op.constant(new_gamma, norm.outputs[0].dtype, hint="scale")]
            if norm.op_type != "RMSNormalization" and (bias is not None or np.any(new_beta)):
                inputs.append(op.constant(new_beta, norm.outputs[0].dtype, hint="bias"))
            return op.node(norm.op_type, inputs, {k: v.value for k, v in norm.attributes.items()})[0]
        return None


class GroupNormalization(RegionRule):
    """Reshape(InstanceNormalization(Reshape(x, [N, G, ...]), g, b)) -> GroupNormalization(x, g', b', G), and
    with LayerNormalization over what follows the groups likewise; g' repeats g for the channels of a group"""

    ops = ("Reshape",)

    def find(self, node: ir.Node) -> Region | str | None:
        norm = g.producer(node.inputs[0], "InstanceNormalization", "LayerNormalization")
        before = None if norm is None else g.producer(norm.inputs[0], "Reshape")
        if norm is None or before is None or any(v.uses() for v in norm.outputs[1:]):
            return None
        x, grouped = before.inputs[0], g.dims(norm.inputs[0])
        shape, out = g.dims(x), g.dims(node.outputs[0])
        if x is None or shape is None or grouped is None or len(shape) < 3 or len(grouped) < 3:
            return None
        if shape != out or "?" in shape or shape[0] != grouped[0]:
            return None
        channels, groups = shape[1], grouped[1]
        if not isinstance(channels, int) or not isinstance(groups, int) or channels % groups:
            return None
        scale = g.constant(norm.inputs[1], LIMIT)
        bias = g.constant(norm.inputs[2], LIMIT) if len(norm.inputs) > 2 else np.zeros(())
        if scale is None or bias is None:
            return "scale or bias is computed"
        if norm.op_type == "LayerNormalization":
            if g.attribute(norm, "axis", -1) % len(grouped) != 2:
                return None
            if np.any(scale != scale.reshape(-1)[0]) or np.any(bias != bias.reshape(-1)[0]):
                return "scale or bias vary inside the groups"
            scale, bias = scale.reshape(-1)[:1], bias.reshape(-1)[:1]
        gamma = np.repeat(np.broadcast_to(scale, (groups,)), channels // groups)
        beta = np.repeat(np.broadcast_to(bias, (groups,)), channels // groups)
        epsilon = g.attribute(norm, "epsilon", 1e-5)
        return Region((norm, before, node), lambda op: op.GroupNormalization(
            x, op.constant(gamma, x.dtype, hint="scale"), op.constant(beta, x.dtype, hint="bias"),
            num_groups=groups, epsilon=epsilon))  # fmt: skip


NORMALIZATION = Rewrite(
    "normalization",
    (GroupNormalization(), SpelledNormalization(), EuclideanNormalization(), ScaleIntoNormalization()),
)
