"""Loads a model into the canonical IR: a file, text or protobuf in, a graph under our conventions out."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from tapeout.compiler.errors import InvalidModelError, TapeoutError
from tapeout.compiler.ir import check, convert, external, schemas, wire
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.budget import Budget
from tapeout.compiler.ir.build import ModelBuilder
from tapeout.compiler.ir.functions import OPSET
from tapeout.compiler.ir.shapes import infer
from tapeout.compiler.ir.tensors import TensorReader

# model.meta[FILES]: the paths of all files that the model was read from, the model file first.
FILES = "tapeout.files"


def load(path: str | Path, *, budget: Budget | None = None) -> ir.Model:
    """Load an ONNX file of opset 7 to 28 into the canonical IR.

    Large tensors are views of the mapped files. Raises UsageError (no such file), OutputError (unreadable),
    InvalidModelError (damaged, unsafe or not ONNX), UnsupportedError (no canonical form), ResourceError
    (budget).
    """
    path, budget = Path(path), budget or Budget()
    data = external.open_model(path)
    files = external.ExternalFiles(path.parent)
    try:
        proto, references = wire.shell(data, budget)
        model = _import(proto, TensorReader(budget, files, data, references), budget)
    except TapeoutError as error:
        error.message = f"{path}: {error.message}"
        error.args = (error.message,)
        raise
    model.meta[FILES] = [str(path), *map(str, files.paths)]
    return model


def from_proto(
    proto: onnx.ModelProto, *, folder: Path | None = None, budget: Budget | None = None
) -> ir.Model:
    """The same import from memory; `folder` is where external data lies. Raises as `load` does."""
    budget = budget or Budget()
    model = _import(proto, TensorReader(budget, external.ExternalFiles(folder)), budget)
    model.meta[FILES] = []
    return model


def from_text(text: str, *, budget: Budget | None = None) -> ir.Model:
    """The same import from ONNX's text syntax. Raises as `load` does."""
    try:
        proto = onnx.parser.parse_model(text)
    except (onnx.parser.ParseError, DecodeError) as error:
        raise InvalidModelError(f"the text is no ONNX model: {error}") from error
    return from_proto(proto, budget=budget)


def source_digests(model: ir.Model) -> dict[str, str]:
    """{path: SHA-256} of all files that `model` was read from."""
    return {path: external.digest(path) for path in model.meta.get(FILES, [])}


def _import(proto: onnx.ModelProto, tensors: TensorReader, budget: Budget) -> ir.Model:
    try:
        builder = ModelBuilder(_with_types(proto), tensors, budget)
        model = builder.build()
    except (UnicodeDecodeError, DecodeError) as error:
        raise InvalidModelError(f"the model holds text that is not UTF-8: {error}") from error
    _order(model.graph)
    g.share_names(model.graph)
    infer(model)
    for value in builder.types.stated:
        # What inference cannot know (operators of other domains) is believed to the source.
        if value.type is None or value.shape is None:
            type_, shape = builder.types.declared(value)
            value.type = value.type or type_
            if value.shape is None and type_ == value.type:
                value.shape = shape
    found = check.faults(model)
    if found:
        raise InvalidModelError("the model is not valid: " + "; ".join(found))
    return model


# --- types for conversion -------------------------------------------------------------------------------


def _with_types(proto: onnx.ModelProto) -> onnx.ModelProto:
    """`proto`, its inner types inferred where the conversion of an operator asks for them.

    What the file states for inner values is not trusted for that, unless an operator of another domain is
    among them.
    """
    versions = {schemas.domain(o.domain): o.version for o in proto.opset_import}
    version = versions.get("", OPSET)
    domains: set[str] = set()
    if not _asks(proto.graph, version, domains, 0):
        return proto
    typed = onnx.ModelProto()
    typed.CopyFrom(proto)
    if not domains - {""}:
        del typed.graph.value_info[:]
    try:
        typed = onnx.shape_inference.infer_shapes(typed, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError, DecodeError):
        return proto
    # Interfaces stay as the source states them.
    del typed.graph.output[:]
    typed.graph.output.extend(proto.graph.output)
    return typed


def _asks(graph: onnx.GraphProto, version: int, domains: set[str], depth: int) -> bool:
    found = False
    for node in graph.node:
        domains.add(schemas.domain(node.domain))
        found = found or convert.needs_types(node.op_type, version)
        if version > OPSET and not found:
            schema, _ = schemas.find(node.op_type, version)
            found = schema is not None and schema.since_version > OPSET
        for attribute in node.attribute:
            if depth < 64 and attribute.type == onnx.AttributeProto.GRAPH:
                found = _asks(attribute.g, version, domains, depth + 1) or found
    return found


# --- order ----------------------------------------------------------------------------------------------


def _order(graph: ir.Graph) -> None:
    """Bring nodes into an order in which every value is made before it is read."""
    if _in_order(graph, set()):
        return
    try:
        graph.sort()
    except ValueError:
        names = _cycle(graph)
        raise InvalidModelError(
            "the graph has a cycle: " + " -> ".join(f"'{n}'" for n in names[:20]), nodes=names
        ) from None
    if not _in_order(graph, set()):
        raise InvalidModelError("the graph reads values of a subgraph outside it")


def _in_order(graph: ir.Graph, known: set[ir.Node]) -> bool:
    for node in graph:
        for value in node.inputs:
            made = None if value is None else value.producer()
            if made is not None and made not in known:
                return False
        for sub in _subgraphs(node):
            if not _in_order(sub, known):
                return False
        known.add(node)
    return True


def _subgraphs(node: ir.Node) -> list[ir.Graph]:
    found: list[ir.Graph] = []
    for a in node.attributes.values():
        if a.type == ir.AttributeType.GRAPH:
            found.append(a.value)
        elif a.type == ir.AttributeType.GRAPHS:
            found.extend(a.value)
    return found


def _cycle(graph: ir.Graph) -> list[str]:
    """The names of the nodes of one cycle, the first repeated at the end."""
    needs: dict[ir.Node, list[ir.Node]] = {}
    for node in graph:
        inside = [node, *(n for sub in _subgraphs(node) for n in ir.traversal.RecursiveGraphIterator(sub))]
        reads = (v.producer() for n in inside for v in n.inputs if v is not None)
        needs[node] = [n for n in dict.fromkeys(reads) if n is not None and n.graph is graph]
    done: set[ir.Node] = set()
    for start in needs:
        path: dict[ir.Node, int] = {}
        stack = [(start, iter(needs[start]))]
        while stack:
            node, rest = stack[-1]
            path.setdefault(node, len(path))
            step = next((n for n in rest if n not in done), None)
            if step is None:
                done.add(node)
                path.pop(node)
                stack.pop()
            elif step in path:
                ring = list(path)[path[step] :]
                return [n.name or "" for n in reversed([*ring, step])]
            else:
                stack.append((step, iter(needs[step])))
    inner = [sub for node in needs for sub in _subgraphs(node)]
    return next((names for sub in inner if (names := _cycle(sub))), [])
