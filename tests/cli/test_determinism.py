"""The same statistics file or data, the same bytes: under any number of threads and any kernels of the BLAS library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.asset_samples import samples
from tests.assets import model_path, needs_assets

# Threads and the core type that OpenBLAS takes its kernels for.
MACHINES = (("1", "Haswell"), ("2", "Haswell"), ("1", "Sandybridge"), ("2", "Sandybridge"))
KERNELS = (
    "import numpy as np; r = np.random.default_rng(0); a = r.normal(size=(300, 300)); "
    "print(np.linalg.inv(a).sum().hex())"
)


def run(machine: tuple[str, str], *arguments: str) -> str:
    threads, core = machine
    env = {
        **os.environ,
        "OPENBLAS_CORETYPE": core,
        "OPENBLAS_NUM_THREADS": threads,
        "OMP_NUM_THREADS": threads,
    }
    done = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def exported(machine: tuple[str, str], scheme: str, data: Path, out: Path, *more: str) -> bytes:
    run(
        machine, "-m", "tapeout", "export", str(model_path("ic01_resnet8")), "--quantize", scheme,
        "--calibration", str(data), "--jobs", machine[0], "--no-verify", "-o", str(out), *more,
    )  # fmt: skip
    return out.read_bytes()


@needs_assets
@pytest.mark.slow
def test_the_same_bytes_on_any_machine(tmp_path: Path) -> None:
    np.savez(tmp_path / "calib.npz", **samples("ic01_resnet8", 12, "calib"))
    data, stats, out = tmp_path / "calib.npz", tmp_path / "stats.json", tmp_path / "o.tflite"
    made = set()
    for machine in (MACHINES[0], MACHINES[3]):
        run(
            machine, "-m", "tapeout", "calibrate", str(model_path("ic01_resnet8")), "--calibration", str(data),
            "-t", "tflite", "-o", str(stats), "--jobs", machine[0],
        )  # fmt: skip
        made.add(stats.read_bytes())
    assert len(made) == 1
    assert len({exported(m, "int8", stats, out) for m in MACHINES}) == 1
    # GPTQ inverts matrices, whose last bits are the library's own: what is made of them is not.
    for scheme, more in (("int8", ("--option", "refine=full")), ("w4", ())):
        assert len({exported(m, scheme, data, out, *more) for m in (MACHINES[0], MACHINES[3])}) == 1, scheme


@pytest.mark.slow
def test_core_types_do_differ() -> None:
    """That the test above can fail: where the library has no such choice it shows nothing."""
    found = {run(m, "-c", KERNELS) for m in (MACHINES[0], MACHINES[2])}
    if len(found) == 1:
        pytest.skip("the BLAS library of NumPy takes no OPENBLAS_CORETYPE")
