"""A circuit as C++ for high-level synthesis: the same netlist as the Verilog, a process for each instance.

It runs as it is with a C++14 compiler (`csim.py`). No vendor's tool has synthesised it here.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from typing import Any

from tapeout.targets.fpga.devices import device
from tapeout.targets.fpga.dialect import Graph
from tapeout.targets.fpga.layout import Codes, Scaling, Tables
from tapeout.targets.fpga.netlist import Instance, Memory, Netlist, Sized, Wires, port_names

COPIED = ("files.h", "kernels.h", "stream.h")


def emit(graph: Graph) -> dict[str, bytes]:
    """The files by their path: hls/top.h, top.cpp, memories.h, the library,
    the testbench, hls/vitis.tcl. Pure."""
    net = Netlist(graph)
    folder = files("tapeout.targets.fpga").joinpath("cpp")
    made = {name: folder.joinpath(name).read_bytes() for name in COPIED}
    made["top.h"] = _lines(_header(net))
    made["top.cpp"] = _lines(_top(net))
    made["testbench.cpp"] = _lines(_testbench(net))
    made["vitis.tcl"] = _lines(_vitis(graph))
    made["memories.h"] = _lines(_memories(net))
    return {f"hls/{name}": content for name, content in made.items()}


def _lines(lines: Iterator[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _header(net: Netlist) -> Iterator[str]:
    yield "#pragma once"
    yield '#include "kernels.h"'
    yield f"void top({_arguments(net)});"


def _testbench(net: Netlist) -> Iterator[str]:
    """A program that runs the circuit on files of codes."""
    sources, sinks = port_names(net.graph)
    borders = list(zip(sources + sinks, net.sources + net.sinks, strict=True))
    yield "// Runs the circuit on codes:  testbench FOLDER SAMPLES"
    yield "// Reads FOLDER/s_axis*.bin (one byte an element) and writes FOLDER/m_axis*.bin."
    yield '#include "files.h"'
    yield '#include "top.h"'
    yield "using namespace tapeout;"
    yield ""
    yield "int main(int argc, char** argv) {"
    yield '    if (argc != 3) return fprintf(stderr, "usage: testbench FOLDER SAMPLES\\n"), 2;'
    yield '    const std::string folder = std::string(argv[1]) + "/";'
    for axis, x in borders:
        path = f'(folder + "{axis}.bin")' if axis in sources else ""
        yield f"    File<{x.lanes}> {axis}_file{path};"
    yield "    for (long i = 0; i < atol(argv[2]); i++) {"
    for axis, x in borders:
        yield f"        Codes<{x.lanes}> {axis};"
    for axis, x in borders[: len(sources)]:
        yield f"        {axis}_file.give({axis}, {x.beats});"
    yield f"        top({', '.join(sources + sinks)});"
    for axis, x in borders[len(sources) :]:
        yield f"        {axis}_file.take({axis}, {x.beats});"
    yield "    }"
    for axis in sinks:
        yield f'    {axis}_file.save(folder + "{axis}.bin");'
    yield "}"


def _vitis(graph: Graph) -> Iterator[str]:
    """A script for Vitis HLS; C-simulation needs codes in the folder `data`."""
    place = device(graph.device)
    yield "# vitis_hls -f vitis.tcl, in this folder"
    yield "open_project -reset project"
    yield "set_top top"
    yield "add_files top.cpp"
    yield "add_files -tb testbench.cpp"
    yield "open_solution -reset solution"
    yield f"set_part {place.part}"
    yield f"create_clock -period {1000 / place.mhz:g}"
    yield "csynth_design"
    yield "export_design -format ip_catalog"


def _arguments(net: Netlist) -> str:
    sources, sinks = port_names(net.graph)
    streams = zip(sources + sinks, net.sources + net.sinks, strict=True)
    return ", ".join(f"tapeout::Codes<{x.lanes}>& {axis}" for axis, x in streams)


def _top(net: Netlist) -> Iterator[str]:
    """The parameters of every process, then a dataflow region that calls them in order."""
    sources, sinks = port_names(net.graph)
    names = {x.name: axis for axis, x in zip(sources, net.sources, strict=True)}
    depths: dict[str, int] = {}
    for instance in net.instances:  # a FIFO is a depth of the stream before it
        if instance.module == "fifo":
            before, after = instance.inputs["in"].name, instance.outputs["out"][0].name
            names[after] = names.get(before, before)
            depths[names[after]] = instance.parameters["DEPTH"]
    calls = [i for i in net.instances if i.module != "fifo"]
    yield f"// {net.graph.name} on {net.graph.device}"
    yield '#include "top.h"'
    yield '#include "memories.h"'
    yield "using namespace tapeout;"
    for instance in calls:
        yield _parameters(instance.name, instance.parameters, next(iter(instance.outputs.values()))[0].beats)
    for axis, x in zip(sinks, net.sinks, strict=True):
        yield _parameters(f"{axis}_copy", {}, x.beats)
    yield ""
    yield f"void top({_arguments(net)}) {{"
    for axis in sources + sinks:
        yield f"#pragma HLS INTERFACE axis port = {axis}"
    yield "#pragma HLS DATAFLOW"
    for instance in calls:
        for made in (x for streams in instance.outputs.values() for x in streams):
            yield f'    {_stream(made)} {made.name}("{made.name}");'
            yield f"#pragma HLS STREAM variable = {made.name} depth = {depths.get(made.name, 2)}"
    for instance in calls:
        if instance.comment:
            yield f"    // {instance.comment}"
        yield f"    {_call(instance, names)}"
    for axis, x in zip(sinks, net.sinks, strict=True):
        yield f"    copy<{axis}_copy_p>({names.get(x.name, x.name)}, {axis});"
    yield "}"


def _stream(x: Wires) -> str:
    return f"Codes<{x.lanes}>" if x.bits == 8 else f"Sums<{x.bits}, {x.lanes}>"


def _parameters(name: str, parameters: Any, beats: int) -> str:
    constants = [
        f"{key} = {value.value if isinstance(value, Sized) else value}"
        for key, value in {**parameters, "N": beats}.items()
        if not isinstance(value, str)
    ]
    return f"struct {name}_p {{ static constexpr int64_t {', '.join(constants)}; }};"


def _call(instance: Instance, names: dict[str, str]) -> str:
    streams = [*instance.inputs.values(), *(x for made in instance.outputs.values() for x in made)]
    taken = [names.get(x.name, x.name) for x in streams]
    memories = [v for v in instance.parameters.values() if isinstance(v, str)]
    return f"{instance.module}<{instance.name}_p>({', '.join(taken + memories)});"


def _memories(net: Netlist) -> Iterator[str]:
    """The memories as constants."""
    yield "#pragma once"
    yield '#include "kernels.h"'
    for name, memory in net.memories.items():
        kind, extent, rows = _memory(memory)
        yield f"static const {kind} {name}{extent} = {{"
        yield from (f"    {row}," for row in rows)
        yield "};"


def _memory(memory: Memory) -> tuple[str, str, Iterator[str]]:
    """Type, extent and rows of a memory."""
    if isinstance(memory, Codes):
        depth, width = memory.words.shape
        rows = ("{" + ", ".join(map(str, row)) + "}" for row in memory.words.tolist())
        return "tapeout::Code", f"[{depth}][{width}]", rows
    if isinstance(memory, Scaling):
        fields = ("{" + ", ".join(map(str, f)) + "}" for f in memory.fields)
        return "tapeout::Scale", f"[{len(memory.fields)}]", fields
    assert isinstance(memory, Tables)
    return "int64_t", f"[{len(memory.entries)}]", (str(e) for e in memory.entries)
