"""Makes a failing case smaller while it still fails: simpler choices of its generator, or fewer nodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import onnx

from tapeout.compiler.conformance.case import Case, Outcome
from tapeout.compiler.errors import TapeoutError

Again = Callable[[Sequence[int]], tuple[Case, tuple[int, ...]] | None]
Run = Callable[[Case], Outcome]

TRIES, SECONDS = 150, 20.0


def shrink(
    case: Case, outcome: Outcome, run: Run, again: Again | None, choices: Sequence[int]
) -> tuple[Case, Outcome]:
    """The smallest case found that fails with the same status, and its outcome.

    `again` makes the case from other choices (None where it was not made from choices). At most TRIES runs and
    SECONDS.
    """
    end = time.monotonic() + SECONDS
    best, found, tries = case, outcome, 0

    def failing(candidate: Case) -> Outcome | None:
        made = run(candidate)
        return made if made.fault and made.status == outcome.status else None

    place = list(choices)
    changed = again is not None
    while changed and again is not None:
        changed = False
        for lower in _lower(place):
            if tries >= TRIES or time.monotonic() > end:
                return best, found
            made = again(lower)
            if made is None or not _simpler(made, best, place):
                continue
            tries += 1
            result = failing(made[0])
            if result is not None:
                best, found, place, changed = made[0], result, list(made[1]), True
                break
    for smaller in _fewer_nodes(best):
        if tries >= TRIES or time.monotonic() > end:
            break
        tries += 1
        result = failing(smaller)
        if result is not None:
            return smaller, result
    return best, found


def size(case: Case) -> int:
    """What is made small: elements of all tensors, and bytes of the model."""
    return len(case.model) + sum(a.size for a in case.inputs.values())


def _simpler(made: tuple[Case, tuple[int, ...]], best: Case, place: Sequence[int]) -> bool:
    case, choices = made
    return (sum(choices), size(case)) < (sum(place), size(best)) or size(case) < size(best)


def _lower(place: Sequence[int]) -> Iterator[list[int]]:
    """Candidates, the boldest first: everything simple, halves, single choices at 0, at half, and one lower."""
    count = len(place)
    if any(place):
        yield [0] * count
    width = count // 2
    while width >= 2:
        for start in range(0, count, width):
            if any(place[start : start + width]):
                yield [*place[:start], *[0] * min(width, count - start), *place[start + width :]]
        width //= 2
    for i, value in enumerate(place):
        for lower in dict.fromkeys((0, value // 2, value - 1)):
            if 0 <= lower < value:
                yield [*place[:i], lower, *place[i + 1 :]]


def _fewer_nodes(case: Case) -> Iterator[Case]:
    """The case up to each of its nodes, from the first on, with what the reference computes there."""
    from tapeout.compiler.reference import evaluate

    if case.steps or case.legalized:
        return
    proto = onnx.ModelProto.FromString(case.model)
    nodes = list(proto.graph.node)
    for index in range(len(nodes) - 1):
        names = [n for n in nodes[index].output if n]
        wanted = set(names)
        kept = []
        for node in reversed(nodes[: index + 1]):
            if wanted & set(node.output):
                kept.append(node)
                wanted |= set(node.input)
                wanted |= {n for a in node.attribute for sub in a.g.node for n in sub.input}
        made = onnx.ModelProto()
        made.CopyFrom(proto)
        del made.graph.node[:], made.graph.output[:], made.graph.value_info[:]
        made.graph.node.extend(reversed(kept))
        for field in (made.graph.input, made.graph.initializer):
            stay = [v for v in field if v.name in wanted]
            del field[:]
            field.extend(stay)
        for name in names:
            made.graph.output.add().name = name
        inputs = {k: v for k, v in case.inputs.items() if k in wanted}
        try:
            outputs = evaluate(made, inputs, names, threads=1)
        except TapeoutError:
            continue
        if all(isinstance(a, np.ndarray) for a in outputs.values()):
            yield replace(
                case, model=made.SerializeToString(), inputs=inputs, outputs=outputs, op=nodes[index].op_type
            )
