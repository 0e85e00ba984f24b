"""Launches that become one: element-wise programs join what they follow, and what nobody reads goes.

map(p, map(q, x))        -> map(p(q), x)         q read once, all of it, by elements in order
map(p, gemm(a, b), r)    -> gemm(a, b, r; p)     and so behind conv and depthwise
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from tapeout.targets.nvidia.lower.builder import strides
from tapeout.targets.nvidia.plan import expressions as e
from tapeout.targets.nvidia.plan.check import most_bytes
from tapeout.targets.nvidia.plan.expressions import Code, Range
from tapeout.targets.nvidia.plan.parts import DTYPES, Argument, ArgumentKind, Kind, Launch, Tensor, Value
from tapeout.targets.nvidia.programs import Program, is_operand, renamed

EPILOGUES = {"gemm": 10, "conv": 7, "depthwise": 7}  # and how many numbers stand before those of operands
# Operands and words of one program: beyond, registers spill and nothing is won.
OPERANDS, WORDS = 8, 96
ZERO, ONE = e.number(0), e.number(1)
# Elements that 32 bits count, with room for the last tiles to reach beyond.
SHORT = (1 << 31) - (1 << 20)


def fused(
    tensors: Sequence[Tensor], launches: Sequence[Launch]
) -> tuple[list[Tensor], list[Launch], list[int]]:
    """Fewer launches, the tensors that are left, and the numbers of the weights that are."""
    steps = [_Step(launch) for launch in launches]
    _remove_dead(tensors, steps)
    readers = _readers(tensors, steps)
    made_by = {i: s for s in steps for i in s.launch.writes}
    for step in steps:
        if step.launch.operation != "map":
            continue
        index = 0
        while index < len(step.launch.reads):
            source = step.launch.reads[index]
            before = made_by.get(source)
            if before is not None and _whole(tensors, step.launch, index) and readers[source] == [step]:
                joined = _joined(tensors, before, step, index)
                if joined is not None:
                    before.dead = True
                    step.launch = joined
                    for i in joined.reads:
                        readers[i] = [step if s is before else s for s in readers[i]]
                    made_by |= dict.fromkeys(joined.writes, step)
                    index = 0
                    if joined.operation != "map":
                        break
                    continue
            index += 1
    kept = [s.launch for s in steps if not s.dead]
    return _renumbered(tensors, kept)


class _Step:
    """A launch that may go."""

    def __init__(self, launch: Launch) -> None:
        self.launch, self.dead = launch, False


def _remove_dead(tensors: Sequence[Tensor], steps: list[_Step]) -> None:
    wanted = {i for i, t in enumerate(tensors) if t.kind == Kind.OUTPUT}
    for step in reversed(steps):
        owners = {tensors[i].storage for i in step.launch.writes}
        step.dead = not owners & wanted
        if not step.dead:
            wanted |= {tensors[i].storage for i in step.launch.reads}
    steps[:] = [s for s in steps if not s.dead]


def _readers(tensors: Sequence[Tensor], steps: Sequence[_Step]) -> dict[int, list[_Step]]:
    """Who reads each tensor; what has a view is read by nobody knows whom: twice, so to say."""
    found: dict[int, list[_Step]] = {i: [] for i in range(len(tensors))}
    for step in steps:
        for i in step.launch.reads:
            owner = tensors[i].storage
            found[i].append(step)
            if owner != i:
                found[owner] += [step, step]
    writers: dict[int, int] = {}
    for step in steps:
        for i in step.launch.writes:
            writers[tensors[i].storage] = writers.get(tensors[i].storage, 0) + 1
    for i, tensor in enumerate(tensors):
        if writers.get(tensor.storage, 0) > 1 or tensor.kind != Kind.INNER or tensor.storage != i:
            found[i] += found[i][:1] * 2
    return found


def numbers(launch: Launch) -> list[Code]:
    """The numbers among the arguments of a launch."""
    return [a.code for a in launch.arguments if a.kind in (ArgumentKind.INT32, ArgumentKind.INT64)]


def short(launch: Launch, tensors: Sequence[Tensor], sizes: Sequence[Range]) -> Launch:
    """`launch` with numbers of 32 bits where all elements of its tensors can be counted so: divisions are what
    addresses cost, and they cost a tenth."""
    most = [
        most_bytes(tensors[i], sizes) // DTYPES[tensors[i].dtype][1] for i in (*launch.reads, *launch.writes)
    ]
    largest = [max(map(abs, e.bounds(code, sizes))) for code in numbers(launch)]
    if max([*most, *largest], default=0) >= SHORT:
        return launch
    arguments = tuple(
        dataclasses.replace(a, kind=ArgumentKind.INT32) if a.kind == ArgumentKind.INT64 else a
        for a in launch.arguments
    )
    return dataclasses.replace(launch, arguments=arguments)


def _whole(tensors: Sequence[Tensor], launch: Launch, index: int) -> bool:
    """Whether a map reads an operand element by element, in order, all of it."""
    rank = _int(launch, "rank")
    given = numbers(launch)
    dims, own = given[:rank], given[(index + 1) * rank : (index + 2) * rank]
    wanted = strides(dims)
    return all(s == w or d == ONE for s, w, d in zip(own, wanted, dims, strict=True)) and _same(
        tensors[launch.reads[index]].shape, dims
    )


def _same(first: Sequence[Code], second: Sequence[Code]) -> bool:
    return [d for d in first if d != ONE] == [d for d in second if d != ONE]


def _joined(tensors: Sequence[Tensor], before: _Step, step: _Step, index: int) -> Launch | None:
    """`step` with what its operand `index` is made by, or None."""
    launch, first = step.launch, before.launch
    if first.operation == "map":
        return _map(tensors, launch, first, index)
    if first.operation in EPILOGUES:
        return _epilogue(tensors, launch, first, index)
    return None


def _map(tensors: Sequence[Tensor], launch: Launch, first: Launch, index: int) -> Launch | None:
    rank, first_rank = _int(launch, "rank"), _int(first, "rank")
    given, old = numbers(launch), numbers(first)
    if rank != first_rank:
        return None
    others = [i for i in range(len(launch.reads)) if i != index]
    own = [(launch.reads[i], tuple(given[(i + 1) * rank : (i + 2) * rank])) for i in others]
    added = [(r, tuple(old[(i + 1) * rank : (i + 2) * rank])) for i, r in enumerate(first.reads)]
    reads = list(dict.fromkeys([*own, *added]))
    names: list[Program] = [()] * len(launch.reads)
    for i, key in zip(others, own, strict=True):
        names[i] = (f"x{reads.index(key)}",)
    inner_program = renamed(_program(first), [(f"x{reads.index(key)}",) for key in added])
    names[index] = _rounded(inner_program, tensors[launch.reads[index]])
    program = renamed(_program(launch), names)
    if len(reads) > OPERANDS or len(program) > WORDS:
        return None
    values = [*given[:rank], *(code for _, own_strides in reads for code in own_strides)]
    return _made(launch, "map", [r for r, _ in reads], values, {"program": program, "rank": rank}, first)


def _epilogue(tensors: Sequence[Tensor], launch: Launch, first: Launch, index: int) -> Launch | None:
    """A map behind a product: its other operands must be as large as the result, or one row of it."""
    start = EPILOGUES[first.operation]
    given, values = numbers(launch), numbers(first)
    rank = _int(launch, "rank")
    dims = given[:rank]
    program, others = _program(launch), [i for i in range(len(launch.reads)) if i != index]
    names: list[Program] = [()] * len(launch.reads)
    reads = list(first.reads)
    extras = values[start:]
    width = 3 if first.operation == "gemm" else 2
    for i in others:
        own = given[(i + 1) * rank : (i + 2) * rank]
        steps = _steps(tensors, launch.reads[i], own, dims, first, width)
        if steps is None:
            return None
        reads.append(launch.reads[i])
        extras += steps
        names[i] = (f"x{len(reads) - 2}",)
    names[index] = _rounded(_program(first), tensors[launch.reads[index]])
    made = renamed(program, names)
    if len(reads) > OPERANDS or len(made) > WORDS:
        return None
    facts = {**first.attributes, "program": made}
    return _made(launch, first.operation, reads, [*values[:start], *extras], facts, first)


def _rounded(program: Program, tensor: Tensor) -> Program:
    """A program and the rounding with which its result would have been written: numbers are the same as without
    fusion."""
    return (*program, f"cast.{tensor.dtype}") if tensor.dtype in ("float16", "bfloat16") else program


def _steps(
    tensors: Sequence[Tensor], read: int, own: Sequence[Code], dims: Sequence[Code], first: Launch, width: int
) -> list[Code] | None:
    """The strides of an operand over (batch,) rows and columns of a product, or None where it has no such."""
    values = numbers(first)
    batch, rows, columns = values[:3] if width == 3 else (ONE, ONE, values[6])
    if width == 3 and batch == ONE and columns != dims[-1]:
        return None
    if all(s == w or d == ONE for s, w, d in zip(own, strides(dims), dims, strict=True)):
        return ([e.product([rows, columns])] if width == 3 else []) + [columns, ONE]
    if all(s == ZERO for s in own[:-1]) and own[-1:] == [ONE] and dims[-1] == columns:
        return [ZERO] * (width - 1) + [ONE]
    return None


def _made(
    launch: Launch,
    operation: str,
    reads: Sequence[int],
    values: Sequence[Code],
    facts: Mapping[str, Value],
    first: Launch,
) -> Launch:
    pointers = [Argument(ArgumentKind.TENSOR, tensor=t) for t in (*reads, *launch.writes)]
    integers = [Argument(ArgumentKind.INT64, code=code) for code in values]
    return dataclasses.replace(
        launch, operation=operation, attributes=facts, reads=tuple(reads), arguments=(*pointers, *integers),
        sources=tuple(dict.fromkeys((*first.sources, *launch.sources))),
    )  # fmt: skip


def _program(launch: Launch) -> Program:
    found = launch.attributes["program"]
    assert isinstance(found, tuple)
    return tuple(str(word) for word in found)


def _int(launch: Launch, name: str) -> int:
    found = launch.attributes[name]
    assert isinstance(found, int)
    return found


def _renumbered(
    tensors: Sequence[Tensor], launches: Sequence[Launch]
) -> tuple[list[Tensor], list[Launch], list[int]]:
    """Only the tensors that are used, and the weights among them."""
    used = {i for launch in launches for i in (*launch.reads, *launch.writes)}
    used |= {tensors[i].storage for i in used}
    used |= {i for i, t in enumerate(tensors) if t.kind in (Kind.INPUT, Kind.OUTPUT)}
    order = sorted(used)
    number = {old: new for new, old in enumerate(order)}
    weights = sorted({tensors[i].weight for i in order if tensors[i].weight >= 0})
    places = {old: new for new, old in enumerate(weights)}
    kept = [
        dataclasses.replace(
            tensors[i], storage=number[tensors[i].storage], weight=places.get(tensors[i].weight, -1)
        )
        for i in order
    ]
    moved = [
        dataclasses.replace(
            launch,
            reads=tuple(number[i] for i in launch.reads),
            writes=tuple(number[i] for i in launch.writes),
            arguments=tuple(
                dataclasses.replace(a, tensor=number[a.tensor]) if a.kind == ArgumentKind.TENSOR else a
                for a in launch.arguments
            ),
        )
        for launch in launches
    ]
    return kept, moved, weights


__all__ = ["fused", "is_operand", "numbers"]
