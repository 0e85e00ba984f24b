"""What an export says of its circuit: per layer what it computes, how it is folded, what it takes; as JSON and text."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from tapeout.targets.fpga import dialect as d
from tapeout.targets.fpga.cost import Cost, cost, products
from tapeout.targets.fpga.devices import device
from tapeout.targets.fpga.live import operations

SCHEMA = "tapeout.fpga/1"
KINDS = (("dsp", "multipliers"), ("bram", "18-kbit memories"), ("lut", "lookup tables"))


def report(graph: d.Graph, before: d.Graph) -> dict[str, Any]:
    """The predictions for a folded circuit; `before` is the circuit as it was lowered, with all its channels."""
    place, tensors = device(graph.device), graph.tensors
    costs = [cost(n, tensors[n.inputs[0].tensor], place) for n in graph.nodes]
    total = functools.reduce(Cost.__add__, costs, Cost())
    whole = {n.name: n.output.channels for n in before.nodes}
    forms = [n.requantize for n in graph.nodes if isinstance(n, d.Folded)]
    return {
        "schema": SCHEMA,
        "name": graph.name,
        "device": graph.device,
        "predicted": {
            "interval_cycles": graph.interval,
            "latency_cycles": graph.latency,
            "inferences_per_second": round(place.mhz * 1e6 / max(graph.interval, 1), 1),
            "assumed_mhz": place.mhz,
            **{kind: getattr(total, kind) for kind, _ in KINDS},
        },
        "device_has": {kind: getattr(place, kind) for kind, _ in KINDS},
        "multiply_accumulates": {"model": operations(before), "circuit": operations(graph)},
        "requantization": {
            "channels": sum(len(f.multiplier) for f in forms),
            "tables": sum(len(f.tables) for f in forms),
            "powers_of_two": sum(len(f.multiplier) for f in forms if f.ties_to_even),
            "multiplier_bits": max((int(f.multiplier.max()).bit_length() for f in forms), default=0),
            "sums_that_round_otherwise": sum(n.differs for n in graph.nodes if isinstance(n, d.Add)),
        },
        "layers": [
            _layer(node, tensors[node.inputs[0].tensor], taken, whole.get(node.name))
            for node, taken in zip(graph.nodes, costs, strict=True)
        ],
        "unproven": [
            "synthesis by the vendor's tools", "the assumed clock", "power", "a board",
        ],
    }  # fmt: skip


def _layer(node: d.Node, x: d.Tensor, found: Cost, channels: int | None) -> dict[str, Any]:
    said: dict[str, Any] = {
        "name": node.name,
        "source": list(node.source),
        "kind": type(node).__name__,
        "output": list(node.output.shape),
        "removed_channels": (channels or node.output.channels) - node.output.channels,
        "range": [int(np.min(node.output.low)), int(np.max(node.output.high))],
    }
    if isinstance(node, d.Folded):
        form = node.requantize
        said |= {
            "pe": node.pe, "simd": node.simd, "requantizers": node.lanes,
            "products": products(node, x) * node.output.elements,
            "accumulator_bits": node.accumulator, "shift": form.shift,
            "multiplier_bits": int(form.multiplier.max()).bit_length(), "tables": len(form.tables),
        }  # fmt: skip
    return said | {"cycles": found.cycles, "dsp": found.dsp, "bram": found.bram, "lut": found.lut}


def text(said: dict[str, Any]) -> str:
    """The report for people."""
    predicted, has, macs = said["predicted"], said["device_has"], said["multiply_accumulates"]
    lines = [
        f"{said['name']} on {said['device']}",
        f"{predicted['interval_cycles']:,} cycles an inference, {predicted['latency_cycles']:,} through all layers; "
        f"{predicted['inferences_per_second']:,} inferences a second at an assumed {predicted['assumed_mhz']} MHz",
        "; ".join(f"{predicted[kind]:,} of {has[kind]:,} {words}" for kind, words in KINDS) + " (predicted)",
    ]
    if macs["circuit"] != macs["model"]:
        kept = macs["circuit"] / macs["model"]
        lines.append(
            f"{macs['circuit']:,} of {macs['model']:,} multiply-accumulates ({kept:.1%}): the other channels are "
            "constant or read by nothing"
        )
    form = said["requantization"]
    lines.append(
        f"requantization exact in all {form['channels']:,} channels: {form['tables']:,} by a table, multipliers of at "
        f"most {form['multiplier_bits']} bits"
    )
    if form["sums_that_round_otherwise"]:
        lines.append(f"{form['sums_that_round_otherwise']:,} pairs of codes add to a neighbouring code")
    head = ("layer", "kind", "output", "PE", "SIMD", "cycles", "DSP", "RAM18", "LUT", "acc", "mult", "tables")
    rows = [head, *(_row(layer) for layer in said["layers"])]
    widths = [max(len(r[i]) for r in rows) for i in range(len(head))]
    lines.append("")
    for row in rows:
        cells = [
            c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines += ["", "not proven here: " + ", ".join(said["unproven"])]
    return "\n".join(lines) + "\n"


def _row(layer: dict[str, Any]) -> tuple[str, ...]:
    name = layer["source"][0] if layer["source"] else layer["name"]
    name = name if len(name) <= 40 else f"...{name[-37:]}"
    cells = [layer.get(k, "") for k in ("pe", "simd", "cycles", "dsp", "bram", "lut")]
    more = [layer.get(k, "") for k in ("accumulator_bits", "multiplier_bits", "tables")]
    shown = [f"{c:,}" if isinstance(c, int) else c for c in (*cells, *more)]
    return (name, layer["kind"], "x".join(map(str, layer["output"])), *shown)
