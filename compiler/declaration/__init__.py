"""What a target takes, as rows: the only place that decides whether a node is accepted, and why not.

The schema is documented in docs/declaration.md.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from tapeout.compiler.declaration import files, parse
from tapeout.compiler.declaration.advice import suggestion, without_kernel
from tapeout.compiler.declaration.match import (
    Kind,
    Violation,
    distance,
    in_reals,
    merged,
    sentence,
    violations,
)
from tapeout.compiler.declaration.quantizing import Slot, slots, unmet
from tapeout.compiler.declaration.rows import Bound, Limit, PortRule, Row, Tolerance, narrowed
from tapeout.compiler.errors import InternalError, UsageError
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.origin import origin
from tapeout.compiler.operators import (
    Call,
    Functions,
    Interface,
    function_interface,
    onnx_interface,
    operator_name,
)
from tapeout.compiler.quantities import Quantity, Vocabulary
from tapeout.compiler.schemes import Scheme

__all__ = [
    "Acceptance",
    "Bound",
    "Declaration",
    "Limit",
    "PortRule",
    "Refusal",
    "Row",
    "Slot",
    "Tolerance",
    "Violation",
    "shown",
    "source_name",
]


def source_name(node: ir.Node) -> str:
    """How messages call a node: its source nodes, the first three of them."""
    names = origin(node) or (node.name or "",)
    return "+".join(names[:3]) + (f"+{len(names) - 3} more" if len(names) > 3 else "")


def shown(op: str) -> str:
    """How messages call an operator: what passes made for channels last is called as in the source."""
    name = op.removeprefix("tapeout::")
    for suffix, kind in (("NDHWC", " (3-D)"), ("NHWC", ""), ("NWC", " (1-D)")):
        if name != op and name.endswith(suffix):
            return name.removesuffix(suffix) + kind
    return name


@dataclass(frozen=True)
class Refusal:
    """A node that the target does not take. `row` is the row with the fewest violations, None where there is
    none."""

    node: ir.Node
    op: str
    target: str
    row: Row | None = None
    violations: tuple[Violation, ...] = ()
    hint: str | None = None
    scheme: str | None = None  # there are rows, but none for this scheme

    @property
    def name(self) -> str:
        return source_name(self.node)

    def reasons(self) -> list[str]:
        """Each violation in words, ports that are refused alike together; what to do comes from `fixes`."""
        if self.row is None:
            kind = f"{self.scheme} kernel" if self.scheme else "kernel"
            return [f"{self.target} has no {kind} for {shown(self.op)}"]
        return [v.text(self.target) for v in merged(self.violations)]

    def constraints(self) -> tuple[Violation, ...]:
        """Every constraint that is broken, each with the value found and what to do: never empty, never without."""
        op = shown(self.op)
        if self.row is None:
            wanted = f"one that {self.target} has a kernel for" + (
                f" in {self.scheme}" if self.scheme else ""
            )
            fix = self.hint or without_kernel(op, self.target, self.scheme)
            return (Violation("operator", wanted, op, fix, Kind.TENSOR),)
        return tuple(v if v.fix else replace(v, fix=suggestion(v, op)) for v in merged(self.violations))

    def stated(self) -> list[str]:
        """What the declaration says to do, and why nothing else could be done."""
        found = [v.fix for v in self.violations] + [self.hint]
        return list(dict.fromkeys(f for f in found if f))

    def fixes(self) -> list[str]:
        """What to do: what the declaration says, else what follows from the constraints; never empty."""
        return self.stated() or list(dict.fromkeys(v.fix for v in self.constraints() if v.fix))

    def why(self) -> str:
        """All reasons, then what the declaration says to do: "stride 4, at most 3 on ethos-u55; pad and stride
        twice"."""
        reason = self.reasons()[0] if self.row is None else sentence(self.violations, self.target)
        return "; ".join([reason, *self.stated()])

    def __str__(self) -> str:
        """ "Conv 'stem/conv1': stride 4, at most 3 on ethos-u55; pad and stride twice"."""
        return f"{shown(self.op)} '{self.name}': {self.why()}"


@dataclass
class Acceptance:
    """Every node of a model, in order, with the row that takes it or the reason why none does."""

    target: str
    placed: list[tuple[ir.Node, Row]] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    order: list[ir.Node] = field(default_factory=list)


class Declaration:
    """The rows of one target on one device."""

    def __init__(
        self, source: files.Source, device: str | None = None, parent: Declaration | None = None
    ) -> None:
        if device is not None and source.devices and device not in source.devices:
            raise UsageError(
                f"target '{source.name}' has no device '{device}'", hint=parse.nearest(device, source.devices)
            )
        self.source = source
        self.device = device or next(iter(source.devices), None)
        self.parent = parent
        self.rows: dict[str, list[Row]] = {
            op: kept for op, rows in source.rows.items() if (kept := [r for r in rows if self._mine(r)])
        }
        self._common = [(ops, but, row) for ops, but, row in source.common if self._mine(row)]
        self._interfaces: dict[str, Interface | None] = dict(source.interfaces)
        self._shared: dict[str, list[Row]] = {}
        self.hosted = False

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str | None = None,
        quantities: Iterable[Quantity] = (),
        parent: Declaration | None = None,
    ) -> Declaration:
        """Read a target.toml for one device (default: the first that it names).

        `quantities` are the target's own; `parent` is the declaration that `extends` names, found through the
        installed targets where it is not given. Raises VendorToolError naming file, row and key for anything
        that is not understood, UsageError for an unknown device.
        """
        source = files.read(Path(path), Vocabulary(quantities))
        if source.extends is not None and parent is None:
            from tapeout.compiler.target import target

            name, _, other = source.extends.partition("/")
            found = target(name)
            parent = found.declaration(other or found.devices[0])
        return cls(source, device, parent)

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def label(self) -> str:
        """What messages call the target: the device's own label, "tflite" on the first device, else "tflite
        gpu"."""
        devices = self.source.devices
        if self.device is None or not devices:
            return self.name
        stated = devices.get(self.device, {}).get("label")
        if stated is not None:
            return str(stated)
        return self.name if self.device == next(iter(devices)) else f"{self.name} {self.device}"

    @property
    def facts(self) -> Mapping[str, Any]:
        """Named facts of the device, such as its memory, for passes and reports."""
        return dict(self.source.devices.get(self.device or "", {}).get("facts", {}))

    @property
    def functions(self) -> Mapping[str, ir.Function]:
        """The target's own functions by "domain::Name", its parent's among them."""
        return {**(self.parent.functions if self.parent else {}), **self.source.functions}

    def operators(self) -> frozenset[str]:
        """The operators that a row here, or of the parent, is for: "Conv", "acme::ConvRelu"."""
        return frozenset(self.rows) | (self.parent.operators() if self.parent else frozenset())

    def lowerings(self) -> set[str]:
        """Every `lower` name that a row gives, this declaration's and its parent's."""
        own = {r.lower for rows in self.rows.values() for r in rows if r.lower}
        return own | (self.parent.lowerings() if self.parent else set())

    def common(self, op: str) -> list[Row]:
        """What holds for every row of `op`."""
        if op not in self._shared:
            self._shared[op] = [row for ops, but, row in self._common if files.applies(op, ops, but)]
        return self._shared[op]

    def call(self, node: ir.Node, functions: Functions | None = None) -> Call:
        """`node` through its operator's interface; `functions` are the model's."""
        op = self._key(node)
        interface = self._interfaces.get(op)
        if interface is None:
            function = (functions or {}).get(node.op_identifier()) or self.functions.get(op)
            if function is not None:
                interface = function_interface(function)
            elif "::" in op:
                interface = None
            else:
                interface = onnx_interface(op)
            if interface is None:
                raise InternalError(
                    f"the ports of {op} are not known: match needs the functions of the model"
                )
            self._interfaces[op] = interface
        return Call(node, interface)

    def with_host(self) -> Declaration:
        """The same declaration for a device that has a host beside it: what it refuses and its parent takes is
        the host's, and the answer is the parent's row."""
        made = copy.copy(self)
        made.hosted = True
        return made

    def match(self, node: ir.Node, functions: Functions | None = None) -> Row | Refusal:
        """The first row whose every key holds for `node`, or the refusal by the row with the fewest
        violations.

        `functions` are those of the node's model: they name the ports of model-local functions.
        """
        if self.parent is None:
            return self._match(node, functions, None)
        inherited = self.parent.match(node, functions)
        if isinstance(inherited, Refusal):
            return inherited
        answer = self._match(node, functions, inherited)
        return answer if isinstance(answer, Refusal) and not self.hosted else inherited

    def _match(self, node: ir.Node, functions: Functions | None, inherited: Row | None) -> Row | Refusal:
        """The answer of the rows here alone; the kernel, with what it fuses, is that of `inherited`."""
        op = self._key(node)
        rows = self.rows.get(op, ())
        if not rows:
            return Refusal(node, op, self.label, hint=self._absent(op))
        call = self.call(node, functions)
        always = [v for shared in self.common(op) for v in violations(shared, call)]
        best: tuple[tuple[int, int, int], Row, tuple[Violation, ...]] | None = None
        for row in rows:
            if inherited is not None:
                row = replace(row, fuses=inherited.fuses)
            found = (*always, *violations(row, call))
            if inherited is not None:
                found += tuple(in_reals(row, inherited, call))
            if not found:
                return row
            far = distance(found)
            if best is None or far < best[0]:
                best = (far, row, found)
        assert best is not None
        return Refusal(node, op, self.label, best[1], best[2])

    def quantized(self, node: ir.Node, scheme: Scheme, functions: Functions | None = None) -> Row | Refusal:
        """The first row that would hold for `node`, a node on floats, were its tensors stored as `scheme`
        says; else the refusal by the nearest of the rows for such types.

        Scales and zero points are not looked at: they follow from the row.
        """
        if self.parent is None:
            return self._quantized(node, scheme, functions, None)
        inherited = self.parent.quantized(node, scheme, functions)
        if isinstance(inherited, Refusal):
            return inherited
        answer = self._quantized(node, scheme, functions, inherited)
        return inherited if isinstance(answer, Refusal) and self.hosted else answer

    def _quantized(
        self, node: ir.Node, scheme: Scheme, functions: Functions | None, inherited: Row | None
    ) -> Row | Refusal:
        op = self._key(node)
        if not self.rows.get(op):
            return Refusal(node, op, self.label, hint=self._absent(op))
        call = self.call(node, functions)
        refusals = []
        for own in self.rows[op]:
            row = own if inherited is None else narrowed(inherited, own)
            wanted = slots(row, call, scheme)
            if wanted is None:
                continue
            found = tuple(unmet((row, *self.common(op)), call, wanted))
            if not found:
                return row
            refusals.append((distance(found), row, found))
        if not refusals:
            return Refusal(node, op, self.label, scheme=scheme.name)
        _, row, found = min(refusals, key=lambda r: r[0])
        return Refusal(node, op, self.label, row, found)

    def accept(self, model: ir.Model) -> Acceptance:
        """Every node of the graph and its subgraphs, held against the rows."""
        result = Acceptance(self.label)
        for graph in g.graphs(model):
            for node in graph:
                result.order.append(node)
                answer = self.match(node, model.functions)
                if isinstance(answer, Refusal):
                    result.refused.append(answer)
                else:
                    result.placed.append((node, answer))
        return result

    def __iter__(self) -> Iterator[Row]:
        for rows in self.rows.values():
            yield from rows

    def _key(self, node: ir.Node) -> str:
        return node.op_type if node.op_type in self.source.interfaces else operator_name(node)

    def _absent(self, op: str) -> str | None:
        if op.startswith("tapeout::"):
            return None
        hint = parse.nearest(op, self.rows) if "::" in op or onnx_interface(op) is None else None
        return hint if hint and hint.startswith("did") else None

    def _mine(self, row: Row) -> bool:
        return not row.devices or self.device in row.devices
