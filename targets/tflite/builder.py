"""What lowerings build a TFLite graph with: tensors of IR values, constants, operators, subgraphs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from ai_edge_litert import schema_py_generated as s

from tapeout.sdk import Activation, InternalError, Storage, TapeoutError, fused_activation, storage
from tapeout.sdk import graph as g
from tapeout.targets.tflite import writer
from tapeout.targets.tflite.clusters import (
    Cluster,
    blocks,
    in_real_numbers,
    quantization_of,
    recorded,
    scales_in_blocks,
)
from tapeout.targets.tflite.clusters import Lowering as Lowering
from tapeout.targets.tflite.nodes import NONE, activation_of, attributes, stored
from tapeout.targets.tflite.versions import Use, version_of

Operand = ir.Value | int | None

TYPES: Mapping[ir.DataType, int] = {
    ir.DataType.FLOAT: s.TensorType.FLOAT32,
    ir.DataType.FLOAT16: s.TensorType.FLOAT16,
    ir.DataType.BFLOAT16: s.TensorType.BFLOAT16,
    ir.DataType.DOUBLE: s.TensorType.FLOAT64,
    ir.DataType.INT2: s.TensorType.INT2,
    ir.DataType.INT4: s.TensorType.INT4,
    ir.DataType.INT8: s.TensorType.INT8,
    ir.DataType.UINT8: s.TensorType.UINT8,
    ir.DataType.INT16: s.TensorType.INT16,
    ir.DataType.UINT16: s.TensorType.UINT16,
    ir.DataType.INT32: s.TensorType.INT32,
    ir.DataType.UINT32: s.TensorType.UINT32,
    ir.DataType.INT64: s.TensorType.INT64,
    ir.DataType.UINT64: s.TensorType.UINT64,
    ir.DataType.BOOL: s.TensorType.BOOL,
    ir.DataType.COMPLEX64: s.TensorType.COMPLEX64,
    ir.DataType.COMPLEX128: s.TensorType.COMPLEX128,
    ir.DataType.STRING: s.TensorType.STRING,
}

INTEGERS = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16)
# Constants that DEQUANTIZE takes, with one scale or with scales along an axis.
DEQUANTIZED = (ir.DataType.INT8, ir.DataType.INT4, ir.DataType.INT2)

# Equal constants up to this size are found by their content, larger ones by being the same tensor.
CONTENT_LIMIT = 1 << 20


class Builder:
    """Builds one subgraph of a file. Lowerings take it as their first argument."""

    def __init__(self, file: writer.File, name: str, find: Callable[[ir.Node], Cluster]) -> None:
        self.file = file
        self.number = len(file.subgraphs)  # of this subgraph in the file
        self.graph = writer.Subgraph(name)
        file.subgraphs.append(self.graph)
        self._find = find
        self._index: dict[ir.Value, int] = {}
        self._buffers: dict[Any, int] = {}
        self._constants: dict[Any, int] = {}
        self._turned: dict[tuple[ir.Value, tuple[int, ...], bool], int] = {}
        self._absorbed: set[ir.Node] = set()
        self._codes: dict[tuple[Any, ...], int] = {}
        self._reads: Mapping[ir.Value, Storage] = {}  # what the node being lowered takes as stored integers
        self._fuses: tuple[Activation, ...] | None = (
            None  # the activations that its kernel computes; None: all
        )
        self._deferred: set[ir.Value] = set()  # behind a DequantizeLinear that nothing has asked for so far
        self.nodes: list[str] = []  # for each operator the name of the node that it computes for

    # --- tensors ---

    def index(self, value: ir.Value) -> int:
        """The tensor of an IR value, made at its first use; an initializer becomes an unread constant."""
        if value in self._reads:
            return self.stored(self._reads[value])
        known = self._index.get(value)
        if known is not None:
            return known
        assert value.dtype is not None, f"'{value.name}' has no type"
        if value in self._deferred:
            return self._dequantized(value)
        half = stored(value)
        if half is not None:
            return self._widened(half, value)
        tensor = self._tensor(value.name or "", g.dims(value), value.dtype)
        if g.is_constant(value):
            assert value.const_value is not None
            tensor.buffer = self._buffer(value.const_value)
        self._quantize(tensor, value)
        self._index[value] = self._append(tensor)
        return self._index[value]

    def stored(self, stored: Storage) -> int:
        """The tensor of integers behind a DequantizeLinear; a constant once for each quantization of it."""
        value = stored.value
        if not g.is_constant(value):
            return self.index(value)
        key = (value, stored.scale, stored.zero_point, stored.axis)
        if key not in self._codes:
            assert value.const_value is not None and value.dtype is not None
            tensor = self._tensor(value.name or "", g.dims(value), value.dtype)
            tensor.buffer = self._buffer(value.const_value)
            tensor.quantization = self.quantization(stored)
            self._codes[key] = self._append(tensor)
        return self._codes[key]

    def storage(self, value: ir.Value | None) -> Storage:
        """How the node that is being lowered takes `value`: as stored integers, or as it is in the graph."""
        assert value is not None
        return self._reads.get(value) or Storage(value, value.dtype)

    def quantization(self, stored: Storage) -> Any:
        """The record of scales and zero points of a stored tensor; None where there is none."""
        if (g.rank(stored.scale) or 0) < 2 or stored.axis is None:
            return recorded(stored)
        return blocks(
            self.constant(scales_in_blocks(stored), f"{stored.value.name or 'weight'}_scale"), stored
        )

    def defer(self, value: ir.Value) -> None:
        """Write the DEQUANTIZE that makes `value` where it is first read, if it is."""
        self._deferred.add(value)
        if value.is_graph_output():
            self.index(value)

    def bind(self, value: ir.Value, index: int) -> None:
        """From now on the tensor of `value` is `index`."""
        self._index[value] = index

    def like(self, value: ir.Value | None, hint: str, shape: Sequence[int | str] | None) -> int:
        """A new computed tensor that is stored as the node that is being lowered takes `value`."""
        stored = self.storage(value)
        assert stored.dtype is not None
        made = self.tensor(hint, shape, stored.dtype)
        if stored.quantized:
            self.graph.tensors[made].quantization = recorded(stored)
        return made

    def tensor(self, hint: str, shape: Sequence[int | str] | None, dtype: ir.DataType) -> int:
        """A new computed tensor; a symbolic dimension is dynamic, None is an unknown rank."""
        return self._append(self._tensor(f"{hint}~{len(self.graph.tensors)}", shape, dtype))

    def resource(self, hint: str) -> int:
        """A new tensor that holds the handle of a variable."""
        return self._append(writer.Tensor(f"{hint}~{len(self.graph.tensors)}", (), s.TensorType.RESOURCE))

    def constant(self, array: Any, hint: str = "constant", *, fresh: bool = False) -> int:
        """A constant tensor; equal ones (dtype, shape and content) are one tensor unless it is `fresh`."""
        array = np.asarray(array)
        key: Any = object() if fresh else (array.dtype.str, array.shape, array.tobytes())
        known = self._constants.get(key)
        if known is None:
            data = ir.Tensor(array)
            tensor = self._tensor(f"{hint}~{len(self.graph.tensors)}", array.shape, data.dtype)
            tensor.buffer = self._buffer(data)
            known = self._constants[key] = self._append(tensor)
        return known

    def ints(self, values: Iterable[int], hint: str = "constant") -> int:
        """An int32 vector, which is what TFLite takes for shapes, axes and paddings."""
        return self.constant(np.array(list(values), np.int32), hint)

    def as_int32(self, value: ir.Value) -> int:
        """The tensor of an integer value as int32: a constant is converted here, a computed one by CAST."""
        array = g.constant(value)
        if array is not None:
            limits = np.iinfo(np.int32)
            return self.constant(
                np.clip(array, limits.min, limits.max).astype(np.int32), value.name or "constant"
            )
        if value.dtype == ir.DataType.INT32:
            return self.index(value)
        made = self.tensor(value.name or "cast", g.dims(value), ir.DataType.INT32)
        self.operator("CAST", [value], [made], s.CastOptionsT())
        return made

    def transposed(self, value: ir.Value, perm: Sequence[int]) -> int:
        """The tensor of `value` with its axes in the order `perm`: a constant, or a float16 constant behind
        Cast, when it is written (once, however often it is read), a computed one by TRANSPOSE."""
        shape = g.dims(value)
        assert shape is not None and value.dtype is not None
        turned = [shape[i] for i in perm]
        half, codes = stored(value), self._reads.get(value) or storage(value)
        held = codes.value if half is None else half
        if (
            held.const_value is None
            or not g.is_constant(held)
            or (codes.quantized and recorded(codes) is None)
        ):
            made = self.like(value, value.name or "transpose", turned)
            self.operator("TRANSPOSE", [value, self.ints(perm, "perm")], [made], s.TransposeOptionsT())
            return made
        key = (value, tuple(perm), value in self._reads)
        if key in self._turned:
            return self._turned[key]
        tensor = held.const_value
        made = self.tensor(held.name or "weight", turned, tensor.dtype)
        self.graph.tensors[made].buffer = self._buffer(
            ir.LazyTensor(
                lambda: ir.Tensor(np.ascontiguousarray(tensor.numpy().transpose(perm)), dtype=tensor.dtype),
                dtype=tensor.dtype,
                shape=ir.Shape(turned),
            )
        )
        if codes.quantized:
            axis = None if codes.axis is None else list(perm).index(codes.axis % len(turned))
            self.graph.tensors[made].quantization = recorded(codes._replace(axis=axis))
        if half is not None or (codes.quantized and value not in self._reads):
            wide = self.tensor(value.name or "weight", turned, value.dtype)
            self.operator("DEQUANTIZE", [made], [wide], s.DequantizeOptionsT())
            made = wide
        self._turned[key] = made
        return made

    def _widened(self, half: ir.Value, value: ir.Value) -> int:
        """The tensor of `value`, a float16 constant behind Cast, widened where it is first read."""
        made = self._append(self._tensor(value.name or "", g.dims(value), ir.DataType.FLOAT))
        self.operator("DEQUANTIZE", [half], [made], s.DequantizeOptionsT())
        self._index[value] = made
        return made

    def shape(self, index: int) -> tuple[int, ...]:
        """The shape of a tensor, -1 where it is dynamic."""
        tensor = self.graph.tensors[index]
        return tensor.signature or tensor.shape

    # --- operators ---

    def operator(
        self,
        code: str,
        inputs: Sequence[Operand],
        outputs: Sequence[ir.Value | int],
        options: Any = None,
        version: int = 1,
    ) -> None:
        """Append an operator; `code` is a name of BuiltinOperator, None an absent input. The operator's
        version follows from its types and options (versions.py), and is at least `version`."""
        reads = tuple(-1 if v is None else v if isinstance(v, int) else self.index(v) for v in inputs)
        writes = tuple(v if isinstance(v, int) else self.index(v) for v in outputs)
        tensors = self.graph.tensors
        use = Use(
            tuple(None if i < 0 else tensors[i].type for i in reads),
            tuple(tensors[i].type for i in writes),
            tuple(tensors[i].shape if i >= 0 and tensors[i].has_rank else None for i in reads),
            options,
        )
        version = max(version, version_of(code, use))
        number = getattr(s.BuiltinOperator, code)
        self.graph.operators.append(writer.Operator(number, reads, writes, options, version))

    def fused(self, node: ir.Node) -> tuple[ir.Value, int]:
        """Where an operator with a fused activation writes its result, and that activation.

        It writes to the output of a Relu or Clip that alone reads `node`'s first output and is then lowered
        together with it, else to that output."""
        output = node.outputs[0]
        reader = g.only_use(output)
        if reader is None or reader.graph is not node.graph or output.dtype != ir.DataType.FLOAT:
            return output, NONE
        kind = activation_of(reader)
        if kind == NONE or not (self._fuses is None or fused_activation(output, self._fuses)):
            return output, NONE
        self._absorbed.add(reader)
        return reader.outputs[0], kind

    def lower(self, graph: ir.Graph) -> None:
        """Lower every node of `graph` into this subgraph."""
        for node in graph:
            if node in self._absorbed:
                continue
            cluster = self._find(node)
            operators = len(self.graph.operators)
            try:
                self._take(cluster)
                cluster.lower(self, node, **attributes(node))
            except TapeoutError:
                raise
            except Exception as error:
                raise InternalError(
                    f"{node.op_type} '{node.name}' cannot be lowered: {type(error).__name__}: {error}",
                    hint="this is a fault of tapeout; please report it with the model",
                    nodes=[node.name or ""],
                ) from error
            finally:
                self._reads, self._fuses = {}, None
            self.nodes.extend([node.name or ""] * (len(self.graph.operators) - operators))

    def _take(self, cluster: Cluster) -> None:
        """Let the node of `cluster` read and write integers where its row does."""
        for output, made in cluster.makes.items():
            last, quantize = cluster.absorbs(output)
            self.bind(last, self.index(made.value))
            if quantize is not None:
                self._absorbed.add(quantize)
        self._reads, self._fuses = cluster.reads, cluster.fuses

    # --- subgraphs ---

    def subgraph(self, hint: str) -> Builder:
        """A further subgraph of the file, for WHILE and IF. Give it its inputs with `input`, lower a graph
        into it with `lower`, then say its outputs with `finish`; its `number` goes into the options."""
        child = Builder(self.file, hint, self._find)
        child._buffers = self._buffers
        return child

    def input(self, value: ir.Value, shape: Sequence[int | str] | None = None) -> int:
        """Make the next input of this subgraph, standing for `value`; it has its shape or the one given."""
        assert value.dtype is not None
        made = self._append(
            self._tensor(value.name or "", g.dims(value) if shape is None else shape, value.dtype)
        )
        self._quantize(self.graph.tensors[made], value)
        self._index[value] = made
        self.graph.inputs.append(made)
        return made

    def extra_input(self, hint: str, shape: Sequence[int | str] | None, dtype: ir.DataType) -> int:
        """Make the next input of this subgraph, standing for no IR value."""
        made = self.tensor(hint, shape, dtype)
        self.graph.inputs.append(made)
        return made

    def finish(self, outputs: Sequence[ir.Value | int]) -> int:
        """Say the outputs of this subgraph; returns its number in the file."""
        self.graph.outputs = [v if isinstance(v, int) else self.index(v) for v in outputs]
        return self.number

    # --- what these rest on ---

    def _dequantized(self, value: ir.Value) -> int:
        """The float tensor of the output of a DequantizeLinear."""
        assert value.dtype is not None
        self._deferred.discard(value)
        tensor = self._tensor(value.name or "", g.dims(value), value.dtype)
        made = self._index[value] = self._append(tensor)
        stored = storage(value)
        if g.is_constant(stored.value) and (stored.dtype not in DEQUANTIZED or recorded(stored) is None):
            tensor.buffer = self._buffer(in_real_numbers(value))  # DEQUANTIZE does not take such codes
        else:
            self.operator("DEQUANTIZE", [self.stored(stored)], [made], s.DequantizeOptionsT())
        return made

    def _quantize(self, tensor: writer.Tensor, value: ir.Value) -> None:
        """Record how the integers of `value` are read."""
        if value.dtype in INTEGERS:
            found = quantization_of(value)
            tensor.quantization = None if found is None else recorded(found)

    def _append(self, tensor: writer.Tensor) -> int:
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def _tensor(self, name: str, shape: Sequence[int | str] | None, dtype: ir.DataType) -> writer.Tensor:
        if shape is None:
            return writer.Tensor(name, (), TYPES[dtype], has_rank=False)
        fixed = tuple(d if isinstance(d, int) and d >= 0 else 1 for d in shape)
        dynamic = any(not isinstance(d, int) or d < 0 for d in shape)
        signature = tuple(d if isinstance(d, int) and d >= 0 else -1 for d in shape) if dynamic else None
        return writer.Tensor(name, fixed, TYPES[dtype], signature=signature)

    def _buffer(self, data: ir.TensorProtocol) -> int:
        if data.nbytes == 0:
            return 0
        key: Any = id(data)
        if data.nbytes <= CONTENT_LIMIT:
            key = hashlib.blake2b(writer.bytes_of(data), digest_size=20).digest()
        if key not in self._buffers:
            self._buffers[key] = len(self.file.buffers)
            self.file.buffers.append(data)
        return self._buffers[key]
