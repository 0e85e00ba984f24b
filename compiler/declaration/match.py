"""Holds a row against a node: every key that does not hold is a violation with what was expected and
found."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.declaration.rows import ANY_PORT, PortRule, Row, either, spell
from tapeout.compiler.ir import graph as g
from tapeout.compiler.operators import Call, Storage, dtype_name, storage, type_name

# How a tensor of a node (an output: True) will be stored.
Plan = Callable[[ir.Value, bool], Storage]


class Kind(Enum):
    """How far a violation puts a node from a row: out of a limit, another case, another kind of tensor."""

    LIMIT = 0
    CASE = 1
    TENSOR = 2


UNKNOWN = "not known before running"
REQUIRED, NOT_TAKEN = "required", "not taken"


@dataclass(frozen=True)
class Violation:
    """One thing that a row demands and a node does not give: what is `found` of `what`, and what is `expected`.
    Of what is there or not, or holds or not, REQUIRED or NOT_TAKEN is expected."""

    what: str
    expected: str
    found: str
    fix: str | None = None
    kind: Kind = Kind.LIMIT

    def as_json(self) -> dict[str, str | None]:
        return {"what": self.what, "expected": self.expected, "found": self.found, "fix": self.fix}

    @property
    def yes_no(self) -> bool:
        return self.expected in (REQUIRED, NOT_TAKEN)

    def text(self, target: str) -> str:
        """ "stride 4, at most 3 on ethos-u55", "tflite needs constant axes"."""
        return sentence((self,), target)


def merged(found: Collection[Violation]) -> list[Violation]:
    """Violations of several ports that are the same otherwise as one: "rank of A, B and C"."""
    groups: dict[tuple[str, ...], list[Violation]] = {}
    for v in found:
        head, of, _ = v.what.rpartition(" of ")
        groups.setdefault((head if of else v.what, of, v.expected, v.found), []).append(v)
    made = []
    for (head, of, _, _), same in groups.items():
        ports = list(dict.fromkeys(v.what.removeprefix(f"{head} of ") for v in same))
        what = f"{head} of {listed(ports)}" if of else head
        made.append(replace(same[0], what=what))
    return made


def sentence(found: Collection[Violation], target: str) -> str:
    """Everything that keeps a node from a row, in words: "stride 4, at most 3; dilation 2, exactly 1 on
    ethos-u55, which needs a constant W"."""
    every = merged(found)
    numbers = [
        f"{v.what} is {UNKNOWN} ({v.expected})" if v.found == UNKNOWN else f"{v.what} {v.found}, {v.expected}"
        for v in every
        if not v.yes_no
    ]
    verbs = []
    needed = [v.what for v in every if v.expected == REQUIRED and v.found != UNKNOWN]
    unknown = [v.what for v in every if v.expected == REQUIRED and v.found == UNKNOWN]
    excess = [v.what for v in every if v.expected == NOT_TAKEN]
    if needed:
        verbs.append(f"needs {listed(needed)}")
    if unknown:
        verbs.append(f"needs {listed(unknown)}, which is {UNKNOWN}")
    if excess:
        verbs.append(f"does not take {listed(excess, 'or')}")
    if not numbers:
        return f"{target} {' and '.join(verbs)}"
    return f"{'; '.join(numbers)} on {target}" + (f", which {' and '.join(verbs)}" if verbs else "")


def listed(words: Sequence[str], last: str = "and") -> str:
    """ "A, B and C"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def violations(row: Row, call: Call, plan: Plan | None = None) -> Iterator[Violation]:
    """Everything of `row` that does not hold for `call`, in the order types, ports, ranks, quantities,
    scales. `plan` says how tensors will be stored that are not quantized yet."""
    yield from _types(row, call)
    for port, rule in row.ports.items():
        yield from _port(port, rule, call, row, plan)
    for port, bound in row.rank.items():
        for name in _named(port, row.rank, call):
            for value in call.values(name):
                rank = g.rank(value)
                expected = bound.broken(rank)
                if expected is not None:
                    yield Violation(
                        f"rank of {name}", expected, _found(rank), bound.fix or row.fix, kind=Kind.TENSOR
                    )
    for limit in row.limits:
        value = limit.measure(call)
        expected = limit.bound.broken(value)
        if expected is not None:
            found = _found(value)
            wanted = limit.bound.equal
            if isinstance(value, bool):
                found, expected = ("present", NOT_TAKEN) if value else ("missing", REQUIRED)
            elif value is None and isinstance(wanted, bool):
                expected = REQUIRED if wanted else NOT_TAKEN
            kind = Kind.LIMIT if limit.bound.equal is None else Kind.CASE
            yield Violation(limit.label, expected, found, limit.bound.fix or row.fix, kind)
    if plan is None:
        yield from _same_scale(row, call)


def in_reals(own: Row, inherited: Row, call: Call) -> Iterator[Violation]:
    """What `own` wants as integers and `inherited`, the row whose kernel computes it, takes as it is in the graph,
    where that is real: between conversions, which `own` looks through."""
    sides = (call.input_values, call.output_values)
    for name, values in ((n, vs) for side in sides for n, vs in side.items()):
        wanted, kernel = own.rule(name), inherited.rule(name)
        if wanted is None or not wanted.dtypes or (kernel is not None and kernel.dtypes):
            continue
        for value in values:
            if value.dtype is not None and value.dtype.is_floating_point():
                yield Violation(
                    f"type of {name}",
                    _must_be(wanted.dtypes),
                    dtype_name(value.dtype) or "",
                    own.fix,
                    Kind.TENSOR,
                )


def distance(found: Collection[Violation]) -> tuple[int, int, int]:
    """How far a node is from a row: the nearest row has the fewest violations. A row for other types or ranks
    is farther than any; among equals, one that a limit keeps away is nearer than one for another case."""
    kinds = [v.kind for v in found]
    return kinds.count(Kind.TENSOR), len(kinds), kinds.count(Kind.CASE)


def _found(value: object) -> str:
    return UNKNOWN if value is None else spell(value)


def _named(port: str, named: object, call: Call) -> list[str]:
    if port != ANY_PORT:
        return [port]
    return list(dict.fromkeys(n for n, _ in call.ports() if n not in named))  # type: ignore[operator]


def _types(row: Row, call: Call) -> Iterator[Violation]:
    formals = (*call.interface.inputs, *call.interface.outputs)
    names = {p.name for p in formals}
    named = {p.name for p in formals if p.name in row.types} | {
        p.name for p in formals if p.variable in row.types and p.variable is not None
    }
    for key, allowed in row.types.items():
        if key in call.interface.variables:
            ports = [p.name for p in formals if p.variable == key and p.name not in row.types]
        elif key in names:
            ports = [key]
        else:  # "*", or "T" of a function, which has no type variables
            ports = [n for n in dict.fromkeys(p.name for p in formals) if n not in named]
        seen: set[str] = set()
        for port in ports:
            for value in call.values(port):
                found = type_name(value)
                if found is None:
                    found = "not known"
                if found not in allowed and found not in seen:
                    seen.add(found)
                    yield Violation(f"type of {port}", _must_be(allowed), found, row.fix, kind=Kind.TENSOR)


def _must_be(names: tuple[str, ...]) -> str:
    return f"must be {either(names)}"


def _port(port: str, rule: PortRule, call: Call, row: Row, plan: Plan | None) -> Iterator[Violation]:
    fix = rule.fix or row.fix
    for name in _named(port, row.ports, call):
        values = call.values(name)
        if not values and rule.optional is False:
            yield Violation(name, REQUIRED, "missing", fix)
        for value in values:
            output = name in call.output_values
            stored = plan(value, output) if plan else storage(value, output=output, fuses=row.fuses)
            yield from _stored(name, rule, stored, call, fix)


def _stored(name: str, rule: PortRule, stored: Storage, call: Call, fix: str | None) -> Iterator[Violation]:
    if rule.role in ("weight", "bias", "const") and not g.is_constant(stored.value):
        yield Violation(f"constant {name}", REQUIRED, "missing", fix)
    if rule.rank is not None:
        rank = g.rank(stored.value)
        expected = rule.rank.broken(rank)
        if expected is not None:
            yield Violation(f"rank of {name}", expected, _found(rank), rule.rank.fix or fix, kind=Kind.TENSOR)
    if rule.dtypes:
        dtype = dtype_name(stored.dtype)
        if dtype not in rule.dtypes:
            yield Violation(
                f"type of {name}", _must_be(rule.dtypes), dtype or "not known", fix, kind=Kind.TENSOR
            )
    if stored.quantized:
        yield from _quantization(name, rule, stored, call, fix)


def _quantization(
    name: str, rule: PortRule, stored: Storage, call: Call, fix: str | None
) -> Iterator[Violation]:
    if stored.axis is not None:
        rank = g.rank(stored.value)
        axis = stored.axis % rank if rank else stored.axis
        if rule.per_tensor:
            yield Violation(f"quantization of {name}", "one scale for the tensor", f"along axis {axis}", fix)
        elif rule.axis is not None and axis != (rule.axis % rank if rank else rule.axis):
            yield Violation(f"quantization axis of {name}", f"exactly {rule.axis}", str(axis), fix)
    zero = _zero_points(stored)
    if rule.symmetric and (zero is None or np.any(zero)):
        yield Violation(f"zero point of {name}", "exactly 0", _array(zero), fix)
    if rule.zp is not None and (zero is None or np.any(zero != rule.zp)):
        yield Violation(f"zero point of {name}", f"exactly {rule.zp}", _array(zero), fix)
    scale = g.constant(stored.scale)
    if rule.scale_above is not None:
        port, times = rule.scale_above
        least = _wanted_scale(port, call)
        if scale is None or least is None or not np.all(scale > least * times):
            found = UNKNOWN if least is None else f"above {float(least.max()) * times:g}"
            yield Violation(f"scale of {name}", found, _array(scale), fix)
    if rule.scale is None:
        return
    wanted = _wanted_scale(rule.scale, call)
    if scale is None or wanted is None or not _close(scale, wanted):
        expected = f"exactly {rule.scale}" if isinstance(rule.scale, float) else f"scale({rule.scale})"
        yield Violation(f"scale of {name}", expected, _array(scale), fix)


def _zero_points(stored: Storage) -> np.ndarray[Any, Any] | None:
    return np.zeros(1, np.int64) if stored.zero_point is None else g.constant(stored.zero_point)


def _array(array: np.ndarray[Any, Any] | None) -> str:
    if array is None:
        return UNKNOWN
    flat = array.reshape(-1)
    return f"{flat[0]:g}" if flat.size == 1 else f"{flat.min():g} to {flat.max():g}"


def _wanted_scale(scale: float | str, call: Call) -> np.ndarray[Any, Any] | None:
    if not isinstance(scale, str):
        return np.asarray([scale], np.float64)
    product = np.ones(1, np.float64)
    for port in scale.split("*"):
        value = call.value(port.strip())
        stored = None if value is None else storage(value)
        factor = g.constant(stored.scale) if stored is not None else None
        if factor is None:
            return None
        product = product * factor.astype(np.float64).reshape(-1)
    return product


def _close(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    a, b = a.astype(np.float64).reshape(-1), b.reshape(-1)
    return (a.size == b.size or 1 in (a.size, b.size)) and bool(np.allclose(a, b, rtol=1e-6, atol=0))


def _same_scale(row: Row, call: Call) -> Iterator[Violation]:
    """All values at the named ports, where quantized, share scale and zero point."""
    seen: list[tuple[str, float | None, int | None]] = []
    for port in row.same_scale:
        for value in call.values(port):
            stored = storage(value, output=port in call.output_values, fuses=row.fuses)
            if stored.quantized and stored.axis is None:
                number, zeros = g.scalar(stored.scale), _zero_points(stored)
                seen.append((port, number, None if zeros is None else int(zeros.reshape(-1)[0])))
    if not seen:
        return
    first = seen[0]
    for port, scale, zero in seen[1:]:
        same = None not in (scale, zero, *first) and zero == first[2]
        if not (same and math.isclose(scale or 0.0, first[1] or 0.0, rel_tol=1e-6)):
            yield Violation(
                f"scale of {port}",
                f"the same as {first[0]} ({first[1]}, {first[2]})",
                f"{scale}, {zero}",
                row.fix,
            )
            return
