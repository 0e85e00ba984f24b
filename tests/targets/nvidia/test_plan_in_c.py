"""A reader of 100 lines in C shows what Python wrote."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.targets.nvidia.plans import content, small

COMPILER = shutil.which("cc") or shutil.which("gcc")


@pytest.mark.skipif(COMPILER is None, reason="no C compiler is installed")
def test_c_reads_a_plan(tmp_path: Path) -> None:
    assert COMPILER is not None
    program, plan = tmp_path / "reader", tmp_path / "p.plan"
    source = Path(__file__).with_name("reader.c")
    subprocess.run(
        [COMPILER, "-std=c99", "-Wall", "-Wextra", "-Werror", "-O1", source, "-o", program],
        check=True,
        timeout=60,
    )
    made, arrays = small()
    plan.write_bytes(content(made, arrays))
    ran = subprocess.run([program, plan, "20"], capture_output=True, text=True, check=True, timeout=10)
    assert ran.stdout.splitlines() == [
        "tensor x 20 8",
        f"tensor w 8 4 = {arrays['w'][0, 0]:.6f} ...",
        f"tensor b 4 = {arrays['b'][0]:.6f} ...",
        "tensor h~1 20 4",
        "tensor y 20 4",
        "launch gemm 2 1 1 fc/matmul fc/bias",
        "launch map 0 0 0 fc/relu",
        "kernel gemm_16 sm_80 warps 4 registers 40",
        "kernel gemm_16 sm_90 warps 4 registers 40",
    ]
    plan.write_bytes(plan.read_bytes()[:-1])
    short = subprocess.run([program, plan, "20"], capture_output=True, text=True, timeout=10)
    assert (short.returncode, short.stderr) == (1, "cut short\n")
