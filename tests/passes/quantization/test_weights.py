"""Codes of weights: packing, scales, tables, GPTQ; on random data, against plain arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapeout.compiler.schemes import WEIGHTS
from tapeout.passes.quantization.codebook import tabulated
from tapeout.passes.quantization.codes import Grid, codes, packed, real, scales, storable, unpacked
from tapeout.passes.quantization.logarithmic import nearest_power, powers_of_two
from tapeout.passes.quantization.moments import Moments, Rows, Sums
from tapeout.passes.quantization.weight_gptq import solve

D = ir.DataType
Array = np.ndarray[Any, Any]


def random(rows: int, size: int, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, size)) * rng.uniform(0.1, 3, (rows, 1))).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 33), st.sampled_from([D.INT8, D.INT4, D.INT2]), st.integers(0, 99))
def test_packed_codes_come_back(rows: int, size: int, dtype: ir.DataType, seed: int) -> None:
    half = 1 << (dtype.bitwidth - 1)
    array = np.random.default_rng(seed).integers(-half, half, (rows, size)).astype(np.int8)
    tensor = packed(array, dtype)
    assert np.array_equal(unpacked(tensor), array)
    assert len(tensor.tobytes()) == -(-rows * size * dtype.bitwidth // 8)


@pytest.mark.parametrize("block", [0, 32, 64])
def test_rounding_is_within_half_a_step(block: int) -> None:
    weight, grid = random(7, 128), Grid(D.INT8, 0, block)
    scale = scales(weight, grid)
    step = scale[:, None] if not block else np.repeat(scale, block, 1)
    gap = np.abs(weight - real(codes(weight, scale, grid), scale, block)) / step
    assert gap.max() < 0.5 + 1e-2 if not block else gap.max() < 1.1  # a scale in blocks is itself rounded


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_searched_scales_lose_less(bits: int) -> None:
    weight, grid = random(16, 256, 3), Grid(D.INT4 if bits > 2 else D.INT2, bits)
    lost = []
    for search in (False, True):
        scale = scales(weight, grid, search)
        found = codes(weight, scale, grid)
        assert grid.lowest <= found.min() and found.max() <= grid.highest
        lost.append(float(((weight - real(found, scale, 0)) ** 2).sum()))
    assert lost[1] < lost[0]


def test_scales_of_blocks_are_numbers_of_both_half_types() -> None:
    found = storable(np.exp(np.random.default_rng(0).uniform(-9, 9, 500)).astype(np.float32))
    assert np.array_equal(found, found.astype(np.float16).astype(np.float32))
    assert not (found.view(np.uint32) & 0xFFFF).any()


def test_powers_of_two() -> None:
    table = powers_of_two(4)
    assert table.size == 16 and table[0] == 0
    magnitudes = np.abs(table[1:])
    assert np.array_equal(np.exp2(np.round(np.log2(magnitudes))), magnitudes)
    weight = np.random.default_rng(1).uniform(-1, 1, 400).astype(np.float32)
    nearest = np.abs(table[None] - weight[:, None]).min(1)
    assert np.allclose(np.abs(table[nearest_power(weight, table)] - weight), nearest, atol=1e-7)


def test_codebooks_are_better_than_even_levels() -> None:
    weight = random(32, 64, 5)
    table, found, scale = tabulated(weight, WEIGHTS["codebook4"])
    assert table.shape == (16,) and found.shape == weight.shape
    grid = Grid(D.INT4)
    even = real(codes(weight, scales(weight, grid), grid), scales(weight, grid), 0)
    assert np.sum((table[found] * scale[:, None] - weight) ** 2) < np.sum((even - weight) ** 2)
    vectors, places, scale = tabulated(weight, WEIGHTS["product"])
    assert vectors.shape[1] * places.shape[1] == weight.shape[1]
    made = vectors[places].reshape(weight.shape) * scale[:, None]
    assert np.sum((made - weight) ** 2) < 0.02 * np.sum(weight**2)


@pytest.mark.parametrize("grid", [Grid(D.INT4, 0, 32), Grid(D.INT4, 3), Grid(D.INT2)])
def test_gptq_is_better_on_rows_that_it_has_not_seen(grid: Grid) -> None:
    rng = np.random.default_rng(2)
    mixing = rng.standard_normal((64, 64)) * rng.uniform(0.05, 1, 64)
    rows = np.rint(rng.standard_normal((900, 64)) @ mixing * 40)
    weight = random(24, 64, 7).astype(np.float64)
    out = np.arange(len(rows)) % 3 == 0
    made = rows + np.rint(rng.standard_normal(rows.shape) * 4)
    best = solve(weight, grid, Rows.of(rows, made, out))
    assert best.how in ("gptq", "upstream")
    assert best.error < 0.7 * best.before


def test_upstream_correction_undoes_what_earlier_layers_lost() -> None:
    """Inputs that earlier layers have made wrong in a way that the product can undo."""
    rng = np.random.default_rng(4)
    wanted = np.rint(rng.standard_normal((1500, 64)) * 400)
    made = np.rint(wanted @ (np.eye(64) + 0.03 * rng.standard_normal((64, 64))))
    weight, out = random(24, 64, 7).astype(np.float64), np.arange(1500) % 5 == 2
    rows = Rows.of(wanted, made, out)
    best = solve(weight, Grid(D.INT4, 0, 32), rows)
    assert best.how == "upstream"
    single = solve(weight, Grid(D.INT4, 0, 32), rows._replace(seen=blind(rows.seen), all=blind(rows.all)))
    assert single.how == "gptq" and best.error < 0.4 * single.error


def blind(moments: Moments) -> Moments:
    """The same without what earlier layers have lost."""
    return moments._replace(cross=np.zeros_like(moments.cross))


def test_rows_that_are_held_out_stop_what_does_not_hold() -> None:
    """A handful of rows with errors of their own: what they ask for is wrong for all others."""
    rng = np.random.default_rng(5)
    wanted = np.rint(rng.standard_normal((600, 64)) * 400)
    out = np.arange(600) >= 12
    made = wanted.copy()
    made[~out] = np.rint(rng.standard_normal((12, 64)) * 4000)
    best = solve(random(24, 64, 7).astype(np.float64), Grid(D.INT4, 0, 32), Rows.of(wanted, made, out))
    assert best.how == "rounding" and best.error == best.before


def test_moments_are_those_of_centred_rows() -> None:
    rng = np.random.default_rng(6)
    wanted, inputs = (np.rint(rng.standard_normal((200, 8)) * 90 + 31) for _ in range(2))
    found = Moments.of(Sums.of(wanted[:150], inputs[:150]).plus(Sums.of(wanted[150:], inputs[150:])))
    x, y = (a - np.rint(a.mean(0)) for a in (inputs, wanted - inputs))
    assert np.array_equal(found.hessian, x.T @ x / 200)
    assert np.allclose(found.cross * 200, y.T @ x)
    assert np.array_equal(found.mean, inputs.mean(0)) and np.array_equal(found.mean_wanted, wanted.mean(0))
