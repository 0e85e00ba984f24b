"""Graph inputs and outputs in integers, where the user asks for them: the conversions at the border go.

    x (float) -> Q -> DQ -> ...   becomes   x (int8) -> DQ -> ...
    ... -> Q -> DQ -> y (float)   becomes   ... -> Q -> y (int8)

uint8 is int8 with a zero point 128 higher: the same numbers exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.errors import UsageError
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.origin import merged_origin, origin, set_origin
from tapeout.compiler.operators import DTYPES, dtype_name
from tapeout.compiler.schemes import levels
from tapeout.passes.quantization.groups import Parameters, parameters
from tapeout.passes.quantization.ranges import Ranges

CODES = ("int8", "uint8", "int16")
MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten")


def convert(model: ir.Model, dtypes: Mapping[str, str], ranges: Ranges) -> int:
    """Give inputs and outputs the types that `dtypes` names. Raises UsageError for a name that is neither, a
    type that is none of "float32", "int8", "uint8", "int16", and a tensor that holds no real numbers."""
    count = 0
    inputs = {v.name or "": v for v in model.graph.inputs}
    outputs = {v.name or "": v for v in model.graph.outputs}
    for name, text in dtypes.items():
        value = inputs.get(name, outputs.get(name))
        if value is None:
            known = ", ".join([*inputs, *outputs])
            raise UsageError(f"--dtype: the model has no input or output '{name}'", hint=f"it has {known}")
        if text == dtype_name(value.dtype):
            continue
        if value.dtype != ir.DataType.FLOAT or text not in CODES:
            raise UsageError(
                f"--dtype {name}={text}: '{name}' is {dtype_name(value.dtype)}",
                hint=f"a float32 input or output may be one of {', '.join(CODES)}",
            )
        if name in inputs:
            _input(model.graph, value, DTYPES[text], ranges)
        else:
            _output(model.graph, value, DTYPES[text], ranges)
        count += 1
    return count


def stored(node: ir.Node) -> Parameters | None:
    """How a QuantizeLinear or DequantizeLinear with one constant scale stores its tensor."""
    scale = g.scalar(node.inputs[1]) if len(node.inputs) > 1 else None
    zero = g.scalar(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else 0
    codes = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    if scale is None or zero is None or codes is None or codes.dtype is None:
        return None
    return Parameters(codes.dtype, float(scale), int(zero))


def border(model: ir.Model) -> dict[str, Parameters]:
    """How the integer inputs and outputs of a graph are read as real numbers, by name."""
    found: dict[str, Parameters] = {}
    for value in model.graph.inputs:
        for use in _reads(value):
            if use.node.domain == "" and use.node.op_type == "DequantizeLinear" and use.idx == 0:
                known = stored(use.node)
                if known is not None:
                    found[value.name or ""] = known
    for value in model.graph.outputs:
        made: ir.Value | None = value
        while (moved := g.producer(made, *MOVES)) is not None:
            made = moved.inputs[0]
        node = g.producer(made, "QuantizeLinear")
        known = None if node is None else stored(node)
        if known is not None:
            found[value.name or ""] = known
    return found


def _reads(value: ir.Value) -> Iterator[Any]:
    """What reads a tensor's codes, itself or where they have been moved."""
    for use in value.uses():
        if use.node.domain == "" and use.node.op_type in MOVES and use.idx == 0:
            yield from _reads(use.node.outputs[0])
        else:
            yield use


def _as(dtype: ir.DataType, found: Parameters | None, value: ir.Value, ranges: Ranges) -> Parameters:
    """How a border tensor is stored as `dtype`: with the scale that it has inside where that is possible."""
    if found is not None and found.dtype == dtype:
        return found
    if found is not None and (found.dtype, dtype) == (ir.DataType.INT8, ir.DataType.UINT8):
        return Parameters(dtype, found.scale, found.zero + 128)
    if found is not None:
        lowest, highest = levels(found.dtype)
        interval = ((lowest - found.zero) * found.scale, (highest - found.zero) * found.scale)
    else:
        known = ranges.of(value, dtype.bitwidth, dtype == ir.DataType.INT16)
        if isinstance(known, str):
            raise UsageError(
                f"--dtype: '{value.name}' has no scale as integers: {known}",
                hint="leave it in floating-point, or calibrate with data that reaches it",
            )
        interval = known
    return parameters(interval, dtype, dtype == ir.DataType.INT16)


def _numbers(graph: ir.Graph, wanted: Parameters) -> list[ir.Value]:
    zero = np.asarray(wanted.zero, wanted.dtype.numpy())
    return [
        g.add_constant(graph, np.asarray(wanted.scale, np.float32), "scale"),
        g.add_constant(graph, zero, "zero_point"),
    ]


def _input(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, ranges: Ranges) -> None:
    readers = [u for u in value.uses() if u.node.op_type not in ("Shape", "Size")]
    quantizers = [u.node for u in readers if u.node.op_type == "QuantizeLinear" and u.node.domain == ""]
    known = [k for n in quantizers if (k := stored(n)) is not None]
    wanted = _as(dtype, known[0] if known else None, value, ranges)
    names = merged_origin([u.node for u in readers][:1])
    value.type = ir.TensorType(dtype)  # its own: others may share the old one
    node = ir.node("DequantizeLinear", [value, *_numbers(graph, wanted)])
    node.name = g.fresh(graph, f"{value.name}_dequantize")
    real = node.outputs[0]
    real.name, real.dtype, real.shape = g.fresh(graph, value.name or "input"), ir.DataType.FLOAT, value.shape
    set_origin(node, names)
    graph.insert_before(graph[0], node)
    for use in readers:
        use.node.replace_input_with(use.idx, real)
    for quantize in quantizers:
        if stored(quantize) == wanted:  # the codes are the input's own
            quantize.outputs[0].replace_all_uses_with(value)
            for use in list(value.uses()):
                if use.node is not node and use.node.op_type == "DequantizeLinear":
                    use.node.outputs[0].replace_all_uses_with(real)


def _output(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, ranges: Ranges) -> None:
    made = value.producer()
    dequantize = g.producer(value, "DequantizeLinear")
    known = None if dequantize is None else stored(dequantize)
    wanted = _as(dtype, known, value, ranges)
    assert made is not None
    if dequantize is not None and known == wanted:
        codes = dequantize.inputs[0]
        assert codes is not None
    if dequantize is None or known != wanted or codes is None or codes.producer() is None:
        node = ir.node("QuantizeLinear", [value, *_numbers(graph, wanted)])
        node.name = g.fresh(graph, f"{value.name}_quantize")
        set_origin(node, origin(made))
        graph.insert_after(made, node)
        codes = node.outputs[0]
        codes.dtype, codes.shape = dtype, value.shape
    for i, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[i] = codes
    name = value.name
    value.name = g.fresh(graph, name or "output")
    codes.name = name
