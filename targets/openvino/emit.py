"""Writes a legalized graph as OpenVINO's two files: the graph as XML, the weights beside it."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import onnx
import onnx_ir as ir

from tapeout.sdk import Request, UnsupportedError, save, states
from tapeout.sdk import graph as g
from tapeout.targets.openvino.functions import centred, turned, unsigned, written_out
from tapeout.targets.openvino.joined import rounded
from tapeout.targets.openvino.mend import BIASED, UNBIASED, bodies, mend, readable
from tapeout.targets.openvino.moved import carry
from tapeout.targets.openvino.preparation import embed, preparations
from tapeout.targets.openvino.runtime import core, openvino
from tapeout.targets.openvino.sharing import filled, outlined, shared
from tapeout.targets.openvino.states import keep
from tapeout.targets.openvino.weights import restored, withheld

CHUNK = 1 << 20
MESSAGE = 1 << 30  # bytes of weights that one protobuf message may hold, with room for all else


def emit(model: ir.Model, sink: BinaryIO, request: Request, weights: BinaryIO) -> None:
    """Write `model`, which the passes have legalized and the declaration accepts, to `sink` and `weights`.

    Raises UnsupportedError for a node without a row: the front end may well read it, and compute something else.
    """
    from tapeout.targets.openvino import declaration

    for refusal in declaration(request.device).accept(model).refused:
        raise UnsupportedError(str(refusal), nodes=[refusal.node.name or ""])
    with tempfile.TemporaryDirectory(prefix="tapeout-") as folder:
        shell, stored = withheld(written_out(model))
        made, _held = build(shell, Path(folder))
        restored(made, stored)
        turned(made)
        rounded(made)
        keep(made, states(model, request.options))
        made = embed(made, preparations(model, request.options))
        named(made, known_names(model))
        made.set_friendly_name(model.graph.name or "model")
        place = Path(folder) / "out.xml"
        openvino().save_model(made, place, compress_to_fp16=False)
        for source, stream in ((place, sink), (place.with_suffix(".bin"), weights)):
            _copied(source, stream)


def _copied(source: Path, stream: BinaryIO) -> None:
    with source.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for start in range(0, len(content), CHUNK):
                stream.write(content[start : start + CHUNK])


def build(model: ir.Model, folder: Path) -> tuple[Any, list[Any]]:
    """`model` as an openvino.Model, and what must outlive that besides `folder`, through which a model passes that
    no message holds."""
    weights = shared(model)
    size = sum(
        v.const_value.nbytes
        for graph in g.graphs(model)
        for v in graph.initializers.values()
        if v.const_value and v.name not in weights
    )
    if size < MESSAGE:
        proto = outlined(model, weights)
        carry(proto.graph)
        centred(proto.graph)
        unsigned(proto.graph)
        readable(proto.graph, kernel_ranks(model))
        made = core().read_model(proto.SerializeToString(), b"")
    else:
        place = folder / "graph.onnx"
        save(model, place)
        proto = onnx.load(place, load_external_data=False)
        carry(proto.graph)
        centred(proto.graph)
        unsigned(proto.graph)
        readable(proto.graph, kernel_ranks(model))
        place.write_bytes(proto.SerializeToString())
        made, weights = core().read_model(place), {}
    held = filled(made, weights)
    _called(made, [v.name for v in model.graph.inputs if v.name and (v.uses() or v.is_graph_output())])
    mend(made)
    return made, held


def _called(made: Any, inputs: Sequence[str]) -> None:
    """Call each parameter after its input: one that is an output too has that name alone."""
    known = {name for p in made.get_parameters() for name in p.output(0).get_names()}
    missing = [name for name in inputs if name not in known]
    nameless = [p for p in made.get_parameters() if not p.output(0).get_names().intersection(inputs)]
    for parameter, name in zip(nameless, missing, strict=False):
        parameter.output(0).add_names({name})


def kernel_ranks(model: ir.Model) -> dict[str, int]:
    """The ranks of what convolutions read as their kernels."""
    kernels = [n.inputs[1] for n in model.graph if n.op_type in BIASED and len(n.inputs) > 1]
    return {v.name or "": g.rank(v) or 0 for v in kernels if v is not None}


def known_names(model: ir.Model) -> set[str]:
    """Names that operators of the file keep: of the graph's nodes, and of its weights."""
    names = {n.name for graph in g.graphs(model) for n in graph if n.name}
    return names | {name for graph in g.graphs(model) for name in graph.initializers}


def named(made: Any, known: set[str]) -> None:
    """Number afresh what has a name of the runtime's own, which counts on in a process."""
    kept = known | {name for port in (*made.inputs, *made.outputs) for name in port.get_names()}
    counts: dict[str, int] = {}

    def visit(body: Any) -> None:
        for op in body.get_ordered_ops():
            if op.get_friendly_name().removesuffix(UNBIASED) not in kept:
                kind = op.get_type_name()
                counts[kind] = counts.get(kind, -1) + 1
                op.set_friendly_name(f"{kind}~{counts[kind]}")
            for inner in bodies(op):
                visit(inner)

    visit(made)
