"""Random graphs with equal N, C, H and W: the same numbers, nothing left that could go, never dearer than
before."""

from __future__ import annotations

import itertools
import math

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings

from tapeout.compiler import pipeline
from tapeout.compiler.ir import graph as g
from tapeout.passes.layout import LAST_AXIS, ChannelsLast, Transposed, functions, removable_transposes
from tapeout.passes.layout.freedom import identity
from tapeout.passes.layout.problem import Mode, Problem
from tapeout.passes.layout.search import solve
from tapeout.passes.layout.views import size_of
from tests.passes.layout import graphs

pytestmark = pytest.mark.slow

SETTINGS = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)


def moved(model: ir.Model) -> int:
    """The bytes that the Transposes of a graph move."""
    return sum(size_of(n.outputs[0]) for n in model.graph if n.op_type == "Transpose" and n.domain == "")


def around_anchors(model: ir.Model) -> int:
    """What the local rule moves: every Transpose of the source, and two around each operator that wants
    NHWC."""
    total = moved(model)
    for node in model.graph:
        if node.op_type in (*functions.RANKS, "Resize"):
            total += size_of(node.inputs[0]) + size_of(node.outputs[0])  # type: ignore[arg-type]
            total += size_of(node.inputs[1]) if node.op_type == "Conv" and node.inputs[1] else 0
        elif node.op_type in LAST_AXIS:
            total += 2 * size_of(node.outputs[0])
    return total


def agree(model: ir.Model) -> list[Transposed]:
    """Same interface, same numbers, no more bytes than by the local rule; the Transposes that could still go."""
    inputs = graphs.feeds(model)
    signature = [(v.name, v.dtype, g.dims(v)) for v in (*model.graph.inputs, *model.graph.outputs)]
    before, bound = graphs.run(model, inputs), around_anchors(model)
    pipeline.run(model, (ChannelsLast(),))
    assert [(v.name, v.dtype, g.dims(v)) for v in (*model.graph.inputs, *model.graph.outputs)] == signature
    after = graphs.run(model, inputs)
    for name, expected in before.items():
        scale = max(1e-6, float(np.max(np.abs(expected))))
        assert after[name].shape == expected.shape
        assert float(np.max(np.abs(after[name] - expected))) <= 1e-5 * scale, name
    assert moved(model) <= bound
    return removable_transposes(model, LAST_AXIS)


@SETTINGS
@given(graphs.models())
def test_small(model: ir.Model) -> None:
    assert agree(model) == []


@pytest.mark.slow
@settings(SETTINGS, max_examples=1500)
@given(graphs.models(least=4, most=20))
def test_large(model: ir.Model) -> None:
    """Where a graph's own Transposes ask for more than two orders the search ends where no expansion helps, which is
    not always the optimum (decision 4; one graph in thousands): but no single Transpose is left without need."""
    assert [t for t in agree(model) if not t.reason.startswith("another assignment")] == []


@settings(SETTINGS, max_examples=60)
@given(graphs.models())
def test_a_second_run_changes_nothing(model: ir.Model) -> None:
    ChannelsLast()(model)
    text = ir.to_proto(model).SerializeToString(deterministic=True)
    ChannelsLast()(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == text


def least(problem: Problem, orders: list[tuple[int, ...]] | None = None) -> int:
    """The cost of the best assignment, by trying all (with the orders given for rank 4); -1 where that is too
    much."""
    free = [m for m in problem.members.values() if m.free]
    choices = []
    for member in free:
        operator = member.operator
        assert operator is not None
        every = orders if operator.rank == 4 else None
        every = every or list(itertools.permutations(range(operator.rank)))
        choices.append([Mode(o) for o in every if operator.allows(o)] or [Mode(operator.start())])
    if math.prod(map(len, choices)) > 600:
        return -1
    base = dict(problem.modes)
    every = itertools.product(*choices)
    return min(problem.total({**base, **dict(zip(free, c, strict=True))}) for c in every)


@settings(SETTINGS, max_examples=120)
@given(graphs.models(most=7, kinds=graphs.PLAIN, free=False))
def test_two_orders_are_exact(model: ir.Model) -> None:
    problem = Problem(model.graph, frozenset(LAST_AXIS))
    best = least(problem, [identity(4), (0, 2, 3, 1)])
    solve(problem)
    if best >= 0:
        assert problem.total(problem.modes) <= best


@settings(SETTINGS, max_examples=100)
@given(graphs.models(most=5, free=False))
def test_many_orders_are_exact_on_small_graphs(model: ir.Model) -> None:
    """All 24 orders for up to two nodes, else those of the graph's own Transposes."""
    problem = Problem(model.graph, frozenset(LAST_AXIS))
    asked = {identity(4), (0, 2, 3, 1), (0, 3, 1, 2)}
    for node in model.graph:
        perm = g.attribute(node, "perm")
        if perm is not None and len(perm) == 4:
            asked |= {tuple(perm), tuple(perm.index(k) for k in range(4))}
    best = max(least(problem), least(problem, sorted(asked)))
    solve(problem)
    if best >= 0:
        assert problem.total(problem.modes) <= best
