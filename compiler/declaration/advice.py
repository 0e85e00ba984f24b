"""What to do about a violation that the declaration itself gives no advice for."""

from __future__ import annotations

import re

from tapeout.compiler.declaration.match import NOT_TAKEN, REQUIRED, UNKNOWN, Violation

_KINDS = (("bfloat", "float"), ("float", "float"), ("uint", "uint"), ("int", "int"), ("bool", "uint"))


def suggestion(violation: Violation, op: str) -> str:
    """What to do, in the imperative and without a full stop: "change stride from 4 to at most 3, or split Conv into
    steps that keep it"."""
    v = violation
    head, of, port = v.what.rpartition(" of ")
    expected = _plain(v.expected)
    if v.found == UNKNOWN:
        return "fix the free sizes that it follows from with --shape, or give what it is computed from as a constant"
    if v.what.startswith("constant ") or (v.expected == REQUIRED and "constant" in v.what):
        subject = v.what.removeprefix("constant ")
        return f"store {subject} in the model as a constant, or fix the sizes that it is computed from with --shape"
    if of and head == "type":
        return _cast(port, expected, v.found)
    if of and head == "rank":
        return f"reshape {port} to rank {expected} in front of {op}, and its result back"
    if of and head in ("zero point", "scale", "quantization", "quantization axis"):
        return f"give {port} the {head} {expected}, or leave it to tapeout: export the float model with --quantize"
    if v.expected == REQUIRED:
        if v.found == "missing" and v.what.isidentifier():  # a port
            return f"give {v.what}: a constant that changes nothing will do"
        return f"write {op} so that it has {v.what}"
    if v.expected == NOT_TAKEN:
        return f"write {op} without {v.what}, or do that part in an operator of its own"
    return f"change {v.what} from {v.found} to {expected}, or split {op} into steps that keep it"


def without_kernel(op: str, target: str, scheme: str | None = None) -> str:
    """The same for an operator that no row is for."""
    if scheme is not None:
        return f'leave {op} in floating point: a rule of a recipe with scheme = "float32"'
    return (
        f"write {op} in operators that {target} has kernels for, or leave it to the host with --fallback host"
    )


def _cast(port: str, expected: str, found: str) -> str:
    allowed = [w for w in re.split(r", | or ", expected) if w]
    kind, width = _kind(found)
    # Of the same kind, the nearest in width that loses least.
    if kind == "float" and not any(_kind(w)[0] == "float" for w in allowed):
        return f"quantize {port} to {allowed[0]}: --quantize with calibration data, or QuantizeLinear in the model"
    best = min(allowed, key=lambda w: (_far(kind, _kind(w)[0]), _short(width, _kind(w)[1])), default=expected)
    return f"cast {port} to {best}, in the model or where it is made"


def _kind(dtype: str) -> tuple[str, int]:
    digits = re.search(r"\d+", dtype)
    kind = next((k for prefix, k in _KINDS if dtype.startswith(prefix)), dtype)
    return kind, int(digits[0]) if digits else 8


def _far(kind: str, other: str) -> int:
    return 0 if kind == other else 1 if {kind, other} == {"int", "uint"} else 2


def _short(width: int, other: int) -> tuple[bool, int]:
    """What holds all comes first, the narrowest of it; else the widest."""
    return other < width, other if other >= width else -other


def _plain(expected: str) -> str:
    return (
        expected.removeprefix("must be ").removeprefix("exactly ").replace("must not be ", "something but ")
    )
