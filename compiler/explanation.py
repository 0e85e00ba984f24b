"""What would go where, and why not: an acceptance as text for people and as a JSON object for build
systems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from tapeout.compiler.declaration import Acceptance, Refusal, Row, shown, source_name
from tapeout.compiler.declaration.match import REQUIRED, UNKNOWN
from tapeout.compiler.errors import UnsupportedError
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.origin import origin
from tapeout.compiler.operations import operations
from tapeout.compiler.operators import operator_name

NAMED = 4  # nodes that a group of equal lines names before "and n more"


@dataclass(frozen=True)
class Line:
    """One node: where it goes (`row`), or why not (`refusal`). `operations` are counted with free dimensions
    at 1; `host`: what runs beside the target can take what is refused."""

    name: str
    op: str
    sources: tuple[str, ...]
    operations: int
    row: Row | None = None
    refusal: Refusal | None = None
    host: bool = False

    def as_json(self) -> dict[str, Any]:
        """`lower` is null for a refused node, which has `reasons`, `fixes` and the row that came nearest."""
        made: dict[str, Any] = {
            "node": self.name,
            "sources": list(self.sources),
            "op": self.op,
            "operations": self.operations,
            "lower": self.row.lower if self.row else None,
        }
        if self.refusal is not None:
            made["reasons"] = self.refusal.reasons()
            made["fixes"] = self.refusal.fixes()
            made["nearest_row"] = self.refusal.row.where if self.refusal.row else None
            made["violations"] = [v.as_json() for v in self.refusal.constraints()]
            made["host"] = self.host
        return made


@dataclass(frozen=True)
class Tried:
    """A fix that was tried on nodes that are refused alike, and whether the target takes what came of it."""

    op: str
    nodes: tuple[str, ...]
    words: str
    worked: bool
    reason: str = ""  # why it did not work

    def __str__(self) -> str:
        what = f"{shown(self.op)} {_names(list(self.nodes))}: {self.words}"
        return f"worked: {what}" if self.worked else f"did not help: {what} ({self.reason})"

    def as_json(self) -> dict[str, Any]:
        made = {"op": self.op, "nodes": list(self.nodes), "fix": self.words, "worked": self.worked}
        return made if self.worked else made | {"reason": self.reason}


@dataclass(frozen=True)
class Explanation:
    """All nodes in the graph's order. `hosted`: what the target refuses and a host can take is the host's."""

    target: str
    lines: tuple[Line, ...]
    hosted: bool = False
    tried: tuple[Tried, ...] = ()

    @property
    def placed(self) -> tuple[Line, ...]:
        return tuple(line for line in self.lines if line.refusal is None)

    @property
    def refused(self) -> tuple[Line, ...]:
        return tuple(line for line in self.lines if line.refusal is not None)

    @property
    def share(self) -> float:
        """The share of the operations that the target takes, 0 to 1; of the nodes where nothing is
        computed."""
        total = sum(line.operations for line in self.lines)
        if total:
            return sum(line.operations for line in self.placed) / total
        return len(self.placed) / len(self.lines) if self.lines else 1.0

    def coverage(self) -> str:
        """ "412 of 415 nodes on ethos-u55, 99.7% of the operations; 3 on the CPU: Softmax 'a', 'b', TopK 'c'"."""
        nodes = f"{len(self.placed)} of {len(self.lines)} nodes on {self.target}"
        parts = [f"{nodes}, {percent(self.share)} of the operations"]
        left = [line for line in self.refused if line.host]
        if self.hosted and left:
            parts.append(f"{len(left)} on the CPU: {_listed(left)}")
        rest = len(self.refused) - (len(left) if self.hosted else 0)
        if rest:
            which = "which" if len(left) == rest else f"{len(left)} of which"
            parts.append(
                f"{rest} refused"
                + (f", {which} --fallback host leaves to the CPU" if left and not self.hosted else "")
            )
        return "; ".join(parts)

    @property
    def text(self) -> str:
        """The coverage line, the refusals (equal ones together), and what the rest becomes."""
        parts = self._head()
        if self.placed:
            parts += ["", *_table(("operator", "becomes", "nodes", "operations"), self._summary())]
        return "\n".join(parts)

    @property
    def full_text(self) -> str:
        """As `text`, with every node in order."""
        return "\n".join(
            [*self._head(), "", *_table(("node", "operator", "becomes", "operations"), self._each())]
        )

    def _head(self) -> list[str]:
        refusals = advised(line.refusal for line in self.refused if line.refusal)
        worked = [str(t) for t in self.tried if t.worked]
        rest = len(self.tried) - len(worked)
        counted = (
            [f"{rest} other fixes did not help" if worked else f"none of {rest} fixes helped"] if rest else []
        )
        tried = ["", "tried:", *(f"  {t}" for t in (*worked, *counted))] if self.tried else []
        return [self.coverage() + (":" if refusals else ""), *(f"  {entry}" for entry in refusals), *tried]

    def _each(self) -> list[tuple[str, ...]]:
        return [
            (
                line.name,
                shown(line.op),
                line.row.lower or "taken" if line.row else "REFUSED",
                f"{line.operations:,}",
            )
            for line in self.lines
        ]

    def _summary(self) -> list[tuple[str, ...]]:
        total = sum(line.operations for line in self.lines) or 1
        counts: dict[tuple[str, str], list[int]] = {}
        for line in self.placed:
            entry = counts.setdefault(
                (shown(line.op), (line.row.lower if line.row else None) or "taken"), [0, 0]
            )
            entry[0] += 1
            entry[1] += line.operations
        most = sorted(counts.items(), key=lambda item: (-item[1][1], -item[1][0], item[0]))
        return [(op, lower, str(n), percent(work / total)) for (op, lower), (n, work) in most]

    def as_json(self) -> dict[str, Any]:
        """`share` is of operations; `placement` has every node in order."""
        return {
            "target": self.target,
            "nodes": len(self.lines),
            "placed": len(self.placed),
            "refused": len(self.refused),
            "operations": sum(line.operations for line in self.lines),
            "share": self.share,
            "coverage": self.coverage(),
            **({"tried": [t.as_json() for t in self.tried]} if self.tried else {}),
            "placement": [line.as_json() for line in self.lines],
        }


def percent(share: float) -> str:
    """ "99.7%"; 100% and 0% are said only where they are exact."""
    if share in (0.0, 1.0):
        return f"{share:.0%}"
    return f"{min(max(share * 100, 0.1), 99.9):.1f}%"


def explain(
    acceptance: Acceptance, *, host: Container[ir.Node] = frozenset(), hosted: bool = False
) -> Explanation:
    """The acceptance of a model as a table in the graph's order; `host` are refused nodes that a host can take,
    and does where `hosted`."""
    rows = {id(node): row for node, row in acceptance.placed}
    refusals = {id(r.node): r for r in acceptance.refused}
    return Explanation(
        acceptance.target,
        tuple(
            Line(
                source_name(node),
                operator_name(node),
                origin(node),
                operations(node, assume=1) or 0,
                rows.get(id(node)),
                refusals.get(id(node)),
                id(node) in refusals and node in host,
            )
            for node in acceptance.order
        ),
        hosted,
    )


def incomplete(refusal: Refusal) -> str | None:
    """What a refusal lacks of source node, constraint, value found and fix; None where it has all of them."""
    if not origin(refusal.node):
        return "no source node"
    found = refusal.constraints()
    if not found or not all(v.what and v.expected for v in found):
        return "no constraint"
    unknown = next((v.what for v in found if not v.found), None)
    if unknown is not None:
        return f"no value of {unknown}"
    return None if all(v.fix for v in found) else "no fix"


def grouped(refusals: Iterable[Refusal]) -> list[str]:
    """One line for each operator and set of reasons, in the order met, naming the first nodes."""
    groups: dict[tuple[str, str], list[str]] = {}
    for refusal in refusals:
        groups.setdefault((refusal.op, refusal.why()), []).append(refusal.name)
    return [f"{shown(op)} {_names(names)}: {why}" for (op, why), names in groups.items()]


def advised(refusals: Iterable[Refusal]) -> list[str]:
    """As `grouped`, each with what to do on a line of its own where the declaration does not say it."""
    every = list(refusals)
    said = {(r.op, r.why()): "" if r.stated() else "; ".join(r.fixes()) for r in every}
    lines = []
    for entry, fix in zip(grouped(every), said.values(), strict=True):
        lines += [entry, *([f"  {fix}"] if fix else [])]
    return lines


def _listed(lines: Iterable[Line]) -> str:
    """ "Softmax 'a', 'b', TopK 'c'"."""
    groups: dict[str, list[str]] = {}
    for line in lines:
        groups.setdefault(shown(line.op), []).append(line.name)
    return ", ".join(f"{op} {_names(names)}" for op, names in groups.items())


def _names(names: list[str]) -> str:
    """ "'a', 'b' and 3 more"; a source node that became several nodes is named once: "'gru' (49 nodes)"."""
    counts = Counter(names)
    said = [f"'{n}'" + (f" ({c} nodes)" if c > 1 else "") for n, c in counts.items()]
    more = f" and {len(said) - NAMED} more" if len(said) > NAMED else ""
    return ", ".join(said[:NAMED]) + more


def refusal_error(acceptance: Acceptance, target: str | None = None) -> UnsupportedError:
    """The error that carries every reason at once. `target` is what the message calls the target."""
    entries = advised(acceptance.refused)
    names = list(dict.fromkeys(n for r in acceptance.refused for n in origin(r.node) or (r.name,)))
    count = len(acceptance.refused)
    head = f"{target or acceptance.target} does not take {count} of {len(acceptance.order)} nodes:"
    broken = [v.as_json() for r in acceptance.refused for v in r.constraints()]
    return UnsupportedError(
        "\n  ".join([head, *entries]), hint=advice(acceptance), nodes=names, violations=broken
    )


def advice(acceptance: Acceptance) -> str | None:
    """What may help against the refusals of a model: sizes fixed, or an end before what is refused."""
    if not acceptance.refused:
        return None
    graph = acceptance.order[0].graph  # the main one comes first
    if not isinstance(graph, ir.Graph):
        return None
    said = []
    vague = any("size" in (r.hint or "") for r in acceptance.refused) or any(
        v.found == UNKNOWN or (v.expected == REQUIRED and "static" in v.what)
        for r in acceptance.refused
        for v in r.violations
    )
    free = {v.name: g.dims(v) for v in graph.inputs if g.dims(v) and g.static_dims(v) is None}
    if vague and free:
        name, dims = next(iter(free.items()))
        stated = ",".join(map(str, dims or ()))
        said.append(f"--shape {name}={stated} with numbers for the free sizes may make known what is not")
    ends = _ends_before(acceptance, graph)
    if ends:
        said.append(f"--outputs {','.join(ends)} ends the model before what is refused")
    return "; ".join(said) or None


def _ends_before(acceptance: Acceptance, graph: ir.Graph) -> list[str]:
    """The source tensors at which the model can end so that nothing refused is left; none where more than half
    of the nodes would go, or where such a tensor has no name in the source."""
    refused = {r.node for r in acceptance.refused}
    if any(n.graph is not graph for n in refused):
        return []
    behind: set[ir.Value] = set()
    ends: dict[ir.Value, None] = {}
    gone = 0
    for node in graph:
        read = [v for v in node.inputs if v is not None]
        if node in refused or any(v in behind for v in read):
            behind.update(node.outputs)
            gone += 1
            ends |= {v: None for v in read if v.producer() is not None and v not in behind}
    ends |= {v: None for v in graph.outputs if v not in behind and v.producer() is not None}
    names = [v.name or "~" for v in ends]
    return [] if 2 * gone > len(graph) or any("~" in n for n in names) else names


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Columns aligned by spaces; the last two are numbers where they look like it."""
    widths = [max(len(r[i]) for r in (header, *rows)) for i in range(len(header))]
    right = [all(r[i][:1].isdigit() for r in rows) for i in range(len(header))]

    def show(row: tuple[str, ...]) -> str:
        cells = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        return "  " + "  ".join(cells).rstrip()

    return [show(header), *map(show, rows)]
