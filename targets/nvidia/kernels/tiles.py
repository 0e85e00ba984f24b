"""Kernels over tiles: products of matrices, convolutions as such, pools. Sums are kept in float32."""

from __future__ import annotations

from typing import Any

from tapeout.targets.nvidia.kernels.source import Source, expression, load, made, store
from tapeout.targets.nvidia.plan import expressions as e
from tapeout.targets.nvidia.plan.expressions import Code
from tapeout.targets.nvidia.plan.parts import Launch

ONE = e.number(1)
# Of float32 operands tensor cores see three parts each, which is as exact as float32.
PRECISION = 'input_precision="tf32x3"'
# Tiles of products, of which the one that is to cost least is taken: rows, columns, depth, warps.
TILES = (
    (16, 16, 64, 1),
    (16, 64, 64, 2),
    (32, 32, 64, 2),
    (64, 64, 32, 4),
    (128, 64, 32, 4),
    (128, 128, 32, 8),
)
TILE = TILES[3]
PIXELS, CHANNELS = 16, 32  # of a program of pools and depthwise convolutions


def gemm(launch: Launch, types: list[str], given: list[Code], tile: tuple[int, ...] = TILE) -> Source:
    """C[z, m, n] = program(A[z, m, :] B[z, :, n], ...): tiles in groups of rows, which share columns in the cache"""
    extras = len(launch.reads) - 2
    names = ["Z", "M", "N", "K", "az", "am", "ak", "bz", "bk", "bn"]
    names += [f"e{i}{axis}" for i in range(extras) for axis in "zmn"]
    kind = _operand(types)
    body = [
        "z = tl.program_id(1).to(tl.int64)", *_tiles("M", "N"),
        "rk = tl.arange(0, BK)", "acc = tl.zeros((BM, BN), tl.float32)",
        "for k in range(0, K, BK):",
        "    a = tl.load(t0 + z * az + rm[:, None] * am + (k + rk)[None, :] * ak,",
        "                mask=(rm[:, None] < M) & (k + rk < K)[None, :], other=0)",
        "    b = tl.load(t1 + z * bz + (k + rk)[:, None] * bk + rn[None, :] * bn,",
        "                mask=(k + rk < K)[:, None] & (rn[None, :] < N), other=0)",
        f"    acc = tl.dot(a{kind}, b{kind}, acc, {PRECISION})",
        "inside = (rm[:, None] < M) & (rn[None, :] < N)",
        *_extras(launch, types, 2, lambda i: f"z * e{i}z + rm[:, None] * e{i}m + rn[None, :] * e{i}n"),
        store(f"t{len(types) - 1}", "z * M * N + rm[:, None] * N + rn[None, :]", _value(launch, types, 2), "inside"),
    ]  # fmt: skip
    batch, m, n = given[:3]
    constants, warps = _shape(tile)
    grid = (_grid(m, n, constants), batch, ONE)
    return made(launch, types, names, body, grid, constants, warps, stages=3)


def conv(launch: Launch, types: list[str], given: list[Code], tile: tuple[int, ...] = TILE) -> Source:
    """NHWC implicit GEMM: rows are positions of the result, columns channels of one group, the sum runs over window
    and input channels"""
    extras = len(launch.reads) - 2
    facts: Any = launch.attributes
    kh, kw = facts["kernel"]
    names = ["N_", "H", "W", "C", "OH", "OW", "O"]
    names += [f"e{i}{axis}" for i in range(extras) for axis in "mn"]
    kind = _operand(types)
    body = [
        "g = tl.program_id(1).to(tl.int64)", f"cg = C // {facts['group']}", f"N = O // {facts['group']}",
        "M = N_ * OH * OW", *_tiles("M", "N"), "rk = tl.arange(0, BK)", *_positions("rm", facts),
        "acc = tl.zeros((BM, BN), tl.float32)",
        f"for tap in range(0, {kh * kw}):", *_tap(facts, kw),
        "    seen = (y >= 0) & (y < H) & (x >= 0) & (x < W) & (rm < M)",
        "    for k in range(0, cg, BK):",
        "        a = tl.load(t0 + (((image * H + y) * W + x) * C + g * cg)[:, None] + (k + rk)[None, :],",
        "                    mask=seen[:, None] & (k + rk < cg)[None, :], other=0)",
        f"        b = tl.load(t1 + ((g * N + rn) * {kh * kw} + tap)[None, :] * cg + (k + rk)[:, None],",
        "                    mask=(k + rk < cg)[:, None] & (rn < N)[None, :], other=0)",
        f"        acc = tl.dot(a{kind}, b{kind}, acc, {PRECISION})",
        "inside = (rm[:, None] < M) & (rn[None, :] < N)",
        *_extras(launch, types, 2, lambda i: f"rm[:, None] * e{i}m + (g * N + rn)[None, :] * e{i}n"),
        store(f"t{len(types) - 1}", "rm[:, None] * O + (g * N + rn)[None, :]", _value(launch, types, 2), "inside"),
    ]  # fmt: skip
    n, _, _, _, oh, ow, o = given[:7]
    rows, columns = e.product([n, oh, ow]), e.join(e.FLOOR, o, e.number(facts["group"]))
    constants, warps = _shape(tile)
    grid = (_grid(rows, columns, constants), e.number(facts["group"]), ONE)
    return made(launch, types, names, body, grid, constants, warps, stages=3)


def depthwise(launch: Launch, types: list[str], given: list[Code]) -> Source:
    """Each channel with a window of its own: tiles of positions and channels, no tensor cores"""
    extras = len(launch.reads) - 2
    facts: Any = launch.attributes
    kh, kw = facts["kernel"]
    names = ["N_", "H", "W", "C", "OH", "OW", "O"]
    names += [f"e{i}{axis}" for i in range(extras) for axis in "mn"]
    weight = load("t1", types[1], f"(rn * {kh * kw} + tap)[None, :]", "(rn < C)[None, :]")
    body = [
        *_pixels(), *_positions("rm", facts), "acc = tl.zeros((BM, BN), tl.float32)",
        f"for tap in range(0, {kh * kw}):", *_tap(facts, kw), *_seen(types[0]),
        f"    acc += v * {weight}",
        "inside = (rm[:, None] < M) & (rn[None, :] < C)",
        *_extras(launch, types, 2, lambda i: f"rm[:, None] * e{i}m + rn[None, :] * e{i}n"),
        store(f"t{len(types) - 1}", "rm[:, None] * C + rn[None, :]", _value(launch, types, 2), "inside"),
    ]  # fmt: skip
    return _over_pixels(launch, types, names, body, given)


def pool(launch: Launch, types: list[str], given: list[Code]) -> Source:
    """The largest, or the mean, of a window; with `padding` pads count, but not what lies beyond them"""
    facts: Any = launch.attributes
    kh, kw = facts["kernel"]
    names = ["N_", "H", "W", "C", "OH", "OW"]
    top, left, bottom, right = facts["pads"]
    if facts["kind"] == "max":
        begin, join, result = 'float("-inf")', "tl.maximum(acc, v, propagate_nan=tl.PropagateNan.ALL)", "acc"
        count = ["    acc = tl.where(seen[:, None], " + join + ", acc)"]
    else:
        begin, result = "0.0", "acc / area[:, None]"
        counted = (
            f"(y >= {-top}) & (y < H + {bottom}) & (x >= {-left}) & (x < W + {right})"
            if facts["padding"]
            else "seen"
        )
        count = ["    acc += v", f"    area += tl.where({counted}, 1.0, 0.0)"]
    body = [
        *_pixels(), *_positions("rm", facts), f"acc = tl.full((BM, BN), {begin}, tl.float32)",
        "area = tl.zeros((BM,), tl.float32)", f"for tap in range(0, {kh * kw}):", *_tap(facts, kw),
        *_seen(types[0]), *count, "inside = (rm[:, None] < M) & (rn[None, :] < C)",
        store("t1", "rm[:, None] * C + rn[None, :]", result, "inside"),
    ]  # fmt: skip
    return _over_pixels(launch, types, names, body, given)


def _tiles(rows: str, columns: str) -> list[str]:
    """The lines that choose a tile: `rm` are its rows, `rn` its columns."""
    return [
        f"down, across = tl.cdiv({rows}, BM), tl.cdiv({columns}, BN)", "p = tl.program_id(0).to(tl.int64)",
        "first = p // (GROUP * across) * GROUP", "high = tl.minimum(down - first, GROUP)",
        "q = p % (GROUP * across)",
        "rm = (first + q % high) * BM + tl.arange(0, BM)", "rn = q // high * BN + tl.arange(0, BN)",
    ]  # fmt: skip


def _pixels() -> list[str]:
    return [
        "M = N_ * OH * OW", "rm = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)",
        "rn = tl.program_id(1).to(tl.int64) * BN + tl.arange(0, BN)",
    ]  # fmt: skip


def _positions(rows: str, facts: Any) -> list[str]:
    """Where the windows of these positions begin, in which image."""
    (sh, sw), (top, left, _, _) = facts["strides"], facts["pads"]
    return [
        f"image = {rows} // (OH * OW)", f"y0 = {rows} // OW % OH * {sh} - {top}", f"x0 = {rows} % OW * {sw} - {left}"
    ]  # fmt: skip


def _tap(facts: Any, kw: int) -> list[str]:
    dh, dw = facts["dilations"]
    return [f"    y = y0 + tap // {kw} * {dh}", f"    x = x0 + tap % {kw} * {dw}"]


def _seen(dtype: str) -> list[str]:
    address, mask = (
        "((image * H + y) * W + x)[:, None] * C + rn[None, :]",
        "seen[:, None] & (rn < C)[None, :]",
    )
    value = load("t0", dtype, address, mask)
    return ["    seen = (y >= 0) & (y < H) & (x >= 0) & (x < W) & (rm < M)", f"    v = {value}"]


def _extras(launch: Launch, types: list[str], first: int, address: Any) -> list[str]:
    return [
        f"x{i + 1} = {load(f't{first + i}', types[first + i], f'({address(i)})', 'inside')}"
        for i in range(len(launch.reads) - first)
    ]


def _value(launch: Launch, types: list[str], first: int) -> str:
    program: Any = launch.attributes["program"]
    extras = len(launch.reads) - first
    names, kinds = ["acc", *(f"x{i + 1}" for i in range(extras))], ["float32", *types[first : first + extras]]
    return expression(program, names, kinds)


def _operand(types: list[str]) -> str:
    """Operands of different types meet in float32."""
    return "" if types[0] == types[1] else ".to(tl.float32)"


def _shape(tile: tuple[int, ...]) -> tuple[dict[str, int], int]:
    """A tile's constants and its warps."""
    high, wide, deep, warps = tile
    return {"BM": high, "BN": wide, "BK": deep, "GROUP": 8}, warps


def _grid(rows: Code, columns: Code, constants: dict[str, int]) -> Code:
    down, across = (
        e.join(e.CEIL, code, e.number(constants[name])) for code, name in ((rows, "BM"), (columns, "BN"))
    )
    return e.product([down, across])


def _over_pixels(
    launch: Launch, types: list[str], names: list[str], body: list[str], given: list[Code]
) -> Source:
    n, _, _, c, oh, ow = given[:6]
    rows = e.join(e.CEIL, e.product([n, oh, ow]), e.number(PIXELS))
    grid = (rows, e.join(e.CEIL, c, e.number(CHANNELS)), ONE)
    return made(launch, types, names, body, grid, {"BM": PIXELS, "BN": CHANNELS})
