"""What the user changes of a model's interface first: input shapes fixed, other outputs chosen."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from tapeout.compiler.errors import UsageError
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.shapes import infer


def bind_shapes(model: ir.Model, shapes: Mapping[str, Sequence[int | str]]) -> None:
    """State input shapes: {"x": (1, 3, 224, 224)} fixes them, {"x": ("N", 3, 224, 224)} keeps the first size
    free under the name N, -1 and "?" keep one as it is.

    A free dimension that is fixed or named is so wherever it occurs; one name means one size. Raises UsageError
    for an unknown input, another rank, a fixed dimension of another size or set free, or a free one that is
    given two sizes or names.
    """
    if not shapes:
        return
    inputs = {v.name or "": v for v in model.graph.inputs}
    given: dict[str, tuple[int | str, str]] = {}
    for name, wanted in shapes.items():
        value = inputs.get(name)
        if value is None:
            listed = ", ".join(f"'{n}' {shape_text(g.dims(v) or ())}" for n, v in inputs.items()) or "none"
            raise UsageError(
                f"the model has no input '{name}' to give a shape; its inputs: {listed}",
                hint=_near(name, inputs),
            )
        have = g.dims(value)
        for size in wanted:
            if size not in (have or ()):
                _readable(name, size)
        if have is not None and len(have) != len(wanted):
            raise UsageError(
                f"input '{name}' has {len(have)} dimensions {shape_text(have)}, the shape given is "
                f"{shape_text(wanted)}"
            )
        for old, new in zip(have or (), wanted, strict=False):
            _give(given, name, old, new, have or (), wanted)
    for value in model.graph.inputs:
        stated = shapes.get(value.name or "")
        if stated is not None:
            have = g.dims(value) or ("?",) * len(stated)
            made = [_after(o, n, given) for o, n in zip(have, stated, strict=True)]
            value.shape = ir.Shape([None if d == "?" else d for d in made])
        else:
            _bind(value, given)
    for value in model.graph.outputs:
        _bind(value, given)
    _forget(model)
    infer(model)


def shape_text(dims: Sequence[int | str]) -> str:
    """A shape for people: "[N, 3, 64, ?]"."""
    return f"[{', '.join(map(str, dims))}]"


def _kept(size: int | str) -> bool:
    return size in (-1, "?")


def _readable(name: str, size: int | str) -> None:
    if isinstance(size, int):
        if size < -1:
            raise UsageError(f"the shape given for '{name}' has the negative dimension {size}")
    elif size != "?" and not size.isidentifier():
        raise UsageError(
            f"the shape given for '{name}' has the dimension '{size}'",
            hint="a dimension is a number, a name such as N, or ? to leave it free",
        )


def _give(
    given: dict[str, tuple[int | str, str]],
    name: str,
    old: int | str,
    new: int | str,
    have: Sequence[int | str],
    wanted: Sequence[int | str],
) -> None:
    """Note what the dimension `old` of input `name` shall be."""
    if isinstance(old, int):
        if isinstance(new, int) and new not in (old, -1):
            raise UsageError(
                f"input '{name}' is {shape_text(have)} in the model, given is {shape_text(wanted)}"
            )
        if isinstance(new, str) and new != "?":
            raise UsageError(
                f"input '{name}' is {shape_text(have)} in the model: its size {old} is fixed and cannot be "
                f"the free '{new}'",
                hint="export the model itself with that dimension free",
            )
    elif old != "?" and not _kept(new):
        known, where = given.setdefault(old, (new, name))
        if known != new:
            kind = "sizes" if isinstance(known, int) and isinstance(new, int) else "meanings"
            raise UsageError(
                f"the dimension '{old}' is given two {kind}: {known} by '{where}', {new} by '{name}'"
            )


def _after(old: int | str, new: int | str, given: Mapping[str, tuple[int | str, str]]) -> int | str:
    if not _kept(new):
        return new
    return given[old][0] if isinstance(old, str) and old in given else old


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


def _bind(value: ir.Value, sizes: Mapping[str, tuple[int | str, str]]) -> None:
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
