"""What a user needs besides the circuit: golden vectors with a testbench, and scripts for synthesis."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tapeout.targets.fpga import integer
from tapeout.targets.fpga.devices import Device
from tapeout.targets.fpga.dialect import Array, Graph, Port
from tapeout.targets.fpga.netlist import Netlist, port_names

SAMPLES = 4  # golden vectors

SIMULATE = """\
#!/bin/sh
# Simulates the circuit on the golden vectors: the Verilog with Verilator or Icarus Verilog, the C++ with g++.
set -e
cd "$(dirname "$0")"
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
if command -v verilator >/dev/null; then
    verilator --binary --timing -O3 -Wno-fatal -Wno-lint --top-module testbench --Mdir "$build" -o testbench \\
        rtl/*.v testbench.v >/dev/null
    "$build/testbench" | tee "$build/said"
    grep -q ", 0 wrong beats" "$build/said"
elif command -v iverilog >/dev/null; then
    iverilog -g2005 -s testbench -o "$build/testbench" rtl/*.v testbench.v
    vvp -n "$build/testbench" | tee "$build/said"
    grep -q ", 0 wrong beats" "$build/said"
else
    echo "Verilog is not simulated: apt-get install verilator (or iverilog)"
fi
if command -v g++ >/dev/null; then
    g++ -std=c++14 -O2 -w hls/top.cpp hls/testbench.cpp -o "$build/c"
    cp vectors/s_axis*.bin "$build"
    "$build/c" "$build" {samples}
    for made in "$build"/m_axis*.bin; do cmp "$made" "vectors/$(basename "$made")"; done
    echo "C++: {samples} inferences as expected"
else
    echo "C++ is not run: apt-get install g++"
fi
"""

VIVADO = """\
# vivado -mode batch -source synthesis/vivado.tcl, in the folder above
read_verilog [glob rtl/*.v]
add_files [glob memories/*.hex]
synth_design -top top -part {part} -mode out_of_context
create_clock -name aclk -period {period:g} [get_ports aclk]
opt_design
place_design
route_design
report_utilization -file synthesis/utilization.txt
report_timing_summary -file synthesis/timing.txt
"""

YOSYS = """\
# yosys -s synthesis/yosys.ys, in the folder above
read_verilog rtl/*.v
{command} -top top
stat
write_json synthesis/top.json
"""

ECP5 = """\
#!/bin/sh
# Places and routes what yosys has written, with every pin free: for the clock, not for a board.
set -e
cd "$(dirname "$0")"
nextpnr-ecp5 --85k --package {part} --json top.json --freq {mhz} --lpf-allow-unconstrained --timing-allow-fail \\
    --textcfg top.config --report timing.json
ecppack top.config top.bit
"""

OPENXC7 = """\
#!/bin/sh
# Places and routes what yosys has written, with openXC7: CHIPDB is its database for {part}, PINS an .xdc file
# that gives every port of the top module a pin, PRJXRAY the folder of its database.
set -e
cd "$(dirname "$0")"
nextpnr-xilinx --chipdb "$CHIPDB" --xdc "$PINS" --json top.json --freq {mhz} --fasm top.fasm
fasm2frames --part {part} --db-root "$PRJXRAY" top.fasm > top.frames
xc7frames2bit --part_file "$PRJXRAY/{part}/part.yaml" --frm_file top.frames --output_file top.bit
"""

# How yosys is called for a family.
SYNTHESIS = {
    "xc7": "synth_xilinx -family xc7 -flatten",
    "xcup": "synth_xilinx -family xcup -flatten",
    "ecp5": "synth_ecp5",
}


def emit(graph: Graph, device: Device) -> dict[str, bytes]:
    """The files by their path: testbench.v, simulate.sh, vectors/*, synthesis/*. Pure."""
    made = {
        "testbench.v": testbench(graph),
        "simulate.sh": SIMULATE.format(samples=SAMPLES).encode(),
        "synthesis/yosys.ys": YOSYS.format(command=SYNTHESIS[device.family]).encode(),
    }
    facts = {"part": device.part, "mhz": device.mhz, "period": 1000 / device.mhz}
    if device.family == "ecp5":
        made["synthesis/nextpnr.sh"] = ECP5.format(**facts).encode()
    else:
        made["synthesis/vivado.tcl"] = VIVADO.format(**facts).encode()
    if device.family == "xc7":
        made["synthesis/openxc7.sh"] = OPENXC7.format(**facts).encode()
    return made | _vectors(graph)


def beats(codes: Array, lanes: int) -> bytes:
    """The hexadecimal words of codes in the order of the stream, one beat a line, the first element lowest."""
    words = codes.astype(np.int8).reshape(-1, lanes)[:, ::-1]
    return "".join(word.tobytes().hex() + "\n" for word in words).encode()


def _vectors(graph: Graph) -> dict[str, bytes]:
    """Random codes at the inputs and what they make."""
    rng = np.random.default_rng(0)
    codes = {
        t.name: rng.integers(t.low, t.high + 1, (SAMPLES, t.pixels, t.channels)).reshape(SAMPLES, *t.shape)
        for t in graph.inputs
    }
    values = integer.run(graph, codes)
    files = {}
    for names, ports in zip(port_names(graph), (graph.input_ports, graph.output_ports), strict=True):
        for axis, port in zip(names, ports, strict=True):
            files[f"vectors/{axis}.hex"] = beats(values[port.tensor], port.lanes)
            files[f"vectors/{axis}.bin"] = values[port.tensor].astype(np.int8).tobytes()
    return files


def testbench(graph: Graph) -> bytes:
    """A module that feeds the vectors as fast as they are taken and compares what comes out."""
    return "".join(f"{line}\n" for line in _testbench(graph)).encode()


def _testbench(graph: Graph) -> Iterator[str]:
    sources, sinks = port_names(graph)
    tensors = graph.tensors
    yield "// Feeds vectors/s_axis*.hex, writes m_axis*.out and compares it with vectors/m_axis*.hex."
    yield "module testbench;"
    yield f"    parameter SAMPLES = {SAMPLES};"
    yield '    parameter FOLDER = "vectors";'
    yield "    reg aclk = 0, aresetn = 0;"
    yield "    integer cycle = 0, wrong = 0, first = 0, quiet = 0;"
    yield "    always #5 aclk = !aclk;"
    for axis, port in zip(sources, graph.input_ports, strict=True):
        yield from _source(axis, port, tensors[port.tensor].elements // port.lanes)
    for axis, port in zip(sinks, graph.output_ports, strict=True):
        yield from _sink(axis, port, tensors[port.tensor].elements // port.lanes)
    ends = [f".{a}_t{p}({a}_t{p})" for a in sources + sinks for p in ("valid", "ready", "data")]
    yield f"    top circuit (.aclk(aclk), .aresetn(aresetn), {', '.join(ends)});"
    moved = " || ".join(f"({a}_tvalid && {a}_tready)" for a in sources + sinks)
    done = " && ".join(f"{a}_place == {a}_BEATS" for a in sinks)
    one = " && ".join(f"{a}_place >= {a}_BEATS / SAMPLES" for a in sinks)
    patience = Netlist(graph).patience
    yield "    always @(posedge aclk) begin"
    yield "        cycle <= cycle + 1;"
    yield "        aresetn <= cycle >= 4;"
    yield f"        quiet <= {moved} ? 0 : quiet + 1;"
    yield f"        if (first == 0 && {one}) first <= cycle - 5;"
    yield f"        if ({done}) begin"
    yield '            $display("Verilog: %0d inferences, %0d wrong beats, the first after %0d cycles, all after %0d",'
    yield "                SAMPLES, wrong, first, cycle - 5);"
    yield "            $finish;"
    yield "        end"
    yield f"        if (quiet > {patience}) begin"
    yield '            $display("Verilog: no beat moved for %0d cycles", quiet);'
    yield "            $finish;"
    yield "        end"
    yield "    end"
    yield "endmodule"


def _source(axis: str, port: Port, beats: int) -> Iterator[str]:
    yield f"    localparam {axis}_BEATS = SAMPLES * {beats};"
    yield f"    reg [{port.lanes * 8 - 1}:0] {axis}_words[0:{axis}_BEATS-1];"
    yield f"    integer {axis}_place = 0;"
    yield f"    wire {axis}_tready;"
    yield f"    wire {axis}_tvalid = aresetn && {axis}_place < {axis}_BEATS;"
    yield f"    wire [{port.lanes * 8 - 1}:0] {axis}_tdata = {axis}_words[{axis}_place];"
    yield f'    initial $readmemh({{FOLDER, "/{axis}.hex"}}, {axis}_words);'
    yield f"    always @(posedge aclk) if ({axis}_tvalid && {axis}_tready) {axis}_place <= {axis}_place + 1;"


def _sink(axis: str, port: Port, beats: int) -> Iterator[str]:
    yield f"    localparam {axis}_BEATS = SAMPLES * {beats};"
    yield f"    reg [{port.lanes * 8 - 1}:0] {axis}_words[0:{axis}_BEATS-1];"
    yield f"    integer {axis}_place = 0;"
    yield f"    integer {axis}_file;"
    yield f"    wire {axis}_tvalid;"
    yield f"    wire {axis}_tready = aresetn;"
    yield f"    wire [{port.lanes * 8 - 1}:0] {axis}_tdata;"
    yield "    initial begin"
    yield f'        $readmemh({{FOLDER, "/{axis}.hex"}}, {axis}_words);'
    yield f'        {axis}_file = $fopen({{FOLDER, "/{axis}.out"}}, "w");'
    yield "    end"
    yield f"    always @(posedge aclk) if ({axis}_tvalid && {axis}_tready && {axis}_place < {axis}_BEATS) begin"
    yield f'        $fdisplay({axis}_file, "%h", {axis}_tdata);'
    yield f"        if ({axis}_tdata !== {axis}_words[{axis}_place]) wrong = wrong + 1;"
    yield f"        {axis}_place <= {axis}_place + 1;"
    yield "    end"
