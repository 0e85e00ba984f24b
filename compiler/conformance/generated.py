"""Cases made from a declaration: within every row's bounds, on their edges, and just outside each of them."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from tapeout.compiler.conformance.case import MATCH, REFUSED, Array, Case
from tapeout.compiler.conformance.drafts import Built, Draft, Operand, build, call, leaf
from tapeout.compiler.conformance.draws import Draws, Impossible, Wish, constraints
from tapeout.compiler.conformance.integers import quantized, wants_integers
from tapeout.compiler.conformance.makers import maker
from tapeout.compiler.conformance.widened import fed, narrow, widened
from tapeout.compiler.declaration import Declaration, Refusal, Row, Tolerance
from tapeout.compiler.declaration.rows import narrowed
from tapeout.compiler.errors import TapeoutError
from tapeout.compiler.ir import functions
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.save import to_bytes, to_proto
from tapeout.compiler.operators import Interface, function_interface, onnx_interface
from tapeout.compiler.reference import evaluate

ATTEMPTS = 40  # drafts tried for one case; a row that takes none of them is reported
RELATIVE = {"float32": 1e-5, "float64": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}
# Where a kernel rounds its activations, one of them may fall on the other side.
FLIP = 1e-2
NARROWED = 100  # a row that narrows another's has its own number in front
DISTINCT = 4  # tries for a case that differs from those before it

# What a maker or a reference may raise at choices that do not go together.
INVALID = (
    Impossible,
    TapeoutError,
    ValueError,
    TypeError,
    LookupError,
    ZeroDivisionError,
    AttributeError,
    OverflowError,
)


@dataclass(frozen=True)
class Origin:
    """What a case was made from: enough to make it again, with its choices changed."""

    op: str
    row: Row
    number: int
    outside: str | None
    choices: tuple[int, ...]


@dataclass(frozen=True)
class Made:
    case: Case
    origin: Origin


class Generator:
    """Cases for the rows of one declaration."""

    def __init__(self, declaration: Declaration, device: str | None = None, seed: int = 0) -> None:
        self.declaration = declaration
        self.device = device
        self.seed = seed

    def rows(self, ops: Sequence[str] | None = None) -> list[tuple[str, Row]]:
        """Every row with its operator; those of a declaration that extends another narrowed from each row of
        the other's that goes with them."""
        found: list[tuple[str, Row]] = []
        for op, rows in self.declaration.rows.items():
            if ops is not None and op not in ops:
                continue
            parents = [] if self.declaration.parent is None else self.declaration.parent.rows.get(op, [])
            common = self.declaration.common(op)
            for row in rows:
                each = [row] if self.declaration.parent is None else list(_merged(parents, row))
                found += [(op, _with_common(r, common)) for r in each]
        return found

    def interface(self, op: str) -> Interface | None:
        known = self.declaration.source.interfaces.get(op)
        if known is not None:
            return known
        if "::" not in op:
            return onnx_interface(op)
        domain, _, name = op.rpartition("::")
        function = functions.DECLARED.get((domain, name, ""))
        return None if function is None else function_interface(function)

    # --- inside -----------------------------------------------------------------------------------------------

    def inside(self, op: str, row: Row, number: int, choices: Sequence[int] | None = None) -> Made | None:
        """A case that `row` takes; None where ATTEMPTS drafts give none. `choices` replays one case."""
        for attempt in range(ATTEMPTS if choices is None else 1):
            draws = Draws(self._seed(op, row, number, attempt, ""), choices, number + attempt)
            try:
                built = self._built(op, row, Wish(draws, row))
                _fed(built)
                acceptance = self.declaration.accept(built.model)
                if acceptance.refused:
                    continue
                taken = next(r for n, r in acceptance.placed if n is built.node)
                if not self._own(row, taken):
                    continue
                case = self._case(op, row, number, built, taken)
            except INVALID:
                continue
            return Made(case, Origin(op, row, number, None, tuple(draws.made)))
        return None

    def _own(self, row: Row, taken: Row) -> bool:
        """Whether it is `row` that takes the node, not another of the operator."""
        index = row.index if self.declaration.parent is None else row.index % NARROWED
        return (taken.op, taken.file, taken.index) == (row.op, row.file, index)

    def _built(self, op: str, row: Row, wish: Wish) -> Built:
        draft = maker(op)(wish, op)
        interface = self.interface(op)
        if interface is None:
            raise Impossible(f"{op} is not known")
        draft = _folded(draft, row.exact)
        if wants_integers(row) and not op.endswith(("QuantizeLinear", "DequantizeLong")):
            return quantized(wish, row, draft, interface)
        return build(draft)

    def _case(self, op: str, row: Row, number: int, built: Built, taken: Row) -> Case:
        expected = results(built.model, built.inputs)
        if any(_beyond(a, row.exact) for a in expected.values()):
            raise Impossible("a result that the row does not promise")
        coded = any(r.dtypes for r in taken.ports.values())
        # A kernel in real numbers between integers: what it rounds otherwise may fall on the other side, and
        # interpolation between codes falls on halves often.
        bound = taken.bound if coded else Tolerance(1, 0.3) if wants_integers(row) else None
        kinds = {v.dtype.name for v in built.inputs.values()} | {v.dtype.name for v in expected.values()}
        tolerance = max((RELATIVE[k] for k in kinds if k in RELATIVE), default=0.0)
        if any(limit.name == "activations.rounded" for limit in taken.limits):
            tolerance = max(tolerance, FLIP)
        return Case(
            name=f"{_slug(op)}-{_number(row)}-{number:03}",
            op=op,
            model=to_bytes(built.model),
            inputs=built.inputs,
            outputs=expected,
            level="generated",
            expects=MATCH,
            legalized=True,
            device=self.device,
            relative=tolerance,
            quanta=None if bound is None else bound.quanta,
            rate=1.0 if bound is None else bound.rate,
            origin=taken.where,
            stored=coded,
        )

    # --- outside ----------------------------------------------------------------------------------------------

    def outside(
        self, op: str, row: Row, key: str, number: int, choices: Sequence[int] | None = None
    ) -> Made | None:
        """A case that no row takes, made to break `key` of `row` and nothing else."""
        for attempt in range(ATTEMPTS // 2 if choices is None else 1):
            draws = Draws(self._seed(op, row, number, attempt, key), choices)
            try:
                built = self._built(op, row, Wish(draws, row, key))
                answer = self.declaration.match(built.node, built.model.functions)
                if not isinstance(answer, Refusal):
                    continue
                results(built.model, built.inputs)  # a valid model, not nonsense
                if any(v.dtype is None for n in built.model.graph for v in n.outputs):
                    continue  # of types that ONNX does not allow
                model = to_bytes(built.model)
            except INVALID:
                continue
            name = f"{_slug(op)}-{_number(row)}-{key}-{number:03}"
            case = Case(
                name, op, model, built.inputs, {}, level="refused", expects=REFUSED, legalized=True,
                device=self.device, origin=f"{row.where}, {key}",
            )  # fmt: skip
            return Made(case, Origin(op, row, number, key, tuple(draws.made)))
        return None

    def again(self, origin: Origin, choices: Sequence[int]) -> Made | None:
        """The case of `origin` with other choices."""
        if origin.outside is None:
            return self.inside(origin.op, origin.row, origin.number, choices)
        return self.outside(origin.op, origin.row, origin.outside, origin.number, choices)

    def _seed(self, op: str, row: Row, number: int, attempt: int, key: str) -> list[int]:
        words = zlib.crc32(f"{op} {_number(row)} {key}".encode())
        return [self.seed, words, number, attempt]


def inside(
    generator: Generator, count: int, ops: Sequence[str] | None = None
) -> Iterator[Made | tuple[str, Row]]:
    """About `count` cases, as many for each row; a row that takes no draft is given in place of one.

    What rows cannot give (an operator with one possible case) others give more of.
    """
    rows = generator.rows(ops)
    share = max(1, -(-count // max(len(rows), 1)))
    made, spent = 0, dict.fromkeys(range(len(rows)), False)
    seen: set[int] = set()
    for number in range(8 * share):
        for index, (op, row) in enumerate(rows):
            if spent[index] or made >= count:
                continue
            found = _new(generator, op, row, number, seen)
            if found is None:
                spent[index] = True
                if number == 0:
                    yield op, row
                continue
            made += 1
            yield found
        if made >= count or all(spent.values()):
            return


def _new(generator: Generator, op: str, row: Row, number: int, seen: set[int]) -> Made | None:
    """A case that is not among those seen."""
    for retry in range(DISTINCT):
        found = generator.inside(op, row, number + 1000 * retry)
        if found is None:
            return None
        digest = zlib.crc32(found.case.model + b"".join(a.tobytes() for a in found.case.inputs.values()))
        if digest not in seen:
            seen.add(digest)
            return replace(found, case=replace(found.case, name=f"{found.case.name}"))
    return None


def outside(generator: Generator, count: int, ops: Sequence[str] | None = None) -> Iterator[Made]:
    """Cases just outside each constraint of each row, about `count` in all; a constraint that cannot be broken
    alone (what other rows take) gives none."""
    keys = [(op, row, key) for op, row in generator.rows(ops) for key in constraints(row)]
    made = 0
    spent: set[int] = set()
    for number in range(max(1, 4 * -(-count // max(len(keys), 1)))):
        for index, (op, row, key) in enumerate(keys):
            if made >= count or index in spent:
                continue
            found = generator.outside(op, row, key, number)
            if found is None:
                spent.add(index)
                continue
            made += 1
            yield found


def _fed(built: Built) -> None:
    """Something to feed where all operands are constants: a sum with an input behind the node."""
    if built.inputs:
        return
    (value,) = built.node.outputs
    shape = g.static_dims(value)
    if shape is None or value.dtype is None or not value.dtype.is_floating_point() or len(shape) > 6:
        raise Impossible("nothing to feed")
    array = np.zeros(shape, value.dtype.numpy())
    other = leaf(built.model, "beside", Operand(array), built.inputs)
    made = call(built.model, "Add", [value, other], {}, name="fed")
    built.model.graph.outputs[:] = made.outputs


def results(model: ir.Model, inputs: dict[str, Array]) -> dict[str, Array]:
    """The outputs of a model in ONNX Runtime, in their declared types: bfloat16 is rounded from float32."""
    proto, given = to_proto(model), inputs
    if narrow(proto):
        proto, given = widened(proto), fed(inputs)
    names = [v.name or "" for v in model.graph.outputs]
    with np.errstate(all="ignore"):
        found = evaluate(proto, given, names, threads=1)
    return {v.name or "": _typed(found[v.name or ""], v) for v in model.graph.outputs}


def _typed(array: Array, value: ir.Value) -> Array:
    """`array` as `value` declares it: ONNX Runtime hands out 8-bit floats as bytes."""
    if value.dtype is None or array.dtype == value.dtype.numpy():
        return array
    wanted = value.dtype.numpy()
    if value.dtype == ir.DataType.BFLOAT16:
        return array.astype(wanted)
    return array.view(wanted) if array.dtype == np.uint8 and wanted.itemsize == 1 else array


def _beyond(array: Array, exact: Mapping[str, int]) -> bool:
    """Whether an integer leaves the magnitude that a row promises."""
    bits = exact.get(array.dtype.name)
    return bits is not None and bool(np.any(np.abs(array.astype(np.float64)) >= 2.0**bits))


def _folded(draft: Draft, exact: Mapping[str, int]) -> Draft:
    """The draft with integers within the magnitude that a row promises."""
    made: list[Operand | None] = []
    for operand in draft.operands:
        if operand is not None and _beyond(operand.array, exact):
            span = np.array(2 ** exact[operand.array.dtype.name], operand.array.dtype)
            operand = replace(operand, array=np.asarray(np.fmod(operand.array, span)))
        made.append(operand)
    return replace(draft, operands=made)


def _merged(parents: Sequence[Row], own: Row) -> Iterator[Row]:
    """What `own` leaves of each row that it narrows, where their types go together."""
    for parent in parents:
        made = narrowed(parent, own)
        both = {**parent.ports, **own.ports}
        lost = False
        for name in both:
            first = parent.ports.get(name) or parent.ports.get("*")
            second = own.ports.get(name) or own.ports.get("*")
            if second is not None and second.dtypes and (first is None or not first.dtypes):
                lost = True  # integers are wanted where the other computes reals
            if first is not None and second is not None and first.dtypes and second.dtypes:
                lost = lost or not set(first.dtypes) & set(second.dtypes)
        if not lost:
            yield replace(made, index=own.index * NARROWED + parent.index)


def _with_common(row: Row, common: Sequence[Row]) -> Row:
    """The row with what holds for every row of its operator."""
    for shared in common:
        row = replace(
            row,
            types={**shared.types, **row.types},
            rank={**shared.rank, **row.rank},
            limits=(*row.limits, *(limit for limit in shared.limits if limit not in row.limits)),
            exact={**shared.exact, **row.exact},
        )
    return row


def _slug(op: str) -> str:
    return re.sub(r"\W+", "-", op.removeprefix("tapeout::")).lower()


def _number(row: Row) -> str:
    return f"{row.index}"
