"""Runs a plan on the CPU executor: what is proven there is unproven on the GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tapeout.sdk import Request
from tapeout.targets.nvidia.executor import Arrays, Executor
from tapeout.targets.nvidia.plan.parts import Kind
from tapeout.targets.nvidia.plan.read import PlanFile


def runners(artifact: Path, request: Request) -> tuple[CpuPlan, ...]:
    """The plan `artifact` on the CPU executor."""
    return (CpuPlan(artifact),)


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
