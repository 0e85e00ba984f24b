"""A circuit as Verilog: one top module whose instances are those of the library (`rtl/`), and their memories.

Every stream is three wires NAME_valid, NAME_ready, NAME_data: a beat moves in a cycle in which valid and ready are
high. At the borders this is AXI-Stream.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from math import gcd
from typing import Any

from tapeout.sdk import InternalError
from tapeout.targets.fpga.dialect import (
    Add,
    AveragePool,
    Conv,
    Dense,
    Depthwise,
    Folded,
    GlobalAverage,
    Graph,
    Lookup,
    MaxPool,
    Node,
    Reshape,
)
from tapeout.targets.fpga.layout import Geometry, Scaling, folds, geometry, hex_lines, weight_words

BITS = 8
TOP = "top"


@dataclass(frozen=True)
class Wires:
    """A stream in the text: the name before _valid, _ready, _data, and the elements of a beat."""

    name: str
    lanes: int
    bits: int = BITS

    @property
    def width(self) -> int:
        return self.lanes * self.bits

    def ends(self, prefix: str) -> dict[str, str]:
        """The connections of an instance's port `prefix`."""
        return {f"{prefix}_{part}": f"{self.name}_{part}" for part in ("valid", "ready", "data")}


@dataclass
class Text:
    """The body of the top module as it grows, and the files beside it."""

    stalls: bool = False
    lines: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def name(self, source: str) -> str:
        """A Verilog identifier for a name of the graph, the same for the same name."""
        if source not in self.names:
            plain = re.sub(r"[\W_]+", "_", source).strip("_") or "node"
            plain = plain if plain[0].isalpha() else f"n_{plain}"
            taken = set(self.names.values())
            fresh = (plain if i == 0 else f"{plain}_{i}" for i in range(len(taken) + 1))
            self.names[source] = next(n for n in fresh if n.lower() not in {t.lower() for t in taken})
        return self.names[source]

    def wires(self, name: str, lanes: int, bits: int = BITS) -> Wires:
        made = Wires(name, lanes, bits)
        self.lines.append(f"    wire {name}_valid, {name}_ready;")
        self.lines.append(f"    wire [{made.width - 1}:0] {name}_data;")
        return made

    def instance(
        self, module: str, name: str, parameters: Mapping[str, Any], ends: Mapping[str, str]
    ) -> None:
        shown = ", ".join(f".{k}({_literal(v)})" for k, v in parameters.items())
        ports = ", ".join(f".{k}({v})" for k, v in {"clk": "aclk", "rst": "rst", **ends}.items())
        self.lines.append(f"    tapeout_{module} #({shown})\n        {name} ({ports});")

    def through(
        self, module: str, name: str, parameters: Mapping[str, Any], x: Wires, lanes: int, bits: int = BITS
    ) -> Wires:
        """The stream out of an instance that takes the stream `x`."""
        made = self.wires(name, lanes, bits)
        self.instance(module, f"{name}_{module}", parameters, {**x.ends("in"), **made.ends("out")})
        return made


def emit(graph: Graph, *, packing: int = 1, stalls: bool = False) -> dict[str, bytes]:
    """The files of a circuit by their path: rtl/top.v, the library beside it, memories/*.hex. Pure.

    packing: products that share a multiplier where weights share an element (see rtl/mac.v).
    stalls: for tests: every stream passes an instance that holds beats back at random; input `seed` picks how.
    Raises InternalError for a tensor of other bits than the library's.
    """
    for tensor in graph.tensors.values():
        if tensor.bits != BITS or not tensor.signed:
            raise InternalError(f"tensor '{tensor.name}': {tensor.bits} bits, expected {BITS} signed ones")
    text = Text(stalls)
    ports = _borders(text, graph)
    edges: dict[tuple[str, int], Wires] = {}
    for port in graph.input_ports:
        _deliver(text, graph, port.tensor, Wires(text.name(f"{port.name}~in"), port.lanes), edges)
    for node in graph.nodes:
        text.lines.append(f"\n    // {type(node).__name__} {node.name}: {', '.join(node.source)}")
        x = [edges[node.name, i] for i in range(len(node.inputs))]
        made = BUILDERS[type(node)](text, graph, node, x, packing)
        _deliver(text, graph, node.output.name, made, edges)
    head = (
        f"// {graph.name} on {graph.device}\nmodule {TOP} (\n    input aclk,\n    input aresetn,\n{ports}\n);"
    )
    lines = [head, "    wire rst = !aresetn;", *text.lines, "endmodule", ""]
    text.files[f"rtl/{TOP}.v"] = "\n".join(lines).encode()
    return {**library(stalls), **text.files}


def library(stalls: bool = False) -> dict[str, bytes]:
    """The files of the library by their path."""
    folder = files("tapeout.targets.fpga").joinpath("rtl")
    found = sorted(f.name for f in folder.iterdir() if f.name.endswith(".v"))
    return {f"rtl/{n}": folder.joinpath(n).read_bytes() for n in found if stalls or n != "stall.v"}


def port_names(graph: Graph) -> tuple[list[str], list[str]]:
    """The AXI-Stream names of input and output ports, in order."""

    def named(prefix: str, count: int) -> list[str]:
        return [prefix] if count == 1 else [f"{prefix}_{i}" for i in range(count)]

    return named("s_axis", len(graph.input_ports)), named("m_axis", len(graph.output_ports))


def _borders(text: Text, graph: Graph) -> str:
    """The ports of the top module; input streams come in as the names of their tensors."""
    ports = ["    input [31:0] seed"] if text.stalls else []
    sources, sinks = port_names(graph)
    for axis, port in zip(sources, graph.input_ports, strict=True):
        width = port.lanes * BITS
        ports += [
            f"    input {axis}_tvalid",
            f"    output {axis}_tready",
            f"    input [{width - 1}:0] {axis}_tdata  // {port.name}: {port.lanes} elements",
        ]
        x = text.wires(text.name(port.name + "~in"), port.lanes)
        text.lines.append(f"    assign {x.name}_valid = {axis}_tvalid, {x.name}_data = {axis}_tdata;")
        text.lines.append(f"    assign {axis}_tready = {x.name}_ready;")
    for axis, port in zip(sinks, graph.output_ports, strict=True):
        width = port.lanes * BITS
        ports += [
            f"    output {axis}_tvalid",
            f"    input {axis}_tready",
            f"    output {axis}_tlast",
            f"    output [{width - 1}:0] {axis}_tdata  // {port.name}: {port.lanes} elements",
        ]
    return _list(ports)


def _list(ports: Iterable[str]) -> str:
    """Lines with commas between them, each before its comment."""
    lines = list(ports)
    with_commas = [line.replace("  //", ",  //") if "  //" in line else line + "," for line in lines[:-1]]
    return "\n".join([*with_commas, lines[-1]])


def _deliver(text: Text, graph: Graph, tensor: str, made: Wires, edges: dict[tuple[str, int], Wires]) -> None:
    """Takes a tensor's stream to its readers: a fork where there are several, then for each reader a width
    converter and the FIFO in front of it."""
    readers = [
        (n, i, s.lanes, s.depth) for n in graph.nodes for i, s in enumerate(n.inputs) if s.tensor == tensor
    ]
    ports = [i for i, p in enumerate(graph.output_ports) if p.tensor == tensor]
    branches = _fork(text, made, len(readers) + len(ports))
    for branch, (node, i, lanes, depth) in zip(branches, readers, strict=False):
        name = text.name(f"{node.name}~x{i}")
        edges[node.name, i] = _reader(text, name, branch, lanes, depth)
    for branch, i in zip(branches[len(readers) :], ports, strict=True):
        port, axis = graph.output_ports[i], port_names(graph)[1][i]
        x = _reader(text, text.name(f"{port.name}~out"), branch, port.lanes, port.depth)
        beats = graph.tensors[tensor].elements // port.lanes
        ends = {f"out_{part}": f"{axis}_t{part}" for part in ("valid", "ready", "data", "last")}
        text.instance("frame", f"{axis}_frame", {"BITS": x.width, "BEATS": beats}, {**x.ends("in"), **ends})


def _fork(text: Text, x: Wires, count: int) -> list[Wires]:
    if count == 1:
        return [x]
    branches = [text.wires(f"{x.name}_{i}", x.lanes) for i in range(count)]
    ends = {
        f"out_{part}": "{" + ", ".join(f"{b.name}_{part}" for b in reversed(branches)) + "}"
        for part in ("valid", "ready", "data")
    }
    text.instance("fork", f"{x.name}_fork", {"BITS": x.width, "COUNT": count}, {**x.ends("in"), **ends})
    return branches


def _reader(text: Text, name: str, x: Wires, lanes: int, depth: int) -> Wires:
    """The stream as a reader takes it."""
    if text.stalls:
        made = text.wires(f"{name}_stalled", x.lanes)
        parameters = {"BITS": x.width, "SEED": len(text.lines)}
        ends = {**x.ends("in"), **made.ends("out"), "seed": "seed"}
        text.instance("stall", f"{name}_stall", parameters, ends)
        x = made
    # By way of the largest width that divides both, where neither divides the other.
    for step in (gcd(x.lanes, lanes), lanes):
        if step != x.lanes:
            parameters = {"BITS": x.bits, "IN": x.lanes, "OUT": step}
            x = text.through("resize", f"{name}_{step}", parameters, x, step)
    if depth:
        x = text.through("fifo", name, {"BITS": x.width, "DEPTH": depth}, x, lanes)
    return x


def _window(text: Text, name: str, x: Wires, shape: Geometry) -> Wires:
    window = shape.window
    parameters = {
        "BITS": BITS, "LANES": x.lanes, "GROUPS": shape.groups, "HEIGHT": shape.height, "WIDTH": shape.width,
        "KERNEL_H": window.kernel[0], "KERNEL_W": window.kernel[1],
        "STRIDE_H": window.strides[0], "STRIDE_W": window.strides[1],
        "DILATION_H": window.dilations[0], "DILATION_W": window.dilations[1],
        "TOP": window.pads[0], "LEFT": window.pads[1], "OUT_H": shape.out[0], "OUT_W": shape.out[1],
        "ROWS": shape.rows, "REPEAT": shape.repeat, "GROUPWISE": int(shape.groupwise), "FILL": window.fill,
    }  # fmt: skip
    return text.through("window", f"{name}_taps", parameters, x, x.lanes)


def _folded(text: Text, graph: Graph, node: Folded, x: list[Wires], packing: int) -> Wires:
    """Sliding window, sums of products, requantizers."""
    name = text.name(node.name)
    tensor = graph.tensors[node.inputs[0].tensor]
    shape = geometry(node, tensor)
    taps = x[0] if shape is None else _window(text, name, x[0], shape)
    if isinstance(node, GlobalAverage):
        parameters: dict[str, Any] = {
            "BITS": BITS, "LANES": node.pe, "GROUPS": folds(node), "PIXELS": tensor.pixels,
            "SUM_BITS": node.accumulator,
        }  # fmt: skip
        sums = text.through("channel_sum", f"{name}_sums", parameters, taps, node.pe, node.accumulator)
    else:
        assert shape is not None
        lanewise = shape.groupwise
        beats = shape.taps * (1 if lanewise else shape.groups)
        parameters = {
            "BITS": BITS, "WEIGHT_BITS": 0, "SUM_BITS": node.accumulator, "PE": node.pe, "SIMD": node.simd,
            "BEATS": beats, "FOLDS": folds(node), "LANEWISE": int(lanewise),
            "PACK": int(packing > 1 and not lanewise),
        }  # fmt: skip
        if isinstance(node, Conv | Dense | Depthwise):
            path = f"memories/{name}_weights.hex"
            text.files[path] = hex_lines(weight_words(node))
            parameters |= {"WEIGHT_BITS": 8, "WEIGHTS": path}
        sums = text.through("mac", f"{name}_sums", parameters, taps, node.pe, node.accumulator)
    return _requantized(text, name, node, sums)


def _requantized(text: Text, name: str, node: Folded, sums: Wires) -> Wires:
    """The codes of sums, `node.lanes` at once."""
    if node.lanes != sums.lanes:
        parameters: dict[str, Any] = {"BITS": sums.bits, "IN": sums.lanes, "OUT": node.lanes}
        sums = text.through("resize", f"{name}_shares", parameters, sums, node.lanes, sums.bits)
    form, scaling = node.requantize, Scaling(node.bias, node.requantize, node.accumulator)
    bias, multiplier, offset, _ = scaling.widths
    words = f"memories/{name}_scales.hex"
    text.files[words] = "".join(f"{w}\n" for w in scaling.words(node.lanes)).encode()
    parameters = {
        "SUM_BITS": sums.bits, "LANES": node.lanes, "GROUPS": node.output.channels // node.lanes,
        "BIAS_BITS": bias, "MULTIPLIER_BITS": multiplier, "OFFSET_BITS": offset,
        "TOTAL_BITS": scaling.total_bits, "SHIFT": form.shift, "LOW": form.low, "HIGH": form.high,
        "BITS": BITS, "POWERS": int(form.ties_to_even), "EVEN": int(form.ties_to_even),
        "TABLES": len(form.tables), "WORDS": words,
    }  # fmt: skip
    if form.tables:
        parameters["ENTRIES"] = f"memories/{name}_tables.hex"
        text.files[parameters["ENTRIES"]] = "".join(f"{e}\n" for e in scaling.entries()).encode()
    return text.through("requantize", f"{name}_codes", parameters, sums, node.lanes)


def _add(text: Text, graph: Graph, node: Add, x: list[Wires], packing: int) -> Wires:
    name, bits = text.name(node.name), max(m.bit_length() for m in node.multipliers)
    parameters = {
        "BITS": BITS, "LANES": node.lanes, "FACTOR_BITS": bits,
        "FACTOR_A": Sized(node.multipliers[0], bits), "FACTOR_B": Sized(node.multipliers[1], bits),
        "SUM_BITS": node.accumulator, "OFFSET": Sized(node.offset, node.accumulator),
        "START": Sized(node.start, node.accumulator), "SHIFT": node.shift, "LOW": node.low, "HIGH": node.high,
        "EVEN": int(node.ties_to_even),
    }  # fmt: skip
    made = text.wires(f"{name}_codes", node.lanes)
    text.instance("add", f"{name}_add", parameters, {**x[0].ends("a"), **x[1].ends("b"), **made.ends("out")})
    return made


def _max_pool(text: Text, graph: Graph, node: MaxPool, x: list[Wires], packing: int) -> Wires:
    name = text.name(node.name)
    shape = geometry(node, graph.tensors[node.inputs[0].tensor])
    assert shape is not None
    taps = _window(text, name, x[0], shape)
    parameters = {"BITS": BITS, "LANES": node.lanes, "BEATS": shape.taps}
    return text.through("max", f"{name}_codes", parameters, taps, node.lanes)


def _reshape(text: Text, graph: Graph, node: Reshape, x: list[Wires], packing: int) -> Wires:
    return x[0]


def _lookup(text: Text, graph: Graph, node: Lookup, x: list[Wires], packing: int) -> Wires:
    name = text.name(node.name)
    path = f"memories/{name}_table.hex"
    text.files[path] = hex_lines(node.table.reshape(-1, 1))
    return text.through("lookup", f"{name}_codes", {"LANES": node.lanes, "TABLE": path}, x[0], node.lanes)


BUILDERS: dict[type[Node], Callable[[Text, Graph, Any, list[Wires], int], Wires]] = {
    Conv: _folded, Depthwise: _folded, Dense: _folded, AveragePool: _folded, GlobalAverage: _folded,
    Add: _add, MaxPool: _max_pool, Lookup: _lookup, Reshape: _reshape,
}  # fmt: skip


@dataclass(frozen=True)
class Sized:
    """A constant of a stated width, for those that 32 bits do not hold."""

    value: int
    bits: int


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, Sized):
        return f"{value.bits}'h{value.value & ((1 << value.bits) - 1):x}"
    return str(value)
