"""What to do about a violation that the declaration itself gives no advice for."""

from __future__ import annotations

import re

from tapeout.compiler.declaration.match import NOT_TAKEN, REQUIRED, UNKNOWN, Violation

FLOATS = ("float16", "bfloat16", "float32", "float64")


def suggestion(violation: Violation, op: str) -> str:
    """One sentence in the imperative, without a full stop: "keep stride at most 3: 4 is found"."""
    v = violation
    head, of, port = v.what.rpartition(" of ")
    if v.found == UNKNOWN:
        subject = port if of and head == "rank" else v.what.removeprefix("constant ")
        return f"make {subject} known: fix the free sizes with --shape, or make it a constant of the model"
    if v.what.startswith("constant ") or (v.expected == REQUIRED and "constant" in v.what):
        subject = v.what.removeprefix("constant ")
        return f"store {subject} in the model as a constant, or fix the sizes that it is computed from with --shape"
    if of and head == "type":
        return _cast(port, v.expected, v.found)
    if of and head == "rank":
        return f"reshape {port} to a rank that is {_plain(v.expected)} before {op}, and its result back"
    if of and head in ("zero point", "scale", "quantization", "quantization axis"):
        wanted = _plain(v.expected)
        return (
            f"give {port} a {head} that is {wanted}, or leave the choice to tapeout: export the float model "
            "with --quantize"
        )
    if v.expected == REQUIRED and v.found == "missing":
        return f"give the input {v.what}: a constant that changes nothing will do"
    if v.expected == REQUIRED:
        return f"write {op} so that it has {v.what}"
    if v.expected == NOT_TAKEN:
        return f"write {op} without {v.what}, or do that part in an operator of its own"
    return f"change {v.what} from {v.found} to what is {_plain(v.expected)}, or split {op} into steps that keep it"


def without_kernel(op: str, target: str, scheme: str | None = None) -> str:
    """The same for an operator that no row is for."""
    if scheme is not None:
        return f"leave {op} in floating point: a rule of a recipe with scheme = 'float32'"
    return (
        f"write {op} in operators that {target} has kernels for, or leave it to the host with --fallback host"
    )


def _cast(port: str, expected: str, found: str) -> str:
    wanted = [w for w in re.split(r", | or ", expected.removeprefix("must be ")) if w]
    nearest = next(
        (w for w in wanted if (w in FLOATS) == (found in FLOATS)), wanted[0] if wanted else expected
    )
    if found in FLOATS and nearest not in FLOATS:
        return (
            f"quantize {port} to {nearest}: --quantize with calibration data, or QuantizeLinear in the model"
        )
    return f"cast {port} to {nearest}, in the model or where it is made"


def _plain(expected: str) -> str:
    return expected.removeprefix("must be ").replace("must not be ", "not ")
