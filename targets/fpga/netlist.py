"""A circuit as instances of the library's modules, joined by streams: what both Verilog and C++ are printed from.

The modules and their parameters are those of rtl/*.v; kernels.h has a function of the same name for each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
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
from tapeout.targets.fpga.layout import Codes, Geometry, Scaling, Tables, folds, geometry, weight_words

BITS = 8
Memory = Codes | Scaling | Tables


@dataclass(frozen=True)
class Wires:
    """A stream: the elements of a beat, their bits, the beats of an inference."""

    name: str
    lanes: int
    beats: int
    bits: int = BITS

    @property
    def width(self) -> int:
        return self.lanes * self.bits


@dataclass(frozen=True)
class Sized:
    """A constant of a stated width, for those that 32 bits do not hold."""

    value: int
    bits: int


@dataclass(frozen=True)
class Instance:
    """A module with its parameters (a str names a memory) and the streams at its ports; several at one port lie
    beside one another."""

    module: str
    name: str
    parameters: Mapping[str, Any]
    inputs: Mapping[str, Wires]
    outputs: Mapping[str, tuple[Wires, ...]]
    comment: str = ""


@dataclass
class Netlist:
    """Streams and instances in an order in which each comes after what it reads; memories by name; the streams at
    the borders in the order of the graph's ports."""

    graph: Graph
    packing: int = 1
    stalls: bool = False
    instances: list[Instance] = field(default_factory=list)
    memories: dict[str, Memory] = field(default_factory=dict)
    sources: list[Wires] = field(default_factory=list)
    sinks: list[Wires] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    edges: dict[tuple[str, int], Wires] = field(default_factory=dict)  # by reader and its input

    def __post_init__(self) -> None:
        for tensor in self.graph.tensors.values():
            if tensor.bits != BITS or not tensor.signed:
                raise InternalError(
                    f"tensor '{tensor.name}': {tensor.bits} bits, expected {BITS} signed ones"
                )
        self.sinks = [Wires("", 1, 0)] * len(self.graph.output_ports)
        for port in self.graph.input_ports:
            beats = self.graph.tensors[port.tensor].elements // port.lanes
            self.sources.append(Wires(self.name(f"{port.name}~in"), port.lanes, beats))
            self._deliver(port.tensor, self.sources[-1])
        for node in self.graph.nodes:
            x = [self.edges[node.name, i] for i in range(len(node.inputs))]
            first = len(self.instances)
            made = BUILDERS[type(node)](self, node, x)
            self._comment(first, f"{type(node).__name__} {node.name}: {', '.join(node.source)}")
            self._deliver(node.output.name, made)

    def streams(self) -> Iterator[Wires]:
        """Every stream once."""
        yield from self.sources
        for instance in self.instances:
            for made in instance.outputs.values():
                yield from made

    @property
    def patience(self) -> int:
        """Cycles within which a circuit that nobody stalls moves a beat at its borders: those of all its streams,
        as if one waited for another."""
        return 1000 + 2 * sum(x.beats for x in self.streams())

    def name(self, source: str) -> str:
        """An identifier for a name of the graph, the same for the same name."""
        if source not in self.names:
            plain = re.sub(r"[\W_]+", "_", source).strip("_") or "node"
            plain = plain if plain[0].isalpha() else f"n_{plain}"
            taken = {t.lower() for t in self.names.values()}
            fresh = (plain if i == 0 else f"{plain}_{i}" for i in range(len(taken) + 1))
            self.names[source] = next(n for n in fresh if n.lower() not in taken)
        return self.names[source]

    def through(self, module: str, name: str, parameters: Mapping[str, Any], x: Wires, made: Wires) -> Wires:
        """The stream out of an instance that takes the stream `x`."""
        self.instances.append(Instance(module, f"{name}_{module}", parameters, {"in": x}, {"out": (made,)}))
        return made

    def resized(self, name: str, x: Wires, lanes: int) -> Wires:
        """By way of the largest width that divides both, where neither divides the other."""
        for step in (gcd(x.lanes, lanes), lanes):
            if step != x.lanes:
                made = Wires(f"{name}_{step}", step, x.beats * x.lanes // step, x.bits)
                x = self.through("resize", made.name, {"BITS": x.bits, "IN": x.lanes, "OUT": step}, x, made)
        return x

    def _comment(self, index: int, words: str) -> None:
        if index < len(self.instances):
            at = self.instances[index]
            self.instances[index] = Instance(at.module, at.name, at.parameters, at.inputs, at.outputs, words)

    def _deliver(self, tensor: str, made: Wires) -> None:
        """Takes a tensor's stream to its readers: a fork where there are several, then for each reader a width
        converter and the FIFO in front of it."""
        readers = [(n, i, s) for n in self.graph.nodes for i, s in enumerate(n.inputs) if s.tensor == tensor]
        ports = [i for i, p in enumerate(self.graph.output_ports) if p.tensor == tensor]
        branches = self._fork(made, len(readers) + len(ports))
        for branch, (node, i, stream) in zip(branches, readers, strict=False):
            self.edges[node.name, i] = self._reader(f"{node.name}~x{i}", branch, stream.lanes, stream.depth)
        for branch, i in zip(branches[len(readers) :], ports, strict=True):
            port = self.graph.output_ports[i]
            self.sinks[i] = self._reader(f"{port.name}~out", branch, port.lanes, port.depth)

    def _fork(self, x: Wires, count: int) -> list[Wires]:
        if count == 1:
            return [x]
        branches = tuple(Wires(f"{x.name}_{i}", x.lanes, x.beats) for i in range(count))
        parameters = {"BITS": x.width, "COUNT": count}
        self.instances.append(Instance("fork", f"{x.name}_fork", parameters, {"in": x}, {"out": branches}))
        return list(branches)

    def _reader(self, source: str, x: Wires, lanes: int, depth: int) -> Wires:
        """The stream as a reader takes it."""
        name = self.name(source)
        if self.stalls:
            parameters = {"BITS": x.width, "SEED": len(self.instances)}
            x = self.through("stall", name, parameters, x, Wires(f"{name}_stalled", x.lanes, x.beats))
        x = self.resized(name, x, lanes)
        if depth:
            made = Wires(name, lanes, x.beats)
            x = self.through("fifo", name, {"BITS": x.width, "DEPTH": depth}, x, made)
        return x


def _window(net: Netlist, name: str, x: Wires, shape: Geometry) -> Wires:
    window = shape.window
    parameters = {
        "BITS": BITS, "LANES": x.lanes, "GROUPS": shape.groups, "HEIGHT": shape.height, "WIDTH": shape.width,
        "KERNEL_H": window.kernel[0], "KERNEL_W": window.kernel[1],
        "STRIDE_H": window.strides[0], "STRIDE_W": window.strides[1],
        "DILATION_H": window.dilations[0], "DILATION_W": window.dilations[1],
        "TOP": window.pads[0], "LEFT": window.pads[1], "OUT_H": shape.out[0], "OUT_W": shape.out[1],
        "ROWS": shape.rows, "REPEAT": shape.repeat, "GROUPWISE": int(shape.groupwise), "FILL": window.fill,
    }  # fmt: skip
    beats = shape.out[0] * shape.out[1] * shape.repeat * shape.taps * shape.groups
    return net.through("window", f"{name}_taps", parameters, x, Wires(f"{name}_taps", x.lanes, beats))


def _folded(net: Netlist, node: Folded, x: list[Wires]) -> Wires:
    """Sliding window, sums of products, requantizers."""
    name, tensor = net.name(node.name), net.graph.tensors[node.inputs[0].tensor]
    shape = geometry(node, tensor)
    sums = Wires(f"{name}_sums", node.pe, node.output.elements // node.pe, node.accumulator)
    if isinstance(node, GlobalAverage):
        parameters: dict[str, Any] = {
            "BITS": BITS, "LANES": node.pe, "GROUPS": folds(node), "PIXELS": tensor.pixels,
            "SUM_BITS": node.accumulator,
        }  # fmt: skip
        return _requantized(net, name, node, net.through("channel_sum", sums.name, parameters, x[0], sums))
    assert shape is not None
    taps = _window(net, name, x[0], shape)
    parameters = {
        "BITS": BITS, "WEIGHT_BITS": 0, "SUM_BITS": node.accumulator, "PE": node.pe, "SIMD": node.simd,
        "BEATS": taps.beats // sums.beats, "FOLDS": folds(node), "LANEWISE": int(shape.groupwise),
        "PACK": int(net.packing > 1 and node.pe > 1 and not shape.groupwise),
    }  # fmt: skip
    if isinstance(node, Conv | Dense | Depthwise):
        net.memories[f"{name}_weights"] = Codes(weight_words(node))
        parameters |= {"WEIGHT_BITS": 8, "WEIGHTS": f"{name}_weights"}
    return _requantized(net, name, node, net.through("mac", sums.name, parameters, taps, sums))


def _requantized(net: Netlist, name: str, node: Folded, sums: Wires) -> Wires:
    """The codes of sums, `node.lanes` at once."""
    sums = net.resized(f"{name}_shares", sums, node.lanes)
    form, scaling = node.requantize, Scaling(node.bias, node.requantize, node.accumulator, node.lanes)
    bias, multiplier, offset, _ = scaling.widths
    net.memories[f"{name}_scales"] = scaling
    parameters = {
        "SUM_BITS": sums.bits, "LANES": node.lanes, "GROUPS": node.output.channels // node.lanes,
        "BIAS_BITS": bias, "MULTIPLIER_BITS": multiplier, "OFFSET_BITS": offset,
        "TOTAL_BITS": scaling.total_bits, "SHIFT": form.shift, "LOW": form.low, "HIGH": form.high,
        "BITS": BITS, "POWERS": int(form.ties_to_even), "EVEN": int(form.ties_to_even),
        "TABLES": len(form.tables), "WORDS": f"{name}_scales",
    }  # fmt: skip
    if form.tables:
        net.memories[f"{name}_tables"] = Tables(form, node.accumulator)
        parameters["ENTRIES"] = f"{name}_tables"
    made = Wires(f"{name}_codes", node.lanes, sums.beats)
    return net.through("requantize", made.name, parameters, sums, made)


def _add(net: Netlist, node: Add, x: list[Wires]) -> Wires:
    name, bits = net.name(node.name), max(m.bit_length() for m in node.multipliers)
    parameters = {
        "BITS": BITS, "LANES": node.lanes, "FACTOR_BITS": bits,
        "FACTOR_A": Sized(node.multipliers[0], bits), "FACTOR_B": Sized(node.multipliers[1], bits),
        "SUM_BITS": node.accumulator, "OFFSET": Sized(node.offset, node.accumulator),
        "START": Sized(node.start, node.accumulator), "SHIFT": node.shift, "LOW": node.low, "HIGH": node.high,
        "EVEN": int(node.ties_to_even),
    }  # fmt: skip
    made = Wires(f"{name}_codes", node.lanes, x[0].beats)
    net.instances.append(Instance("add", f"{name}_add", parameters, {"a": x[0], "b": x[1]}, {"out": (made,)}))
    return made


def _max_pool(net: Netlist, node: MaxPool, x: list[Wires]) -> Wires:
    name = net.name(node.name)
    shape = geometry(node, net.graph.tensors[node.inputs[0].tensor])
    assert shape is not None
    taps = _window(net, name, x[0], shape)
    parameters = {"BITS": BITS, "LANES": node.lanes, "BEATS": shape.taps}
    made = Wires(f"{name}_codes", node.lanes, taps.beats // shape.taps)
    return net.through("max", made.name, parameters, taps, made)


def _lookup(net: Netlist, node: Lookup, x: list[Wires]) -> Wires:
    name = net.name(node.name)
    net.memories[f"{name}_table"] = Codes(node.table.reshape(-1, 1))
    made = Wires(f"{name}_codes", node.lanes, x[0].beats)
    return net.through("lookup", made.name, {"LANES": node.lanes, "TABLE": f"{name}_table"}, x[0], made)


def _reshape(net: Netlist, node: Reshape, x: list[Wires]) -> Wires:
    return x[0]


BUILDERS: dict[type[Node], Callable[[Netlist, Any, list[Wires]], Wires]] = {
    Conv: _folded, Depthwise: _folded, Dense: _folded, AveragePool: _folded, GlobalAverage: _folded,
    Add: _add, MaxPool: _max_pool, Lookup: _lookup, Reshape: _reshape,
}  # fmt: skip


def port_names(graph: Graph) -> tuple[list[str], list[str]]:
    """The AXI-Stream names of input and output ports, in order."""

    def named(prefix: str, count: int) -> list[str]:
        return [prefix] if count == 1 else [f"{prefix}_{i}" for i in range(count)]

    return named("s_axis", len(graph.input_ports)), named("m_axis", len(graph.output_ports))
