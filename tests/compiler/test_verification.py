"""Tolerances, the verdict on outputs, and the location of faults, with runners that lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from tapeout.compiler.errors import InternalError, UsageError
from tapeout.compiler.reference import Reference
from tapeout.compiler.verification import Adapter, Verification, tolerance, verify

Array = np.ndarray[Any, Any]
TEXT = """<ir_version: 8, opset_import: ["" : 17]>
m (float[N,8] x) => (float[N,8] y, int64[N] best, bool[N,8] large)
{ y = MatMul (x, w) best = ArgMax<axis=1, keepdims=0> (y) large = Greater (y, zero) }"""


def model() -> onnx.ModelProto:
    made = parser.parse_model(TEXT)
    w = np.random.default_rng(4).standard_normal((8, 8)).astype(np.float32)
    made.graph.initializer.append(numpy_helper.from_array(w, "w"))
    made.graph.initializer.append(numpy_helper.from_array(np.float32(0), "zero"))
    return made


class Lying:
    """A runner that computes the model and then changes what it says."""

    runtime, device = "liar 1.0", "cpu"

    def __init__(self, change: Callable[[dict[str, Array]], None]) -> None:
        self._reference = Reference(model())
        self._change = change

    def run(self, inputs: Mapping[str, Array], /) -> dict[str, Array]:
        found = self._reference.run(inputs)
        self._change(found)
        return found

    def tensors(self, inputs: Mapping[str, Array], names: Sequence[str], /) -> dict[str, Array]:
        return {}


def result(change: Callable[[dict[str, Array]], None], scheme: str = "float32") -> Verification:
    rng = np.random.default_rng(1)
    samples = [{"x": rng.standard_normal((n, 8)).astype(np.float32)} for n in (2, 1, 3)]
    with Reference(model()) as reference:
        return verify(reference, model(), [Lying(lambda _: None), Lying(change)], samples, scheme=scheme)


def scale(name: str, by: float) -> Callable[[dict[str, Array]], None]:
    def change(found: dict[str, Array]) -> None:
        found[name] = (found[name] * by).astype(found[name].dtype)

    return change


def put(name: str, value: Any) -> Callable[[dict[str, Array]], None]:
    def change(found: dict[str, Array]) -> None:
        found[name] = found[name].copy()
        found[name].reshape(-1)[-1] = value

    return change


def test_the_truth_holds() -> None:
    found = result(lambda _: None)
    assert found.holds and found.samples == 3 and len(found.entries) == 6
    assert found.as_json()["holds"] and "ok" in found.table()


@pytest.mark.parametrize(
    ("change", "scheme", "holds"),
    [
        (scale("y", 1 + 5e-6), "float32", True),
        (scale("y", 1 + 1e-4), "float32", False),
        (scale("y", 1 + 5e-3), "float16", True),
        (scale("y", 1 + 5e-2), "float16", False),
        (put("y", np.nan), "float16", False),
        (put("y", np.inf), "float16", False),
        (put("best", 9), "float16", False),
        (lambda found: found.update(large=~found["large"]), "float16", False),
        (lambda found: found.update(y=found["y"][:, :4]), "float16", False),
        (lambda found: found.update(y=found["y"].astype(np.float64)), "float32", False),
        (lambda found: found.update(best=found["best"].astype(np.int32)), "float32", False),
    ],
)
def test_lies_are_seen(change: Callable[[dict[str, Array]], None], scheme: str, holds: bool) -> None:
    found = result(change, scheme)
    assert found.holds is holds
    assert [e.holds for e in found.entries[:3]] == [True] * 3
    if not holds:
        worst = found.worst()
        assert worst is not None and not worst.holds and "FAILS" in found.table()


def test_a_runner_that_fails_is_a_failure_not_a_crash() -> None:
    def fail(_: dict[str, Array]) -> None:
        raise InternalError("node 3 failed to prepare")

    found = result(fail)
    assert not found.holds and found.failure == "node 3 failed to prepare"


def test_tolerances() -> None:
    assert tolerance("float32", 0.0) == 1e-5
    assert tolerance("float32", 1e-4) == pytest.approx(4e-4)
    assert tolerance("float16", 1e-4) == 1e-2
    assert tolerance("float32", float("inf")) == 1e-5
    with pytest.raises(UsageError):
        tolerance("float3", 0.0)


def test_the_adapter_turns_back() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    adapter = Adapter({"x": (0, 2, 3, 1)})
    turned = adapter.outputs({"x": x, "k": x})
    assert turned["x"].shape == (2, 4, 5, 3) and turned["k"] is x
    np.testing.assert_array_equal(adapter.inputs(turned)["x"], x)
