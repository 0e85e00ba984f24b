"""The kit on whole graphs: of what a target takes, in integers, and through a vendor's compiler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tapeout.compiler.conformance import generated, graphs
from tapeout.compiler.conformance.case import FINISHED, Array, Case
from tapeout.compiler.conformance.generated import Generator, Made
from tapeout.compiler.conformance.levels import Choice, Kit
from tapeout.compiler.conformance.quantized import difference_in_integers, is_quantized
from tapeout.compiler.conformance.report import Report
from tapeout.compiler.conformance.running import opened, request_of, run_case
from tapeout.compiler.errors import MissingToolError, VendorToolError
from tapeout.compiler.target import Finished, Request, Runner, Target, write
from tapeout.targets.tflite import TARGET

KNOWN = frozenset(
    {"convolution Conv", "unary Relu", "pooling MaxPool", "product MatMul", "reshaping Reshape"}
)


class Spoiled:
    """A runner with one tensor that is wrong."""

    runtime, device = "spoiled", "cpu"

    def __init__(self, runner: Runner, name: str, by: int) -> None:
        self._runner, self._name, self._by = runner, name, by

    def _with(self, found: dict[str, Array]) -> dict[str, Array]:
        return {k: v + np.asarray(self._by, v.dtype) if k == self._name else v for k, v in found.items()}

    def run(self, inputs: Mapping[str, Any], /) -> dict[str, Array]:
        return self._with(self._runner.run(inputs))

    def tensors(self, inputs: Mapping[str, Any], names: Sequence[str], /) -> dict[str, Array]:
        return self._with(self._runner.tensors(inputs, names))


def drawn(scheme: str, count: int, known: frozenset[str] | None = None) -> list[Case]:
    found = [graphs.graph(number, scheme, "cpu", known=known) for number in range(count)]
    return [f[0] for f in found if f is not None]


def test_graphs_are_made_of_what_is_taken() -> None:
    operators = {op for case in drawn("float32", 30, KNOWN) for op in case.origin.split()}
    assert operators == {kind.split()[1] for kind in KNOWN}
    singles = graphs.single_steps("cpu")
    assert {kind for _, kinds in singles for kind in kinds} > KNOWN
    taken = graphs.vocabulary(singles, "int8", lambda case: case.scheme == "int8" and "Add" in case.origin)
    assert taken == {"binary Add"}


def test_half_of_the_graphs_are_of_known_kinds_and_one_in_four_integers() -> None:
    made = [case for case, _ in graphs.graphs(32, ("float32", "int8"), "cpu", known=KNOWN)]
    assert len(made) == 32
    assert 6 <= sum(case.scheme == "int8" for case in made) <= 10
    operators = {kind.split()[1] for kind in KNOWN}
    assert sum(set(case.origin.split()) <= operators for case in made) >= 14
    assert all(case.scheme == "int8" for case, _ in graphs.graphs(8, ("int8",), "cpu"))


@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
def test_graphs_in_integers_hold(scheme: str) -> None:
    made = [case for case in drawn(scheme, 12, KNOWN) if "Conv" in case.origin][:4]
    assert len(made) == 4
    for case in made:
        outcome, runtimes = run_case(case, TARGET)
        assert outcome.status == "pass" and len(runtimes) == 2, outcome


def test_integers_that_are_wrong_are_seen(tmp_path: Path) -> None:
    """A kernel that is three quanta off, anywhere in the artifact."""
    case = next(
        c for c in drawn("int8", 20, KNOWN) if c.origin == "Conv Relu Conv" or c.origin.count("Conv") > 1
    )
    assert is_quantized(case)
    request = request_of(case, TARGET)
    model = opened(case, TARGET, request)
    path = tmp_path / "m.tflite"
    write(TARGET, model, path, request)
    (runner,) = TARGET.runners(path, replace(request, options={"resolver": "builtin"}))
    rows = TARGET.declaration("cpu")
    assert difference_in_integers(case, model, rows, runner) is None
    inner = [n.outputs[0].name or "" for n in model.graph if n.op_type == "QuantizeLinear"]
    shown = runner.tensors(case.inputs, inner)
    names = [n for n in shown if n not in {v.name for v in model.graph.outputs}]
    seen = [difference_in_integers(case, model, rows, Spoiled(runner, n, 3)) for n in names]
    assert names and all(reason is not None for reason in seen), dict(zip(names, seen, strict=True))
    assert any("3 quanta" in str(reason) for reason in seen)
    for name in case.outputs:
        assert difference_in_integers(case, model, rows, Spoiled(runner, name, 100)) is not None


def finishing(made: Finished | Exception) -> Target:
    def finish(artifact: Path, model: ir.Model, request: Request) -> Finished:
        assert artifact.read_bytes()
        if isinstance(made, Exception):
            raise made
        return made

    return replace(TARGET, finish=finish)


def finished(target: Target) -> tuple[str, str]:
    (made,) = generated.inside(Generator(TARGET.declaration("cpu"), "cpu"), 1, ["Abs"])
    assert isinstance(made, Made)
    outcome, _ = run_case(replace(made.case, expects=FINISHED), target)
    return outcome.status, outcome.reason


def test_what_the_vendors_compiler_leaves_to_the_host_is_no_promise() -> None:
    assert finished(finishing(Finished(b"x", {}, (), ""))) == ("pass", "")
    status, reason = finished(finishing(Finished(b"x", {}, ("Abs 'a'",), "")))
    assert status == "accepted" and "left to the host: Abs 'a'" in reason
    assert finished(finishing(VendorToolError("it crashed (SIGFPE)"))) == (
        "does-not-run",
        "it crashed (SIGFPE)",
    )
    assert finished(finishing(RuntimeError("boom"))) == ("crash", "RuntimeError: boom")


def test_a_compiler_that_is_not_here_is_a_note() -> None:
    target = finishing(MissingToolError("the compiler is not installed here", hint="install it"))
    rows = target.declaration("cpu")
    kit = Kit("t", Choice(count=20), target, Report("t"), Generator(rows, "cpu"))
    assert list(kit.cases("finished")) == []
    (note,) = kit.report.notes
    assert "nothing was finished: the compiler is not installed here" in note
    assert list(Kit("t", Choice(), TARGET, Report("t"), Generator(rows, "cpu")).cases("finished")) == []
