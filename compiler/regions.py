"""Parts of a graph run on their own: what lies between known tensors, fed with those.

A region is a target value and the nodes that compute it from the nearest known values. Running every region
on values of another execution (a device's tensors, the graph before a pass) shows the error that each part
makes by itself, free of what it inherits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from tapeout.compiler.errors import InvalidModelError
from tapeout.compiler.metrics import Array
from tapeout.compiler.reference import BATCH_BYTES, evaluate

_LOCAL = "~local"

# Gives the arrays of known values by name.
Fetch = Callable[[Sequence[str]], Mapping[str, Array]]


class Regions:
    """The regions of `proto`'s main graph between the values `known` (graph inputs included)."""

    def __init__(
        self, proto: onnx.ModelProto, known: Iterable[str], base: str | None = None, threads: int = 2
    ) -> None:
        self.proto = proto
        self.known = set(known)
        self._base = base
        self._threads = threads
        self._found: dict[str, tuple[list[int], list[str]]] = {}
        graph = proto.graph
        self.nodes = list(graph.node)
        self._maker = {name: i for i, n in enumerate(self.nodes) for name in n.output if name}
        self._weights = {t.name: t for t in graph.initializer}
        self._reads = [list(dict.fromkeys((*(i for i in n.input if i), *captured(n)))) for n in self.nodes]

    def targets(self) -> list[str]:
        """The known values that nodes compute, in topological order."""
        return [name for n in self.nodes for name in n.output if name in self.known]

    def region(self, target: str) -> tuple[list[int], list[str]]:
        """Indices of the nodes of the region that ends in `target`, in order, and the known values it
        reads."""
        if target in self._found:
            return self._found[target]
        nodes: set[int] = set()
        reads: dict[str, None] = {}
        stack = [self._maker[target]]
        while stack:
            index = stack.pop()
            if index in nodes:
                continue
            nodes.add(index)
            for name in self._reads[index]:
                if name in self._weights:
                    continue
                if name in self.known or name not in self._maker:
                    reads[name] = None
                else:
                    stack.append(self._maker[name])
        self._found[target] = sorted(nodes), list(reads)
        return self._found[target]

    def run(self, targets: Sequence[str], fetch: Fetch) -> Iterator[tuple[str, Array | None, Array]]:
        """For each target: its name, what its region computes from the known values (None where it does not
        run), and the known value itself. Parts of bounded size are run together."""
        start, step = 0, 16
        while start < len(targets):
            part = targets[start : start + step]
            names = dict.fromkeys(n for t in part for n in (*self.region(t)[1], t))
            values = dict(fetch(list(names)))
            yield from self._run(part, values)
            start += len(part)
            size = sum(v.nbytes for v in values.values()) / len(part)
            step = max(1, min(4 * step, 256, int(BATCH_BYTES / max(1, size))))

    def live(self) -> set[str]:
        """Values that depend on the graph's inputs. Others are constants, which a runtime may never store."""
        found = {i.name for i in self.proto.graph.input} - set(self._weights)
        for node, reads in zip(self.nodes, self._reads, strict=True):
            if not found.isdisjoint(reads):
                found.update(node.output)
        return found

    def precisely(self, target: str, fetch: Fetch) -> Array | None:
        """What the region of `target` gives in float64 by `onnx.reference`; None where that does not run.

        A second opinion for where ONNX Runtime's kernels themselves are coarse (a Sigmoid far from 0, say).
        """
        from onnx.reference import ReferenceEvaluator

        values = fetch([*self.region(target)[1], target])
        model = self._model([target], values)
        for place, tensor in enumerate(model.graph.initializer):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                return None
            if tensor.data_type == onnx.TensorProto.FLOAT:
                wide = onnx.numpy_helper.to_array(tensor).astype(np.float64)
                model.graph.initializer[place].CopyFrom(onnx.numpy_helper.from_array(wide, tensor.name))
        feed = {i.name: _wide(values[i.name]) for i in model.graph.input}
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                (found,) = ReferenceEvaluator(model).run(None, feed)
        except Exception:  # a numpy implementation that is missing, or that asks for float32
            return None
        array = np.asarray(found)
        return array if array.shape == values[target].shape else None

    def _run(
        self, targets: Sequence[str], values: Mapping[str, Array]
    ) -> Iterator[tuple[str, Array | None, Array]]:
        there = [t for t in targets if t in values and all(r in values for r in self.region(t)[1])]
        try:
            found: Mapping[str, Array | None] = self._evaluate(there, values)
        except InvalidModelError:
            if len(there) <= 1:
                found = dict.fromkeys(there)
            else:
                half = len(there) // 2
                yield from self._run(there[:half], values)
                yield from self._run(there[half:], values)
                return
        for target in there:
            yield target, found[target], values[target]

    def _evaluate(self, targets: Sequence[str], values: Mapping[str, Array]) -> dict[str, Array]:
        if not targets:
            return {}
        model = self._model(targets, values)
        names = [i.name for i in model.graph.input]
        feed = {n: np.ascontiguousarray(values[n]) if values[n].ndim else values[n] for n in names}
        found = evaluate(model, feed, [t + _LOCAL for t in targets], self._base, self._threads)
        return {t: found[t + _LOCAL] for t in targets}

    def _model(self, targets: Sequence[str], values: Mapping[str, Array]) -> onnx.ModelProto:
        """The regions of `targets` as one model: known values are inputs, results are named apart."""
        model = onnx.ModelProto(ir_version=self.proto.ir_version)
        model.opset_import.extend(self.proto.opset_import)
        model.functions.extend(self.proto.functions)
        graph = model.graph
        graph.name = "region"
        indices: set[int] = set()
        reads: dict[str, None] = {}
        for target in targets:
            nodes, names = self.region(target)
            indices.update(nodes)
            reads.update(dict.fromkeys(names))
        weights: dict[str, None] = {}
        for index in sorted(indices):
            node = graph.node.add()
            node.CopyFrom(self.nodes[index])
            for place, name in enumerate(node.output):
                if name in self.known:
                    node.output[place] = name + _LOCAL
            weights.update(dict.fromkeys(n for n in self._reads[index] if n in self._weights))
        for name in weights:
            graph.initializer.add().CopyFrom(self._weights[name])
        for name in reads:
            array = values[name]
            graph.input.append(onnx.helper.make_tensor_value_info(name, _element(array), array.shape))
        for target in targets:
            graph.output.add().name = target + _LOCAL
        return model


def _wide(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype == np.float32 else array


def captured(node: onnx.NodeProto) -> set[str]:
    """Names that the subgraphs of `node` read from outside."""
    names: set[str] = set()
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs) if attribute.type in (
            onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS
        ) else ():  # fmt: skip
            inner = {i.name for i in graph.input} | {t.name for t in graph.initializer}
            inner |= {o for n in graph.node for o in n.output}
            reads = {i for n in graph.node for i in (*n.input, *captured(n)) if i}
            reads |= {o.name for o in graph.output}
            names |= reads - inner
    return names


def _element(array: Array) -> Any:
    return onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
