"""What pruning, factorization and quantization did to a model: size, zeros, operations and how near it still is to
the model that was given, after each step; for reports and for people."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g

if TYPE_CHECKING:
    from tapeout.compiler.calibration import Calibration

Array = np.ndarray[Any, Any]

# Samples on which a step's result is compared with the model that was given.
COMPARED = 32
# Layers left as they are that a line for people names.
NAMED = 3


def figures(model: ir.Model) -> dict[str, Any]:
    """What convolutions and matrix products of a model, quantized or not, hold and cost: weights, zeros,
    multiply-accumulates for one sample, bytes as they are stored (scales included) and with zeros left out (a bit
    for each weight, and the others)."""
    from tapeout.compiler.operations import CONVOLUTIONS, LAST, MATRIX, operations

    weights = zeros = work = stored = 0
    packed = 0.0
    seen: set[ir.Value] = set()
    for node in model.graph:
        if LAST.sub("", node.op_type) not in (CONVOLUTIONS | MATRIX) or len(node.inputs) < 2:
            continue
        work += operations(node, assume=1) or 0
        value = node.inputs[1]
        if value is None or value in seen or (array := _array(value)) is None:
            continue
        seen.add(value)
        none = int(np.count_nonzero(array == 0))
        weights += array.size
        zeros += none
        size = sum(tensor.nbytes for tensor in _leaves(value))
        stored += size
        packed += min(size, size * (1 - none / max(array.size, 1)) + -(-array.size // 8))
    return {
        "weights": weights, "zeros": zeros, "operations": work, "weight_bytes": stored,
        "weight_bytes_without_zeros": int(packed),
    }  # fmt: skip


def _array(value: ir.Value) -> Array | None:
    """The numbers of a weight, whatever its storage: a constant, or what operators make of constants."""
    from tapeout.compiler.ir.evaluate import Declined, evaluate

    if g.is_constant(value):
        return g.constant(value)
    node = value.producer()
    if node is None or not all(v is None or _leaves(v) for v in node.inputs):
        return None
    try:
        inputs = [None if v is None else _array(v) for v in node.inputs]
        return evaluate(node, inputs)[value.index() or 0]
    except Declined:
        return None


def _leaves(value: ir.Value) -> list[ir.TensorProtocol]:
    """The constants that `value` is made of; none where something else goes into it."""
    if g.is_constant(value):
        return [] if value.const_value is None else [value.const_value]
    node = value.producer()
    found = [] if node is None else [_leaves(v) for v in node.inputs if v is not None]
    return list(itertools.chain(*found)) if all(found) else []


class Comparison:
    """Holds the outputs of the model that was given against those of a model made of it, on calibration samples."""

    def __init__(self, model: ir.Model, data: Calibration) -> None:
        from tapeout.passes.quantization.layers import spread

        self.feeds = spread(list(data.feeds()), COMPARED)
        self.names = [v.name or "" for v in model.graph.outputs if v.dtype == ir.DataType.FLOAT]
        self.types = {v.name: v.dtype for v in (*model.graph.inputs, *model.graph.outputs)}
        self.wanted = self._outputs(model)

    def _outputs(self, model: ir.Model) -> list[list[Array]]:
        from tapeout.compiler.reference import Reference

        with Reference(model) as reference:
            return [[reference.run(feed, self.names)[n] for n in self.names] for feed in self.feeds]

    def __call__(self, model: ir.Model) -> dict[str, float]:
        """`sqnr` in dB of the output where it is least; `lost`: share of the outputs' variance that is lost, where it
        is most; `agreement`: share of samples that keep their largest element of the first output, where that is a
        row of scores. Nothing of a model whose inputs or outputs have other types."""
        from tapeout.compiler.metrics import difference

        if any(self.types.get(v.name) != v.dtype for v in (*model.graph.inputs, *model.graph.outputs)):
            return {}
        found = self._outputs(model)
        sqnr, lost = [], []
        for i in range(len(self.names)):
            a, b = (np.concatenate([s[i].ravel() for s in side]) for side in (self.wanted, found))
            sqnr.append(difference(a, b).sqnr)
            error = np.mean((a.astype(np.float64) - b) ** 2)
            lost.append(float(error / max(float(np.var(a, dtype=np.float64)), 1e-30)))
        said = {"sqnr": min(sqnr), "lost": max(lost)} if lost else {}
        if self.names and self.wanted[0][0].ndim == 2 and self.wanted[0][0].shape[1] > 1:
            pairs = zip(found, self.wanted, strict=True)
            said["agreement"] = float(np.mean([np.mean(a[0].argmax(1) == b[0].argmax(1)) for a, b in pairs]))
        return said


def lines(told: Sequence[Mapping[str, Any]], zeros: Mapping[str, Any] | None = None) -> list[str]:
    """What was done, for people: a table with a row for each step, what it left as it was, and where weights became
    zero what that is worth in an artifact that holds them as `zeros` tells."""
    from tapeout.commands.options import bytes_text

    rows = [("", "operations", "weights", "zeros", "bytes", "SQNR", "agree")]
    for said in told:
        share = said["zeros"] / max(said["weights"], 1)
        rows.append((
            said["step"], _count(said["operations"]), _count(said["weights"]), f"{share:.1%}",
            bytes_text(said["weight_bytes"]),
            f"{said['sqnr']:.1f} dB" if "sqnr" in said else "",
            f"{said['agreement']:.1%}" if "agreement" in said else "",
        ))  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    found = [
        row[0].ljust(widths[0])
        + "".join(f"  {cell.rjust(w)}" for cell, w in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    for said in told:
        left = [reason for reason in said.get("left", ()) if reason.startswith("'")]
        if left:
            more = f", and {len(left) - NAMED} more in the report" if len(left) > NAMED else ""
            found.append(f"{said['step']} left: {'; '.join(left[:NAMED])}{more}")
    shares = [said["zeros"] / max(said["weights"], 1) for said in (told[0], told[-1])]
    if zeros is not None and shares[1] > shares[0]:
        found.append(_worth(zeros))
    return [line.rstrip() for line in found]


def _worth(zeros: Mapping[str, Any]) -> str:
    """What zeros save."""
    from tapeout.commands.options import bytes_text

    packed = zeros["packed"]
    if not packed or not packed["tensors"]:
        option = (
            f" (--option {zeros['option']}=true packs them)" if zeros["option"] and packed is None else ""
        )
        return f"zeros take their bytes in the artifact{option}, and as much time as other weights"
    skipped = packed["read_packed"]
    time = (
        f"kernels skip the zeros of {skipped} and unpack the others"
        if skipped
        else "they are unpacked in memory"
    )
    return (
        f"zeros: {packed['tensors']} weights take {bytes_text(packed['bytes'])} instead of "
        f"{bytes_text(packed['dense_bytes'])}; {time}: fewer bytes"
        + (", less time in those" if skipped else ", no less time")
    )


def _count(number: int) -> str:
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 10 * scale:
            return f"{number / scale:,.1f} {unit}"
    return str(number)
