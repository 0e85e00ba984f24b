"""The source of the kernel of each operation. Arguments are those of the launch: its tensors, then its numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tapeout.sdk import UnsupportedError
from tapeout.targets.nvidia.fuse import numbers
from tapeout.targets.nvidia.kernels import attended, tiles
from tapeout.targets.nvidia.kernels.source import TYPES, Source, expression, load, made, store
from tapeout.targets.nvidia.plan import expressions as e
from tapeout.targets.nvidia.plan.expressions import Code
from tapeout.targets.nvidia.plan.parts import Launch, Tensor

ONE = e.number(1)
BLOCK = 1024  # elements of a program that takes them one by one
ROW = 1024  # elements of a row that are looked at together


def source(launch: Launch, tensors: Sequence[Tensor]) -> Source:
    """A kernel for a launch. Raises UnsupportedError where there is none."""
    return sources(launch, tensors)[0]


def sources(launch: Launch, tensors: Sequence[Tensor]) -> list[Source]:
    """The kernels that may be taken for a launch. Raises UnsupportedError where there is none."""
    template = TEMPLATES.get(launch.operation)
    types = [tensors[i].dtype for i in (*launch.reads, *launch.writes)]
    unknown = [dtype for dtype in types if dtype not in TYPES]
    if template is None or unknown:
        what = f"operation '{launch.operation}'" + (f" on {unknown[0]}" if unknown else "")
        raise UnsupportedError(
            f"there is no GPU kernel for {what} ({', '.join(launch.sources)})",
            hint="--device cpu writes a plan for the CPU executor",
            nodes=launch.sources,
        )
    if launch.operation in TILED:
        return [TILED[launch.operation](launch, types, numbers(launch), tile) for tile in tiles.TILES]
    return [template(launch, types, numbers(launch))]


def _blocks(count: Code, size: int) -> Code:
    return e.join(e.CEIL, count, e.number(size))


def _each(total: Code) -> tuple[tuple[Code, Code, Code], dict[str, int]]:
    """The grid and the constant of a kernel that takes elements one by one."""
    return (_blocks(total, BLOCK), ONE, ONE), {"BLOCK": BLOCK}


# Each program has BLOCK elements: `i` are their numbers, `m` says which there are.
ELEMENTS = ["i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)"]


def _coordinates(rank: int, prefix: str = "d") -> list[str]:
    """The lines that make coordinates c0, c1, ... of `i`."""
    lines = ["r = i"]
    for axis in range(rank - 1, 0, -1):
        lines += [f"c{axis} = r % {prefix}{axis}", f"r = r // {prefix}{axis}"]
    return [*lines, "c0 = r"] if rank else ["c0 = i"]


def _address(rank: int, prefix: str) -> str:
    return " + ".join(f"c{axis} * {prefix}{axis}" for axis in range(rank)) or "c0"


def map_(launch: Launch, types: list[str], given: list[Code]) -> Source:
    rank, count = launch.attributes["rank"], len(launch.reads)
    program: Any = launch.attributes["program"]
    assert isinstance(rank, int)
    names = [f"d{a}" for a in range(rank)] + [f"s{k}_{a}" for k in range(count) for a in range(rank)]
    total = " * ".join(f"d{a}" for a in range(rank)) or "1"
    body = [*ELEMENTS, f"m = i < {total}", *_coordinates(rank)]
    for k in range(count):
        address = _address(rank, f"s{k}_")
        body.append(f"x{k} = " + load(f"t{k}", types[k], f"({address})", "m"))
    value = expression(program, [f"x{k}" for k in range(count)], types)
    body += [f"y = tl.zeros((BLOCK,), tl.float32) + {value}" if not count else f"y = {value}"]
    body += [store(f"t{count}", "i", "y", "m")]
    grid, constants = _each(e.product(given[:rank]))
    return made(launch, types, names, body, grid, constants)


def copy(launch: Launch, types: list[str], given: list[Code]) -> Source:
    rank = launch.attributes["rank"]
    assert isinstance(rank, int)
    names = [f"{p}{a}" for p in ("d", "s", "u") for a in range(rank)] + ["offset", "place"]
    total = " * ".join(f"d{a}" for a in range(rank)) or "1"
    body = [
        *ELEMENTS, f"m = i < {total}", *_coordinates(rank),
        f"x = tl.load(t0 + offset + {_address(rank, 's')}, mask=m, other=0)",
        f"tl.store(t1 + place + {_address(rank, 'u')}, x, mask=m)",
    ]  # fmt: skip
    grid, constants = _each(e.product(given[:rank]))
    return made(launch, types, names, body, grid, constants)


def fill(launch: Launch, types: list[str], given: list[Code]) -> Source:
    value = launch.attributes["value"]
    assert isinstance(value, float)
    body = [
        *ELEMENTS,
        "m = i < count",
        store("t0", "i", f"tl.full((BLOCK,), {_real(value)}, tl.float32)", "m"),
    ]
    grid, constants = _each(given[0])
    return made(launch, types, ["count"], body, grid, constants)


def _real(value: float) -> str:
    return repr(value) if value - value == 0 else f'float("{value}")'


def gather(launch: Launch, types: list[str], given: list[Code]) -> Source:
    body = [
        *ELEMENTS, "m = i < outer * count * inner", "c = i % inner", "k = i // inner % count",
        "o = i // inner // count",
        "at = tl.load(t1 + k, mask=m, other=0).to(tl.int64)", "at = tl.where(at < 0, at + size, at)",
        "inside = m & (at >= 0) & (at < size)",
        "x = tl.load(t0 + (o * size + at) * inner + c, mask=inside, other=0)", "tl.store(t2 + i, x, mask=m)",
    ]  # fmt: skip
    outer, _, inner, count = given
    grid, constants = _each(e.product([outer, count, inner]))
    return made(launch, types, ["outer", "size", "inner", "count"], body, grid, constants)


def gather_elements(launch: Launch, types: list[str], given: list[Code]) -> Source:
    facts: Any = launch.attributes
    rank, axis = facts["rank"], facts["axis"]
    names = [f"{p}{a}" for p in ("d", "s") for a in range(rank)] + ["size"]
    body = [
        *ELEMENTS, f"m = i < {' * '.join(names[:rank]) or '1'}", *_coordinates(rank),
        "at = tl.load(t1 + i, mask=m, other=0).to(tl.int64)", f"c{axis} = tl.where(at < 0, at + size, at)",
        f"inside = m & (c{axis} >= 0) & (c{axis} < size)",
        f"x = tl.load(t0 + {_address(rank, 's')}, mask=inside, other=0)", "tl.store(t2 + i, x, mask=m)",
    ]  # fmt: skip
    grid, constants = _each(e.product(given[:rank]))
    return made(launch, types, names, body, grid, constants)


def gather_nd(launch: Launch, types: list[str], given: list[Code]) -> Source:
    depth: Any = launch.attributes["depth"]
    names = [*(f"d{a}" for a in range(depth)), "inner", "count"]
    body = [
        *ELEMENTS,
        "m = i < count * inner",
        "k = i // inner",
        "place = tl.zeros((BLOCK,), tl.int64)",
        "inside = m",
    ]
    for axis in range(depth):
        body += [
            f"at = tl.load(t1 + k * {depth} + {axis}, mask=m, other=0).to(tl.int64)",
            f"at = tl.where(at < 0, at + d{axis}, at)",
            f"inside = inside & (at >= 0) & (at < d{axis})", f"place = place * d{axis} + at",
        ]  # fmt: skip
    body += [
        "x = tl.load(t0 + place * inner + i % inner, mask=inside, other=0)",
        "tl.store(t2 + i, x, mask=m)",
    ]
    grid, constants = _each(e.product(given[depth:]))
    return made(launch, types, names, body, grid, constants)


def sizes(launch: Launch, types: list[str], given: list[Code]) -> Source:
    names = [f"n{i}" for i in range(len(given))]
    body = [f"tl.store(t0 + {i}, {name}.to(t0.dtype.element_ty))" for i, name in enumerate(names)]
    return made(launch, types, names, body or ["pass"], (ONE, ONE, ONE), {})


def softmax(launch: Launch, types: list[str], given: list[Code]) -> Source:
    """Rows along the middle axis: the maximum and the sum in one pass, the result in a second."""
    x = load("t0", types[0], "base + (n + k) * inner", "n + k < count")
    result = "v - most - tl.log(total)" if launch.attributes["log"] else "tl.exp(v - most) / total"
    body = [
        "p = tl.program_id(0).to(tl.int64)", "base = p // inner * count * inner + p % inner",
        "k = tl.arange(0, ROW)", 'top = tl.full((ROW,), float("-inf"), tl.float32)',
        "for n in range(0, count, ROW):", f"    v = tl.where(n + k < count, {x}, float('-inf'))",
        "    top = tl.maximum(top, v, propagate_nan=tl.PropagateNan.ALL)",
        "most = tl.max(top, 0)", "parts = tl.zeros((ROW,), tl.float32)",
        "for n in range(0, count, ROW):", f"    v = {x}",
        "    parts += tl.where(n + k < count, tl.exp(v - most), 0.0)", "total = tl.sum(parts, 0)",
        "for n in range(0, count, ROW):", f"    v = {x}",
        "    " + store("t1", "base + (n + k) * inner", result, "n + k < count"),
    ]  # fmt: skip
    outer, _, inner = given
    grid = (e.product([outer, inner]), ONE, ONE)
    return made(launch, types, ["outer", "count", "inner"], body, grid, {"ROW": ROW})


def normalize(launch: Launch, types: list[str], given: list[Code]) -> Source:
    """Rows: mean, then variance around it, in float32; then scale and bias."""
    reads, last = len(launch.reads), len(types) - 1
    x = load("t0", types[0], "base + n + k", "n + k < count")
    value = "(v - mean) * scale"
    value = f"{value} * {load('t1', types[1], 'n + k', 'n + k < count')}" if reads > 1 else value
    value = f"{value} + {load('t2', types[2], 'n + k', 'n + k < count')}" if reads > 2 else value
    mean = ["mean = tl.sum(parts, 0) / count"] if not launch.attributes["rms"] else ["mean = 0.0"]
    body = [
        "base = tl.program_id(0).to(tl.int64) * count", "k = tl.arange(0, ROW)",
        "parts = tl.zeros((ROW,), tl.float32)",
        "for n in range(0, count, ROW):", f"    parts += {x}", *mean, "parts = tl.zeros((ROW,), tl.float32)",
        "for n in range(0, count, ROW):", f"    v = tl.where(n + k < count, {x} - mean, 0.0)", "    parts += v * v",
        f"scale = 1.0 / tl.sqrt(tl.sum(parts, 0) / count + {launch.attributes['epsilon']!r})",
        "for n in range(0, count, ROW):", f"    v = {x}",
        "    " + store(f"t{last}", "base + n + k", value, "n + k < count"),
    ]  # fmt: skip
    return made(launch, types, ["rows", "count"], body, (given[0], ONE, ONE), {"ROW": ROW})


# Of a reduction: what it begins with, how an element joins, how the parts of a row do, what becomes of the whole.
REDUCE = {
    "prod": ("1.0", "a * v", "tl.reduce(a, 0, times)", "y"),
    "sum": ("0.0", "a + v", "tl.sum(a, 0)", "y"),
    "mean": ("0.0", "a + v", "tl.sum(a, 0)", "y / count"),
    "l1": ("0.0", "a + tl.abs(v)", "tl.sum(a, 0)", "y"),
    "squares": ("0.0", "a + v * v", "tl.sum(a, 0)", "y"),
    "l2": ("0.0", "a + v * v", "tl.sum(a, 0)", "tl.sqrt(y)"),
    "logsum": ("0.0", "a + v", "tl.sum(a, 0)", "tl.log(y)"),
    "max": ('float("-inf")', "tl.maximum(a, v, propagate_nan=tl.PropagateNan.ALL)", "tl.max(a, 0)", "y"),
    "min": ('float("inf")', "tl.minimum(a, v, propagate_nan=tl.PropagateNan.ALL)", "tl.min(a, 0)", "y"),
}


def reduce(launch: Launch, types: list[str], given: list[Code]) -> Source:
    kind = str(launch.attributes["kind"])
    outer, _, inner = given
    grid = (e.product([outer, inner]), ONE, ONE)
    x = load("t0", types[0], "base + (n + k) * inner", "n + k < count")
    body = ["p = tl.program_id(0).to(tl.int64)", "base = p // inner * count * inner + p % inner"]
    body += ["k = tl.arange(0, ROW)"]
    if kind in REDUCE:
        body += _reduced(kind, x)
    elif kind == "logsumexp":
        body += _log_sum_exp(x)
    else:
        body += _place(x, largest=kind == "argmax", last=bool(launch.attributes["last"]))
    body += ["tl.store(t1 + p, y.to(t1.dtype.element_ty))"]
    return made(launch, types, ["outer", "count", "inner"], body, grid, {"ROW": ROW})


def _reduced(kind: str, x: str) -> list[str]:
    begin, join, whole, last = REDUCE[kind]
    return [
        f"a = tl.full((ROW,), {begin}, tl.float32)",
        "for n in range(0, count, ROW):", f"    v = {x}", f"    a = tl.where(n + k < count, {join}, a)",
        f"y = {whole}", f"y = {last}",
    ]  # fmt: skip


def _log_sum_exp(x: str) -> list[str]:
    """The maximum first, so that no power overflows."""
    return [
        'a = tl.full((ROW,), float("-inf"), tl.float32)',
        "for n in range(0, count, ROW):", f"    a = tl.where(n + k < count, tl.maximum(a, {x}), a)",
        "most = tl.max(a, 0)", 'most = tl.where(tl.abs(most) == float("inf"), 0.0, most)',
        "a = tl.zeros((ROW,), tl.float32)",
        "for n in range(0, count, ROW):", f"    a += tl.where(n + k < count, tl.exp({x} - most), 0.0)",
        "y = tl.log(tl.sum(a, 0)) + most",
    ]  # fmt: skip


def _place(x: str, *, largest: bool, last: bool) -> list[str]:
    """Where the largest or smallest is: of equal ones the first or the last."""
    value = x if largest else f"-{x}"
    better = "v >= a" if last else "v > a"
    chosen = "tl.max(tl.where(a == best, at, -1), 0)" if last else "tl.min(tl.where(a == best, at, count), 0)"
    return [
        'a = tl.full((ROW,), float("-inf"), tl.float32)', "at = k.to(tl.int64)",
        "for n in range(0, count, ROW):", f"    v = tl.where(n + k < count, {value}, float('-inf'))",
        f"    at = tl.where(({better}) & (n + k < count), n + k, at)", "    a = tl.maximum(a, v)",
        "best = tl.max(a, 0)", f"y = {chosen}",
    ]  # fmt: skip


TEMPLATES: dict[str, Callable[[Launch, list[str], list[Code]], Source]] = {
    "map": map_, "copy": copy, "fill": fill, "sizes": sizes, "gather": gather, "gather_elements": gather_elements,
    "gather_nd": gather_nd, "softmax": softmax, "normalize": normalize, "reduce": reduce, "gemm": tiles.gemm,
    "attention": attended.attention, "conv": tiles.conv, "depthwise": tiles.depthwise, "pool": tiles.pool,
}  # fmt: skip
TILED = {"gemm": tiles.gemm, "conv": tiles.conv}
