"""Integer requantization gives the code of the float arithmetic for every accumulator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tapeout.targets.fpga import adding
from tapeout.targets.fpga.dialect import Requantize
from tapeout.targets.fpga.integer import requantize
from tapeout.targets.fpga.requantize import Clamp, code_of, exact, thresholds


def channel(form: Requantize, c: int) -> Requantize:
    """The form of one channel."""
    tables = {0: form.tables[c]} if c in form.tables else {}
    one = slice(c, c + 1)
    return Requantize(
        form.multiplier[one], form.offset[one], form.shift, form.low, form.high, form.ties_to_even, tables
    )


def check(form: Requantize, scale: Any, clamp: Clamp, least: Any, most: Any) -> None:
    for c in range(len(scale)):
        sums = np.arange(least[c], most[c] + 1)
        made = requantize(sums[:, None], channel(form, c))[:, 0]
        np.testing.assert_array_equal(made, code_of(sums, scale[c : c + 1], clamp))


@pytest.mark.parametrize("span", [6, 12, 17, 20])
@pytest.mark.parametrize("clamp", [Clamp(0), Clamp(-128, -128, 127), Clamp(37, -20, 90)])
def test_every_accumulator(span: int, clamp: Clamp) -> None:
    rng = np.random.default_rng(span)
    scale = (rng.uniform(0.3, 3, 6) * 256 / 2**span).astype(np.float32)
    least, most = -rng.integers(1, 2**span, 6), rng.integers(1, 2**span, 6)
    form = exact(scale, clamp, least, most)
    check(form, scale, clamp, least, most)
    assert int(form.multiplier.max()).bit_length() <= 34


def test_the_shift_is_the_smallest() -> None:
    """One bit less leaves some channel without a line: the same search there finds none."""
    from tapeout.targets.fpga.requantize import _Line

    scale, clamp = np.array([0.0123456], np.float32), Clamp(3)
    least, most = np.array([-20000]), np.array([20000])
    form = exact(scale, clamp, least, most)
    line = _Line(clamp, thresholds(scale, clamp, least, most)[0].tolist(), -20000, 20000, float(scale[0]))
    assert not form.tables and form.shift > 0
    assert line.at(form.shift) is not None and line.at(form.shift - 1) is None


def test_a_scale_without_a_line_gets_a_table() -> None:
    """Exact ties go to even codes, which no line does; one channel of another scale keeps it from being shifts."""
    scale, clamp = np.array([0.5, 0.0131717], np.float32), Clamp(0)
    least, most = np.array([-400, -20000]), np.array([400, 20000])
    form = exact(scale, clamp, least, most)
    assert list(form.tables) == [0] and not form.ties_to_even
    check(form, scale, clamp, least, most)


def test_powers_of_two_need_no_multiplier() -> None:
    scale, clamp = np.float32(2.0) ** -np.arange(9, dtype=np.float32), Clamp(-5, -5, 127)
    least, most = np.full(9, -5000), np.full(9, 7000)
    form = exact(scale, clamp, least, most)
    assert form.ties_to_even and not form.tables
    assert all(int(m) & (int(m) - 1) == 0 for m in form.multiplier)
    check(form, scale, clamp, least, most)


def test_a_channel_with_one_code() -> None:
    scale, clamp = np.array([0.01, 0.01], np.float32), Clamp(0)
    least, most = np.array([-10, -3000]), np.array([10, 3000])
    form = exact(scale, clamp, least, most)
    assert form.multiplier[0] == 0
    check(form, scale, clamp, least, most)


def test_all_pairs_of_a_sum() -> None:
    rng = np.random.default_rng(5)
    a, b = (v.reshape(-1) for v in np.meshgrid(np.arange(-128, 128), np.arange(-128, 128), indexing="ij"))
    for _ in range(6):
        scales = rng.uniform(0.01, 0.2, 3)
        zeros = [int(z) for z in rng.integers(-128, 128, 3)]
        first, second = adding.Grid(scales[0], zeros[0]), adding.Grid(scales[1], zeros[1])
        clamp = Clamp(zeros[2], -100, 127)
        form = adding.exact(first, second, scales[2], clamp)
        codes = adding.code_of(a, b, first, second, scales[2], clamp)
        made = (a * form.multipliers[0] + b * form.multipliers[1] + form.offset) >> form.shift
        assert np.count_nonzero(np.clip(made, clamp.low, clamp.high) != codes) == form.differs == 0


def test_all_pairs_of_a_sum_of_powers_of_two() -> None:
    a, b = (v.reshape(-1) for v in np.meshgrid(np.arange(-128, 128), np.arange(-128, 128), indexing="ij"))
    first, second, clamp = adding.Grid(0.25, 3), adding.Grid(0.0625, -7), Clamp(11)
    form = adding.exact(first, second, 0.5, clamp)
    codes = adding.code_of(a, b, first, second, 0.5, clamp)
    sums = a * form.multipliers[0] + b * form.multipliers[1]
    made = (sums + form.offset + (((sums + form.start) >> form.shift) & 1)) >> form.shift
    assert form.ties_to_even and form.differs == 0
    np.testing.assert_array_equal(np.clip(made, -128, 127), codes)
