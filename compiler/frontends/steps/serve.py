"""Answers requests of the parent: one JSON object per line on standard input, one line back for each."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from typing import Any


def serve(step: Any, needs: Sequence[str], arguments: Sequence[str]) -> None:
    """Answer until standard input ends. A request names a method of `step` in "do"; what `step` raises with a
    `kind` is an answer, anything else is told as "failed". `needs` are packages that must be there."""
    del arguments
    # Libraries write to standard output as they like: answers go where it led, and it leads to standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    missing = [name for name in needs if importlib.util.find_spec(name) is None]
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any]
        try:
            if missing:
                answer = {"error": {"kind": "missing", "message": ", ".join(missing), "hint": None}}
            else:
                answer = {"result": getattr(step, request["do"])(request)}
        except Exception as error:
            kind = getattr(error, "kind", "failed")
            text = getattr(error, "message", f"{type(error).__name__}: {str(error).strip()[:400]}")
            answer = {"error": {"kind": kind, "message": text, "hint": getattr(error, "hint", None)}}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
