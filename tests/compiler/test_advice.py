"""Advice that follows from a violation alone."""

from __future__ import annotations

import pytest

from tapeout.compiler.declaration.advice import suggestion
from tapeout.compiler.declaration.match import NOT_TAKEN, REQUIRED, UNKNOWN, Violation


@pytest.mark.parametrize(
    ("what", "expected", "found", "says"),
    [
        ("stride", "at most 3", "4", "change stride from 4 to at most 3, or split Conv"),
        ("dilation", "exactly 1", "2", "change dilation from 2 to 1, or"),
        ("mode", "must not be cubic", "cubic", "change mode from cubic to something but cubic"),
        ("type of X", "must be uint8, uint16 or uint32", "uint64", "cast X to uint32,"),
        ("type of X", "must be float32 or int32", "float64", "cast X to float32,"),
        ("type of X", "must be float16 or float32", "bfloat16", "cast X to float16,"),
        ("type of X", "must be int32 or int64", "uint8", "cast X to int32,"),
        ("type of X", "must be int8 or int16", "float32", "quantize X to int8: --quantize"),
        ("rank of X", "2 to 4", "5", "reshape X to rank 2 to 4 in front of Conv"),
        ("rank of X", "2 to 4", UNKNOWN, "--shape"),
        ("constant W", REQUIRED, "missing", "store W in the model as a constant"),
        ("B", REQUIRED, "missing", "give B: a constant"),
        (
            "resizing of height and width alone",
            REQUIRED,
            "missing",
            "write Conv so that it has resizing of height",
        ),
        ("padding", NOT_TAKEN, "there", "write Conv without padding"),
        ("zero point of W", "exactly 0", "3", "give W the zero point 0, or leave it to tapeout"),
    ],
)
def test_every_kind_of_violation(what: str, expected: str, found: str, says: str) -> None:
    assert says in suggestion(Violation(what, expected, found), "Conv")
