"""What is measured, against numpy; and that it is the same however samples come and however many threads work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tapeout.compiler.calibration import Calibrate, Calibration, Statistics, collect, observe, tensors
from tapeout.compiler.calibration.source import portable
from tapeout.compiler.calibration.store import parse, read, to_bytes
from tapeout.compiler.errors import UsageError
from tapeout.compiler.ir.load import from_text
from tapeout.compiler.pipeline import run
from tapeout.compiler.reference import Reference

from . import models

X = models.samples()


@pytest.fixture
def model() -> ir.Model:
    return models.network()


def grouped(size: int) -> Callable[[], Iterator[dict[str, np.ndarray]]]:
    return lambda: ({"x": X[i : i + size]} for i in range(0, len(X), size))


def test_against_numpy(model: ir.Model) -> None:
    found = Calibration(grouped(1), model).statistics(model)
    with Reference(models.network()) as reference:
        whole = reference.run({"x": X}, ["r", "d", "t", "s", "p", "y"])
    whole["x"] = X
    for name, array in whole.items():
        stats = found[name]
        assert stats is not None and stats.count == array.size and stats.rank == array.ndim
        np.testing.assert_allclose([stats.min, stats.max], [array.min(), array.max()], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(stats.mean, array.mean(dtype=np.float64), rtol=1e-4, atol=1e-6)
        assert stats.absmax == max(abs(stats.min), abs(stats.max))
        assert stats.histogram is not None and stats.histogram.total == array.size
        rest = tuple(i for i in range(array.ndim) if i != 1)
        channels = stats.channel(1)
        assert channels is not None
        np.testing.assert_allclose(channels.min, array.min(axis=rest), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(channels.max, array.max(axis=rest), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(channels.mean, array.mean(axis=rest), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(channels.absmax, np.abs(array).max(axis=rest), rtol=1e-4, atol=1e-6)


def test_the_same_for_any_grouping_and_any_number_of_threads(model: ir.Model) -> None:
    contents = set()
    digests = set()
    for size in (1, 2, 4, 9):
        for jobs in (1, 2, 4):
            data = Calibration(grouped(size), model, jobs=jobs)
            contents.add(to_bytes(portable(data.statistics(model), model)))
            digests.add(data.digest)
    assert len(contents) == 1 and len(digests) == 1


def test_large_tensors_are_measured_in_several_runs_with_the_same_answer(
    model: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = to_bytes(Calibration(grouped(2), model).statistics(model))
    monkeypatch.setattr(collect, "GROUP_BYTES", 2000)
    what = tensors.wanted(model)
    assert len(collect.groups(what, list(what.axes))) > 2
    assert to_bytes(Calibration(grouped(2), model).statistics(model)) == once


def test_what_saturation_cuts_takes_the_range_of_what_is_left(model: ir.Model) -> None:
    found = Calibration(grouped(3), model).statistics(model)
    assert found["c"] is None and "c" not in found
    assert found.range("c") == found.range("r")
    with pytest.raises(UsageError, match="nothing for the tensor 'nowhere'"):
        found.range("nowhere")


@pytest.mark.parametrize(
    ("body", "cut"),
    [
        ("c = Clip (x, zero, six)  y = Tanh (c)", set()),  # the graph's input is no one's intermediate
        ("a = Tanh (x)  y = Clip (a, zero, six)", {"a"}),
        ("a = Tanh (x)  y = Clip (a, six, )", set()),  # zero is not between
        ("a = Tanh (x)  b = Relu (a)  y = Add (a, b)", set()),
    ],
)
def test_who_is_not_measured(body: str, cut: set[str]) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    m (float[N,4] x) => (float[N,4] y) <float zero = {{0}}, float six = {{6}}> {{ {body} }}"""
    assert set(tensors.wanted(from_text(text)).stand_in) == cut


def test_integers_constants_and_given_scales_are_not_measured() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    m (float[N,4] x, int64[N] k) => (float[N,4] y, int64[N] z) <float s = {0.1}, int8 o = {0}> {
      a = Tanh (x) q = QuantizeLinear (a, s, o) d = DequantizeLinear (q, s, o) y = Sigmoid (d) z = Add (k, k) }"""
    assert set(tensors.wanted(from_text(text)).axes) == {"x", "y"}


def test_the_pass_changes_nothing_and_leaves_statistics(model: ir.Model) -> None:
    data = Calibration(grouped(1), model)
    history = run(model, (Calibrate(data),))
    assert history.names() == ["calibrate"] and history.steps[0].count == 0
    assert data.collected is not None and "t" in data.collected


def test_observe_gives_whole_tensors_in_order(model: ir.Model) -> None:
    seen: list[tuple[int, np.ndarray, np.ndarray]] = []
    count = observe(model, grouped(1)(), ["x", "t"], lambda i, v: seen.append((i, v["x"], v["t"])), jobs=2)
    with Reference(models.network()) as reference:
        whole = reference.run({"x": X}, ["t"])["t"]
    assert count == len(X) and [i for i, _, _ in seen] == list(range(len(X)))
    assert np.array_equal(np.concatenate([x for _, x, _ in seen]), X)
    np.testing.assert_allclose(np.concatenate([t for _, _, t in seen]), whole, rtol=1e-4, atol=1e-6)


def test_layouts_are_seen_through(model: ir.Model) -> None:
    found = Calibration(grouped(1), model).statistics(model)
    moved = ir.Value(name="t~1", shape=ir.Shape(["N", 8, 8, 4]))
    moved.metadata_props["tapeout.layout"] = "t:0,2,3,1"
    assert found.of(moved) is found["t"] and found.range_of(moved) == found.range("t")
    last, axis = found.channels(moved, -1), found["t"].channel(1)  # type: ignore[union-attr]
    assert last is not None and axis is not None and np.array_equal(last.max, axis.max)
    assert found.channels(moved, 1) is None


# --- files ------------------------------------------------------------------------------------------------


def test_a_file_reads_back_equal_and_serves_a_graph_with_other_made_names(tmp_path: Path) -> None:
    first, second = models.network(), models.network()
    for graph, name in ((first.graph, "d~3"), (second.graph, "d~77")):
        next(v for n in graph for v in n.outputs if v.name == "d").name = name
    statistics = Calibration(grouped(1), first).statistics(first)
    content = to_bytes(portable(statistics, first))
    assert b"d~3" not in content
    place = tmp_path / "s.json"
    place.write_bytes(content)
    assert to_bytes(read(place)) == content == to_bytes(parse(content))
    loaded = Calibration(place, second)
    found = loaded.statistics(second)
    assert not loaded.has_samples and loaded.digest == statistics.data
    for name in ("x", "r", "s", "y"):
        assert found.range(name, "mse") == statistics.range(name, "mse")
    assert found.range("d~77") == statistics.range("d~3")
    with pytest.raises(UsageError, match="samples themselves"):
        loaded.feeds()


def test_a_file_of_another_graph_is_refused(model: ir.Model) -> None:
    statistics = portable(Calibration(grouped(1), model).statistics(model), model)
    other = models.network(models.TEXT.replace(" t = Tanh", " u = Tanh").replace("(t, r)", "(u, r)"))
    with pytest.raises(UsageError, match=r"lack the output 'u' of Tanh 'tanh'.*another model"):
        Calibration(statistics, other).statistics(other)


def test_made_tensors_of_other_weights_are_not_taken_for_each_other() -> None:
    first, second = models.network(), models.network(seed=4)
    for graph in (first.graph, second.graph):
        next(v for n in graph for v in n.outputs if v.name == "d").name = "d~3"
    statistics = portable(Calibration(grouped(1), first).statistics(first), first)
    # The weight of a source tensor has the source's name: only what a pass makes is told apart by content.
    for graph in (first.graph, second.graph):
        graph.initializers["v"].name = "v~1"
    with pytest.raises(UsageError, match="lack"):
        Calibration(statistics, second).statistics(second)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: b"",
        lambda c: b"[1, 2]",
        lambda c: c.replace(b"tapeout.statistics/1", b"tapeout.statistics/9"),
        lambda c: c[: len(c) // 2],
        lambda c: c.replace(b'"count"', b'"kount"'),
        lambda c: c.replace(b'"exponent": ', b'"exponent": 99'),
        lambda c: c.replace(b'"range": [', b'"range": ["nan", '),
        lambda c: b"\xff\xfe" + c,
        lambda c: c.replace(b'"first": ', b'"first": 9999'),
    ],
)
def test_damaged_files(model: ir.Model, tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    content = to_bytes(Calibration(grouped(1), model).statistics(model))
    (tmp_path / "s.json").write_bytes(change(content))
    with pytest.raises(UsageError, match="no statistics file"):
        Calibration(tmp_path / "s.json", model)


def test_the_cache_answers_by_content(
    model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Calibration(grouped(1), model, cache=tmp_path).statistics(model)
    assert len(list(tmp_path.rglob("*.json"))) == 1

    def never(*_: object) -> Statistics:
        raise AssertionError("measured again")

    monkeypatch.setattr(collect, "collect", never)
    again = Calibration(grouped(2), model, cache=tmp_path).statistics(model)
    assert to_bytes(portable(again, model)) == to_bytes(portable(first, model))
    other = models.network(seed=8)
    with pytest.raises(AssertionError):
        Calibration(grouped(1), other, cache=tmp_path).statistics(other)
