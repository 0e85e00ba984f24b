"""The runtime on a GPU: what it hands to the driver, and what it says when that fails. No GPU takes part."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tapeout.compiler.errors import InvalidModelError, ResourceError, UsageError, VendorToolError
from tapeout.compiler.target import Request
from tapeout.targets.nvidia import cuda
from tapeout.targets.nvidia.cuda import WARM, Engine, kernels_for, probe
from tapeout.targets.nvidia.executor import Executor
from tapeout.targets.nvidia.plan.parts import ArgumentKind, Kernel
from tapeout.targets.nvidia.plan.read import PlanFile
from tapeout.targets.nvidia.plan.write import write
from tapeout.targets.nvidia.run import GpuTimer, runners
from tests.targets.nvidia.fake_driver import FakeDriver
from tests.targets.nvidia.road import opened

TEXT = """agraph (float[N, 8, 6] x, float[6, 4] w) => (float[N, 8, 4] y, float[N, 8] z)
<int64[1] axes = {2}, float[4] s = {1, 2, 3, 4}> {
    p = MatMul(x, w)
    q = Softmax(p)
    y = LayerNormalization<axis = -1>(q, s)
    z = ReduceSum<keepdims = 0>(q, axes)
}"""


def engine_ready(*architectures: int) -> PlanFile:
    """The plan with kernels whose parameters are those of its launches, and whose code is nothing."""
    file = opened(TEXT)
    sizes = {ArgumentKind.TENSOR: 8, ArgumentKind.INT32: 4, ArgumentKind.INT64: 8, ArgumentKind.FLOAT32: 4}
    launches, kernels = [], []
    for group, launch in enumerate(file.plan.launches):
        widths = [sizes[a.kind] for a in launch.arguments] + [8, 8]
        parameters = tuple((sum(widths[:i]), width) for i, width in enumerate(widths))
        grid = (file.plan.tensors[0].shape[0], *file.plan.launches[0].grid[1:])
        launches.append(
            dataclasses.replace(launch, kernel=group, grid=tuple(c if c != (0,) else (256,) for c in grid))
        )
        kernels += [Kernel(group, a, "k", b"code", 50000, 4, 32, 0, parameters) for a in architectures]
    file.plan = dataclasses.replace(file.plan, launches=tuple(launches), kernels=tuple(kernels))
    return file


def inputs(batch: int) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    rng = np.random.default_rng(0)
    return {
        "x": rng.standard_normal((batch, 8, 6)).astype(np.float32),
        "w": rng.standard_normal((6, 4)).astype(np.float32),
    }


def test_a_run_computes_what_the_cpu_executor_computes() -> None:
    file = engine_ready(90)
    driver = FakeDriver(file.plan, [3])
    engine = Engine(file, driver=driver, debug=True)
    found, right = engine.run(inputs(3)), Executor(file).run(inputs(3))
    assert found.keys() == right.keys()
    for name, array in right.items():
        np.testing.assert_array_equal(found[name], array)
    grid, block, shared = driver.launched[0][:3], driver.launched[0][3:6], driver.launched[0][6]
    assert (grid, block, shared) == ((3, 1, 1), (128, 1, 1), 50000)
    before = driver.left
    driver.launched.clear()
    driver.sizes = [7]
    assert engine.run(inputs(7))["y"].shape == (7, 8, 4)
    assert driver.left == before, "what a run borrows it gives back"
    engine.close()
    assert not driver.held


def test_timed_runs_borrow_their_memory_once() -> None:
    file = engine_ready(90)
    driver = FakeDriver(file.plan, [3])
    engine = Engine(file, driver=driver)
    engine.run(inputs(3))
    before = driver.left
    times, rate = GpuTimer(engine).measure(inputs(3), 5)
    assert len(times) == 5 and all(t > 0 for t in times) and rate > 0
    assert len(driver.launched) == (1 + WARM + 5) * len(file.plan.launches) and driver.left == before


def test_no_room_names_what_for() -> None:
    file = engine_ready(90)
    with pytest.raises(ResourceError, match=r"no room for .* bytes for the weights"):
        Engine(file, driver=FakeDriver(file.plan, [3], memory=100))


def test_a_failing_launch_names_its_source() -> None:
    file = engine_ready(90)
    driver = FakeDriver(file.plan, [3])
    engine = Engine(file, driver=driver)
    driver.fails_at = 1
    with pytest.raises(VendorToolError, match=r"launch 1 \(softmax of .*\): CUDA_ERROR_ILLEGAL_ADDRESS"):
        engine.run(inputs(3))


def test_a_size_outside_of_the_profiles_is_refused() -> None:
    file = engine_ready(90)
    with pytest.raises(UsageError, match="no profile for N=33"):
        Engine(file, driver=FakeDriver(file.plan, [33])).run(inputs(33))


def test_kernels_of_the_same_generation_and_no_newer() -> None:
    file = engine_ready(80, 87, 90)
    assert {k.arch for k in kernels_for(file, 86).values()} == {80}
    assert {k.arch for k in kernels_for(file, 89).values()} == {87}
    for architecture in (75, 100):
        with pytest.raises(InvalidModelError, match=rf"\(sm_{architecture}\), it has sm_80, sm_87, sm_90"):
            kernels_for(file, architecture)
    with pytest.raises(InvalidModelError, match="it has none"):
        kernels_for(opened(TEXT), 90)


def test_a_kernel_with_other_parameters_is_refused() -> None:
    file = engine_ready(90)
    wrong = tuple(dataclasses.replace(k, parameters=((0, 8),)) for k in file.plan.kernels)
    file.plan = dataclasses.replace(file.plan, kernels=wrong)
    with pytest.raises(InvalidModelError, match="takes parameters of"):
        Engine(file, driver=FakeDriver(file.plan, [3])).run(inputs(3))


def test_without_the_bindings_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(VendorToolError, match="cuda-bindings, which is not installed"):
        probe()


@pytest.mark.skipif(
    not importlib.util.find_spec("cuda"), reason="the package 'cuda-bindings' is not installed"
)
def test_without_a_driver_there_is_one_clear_error() -> None:
    try:
        probe()
    except VendorToolError as error:
        assert "NVIDIA driver" in error.message
    else:
        pytest.skip("this machine has a driver and a GPU")


def test_exports_are_judged_on_the_gpu_that_is_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = engine_ready(90)
    place = tmp_path / "x.plan"
    with place.open("wb") as sink:
        write(file.plan, sink, file.weight)
    request = Request(device="sm_90")
    for architecture, devices in ((90, ["cpu", "sm_90"]), (80, ["cpu"])):
        driver = FakeDriver(file.plan, [3], architecture)
        monkeypatch.setattr(cuda, "probe", lambda driver=driver: driver)
        found = runners(place, request)
        assert [runner.device for runner in found] == devices
        assert set(found[-1].tensors(inputs(3), ["z"])) >= {"z"}


def test_running_imports_neither_triton_nor_torch() -> None:
    code = (
        "import sys, tapeout.targets.nvidia.cuda, tapeout.targets.nvidia.executor, tapeout.targets.nvidia.run\n"
        "assert not {'triton', 'torch'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
