"""Runs a plan on the CPU executor, and on a GPU where one is here that it has kernels for; what is proven on the CPU
alone is unproven on the GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tapeout.sdk import InvalidModelError, Request, Runner, VendorToolError
from tapeout.targets.nvidia.executor import Arrays, Executor
from tapeout.targets.nvidia.plan.parts import Kind
from tapeout.targets.nvidia.plan.read import PlanFile

CPU = "cpu"


def runners(artifact: Path, request: Request) -> Sequence[Runner]:
    """The plan `artifact` on the CPU executor, and on the GPU that is here, if there is one that it is for."""
    here: list[Runner] = [CpuPlan(artifact)]
    return here if request.device == CPU else [*here, *on_gpu(artifact)]


def timers(artifact: Path, request: Request, hint: str | None) -> list[GpuTimer]:
    """The plan on the first GPU of this machine, to be timed. Raises VendorToolError where there is none."""
    from tapeout.targets.nvidia.cuda import Engine

    return [GpuTimer(Engine(PlanFile(artifact)))]


def on_gpu(artifact: Path) -> list[GpuPlan]:
    """The plan on the first GPU of this machine; none where there is no driver, or a GPU of another generation."""
    from tapeout.targets.nvidia.cuda import Engine, probe

    try:
        driver = probe()
    except VendorToolError:
        return []
    file = PlanFile(artifact)
    try:
        return [GpuPlan(Engine(file, driver=driver, debug=True))]
    except InvalidModelError:  # kernels for others
        return []


class GpuPlan:
    """A plan on a GPU."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.device = f"sm_{engine.architecture}"
        self.runtime = f"the plan's kernels on {self.device}"

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        """The outputs for `inputs`, both keyed by the source's names."""
        found: Arrays = self._engine.run(inputs)
        return found

    def tensors(self, inputs: Mapping[str, np.ndarray[Any, Any]], names: Sequence[str]) -> Arrays:
        """The outputs among `names`: inner tensors are overwritten as the run goes on."""
        return {n: a for n, a in self.run(inputs).items() if n in names}


class CpuPlan:
    """A plan on the CPU. Raises InvalidModelError where the file is no whole plan."""

    device = "cpu"

    def __init__(self, artifact: Path) -> None:
        self._executor = Executor(PlanFile(artifact))
        self.runtime = f"the plan's CPU executor (NumPy {np.__version__})"

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        """The outputs for `inputs`, both keyed by the source's names."""
        return self._executor.run(inputs)

    def tensors(self, inputs: Mapping[str, np.ndarray[Any, Any]], names: Sequence[str]) -> Arrays:
        """The tensors among `names` that launches write."""
        found = self._executor.run(inputs, frozenset(names))
        outputs = self._executor.plan.named(Kind.OUTPUT)
        return {n: a for n, a in found.items() if n in names or n in outputs}


class GpuTimer:
    """A plan on a GPU whose runs are timed, inputs and outputs lying there."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.runtime = f"the plan's kernels on sm_{engine.architecture}"

    def measure(self, feed: Mapping[str, np.ndarray[Any, Any]], runs: int) -> tuple[list[float], float]:
        """Milliseconds of each of `runs` runs, and how many there were in a second."""
        found = self._engine.measure(feed, runs)
        return found, 1e3 * len(found) / max(sum(found), 1e-9)
