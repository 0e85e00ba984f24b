"""If, Loop and Scan: do the graphs they carry take and return what the node gives and takes?"""

from __future__ import annotations

import onnx_ir as ir

from tapeout.compiler.errors import InvalidModelError
from tapeout.compiler.ir.convert import Draft

CONTROL = frozenset({"If", "Loop", "Scan"})


def check_control(draft: Draft) -> None:
    """Raise InvalidModelError where the interface of a subgraph does not fit its node."""
    if draft.op_type == "If":
        for name in ("then_branch", "else_branch"):
            _fits(draft, name, 0, len(draft.outputs))
        return
    body = draft.attributes["body"].as_graph()
    if draft.op_type == "Loop":
        states = len(draft.inputs) - 2
        scanned = len(draft.outputs) - states
        if scanned < 0:
            raise InvalidModelError(
                f"{draft.label} has {states} loop-carried inputs, but only {len(draft.outputs)} outputs"
            )
        _fits(draft, "body", 2 + states, 1 + len(draft.outputs))
        return
    scanned = draft.attributes["num_scan_inputs"].as_int()
    states = len(draft.inputs) - scanned
    if scanned < 1 or states < 0 or len(body.outputs) < states:
        raise InvalidModelError(f"{draft.label} scans {scanned} of {len(draft.inputs)} inputs")
    _fits(draft, "body", len(draft.inputs), len(draft.outputs))
    for name, count in (("input", scanned), ("output", len(body.outputs) - states)):
        for kind in ("axes", "directions"):
            attribute = draft.attributes.get(f"scan_{name}_{kind}")
            if attribute is not None and len(attribute.as_ints()) != count:
                raise InvalidModelError(
                    f"{draft.label}: {attribute.name} has {len(attribute.as_ints())} entries, not {count}"
                )
    if any(value is None for value in draft.inputs):
        raise InvalidModelError(f"{draft.label} lacks an input")


def _fits(draft: Draft, name: str, inputs: int, outputs: int) -> None:
    graph: ir.Graph = draft.attributes[name].as_graph()
    if len(graph.inputs) != inputs or len(graph.outputs) != outputs:
        raise InvalidModelError(
            f"{draft.label}: its {name} has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs, "
            f"expected {inputs} and {outputs}"
        )
