"""Writes a circuit's folder: the circuit itself, Verilog with its memories, the report."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from tapeout.sdk import Request, json_bytes
from tapeout.targets.fpga import declaration, hls, project, report, serial, synth, verilog
from tapeout.targets.fpga import dialect as d
from tapeout.targets.fpga.devices import device
from tapeout.targets.fpga.fold import fold
from tapeout.targets.fpga.latency import with_latency
from tapeout.targets.fpga.lower import lower


def emit(model: ir.Model, folder: Path, request: Request) -> None:
    """Write the circuit of `model`, which the declaration accepts, into `folder`, which is there and empty.

    Raises BudgetError where it does not fit the device.
    """
    for name, content in contents(model, request).items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)


def contents(model: ir.Model, request: Request) -> dict[str, bytes]:
    """The files of the circuit's folder by their path in it; the same for the same model and request."""
    place, synthesis = device(request.device), synth.wanted(request.options)
    whole = lower(model, declaration(request.device), request.device)
    graph = with_latency(fold(whole, place))
    circuit = verilog.emit(graph, packing=place.packing)
    counted = {"synthesis/counts.json": json_bytes(synth.counts(circuit, place))} if synthesis else {}
    return {
        serial.FILE: serial.dump(graph),
        **told(graph, whole),
        **circuit,
        **hls.emit(graph),
        **project.emit(graph, place),
        **counted,
    }


def told(graph: d.Graph, whole: d.Graph) -> dict[str, bytes]:
    """The report as JSON and as text."""
    said = report.report(graph, whole)
    return {"report.json": json_bytes(said), "report.txt": report.text(said).encode()}
