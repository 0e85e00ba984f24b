"""The conformance kit: does a target do what its declaration says? Cases of the standard, cases made from the
declaration's rows, random graphs, damaged files; each failure shrunk and kept with the command that runs it."""

from __future__ import annotations

from tapeout.compiler.conformance.case import STATUSES, Case, Outcome, difference
from tapeout.compiler.conformance.report import Report
from tapeout.compiler.conformance.running import Worker, run_case, run_cases, run_conformance
from tapeout.compiler.conformance.standard import cases

__all__ = [
    "STATUSES",
    "Case",
    "Outcome",
    "Report",
    "Worker",
    "cases",
    "difference",
    "run_case",
    "run_cases",
    "run_conformance",
]
