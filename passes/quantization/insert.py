"""QuantizeLinear and DequantizeLinear where the clusters want them.

    t = op(...)   ->  t' = op(...); q = QuantizeLinear(t', s, z); t = DequantizeLinear(q, s, z)
    op(x, W, B)   ->  op(x, DequantizeLinear(Wq, s_w, axis), DequantizeLinear(Bq, s_x * s_w))

Where a cluster makes integers, the DequantizeLinear has the tensor's name; where floats are made and read by
others too, they keep it. A bias of 64 bits stands behind tapeout::DequantizeLong, for DequantizeLinear takes
32 at most.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.declaration import Slot
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.functions import DOMAIN, declare
from tapeout.compiler.ir.origin import merged_origin, origin, set_origin
from tapeout.compiler.operators import storage
from tapeout.compiler.schemes import levels
from tapeout.passes.quantization.groups import Groups, Parameters
from tapeout.passes.quantization.placement import QUESTIONS, Cluster
from tapeout.passes.quantization.ranges import LAYOUT

Array = np.ndarray[Any, Any]

LONG = f"""<domain: "{DOMAIN}", opset_import: ["" : 25]>
DequantizeLong (x, scale) => (y)
{{
  f = Cast <to = 1> (x)
  y = Mul (f, scale)
}}"""

# A bias fits its type with this much room, and no channel's scale is so small that a kernel's multiplier
# (s_x * s_w / s_y, at least 2**-31) would be 0: channels whose weights are all but 0 are given larger scales.
BIAS_ROOM = 2.0**26
LEAST_MULTIPLIER = 2.0**-24


@dataclass
class Inserter:
    """Puts the quantization of one graph in place."""

    model: ir.Model
    groups: Groups
    requantized: list[tuple[str, str]] = field(default_factory=list)  # tensor and reader
    _stored: dict[tuple[ir.Value, Parameters], ir.Value] = field(default_factory=dict)
    _weights: dict[Any, ir.Value] = field(default_factory=dict)
    _numbers: dict[Any, ir.Value] = field(default_factory=dict)

    def run(self, clusters: list[Cluster]) -> None:
        """Clusters in the order of the graph."""
        made: dict[ir.Value, ir.Value] = {}  # what a cluster made -> the DequantizeLinear that stands for it
        for cluster in clusters:
            for slot in cluster.slots:
                if slot.output and not self.groups.kept(cluster, slot):
                    value = cluster.end(slot)
                    stored = self.groups.output(value)
                    assert stored is not None
                    made[value] = self._output(cluster.last, value, stored, slot.stored)
        for cluster in clusters:
            for slot in cluster.slots:
                plain = not slot.output and slot.rule.role not in ("weight", "bias")
                if plain and not self.groups.kept(cluster, slot):
                    self._input(cluster, slot, made)
            self._constants(cluster)

    # --- activations ---

    def _output(self, last: ir.Node, value: ir.Value, stored: Parameters, arrived: bool = False) -> ir.Value:
        graph = self.model.graph
        readers = list(value.uses())
        coded, real = self._pair(value, stored, origin(last))
        graph.insert_after(last, [coded, real])
        result = real.outputs[0]
        for use in readers:
            question = use.node.domain == "" and use.node.op_type in QUESTIONS
            use.node.replace_input_with(use.idx, coded.outputs[0] if question else result)
        if value.is_graph_output():
            for i, output in enumerate(graph.outputs):
                if output is value:
                    graph.outputs[i] = result
        value.name, result.name = g.fresh(graph, value.name or "value"), value.name
        if arrived:
            self.requantized.append((result.name or "", readers[0].node.name or "" if readers else ""))
        if (layout := value.metadata_props.pop(LAYOUT, None)) is not None:
            result.metadata_props[LAYOUT] = layout
        self._stored[result, stored] = result
        return result

    def _input(self, cluster: Cluster, slot: Slot, made: dict[ir.Value, ir.Value]) -> None:
        wanted = self.groups.input(slot.value, cluster.node, slot.position)
        value = made.get(slot.value, slot.value)
        found = self._stored.get((value, wanted))
        if found is None:
            if g.is_constant(value):
                found = self._constant(value, wanted, cluster.node)
            else:
                names = origin(maker) if (maker := value.producer()) is not None else origin(cluster.node)
                coded, real = self._pair(value, wanted, names)
                if maker is None:
                    self.model.graph.insert_before(self.model.graph[0], [coded, real])
                else:
                    self.model.graph.insert_after(maker, [coded, real])
                found = real.outputs[0]
                if value is not slot.value or slot.stored:
                    self.requantized.append((value.name or "", cluster.node.name or ""))
            self._stored[value, wanted] = found
        cluster.node.replace_input_with(slot.position, found)

    def _pair(self, value: ir.Value, stored: Parameters, names: tuple[str, ...]) -> tuple[ir.Node, ir.Node]:
        """QuantizeLinear and DequantizeLinear of `value`, not yet in the graph."""
        graph = self.model.graph
        scale, zero = self._numbers_of(stored)
        hint = value.name or "value"
        coded = ir.node("QuantizeLinear", [value, scale, zero], name=g.fresh(graph, f"{hint}_quantize"))
        real = ir.node(
            "DequantizeLinear", [coded.outputs[0], scale, zero], name=g.fresh(graph, f"{hint}_dequantize")
        )
        for node, dtype in ((coded, stored.dtype), (real, ir.DataType.FLOAT)):
            node.outputs[0].name = g.fresh(graph, hint)
            node.outputs[0].dtype, node.outputs[0].shape = dtype, value.shape
            set_origin(node, names)
        return coded, real

    def _numbers_of(self, stored: Parameters) -> tuple[ir.Value, ir.Value]:
        scale = self._number(np.float32(stored.scale), "scale")
        return scale, self._number(np.asarray(stored.zero, stored.dtype.numpy())[()], "zero_point")

    def _number(self, number: Any, hint: str) -> ir.Value:
        array = np.asarray(number)
        key = (array.dtype.str, array.tobytes())
        if key not in self._numbers:
            self._numbers[key] = g.add_constant(self.model.graph, array, hint)
        return self._numbers[key]

    # --- constants ---

    def _constant(self, value: ir.Value, stored: Parameters, reader: ir.Node) -> ir.Value:
        """A constant operand, its codes computed when they are read."""
        scale, zero = self._numbers_of(stored)
        assert value.const_value is not None
        tensor = value.const_value
        make = functools.partial(_codes, tensor, np.asarray(stored.scale), stored.zero, stored.dtype, None)
        codes = g.add_lazy_constant(
            self.model.graph, _shape(value), stored.dtype, make, value.name or "constant"
        )
        return self._dequantize(value, codes, scale, zero, None, reader)

    def _constants(self, cluster: Cluster) -> None:
        """The weight and the bias of a cluster."""
        ports = {s.port: s for s in cluster.slots if not s.output}
        for slot in (s for s in cluster.slots if s.rule.role == "weight" and not s.stored):
            bias = next((s for s in cluster.slots if s.rule.role == "bias"), None)
            self._weight(cluster, slot, bias, self._scale_of(cluster, ports, bias, slot))
        for slot in (s for s in cluster.slots if s.rule.role == "bias"):
            self._bias(cluster, slot)

    def _scale_of(
        self, cluster: Cluster, ports: dict[str, Slot], bias: Slot | None, weight: Slot
    ) -> float | None:
        """The scale of what the weight is multiplied by."""
        product = bias.rule.scale if bias is not None and isinstance(bias.rule.scale, str) else None
        others = [p.strip() for p in product.split("*")] if product else list(ports)
        found = 1.0
        seen = False
        for port in others:
            slot = ports.get(port)
            if slot is None or slot.port == weight.port or slot.rule.role in ("weight", "bias"):
                continue
            found *= self.groups.input(slot.value, cluster.node, slot.position).scale
            seen = True
        return found if seen else None

    def _weight(self, cluster: Cluster, slot: Slot, bias: Slot | None, factor: float | None) -> None:
        value, dtype = slot.value, slot.dtype
        assert value.const_value is not None
        array = value.const_value.numpy()
        axis = None if slot.rule.axis is None or slot.rule.per_tensor else slot.rule.axis % max(array.ndim, 1)
        highest = levels(dtype)[1]
        if axis is None:
            largest = np.asarray(_largest(array, None), np.float64).reshape(())
        else:
            largest = _largest(array, axis).astype(np.float64)
        del array
        scale = largest / highest
        output = next((s for s in cluster.slots if s.output), None)
        made = None if output is None else self.groups.output(cluster.end(output))
        if factor and made is not None:
            scale = np.maximum(scale, made.scale * LEAST_MULTIPLIER / factor)
        if factor and bias is not None and (offset := _real_numbers(bias.value)) is not None:
            room = np.abs(offset.astype(np.float64).reshape(-1)) / (factor * BIAS_ROOM)
            scale = np.maximum(scale, room if scale.ndim else room.max(initial=0.0))
        scale = np.asarray(np.maximum(scale, 2.0**-100), np.float32)
        if cluster.scheme.powers:
            scale = np.exp2(np.ceil(np.log2(scale)))
        key = (value, slot.dtype, axis, scale.tobytes())
        found = self._weights.get(key)
        if found is None:
            make = functools.partial(_codes, value.const_value, scale, 0, dtype, axis)
            codes = g.add_lazy_constant(self.model.graph, _shape(value), dtype, make, value.name or "weight")
            scales = g.add_constant(self.model.graph, scale, f"{value.name or 'weight'}_scale")
            zeros = g.add_constant(
                self.model.graph, np.zeros(scale.shape, dtype.numpy()), f"{value.name or 'weight'}_zero"
            )
            found = self._dequantize(value, codes, scales, zeros, axis, cluster.node)
            self._weights[key] = found
        cluster.node.replace_input_with(slot.position, found)

    def _bias(self, cluster: Cluster, slot: Slot) -> None:
        scale = np.ones((), np.float64)
        if not isinstance(slot.rule.scale, str):
            return
        ports = {s.port: s for s in cluster.slots if not s.output}
        for port in (p.strip() for p in slot.rule.scale.split("*")):
            value = cluster.node.inputs[ports[port].position]
            assert value is not None
            made = value.producer()
            factor = g.constant(made.inputs[1]) if made is not None else None
            assert factor is not None
            scale = scale * factor.astype(np.float64)
        array = _real_numbers(slot.value)
        assert array is not None
        if slot.stored:
            known = g.constant(storage(slot.value).scale)
            if known is not None and np.allclose(known, scale, rtol=1e-6, atol=0):
                return
        scale = np.broadcast_to(scale, array.shape).astype(np.float32)
        lowest, highest = levels(slot.dtype)
        codes = np.rint(array.astype(np.float64) / scale.astype(np.float64))
        limit = float(highest) if slot.dtype != ir.DataType.INT64 else 2.0**62
        codes = np.clip(codes, max(float(lowest), -limit), limit).astype(slot.dtype.numpy())
        graph = self.model.graph
        stored = g.add_constant(graph, codes, slot.value.name or "bias")
        scales = g.add_constant(graph, scale, f"{slot.value.name or 'bias'}_scale")
        if slot.dtype == ir.DataType.INT64:
            declare(self.model, LONG)
            real = ir.node("DequantizeLong", [stored, scales], domain=DOMAIN)
            found = self._placed(real, slot.value, cluster.node)
        else:
            found = self._dequantize(slot.value, stored, scales, None, 0, cluster.node)
        cluster.node.replace_input_with(slot.position, found)

    def _dequantize(
        self,
        value: ir.Value,
        codes: ir.Value,
        scale: ir.Value,
        zero: ir.Value | None,
        axis: int | None,
        reader: ir.Node,
    ) -> ir.Value:
        inputs = [codes, scale] if zero is None else [codes, scale, zero]
        node = ir.node("DequantizeLinear", inputs, {} if axis is None else {"axis": axis})
        return self._placed(node, value, reader)

    def _placed(self, node: ir.Node, value: ir.Value, reader: ir.Node) -> ir.Value:
        """The output of `node`, which stands for the constant `value`, in front of its first reader."""
        graph = self.model.graph
        hint = value.name or "constant"
        node.name = g.fresh(graph, f"{hint}_dequantize")
        made = node.outputs[0]
        made.name, made.dtype, made.shape = g.fresh(graph, hint), ir.DataType.FLOAT, value.shape
        set_origin(node, merged_origin([reader]))
        graph.insert_before(reader, node)
        return made


def _real_numbers(value: ir.Value) -> Array | None:
    """The numbers of a small constant, behind its DequantizeLinear or not."""
    known = storage(value)
    array = g.constant(known.value)
    if array is None or not known.quantized:
        return array
    scale, zero = g.constant(known.scale), g.constant(known.zero_point)
    if scale is None:
        return None
    offset = 0.0 if zero is None else zero.astype(np.float64)
    made: Array = (array.astype(np.float64) - offset) * scale.astype(np.float64)
    return made


def _shape(value: ir.Value) -> tuple[int, ...]:
    shape = g.static_dims(value)
    assert shape is not None
    return shape


def _largest(array: Array, axis: int | None) -> Array:
    """The largest magnitude, along every axis but `axis`."""
    axes = tuple(i for i in range(array.ndim) if i != axis)
    if not array.size:
        return np.zeros(() if axis is None else array.shape[axis], np.float32)
    made: Array = np.maximum(array.max(axis=axes), -array.min(axis=axes))
    return made


def _codes(tensor: ir.TensorProtocol, scale: Array, zero: int, dtype: ir.DataType, axis: int | None) -> Array:
    """round(x / scale) + zero, within the levels of `dtype`; symmetric ones (zero 0) leave out the lowest."""
    array = tensor.numpy().astype(np.float32, copy=False)
    lowest, highest = levels(dtype)
    if zero == 0 and axis is not None:
        lowest = -highest
    if axis is not None:
        scale = scale.reshape([-1 if i == axis else 1 for i in range(array.ndim)])
    codes = np.asarray(np.divide(array, scale.astype(np.float32)))
    np.rint(codes, out=codes)
    if zero:
        codes += zero
    np.clip(codes, lowest, highest, out=codes)
    made: Array = codes.astype(dtype.numpy())
    return made
