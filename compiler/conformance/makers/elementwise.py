"""Makers of cases for operators that work element by element, and for activations."""

from __future__ import annotations

from typing import Any

import numpy as np

from tapeout.compiler.conformance.case import Array
from tapeout.compiler.conformance.drafts import NUMPY, Draft, Operand, data
from tapeout.compiler.conformance.draws import KNOWN, Impossible, Maker, Wish
from tapeout.compiler.operators import onnx_interface

SIZES = (2, 3, 1, 4, 5, 7, 8)
FLOATS = ("float32", "float16", "float64")
# What an operator is defined on, or told apart by.
KINDS = {
    "Log": "positive", "Sqrt": "positive", "Reciprocal": "positive", "Asin": "unit", "Acos": "unit",
    "Atanh": "unit", "Neg": "plain", "BitwiseXor": "wide", "BitwiseAnd": "wide", "BitwiseOr": "wide",
    "BitwiseNot": "wide", "Equal": "plain", "Identity": "wide", "Where": "wide",
}  # fmt: skip
# Attributes with values from simple to complex; the first is ONNX's default.
ATTRIBUTES: dict[str, dict[str, tuple[Any, ...]]] = {
    "LeakyRelu": {"alpha": (0.01, 0.2, 0.5)},
    "Elu": {"alpha": (1.0, 0.5)},
    "Selu": {"alpha": (1.67326, 1.2), "gamma": (1.0507, 0.8)},
    "Celu": {"alpha": (1.0, 0.7)},
    "ThresholdedRelu": {"alpha": (1.0, 0.4)},
    "HardSigmoid": {"alpha": (0.2, 0.3), "beta": (0.5, 0.4)},
    "Gelu": {"approximate": ("none", "tanh")},
    "Swish": {"alpha": (1.0, 1.7)},
    "IsInf": {"detect_positive": (1, 0), "detect_negative": (1, 0)},
    "Shrink": {"lambd": (0.5, 0.9), "bias": (0.0, 0.3)},
}


def shape(w: Wish, rank: int, port: str = "", sizes: tuple[int, ...] = SIZES) -> list[int]:
    """A shape whose dimensions keep what the row says about the port's."""

    def names(i: int) -> tuple[str, ...]:
        return f"{port}.dim.{i}", f"{port}.dim.{i - rank}", "batch" if i == 0 else ""

    small = sizes if rank < 5 else sizes[:3]
    return [w.number(names(i), small, low=1) for i in range(rank)]


def free(w: Wish, operand: Operand, names: str = "NMKLPQRS") -> Operand:
    """The operand, in one case of ten with free axes: the first, or any."""
    rank = operand.array.ndim
    if operand.constant or not rank or not w.flip(10):
        return operand
    axes = [0] if w.flip() else [i for i in range(rank) if w.flip()]
    return Operand(operand.array, False, {i: names[i] for i in axes if i < len(names)})


def broadcast(w: Wish, size: list[int]) -> list[int]:
    """A shape that is broadcast to `size`: itself as a rule, else with ones, or without leading axes."""
    if not w.flip(3):
        return list(size)
    cut = w.pick(range(len(size) + 1))
    return [1 if w.flip(3) else d for d in size[cut:]]


def unary(w: Wish, op: str) -> Draft:
    """Op(x)"""
    interface = onnx_interface(op)
    assert interface is not None
    port = interface.inputs[0].name
    name = interface.inputs[0].variable or port
    dtype = w.dtype(name, (port,), ("float32", *FLOATS[1:], "int32", "int8"))
    x = data(w.draws.rng, shape(w, w.rank(port), port), dtype, KINDS.get(op, "plain"))
    if op in ("IsNaN", "IsInf") and x.size:
        x.reshape(-1)[:: 1 + w.pick(range(3))] = w.pick([np.nan, np.inf, -np.inf])
    if op == "Acosh":
        x = (np.abs(x) + 1).astype(x.dtype)
    if op in ("Round", "Floor", "Ceil"):  # the halves, where ways to round differ
        x = np.where(data(w.draws.rng, x.shape, "bool"), np.round(x * 2) / 2, x).astype(x.dtype)
    attributes = {k: w.value(f"attr.{k}", v) for k, v in ATTRIBUTES.get(op, {}).items()}
    return Draft(op, [free(w, Operand(x))], attributes)


def binary(w: Wish, op: str) -> Draft:
    """Op(a, b), the shapes broadcast to each other, one of them constant in one case of three."""
    interface = onnx_interface(op)
    assert interface is not None
    first, second = (p.name for p in (interface.inputs[0], interface.inputs[-1]))
    name = interface.inputs[0].variable or first
    dtype = w.dtype(name, (first,))
    real = dtype.startswith("float")
    size = shape(w, w.rank(first, second), first)
    other = broadcast(w, size)
    rng = w.draws.rng
    a, b = data(rng, size, dtype, KINDS.get(op, "plain")), data(rng, other, dtype, KINDS.get(op, "plain"))
    attributes: dict[str, Any] = {}
    if op in ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual") and a.size and b.size:
        near = np.broadcast_to(b, np.broadcast_shapes(a.shape, b.shape))
        if near.shape == a.shape:  # equal elements, and large ones where a type is narrowed
            a = np.where(data(rng, a.shape, "bool"), near, a).astype(a.dtype)
        if dtype in ("int64", "uint64", "int32"):
            a, b = a * np.array(2**30 + 7, a.dtype), b * np.array(2**30 + 7, b.dtype)
    if op in ("Div", "Mod"):
        b = data(rng, other, dtype, "positive")
        if not dtype.startswith("u") and op == "Mod" and w.flip():
            b = -b
    if op == "Mod":
        attributes["fmod"] = w.value("attr.fmod", (1,) if real else (0, 1))
    if op == "Pow":
        a = data(rng, size, dtype, "positive")
        b = (
            data(rng, other, dtype)
            if real
            else data(rng, other, dtype, "positive") % np.array(4, NUMPY[dtype])
        )
        if w.row is not None and "T1" in w.row.types:
            b = b.astype(NUMPY[w.dtype("T1")])
    if op == "BitShift":
        attributes["direction"] = w.value("attr.direction", ("RIGHT", "LEFT"))
        a = data(rng, size, dtype, "wide")
        b = (np.abs(data(rng, other, "int32")) % 8).astype(NUMPY[dtype])
    if op == "PRelu":
        other = [1] * (len(size) - 1) + size[-1:] if w.flip() and size else other
        b = data(rng, other, dtype)
    swapped = w.flip(4) and op not in ("PRelu", "Pow", "Mod", "Div", "BitShift")
    operands: list[Operand | None] = [*((Operand(b), Operand(a)) if swapped else (Operand(a), Operand(b)))]
    if w.flip(3):
        return Draft(op, operands, attributes).constant(w.pick([1, 0]))
    if w.flip(8) and size:
        names = {i: n for i, n in enumerate("NMKLPQRS"[: len(size)]) if w.flip()}
        made: list[Operand | None] = []
        for operand in (Operand(a), Operand(b)):
            lead = len(size) - operand.array.ndim
            mine = {
                i - lead: n
                for i, n in names.items()
                if i >= lead and operand.array.shape[i - lead] == size[i]
            }
            made.append(Operand(operand.array, False, mine))
        operands = made
    return Draft(op, operands, attributes)


def variadic(w: Wish, op: str) -> Draft:
    """Op(a, b, ...)"""
    count = w.number(("input.count", "data_0.count"), (2, 1, 3), low=1, high=8)
    dtype = w.dtype("T", ("data_0",))
    size = shape(w, w.rank("data_0"), "data_0")
    rng = w.draws.rng
    arrays = [data(rng, size if i == 0 else broadcast(w, size), dtype) for i in range(count)]
    made = Draft(op, [Operand(a) for a in arrays])
    return made.constant(count - 1) if count > 1 and w.flip(3) else made


def where(w: Wish, op: str) -> Draft:
    """Where(condition, x, y)"""
    dtype = w.dtype("T")
    size = shape(w, w.rank("X", "Y"))
    rng = w.draws.rng
    sizes = [broadcast(w, size), size, broadcast(w, size)]
    kind = "wide" if not dtype.startswith("float") else "plain"
    arrays = [data(rng, sizes[0], "bool"), *(data(rng, s, dtype, kind) for s in sizes[1:])]
    made = Draft(op, [Operand(a) for a in arrays])
    return made.constant(2) if w.flip(3) else made


def clip(w: Wish, op: str) -> Draft:
    """Clip(x, min, max): constants as a rule, each may be left out."""
    dtype = w.dtype("T")
    x = data(w.draws.rng, shape(w, w.rank("input"), "input"), dtype)
    bounds: list[Operand | None] = []
    for name, options in (("min.value", (0, -1, 2)), ("max.value", (6, 1, 3))):
        value = w.value(name, options)
        number = np.array(value if not isinstance(value, str) else 0)
        wrapped = np.maximum(number, 0 if dtype[0] == "u" else number).astype(NUMPY[dtype])
        absent = w.flip(5)
        bounds.append(None if absent else Operand(np.asarray(wrapped), constant=not w.flip(6)))
    return Draft(op, [free(w, Operand(x)), *bounds])


def softmax(w: Wish, op: str) -> Draft:
    """Softmax, LogSoftmax, Hardmax along an axis."""
    rank = w.rank("input", low=1)
    back = w.number("axis.from_end", tuple(range(1, rank + 1)), low=1, high=rank)
    x = data(w.draws.rng, shape(w, rank, "input"), w.dtype("T"))
    return Draft(op, [free(w, Operand(x))], {"axis": w.pick([-back, rank - back])})


def cast(w: Wish, op: str) -> Draft:
    """Cast(x) to another type, of values that both hold."""
    before = w.dtype("T1", ("input",), KNOWN)
    after = w.dtype("T2", ("output",), KNOWN)
    rng, size = w.draws.rng, shape(w, w.rank("input"), "input")
    small = data(rng, size, before, "positive" if "u" in (before[0], after[0]) else "plain")
    stated = _dtype_number(after)
    made = Draft(op, [free(w, Operand(small))], {"to": stated})
    rule = w.row.ports.get("input") if w.row is not None else None
    constant = rule is not None and rule.role == "const"
    if w.limits.get("input.constant"):
        constant = bool(w.value("input.constant", (False, True)))
    return made.constant(0) if constant else made


def _dtype_number(name: str) -> int:
    from tapeout.compiler.operators import DTYPES

    return int(DTYPES[name])


def einsum(w: Wish, op: str) -> Draft:
    """Einsum of two tensors."""
    text = w.pick(["ij,jk->ik", "bij,bjk->bik", "ij,ij->i", "bhid,bhjd->bhij", "ij->ji"])
    sizes = {c: w.pick([2, 3, 4]) for c in sorted(set(text) - set(",->"))}
    arrays = [
        data(w.draws.rng, [sizes[c] for c in part], w.dtype("T")) for part in text.split("->")[0].split(",")
    ]
    return Draft(op, [Operand(a) for a in arrays], {"equation": text})


def generic(w: Wish, op: str) -> Draft:
    """Any operator of ONNX whose inputs may all have one shape: what its schema says, attributes at their
    defaults."""
    interface = onnx_interface(op)
    if interface is None:
        raise Impossible(f"no maker for {op}")
    rank = w.rank(*(p.name for p in interface.inputs))
    size = shape(w, rank)
    arrays: list[Array] = []
    for port in interface.inputs:
        if port.kind == "optional":
            break
        dtype = w.dtype(port.variable or port.name, (port.name,))
        arrays.append(data(w.draws.rng, size, dtype, KINDS.get(op, "plain")))
    return Draft(
        op, [Operand(a) for a in arrays], {}, len([p for p in interface.outputs if p.kind == "single"])
    )


MAKERS: dict[str, Maker] = {
    **dict.fromkeys(
        ("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "HardSigmoid", "HardSwish", "Gelu",
         "Sigmoid", "Tanh", "Softplus", "Softsign", "Mish", "Swish", "Shrink", "Abs", "Neg", "Sign", "Exp", "Log",
         "Sqrt", "Reciprocal", "Sin", "Cos", "Tan", "Sinh", "Cosh", "Asin", "Acos", "Atan", "Asinh", "Acosh",
         "Atanh", "Erf", "Floor", "Ceil", "Round", "Not", "BitwiseNot", "IsNaN", "IsInf", "Identity"), unary
    ),
    **dict.fromkeys(
        ("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual",
         "And", "Or", "Xor", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "PRelu"), binary
    ),
    **dict.fromkeys(("Max", "Min", "Sum", "Mean"), variadic),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), softmax),
    "Where": where,
    "Clip": clip,
    "Cast": cast,
    "Einsum": einsum,
}  # fmt: skip
