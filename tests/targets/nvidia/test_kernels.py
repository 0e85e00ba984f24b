"""Kernels: every template against float64 in Triton's interpreter, and compiled for four architectures."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tapeout
from tapeout.compiler.errors import InvalidModelError, UnsupportedError, UsageError, VendorToolError
from tapeout.compiler.target import Request
from tapeout.targets.nvidia.emit import architectures
from tapeout.targets.nvidia.kernels import build
from tapeout.targets.nvidia.kernels.cubin import facts
from tapeout.targets.nvidia.kernels.source import expression
from tapeout.targets.nvidia.kernels.templates import TEMPLATES, source
from tapeout.targets.nvidia.plan.parts import Launch
from tapeout.targets.nvidia.plan.read import PlanFile
from tapeout.targets.nvidia.reference import KERNELS
from tests.assets import model_path, needs_assets
from tests.extent import WHOLE
from tests.targets.nvidia.cases import CASES
from tests.targets.nvidia.road import opened

ROOT = Path(__file__).resolve().parents[3]
needs_triton = pytest.mark.skipif(
    not importlib.util.find_spec("triton"), reason="the package 'triton' is not installed"
)
ARCHITECTURES = (80, 87, 89, 90)


def interpreted(*names: str) -> dict[str, dict[str, object]]:
    """What the interpreter says of cases; it must be chosen before Triton is imported, hence another process."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.targets.nvidia.interpreted", *names],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    return {found["case"]: found for found in map(json.loads, ran.stdout.splitlines())}


@needs_triton
@pytest.mark.slow
def test_kernels_in_the_interpreter() -> None:
    """Float32 within 1e-5 of float64 at these sizes; float16 within 1e-3: one rounding of 2^-11."""
    found = interpreted()
    assert found.keys() == CASES.keys()
    for name, case in found.items():
        assert float(str(case["error"])) <= (1e-3 if "float16" in name else 1e-5), case
    ran = {kernel for case in found.values() for kernel in case["kernels"]}  # type: ignore[attr-defined]
    assert ran >= set(TEMPLATES) - {"sizes"}


@needs_triton
def test_a_product_and_a_softmax_in_the_interpreter() -> None:
    found = interpreted("gemm float32", "softmax")
    assert [float(str(case["error"])) < 1e-5 for case in found.values()] == [True, True]


def test_every_operation_has_a_kernel() -> None:
    assert set(TEMPLATES) == set(KERNELS)


@needs_triton
def test_the_same_source_gives_the_same_bytes_for_each_architecture() -> None:
    plan = opened(CASES["layer norm"]()[0]).plan
    first, second = (build.with_kernels(plan, ARCHITECTURES) for _ in range(2))
    assert first == second and first.architectures == ARCHITECTURES
    assert len({kernel.image for kernel in first.kernels}) == len(ARCHITECTURES)
    for kernel in first.kernels:
        assert kernel.image.startswith(b"\x7fELF") and 16 <= kernel.registers <= 255 and kernel.spills == 0
        # Addresses of four tensors, two numbers of 32 bits, and two scratch pointers of Triton's.
        assert [size for _, size in kernel.parameters] == [8, 8, 8, 4, 4, 8, 8]
        offsets = [offset for offset, _ in kernel.parameters]
        assert offsets == sorted(offsets)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES if WHOLE else ARCHITECTURES[-1:])
def test_every_template_compiles(arch: int) -> None:
    for name, case in CASES.items():
        plan = build.with_kernels(opened(case()[0]).plan, [arch])
        assert all(launch.kernel >= 0 for launch in plan.launches), name


@needs_triton
def test_an_export_for_two_architectures(tmp_path: Path) -> None:
    """The plan has what C needs to launch, and the CPU executor runs the same file."""
    import onnx

    text = '<ir_version: 10, opset_import: ["" : 25]>\n' + CASES["softmax"]()[0]
    made = tapeout.export(
        onnx.parser.parse_model(text),
        "nvidia",
        device="sm_90",
        options={"also": "sm_80"},
        output=tmp_path / "x.plan",
    )
    plan = PlanFile(tmp_path / "x.plan").plan
    assert plan.architectures == (80, 90) and all(launch.kernel >= 0 for launch in plan.launches)
    assert made.report["proof"]["unproven"] and made.report["verification"]["holds"]
    assert tapeout.inspect(tmp_path / "x.plan")["architectures"] == ["sm_80", "sm_90"]


def test_architectures_are_those_that_are_known() -> None:
    assert architectures(Request(device="cpu")) == []
    assert architectures(Request(device="sm_90", options={"also": "sm_80,sm_87"})) == [80, 87, 90]
    with pytest.raises(UsageError, match="no kernels for 'sm_75' beside 'sm_90'"):
        architectures(Request(device="sm_90", options={"also": "sm_75"}))


def test_without_triton_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(VendorToolError, match="Triton, which is not installed"):
        build.with_kernels(opened(CASES["softmax"]()[0]).plan, [90])


def test_an_operation_without_a_kernel_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"operation 'sort' \(top\)"):
        source(Launch("sort", {}, (), (), ("top",)), [])


def test_a_grid_beyond_cuda_s_limits_is_refused() -> None:
    text = (
        "agraph (float[70000, 2, 2] a, float[70000, 2, 2] b) => (float[70000, 2, 2] y) { y = MatMul(a, b) }"
    )
    with pytest.raises(UnsupportedError, match="70000 programs along y, at most 65535"):
        build.with_kernels(opened(text).plan, [90])


def test_what_is_no_cubin() -> None:
    for content in (b"", b"\x7fELF", b"\x7fELF" + bytes(100), np.arange(200, dtype=np.uint8).tobytes()):
        with pytest.raises(VendorToolError, match="is not understood"):
            facts(content, "f")


def test_programs_as_triton() -> None:
    names, kinds = ["a", "b"], ["int32", "int32"]
    assert expression(("x0", "x1", "div"), names, kinds) == "(a // b)", "integers are divided toward zero"
    assert expression(("x0", "-inf", "max"), names, ["float32", "float32"]).startswith(
        '(tl.maximum(a, float("-inf")'
    )
    assert expression(("x0", "cast.float16"), names, kinds) == "(a).to(tl.float16).to(tl.float32)"


@needs_triton
@needs_assets
@pytest.mark.slow
def test_a_real_model_with_kernels(tmp_path: Path) -> None:
    made = tapeout.export(model_path("ic01_resnet8"), "nvidia", device="sm_90", output=tmp_path / "x.plan")
    plan = PlanFile(tmp_path / "x.plan").plan
    images = made.artifact.stat().st_size - plan.weight_bytes
    assert images < 1_500_000 and plan.architectures == (90,)


def test_a_plan_cut_short_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.plan").write_bytes(b"TAPEPLAN" + bytes(100))
    with pytest.raises(InvalidModelError):
        tapeout.inspect(tmp_path / "x.plan")
