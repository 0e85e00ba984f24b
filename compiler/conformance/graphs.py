"""Random graphs of several operators as a source has them, and small ones that keep state from run to run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.conformance.case import EITHER, Array, Case
from tapeout.compiler.conformance.drafts import Operand, call, data, empty_model, leaf
from tapeout.compiler.conformance.draws import Draws, Impossible
from tapeout.compiler.conformance.generated import INVALID, results
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.save import to_bytes
from tapeout.compiler.schemes import STATIC

# What a chain of float32 operators may add up to, of the largest magnitude.
RELATIVE = {"float32": 5e-5, "float16": 1e-2}
LARGEST = 1 << 14  # elements of one tensor
SIZES = ([1, 4], [2, 3, 4], [1, 3, 6, 6], [2, 4, 5, 7], [1, 2, 8, 3])  # of inputs
SHOWN = 16  # graphs of each single step that a target is asked about
TRIES = 8  # steps drawn for one of a known kind, and graphs for one that is taken
AGAIN = 10_000  # from the number of a graph to that of another draw in its place


@dataclass(frozen=True)
class GraphOrigin:
    """Enough to make the graph again, with other choices."""

    number: int
    scheme: str
    state: bool
    choices: tuple[int, ...]
    known: frozenset[str] | None = None


@dataclass
class Making:
    """A graph under construction: the values so far, all float32. `kinds` are the steps with their operators, as in
    "product MatMul"; where `known` is not None there are no others."""

    draws: Draws
    model: ir.Model = field(default_factory=empty_model)
    inputs: dict[str, Array] = field(default_factory=dict)
    values: list[ir.Value] = field(default_factory=list)
    count: int = 0
    known: frozenset[str] | None = None
    step: str = ""
    kinds: set[str] = field(default_factory=set)

    def input(self, dims: Sequence[int]) -> ir.Value:
        array = data(self.draws.rng, dims, "float32")
        value = leaf(self.model, f"x{len(self.inputs)}", Operand(array), self.inputs)
        self.values.append(value)
        return value

    def constant(self, array: Array | np.floating[Any]) -> ir.Value:
        self.count += 1
        return leaf(self.model, f"c{self.count}", Operand(np.asarray(array), True), {})

    def weights(self, *dims: int) -> ir.Value:
        scale = 1 / max(1.0, float(np.sqrt(np.prod(dims[1:]))))
        return self.constant((self.draws.rng.standard_normal(dims) * scale).astype(np.float32))

    def add(
        self, op: str, inputs: Sequence[ir.Value | None], outputs: int = 1, **attributes: object
    ) -> ir.Value:
        kind = f"{self.step} {op}"
        if self.known is not None and kind not in self.known:
            raise Impossible(f"{kind} is left out")
        self.kinds.add(kind)
        self.count += 1
        node = call(self.model, op, inputs, attributes, outputs, name=f"n{self.count}_{op.lower()}")
        for value in node.outputs:
            if g.static_dims(value) is None or value.dtype != ir.DataType.FLOAT:
                raise Impossible(f"{op} has no float32 result of known shape")
            if np.prod(dims_of(value)) > LARGEST or not all(dims_of(value)):
                raise Impossible("too large, or nothing")
        self.values.extend(node.outputs)
        return node.outputs[0]

    def any(self) -> ir.Value:
        """A value, the last one as the simple choice."""
        return self.draws.pick(self.values[::-1])


def dims_of(value: ir.Value) -> tuple[int, ...]:
    found = g.static_dims(value)
    assert found is not None
    return found


def ranked(m: Making, *ranks: int) -> ir.Value:
    fitting = [v for v in m.values[::-1] if len(dims_of(v)) in ranks]
    return m.draws.pick(fitting)


UNARY = (
    "Relu",
    "Sigmoid",
    "Tanh",
    "LeakyRelu",
    "HardSwish",
    "Abs",
    "Neg",
    "Elu",
    "Softplus",
    "Gelu",
    "Erf",
    "Floor",
)
BINARY = ("Add", "Mul", "Sub", "Max", "Min")
REDUCE = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2")


def unary(m: Making) -> None:
    m.add(m.draws.cycle(UNARY[:-1]), [m.any()])


def binary(m: Making) -> None:
    a = m.any()
    fitting = [v for v in m.values[::-1] if dims_of(v) == dims_of(a)]
    small = m.constant(data(m.draws.rng, dims_of(a)[-1:], "float32"))
    b = m.draws.pick([small, *fitting])
    m.add(m.draws.cycle(BINARY), [a, b][:: m.draws.pick([1, -1])])


def clip(m: Making) -> None:
    low, high = m.draws.pick([(0.0, 6.0), (-1.0, 1.0), (0.0, 1.0), (-0.5, 2.0)])
    m.add("Clip", [m.any(), *(m.constant(np.float32(v)) for v in (low, high))])


def convolution(m: Making) -> None:
    x = ranked(m, 4)
    channels, *sides = dims_of(x)[1:]
    group = m.draws.pick([1, channels, 1])
    kernel = [min(m.draws.pick([3, 1, 2]), n) for n in sides]
    outer = group * m.draws.pick([2, 1, 4]) if group > 1 else m.draws.pick([4, 2, 3])
    pads = [k // 2 for k in kernel] * 2 if m.draws.flip() else [0] * 4
    strides = [m.draws.pick([1, 2])] * 2
    bias = m.weights(outer) if m.draws.flip() else None
    m.add(
        "Conv",
        [x, m.weights(outer, channels // group, *kernel), bias],
        pads=pads,
        strides=strides,
        group=group,
    )


def upsampling(m: Making) -> None:
    x = ranked(m, 4)
    if m.draws.flip():
        scales = m.constant(np.array([1, 1, 2, 2], np.float32))
        m.add("Resize", [x, None, scales], mode=m.draws.pick(["nearest", "linear"]))
    else:
        m.add("ConvTranspose", [x, m.weights(dims_of(x)[1], 2, 2, 2)], strides=[2, 2])


def pooling(m: Making) -> None:
    x = ranked(m, 4)
    if m.draws.flip(3):
        m.add("GlobalAveragePool", [x])
        return
    kernel = [min(2, n) for n in dims_of(x)[2:]]
    m.add(
        m.draws.cycle(["MaxPool", "AveragePool"]),
        [x],
        kernel_shape=kernel,
        strides=[m.draws.pick([2, 1])] * 2,
    )


def normalization(m: Making) -> None:
    if m.draws.flip():
        x = ranked(m, 2, 3, 4)
        size = dims_of(x)[-1:]
        m.add("LayerNormalization", [x, m.weights(*size), m.weights(*size)], axis=-1)
    else:
        x = ranked(m, 4, 3)
        size = dims_of(x)[1:2]
        rest = [m.weights(*size) for _ in range(3)]
        m.add("BatchNormalization", [x, *rest, m.constant(data(m.draws.rng, size, "float32", "positive"))])


def product(m: Making) -> None:
    x = ranked(m, 2, 3, 4)
    if m.draws.flip() and len(dims_of(x)) == 2:
        outer = m.draws.pick([4, 2, 5])
        m.add("Gemm", [x, m.weights(outer, dims_of(x)[1]), m.weights(outer)], transB=1)
    else:
        m.add("MatMul", [x, m.weights(dims_of(x)[-1], m.draws.pick([4, 2, 5]))])


def attention(m: Making) -> None:
    x = ranked(m, 3, 4)
    rank = len(dims_of(x))
    order = [*range(rank - 2), rank - 1, rank - 2]
    scores = m.add("MatMul", [x, m.add("Transpose", [x], perm=order)])
    m.add("MatMul", [m.add("Softmax", [scores], axis=-1), x])


def reduction(m: Making) -> None:
    x = ranked(m, 2, 3, 4)
    axis = m.draws.pick(range(len(dims_of(x))))
    axes = m.constant(np.array([axis], np.int64))
    m.add(m.draws.cycle(REDUCE), [x, axes], keepdims=m.draws.pick([1, 0]))


def softmax(m: Making) -> None:
    x = ranked(m, 2, 3, 4)
    m.add("Softmax", [x], axis=m.draws.pick([-1, *range(len(dims_of(x)))]))


def transposition(m: Making) -> None:
    x = ranked(m, 2, 3, 4)
    left, perm = list(range(len(dims_of(x)))), list[int]()
    while left:
        perm.append(left.pop(m.draws.pick(range(len(left) - 1, -1, -1))))
    m.add("Transpose", [x], perm=perm)


def reshaping(m: Making) -> None:
    x = m.any()
    dims = dims_of(x)
    size = int(np.prod(dims))
    shapes = [[1, size], [*dims, 1], [dims[0], size // dims[0]] if dims else [1], [size]]
    m.add("Reshape", [x, m.constant(np.array(m.draws.pick(shapes), np.int64))])


def cutting(m: Making) -> None:
    x = ranked(m, 1, 2, 3, 4)
    axis = m.draws.pick(range(len(dims_of(x))))
    size = dims_of(x)[axis]
    if size < 2:
        raise Impossible("nothing to cut")
    if m.draws.flip():
        parts = [1, size - 1]
        m.add("Split", [x, m.constant(np.array(parts, np.int64))], 2, axis=axis)
        return
    step = m.draws.pick([1, 2, -1])
    first, last = (0, size - 1) if step > 0 else (size - 1, -size - 1)
    m.add("Slice", [x, *(m.constant(np.array([v], np.int64)) for v in (first, last, axis, step))])


def joining(m: Making) -> None:
    a = ranked(m, 1, 2, 3, 4)
    axis = m.draws.pick(range(len(dims_of(a))))

    def rest(v: ir.Value) -> list[int]:
        return [d for i, d in enumerate(dims_of(v)) if i != axis]

    fitting = [v for v in m.values[::-1] if len(dims_of(v)) == len(dims_of(a)) and rest(v) == rest(a)]
    m.add("Concat", [a, m.draws.pick(fitting)], axis=axis)


def padding(m: Making) -> None:
    x = ranked(m, 2, 3, 4)
    pads = [m.draws.pick([0, 1]) for _ in range(2 * len(dims_of(x)))]
    m.add("Pad", [x, m.constant(np.array(pads, np.int64))], mode=m.draws.pick(["constant", "edge"]))


def gathering(m: Making) -> None:
    x = ranked(m, 1, 2, 3, 4)
    axis = m.draws.pick(range(len(dims_of(x))))
    found = m.draws.rng.integers(0, dims_of(x)[axis], 3)
    m.add("Gather", [x, m.constant(found.astype(np.int64))], axis=axis)


STEPS: tuple[Callable[[Making], None], ...] = (
    unary, binary, convolution, product, pooling, reduction, softmax, transposition, reshaping, cutting, joining,
    padding, clip, normalization, upsampling, gathering, attention,
)  # fmt: skip


def graph(number: int, scheme: str, device: str | None, seed: int = 0, choices: Sequence[int] | None = None,
          state: bool = False, known: frozenset[str] | None = None) -> tuple[Case, GraphOrigin] | None:  # fmt: skip
    """One random graph as a case, of the kinds `known` (None: all); None where the choices give none."""
    draws = Draws([seed, 7 + state, number], choices)
    m = Making(draws, known=None if state else known)
    try:
        case = _stateful(m, number, scheme, device) if state else _plain(m, number, scheme, device)
    except INVALID:
        return None
    return case, GraphOrigin(number, scheme, state, tuple(draws.made), known)


def single_steps(device: str | None, seed: int = 0) -> list[tuple[Case, frozenset[str]]]:
    """Graphs of a single step, some of each, with their kinds."""
    found = []
    for place, step in enumerate(STEPS):
        for number in range(SHOWN):
            m = Making(Draws([seed, place, number], turn=number), step=step.__name__)
            try:
                m.input(m.draws.pick(SIZES))
                step(m)
                case = _finished(m, f"step-{place}-{number}", "float32", device)
            except INVALID:
                continue
            found.append((case, frozenset(m.kinds)))
    return found


def vocabulary(
    singles: Sequence[tuple[Case, frozenset[str]]], scheme: str, taken: Callable[[Case], bool]
) -> frozenset[str]:
    """The kinds of steps that the target takes alone: a random graph of any of them is refused where few are taken,
    and shows nothing."""
    found: frozenset[str] = frozenset()
    for case, kinds in singles:
        if not kinds <= found and taken(replace(case, scheme=scheme)):
            found |= kinds
    return found


def _grown(m: Making, steps: int) -> None:
    """Add `steps` steps; where some kinds are left out, those do not count."""
    done = 0
    for _ in range(steps if m.known is None else TRIES * steps):
        before, values = list(m.model.graph), list(m.values)
        try:
            step = m.draws.pick(STEPS)
            m.step = step.__name__
            step(m)
            done += 1
        except INVALID:
            m.values = values
            for node in list(m.model.graph)[len(before) :][::-1]:
                m.model.graph.remove(node, safe=False)
        if done == steps:
            return


def _plain(m: Making, number: int, scheme: str, device: str | None) -> Case:
    m.input(m.draws.pick(SIZES))
    if m.draws.flip(3):
        m.input(dims_of(m.values[0]))
    steps = m.draws.pick([1, 2, 3, 4, 6, 8])
    _grown(m, steps)
    return _finished(m, f"graph-{number:04}", scheme, device)


def _finished(m: Making, name: str, scheme: str, device: str | None) -> Case:
    used = [v for v in m.values if v.producer() is not None and not v.uses()]
    if not used:
        raise Impossible("no output")
    m.model.graph.outputs.extend(used[:4])
    _pruned(m)
    return _case(m, name, scheme, device)


def _stateful(m: Making, number: int, scheme: str, device: str | None) -> Case:
    """y, s' = f(x, s): some operators over the sum of the input and the state, both of one shape."""
    dims = m.draws.pick([[1, 3], [2, 4], [1, 2, 3]])
    x, s = m.input(dims), m.input(dims)
    mixed = m.add("Add", [x, m.add("Mul", [s, m.constant(np.float32(0.5))])])
    kept = m.add(m.draws.pick(["Tanh", "Sigmoid", "Relu"]), [mixed])
    out = m.add(m.draws.pick(["Neg", "Abs", "Relu"]), [m.draws.pick([kept, mixed])])
    m.model.graph.outputs.extend([out, kept])
    steps = m.draws.pick([3, 2, 4])
    given = [data(m.draws.rng, dims, "float32") for _ in range(steps)]
    state, found = np.zeros(dims, np.float32), []
    for each in given:
        answer = results(m.model, {x.name or "": each, s.name or "": state})
        found.append(answer[out.name or ""])
        state = answer[kept.name or ""]
    case = _case(m, f"state-{number:04}", scheme, device)
    return Case(
        case.name, "state", case.model, {x.name or "": np.stack(given)}, {out.name or "": np.stack(found)},
        level="graphs", expects=EITHER, scheme=scheme, device=device, relative=case.relative, steps=steps,
        options={"state": f"{s.name}:{kept.name}"}, origin="state",
    )  # fmt: skip


def _pruned(m: Making) -> None:
    """Without inputs and constants that nothing reads."""
    g.remove_dead(m.model.graph)
    for value in list(m.model.graph.inputs):
        if not value.uses():
            m.model.graph.inputs.remove(value)
            m.inputs.pop(value.name or "")


def _case(m: Making, name: str, scheme: str, device: str | None) -> Case:
    ops = [n.op_type for n in m.model.graph]
    return Case(
        name=name,
        op=ops[-1] if len(ops) == 1 else f"{len(ops)} operators",
        model=to_bytes(m.model),
        inputs=m.inputs,
        outputs=results(m.model, m.inputs),
        level="graphs",
        scheme=scheme,
        device=device,
        relative=RELATIVE.get(scheme, RELATIVE["float32"]),
        origin=" ".join(ops),
    )


def graphs(
    count: int,
    schemes: Sequence[str],
    device: str | None,
    seed: int = 0,
    known: frozenset[str] | None = None,
    taken: Callable[[Case], bool] = lambda case: True,
) -> Iterator[tuple[Case, GraphOrigin]]:
    """`count` random graphs, one in four by the static schemes among `schemes` in turn and the others by the float
    ones, where there are both; of the latter one in ten with state. Half of the graphs are of `known` kinds and,
    where a few draws give one, `taken` as a whole."""
    floats, static = [[s for s in schemes if (s in STATIC) == kind] for kind in (False, True)]
    made, number = 0, 0
    while made < count and number < 10 * count:
        integers = bool(static) and (not floats or number % 4 == 3)
        offered = static if integers else floats
        scheme = offered[number // 4 % len(offered)]
        state = not integers and number % 10 == 8
        plain = state or number % 8 >= 4
        for attempt in range(1 if plain else TRIES):
            place = number + attempt * AGAIN
            found = graph(place, scheme, device, seed, state=state, known=None if plain else known)
            if plain or (found is not None and taken(found[0])):
                break
        number += 1
        if found is not None:
            made += 1
            yield found
