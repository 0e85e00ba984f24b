"""Artifacts that other tools made: their inputs and outputs fitted to a model's by name, shape and axis order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import onnx_ir as ir

from tapeout.compiler.errors import UsageError
from tapeout.compiler.metrics import Array, Difference, difference, is_inexact
from tapeout.compiler.verification import FLOAT32, SPREAD, Entry, Verification

# An artifact of another tool that computes with integers was calibrated on data that nobody here knows, by a
# recipe that nobody here knows: no tolerance follows, only the user's own bound says what is right.
QUANTIZED = math.inf


@dataclass(frozen=True)
class Port:
    """An input or output: `shape` has None where a size is free; `scale` is not 0 where integers stand for
    x = (q - zero) * scale; `tensor` is what the artifact calls it inside, where that is another name."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    scale: float = 0.0
    zero: int = 0
    tensor: str = ""

    @property
    def carried(self) -> str:
        """The dtype of what the port stands for."""
        return "float32" if self.scale else self.dtype

    def __str__(self) -> str:
        sizes = ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"'{self.name}' {self.dtype}[{sizes}]"


@runtime_checkable
class Ported(Protocol):
    """A runner that tells what its artifact takes and gives, and the names of its tensors."""

    runtime: str
    device: str
    quantized: bool

    def run(self, inputs: Mapping[str, Array], /) -> dict[str, Array]: ...

    def tensors(self, inputs: Mapping[str, Array], names: Sequence[str], /) -> dict[str, Array]: ...

    def ports(self) -> tuple[list[Port], list[Port]]: ...

    def names(self) -> list[str]: ...


def ports_of(values: Iterable[ir.Value]) -> list[Port]:
    """The inputs or outputs of a model as ports."""
    from tapeout.compiler.ir import graph as g

    found = []
    for value in values:
        dims = g.dims(value)
        if dims is None or value.dtype is None:
            raise UsageError(
                f"'{value.name}' has no known rank", hint=f"say its shape: --shape {value.name}=1,3,224,224"
            )
        shape = tuple(d if isinstance(d, int) else None for d in dims)
        found.append(Port(value.name or "", str(value.dtype.numpy().name), shape))
    return found


@dataclass(frozen=True)
class Fit:
    """The model's port `ours` is the artifact's `theirs`, its axes permuted: theirs = transpose(ours, perm)."""

    ours: Port
    theirs: Port
    perm: tuple[int, ...]

    def there(self, array: Array) -> Array:
        """The artifact's array from the model's."""
        array = array.transpose(self.perm)
        if self.theirs.scale and np.dtype(self.ours.carried).kind == "f":
            info = np.iinfo(self.theirs.dtype)
            array = np.clip(np.rint(array / self.theirs.scale) + self.theirs.zero, info.min, info.max)
        return array.astype(self.theirs.dtype)

    def back(self, array: Array) -> Array:
        """The model's array from the artifact's."""
        if self.theirs.scale and np.dtype(self.ours.carried).kind == "f":
            array = (array.astype(np.float64) - self.theirs.zero) * self.theirs.scale
        return array.transpose(np.argsort(self.perm)).astype(self.ours.carried)


def fit(ours: Sequence[Port], theirs: Sequence[Port], what: str) -> list[Fit]:
    """Every port of `ours` with its counterpart: that of the same name, outside or else inside the artifact, else
    the first in order that fits.

    Raises UsageError with both sides where one has none.
    """
    left = list(theirs)
    found: dict[str, Fit] = {}
    for name_of in (lambda p: p.name, lambda p: p.tensor, None):
        for port in ours:
            if port.name in found:
                continue
            for other in left:
                if name_of is not None and name_of(other) != port.name:
                    continue
                perm = _perm(port, other)
                if perm is not None:
                    found[port.name] = Fit(port, other, perm)
                    left.remove(other)
                    break
    missing = [p for p in ours if p.name not in found]
    if missing or (what == "input" and left):
        sides = ["; ".join(map(str, side)) for side in (theirs, ours)]
        raise UsageError(
            f"the artifact's {what}s do not fit the model's: {sides[0]} for {sides[1]}",
            hint="--shape binds sizes of the model; both must come from the same network",
        )
    return [found[p.name] for p in ours]


def _perm(ours: Port, theirs: Port) -> tuple[int, ...] | None:
    """How the artifact orders the axes of `ours`: as they are, channels last, or channels first."""
    kinds = {np.dtype(ours.carried).kind, np.dtype(theirs.carried).kind}
    if len(kinds) > 1 and kinds != {"i", "u"}:
        return None
    rank = len(ours.shape)
    orders = [tuple(range(rank))]
    if rank > 2:
        orders += [(0, *range(2, rank), 1), (0, rank - 1, *range(1, rank - 1))]
    for perm in orders:
        sizes = [ours.shape[axis] for axis in perm]
        if len(theirs.shape) == rank and all(
            a is None or b is None or a == b or (k == 0 and b == 1)
            for k, (a, b) in enumerate(zip(sizes, theirs.shape, strict=True))
        ):
            return perm
    return None


class Fitted:
    """`runner` with the inputs and outputs of a model. A batch that it takes one by one is cut up."""

    def __init__(self, runner: Ported, inputs: Sequence[Port], outputs: Sequence[Port]) -> None:
        takes, gives = runner.ports()
        self.runner = runner
        self.runtime, self.device = runner.runtime, runner.device
        self.inputs, self.outputs = fit(inputs, takes, "input"), fit(outputs, gives, "output")

    def feed(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """What the artifact is given for the model's `inputs`."""
        return {f.theirs.name: f.there(inputs[f.ours.name]) for f in self.inputs}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The model's outputs as the artifact computes them."""
        feed = self.feed(inputs)
        single = [f.theirs for f in self.inputs if f.theirs.shape and f.theirs.shape[0] == 1]
        count = max((len(feed[p.name]) for p in single), default=1)
        if count == 1:
            results = [self.runner.run(feed)]
        else:
            names = {p.name for p in single}
            results = [
                self.runner.run(
                    {k: v[i : i + 1] if k in names and len(v) == count else v for k, v in feed.items()}
                )
                for i in range(count)
            ]
        return {
            f.ours.name: f.back(
                results[0][f.theirs.name]
                if count == 1
                else np.concatenate([r[f.theirs.name] for r in results])
            )
            for f in self.outputs
        }


def hold(
    run: Callable[[Mapping[str, Array]], tuple[dict[str, Array], dict[str, float]]],
    reference: str,
    runners: Sequence[Fitted],
    samples: Iterable[Mapping[str, Array]],
    data: str,
    least: float = FLOAT32,
) -> Verification:
    """Run every sample through the source and all `runners`. `run` gives the source's outputs, and how far its own
    answers lie apart; `least` is allowed in any case. What computes with integers has no bound but the user's
    own."""
    result = Verification(data=data, reference=reference)
    result.proven = [f"{r.runtime} on {r.device}" for r in runners]
    worst: dict[tuple[str, int], Entry] = {}
    for index, feed in enumerate(samples):
        expected, spread = run(feed)
        result.samples = index + 1
        for (place, runner), name in itertools.product(enumerate(runners), expected):
            found = runner.run(feed)[name]
            if not is_inexact(expected[name]):
                allowed = 0.0
            elif runner.runner.quantized:
                allowed = QUANTIZED
            else:
                allowed = max(least, SPREAD * spread.get(name, 0.0))
            entry = Entry(
                name, runner.runtime, runner.device, allowed, _same_type(expected[name], found), index
            )
            known = worst.get((name, place))
            if known is None or entry.badness > known.badness:
                worst[name, place] = entry
    result.entries = list(worst.values())
    return result


def _same_type(expected: Array, found: Array) -> Difference:
    return difference(
        expected, found.astype(expected.dtype) if found.dtype.kind == expected.dtype.kind else found
    )


def model_of(inputs: Sequence[Port]) -> ir.Model:
    """A model with these inputs and nothing else, to draw or read inputs for."""
    values = [
        ir.Value(
            name=p.name,
            type=ir.TensorType(ir.DataType.from_numpy(np.dtype(p.carried))),
            shape=ir.Shape([f"{p.name}.{i}" if d is None else d for i, d in enumerate(p.shape)]),
        )
        for p in inputs
    ]
    return ir.Model(ir.Graph(values, [], nodes=[], opset_imports={"": 25}), ir_version=10)


def carried(ports: Sequence[Port]) -> list[Port]:
    """The same ports, integers that stand for numbers replaced by these numbers."""
    return [Port(p.name, p.carried, p.shape) for p in ports]
