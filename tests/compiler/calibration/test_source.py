"""Data that is fit for calibration, and data that is not: one clear message each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tapeout.compiler.calibration import Calibration
from tapeout.compiler.errors import UsageError
from tapeout.compiler.ir.load import from_text

from . import models

X = models.samples()
TWO = """<ir_version: 8, opset_import: ["" : 17]>
two (float[N,4] x, float[N,4] m) => (float[N,4] y) { r = Sqrt (x) y = Mul (r, m) }"""
IMAGE = """<ir_version: 8, opset_import: ["" : 17]>
image (float[1,3,8,6] x) => (float[1,3,8,6] y) { y = Tanh (x) }"""


@pytest.fixture
def model() -> ir.Model:
    return models.network()


def refused(source: Any, model: ir.Model, *words: str, **options: Any) -> None:
    with pytest.raises(UsageError) as caught:
        Calibration(source, model, **options).collect(model)
    for word in words:
        assert word in str(caught.value)


def saved(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "d.npz", **arrays)
    return folder / "d.npz"


def changed(index: Any, value: float) -> np.ndarray:
    array = X.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (X[:, :, :5], ("'x' has shape [N, 3, 8, 8], found [9, 3, 5, 8]",)),
        (X.astype(np.uint8), ("'x' is float32, found uint8",)),
        (X.astype("U"), ("'x' is float32, found str",)),
        (changed((4, 1, 2, 3), np.nan), ("sample 4 of input 'x' holds NaN", "leave the sample out")),
        (changed((0, 0, 0, 0), np.inf), ("sample 0 of input 'x' holds infinite values",)),
        (X[:3], ("holds 3 samples, at least 4 are needed",)),
        (X[:1], ("holds 1 sample, at least 4",)),
        (X[:0], ("no sample",)),
        (np.full_like(X, 0.5), ("is constant: 'x' is 0.5 everywhere", "random")),
    ],
)
def test_arrays_that_are_not_fit(
    model: ir.Model, tmp_path: Path, array: np.ndarray, words: tuple[str, ...]
) -> None:
    refused(saved(tmp_path, x=array), model, *words)


def test_names_that_are_wrong(tmp_path: Path) -> None:
    refused(
        saved(tmp_path, x=X[:, 0, 0, :4], n=X[:, 0, 0, :4]),
        from_text(TWO),
        "no array for input 'm'",
        "found 'x'",
    )


def test_a_tensor_that_becomes_nan_is_named(tmp_path: Path) -> None:
    model = from_text(TWO)
    x = np.abs(np.random.default_rng(0).standard_normal((6, 4))).astype(np.float32)
    x[2, 1] = -1
    refused(saved(tmp_path, x=x, m=x), model, "sample 2: the output 'r' of Sqrt", "is NaN")


def test_one_input_that_never_changes_is_noted(tmp_path: Path) -> None:
    model = from_text(TWO)
    x = np.abs(np.random.default_rng(0).standard_normal((6, 4))).astype(np.float32)
    found = Calibration(saved(tmp_path, x=x, m=np.ones_like(x)), model).statistics(model)
    assert found.notes == ("the input 'm' is 1.0 in every calibration sample",)


def test_callables(model: ir.Model) -> None:
    whole = Calibration(lambda: [{"x": X}], model)
    alone = Calibration(lambda: iter(X), model)
    assert [f["x"].shape for f in alone.feeds()] == [(1, 3, 8, 8)] * 9
    assert whole.digest == alone.digest and alone.samples == 9
    refused(lambda: 3, model, "gives a int, expected an iterable")
    refused(lambda: [{"z": X}], model, "sample 0 lacks the input 'x'")
    refused(lambda: [{"x": X, "z": X}], model, "has 'z', which is no input")
    refused(lambda: [X[0, 0]], model, "input 'x' has shape ['N', 3, 8, 8], found [8, 8]")
    refused(lambda: list(X[:, :, :3]), model, "has shape")
    refused(lambda: [X], from_text(TWO), "is a ndarray, expected a mapping")
    refused(3, model, "the calibration is a int")


def test_random_by_name_is_the_same_each_time(model: ir.Model) -> None:
    first, again = Calibration("random", model), Calibration("random", model)
    assert first.digest == again.digest and first.samples == 32
    assert first.statistics(model).range("t") == again.statistics(model).range("t")


def test_a_fixed_batch_counts_its_rows(tmp_path: Path) -> None:
    model = models.network(models.TEXT.replace("[N,", "[3,"))
    found = Calibration(saved(tmp_path, x=X), model)
    assert found.statistics(model).samples == 9 and [len(f["x"]) for f in found.feeds()] == [3, 3, 3]


def test_sources_that_are_none(model: ir.Model, tmp_path: Path) -> None:
    refused(tmp_path / "none.npz", model, "does not exist")
    refused(tmp_path / "none.json", model, "does not exist", "tapeout calibrate")
    refused(tmp_path, model, "holds no .npz")
    refused(saved(tmp_path, x=X), model, "--preprocess is for a folder of images", preprocess="rgb")


# --- images -------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, size in enumerate(((8, 6, 3), (16, 12, 3), (20, 9, 3), (8, 6, 3), (40, 30, 3))):
        array = rng.integers(0, 256, size, np.uint8)
        image.fromarray(array).save(folder / ("more" if i > 3 else "") / f"{i}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_images(pictures: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    model = from_text(IMAGE)
    steps = "bgr resize=8,6 mean=1,2,3 scale=0.5 std=2 layout=NCHW"
    found = [f["x"] for f in Calibration(pictures, model, preprocess=steps, cache=tmp_path / "c").feeds()]
    assert len(found) == 5 and found[0].shape == (1, 3, 8, 6) and found[0].dtype == np.float32
    for path, array in zip(["0.png", "1.png"], found, strict=False):
        raw = np.asarray(image.open(pictures / path).resize((6, 8), image.Resampling.BILINEAR), np.float32)
        expected = (raw[..., ::-1] - np.array([1, 2, 3], np.float32)) * 0.5 / 2
        np.testing.assert_allclose(array[0], expected.transpose(2, 0, 1), rtol=1e-6)
    kept = list((tmp_path / "c" / "images").iterdir())
    assert len(kept) == 5
    kept[0].write_bytes(b"damaged")
    again = [f["x"] for f in Calibration(pictures, model, preprocess=steps, cache=tmp_path / "c").feeds()]
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))


def test_image_steps(pictures: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    model = from_text(IMAGE)
    first = np.asarray(image.open(pictures / "2.png").convert("RGB"), np.float32)  # 20 high, 9 wide
    boxed = list(Calibration(pictures, model, preprocess="rgb letterbox=8,6 pad=7 filter=nearest").feeds())[
        2
    ]["x"][0]
    assert (boxed[:, :, 3:] == 7).all() and not (boxed[:, :, :3] == 7).all()
    cut = list(Calibration(pictures, model, preprocess="crop=8,6 rgb").feeds())[2]["x"][0]
    np.testing.assert_array_equal(cut, first[6:14, 1:7].transpose(2, 0, 1))
    gray = from_text(IMAGE.replace("[1,3,8,6]", "[N,8,6,1]"))
    assert next(iter(Calibration(pictures, gray, preprocess="gray short=8 crop=8,6").feeds()))["x"].shape == (
        1,
        8,
        6,
        1,
    )


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (None, "nothing says how they become inputs"),
        ("rgb resise=8,6", "does not know 'resise'; did you mean 'resize'?"),
        ("rgb bgr", "says 'color' twice"),
        ("resize=8", "the preprocessed image"),
        ("resize=8,6,4", "expected height,width"),
        ("resize=8,6 mean=a", "expected numbers"),
        ("resize=8,6 mean=1,2", "mean has 2 numbers, the pictures have 3 channels"),
        ("resize=8,6 std=0", "expected numbers"),
        ("resize=8,6 layout=HWCN", "expected one of NHWC, NCHW"),
        ("resize=8,6 layout=NHWC", "input 'x' has shape [1, 3, 8, 6], the preprocessed image"),
        ("resize=8,6 letterbox=8,6", "exclude each other"),
        ("filter=sharp", "expected one of nearest"),
        ("pad=-1", "expected a whole number"),
    ],
)
def test_preprocessing_that_is_not_fit(pictures: Path, steps: str | None, words: str) -> None:
    refused(pictures, from_text(IMAGE), words, preprocess=steps)


def test_images_that_are_none(pictures: Path) -> None:
    refused(pictures, from_text(TWO), "the model has 2 inputs", preprocess="rgb")
    (pictures / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nand nothing")
    refused(pictures, from_text(IMAGE), "0.png' cannot be read", preprocess="rgb resize=8,6")
