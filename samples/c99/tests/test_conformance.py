"""The conformance kit on this target, and on its emulated device where the tools are installed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1]
TOOLS = {"host": ("gcc",), "cortex-m": ("arm-none-eabi-gcc", "qemu-system-arm")}


@pytest.mark.parametrize("device", TOOLS)
@pytest.mark.parametrize("level", ["load", "generated", "refused", "graphs", "damaged"])
def test_the_kit(level: str, device: str, tmp_path: Path) -> None:
    missing = [tool for tool in TOOLS[device] if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed")
    kit = [sys.executable, "-m", "tapeout", "conformance", str(PACKAGE), "--device", device, "--level", level]
    done = subprocess.run(
        [*kit, "--count", "60", "--keep", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
