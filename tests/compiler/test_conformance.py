"""The conformance harness: which cases it takes, what it calls a difference, and that a crash is one case."""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import signal

import numpy as np
import pytest

from tapeout.compiler import conformance as c
from tapeout.compiler.conformance import running


def case(**outputs: np.ndarray) -> c.Case:
    return c.Case("test_x", "X", b"", {}, outputs, rtol=1e-3, atol=1e-7)


def test_difference_sees_value_dtype_shape_and_absence() -> None:
    wanted = np.array([[1.0, np.nan, -np.inf]], np.float32)
    assert c.difference(case(y=wanted), {"y": wanted.copy()}) is None
    assert "missing" in str(c.difference(case(y=wanted), {}))
    assert "float64" in str(c.difference(case(y=wanted), {"y": wanted.astype(np.float64)}))
    assert "shape" in str(c.difference(case(y=wanted), {"y": wanted[0]}))
    bad = wanted.copy()
    bad[0, 0] = 1.002
    assert "[0, 0]" in str(c.difference(case(y=wanted), {"y": bad}))


def test_difference_on_integers_and_booleans_is_exact() -> None:
    wanted = np.array([3, -4], np.int64)
    assert c.difference(case(y=wanted), {"y": wanted + np.array([0, 1])}) is not None
    flags = np.array([True, False])
    assert c.difference(case(y=flags), {"y": ~flags}) is not None
    assert c.difference(case(y=flags), {"y": flags.copy()}) is None


def test_difference_below_the_rounding_of_the_tensor_is_noise() -> None:
    wanted = np.array([54.0, 2e-7], np.float32)
    assert c.difference(case(y=wanted), {"y": np.array([54.0, 0.0], np.float32)}) is None
    assert c.difference(case(y=wanted), {"y": np.array([54.0, 1e-5], np.float32)}) is not None
    assert c.difference(case(y=wanted / 54), {"y": np.array([1.0, 2e-7], np.float32)}) is not None


def test_report_counts_and_generalizes_reasons() -> None:
    report = c.Report("t", runtimes=("R 1",))
    report.outcomes = [
        c.Outcome("test_a", "A", "pass"),
        c.Outcome("test_b", "B", "refused", "B 'n1': no row"),
        c.Outcome("test_b2", "B", "refused", "B 'n2': no row | C 'n3': no row"),
    ]
    assert report.ok and report.counts()["refused"] == 2
    assert report.reasons() == [("B: no row", 2), ("C: no row", 1)]
    assert "| B | 2 | 0 | 2 | B: no row |" in report.markdown()
    assert json.loads(report.json())["cases"][0] == {
        "case": "test_a",
        "op": "A",
        "status": "pass",
        "reason": "",
    }
    report.outcomes.append(c.Outcome("test_c", "C", "wrong", "differs"))
    assert not report.ok and "test_c" in report.text()


@pytest.mark.slow
def test_there_are_1661_numeric_cases() -> None:
    found = c.cases()
    assert len(found) == len({x.name for x in found}) == 1661
    assert [x.name for x in c.cases("test_reshape", 2)] == [
        x.name for x in found if "test_reshape" in x.name
    ][::2]


def die() -> None:
    faulthandler.disable()
    os.kill(os.getpid(), signal.SIGSEGV)


def test_a_dying_worker_is_the_result_of_one_case(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: c.Worker) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, end = context.Pipe()
        self._process = context.Process(target=die, daemon=True)
        self._process.start()
        end.close()

    monkeypatch.setattr(c.Worker, "_start", start)
    report = c.run_cases("t", [case(), case()], timeout=5)
    assert [o.status for o in report.outcomes] == ["crash", "crash"]
    assert report.ok is False and not report.notes
    assert "signal 11" in report.outcomes[0].reason


def test_a_level_of_crashes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: c.Worker, case: c.Case, timeout: float, keep: object = None) -> object:
        return c.Outcome(case.name, case.op, "crash", f"{running.HUNG} 1 s"), ()

    monkeypatch.setattr(c.Worker, "run", run)
    report = c.run_cases("t", [case()] * 100)
    assert len(report.outcomes) == running.HANGS and "given up" in report.notes[0]
