"""sympy is imported only where symbolic dimensions are computed with, and is then the real one."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
import tapeout.api
import onnx_ir as ir
assert "sympy" not in sys.modules, "imported too early"
n = ir.SymbolicDim("N")
assert str((n * 2 + 1).value) == "2*N + 1", (n * 2 + 1).value
assert str((ir.SymbolicDim("max(N, 3)") + 1).value) == "Max(3, N) + 1", (ir.SymbolicDim("max(N, 3)") + 1).value
import sympy
from sympy.core import Symbol
assert sympy.Symbol is Symbol and "sympy.core" in sys.modules
assert isinstance((n + 1)._expr, sympy.Expr)
print("fine")
"""


def test_sympy_comes_when_it_is_needed() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "fine", done.stderr
