"""A circuit as Verilog: one top module whose instances are those of the library (`rtl/`), and their memories.

Every stream is three wires NAME_valid, NAME_ready, NAME_data: a beat moves in a cycle in which valid and ready are
high. At the borders this is AXI-Stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from typing import Any

from tapeout.targets.fpga.dialect import Graph, Port
from tapeout.targets.fpga.netlist import BITS, Instance, Netlist, Sized, Wires, port_names

TOP = "top"
PARTS = ("valid", "ready", "data")


def emit(graph: Graph, *, packing: int = 1, stalls: bool = False) -> dict[str, bytes]:
    """The files of a circuit by their path: rtl/top.v, the library beside it, memories/*.hex. Pure.

    packing: products that share a multiplier where weights share an element (see rtl/mac.v).
    stalls: for tests: every stream passes an instance that holds beats back at random; input `seed` picks how.
    Raises InternalError for a tensor of other bits than the library's.
    """
    net = Netlist(graph, packing, stalls)
    lines = [f"// {graph.name} on {graph.device}", f"module {TOP} (", *_ports(net), ");"]
    lines += ["    wire rst = !aresetn;", *_declared(net), *_borders(net)]
    for instance in net.instances:
        lines += _instance(instance)
    top = "\n".join([*lines, "endmodule", ""]).encode()
    memories = {f"memories/{name}.hex": memory.hex_lines() for name, memory in net.memories.items()}
    return {**library(stalls), f"rtl/{TOP}.v": top, **memories}


def library(stalls: bool = False) -> dict[str, bytes]:
    """The files of the library by their path."""
    folder = files("tapeout.targets.fpga").joinpath("rtl")
    found = sorted(f.name for f in folder.iterdir() if f.name.endswith(".v"))
    return {f"rtl/{n}": folder.joinpath(n).read_bytes() for n in found if stalls or n != "stall.v"}


def _ports(net: Netlist) -> Iterator[str]:
    """The ports of the top module."""
    sources, sinks = port_names(net.graph)
    rows = [("input aclk", ""), ("input aresetn", "")] + ([("input [31:0] seed", "")] if net.stalls else [])
    for names, ports, into, out in (
        (sources, net.graph.input_ports, "input", "output"),
        (sinks, net.graph.output_ports, "output", "input"),
    ):
        for axis, port in zip(names, ports, strict=True):
            rows += [(f"{into} {axis}_tvalid", ""), (f"{out} {axis}_tready", "")]
            rows += [(f"output {axis}_tlast", "")] if into == "output" else []
            rows.append((f"{into} [{port.lanes * BITS - 1}:0] {axis}_tdata", _told(port)))
    for i, (row, comment) in enumerate(rows):
        yield f"    {row}{',' if i < len(rows) - 1 else ''}{comment}"


def _told(port: Port) -> str:
    return f"  // {port.name}: {port.lanes} element{'s' if port.lanes > 1 else ''}"


def _declared(net: Netlist) -> Iterator[str]:
    for x in net.streams():
        yield f"    wire {x.name}_valid, {x.name}_ready;"
        yield f"    wire [{x.width - 1}:0] {x.name}_data;"


def _borders(net: Netlist) -> Iterator[str]:
    """Input streams are ports; output streams pass what marks the end of an inference."""
    sources, sinks = port_names(net.graph)
    for axis, x in zip(sources, net.sources, strict=True):
        yield f"    assign {x.name}_valid = {axis}_tvalid, {x.name}_data = {axis}_tdata;"
        yield f"    assign {axis}_tready = {x.name}_ready;"
    for axis, x in zip(sinks, net.sinks, strict=True):
        ends = _ends("in", (x,)) | {f"out_{p}": f"{axis}_t{p}" for p in (*PARTS, "last")}
        yield from _module("frame", f"{axis}_frame", {"BITS": x.width, "BEATS": x.beats}, ends)


def _instance(instance: Instance) -> Iterator[str]:
    if instance.comment:
        yield f"\n    // {instance.comment}"
    ends: dict[str, str] = {"seed": "seed"} if instance.module == "stall" else {}
    for port, x in instance.inputs.items():
        ends |= _ends(port, (x,))
    for port, made in instance.outputs.items():
        ends |= _ends(port, made)
    yield from _module(instance.module, instance.name, instance.parameters, ends)


def _ends(port: str, streams: tuple[Wires, ...]) -> dict[str, str]:
    """The connections of an instance's port; of several streams the first lies in the lowest bits."""
    joined = {p: ", ".join(f"{s.name}_{p}" for s in reversed(streams)) for p in PARTS}
    return {f"{port}_{p}": f"{{{j}}}" if len(streams) > 1 else j for p, j in joined.items()}


def _module(module: str, name: str, parameters: Any, ends: dict[str, str]) -> Iterator[str]:
    shown = ", ".join(f".{k}({_literal(v)})" for k, v in parameters.items())
    joined = ", ".join(f".{k}({v})" for k, v in {"clk": "aclk", "rst": "rst", **ends}.items())
    yield f"    tapeout_{module} #({shown})"
    yield f"        {name} ({joined});"


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return f'"memories/{value}.hex"'
    if isinstance(value, Sized):
        return f"{value.bits}'h{value.value & ((1 << value.bits) - 1):x}"
    return str(value)
