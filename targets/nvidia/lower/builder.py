"""What lowerings build: tensors, weights and launches of a plan, from values and nodes of the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from tapeout.compiler.ir.dimensions import parse
from tapeout.sdk import InternalError, graph, origin
from tapeout.targets.nvidia.plan import expressions as e
from tapeout.targets.nvidia.plan.expressions import Code
from tapeout.targets.nvidia.plan.parts import Argument, ArgumentKind, Kind, Launch, Tensor, Value

BEGINNING = e.number(0)


class Builder:
    """A plan in the making. Tensors go by their numbers."""

    def __init__(self, model: ir.Model, symbols: Sequence[str]) -> None:
        self.graph = model.graph
        self.symbols = {name: index for index, name in enumerate(symbols)}
        self.tensors: list[Tensor] = []
        self.launches: list[Launch] = []
        self.weights: list[ir.Value] = []
        self._known: dict[ir.Value, int] = {}
        for value in model.graph.inputs:
            self._known[value] = self._tensor(value.name or "", dtype(value), Kind.INPUT, self.shape(value))

    # --- tensors ---

    def shape(self, value: ir.Value) -> tuple[Code, ...]:
        """The shape of a value as codes."""
        dims = graph.dims(value)
        if dims is None:
            raise InternalError(f"'{value.name}' has no known rank")
        return tuple(self.size(d) for d in dims)

    def size(self, dim: int | str) -> Code:
        """A dimension as code."""
        return e.of(parse(dim) if isinstance(dim, str) else dim, self.symbols)

    def read(self, value: ir.Value | None) -> int:
        """The tensor that holds `value`: made before, or a constant."""
        assert value is not None
        if value not in self._known:
            if not graph.is_constant(value):
                raise InternalError(f"'{value.name}' is read before it is computed")
            self.weights.append(value)
            shape = tuple(e.number(d) for d in graph.static_dims(value) or ())
            number = len(self.weights) - 1
            self._known[value] = self._tensor(
                value.name or "", dtype(value), Kind.WEIGHT, shape, weight=number
            )
        return self._known[value]

    def output(self, value: ir.Value) -> int:
        """A new tensor for a value that a node computes."""
        kind = Kind.OUTPUT if value.is_graph_output() else Kind.INNER
        self._known[value] = self._tensor(value.name or "", dtype(value), kind, self.shape(value))
        return self._known[value]

    def temporary(self, like: ir.Value, shape: Sequence[Code]) -> int:
        """A new tensor in the arena, of the type of `like`."""
        return self._tensor(f"{like.name}~{len(self.tensors)}", dtype(like), Kind.INNER, tuple(shape))

    def reshaped(self, tensor: int, shape: Sequence[Code]) -> int:
        """Another view of all elements of a tensor."""
        old = self.tensors[tensor]
        if old.shape == tuple(shape):
            return tensor
        name = f"{old.name}~{len(self.tensors)}"
        return self._tensor(name, old.dtype, Kind.INNER, tuple(shape), storage=old.storage)

    def view(self, value: ir.Value, tensor: int, node: ir.Node) -> None:
        """Let `value` be all elements of a tensor under its own shape: without a copy, but where the caller owns it."""
        shape, old = self.shape(value), self.tensors[tensor]
        if value.is_graph_output():
            one = e.number(1)
            self.copy(tensor, self.output(value), [e.product(shape)], [one], [one], node)
            return
        self._known[value] = self._tensor(
            value.name or "", dtype(value), Kind.INNER, shape, storage=old.storage
        )

    def finish(self, value: ir.Value) -> None:
        """Give an output of the graph that no node computes, an input or a constant, a tensor of its own."""
        known = self._known.get(value)
        if known is not None and self.tensors[known].kind == Kind.OUTPUT:
            return
        source, shape, one = self.read(value), self.shape(value), e.number(1)
        target = self._tensor(value.name or "", dtype(value), Kind.OUTPUT, shape)
        self._copy(source, target, [e.product(shape)], [one], [one], ())

    def _tensor(
        self,
        name: str,
        kind: str,
        where: Kind,
        shape: tuple[Code, ...],
        *,
        storage: int = -1,
        weight: int = -1,
    ) -> int:
        index = len(self.tensors)
        self.tensors.append(Tensor(name, kind, where, shape, index if storage < 0 else storage, weight))
        return index

    # --- launches ---

    def launch(
        self,
        operation: str,
        node: ir.Node,
        reads: Sequence[int],
        writes: Sequence[int],
        numbers: Sequence[Code],
        attributes: Mapping[str, Value] | None = None,
    ) -> None:
        """Append a step. Its arguments are the tensors that it reads and writes, then `numbers`."""
        self._launch(operation, origin(node), reads, writes, numbers, dict(attributes or {}))

    def copy(
        self,
        source: int,
        target: int,
        dims: Sequence[Code],
        strides: Sequence[Code],
        target_strides: Sequence[Code],
        node: ir.Node,
        offset: Code = BEGINNING,
        target_offset: Code = BEGINNING,
    ) -> None:
        """Move elements: target[target_offset + i . target_strides] = source[offset + i . strides] for i in dims."""
        self._copy(source, target, dims, strides, target_strides, origin(node), offset, target_offset)

    def _copy(
        self,
        source: int,
        target: int,
        dims: Sequence[Code],
        strides: Sequence[Code],
        target_strides: Sequence[Code],
        sources: Sequence[str],
        offset: Code = BEGINNING,
        target_offset: Code = BEGINNING,
    ) -> None:
        numbers = (*dims, *strides, *target_strides, offset, target_offset)
        self._launch("copy", sources, [source], [target], numbers, {"rank": len(dims)})

    def _launch(
        self,
        operation: str,
        sources: Sequence[str],
        reads: Sequence[int],
        writes: Sequence[int],
        numbers: Sequence[Code],
        attributes: Mapping[str, Value],
    ) -> None:
        pointers = [Argument(ArgumentKind.TENSOR, tensor=t) for t in (*reads, *writes)]
        integers = [Argument(ArgumentKind.INT64, code=c) for c in numbers]
        arguments = (*pointers, *integers)
        self.launches.append(
            Launch(operation, attributes, tuple(reads), tuple(writes), tuple(sources), arguments=arguments)
        )


def dtype(value: ir.Value) -> str:
    """The type of a value as plans call it."""
    assert value.dtype is not None
    return str(value.dtype.numpy().name)


def strides(shape: Sequence[Code]) -> list[Code]:
    """The strides of a row-major tensor, in elements."""
    return [e.product(shape[axis + 1 :]) for axis in range(len(shape))]


def broadcast(shape: Sequence[Code], to: Sequence[Code]) -> list[Code]:
    """The strides by which a tensor of `shape` is read as one of shape `to`: 0 along axes that it repeats."""
    own = strides(shape)
    lacking = len(to) - len(shape)
    return [
        e.number(0) if axis < lacking or shape[axis - lacking] == e.number(1) else own[axis - lacking]
        for axis in range(len(to))
    ]
