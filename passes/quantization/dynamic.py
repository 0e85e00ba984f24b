"""What a kernel does to real activations that it multiplies with stored weights: it rounds them to 8 bits while it
runs, with a scale and a zero point of their own for each row (the last axis) or each sample (all but the first).

    low = min(min x, 0);  high = max(max x, 0);  s = (high - low) / 255;  z = round(-128 - low / s)
    x -> (clip(round(x / s) + z, -128, 127) - z) s

The graph says so by RoundRows and RoundSamples; a target's rows say which kernels do it.
"""

from __future__ import annotations

import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.functions import DOMAIN, declare

_ROUND = """  zero = Constant <value_float = 0.0> ()
  one = Constant <value_float = 1.0> ()
  steps = Constant <value_float = 255.0> ()
  bottom = Constant <value_float = -128.0> ()
  top = Constant <value_float = 127.0> ()
  axes = Constant <value_ints = [-1]> ()
  least = ReduceMin <keepdims = 1> (X_rows, axes)
  most = ReduceMax <keepdims = 1> (X_rows, axes)
  low = Min (least, zero)
  high = Max (most, zero)
  range = Sub (high, low)
  wide = Div (range, steps)
  flat = Equal (wide, zero)
  s = Where (flat, one, wide)
  lowest = Div (low, s)
  offset = Sub (bottom, lowest)
  z = Round (offset)
  scaled = Div (X_rows, s)
  whole = Round (scaled)
  moved = Add (whole, z)
  code = Clip (moved, bottom, top)
  back = Sub (code, z)"""

ROWS = f"""<domain: "{DOMAIN}", opset_import: ["" : 25]>
RoundRows (X) => (Y)
{{
  X_rows = Identity (X)
{_ROUND}
  Y = Mul (back, s)
}}"""

SAMPLES = f"""<domain: "{DOMAIN}", opset_import: ["" : 25]>
RoundSamples (X) => (Y)
{{
  X_rows = Flatten <axis = 1> (X)
{_ROUND}
  y = Mul (back, s)
  shape = Shape (X)
  Y = Reshape (y, shape)
}}"""

NAMES = {"rows": "RoundRows", "samples": "RoundSamples"}


def declare_rounding(model: ir.Model) -> None:
    """Let `model` know both functions."""
    declare(model, ROWS)
    declare(model, SAMPLES)


def forget_rounding(model: ir.Model) -> None:
    """Take away those of the functions that nothing calls."""
    used = {n.op_type for graph in g.graphs(model) for n in graph if n.domain == DOMAIN}
    for name in NAMES.values():
        if name not in used:
            model.functions.pop((DOMAIN, name, ""), None)


def rounded(value: ir.Value | None) -> str:
    """How `value` has been rounded for the kernel that reads it: "rows", "samples", or "no"."""
    node = None if value is None else value.producer()
    if node is None or node.domain != DOMAIN:
        return "no"
    return next((k for k, name in NAMES.items() if name == node.op_type), "no")
