"""The plan's file: what is written is read, and whatever is damaged is refused."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapeout.compiler.errors import InvalidModelError, TapeoutError
from tapeout.targets.nvidia.__main__ import main
from tapeout.targets.nvidia.plan import expressions as e
from tapeout.targets.nvidia.plan.edit import diff, refit, strip
from tapeout.targets.nvidia.plan.parts import Kind, Plan, Profile
from tapeout.targets.nvidia.plan.read import PlanFile, read
from tests.targets.nvidia.plans import Arrays, content, plans, small


def opened(made: bytes) -> Plan:
    return read(memoryview(made), "p.plan")[0]


@settings(deadline=None, max_examples=60)
@given(plans())
def test_what_is_written_is_read(made: tuple[Plan, Arrays]) -> None:
    plan, arrays = made
    written = content(plan, arrays)
    found, weights, stripped = read(memoryview(written), "p.plan")
    assert found == plan and not stripped
    for weight in found.weights:
        own = bytes(weights[weight.offset : weight.offset + weight.size])
        assert own == arrays[weight.name].tobytes()
    assert content(found, arrays) == written, "the same plan gives the same bytes"
    assert opened(content(plan, arrays, stripped=True)) == plan


@settings(deadline=None, max_examples=60)
@given(plans(), st.data())
def test_a_cut_file_is_refused(made: tuple[Plan, Arrays], data: st.DataObject) -> None:
    written = content(*made)
    length = data.draw(st.integers(0, len(written) - 1))
    with pytest.raises(InvalidModelError):
        opened(written[:length])


@settings(deadline=None, max_examples=150)
@given(st.integers(min_value=0), st.integers(0, 7))
def test_a_turned_bit_is_refused(place: int, bit: int) -> None:
    """In the tables at once, in a weight before it is used; the padding between weights means nothing."""
    plan, arrays = small()
    written = bytearray(content(plan, arrays))
    place %= len(written)
    written[place] ^= 1 << bit
    start = len(written) - plan.weight_bytes
    if place < start:
        with pytest.raises(InvalidModelError):
            opened(bytes(written))
        return
    assert opened(bytes(written)) == plan


def test_a_damaged_weight_is_refused(tmp_path: Path) -> None:
    plan, arrays = small()
    written = bytearray(content(plan, arrays))
    written[-plan.weight_bytes] ^= 1
    (tmp_path / "p.plan").write_bytes(written)
    file = PlanFile(tmp_path / "p.plan")
    with pytest.raises(InvalidModelError, match="weight 'w' is damaged"):
        file.verify_weights()


def changed(**fields: object) -> Plan:
    return dataclasses.replace(small()[0], **fields)  # type: ignore[arg-type]


def forged() -> dict[str, Plan]:
    """Plans with a right digest that are not sound."""
    plan = small()[0]
    first, second = plan.launches
    x, w, b, h, y = plan.tensors
    (profile,) = plan.profiles
    loop = dataclasses.replace(h, storage=4)
    return {
        "tensor that is not there": changed(launches=(dataclasses.replace(first, reads=(9,)), second)),
        "nothing may write": changed(launches=(dataclasses.replace(first, writes=(1,)), second)),
        "does not name": changed(launches=(dataclasses.replace(first, reads=(0, 1)), second)),
        "kernel that is not there": changed(kernels=()),
        "tactic that is not there": changed(tactics=()),
        "lies at 0 of 256": changed(profiles=(dataclasses.replace(profile, arena=256),)),
        "lies at 100 of": changed(profiles=(Profile(profile.sizes, 1024, (-1, -1, -1, 100, -1)),)),
        "size 'N' is 4:2:8": changed(profiles=(dataclasses.replace(profile, sizes=((4, 2, 8),)),)),
        "no profile": changed(profiles=()),
        "lies at 0, expected at 256": changed(
            weights=(plan.weights[0], dataclasses.replace(plan.weights[1], offset=0))
        ),
        "not what its weight is": changed(
            tensors=(x, dataclasses.replace(w, dtype="int32"), b, h, y)
        ),
        "lies in the arena and is none": changed(tensors=(x, w, b, loop, y)),
        "division by 0": changed(
            launches=(dataclasses.replace(first, grid=((*e.number(1), *e.number(0), e.CEIL),) * 3), second)
        ),
        "two outputs have the same name": changed(
            tensors=(x, w, b, dataclasses.replace(h, name="y", kind=Kind.OUTPUT), y)
        ),
    }  # fmt: skip


@pytest.mark.parametrize("words", forged())
def test_a_forged_plan_is_refused(words: str) -> None:
    with pytest.raises(InvalidModelError, match=words):
        opened(content(forged()[words], small()[1], stripped=True))


def test_what_is_no_plan_and_what_is_newer() -> None:
    written = content(*small())
    with pytest.raises(InvalidModelError, match="is no plan"):
        opened(b"PK" + written)
    with pytest.raises(InvalidModelError, match="version 7, this reads version 1"):
        opened(written[:40] + b"\7" + written[41:])
    with pytest.raises(InvalidModelError, match="is no plan"):
        opened(b"")


@settings(deadline=None, max_examples=100)
@given(codes=st.lists(st.integers(-(1 << 63), (1 << 63) - 1), max_size=6))
def test_any_words_are_a_number_or_refused(codes: list[int]) -> None:
    try:
        low, high = e.bounds(tuple(codes), [(1, 4)])
    except TapeoutError:
        return
    assert low <= e.value(tuple(codes), [2]) <= high


def test_strip_refit_diff_and_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, arrays = small()
    whole, bare, again = (tmp_path / n for n in ("a.plan", "b.plan", "c.plan"))
    whole.write_bytes(content(plan, arrays))
    assert main(["strip", str(whole), "-o", str(bare)]) == 0
    assert bare.stat().st_size == whole.stat().st_size - plan.weight_bytes
    assert main(["diff", str(whole), str(bare)]) == 0
    with pytest.raises(InvalidModelError, match="it has no bytes of 'w'"):
        PlanFile(bare).weight(plan.weights[0])
    assert main(["refit", str(bare), str(whole), "-o", str(again)]) == 0
    assert again.read_bytes() == whole.read_bytes()
    other = {**arrays, "b": arrays["b"] + 1}
    np.savez(tmp_path / "w.npz", **other)
    again.unlink()
    capsys.readouterr()
    assert main(["refit", str(bare), str(tmp_path / "w.npz"), "-o", str(again)]) == 3
    assert "1 weights are not those of 'b.plan': b" in capsys.readouterr().err and not again.exists()
    assert main(["refit", str(bare), str(tmp_path / "w.npz"), "--changed", "-o", str(again)]) == 0
    fitted = PlanFile(again)
    assert fitted.weight(fitted.plan.weights[1]).tobytes() == other["b"].tobytes()
    assert main(["diff", str(whole), str(again)]) == 1
    assert "weights: b: sha256" in capsys.readouterr().out
    assert main(["inspect", str(whole)]) == 0
    shown = capsys.readouterr().out
    assert '"sm_80",' in shown and '"N"' in shown and "gemm" in shown


@pytest.mark.parametrize(
    "given_, words",
    [
        ({"w": np.zeros((8, 4), np.float32)}, "1 weights are not given: b"),
        ({"v": np.zeros(4, np.float32)}, "no weight 'v'; it has b, w"),
        ({"w": np.zeros(3, np.float32), "b": np.zeros(4, np.float32)}, "has 128 bytes"),
    ],
)
def test_wrong_weights(tmp_path: Path, given_: Arrays, words: str) -> None:
    place = tmp_path / "p.plan"
    place.write_bytes(content(*small(), stripped=True))
    with pytest.raises(InvalidModelError, match=words):
        refit(PlanFile(place), given_, io.BytesIO())


def test_a_stripped_plan_differs_by_its_weights_alone(tmp_path: Path) -> None:
    place = tmp_path / "p.plan"
    place.write_bytes(content(*small()))
    sink = io.BytesIO()
    strip(PlanFile(place), sink)
    assert diff(opened(sink.getvalue()), small()[0]) == []
    assert list(opened(sink.getvalue()).named(Kind.OUTPUT)) == ["y"]
