"""Keras files and SavedModels to ONNX through tf2onnx, as a script in a process of its own."""

from __future__ import annotations

import json
import os
import re
import runpy
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

OPSET = 18
# Operators of TensorFlow by which a program leaves the graph: files, network, Python, other devices' memory.
OUTSIDE = re.compile(
    r"PyFunc|EagerPyFunc|PyFuncStateless|NumpyFunc|ReadFile|WriteFile|MatchingFiles|SaveV?2?|SaveSlices|SaveDataset\w*"
    r"|RestoreSlice|Restore|ShardedFilename\w*|MergeV2Checkpoints|LoadDataset\w*|\w*Reader(V2)?|Print(V2)?|LoadLibrary\w*"
    r"|\w*Summary\w*|Dataset\w*|\w*Dataset(V\d)?|\w*TableFromTextFile\w*|InitializeTableFromTextFile\w*|Rpc\w*|Send|Recv|_Send|_Recv"
    r"|DebugIdentity\w*|Immutable?Const|TF_?GRPC\w*|\w*RecordWriter\w*|Generate\w*Vocab\w*|LookupTableImport\w*|TPU\w*|XlaLaunch\w*"
)

_config = runpy.run_path(os.path.join(os.path.dirname(os.path.abspath(__file__)), "keras_config.py"))
EXPANSION, Refused, check_config = (_config[name] for name in ("EXPANSION", "Refused", "check_config"))


# --- reading ------------------------------------------------------------------------------------------------


def _check_hdf5(path: str, config: bool) -> None:
    """Refuse links out of an HDF5 file and arrays that are far larger than what is stored; with `config`, check
    the Keras configuration in its attributes."""
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise Refused("invalid_model", f"it is no HDF5 file, or damaged: {error}") from error
    with file:
        pending = [file["/"]]
        while pending:
            group = pending.pop()
            for name in group:
                link = group.get(name, getlink=True)
                if not isinstance(link, h5py.HardLink):
                    raise Refused("invalid_model", f"'{name}' is a link to elsewhere ({type(link).__name__})")
                each = group[name]
                if isinstance(each, h5py.Group):
                    pending.append(each)
                    if len(pending) > 100_000:
                        raise Refused("resource", "the file holds more than 100,000 groups")
                    continue
                if each.external or each.is_virtual:
                    raise Refused("invalid_model", f"the data of '{each.name}' lies in another file")
                stored = each.id.get_storage_size()
                if each.nbytes > EXPANSION * max(stored, 512):
                    raise Refused(
                        "resource", f"'{each.name}' claims {each.nbytes:,} bytes, {stored:,} are stored"
                    )
        if not config:
            return
        text = file.attrs.get("model_config")
        if text is None:
            raise Refused(
                "unsupported",
                "the file holds weights and no model",
                "save the whole model: model.save('model.keras')",
            )
        try:
            check_config(json.loads(text))
        except ValueError as error:
            raise Refused("invalid_model", f"its configuration is damaged: {error}") from error


class Model:
    """A model of the framework: `function` on tensors in the order of `inputs` ((name, TensorSpec) each) gives a
    list in the order of `outputs`. `layers` are the names that parts of a graph are called after."""

    def __init__(
        self, function: Any, inputs: Sequence[Any], outputs: Sequence[str], layers: Sequence[str]
    ) -> None:
        self.function, self.inputs, self.outputs, self.layers = function, inputs, outputs, layers


def read_keras(path: str) -> Model:
    """A `.keras` or HDF5 file."""
    import keras
    import tensorflow as tf

    if path.endswith(".keras"):
        import zipfile

        with (
            zipfile.ZipFile(path) as archive,
            archive.open("model.weights.h5") as weights,
            open("weights.h5", "wb") as copy,
        ):
            while piece := weights.read(1 << 22):
                copy.write(piece)
        _check_hdf5("weights.h5", config=False)
        os.remove("weights.h5")
    else:
        _check_hdf5(path, config=True)
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        raise Refused(
            "invalid_model",
            f"Keras {keras.__version__} cannot load it: {type(error).__name__}: {_line(error)}",
            "an HDF5 file holds layers alone, no operators between them: model.save('model.keras') holds both"
            if "Unknown layer" in str(error)
            else "a file of Keras 2 may need that Keras: save it as a SavedModel there",
        ) from error
    tensors = tf.nest.flatten(model.inputs)
    if not tensors:
        raise Refused(
            "unsupported", "the model has no fixed inputs (a subclassed model)", "use model.export('folder')"
        )
    try:
        structure = model.input if isinstance(model.input, dict | list | tuple) else None
    except AttributeError:  # a Sequential that was read, not called
        structure = None
    specs = [(t.name.partition(":")[0], tf.TensorSpec(t.shape, t.dtype)) for t in tensors]

    def call(*given: Any) -> list[Any]:
        packed = given[0] if structure is None else tf.nest.pack_sequence_as(structure, list(given))
        return list(tf.nest.flatten(model(packed, training=False)))

    names = [str(n) for n in getattr(model, "output_names", ())]
    layers = [each.name for each in model._flatten_layers(include_self=True)]
    return Model(call, specs, names, layers)


def read_saved_model(path: str) -> Model:
    """A SavedModel's default signature."""
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    proto = saved_model_pb2.SavedModel()
    try:
        with open(os.path.join(path, "saved_model.pb"), "rb") as file:
            proto.ParseFromString(file.read())
    except Exception as error:
        raise Refused("invalid_model", f"its saved_model.pb is damaged: {error}") from error
    for graph in proto.meta_graphs:
        _check_operators(graph)
    try:
        loaded = tf.saved_model.load(path)
    except Exception as error:
        raise Refused(
            "invalid_model", f"TensorFlow {tf.__version__} cannot load it: {str(error)[:300]}"
        ) from error
    signatures = dict(loaded.signatures)
    key = "serving_default" if "serving_default" in signatures else next(iter(signatures), None)
    if key is None:
        raise Refused(
            "unsupported",
            "the SavedModel has no signature",
            "save it with one: tf.saved_model.save(module, folder, signatures=module.call)",
        )
    if len(signatures) > 1 and key != "serving_default":
        raise Refused(
            "unsupported",
            f"the SavedModel has the signatures {', '.join(sorted(signatures))} and none called serving_default",
            "save one of them as serving_default",
        )
    concrete = signatures[key]
    specs = [
        (name, tf.TensorSpec(s.shape, s.dtype))
        for name, s in sorted(concrete.structured_input_signature[1].items())
    ]
    outputs = sorted(concrete.structured_outputs)

    def call(*given: Any) -> list[Any]:
        found = concrete(**{name: value for (name, _), value in zip(specs, given, strict=True)})
        return [found[name] for name in outputs]

    call.keep = loaded  # type: ignore[attr-defined]  # variables live as long as what they were loaded with
    # Variables are called "layer/kernel": the only place where names of layers are kept.
    layers = {part for v in concrete.variables for part in v.name.partition(":")[0].split("/")[:-1]}
    return Model(call, specs, outputs, sorted(layers))


def _check_operators(graph: Any) -> None:
    """Refuse operators that leave the graph, but in the functions that save and restore variables."""
    found: dict[str, str] = {}
    reached: set[str] = set()
    functions = {f.signature.name: f for f in graph.graph_def.library.function}
    own = [n for n in functions if "traced_save" in n or "traced_restore" in n]

    def look(nodes: Any, where: str) -> None:
        for node in nodes:
            if OUTSIDE.fullmatch(node.op):
                found.setdefault(node.op, f"{where}{node.name}")
            for attribute in node.attr.values():
                for name in (attribute.func.name, *(f.name for f in attribute.list.func)):
                    if name in functions and name not in reached:
                        reached.add(name)

    for name, function in functions.items():
        if name not in own:
            look(function.node_def, f"{name}/")
    called = [n for n in own if n in reached]
    if called:
        found.setdefault("Save/Restore", called[0])
    # The outer graph restores variables, and calls the signatures; of its own saving only names remain.
    saver = {"SaveV2", "RestoreV2", "ShardedFilename", "MergeV2Checkpoints"}
    for node in graph.graph_def.node:
        if OUTSIDE.fullmatch(node.op) and node.op not in saver:
            found.setdefault(node.op, node.name)
    if found:
        raise Refused(
            "unsupported",
            "the SavedModel touches more than its tensors: "
            + "; ".join(f"{op} ('{where}')" for op, where in sorted(found.items())[:10]),
            "save a signature without reading, writing, printing or Python code",
        )


# --- converting ---------------------------------------------------------------------------------------------


class Step:
    """The requests that the script answers."""

    def __init__(self) -> None:
        self._model: Model | None = None

    def convert(self, request: Mapping[str, Any]) -> dict[str, Any]:
        os.environ.setdefault("TF_USE_LEGACY_KERAS", "0")
        import tensorflow as tf

        if request["threads"]:
            tf.config.threading.set_intra_op_parallelism_threads(request["threads"])
        source = request["source"]
        model = read_saved_model(source) if os.path.isdir(source) else read_keras(source)
        proto = _to_onnx(model)
        names = _rename(proto, model)
        self._model = model
        model.outputs = [o.name for o in proto.graph.output]
        import onnx

        if proto.ByteSize() > 1_500_000_000:
            onnx.save(proto, request["target"], save_as_external_data=True, location="weights")
        else:
            onnx.save(proto, request["target"])
        return {"modules": names, "version": tf.__version__, "converter": _version("tf2onnx")}

    def run(self, request: Mapping[str, Any]) -> dict[str, Any]:
        import tensorflow as tf

        assert self._model is not None
        with np.load(request["feed"], allow_pickle=False) as feed:
            given = [tf.constant(feed[name]) for name, _ in self._model.inputs]
        found = self._model.function(*given)
        arrays: dict[str, Any] = {n: np.asarray(v) for n, v in zip(self._model.outputs, found, strict=True)}
        np.savez(request["result"], **arrays)
        return {}


def _to_onnx(model: Model) -> Any:
    import logging

    import tensorflow as tf
    import tf2onnx

    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    specs = [tf.TensorSpec(s.shape, s.dtype, name=f"in{i}") for i, (_, s) in enumerate(model.inputs)]
    try:
        proto, _ = tf2onnx.convert.from_function(
            tf.function(model.function),
            input_signature=specs,
            opset=OPSET,
            custom_op_handlers={"Erfc": (_erfc, [])},
        )
    except Exception as error:
        raise Refused(
            "unsupported", f"tf2onnx cannot convert it: {type(error).__name__}: {str(error).strip()[:300]}"
        ) from error
    _check_known(proto, model)
    return proto


def _erfc(context: Any, node: Any, name: str, _: Any) -> None:
    """erfc(x) -> 1 + erf(-x): Keras writes the exact GELU with it, and tf2onnx has no such operator."""
    from tf2onnx import utils

    dtype, shape = context.get_dtype(node.output[0]), context.get_shape(node.output[0])
    negative = context.make_node("Neg", node.input, name=utils.make_name(name))
    erf = context.make_node("Erf", negative.output, name=utils.make_name(name))
    one = context.make_const(utils.make_name(name), np.array(1, utils.map_onnx_to_numpy_type(dtype)))
    context.remove_node(node.name)
    context.make_node(
        "Add",
        [erf.output[0], one.output[0]],
        outputs=node.output,
        name=node.name,
        shapes=[shape],
        dtypes=[dtype],
    )


def _check_known(proto: Any, model: Model) -> None:
    """tf2onnx leaves what it does not know in the graph as it was."""
    import onnx

    layers = set(model.layers)
    unknown: dict[str, str] = {}
    for node in _nodes(proto.graph):
        if not onnx.defs.has(node.op_type, node.domain or ""):
            unknown.setdefault(node.op_type, _layer(node.name, layers))
    if unknown:
        raise Refused(
            "unsupported",
            "tf2onnx has no conversion for: "
            + "; ".join(f"{op} ('{at}')" for op, at in sorted(unknown.items())[:10]),
            "write these parts with other operators",
        )


def _rename(proto: Any, model: Model) -> dict[str, str]:
    """Give inputs and outputs the model's own names; node -> layer."""
    graph = proto.graph
    if len(graph.output) != len({o.name for o in graph.output}):
        raise Refused("unsupported", "the model returns the same tensor twice")
    wanted = {f"in{i}": name for i, (name, _) in enumerate(model.inputs)}
    outputs = list(model.outputs) if len(model.outputs) == len(graph.output) else []
    outputs = outputs or [o.name.partition(":")[0] for o in graph.output]
    inner = {t.name for t in graph.initializer} | {o for n in graph.node for o in n.output}
    change: dict[str, str] = {}
    # tf2onnx drops inputs that nothing reads; their order is that of the signature.
    for value in graph.input:
        name = wanted.get(value.name.partition(":")[0], value.name)
        change[value.name] = name if name not in inner else value.name
    for value, name in zip(graph.output, outputs, strict=True):
        taken = inner | set(change.values())
        new = name
        while new in taken and new != value.name:
            new += "_out"
        change.setdefault(value.name, new)
    _replace(graph, change)
    layers = set(model.layers)
    weights = {t.name for t in graph.initializer}
    return {n.name: _layer_of(n, layers, weights) for n in _nodes(graph) if n.name}


def _layer_of(node: Any, layers: set[str], weights: set[str]) -> str:
    """The layer that a node belongs to: by its own name, else (the converter made it) by that of what it writes, of
    its weights or of what it reads."""
    read = sorted(node.input, key=lambda name: name not in weights)
    for name in (node.name, *node.output, *read):
        found = _layer(name.partition(":")[0], layers)
        if set(found.split("/")) <= layers:
            return found
    return _layer(node.name, layers)


def _nodes(graph: Any) -> Iterator[Any]:
    """The nodes of a graph and of the graphs inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _replace(graph: Any, change: Mapping[str, str]) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name in change:
                    names[i] = change[name]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _replace(attribute.g, change)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.name in change:
            value.name = change[value.name]


def _layer(node: str, layers: set[str]) -> str:
    """ "functional_1/block_1/conv1_1/convolution__6" -> "block/conv1": the layers that a node's name tells of.

    TensorFlow adds a number to a scope that is entered again. Where no layer is known the name without its
    last part is the nearest.
    """
    parts = [p for p in node.split("/") if p not in ("StatefulPartitionedCall", "PartitionedCall")]
    known = []
    for part in parts:
        while part not in layers and re.search(r"_\d+$", part):
            part = part.rpartition("_")[0]
        if part in layers:
            known.append(part)
    if known:
        return "/".join(known[1:] or known)
    return "/".join(parts[:-1]) or (parts[0] if parts else node)


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def _version(package: str) -> str:
    import importlib.metadata

    return importlib.metadata.version(package)


if __name__ == "__main__":
    serve = runpy.run_path(os.path.join(os.path.dirname(os.path.abspath(__file__)), "serve.py"))["serve"]
    serve(Step(), needs=("tensorflow", "tf2onnx"), arguments=sys.argv[1:])
