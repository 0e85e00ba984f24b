"""The kernel of attention: rows of Q stay, blocks of K and V pass by, and the softmax is corrected as they do."""

from __future__ import annotations

from typing import Any

from tapeout.targets.nvidia.kernels.source import Source, made, store
from tapeout.targets.nvidia.kernels.tiles import PRECISION
from tapeout.targets.nvidia.plan import expressions as e
from tapeout.targets.nvidia.plan.expressions import Code
from tapeout.targets.nvidia.plan.parts import Launch

ROWS, COLUMNS = 32, 32


def attention(launch: Launch, types: list[str], given: list[Code]) -> Source:
    """softmax(scale Q K' + mask) V; a row that is hidden whole gives 0"""
    facts: Any = launch.attributes
    depth, wide = facts["depth"]
    masked = len(launch.reads) > 3
    names = ["Z", "H", "G", "M", "N"] + [f"{t}{axis}" for t in "qkvo" for axis in "zhm"]
    names += [f"e{axis}" for axis in "zhmn"] if masked else []
    half = ".to(tl.float32)" if len(set(types[:3])) > 1 else ""
    load = "tl.load({}, mask={}, other=0)" + half
    inside = "(rm < M)[:, None] & (n + rn < N)[None, :]"
    hidden = [f"    s = tl.where({inside}, s, float('-inf'))"]
    if masked:
        address = "t3 + z * ez + h * eh + rm[:, None] * em + (n + rn)[None, :] * en"
        seen = f"tl.load({address}, mask={inside}, other=0)"
        line = (
            f"tl.where({seen} != 0, s, float('-inf'))" if types[3] == "bool" else f"s + {seen}.to(tl.float32)"
        )
        hidden += [f"    s = {line}"]
    if facts["causal"]:
        hidden += ["    s = tl.where((n + rn)[None, :] <= rm[:, None], s, float('-inf'))"]
    key = "t1 + z * kz + hk * kh + (n + rn)[None, :] * km + rd[:, None]"
    value = "t2 + z * vz + hk * vh + (n + rn)[:, None] * vm + re[None, :]"
    body = [
        "p = tl.program_id(1).to(tl.int64)", "z, h = p // H, p % H", "hk = h // (H // G)",
        "rm = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)", "rn = tl.arange(0, BN)",
        "rd, re = tl.arange(0, BD), tl.arange(0, BE)",
        "q = " + load.format("t0 + z * qz + h * qh + rm[:, None] * qm + rd[None, :]",
                             f"(rm < M)[:, None] & (rd < {depth})[None, :]"),
        "top = tl.full((BM,), float('-inf'), tl.float32)", "total = tl.zeros((BM,), tl.float32)",
        "acc = tl.zeros((BM, BE), tl.float32)",
        "for n in range(0, N, BN):",
        "    k = " + load.format(key, f"(rd < {depth})[:, None] & (n + rn < N)[None, :]"),
        f"    s = tl.dot(q, k, {PRECISION}) * {facts['scale']!r}", *hidden,
        "    most = tl.maximum(top, tl.max(s, 1))", "    safe = tl.where(most == float('-inf'), 0.0, most)",
        "    w = tl.exp(s - safe[:, None])", "    old = tl.exp(top - safe)",
        "    v = " + load.format(value, f"(n + rn < N)[:, None] & (re < {wide})[None, :]"),
        "    total = total * old + tl.sum(w, 1)",
        f"    acc = tl.dot(w.to(v.dtype), v, acc * old[:, None], {PRECISION})", "    top = most",
        "acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]",
        store(f"t{len(types) - 1}", "z * oz + h * oh + rm[:, None] * om + re[None, :]", "acc",
              f"(rm < M)[:, None] & (re < {wide})[None, :]"),
    ]  # fmt: skip
    batch, heads, _, rows = given[:4]
    grid = (e.join(e.CEIL, rows, e.number(ROWS)), e.product([batch, heads]), e.number(1))
    constants = {"BM": ROWS, "BN": COLUMNS, "BD": _power(depth), "BE": _power(wide)}
    return made(launch, types, names, body, grid, constants, warps=4, stages=2)


def _power(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())
