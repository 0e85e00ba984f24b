"""Runs the float graph over the samples, one at a time, and gathers what its tensors hold."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tapeout.compiler.calibration.measure import Part, Total, measure, small
from tapeout.compiler.calibration.session import opened
from tapeout.compiler.calibration.statistics import Statistics
from tapeout.compiler.calibration.tensors import Wanted, keys, wanted
from tapeout.compiler.errors import UsageError
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.origin import origin
from tapeout.compiler.memory import trim

Array = NDArray[Any]
Feed = Mapping[str, Array]
Visit = Callable[[int, dict[str, Array]], None]
T = TypeVar("T")

# What the tensors of one sample that are measured together may hold, in bytes.
GROUP_BYTES = 192 << 20
# A tensor whose size is not known is counted as so many bytes.
UNKNOWN_BYTES = 1 << 20
LEVEL = "off"


def collect(model: ir.Model, feeds: Callable[[], Iterable[Feed]], jobs: int | None = None) -> Statistics:
    """Statistics of every tensor of `model` that `tensors.wanted` names.

    `feeds()` gives the samples afresh each time it is called. Raises UsageError where a tensor is NaN,
    InvalidModelError where the model does not run.
    """
    what = wanted(model)
    totals = {name: Total() for name in what.axes}
    given = [v.name or "" for v in model.graph.inputs if v.name in what.axes]
    made = [name for name in what.axes if name not in set(given)]
    samples = 0
    for number, group in enumerate(groups(what, made)):
        axes = {n: what.axes[n] for n in (*(given if not number else ()), *group)}

        def one(
            feed: Feed, values: dict[str, Array], axes: dict[str, tuple[int, ...]] = axes
        ) -> dict[str, Any]:
            found: dict[str, tuple[Part | Array, int]] = {}
            for name in axes:
                array = np.asarray(feed[name] if name in feed else values[name])
                whole = small(array)
                found[name] = (measure(array, axes[name]) if whole is None else whole, array.ndim)
            return found

        samples = 0
        for parts in stream(model, feeds(), group, one, jobs):
            for name, (part, rank) in parts.items():
                if not totals[name].take(part, axes[name], rank):
                    raise _nan(what.values[name], samples)
            samples += 1
    trim()
    for name, total in totals.items():
        total.flush(what.axes[name])
    statistics = Statistics(
        {n: t.stats() for n, t in totals.items()}, stand_in=what.stand_in, samples=samples
    )
    statistics.about = {"level": LEVEL}
    return statistics


def groups(what: Wanted, names: Sequence[str]) -> list[list[str]]:
    """`names` in runs that hold at most GROUP_BYTES per sample; at least one."""
    result: list[list[str]] = [[]]
    size = 0
    for name in names:
        shape = g.static_dims(what.values[name])
        need = 4 * int(np.prod(shape, dtype=np.int64)) if shape is not None else UNKNOWN_BYTES
        if result[-1] and size + need > GROUP_BYTES:
            result.append([])
            size = 0
        result[-1].append(name)
        size += need
    return result


def observe(
    model: ir.Model, feeds: Iterable[Feed], names: Sequence[str], visit: Visit, jobs: int | None = None
) -> int:
    """Call `visit(index, {name: array})` for each sample, in order, with whole tensors of `names` (values of the
    main graph, inputs too); the number of samples. One sample is held at a time for each thread.

    The model runs with optimizations off, so graphs with QuantizeLinear compute what they say.
    """
    inputs = {v.name for v in model.graph.inputs}
    made = [n for n in names if n not in inputs]

    def whole(feed: Feed, values: dict[str, Array]) -> dict[str, Array]:
        return {n: np.asarray(feed[n]) if n in inputs else values[n] for n in names}

    index = -1
    for index, values in enumerate(stream(model, feeds, made, whole, jobs)):
        visit(index, values)
    return index + 1


def stream(
    model: ir.Model,
    feeds: Iterable[Feed],
    names: Sequence[str],
    work: Callable[[Feed, dict[str, Array]], T],
    jobs: int | None = None,
) -> Iterator[T]:
    """`work(feed, values of names)` for each feed, in order; several samples at once, each in one thread."""
    workers = max(1, min(jobs or os.cpu_count() or 1, 4))
    run = opened(model, names) if names else None

    def task(feed: Feed) -> T:
        return work(feed, run(feed) if run is not None else {})

    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for feed in feeds:
                waiting.append(pool.submit(task, feed))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def bound(model: ir.Model, statistics: Statistics) -> Statistics:
    """`statistics` of a file for the tensors of `model`. Raises UsageError naming what the file lacks."""
    what = wanted(model)
    found = keys(model, what.values)
    missing = [n for n, k in found.items() if k not in statistics.tensors]
    if missing:
        value = what.values[missing[0]]
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UsageError(
            f"the calibration statistics lack {_describe(value)}{more}: they were made for another model, "
            "target or set of options",
            hint="make them with 'tapeout calibrate' for this model with the same options",
        )
    return Statistics(
        statistics.tensors, found, what.stand_in, statistics.samples, statistics.data, statistics.notes,
        statistics.about,
    )  # fmt: skip


def _describe(value: ir.Value) -> str:
    node = value.producer()
    if node is None:
        return f"the input '{value.name}'"
    names = origin(node)
    return f"the output '{value.name}' of {node.op_type} '{names[0] if names else node.name}'"


def _nan(value: ir.Value, sample: int) -> UsageError:
    node = value.producer()
    return UsageError(
        f"calibration sample {sample}: {_describe(value)} is NaN",
        hint="leave the sample out, or look for what makes it (0/0, the root of a negative number)",
        nodes=origin(node) if node is not None else (),
    )
