"""Inputs from files, with their checks, and inputs at random within what they mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tapeout.compiler import data
from tapeout.compiler.errors import UsageError
from tapeout.compiler.ir.load import from_text

TABLE = ", ".join(map(str, range(55)))
TWO = f"""<ir_version: 8, opset_import: ["" : 17]>
two (float[N,3,4] picture, int64[N,L] ids) => (float[N,3,4] y, float[N,L,5] z)
<float[11,5] table = {{{TABLE}}}>
{{ y = Relu (picture) z = Gather (table, ids) }}"""
ONE = """<ir_version: 8, opset_import: ["" : 17]>
one (float[1,3] x) => (float[1,3] y) { y = Relu (x) }"""


@pytest.fixture
def two() -> ir.Model:
    return from_text(TWO)


def arrays(count: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "picture": rng.standard_normal((count, 3, 4)).astype(np.float32),
        "ids": rng.integers(0, 11, (count, 6)),
    }


def test_npz(two: ir.Model, tmp_path: Path) -> None:
    given = arrays()
    np.savez(tmp_path / "d.npz", labels=np.arange(4), **given)
    found = list(data.Data(tmp_path / "d.npz", two).samples())
    assert len(found) == 4
    for index, feed in enumerate(found):
        assert set(feed) == set(given)
        for name, array in feed.items():
            assert array.shape[0] == 1 and np.array_equal(array[0], given[name][index])


def test_folders(two: ir.Model, tmp_path: Path) -> None:
    given = arrays()
    (tmp_path / "parts").mkdir()
    for part in (0, 1):
        np.savez(
            tmp_path / "parts" / f"{part}.npz", **{k: v[2 * part : 2 * part + 2] for k, v in given.items()}
        )
    (tmp_path / "arrays").mkdir()
    for name, array in given.items():
        np.save(tmp_path / "arrays" / f"{name}.npy", array)
    for folder in ("parts", "arrays"):
        found = list(data.Data(tmp_path / folder, two).samples(3))
        assert len(found) == 3
        assert np.array_equal(np.concatenate([f["ids"] for f in found]), given["ids"][:3])


def test_one_input_takes_one_array_of_any_name_and_float64(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", whatever=np.random.default_rng(0).standard_normal((5, 3)))
    found = list(data.Data(tmp_path / "d.npz", from_text(ONE)).samples())
    assert len(found) == 5 and found[0]["x"].dtype == np.float32 and found[0]["x"].shape == (1, 3)


def test_samples_that_carry_the_batch_axis(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((5, 1, 3)).astype(np.float32))
    found = list(data.Data(tmp_path / "x.npy", from_text(ONE)).samples())
    assert len(found) == 5 and found[0]["x"].shape == (1, 3)


def test_a_fixed_batch_and_integers_that_stand_for_numbers(tmp_path: Path) -> None:
    model = from_text(ONE.replace("[1,3]", "[2,3]"))
    codes = np.random.default_rng(0).integers(0, 255, (7, 3)).astype(np.uint8)
    np.savez(
        tmp_path / "d.npz", pixels=codes, label=np.arange(7), scale=np.float32(0.5), offset=np.float32(-3)
    )
    found = list(data.Data(tmp_path / "d.npz", model).samples())
    assert len(found) == 3
    np.testing.assert_array_equal(found[1]["x"], codes[2:4] * np.float32(0.5) - 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ids": None}, "no array for input 'ids'; found 'picture' [4, 3, 4] float32"),
        ({"ids": np.zeros((3, 6), np.int64)}, "different number of samples"),
        ({"ids": np.zeros((4, 6))}, "'ids' is int64, found float64"),
        ({"picture": np.zeros((4, 3, 4), np.uint8)}, "'picture' is float32, found uint8"),
        ({"picture": np.zeros((4, 4, 3), np.float32)}, "'picture' has shape [N, 3, 4], found [4, 4, 3]"),
        ({"picture": np.float32(3)}, "'picture' is a single number"),
        ({"picture": np.zeros((0, 3, 4), np.float32), "ids": np.zeros((0, 6), np.int64)}, "holds no sample"),
    ],
)
def test_what_does_not_fit(
    two: ir.Model, tmp_path: Path, change: dict[str, np.ndarray | None], words: str
) -> None:
    given = {k: v for k, v in {**arrays(), **change}.items() if v is not None}
    np.savez(tmp_path / "d.npz", **given)
    with pytest.raises(UsageError) as caught:
        list(data.Data(tmp_path / "d.npz", two).samples())
    assert words in str(caught.value)


def test_files_that_are_none(two: ir.Model, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 and then nothing")
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY")
    np.savez(tmp_path / "objects.npz", picture=np.array([{}], dtype=object), ids=np.zeros((1, 2), np.int64))
    for name in ("none.npz", "empty", "a.txt", "bad.npz", "bad.npy", "objects.npz"):
        with pytest.raises(UsageError):
            list(data.Data(tmp_path / name, two).samples())


def test_random_inputs_are_the_same_each_time_and_mean_something(two: ir.Model) -> None:
    first, again = data.random_inputs(two), data.random_inputs(two)
    assert len(first) == 3
    for a, b in zip(first, again, strict=True):
        assert all(np.array_equal(a[k], b[k]) for k in a)
    assert first[0]["picture"].shape == (2, 3, 4) and first[0]["ids"].shape == (2, 7)
    assert not np.array_equal(first[0]["picture"], first[1]["picture"])
    ids = np.concatenate([f["ids"].ravel() for f in data.random_inputs(two, samples=30)])
    assert ids.min() == 0 and ids.max() == 10
    assert data.random_inputs(two, batch=3)[0]["picture"].shape == (3, 3, 4)


@pytest.mark.parametrize(
    ("body", "limits"),
    [
        ("y = Gather (table, k)", (0, 4)),
        ("c = Cast<to=7> (k) y = Gather (table, c)", (0, 4)),
        ("y = OneHot (k, depth, values)", (0, 6)),
        ("y = Cast<to=1> (k)", (0, 2)),
        ("c = Cast<to=9> (k) y = Where (c, one, zero)", (0, 2)),
    ],
)
def test_the_meaning_of_integers(body: str, limits: tuple[int, int]) -> None:
    model = from_text(f"""<ir_version: 8, opset_import: ["" : 17]>
    m (int32[3] k) => (float[A,B] y) <float[4,2] table = {{0,1,2,3,4,5,6,7}}, int64 depth = {{6}},
    float[2] values = {{0,1}}, float one = {{1}}, float zero = {{0}}> {{ {body} }}""")
    assert data.meaning(model.graph.inputs[0]) == limits


def test_masks_go_by_their_names_and_what_has_no_meaning_is_asked_for() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    m (int64[3] %s) => (int64[3] y) { y = Add (%s, %s) }"""
    mask = from_text(text.replace("%s", "attention_mask"))
    assert data.meaning(mask.graph.inputs[0]) == (0, 2)
    with pytest.raises(UsageError, match="--data"):
        data.random_inputs(from_text(text.replace("%s", "number")))
