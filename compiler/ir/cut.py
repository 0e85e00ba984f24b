"""What the user changes of a model's interface first: input shapes fixed, other outputs chosen."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from tapeout.compiler.errors import UsageError
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.shapes import infer


def bind_shapes(model: ir.Model, shapes: Mapping[str, Sequence[int]]) -> None:
    """Fix input shapes: {"x": (1, 3, 224, 224)}. A free dimension that is fixed is fixed wherever it occurs.

    Raises UsageError for an unknown input, another rank, a fixed dimension of another size, or a free one
    that is given two sizes.
    """
    if not shapes:
        return
    inputs = {v.name or "": v for v in model.graph.inputs}
    sizes: dict[str, tuple[int, str]] = {}
    for name, wanted in shapes.items():
        value = inputs.get(name)
        if value is None:
            listed = ", ".join(f"'{n}' {list(g.dims(v) or ())}" for n, v in inputs.items()) or "none"
            raise UsageError(
                f"the model has no input '{name}' to give a shape; its inputs: {listed}",
                hint=_near(name, inputs),
            )
        if any(d < 0 for d in wanted):
            raise UsageError(f"the shape {list(wanted)} given for '{name}' has a negative dimension")
        have = g.dims(value)
        if have is not None and len(have) != len(wanted):
            raise UsageError(
                f"input '{name}' has {len(have)} dimensions {list(have)}, the shape given is {list(wanted)}"
            )
        for old, new in zip(have or (), wanted, strict=False):
            if isinstance(old, int):
                if old != new:
                    raise UsageError(
                        f"input '{name}' is {list(have or ())} in the model, given is {list(wanted)}"
                    )
            elif old != "?":
                known, where = sizes.setdefault(old, (new, name))
                if known != new:
                    raise UsageError(
                        f"the dimension '{old}' is given two sizes: {known} by '{where}', {new} by '{name}'"
                    )
    for value in model.graph.inputs:
        wanted = shapes.get(value.name or "")  # type: ignore[assignment]
        if wanted is not None:
            value.shape = ir.Shape(wanted)
        else:
            _bind(value, sizes)
    for value in model.graph.outputs:
        _bind(value, sizes)
    _forget(model)
    infer(model)


def cut_outputs(model: ir.Model, names: Sequence[str]) -> None:
    """Let the model end at the values `names`, in that order; what only served others goes, inputs included.

    Raises UsageError for a name that no node of the main graph makes.
    """
    if not names:
        return
    made = {v.name: v for node in model.graph for v in node.outputs if v.name}
    inputs = {v.name for v in model.graph.inputs}
    chosen: list[ir.Value] = []
    for name in names:
        value = made.get(name)
        if value is None:
            what = "is an input of the model" if name in inputs else "is no value of the model"
            ends = ", ".join(f"'{v.name}'" for v in model.graph.outputs)
            raise UsageError(f"the output '{name}' {what}; its outputs are {ends}", hint=_near(name, made))
        if value in chosen:
            raise UsageError(f"the output '{name}' is asked for twice")
        chosen.append(value)
    idle = {v for v in model.graph.inputs if not v.uses()}
    model.graph.outputs.clear()
    model.graph.outputs.extend(chosen)
    g.remove_dead(model.graph)
    for value in list(model.graph.inputs):
        if not value.uses() and value not in idle and not value.is_graph_output():
            model.graph.inputs.remove(value)
    infer(model)


def _bind(value: ir.Value, sizes: Mapping[str, tuple[int, str]]) -> None:
    if value.shape is not None:
        value.shape = ir.Shape(
            [
                sizes[str(d.value)][0] if not isinstance(d, int) and str(d.value) in sizes else d
                for d in value.shape
            ]
        )


def _forget(model: ir.Model) -> None:
    """Drop inferred shapes, so that inference starts from the new ones."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for value in node.outputs:
            if not value.is_graph_output() and node.domain == "":
                value.shape = None


def _near(name: str, known: Mapping[str | None, object] | Mapping[str, object]) -> str | None:
    near = difflib.get_close_matches(name, [k for k in known if k], n=3)
    return "did you mean " + " or ".join(f"'{n}'" for n in near) + "?" if near else None
