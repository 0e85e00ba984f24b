"""What became of the numbers: bits of every tensor, bytes that stay wide, conversions, and the share of the
multiply-accumulates at each width; counted in the graph itself."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator
from typing import Any

import onnx_ir as ir

from tapeout.compiler.declaration import source_name
from tapeout.compiler.ir import graph as g
from tapeout.compiler.operations import CONVOLUTIONS, LAST, MATRIX, RECURRENT, operations
from tapeout.compiler.operators import DEQUANTIZE, dtype_name, operator_name, storage
from tapeout.passes.quantization.islands import spectral
from tapeout.passes.quantization.ranges import source_names

META = "tapeout.quantization"
PRODUCTS = CONVOLUTIONS | MATRIX | RECURRENT | {"ConvTranspose", "Einsum", "Attention"}
FUSED = ("Relu", "Clip")


def quantization_report(model: ir.Model) -> dict[str, Any]:
    """Counts for the report of an export, in the order of the graph:

    `clusters` and `float`: how many nodes of each operator compute in integers and in floating-point;
    `left`: why nodes stay in floating-point, each reason with the source names; `activations` and `weights`:
    tensors and bytes by storage type (a free dimension counts as 1); `wide_activation_bytes`: of activations
    wider than 8 bits; `bits`: those of every tensor by source name; `boundaries`: conversions from float
    (`quantize`), to float (`dequantize`) and between scales (`requantize`); `macs`: multiply-accumulates by
    the storage type of the activations, their total, and the share wider than 8 bits; `spectral_macs`: those in
    floating-point of spectral front ends, which precede a logarithm or a magnitude.
    """
    graph = model.graph
    clusters: dict[str, int] = {}
    floats: dict[str, int] = {}
    macs: dict[str, int] = {}
    front, in_front = spectral(model), 0
    for node in graph:
        if operator_name(node) in (*DEQUANTIZE, "QuantizeLinear") or not _real(node):
            continue
        kind = _kind(node)
        table = floats if kind == "float32" else clusters
        if not _fused(node):
            table[node.op_type] = table.get(node.op_type, 0) + 1
        if LAST.sub("", node.op_type) in PRODUCTS:
            work = operations(node, 1) or 0
            macs[kind] = macs.get(kind, 0) + work
            in_front += work if kind == "float32" and node.name in front else 0
    activations: dict[str, dict[str, int]] = {}
    weights: dict[str, dict[str, int]] = {}
    bits: dict[str, int] = {}
    wide = 0
    for value in _tensors(graph):
        constant = g.is_constant(value)
        assert value.dtype is not None
        size = math.ceil(_elements(value) * value.dtype.bitwidth / 8)
        table_of = weights if constant else activations
        entry = table_of.setdefault(dtype_name(value.dtype) or "?", {"tensors": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["bytes"] += size
        if not constant and value.dtype.bitwidth > 8:
            wide += size
        bits[_name(value)] = value.dtype.bitwidth
    total = sum(macs.values())
    narrow = sum(n for k, n in macs.items() if k in ("int8", "uint8", "int4"))
    known = model.meta.get(META, {})
    return {
        "clusters": _sorted(clusters),
        "float": _sorted(floats),
        "left": _left(known.get("left", {})),
        "requantized": [{"tensor": t, "reader": r} for t, r in known.get("requantized", ())],
        "activations": dict(sorted(activations.items())),
        "weights": dict(sorted(weights.items())),
        "wide_activation_bytes": wide,
        "boundaries": boundaries(graph),
        "macs": {
            **dict(sorted(macs.items())),
            "total": total,
            "wider_than_8_bits": round((total - narrow) / total, 6) if total else 0.0,
        },
        "spectral_macs": in_front,
        "bits": bits,
    }


def carried_out(node: ir.Node, on_codes: Container[ir.Node] = ()) -> bool:
    """Whether a runtime has an operator for `node`: not for storage that kernels read and write themselves (those of
    the nodes `on_codes` read weights as codes), nor for an activation that the kernel before it computes."""
    if operator_name(node) == "QuantizeLinear":
        return _quantizes(node) is not None
    if operator_name(node) in DEQUANTIZE:
        if g.is_constant(node.inputs[0]):
            return any(use.node not in on_codes for use in node.outputs[0].uses())
        return _dequantizes(node)
    return not _fused(node)


def boundaries(graph: ir.Graph) -> dict[str, int]:
    """Conversions that a runtime carries out: of floats to integers, of integers to floats, and between
    scales."""
    found = {"quantize": 0, "dequantize": 0, "requantize": 0}
    for node in graph:
        if operator_name(node) == "QuantizeLinear":
            kind = _quantizes(node)
            if kind is not None:
                found[kind] += 1
        elif operator_name(node) in DEQUANTIZE and not g.is_constant(node.inputs[0]) and _dequantizes(node):
            found["dequantize"] += 1
    return found


def _quantizes(node: ir.Node) -> str | None:
    """What a QuantizeLinear is to a runtime: "quantize", "requantize", or None where the kernel before it makes
    codes."""
    value = node.inputs[0]
    made = None if value is None else value.producer()
    if made is not None and operator_name(made) == "DequantizeLinear":
        return "requantize"
    return "quantize" if made is None or _kind(made) == "float32" else None


def _dequantizes(node: ir.Node) -> bool:
    """Whether floats are made of codes for a reader that takes no codes."""
    value = node.outputs[0]
    readers = [u.node for u in value.uses() if u.node.op_type not in ("Shape", "Size")]
    return value.is_graph_output() or any(
        operator_name(n) != "QuantizeLinear" and _kind(n) == "float32" for n in readers
    )


def _real(node: ir.Node) -> bool:
    return any(v.dtype is not None and v.dtype.is_floating_point() for v in node.outputs)


def _fused(node: ir.Node) -> bool:
    """Whether `node` is an activation that the kernel before it computes along."""
    value = node.inputs[0] if node.inputs else None
    if node.domain != "" or node.op_type not in FUSED or value is None or g.only_use(value) is not node:
        return False
    made = value.producer()
    return made is not None and operator_name(made) not in (*DEQUANTIZE, "QuantizeLinear") and _real(made)


def _behind(value: ir.Value) -> ir.Value:
    """`value`, or the result of the activation that alone reads it."""
    reader = g.only_use(value)
    return reader.outputs[0] if reader is not None and _fused(reader) else value


def _kind(node: ir.Node) -> str:
    """The storage type of the activations that `node` computes with: the widest of those that it reads and
    makes, "float32" where one is no integer; of a product of integers those that it reads, whatever becomes of
    the sum."""
    found: list[ir.DataType] = []
    for value in node.inputs:
        if value is None or value.dtype is None or not value.dtype.is_floating_point():
            continue
        if g.is_constant(value):  # a bound or a number that the kernel is given
            continue
        stored = storage(value)
        if stored.quantized and g.is_constant(stored.value):
            continue
        if not stored.quantized or stored.dtype is None:
            if _fused(node):
                continue
            return "float32"
        found.append(stored.dtype)
    product = LAST.sub("", node.op_type) in PRODUCTS and len(node.inputs) > 1
    whole = product and found and all(v is not None and storage(v).quantized for v in node.inputs[:2])
    for value in () if whole else node.outputs:
        if value.dtype is None or not value.dtype.is_floating_point() or not value.uses():
            continue
        stored = storage(_behind(value), output=True)
        if not stored.quantized or stored.dtype is None:
            return "float32"
        found.append(stored.dtype)
    widest = max(found, key=lambda d: d.bitwidth, default=ir.DataType.FLOAT)
    return dtype_name(widest) or "float32"


def _tensors(graph: ir.Graph) -> Iterator[ir.Value]:
    """The tensors that a runtime holds: codes, and real numbers that no kernel keeps to itself."""
    for value in graph.inputs:
        if value.dtype is not None and (value.dtype.is_floating_point() or value.dtype.bitwidth <= 16):
            yield value
    held = set()
    for node in graph:
        name = operator_name(node)
        if name in DEQUANTIZE and g.is_constant(node.inputs[0]) and node.inputs[0] not in held:
            held.add(node.inputs[0])
            yield node.inputs[0]  # type: ignore[misc]
        for read in node.inputs:
            if read is None or read.dtype is None or read in held or name in (*DEQUANTIZE, "QuantizeLinear"):
                continue
            if g.is_constant(read) and read.dtype.is_floating_point():
                held.add(read)
                yield read
        if name in DEQUANTIZE:
            continue
        for value in node.outputs:
            if value.dtype is None or not (value.dtype.is_floating_point() or name == "QuantizeLinear"):
                continue
            inner = _behind(value) is not value
            readers = [u.node for u in value.uses()]
            only = bool(readers) and all(operator_name(n) == "QuantizeLinear" for n in readers)
            if not inner and not (only and not value.is_graph_output() and _kind(node) != "float32"):
                yield value


def _name(value: ir.Value) -> str:
    """The source tensor that codes stand for where a DequantizeLinear has its name."""
    for use in value.uses():
        if operator_name(use.node) in DEQUANTIZE and use.idx == 0:
            name = source_names(use.node.outputs[0])[0]
            return name.split("~")[0] if g.is_constant(value) else name
    return source_names(value)[0]


def _left(left: dict[ir.Node, str]) -> list[dict[str, Any]]:
    found: dict[str, list[str]] = {}
    for node, reason in left.items():
        found.setdefault(reason, []).append(source_name(node))
    return [{"reason": r, "count": len(n), "nodes": list(dict.fromkeys(n))} for r, n in found.items()]


def _sorted(counts: dict[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _elements(value: ir.Value) -> int:
    return math.prod(d if isinstance(d, int) else 1 for d in g.dims(value) or ())
