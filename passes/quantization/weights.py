"""Weights stored as codes, activations real: the weight-only schemes, and those whose kernels round activations.

    op(x, W)       ->  op(x, DequantizeLinear(codes, scale))                      w8, w4, w3, w2, w4g32 ...
    op(x, W)       ->  op(RoundRows(x), DequantizeLinear(codes, scale))           int8-dynamic; blocks, on TFLite
    Gather(T, i)   ->  Gather(DequantizeLinear(codes, scale), i)

Each product, and each table that is gathered from, gets the first of the scheme's forms that the declaration has a
row for. Two kinds keep 8 bits and real activations: products of a spectral front end, whose errors a logarithm makes
large where the signal is small, and rows that a scheme's blocks do not divide. Codes are computed when they are
written, one weight at a time; only scales are computed here.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from tapeout.compiler.declaration import Declaration, Refusal, Row, source_name
from tapeout.compiler.errors import UnsupportedError
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.external import release
from tapeout.compiler.ir.functions import DOMAIN
from tapeout.compiler.ir.origin import merged_origin, set_origin
from tapeout.compiler.recipe import Recipe
from tapeout.compiler.rewriting import Changes, Declined
from tapeout.compiler.schemes import FLOAT32, WEIGHTS, Scheme
from tapeout.passes.quantization.codes import Grid, codes, matrix, packed, scales
from tapeout.passes.quantization.dynamic import NAMES, declare_rounding
from tapeout.passes.quantization.islands import spectral
from tapeout.passes.quantization.quantize import widen
from tapeout.passes.quantization.ranges import source_names
from tapeout.passes.quantization.report import META

Array = np.ndarray[Any, Any]


class Place(NamedTuple):
    """Where an operator reads a weight: the input, the axis of its output channels, and what a kernel that rounds
    its activations does so by (None: there are none). `blocks`: whether the elements of a channel lie along one axis,
    which blocks may divide; `table`: rows are looked up."""

    position: int
    axis: int
    rounds: str | None
    blocks: bool = False
    table: bool = False


PLACES: Mapping[tuple[str, str], Place] = {
    (DOMAIN, "FullyConnected"): Place(1, 0, "rows", blocks=True),
    (DOMAIN, "ConvNHWC"): Place(1, 0, "samples"),
    (DOMAIN, "ConvNDHWC"): Place(1, 0, "samples"),
    (DOMAIN, "ConvTransposeNHWC"): Place(1, 0, "samples"),
    ("", "Conv"): Place(1, 0, "samples"),
    ("", "MatMul"): Place(1, -1, "rows", blocks=True),
    ("", "Gather"): Place(0, 0, None, blocks=True, table=True),
}
# Products of a constant by what is computed, and by one matrix for each of several samples.
LEFT, STACKED = Place(0, -2, None), Place(1, -1, None)

# How many bits of their type codes use, where not all.
BITS = "tapeout.bits"
# A weight with fewer elements stays as it is: its scales and what widens it would outweigh it.
SMALLEST = 1024
# Models with more elements get plain scales: a search through twice a thousand million numbers takes its time.
SEARCHED = 1 << 26


class Form(NamedTuple):
    """One way to store a weight: the codes, and whether the activations are rounded for the kernel."""

    grid: Grid
    rounded: bool


# What stands in for a form that would do harm.
WIDE = Form(Grid(ir.DataType.INT8), False)


def forms(scheme: Scheme, size: int, place: Place) -> Iterator[Form]:
    """The ways in which `scheme` may store a weight with `size` inputs to a channel, the best first."""
    assert scheme.weight is not None
    # Nothing can make up for what a table loses: it uses all bits that it takes.
    bits = 0 if place.table else scheme.bits
    kinds = (True, False) if scheme.dynamic else (False, True)
    if scheme.block and place.blocks and size > scheme.block and size % scheme.block:
        yield WIDE  # a channel of such a length on one scale would be coarser than what was asked for
    for block in dict.fromkeys((scheme.block, 0)):
        if block and (size % block or not place.blocks):
            continue
        for rounds in kinds:
            if not (rounds and place.rounds is None):
                yield Form(Grid(scheme.weight, bits, block), rounds)


@dataclass(frozen=True)
class StoreWeights:
    """Store weights by `scheme`, and by the schemes that rules of `recipe` state for nodes (`only_rules`: by these
    alone), as `declaration` has rows for; with `packed` only where a kernel reads the codes itself."""

    scheme: Scheme
    declaration: Declaration
    recipe: Recipe = field(default_factory=Recipe)
    only_rules: bool = False
    packed: bool = False
    name: str = "store-weights"

    def __call__(self, model: ir.Model) -> Changes:
        if not self.only_rules:
            values = (v for n in model.graph for v in (*n.inputs, *n.outputs) if v is not None)
            self.recipe.check(model.graph, {name for v in values for name in source_names(v)})
        widened = widen(model)
        front = spectral(model)
        declare_rounding(model)
        store = Store(model, self.declaration, packed=self.packed)
        for node, place in readers(model):
            scheme = self._scheme(node)
            if scheme is not None:
                wide = node.name in front and self.recipe.scheme_of(node) is None
                store.put(node, place, scheme, (WIDE,) if wide else ())
        for value, cast in widened.items():
            value.replace_all_uses_with(cast.outputs[0])
        used = {n.op_type for graph in g.graphs(model) for n in graph if n.domain == DOMAIN}
        for name in NAMES.values():
            if name not in used:
                model.functions.pop((DOMAIN, name, ""), None)
        for graph in g.graphs(model):
            g.remove_dead(graph)
        known = model.meta.setdefault(META, {"left": {}, "requantized": []})
        known["left"] = {**known["left"], **store.left}
        if not store.count:
            what = (
                "rules of the recipe that store weights change" if self.only_rules else "scheme '{}' stores"
            )
            raise UnsupportedError(
                f"{what.format(self.scheme.name)} no weight of this model: "
                f"{next(iter(store.left.values()), None) or passed_over(model)}",
                hint="export it without --quantize, or choose another scheme",
                nodes=[source_name(n) for n in store.left][:10],
            )
        declined = tuple(Declined(self.name, n.name or "", why) for n, why in store.left.items())
        return Changes(store.count, declined)

    def _scheme(self, node: ir.Node) -> Scheme | None:
        name = self.recipe.scheme_of(node)
        if name is None:
            return None if self.only_rules else self.scheme
        return WEIGHTS.get(name) if name != FLOAT32 else None


def place_of(node: ir.Node) -> Place | None:
    """Where `node` reads its weight, were it a constant; None for operators that have none."""
    place = PLACES.get((node.domain, node.op_type))
    if place is None or len(node.inputs) <= place.position:
        return None
    if node.op_type == "MatMul":
        if g.is_constant(node.inputs[0]) and not g.is_constant(node.inputs[1]):
            return LEFT
        return place if g.rank(node.inputs[1]) == 2 else STACKED
    return place


def unstored(node: ir.Node, place: Place) -> str | None:
    """Why the weight of `node` cannot be stored as codes, whatever the target takes; None where it can."""
    value = node.inputs[place.position]
    if value is None or not g.is_constant(value):
        stored = g.producer(value, "DequantizeLinear")
        return "are stored as codes already" if stored is not None else "are computed"
    shape = g.static_dims(value)
    if value.dtype != ir.DataType.FLOAT:
        return "are no real numbers" if value.dtype is None else f"have the type {value.dtype.name}"
    if shape is None or len(shape) < 2:
        return "are no matrices"
    if int(np.prod(shape)) < SMALLEST:
        return f"have fewer than {SMALLEST} elements"
    if place.table and int(g.attribute(node, "axis", 0)) % len(shape) != 0:
        return "are looked up along another axis than the first"
    return None


def readers(model: ir.Model) -> list[tuple[ir.Node, Place]]:
    """Every node that reads a weight that may be stored, in order, those in subgraphs too."""
    nodes = ((n, place_of(n)) for graph in g.graphs(model) for n in graph)
    return [(n, place) for n, place in nodes if place is not None and unstored(n, place) is None]


def passed_over(model: ir.Model) -> str:
    """Why a model has no reader of a weight, in words."""
    nodes = ((n, place_of(n)) for graph in g.graphs(model) for n in graph)
    reasons = Counter(why for n, place in nodes if place is not None and (why := unstored(n, place)))
    if not reasons:
        return "it has no product and no table"
    return "of its products and tables " + ", ".join(f"{count} {why}" for why, count in reasons.most_common())


@dataclass
class Store:
    """Puts codes in the place of weights, once for each weight and form."""

    model: ir.Model
    declaration: Declaration
    packed: bool = False
    count: int = 0
    left: dict[ir.Node, str] = field(default_factory=dict)
    _codes: dict[Any, tuple[ir.Value, ir.Value, ir.Value | None]] = field(default_factory=dict)
    _real: dict[Any, ir.Value] = field(default_factory=dict)
    _rounded: dict[Any, ir.Value] = field(default_factory=dict)
    _total: int | None = None

    def put(self, node: ir.Node, place: Place, scheme: Scheme, rather: Sequence[Form] = ()) -> bool:
        """Let `node` read codes in the first form that the declaration takes, those of `rather` before the
        scheme's."""
        weight = node.inputs[place.position]
        assert weight is not None
        shape = g.static_dims(weight)
        assert shape is not None
        size = int(np.prod(shape)) // shape[place.axis]
        reason = "no form of the scheme fits its shape"
        for form in (*rather, *forms(scheme, size, place)):
            refusal = self._try(node, place, weight, form)
            if refusal is None:
                self.count += 1
                return True
            reason = refusal.why()
        self.left[node] = f"scheme {scheme.name}: {reason}"
        return False

    def _try(self, node: ir.Node, place: Place, weight: ir.Value, form: Form) -> Refusal | None:
        real = self._dequantized(node, place, weight, form)
        dequantize = real.producer()
        before = node.inputs[0]
        node.replace_input_with(place.position, real)
        made = [node, dequantize]
        if form.rounded:
            assert place.rounds is not None and before is not None
            rounded = self._rounding(node, before, place.rounds)
            node.replace_input_with(0, rounded)
            made.append(rounded.producer())
        for each in made:
            assert each is not None
            answer = self.declaration.match(each, self.model.functions)
            if each is node and isinstance(answer, Row) and (form.grid.block or self.packed):
                answer = self._as_codes(node, place, answer)
            if isinstance(answer, Refusal):
                node.replace_input_with(place.position, weight)
                if form.rounded:
                    node.replace_input_with(0, before)
                return answer
        return None

    def _as_codes(self, node: ir.Node, place: Place, row: Row) -> Row | Refusal:
        """`row` where its kernel reads codes itself: blocks that something else has to widen gain nothing."""
        call = self.declaration.call(node, self.model.functions)
        port = call.interface.inputs[place.position].name
        if port in row.ports and row.ports[port].dtypes:
            return row
        what = (
            "no kernel takes weights as codes here"
            if self.packed
            else "no kernel takes weights in blocks here"
        )
        return Refusal(node, row.op, self.declaration.label, hint=what)

    def _rounding(self, node: ir.Node, value: ir.Value, kind: str) -> ir.Value:
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        key = (value, kind, graph)
        if key not in self._rounded:
            made = ir.node(NAMES[kind], [value], domain=DOMAIN, name=g.fresh(graph, NAMES[kind]))
            output = made.outputs[0]
            output.name, output.type, output.shape = (
                g.fresh(graph, value.name or "x"),
                value.type,
                value.shape,
            )
            set_origin(made, merged_origin([node]))
            maker = value.producer()
            if maker is not None and maker.graph is graph:
                graph.insert_after(maker, made)
            else:
                graph.insert_before(graph[0], made)
            self._rounded[key] = output
        return self._rounded[key]

    def _dequantized(self, node: ir.Node, place: Place, weight: ir.Value, form: Form) -> ir.Value:
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        key = (weight, place.axis, form.grid, graph)
        if key in self._real:
            return self._real[key]
        stored, scale, zero = self._stored(weight, place.axis, form.grid)
        rank = g.rank(weight) or 2
        axis = place.axis % rank
        attributes = {"axis": axis}
        if form.grid.block:
            attributes = {"axis": 1 - axis, "block_size": form.grid.block}
        made = ir.node("DequantizeLinear", [stored, scale, zero], attributes)
        hint = weight.name or "weight"
        made.name = g.fresh(graph, f"{hint}_dequantize")
        output = made.outputs[0]
        output.name, output.dtype, output.shape = g.fresh(graph, hint), ir.DataType.FLOAT, weight.shape
        set_origin(made, merged_origin([node]))
        graph.insert_before(graph[0], made)
        self._real[key] = output
        return output

    def _stored(self, weight: ir.Value, axis: int, grid: Grid) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        key = (weight, axis, grid)
        if key in self._codes:
            return self._codes[key]
        tensor = weight.const_value
        assert tensor is not None
        shape = tuple(int(d) for d in g.static_dims(weight) or ())
        hint = weight.name or "weight"
        graph = self.model.graph
        scale = scales(matrix(tensor.numpy(), axis), grid, self._search())
        release()
        name = g.fresh(graph, hint)
        lazy = ir.LazyTensor(
            functools.partial(_make, tensor, scale, grid, axis),
            dtype=grid.dtype,
            shape=ir.Shape(shape),
            name=name,
        )
        stored = g.add_constant(graph, lazy, hint)
        if grid.bits:
            stored.metadata_props[BITS] = str(grid.bits)
        held = scale if not grid.block or axis == 0 else scale.T
        values = g.add_constant(graph, np.ascontiguousarray(held), f"{hint}_scale")
        self._codes[key] = stored, values, None
        return self._codes[key]

    def _search(self) -> bool:
        """Whether scales are searched for: where that takes no long time."""
        if self._total is None:
            sizes = {n.inputs[p.position]: n.inputs[p.position] for n, p in readers(self.model)}
            self._total = sum(int(np.prod(g.static_dims(v) or (0,))) for v in sizes)
        return self._total <= SEARCHED


def _make(tensor: ir.TensorProtocol, scale: Array, grid: Grid, axis: int) -> ir.TensorProtocol:
    """The codes of a weight, in its own order of axes."""
    array = tensor.numpy()
    found = codes(matrix(array, axis), scale, grid)
    if axis % array.ndim:
        outer = array.shape[axis]
        rest = [d for i, d in enumerate(array.shape) if i != axis % array.ndim]
        found = np.ascontiguousarray(np.moveaxis(found.reshape(outer, *rest), 0, axis))
    return packed(found.reshape(array.shape), grid.dtype)
