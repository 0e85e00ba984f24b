"""Keras files and SavedModels: read as data before TensorFlow starts, converted, and equal to TensorFlow."""

from __future__ import annotations

import copy
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tapeout
from tapeout.compiler.errors import TapeoutError, UnsupportedError
from tapeout.compiler.frontends.steps.keras_config import Refused, check_config
from tapeout.compiler.frontends.steps.keras_step import _layer

CONFIG: dict[str, Any] = {
    "module": "keras", "class_name": "Sequential", "registered_name": None,
    "config": {
        "name": "net",
        "layers": [
            {"module": "keras.layers", "class_name": "InputLayer", "config": {"name": "x"}, "registered_name": None},
            {"module": "keras.layers", "class_name": "Dense", "registered_name": None, "config": {
                "name": "dense", "units": 2, "activation": "relu",
                "kernel_initializer": {"module": "keras.initializers", "class_name": "Zeros", "config": {}},
            }},
        ],
    },
}  # fmt: skip


def with_layer(**layer: Any) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    config["config"]["layers"].append({"registered_name": None, "config": {"name": "odd"}} | layer)
    return config


def keras_file(path: Path, config: Any, extra: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("config.json", config if isinstance(config, bytes) else json.dumps(config))
        made.writestr("metadata.json", "{}")
        made.writestr("model.weights.h5", b"no weights")
        for name, data in (extra or {}).items():
            made.writestr(name, data)
    return path


# --- before TensorFlow starts -----------------------------------------------------------------------------


def test_kerass_own_layers_and_operators_are_taken() -> None:
    check_config(CONFIG)
    check_config(with_layer(module="keras.src.ops.numpy", class_name="Add", registered_name="Add"))


@pytest.mark.parametrize(
    ("layer", "word"),
    [
        ({"module": "keras.layers", "class_name": "Lambda"}, "Python code"),
        ({"module": "keras.layers", "class_name": "TorchModuleWrapper"}, "pickled"),
        ({"module": "keras.layers", "class_name": "TextVectorization"}, "text"),
        ({"module": "keras.layers", "class_name": "TFSMLayer"}, "another SavedModel"),
        ({"class_name": "Addons>Lambda"}, "Python code"),
        ({"module": "mine.layers", "class_name": "Blur"}, "Blur 'odd' of mine.layers"),
        ({"module": "os", "class_name": "system"}, "system 'odd' of os"),
        ({"module": "builtins", "class_name": "function", "config": "exec"}, "a Python function"),
        ({"module": None, "class_name": "Mine>Blur", "registered_name": "Mine>Blur"}, "Mine>Blur"),
        ({"module": "keras.src.utils.file_utils", "class_name": "get_file"}, "get_file"),
        ({"module": "keras.src.ops.core", "class_name": "map"}, "map 'odd' of keras.src.ops.core"),
        ({"module": "keras.src.ops.numpy.os", "class_name": "Add"}, "Add 'odd'"),
    ],
)
def test_code_and_custom_layers_are_refused_by_name(layer: dict[str, Any], word: str, tmp_path: Path) -> None:
    path = keras_file(tmp_path / "m.keras", with_layer(**layer))
    with pytest.raises(UnsupportedError) as found:
        tapeout.explain(path)
    assert word in found.value.message and str(path) in found.value.message
    assert found.value.hint


def test_all_of_them_are_listed() -> None:
    config = with_layer(module="mine", class_name="A", config={"name": "a"})
    config["config"]["layers"].append({"module": "mine", "class_name": "B", "config": {"name": "b"}})
    with pytest.raises(Refused, match=r"A 'a' of mine; B 'b' of mine|B 'b' of mine; A 'a' of mine"):
        check_config(config)


def test_deep_nesting_is_refused() -> None:
    config: Any = []
    for _ in range(500):
        config = [config]
    with pytest.raises(Refused, match="nested"):
        check_config(config)


@pytest.mark.parametrize(
    ("config", "extra", "word"),
    [
        (b"{", {}, "damaged"),
        (CONFIG, {"model.pkl": b"x"}, "model.pkl"),
        (CONFIG, {"assets/vocabulary.txt": b"x"}, "neither"),
        (b"[" * 100_000, {}, "damaged"),
    ],
)
def test_odd_archives_are_refused(config: Any, extra: dict[str, bytes], word: str, tmp_path: Path) -> None:
    path = keras_file(tmp_path / "m.keras", config, extra)
    with pytest.raises(TapeoutError, match=word) as found:
        tapeout.explain(path)
    assert found.value.exit_code in (3, 4, 9)


def test_no_archive_at_all(tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(TapeoutError, match="no Keras file"):
        tapeout.explain(path)


def test_tensorflow_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = keras_file(tmp_path / "m.keras", CONFIG)
    monkeypatch.setenv("TAPEOUT_TENSORFLOW_PYTHON", str(tmp_path / "nowhere"))
    with pytest.raises(TapeoutError, match="does not start") as found:
        tapeout.explain(path)
    assert found.value.exit_code == 8 and "TAPEOUT_TENSORFLOW_PYTHON" in (found.value.hint or "")


@pytest.mark.parametrize(
    ("node", "layer"),
    [
        ("net_1/block_1/conv1_1/convolution__6", "block/conv1"),
        ("StatefulPartitionedCall/net_1/dense_2_1/BiasAdd", "dense_2"),
        ("net_1/Reshape", "net"),
        ("strange/thing/Mul", "strange/thing"),
        ("Mul__3", "Mul__3"),
    ],
)
def test_nodes_are_called_after_layers(node: str, layer: str) -> None:
    assert _layer(node, {"net", "block", "conv1", "dense_2", "dense"}) == layer


# --- with TensorFlow --------------------------------------------------------------------------------------

MAKE = """
import keras, numpy as np
from keras import layers as L
keras.utils.set_random_seed(3)
rng = np.random.default_rng(4)
i = L.Input((12, 12, 3), name="picture")
x = L.Conv2D(8, 3, strides=2, padding="same", activation="gelu", name="stem")(i)
y = L.DepthwiseConv2D(3, padding="same", name="deep")(x)
y = L.BatchNormalization(name="norm")(y)
x = L.Add(name="sum")([x, L.ReLU(name="relu")(y)])
x = L.Conv2DTranspose(4, 3, strides=2, padding="same", name="up")(x)
x = L.GlobalAveragePooling2D(name="pool")(x)
model = keras.Model(i, {"a": L.Dense(3, activation="softmax", name="a")(x), "b": L.Dense(2, name="b")(x)}, name="net")
for w in model.weights:  # biases and statistics that matter
    w.assign(rng.normal(size=w.shape) * 0.4 + (1.5 if "variance" in w.path else 0))
model.save("m.keras"); model.save("m.h5"); model.export("saved", verbose=False)
x = rng.normal(size=(3, 12, 12, 3)).astype("float32")
out = model(x, training=False)
np.savez("expected.npz", picture=x, a=out["a"], b=out["b"])
i = L.Input((7,), dtype="int32", name="word")
y = L.Bidirectional(L.GRU(3), name="both")(L.Embedding(9, 4, mask_zero=True)(i))
m = keras.Model(i, L.Dense(2)(keras.ops.tanh(y) + y))
for w in m.weights:
    w.assign(rng.normal(size=w.shape) * 0.4)
m.save("masked.keras")
words = rng.integers(1, 9, (3, 7)); words[0, 4:] = 0; words[2, 1:] = 0
np.savez("masked.npz", word=words.astype("int32"), result=m(words, training=False))
t = keras.Sequential([L.Input((4,)), L.Lambda(lambda v: v * 2, name="twice")]); t.save("lambda.h5")
w = keras.Sequential([L.Input((4,)), L.Dense(2)]); w.save_weights("w.weights.h5")
import tensorflow as tf
class Reads(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([2], tf.float32)])
    def call(self, x):
        return {"y": x + tf.cast(tf.strings.length(tf.io.read_file("/etc/hostname")), tf.float32)}
m = Reads(); tf.saved_model.save(m, "reads", signatures=m.call)
import h5py
with h5py.File("link.h5", "w") as f:
    f.attrs["model_config"] = "{}"; f["w"] = h5py.ExternalLink("/etc/passwd", "/x")
"""


@pytest.fixture(scope="module")
def made(tensorflow: str, script: Callable[[str, str], Path]) -> Path:
    return script(tensorflow, MAKE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["m.keras", "m.h5", "saved"])
def test_keras_and_litert_agree(made: Path, name: str, tmp_path: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    done = tapeout.export(made / name, output=tmp_path / "o.tflite")
    assert done.report["source"]["conversion_error"] < 1e-5
    assert done.report["source"]["framework"].startswith("TensorFlow")
    expected = np.load(made / "expected.npz")
    run = Interpreter(str(done.artifact)).get_signature_runner()
    (given,) = (i["name"] for i in done.manifest["interface"]["inputs"])
    found = run(**{given: expected["picture"]})
    assert sorted(found) == ["a", "b"]
    for key in ("a", "b"):
        np.testing.assert_allclose(found[key], expected[key], rtol=0, atol=1e-5 * np.abs(expected[key]).max())


@pytest.mark.slow
def test_operators_behind_a_bidirectional_layer_that_skips_what_is_masked(made: Path, tmp_path: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    expected = np.load(made / "masked.npz")
    np.savez(tmp_path / "data.npz", word=expected["word"])
    done = tapeout.export(made / "masked.keras", output=tmp_path / "o.tflite", data=tmp_path / "data.npz")
    (found,) = Interpreter(str(done.artifact)).get_signature_runner()(word=expected["word"]).values()
    np.testing.assert_allclose(found, expected["result"], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_reports_name_layers(made: Path) -> None:
    sources = {s for line in tapeout.explain(made / "m.keras").lines for s in line.sources}
    layers = {"stem", "deep", "norm", "relu", "sum", "up", "pool", "a", "b"}
    assert {"stem", "up", "pool", "a", "b"} <= sources <= layers | {"net"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("lambda.h5", "Lambda 'twice'"),
        ("w.weights.h5", "holds weights and no model"),
        ("reads", "ReadFile"),
        ("link.h5", "link to elsewhere"),
    ],
)
def test_unsafe_files_are_refused(made: Path, name: str, word: str) -> None:
    with pytest.raises(TapeoutError) as found:
        tapeout.explain(made / name)
    assert found.value.exit_code in (3, 4) and word in found.value.message


@pytest.mark.slow
def test_damaged_files_give_one_clear_error(made: Path, tmp_path: Path) -> None:
    for name in ("m.keras", "m.h5"):
        path = tmp_path / name
        content = (made / name).read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(TapeoutError) as found:
            tapeout.explain(path)
        assert found.value.exit_code == 3 and str(path) in found.value.message
