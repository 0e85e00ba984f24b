"""What a model computes, by ONNX Runtime with its optimizations off: the reference of every comparison."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import onnx
import onnx_ir as ir

from tapeout.compiler.errors import InvalidModelError, UsageError
from tapeout.compiler.ir import graph as g
from tapeout.compiler.memory import trim

Array = np.ndarray[Any, Any]
Source: TypeAlias = "str | os.PathLike[str] | onnx.ModelProto | ir.Model"

# Values asked for together: what they hold at once stays under this many bytes.
BATCH_BYTES = 256 << 20
# A value whose size is not known is counted as this many bytes.
UNKNOWN_BYTES = 4 << 20
# What fits into one protobuf, with some room.
PROTO_BYTES = 1_900_000_000


class Reference:
    """A model opened on ONNX Runtime's CPU, optimizations off; on `onnx.reference` where ORT has no kernel.

    `model` is a path, a ModelProto or an `ir.Model`; it must not change while this object is used. With `lean`
    weights are read where they lie in the file: slower, but the runtime keeps no copies in an order of its own.
    """

    def __init__(
        self, model: Source, *, threads: int | None = None, optimized: bool = False, lean: bool = False
    ) -> None:
        self._source = model
        self.lean = lean
        self.threads = threads or min(4, os.cpu_count() or 1)
        self._optimized = optimized
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._sessions: dict[tuple[str, ...], Any] = {}
        self._proto: onnx.ModelProto | None = None
        self._base: str | None = None  # where external data lies
        if isinstance(model, ir.Model):
            self._sizes = _sizes(model)
            self._bytes = sum(
                v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None
            )
        elif isinstance(model, onnx.ModelProto):
            self._sizes = {}
            self._bytes = 0
        else:
            self._sizes = {}
            self._bytes = os.path.getsize(model)
            self._base = os.path.dirname(os.path.abspath(model))

    def __enter__(self) -> Reference:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of sessions and temporary files."""
        if self._sessions:
            self._sessions.clear()
            trim()
        self._proto = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    @property
    def source(self) -> Source:
        """The model as it was given."""
        return self._source

    @property
    def runtime(self) -> str:
        """What runs, with its version."""
        import onnxruntime

        return f"ONNX Runtime {onnxruntime.__version__}"

    # --- what the model has -------------------------------------------------------------------------------

    @property
    def base(self) -> str | None:
        """The folder where the model's external data lies."""
        return self._base

    @property
    def proto(self) -> onnx.ModelProto:
        """The model without its external data (weights inside the file included)."""
        if self._proto is None:
            if isinstance(self._source, onnx.ModelProto):
                self._proto = self._source
            elif isinstance(self._source, ir.Model):
                self._proto = self._saved()
            else:
                with _damaged(self._source):
                    self._proto = onnx.load(os.fspath(self._source), load_external_data=False)
        return self._proto

    def _saved(self) -> onnx.ModelProto:
        from tapeout.compiler.ir.save import save, to_bytes

        assert isinstance(self._source, ir.Model)
        if self._bytes <= PROTO_BYTES:
            return onnx.ModelProto.FromString(to_bytes(self._source))
        self._folder = tempfile.TemporaryDirectory(prefix="tapeout-")
        self._base = self._folder.name
        path = Path(self._base, "model.onnx")
        save(self._source, path)
        return onnx.load(os.fspath(path), load_external_data=False)

    def outputs(self) -> list[str]:
        """Names of the graph's outputs, in order."""
        return [o.name for o in self.proto.graph.output]

    def inputs(self) -> list[str]:
        """Names of the graph's inputs that are no initializers, in order."""
        weights = {t.name for t in self.proto.graph.initializer}
        return [i.name for i in self.proto.graph.input if i.name not in weights]

    def names(self) -> list[str]:
        """Names of everything that nodes of the main graph compute, in order."""
        return [name for node in self.proto.graph.node for name in node.output if name]

    # --- running ------------------------------------------------------------------------------------------

    def run(self, inputs: Mapping[str, Array], names: Sequence[str] | None = None) -> dict[str, Array]:
        """The values `names` (default: the outputs) for `inputs`, all at once: ask for few large ones.

        Raises UsageError where a name is not in the graph, InvalidModelError where neither runtime can run
        it.
        """
        wanted = tuple(dict.fromkeys(self.outputs() if names is None else names))
        if not wanted:
            return {}
        known = {*self.outputs(), *self.names()}
        missing = [n for n in wanted if n not in known]
        if missing:
            raise UsageError(f"no value '{missing[0]}' is computed by the main graph")
        feed = {k: np.asarray(v) for k, v in inputs.items()}
        session = self._session(wanted)
        if session is None:
            return _evaluate_slowly(_with_outputs(self.proto, wanted), feed, wanted, self._base)
        try:
            results = session.run(list(wanted), feed)
        except Exception as error:
            raise _not_runnable(error) from error
        return dict(zip(wanted, (np.asarray(r) for r in results), strict=True))

    def batches(self, inputs: Mapping[str, Array], names: Iterable[str]) -> Iterator[dict[str, Array]]:
        """Values of `names` in their order, a part at a time so that memory stays bounded."""
        part: list[str] = []
        size = 0
        for name in names:
            need = self._sizes.get(name, UNKNOWN_BYTES)
            if part and size + need > BATCH_BYTES:
                yield self.run(inputs, part)
                part, size = [], 0
            part.append(name)
            size += need
        if part:
            yield self.run(inputs, part)

    def _session(self, names: tuple[str, ...]) -> Any:
        """A session that gives at least `names`; None where ORT has no kernel."""
        key = () if set(names) <= set(self.outputs()) else names
        if key in self._sessions:
            return self._sessions[key]
        session = open_session(self._payload(key), self._base, self.threads, self._optimized, self.lean)
        for old in [k for k in self._sessions if k]:  # at most one session with extra outputs is kept
            del self._sessions[old]
        self._sessions[key] = session
        return session

    def _payload(self, names: tuple[str, ...]) -> bytes | str:
        if not names and isinstance(self._source, str | os.PathLike):
            return os.fspath(self._source)
        if not names:
            return cast(bytes, self.proto.SerializeToString())
        proto = _with_outputs(self.proto, names)
        return cast(bytes, proto.SerializeToString())


def open_session(
    payload: bytes | str, base: str | None, threads: int, optimized: bool = False, lean: bool = False
) -> Any:
    """An ORT session on the CPU for a serialized model or a path; None where ORT has no kernel for it.

    `base` is the folder of the external data. Raises InvalidModelError where the model is at fault.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if lean:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if base is not None and isinstance(payload, bytes):
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", base)
    try:
        return ort.InferenceSession(payload, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if type(error).__name__ == "NotImplemented" and isinstance(payload, bytes):
            defined = _written_out(payload)
            if defined is not None:
                return open_session(defined, base, threads, optimized, lean)
        if type(error).__name__ in (
            "NotImplemented",
            "Fail",
            "InvalidGraph",
            "InvalidArgument",
            "InvalidProtobuf",
        ):
            return None
        raise _not_runnable(error) from error


def _written_out(payload: bytes) -> bytes | None:
    """The model with every Swish of the main graph written out by its definition, x * Sigmoid(alpha x), for
    ORT has no kernel for it and does not use the definition; None where there is none."""
    proto = onnx.ModelProto.FromString(payload)
    nodes: list[onnx.NodeProto] = []
    count = 0
    for node in proto.graph.node:
        if node.op_type != "Swish" or node.domain:
            nodes.append(node)
            continue
        count += 1
        x, y = node.input[0], node.output[0]
        alpha = next((a.f for a in node.attribute if a.name == "alpha"), 1.0)
        inner = x
        if alpha != 1.0:
            number, inner = f"{y}~alpha", f"{y}~scaled"
            value = onnx.helper.make_node("Constant", [], [f"{number}~f"], value_float=alpha)
            cast_like = onnx.helper.make_node("CastLike", [f"{number}~f", x], [number])
            nodes += [value, cast_like, onnx.helper.make_node("Mul", [x, number], [inner])]
        nodes.append(onnx.helper.make_node("Sigmoid", [inner], [f"{y}~gate"]))
        nodes.append(onnx.helper.make_node("Mul", [x, f"{y}~gate"], [y], name=node.name))
    if not count:
        return None
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return cast(bytes, proto.SerializeToString())


def evaluate(
    proto: onnx.ModelProto,
    feed: Mapping[str, Array],
    names: Sequence[str],
    base: str | None = None,
    threads: int = 2,
) -> dict[str, Array]:
    """Run a whole model once: ORT without optimizations, else `onnx.reference`. `names` are graph outputs."""
    session = open_session(proto.SerializeToString(), base, threads)
    if session is None:
        return _evaluate_slowly(proto, feed, names, base)
    try:
        results = session.run(list(names), dict(feed))
    except Exception as error:
        raise _not_runnable(error) from error
    return dict(zip(names, (np.asarray(r) for r in results), strict=True))


def _evaluate_slowly(
    proto: onnx.ModelProto, feed: Mapping[str, Array], names: Sequence[str], base: str | None
) -> dict[str, Array]:
    from onnx.external_data_helper import load_external_data_for_model
    from onnx.reference import ReferenceEvaluator

    if base is not None:
        whole = onnx.ModelProto()
        whole.CopyFrom(proto)
        load_external_data_for_model(whole, base)
        proto = whole
    try:
        results = ReferenceEvaluator(proto).run(list(names), dict(feed))
    except Exception as error:
        raise _not_runnable(error) from error
    return dict(zip(names, (np.asarray(r) for r in results), strict=True))


def _with_outputs(proto: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """`proto` with `names` as further outputs; weights are shared by the serializer, not copied here
    twice."""
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    known = {o.name for o in made.graph.output}
    for name in names:
        if name not in known:
            made.graph.output.add().name = name
    return made


def _sizes(model: ir.Model) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for node in model.graph:
        for value in node.outputs:
            shape = g.static_dims(value)
            if value.name and shape is not None and value.dtype is not None:
                sizes[value.name] = int(np.prod(shape, dtype=np.int64)) * max(1, int(value.dtype.itemsize))
    return sizes


def _not_runnable(error: Exception) -> InvalidModelError:
    text = str(error).strip().splitlines()
    return InvalidModelError(
        f"the model does not run in ONNX Runtime: {text[0][:500] if text else type(error).__name__}",
        hint="if the file is right and the data is right, export with --no-verify and check it on your own",
    )


@contextlib.contextmanager
def _damaged(path: object) -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise InvalidModelError(f"'{path}' is no ONNX model: {type(error).__name__}: {error}") from error


def spread(
    model: Source, samples: Sequence[Mapping[str, Array]], *, threads: int | None = None
) -> dict[str, float]:
    """How far ONNX Runtime's own answers lie apart with and without its optimizations, per output.

    The measure is max|a-b| / max|a| (0 for outputs that are not float), the largest over `samples`.
    """
    from tapeout.compiler.metrics import relative

    with (
        Reference(model, threads=threads) as plain,
        Reference(model, threads=threads, optimized=True) as fast,
    ):
        result: dict[str, float] = {}
        for inputs in samples:
            a, b = plain.run(inputs), fast.run(inputs)
            for name, array in a.items():
                result[name] = max(result.get(name, 0.0), relative(array, b[name]))
        return result
