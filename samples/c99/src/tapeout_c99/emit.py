"""Writes an int8 graph as C99: the kernels that it uses, its weights, and one function that calls them in order."""

import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir

from tapeout import sdk
from tapeout_c99.lower import Lives, Program, bytes_of, ctype

SOURCE = Path(__file__).with_name("kernels.c").read_text(encoding="utf-8")
PRELUDE, *KERNELS = re.split(r"(?=^/\* kernel )", SOURCE, flags=re.M)


def emit(model: ir.Model, sink: BinaryIO, header: BinaryIO, rows: sdk.Declaration) -> None:
    """Write `model` to `sink` and its interface to `header`."""
    program, graph = Program(model, rows), model.graph
    offsets, arena = plan(program.lives)
    header.write(
        f"enum {{ model_inputs = {len(graph.inputs)}, model_outputs = {len(graph.outputs)}, model_arena = {arena} }};\n"
        "extern const unsigned long model_bytes[]; /* of the inputs, then of the outputs */\n"
        "void model_run(const void *const *inputs, void *const *outputs);\n".encode()
    )
    checksum = 0
    for part in text(graph, program, offsets, arena):
        checksum = zlib.crc32(part.encode(), checksum)
        sink.write(part.encode())
    sink.write(f"/* crc32 {checksum:08x} */\n".encode())


def plan(lives: Lives) -> tuple[dict[ir.Value, int], int]:
    """Where each tensor lies in the arena, and the arena's size: those that live at the same time lie apart. The
    largest is placed first, each at the lowest place that is free as long as it lives."""
    placed: list[tuple[int, ir.Value]] = []
    for value, (first, last) in sorted(lives.items(), key=lambda item: -bytes_of(item[0])):
        offset = 0
        for start, other in placed:
            end = start + bytes_of(other)
            if lives[other][0] <= last and first <= lives[other][1] and end > offset:
                if start >= offset + bytes_of(value):
                    break
                offset = -(-end // 4) * 4
        placed = sorted([*placed, (offset, value)], key=lambda item: item[0])
    return {v: at for at, v in placed}, max((at + bytes_of(v) for at, v in placed), default=0)


def text(graph: ir.Graph, program: Program, offsets: dict[ir.Value, int], arena: int) -> Iterator[str]:
    """The file in parts, one weight at a time."""
    places = {v: f"((const {ctype(v)} *)inputs[{i}])" for i, v in enumerate(graph.inputs)}
    for i, value in enumerate(graph.outputs):
        places.setdefault(value, f"(({ctype(value)} *)outputs[{i}])")
    places |= {v: f"(arena + {at})" for v, at in offsets.items()}
    places |= {v: name for name, v in program.constants.items()}
    made = [step.result for step in program.steps]
    facts = [[_port(v, program) for v in values] for values in (graph.inputs, graph.outputs, made)]
    yield "/* c99 " + json.dumps(facts).replace("/", "\\/") + " */\n" + PRELUDE
    yield from (k for k in KERNELS if k.split()[2].rstrip(":") in {s.kernel for s in program.steps})
    yield f"static int8_t arena[{arena}];\n" if arena else ""
    for i, (kind, numbers) in enumerate(program.weights):
        yield f"static const {kind} w{i}[] = {{\n"
        yield from _lines(numbers)
    sizes = ", ".join(str(bytes_of(v)) for v in (*graph.inputs, *graph.outputs))
    yield f"const unsigned long model_bytes[] = {{{sizes}}};\n"
    yield "void model_run(const void *const *inputs, void *const *outputs)\n{\n"
    for step in program.steps:  # `$0` and so on are what a kernel reads, `$y` is what it writes
        found = {str(i): places[program.root(v)] for i, v in enumerate(step.reads)}
        found["y"] = places[step.result]
        arguments = re.sub(r"\$(\w)", lambda m, found=found: found[m[1]], step.arguments)
        yield f"    {step.kernel}({arguments});\n    tapeout_trace({found['y']}, {bytes_of(step.result)});\n"
    for i, value in enumerate(graph.outputs):
        if f"outputs[{i}]" not in places[program.root(value)]:  # what no kernel writes there
            yield f"    memcpy(outputs[{i}], {places[program.root(value)]}, {bytes_of(value)});\n"
    yield "}\n"


def _port(value: ir.Value, program: Program) -> list[Any]:
    return [value.name, value.dtype.numpy().name, value.shape.numpy(), *program.grids.get(value, (0.0, 0))]


def _lines(numbers: ir.Value | np.ndarray[Any, Any]) -> Iterator[str]:
    array = np.asarray(sdk.graph.constant(numbers) if isinstance(numbers, ir.Value) else numbers).reshape(-1)
    for start in range(0, array.size, 32):
        yield ", ".join(map(str, array[start : start + 32].tolist())).translate({40: "{", 41: "}"}) + ",\n"
    yield "};\n"
