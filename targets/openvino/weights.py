"""Weights that stay codes in the file: written through the opset API, in the form that the plugins keep packed.

    MatMul(x, DequantizeLinear(codes [K, N], scale, zero))  ->  MatMul(x, D(codes^T), transpose_b)
    MatMul(x, Transpose(DequantizeLinear(codes [N, K])))    ->  MatMul(x, D(codes), transpose_b)
    Gather(DequantizeLinear(codes [N, K], scale, zero), i)  ->  Gather(D(codes), i)
    D(codes) = Reshape((Convert(codes [N, K / g, g]) - Convert(zero)) * scale [N, K / g, 1], [N, K])

The front end would fold the second and some of the first to floats. So it gets a parameter in the place of each such
weight, and `restored` puts D there. Weights with the same codes and scales (a tied table and head) are written once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.sdk import InternalError
from tapeout.sdk import graph as g
from tapeout.targets.openvino.float_codes import table_of

Array = np.ndarray[Any, Any]

# OpenVINO's names of the types that weights are stored in.
TYPES: Mapping[ir.DataType, str] = {
    ir.DataType.INT4: "i4",
    ir.DataType.UINT4: "u4",
    ir.DataType.INT8: "i8",
    ir.DataType.UINT8: "u8",
}
# Packed in nibbles, the first in the low half of a byte.
NIBBLES = frozenset({"i4", "u4", "nf4", "f4e2m1"})
# The type whose scales are powers of two, stored by their exponents with this added.
POWERS, BIAS = "f4e2m1", 127
# What operators read a stored weight by: its input, and the axis of its output channels.
READERS: Mapping[str, tuple[int, int]] = {"MatMul": (1, 1), "Gather": (0, 0), "Transpose": (0, 0)}


@dataclass(frozen=True, eq=False)
class Stored:
    """One weight: `codes` bytes of the matrix [N, K] in `type`, `scale` and `zero` [N, K / g] (g = K: one for a row).
    `name` is what the parameter in its place is called, `transposed` whether that is [K, N]."""

    name: str
    type: str
    shape: tuple[int, int]
    codes: Array
    scale: Array
    zero: Array | None
    transposed: bool
    hint: str

    @property
    def blocks(self) -> int:
        return int(self.scale.shape[1])

    @property
    def digest(self) -> bytes:
        """The same for weights that can share what is written."""
        made = hashlib.sha256(f"{self.type} {self.shape} {self.scale.shape}".encode())
        for part in (self.codes, self.scale, self.zero):
            made.update(b"-" if part is None else np.ascontiguousarray(part).view(np.uint8).data)
        return made.digest()


def withheld(model: ir.Model) -> tuple[ir.Model, list[Stored]]:
    """A copy of `model` that shares its tensors, with an input in the place of every weight that stays codes, and
    those weights."""
    found = [n for n in model.graph if _stays(n)]
    if not found:
        return model, []
    shell = model.clone()
    names = {n.outputs[0].name for n in found}
    stored = []
    for node in [n for n in shell.graph if n.outputs and n.outputs[0].name in names]:
        weight = stored_weight(node)
        real = node.outputs[0]
        place = ir.Value(name=weight.name, type=real.type, shape=real.shape)
        real.replace_all_uses_with(place)
        shell.graph.inputs.append(place)
        stored.append(weight)
    g.remove_dead(shell.graph)
    return shell, stored


def _stays(node: ir.Node) -> bool:
    """Whether `node` makes a matrix of codes real for operators that read it as codes, beside real activations."""
    if table_of(node) is not None:
        return all(_axis(u.node, u.idx) == 0 for u in node.outputs[0].uses())
    if node.op_type != "DequantizeLinear" or node.domain not in ("", "ai.onnx"):
        return False
    codes, real = node.inputs[0], node.outputs[0]
    shape = None if codes is None else g.static_dims(codes)
    if (
        codes is None
        or not g.is_constant(codes)
        or codes.dtype not in TYPES
        or shape is None
        or len(shape) != 2
    ):
        return False
    uses = real.uses()
    if not uses or real.is_graph_output() or real.dtype != ir.DataType.FLOAT:
        return False
    axes = {_axis(u.node, u.idx) for u in uses}
    if len(axes) != 1 or None in axes:
        return False
    (axis,) = axes
    return axis is not None and _along(node, axis)


def _axis(reader: ir.Node, index: int) -> int | None:
    """The axis of the output channels where `reader` reads a weight at `index`, None where it reads none."""
    position, axis = READERS.get(reader.op_type, (None, None))
    if position != index or reader.domain not in ("", "ai.onnx"):
        return None
    if reader.op_type == "Gather" and g.attribute(reader, "axis", 0) != 0:
        return None
    products = [reader] if reader.op_type == "MatMul" else []
    if reader.op_type == "Transpose":
        uses = list(reader.outputs[0].uses())
        products = [u.node for u in uses if u.node.op_type == "MatMul" and u.idx == 1]
        if len(products) != len(uses) or list(g.attribute(reader, "perm", ())) != [1, 0]:
            return None
    if any(g.producer(p.inputs[0], "DequantizeLinear") is not None for p in products):
        return None  # it computes in integers: the front end makes that of it
    return axis


def _along(node: ir.Node, axis: int) -> bool:
    """Whether scales are those of rows of the matrix with its channels first, or of blocks of such rows."""
    scale = node.inputs[1]
    shape = None if scale is None else g.static_dims(scale)
    if scale is None or not g.is_constant(scale) or shape is None:
        return False
    if g.attribute(node, "block_size", 0):
        return len(shape) == 2 and g.attribute(node, "axis", 1) % 2 == 1 - axis
    return not shape or (len(shape) == 1 and (shape[0] == 1 or g.attribute(node, "axis", 1) % 2 == axis))


def stored_weight(node: ir.Node) -> Stored:
    """The weight that a DequantizeLinear, or a look-up in a table, makes real."""
    tabled = table_of(node)
    if tabled is not None:
        return _tabled(node, *tabled)
    codes, scale, *rest = node.inputs
    zero = rest[0] if rest else None
    use = next(iter(node.outputs[0].uses()))
    axis = _axis(use.node, use.idx)
    assert codes is not None and codes.const_value is not None and codes.dtype is not None
    assert scale is not None and scale.const_value is not None
    kind = TYPES[codes.dtype]
    turn = axis == 1

    def rows(value: ir.Value | None, expand: int) -> Array | None:
        if value is None or value.const_value is None:
            return None
        array = value.const_value.numpy()
        if array.ndim == 2:
            return np.ascontiguousarray(array.T if turn else array)
        return np.ascontiguousarray(np.broadcast_to(array.reshape(-1, 1), (expand, 1)))

    matrix = rows(codes, 0)
    assert matrix is not None
    count = matrix.shape[0]
    scales, zeros = rows(scale, count), rows(zero, count)
    assert scales is not None
    if zeros is not None and not zeros.astype(np.float32).any():
        zeros = None
    return Stored(
        f"{node.outputs[0].name}~stored",
        kind,
        (count, matrix.shape[1]),
        _bytes(matrix, kind),
        scales.astype(np.float32),
        None if zeros is None else _bytes(zeros, kind),
        turn,
        codes.name or "weight",
    )


def _tabled(node: ir.Node, codes: ir.Value, scale: ir.Value, kind: str) -> Stored:
    assert codes.const_value is not None and scale.const_value is not None
    array, scales = codes.const_value.numpy(), scale.const_value.numpy()
    rows, blocks, size = array.shape
    name, hint = f"{node.outputs[0].name}~stored", codes.name or "weight"
    return Stored(
        name,
        kind,
        (rows, blocks * size),
        _bytes(array, kind),
        scales.reshape(rows, blocks),
        None,
        False,
        hint,
    )


def _bytes(codes: Array, kind: str) -> Array:
    """Codes as they lie in the file."""
    flat = codes.reshape(-1)
    if kind not in NIBBLES:
        return np.ascontiguousarray(flat).view(np.uint8)
    flat = (flat.astype(np.int8) if flat.dtype.kind != "u" and flat.dtype.itemsize == 1 else flat).view(
        np.uint8
    )
    if flat.size % 2:
        flat = np.concatenate([flat, np.zeros(1, np.uint8)])
    pairs = np.ascontiguousarray(flat & np.uint8(0xF)).view(np.dtype("<u2"))
    made: Array = ((pairs | (pairs >> np.uint16(4))) & np.uint16(0xFF)).astype(np.uint8)
    return made


def restored(made: Any, stored: Sequence[Stored]) -> None:
    """Put every weight in the place of its parameter in the openvino.Model `made`."""
    parameters = {n: p for p in made.get_parameters() for n in p.output(0).get_names()}
    written: dict[bytes, Any] = {}
    for weight in stored:
        parameter = parameters.get(weight.name)
        if parameter is None:
            raise InternalError(f"OpenVINO's front end has lost the weight '{weight.hint}'")
        key = weight.digest
        if key not in written:
            written[key] = decompressed(weight)
        for reader in list(parameter.output(0).get_target_inputs()):
            node = reader.get_node()
            if weight.transposed:
                if node.get_type_name() != "MatMul" or node.get_attributes()["transpose_b"]:
                    raise InternalError(f"'{weight.hint}' is read by {node.get_type_name()}, expected MatMul")
                node.set_attribute("transpose_b", True)
            reader.replace_source_output(written[key].output(0))
        made.remove_parameter(parameter)
    if stored:
        made.validate_nodes_and_infer_types()


def decompressed(weight: Stored) -> Any:
    """The node of the real matrix [N, K], float32. Scales of blocks are float16: they are representable in it."""
    from openvino import opset13 as op

    rows, size = weight.shape
    blocks = weight.blocks
    half = (
        blocks > 1
        and weight.type != POWERS
        and bool(np.array_equal(weight.scale, weight.scale.astype(np.float16).astype(np.float32)))
    )
    wide = np.dtype(np.float16 if half else np.float32)
    shape = (rows, blocks, size // blocks) if blocks > 1 else (rows, size)
    tail = (rows, blocks, 1) if blocks > 1 else (rows, 1)
    real = op.convert(_constant(weight.codes, weight.type, shape, weight.hint), wide)
    if weight.zero is not None:
        real = op.subtract(
            real, op.convert(_constant(weight.zero, weight.type, tail, f"{weight.hint}/zero"), wide)
        )
    if weight.type == POWERS:
        exponents = (np.round(np.log2(weight.scale)) + BIAS).astype(np.uint8)
        scale = op.convert(_constant(exponents, "f8e8m0", tail, f"{weight.hint}/scale"), wide)
    else:
        scale = op.constant(weight.scale.reshape(tail).astype(wide), name=f"{weight.hint}/scale")
    real = op.multiply(real, scale)
    if blocks > 1:
        real = op.reshape(real, np.array([rows, size], np.int64), False)
    if half:
        real = op.convert(real, np.float32)
    return real


def _constant(content: Array, kind: str, shape: Sequence[int], name: str) -> Any:
    import openvino as ov
    from openvino import opset13 as op

    tensor = ov.Tensor(getattr(ov.Type, kind), ov.Shape(list(shape)))
    np.asarray(tensor.data).reshape(-1).view(np.uint8)[:] = content.reshape(-1)
    return op.constant(tensor, shared_memory=False, name=name)
