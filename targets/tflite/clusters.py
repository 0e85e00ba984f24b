"""Clusters as TFLite stores them: which tensors a kernel takes as integers, and their quantization."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from ai_edge_litert import schema_py_generated as s

from tapeout.sdk import Activation, Call, Row, Storage, fused_activation, storage
from tapeout.sdk import graph as g

Array = np.ndarray[Any, Any]
Lowering = Callable[..., None]


@dataclass(frozen=True)
class Cluster:
    """A node with its lowering and what its row takes and makes as stored integers: `reads` by the values
    behind DequantizeLinear, `makes` by the node's outputs. `fuses`: the activations that the kernel computes too,
    None for a kernel on floats, which computes all that TFLite has."""

    lower: Lowering
    reads: Mapping[ir.Value, Storage] = field(default_factory=dict)
    makes: Mapping[ir.Value, Storage] = field(default_factory=dict)
    fuses: tuple[Activation, ...] | None = None

    def absorbs(self, output: ir.Value) -> tuple[ir.Value, ir.Node | None]:
        """The float value that is quantized for `output`, and the QuantizeLinear: itself, or the result of the
        activation behind it."""
        reader = fused_activation(output, self.fuses or ())
        last = output if reader is None else reader.outputs[0]
        return last, self.makes[output].value.producer()


def cluster(lower: Lowering, row: Row, call: Call) -> Cluster:
    """What `row`, which holds for `call`, takes and makes as stored integers: the ports whose stored type it
    names, where they are quantized."""
    reads: dict[ir.Value, Storage] = {}
    makes: dict[ir.Value, Storage] = {}
    if not any(rule.dtypes for rule in row.ports.values()):
        return Cluster(lower)
    for name, value in call.ports():
        rule = row.rule(name)
        if rule is None or not rule.dtypes:
            continue
        output = value.producer() is call.node
        stored = storage(value, output=output, fuses=row.fuses)
        if stored.quantized:
            (makes if output else reads)[value] = stored
    return Cluster(lower, reads, makes, row.fuses)


# What moves integers and leaves them as they are.
_MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Split", "Identity", "Expand", "Tile")
MOVES = 32  # at most so many of these are looked through


def quantization_of(value: ir.Value, seen: set[ir.Value] | None = None) -> Storage | None:
    """How the integers of `value` are read: by the QuantizeLinear that makes them, else by a DequantizeLinear
    that reads them, else as those are read that they are moved from or to. None where nothing says."""
    made = value.producer()
    if made is not None and made.domain == "" and made.op_type == "QuantizeLinear":
        scale, zero = (*made.inputs, None)[1:3]
        axis = int(g.attribute(made, "axis", 1)) if g.rank(scale) else None
        return Storage(value, value.dtype, True, scale, zero, axis)
    readers = [use.node for use in value.uses() if use.node.domain == "" and use.idx == 0]
    for node in readers:
        if node.op_type == "DequantizeLinear":
            return storage(node.outputs[0])
    seen = set() if seen is None else seen
    if value in seen or len(seen) == MOVES:
        return None
    seen.add(value)
    sources = [made.inputs[0]] if made is not None and made.domain == "" and made.op_type in _MOVES else []
    sources += [node.outputs[0] for node in readers if node.op_type in _MOVES]
    for source in sources:
        found = None if source is None else quantization_of(source, seen)
        if found is not None and found.axis is None:
            return found._replace(value=value)
    return None


def scales(stored: Storage) -> Array | None:
    """The scales as a float32 vector; None where they are computed."""
    array = g.constant(stored.scale)
    return None if array is None else array.astype(np.float32).reshape(-1)


def parameters(scale: Array, zero: Array | None = None, axis: int = 0) -> s.QuantizationParametersT:
    """TFLite's record of scales and zero points (none: all 0) along `axis`."""
    made = s.QuantizationParametersT()
    made.scale = np.ascontiguousarray(scale, np.float32).reshape(-1)
    zeros = np.zeros(1, np.int64) if zero is None else zero.astype(np.int64).reshape(-1)
    made.zeroPoint = np.broadcast_to(zeros, made.scale.shape).copy()
    made.quantizedDimension = axis if made.scale.size > 1 else 0
    return made


def recorded(stored: Storage) -> s.QuantizationParametersT | None:
    """The record of a stored tensor; None where its scales are computed or lie in blocks."""
    scale = scales(stored)
    if scale is None or (stored.axis is not None and (g.rank(stored.scale) or 0) > 1):
        return None
    rank = g.rank(stored.value) or 1
    zero = None if stored.zero_point is None else g.constant(stored.zero_point)
    return parameters(scale, zero, 0 if stored.axis is None else stored.axis % rank)


def scales_in_blocks(stored: Storage) -> Array:
    """The scales [O, I / block] of a weight in blocks as float16, which is what kernels read."""
    array = g.constant(stored.scale)
    assert array is not None
    return array.astype(np.float16)


def blocks(index: int, stored: Storage) -> s.QuantizationParametersT:
    """TFLite's record of a weight [O, I] in blocks along I, with its scales in tensor `index`."""
    size, count = (g.static_dims(v) for v in (stored.value, stored.scale))
    assert size is not None and count is not None
    made, details = s.QuantizationParametersT(), s.BlockwiseQuantizationT()
    details.scales, details.zeroPoints, details.blockSize = index, -1, size[1] // count[1]
    made.detailsType, made.details = s.QuantizationDetails.BlockwiseQuantization, details
    return made


def in_real_numbers(value: ir.Value) -> ir.TensorProtocol:
    """What a DequantizeLinear (or DequantizeLong) of a constant gives, computed when it is written."""
    node = value.producer()
    shape = g.static_dims(value)
    assert node is not None and shape is not None
    codes, scale, zero = (*node.inputs, None)[:3]
    block = int(g.attribute(node, "block_size", 0))
    axis = int(g.attribute(node, "axis", 1)) % max(len(shape), 1)

    def spread(given: ir.Value) -> Array:
        array = g.constant(given)
        assert array is not None
        if block:
            return np.repeat(array, block, axis)[tuple(slice(d) for d in shape)]
        if array.size > 1:
            return array.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        return array.reshape(())

    def make() -> ir.TensorProtocol:
        assert codes is not None and scale is not None
        array = g.constant(codes)
        assert array is not None
        wide = array.astype(np.int64)
        if zero is not None:
            wide = wide - spread(zero).astype(np.int64)
        return ir.Tensor((wide.astype(np.float32) * spread(scale)).astype(np.float32))

    return ir.LazyTensor(make, dtype=ir.DataType.FLOAT, shape=ir.Shape(shape))
