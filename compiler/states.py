"""State that an artifact keeps itself: pairs of an input and the output that becomes it at the next step.

Asked for by the option `state=IN:OUT,IN2:OUT2`. Such inputs and outputs are no part of the artifact's interface;
every state begins with zeros. One with a free size (a cache of keys and values) begins with nothing along it and
grows, where a target takes that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from tapeout.compiler.errors import UsageError
from tapeout.compiler.ir import graph as g
from tapeout.compiler.metrics import Array
from tapeout.compiler.rewriting import Changes
from tapeout.compiler.verification import Adapter

OPTION = "state"
EXAMPLE = "state=IN:OUT, the names of an input and of the output that follows it"


def states(model: ir.Model, options: Mapping[str, str]) -> dict[str, str]:
    """The pairs of input and output that the option names, {} where it is not given.

    Raises UsageError where a name is not in the model's interface or a pair does not fit together.
    """
    text = options.get(OPTION)
    if text is None:
        return {}
    inputs = {v.name or "": v for v in model.graph.inputs}
    outputs = {v.name or "": v for v in model.graph.outputs}
    found: dict[str, str] = {}
    for part in text.split(","):
        start, end = _pair(part.strip(), inputs, outputs)
        if start in found or end in found.values():
            raise UsageError(f"option state names '{start if start in found else end}' twice")
        _fits(inputs[start], outputs[end])
        found[start] = end
    if len(found) == len(outputs):
        raise UsageError("option state leaves the model no output", hint="name an output that is not a state")
    return found


def _pair(text: str, inputs: Mapping[str, ir.Value], outputs: Mapping[str, ir.Value]) -> tuple[str, str]:
    """Names may hold colons: the one that separates is the one with an input before and an output behind."""
    places = [i for i, c in enumerate(text) if c == ":"]
    if not places:
        raise UsageError(f"option state: '{text}', expected {EXAMPLE}")
    for place in places:
        start, end = text[:place], text[place + 1 :]
        if start in inputs and end in outputs:
            return start, end
    start, _, end = text.partition(":")
    if not any(text[:i] in inputs for i in places):
        raise UsageError(f"option state: no input '{start}'; the model has {', '.join(inputs) or 'none'}")
    raise UsageError(f"option state: no output '{end}'; the model has {', '.join(outputs)}")


def _fits(first: ir.Value, last: ir.Value) -> None:
    before, after = g.dims(first), g.dims(last)
    what = f"option state: '{first.name}' to '{last.name}'"
    if first.dtype != last.dtype:
        raise UsageError(f"{what}: the input is {first.dtype}, the output {last.dtype}")
    if before is None or after is None or not _may_follow(before, after):
        raise UsageError(f"{what}: the input has shape {_text(before)}, the output {_text(after)}")


def _may_follow(before: Sequence[int | str], after: Sequence[int | str]) -> bool:
    """Whether sizes are the same where those of the input are fixed."""
    if len(before) != len(after):
        return False
    return all(a == b for a, b in zip(before, after, strict=True) if isinstance(a, int))


def growing(model: ir.Model, pairs: Mapping[str, str]) -> dict[str, str]:
    """The names of free sizes of states, with what each is a step later; raises UsageError where a size is also one
    of another input: then nothing says what it begins with."""
    inputs = {v.name or "": g.dims(v) or () for v in model.graph.inputs}
    outputs = {v.name or "": g.dims(v) or () for v in model.graph.outputs}
    own = {d for name, shape in inputs.items() if name not in pairs for d in shape}
    found: dict[str, str] = {}
    for start, end in pairs.items():
        for before, after in zip(inputs[start], outputs[end], strict=True):
            if isinstance(before, int):
                continue
            if before in own:
                raise UsageError(
                    f"option state: '{start}' has the free size '{before}', which other inputs have too",
                    hint=f"bind it: --shape {start}={_bound(inputs[start], own)}",
                )
            found[before] = str(after)
    return found


def _bound(shape: Sequence[int | str], free: set[int | str]) -> str:
    return ",".join("1" if d in free and not isinstance(d, int) else str(d) for d in shape)


def step_sizes(
    model: ir.Model, pairs: Mapping[str, str], sizes: Mapping[str, int]
) -> Iterator[dict[str, int]]:
    """The free sizes of the inputs step by step, where those that are no states' are `sizes`. Raises UsageError
    where nothing says how a state grows."""
    from tapeout.compiler.ir.dimensions import Undecided, bind, parse

    grows = growing(model, pairs)
    wanted = {d for v in model.graph.inputs for d in g.dims(v) or () if not isinstance(d, int)}

    def number(text: str, known: Mapping[str, int]) -> int:
        try:
            return bind(parse(text), known)
        except (Undecided, KeyError, ValueError, SyntaxError, ZeroDivisionError):
            return known[text]

    now = {**sizes, **dict.fromkeys(grows, 0)}
    while True:
        try:
            yield {**now, **{d: number(d, now) for d in wanted}}
            now = {**now, **{name: number(after, now) for name, after in grows.items()}}
        except KeyError as error:
            raise UsageError(
                f"nothing says how large '{error.args[0]}' is from step to step",
                hint="name the sizes of inputs so that they fit together: --shape NAME=...",
            ) from error


def _text(dims: Sequence[int | str] | None) -> str:
    return "unknown" if dims is None else f"[{', '.join(map(str, dims))}]"


@dataclass(frozen=True)
class CheckStates:
    """Holds the option against the model before anything is rewritten."""

    options: Mapping[str, str]
    grows: bool = False  # whether the target takes states with free sizes
    name: str = "states"

    def __call__(self, model: ir.Model) -> Changes:
        pairs = states(model, self.options)
        growing(model, pairs)
        for value in model.graph.inputs:
            if value.name in pairs and not self.grows and g.static_dims(value) is None:
                raise UsageError(
                    f"option state: '{value.name}' to '{pairs[value.name]}': the shape {_text(g.dims(value))} is not "
                    "fixed",
                    hint=f"bind it: --shape {value.name}=...",
                )
        return Changes(0)


def zeros(model: ir.Model, pairs: Mapping[str, str]) -> dict[str, Array]:
    """What every state begins with."""
    found = {}
    for value in model.graph.inputs:
        shape = g.dims(value)
        if value.name and value.name in pairs and shape is not None and value.dtype is not None:
            sizes = [d if isinstance(d, int) else 0 for d in shape]
            found[value.name] = np.zeros(sizes, value.dtype.numpy())
    return found


def stateless(model: ir.Model, pairs: Mapping[str, str]) -> ir.Model:
    """A model with the inputs that are no states, and nothing else, to read or draw inputs for; weights that
    limit what an input may hold are looked up in `model`."""
    values = [
        ir.Value(name=v.name, type=v.type, shape=v.shape) for v in model.graph.inputs if v.name not in pairs
    ]
    graph = ir.Graph(values, [], nodes=[], opset_imports=dict(model.graph.opset_imports))
    return ir.Model(graph, ir_version=model.ir_version or 10)


@dataclass(frozen=True)
class Feedback(Adapter):
    """An adapter for an artifact that keeps its states: the source gets them step by step, from its own
    outputs. Steps must come in order, each once."""

    perms: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    pairs: Mapping[str, str] = field(default_factory=dict)
    now: dict[str, Array] = field(default_factory=dict)

    def inputs(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        plain = {k: v for k, v in feed.items() if k not in self.pairs}
        return super().inputs(plain) | self.now

    def outputs(self, values: Mapping[str, Array]) -> dict[str, Array]:
        self.now.update({start: values[end] for start, end in self.pairs.items()})
        kept = set(self.pairs.values())
        return super().outputs({k: v for k, v in values.items() if k not in kept})
