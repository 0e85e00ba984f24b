"""The C++ of circuits, compiled by g++, is bit for bit what the integers say."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tapeout.targets.fpga import hls
from tapeout.targets.fpga.csim import CSimulation
from tests.targets.fpga.circuits import Maker, cnn, every_kind, mlp, reference, residual

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="C++: apt-get install g++")


@needs_compiler
@pytest.mark.parametrize("make", [every_kind, mlp, cnn, residual])
def test_circuits_in_c(make: Callable[[int], Maker], tmp_path: Path) -> None:
    maker = make(3)
    graph, codes = maker.graph(), maker.codes(4)
    made = CSimulation(graph, hls.emit(graph), tmp_path, quick=True).run(codes)
    for name, right in reference(graph, codes).items():
        assert len(np.unique(right)) > 1
        assert np.array_equal(made[name], right), name


def test_emission_is_deterministic() -> None:
    assert hls.emit(residual().graph()) == hls.emit(residual().graph())
