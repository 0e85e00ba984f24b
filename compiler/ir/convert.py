"""Brings one node from its own opset to the canonical one.

The rules are per operator and are applied while the IR is made, so names, origins and subgraphs stay as they
are, no weight is touched and the rank of a tensor is asked for only where the old meaning depends on it. An
operator without a rule means the same in all opsets from 7 on. ONNX's own converter is not used: see
docs/decisions/0002-own-opset-conversion.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.errors import UnsupportedError
from tapeout.compiler.ir.functions import OPSET

# The IR version that goes with the canonical opset.
IR_VERSION = 13


@dataclass
class Step:
    """A node made beside a draft; outputs without a name get one when it is emitted."""

    op_type: str
    inputs: Sequence[ir.Value | None]
    outputs: Sequence[ir.Value]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Draft:
    """A node on its way to the canonical opset.

    `version`: the opset in which its operator got its present form. `dtype` and `rank` answer what is known
    of a value. `label` names it in messages. `unreadable`: outputs without an equivalent, each with the error
    to be raised where something reads it.
    """

    op_type: str
    inputs: list[ir.Value | None]
    attributes: dict[str, ir.Attr]
    outputs: list[ir.Value]
    version: int
    label: str
    dtype: Callable[[ir.Value | None], ir.DataType | None]
    rank: Callable[[ir.Value | None], int | None]
    constants: list[tuple[np.ndarray[Any, Any], ir.Value]] = field(default_factory=list)
    before: list[Step] = field(default_factory=list)
    after: list[Step] = field(default_factory=list)
    unreadable: list[tuple[ir.Value, UnsupportedError]] = field(default_factory=list)

    def pop(self, name: str, default: Any = None) -> Any:
        """Remove an attribute and return its plain value."""
        attribute = self.attributes.pop(name, None)
        return default if attribute is None else attribute.value

    def set(self, name: str, value: Any) -> None:
        self.attributes[name] = ir.convenience.convert_attribute(name, value)

    def input(self, index: int) -> ir.Value | None:
        return self.inputs[index] if index < len(self.inputs) else None

    def put(self, index: int, value: ir.Value) -> None:
        """Make `value` the input at `index`."""
        self.inputs.extend([None] * (index + 1 - len(self.inputs)))
        self.inputs[index] = value

    def constant(self, data: Any, dtype: Any) -> ir.Value:
        value = ir.Value()
        self.constants.append((np.array(data, dtype=dtype), value))
        return value

    def make(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """A node in front of this one; returns its output."""
        output = ir.Value()
        self.before.append(Step(op_type, inputs, [output], attributes))
        return output

    def float_dtype(self, value: ir.Value | None) -> Any:
        """The numpy type of a value, float32 where it is not known."""
        found = self.dtype(value)
        return np.float32 if found is None else found.numpy()

    def refuse(self, why: str, fix: str = "export the model again with a newer opset") -> UnsupportedError:
        """The error where no node of the canonical opset does the same."""
        of = f" of opset {self.version}" if self.version < OPSET else ""
        return UnsupportedError(
            f"{self.label}{of} cannot be brought to opset {OPSET}: {why}",
            hint=fix,
            nodes=self.names,
            violations=[{"what": "opset", "expected": f"what opset {OPSET} has", "found": why, "fix": fix}],
        )

    @property
    def names(self) -> list[str]:
        """The node that the label names."""
        return re.findall(r"'([^']*)'", self.label)[-1:]


def modernize(draft: Draft) -> None:
    """Rewrite `draft` to the canonical opset. Raises UnsupportedError where there is no equivalent."""
    for until, rule in RULES.get(draft.op_type, ()):
        if draft.version < until:
            rule(draft)


def needs_types(op_type: str, version: int) -> bool:
    """Whether the rank or dtype of inputs decides how this operator of opset `version` is converted."""
    return version < _TYPED.get(op_type, 0)


# Below these versions a rule asks for the rank or dtype of an input.
_TYPED = {"Softmax": 13, "LogSoftmax": 13, "Hardmax": 13, "Clip": 11, "Pad": 11}


# --- attributes that became inputs ----------------------------------------------------------------------


def _axes(d: Draft) -> None:
    axes = d.pop("axes")
    if axes is not None:
        d.put(1, d.constant(axes, np.int64))


def _slice(d: Draft) -> None:
    for index, name in enumerate(("starts", "ends", "axes"), start=1):
        value = d.pop(name)
        if value is not None:
            d.put(index, d.constant(value, np.int64))


def _top_k(d: Draft) -> None:
    d.put(1, d.constant([d.pop("k")], np.int64))


def _clip(d: Draft) -> None:
    for index, name in enumerate(("min", "max"), start=1):
        value = d.pop(name)
        if value is not None:
            d.put(index, d.constant(value, d.float_dtype(d.input(0))))


def _pad(d: Draft) -> None:
    d.put(1, d.constant(d.pop("pads"), np.int64))
    value = d.pop("value", 0.0)
    if value:
        d.put(2, d.constant(value, d.float_dtype(d.input(0))))


def _split_sizes(d: Draft) -> None:
    split = d.pop("split")
    if split is not None:
        d.put(1, d.constant(split, np.int64))


def _split_count(d: Draft) -> None:
    if d.input(1) is None:
        d.set("num_outputs", len(d.outputs))


def _dft_axis(d: Draft) -> None:
    d.put(2, d.constant(d.pop("axis", 1), np.int64))


# --- operators that changed their meaning ---------------------------------------------------------------


def _dropout(d: Draft) -> None:
    """An inference model's Dropout hands its input through."""
    d.pop("ratio")
    if d.version < 10:
        d.unreadable += [
            (v, d.refuse("its mask is used, which had no defined value at inference")) for v in d.outputs[1:]
        ]


def _batch_norm_spatial(d: Draft) -> None:
    if d.pop("spatial", 1) != 1:
        raise d.refuse("spatial=0 (statistics per position) no longer exists")


def _batch_norm_outputs(d: Draft) -> None:
    d.unreadable += [(v, d.refuse("it returns training statistics")) for v in d.outputs[1:]]
    del d.outputs[1:]


def _softmax(d: Draft) -> None:
    """Softmax(x, axis=k) over the flattened axes k.. -> Reshape(Softmax(Flatten(x, k), -1), Shape(x))"""
    axis = d.pop("axis", 1)
    x = d.input(0)
    rank = d.rank(x)
    if axis == -1 or (rank is not None and axis == rank - 1):
        d.set("axis", -1)
        return
    inner, (output,) = ir.Value(), d.outputs
    shape = d.make("Shape", x)
    d.inputs = [d.make("Flatten", x, axis=axis)]
    d.outputs = [inner]
    d.set("axis", -1)
    d.after.append(Step("Reshape", [inner, shape], [output]))


def _resize(d: Draft) -> None:
    """Nearest took the lower pixel where an axis grew, the higher where it shrank: one node for each."""
    scales = d.pop("scales")
    if scales is not None:
        d.put(1, d.constant(scales, np.float32))
    d.op_type = "Resize"
    x, factor = d.input(0), d.input(1)
    mode = d.pop("mode", "nearest")
    mode = mode if mode == "nearest" else "linear"
    d.set("mode", mode)
    d.set("coordinate_transformation_mode", "asymmetric")
    if mode != "nearest":
        d.inputs = [x, None, factor]
        return
    d.set("nearest_mode", "floor")
    given: Any = scales
    if given is None and factor is not None and factor.const_value is not None:
        given = factor.const_value.numpy().ravel()
    if given is None or (min(given, default=1) < 1 < max(given, default=1)):
        one = d.constant(1, np.float32)
        x = d.make(
            "Resize", x, None, d.make("Min", factor, one),
            mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="ceil",
        )  # fmt: skip
        factor = d.make("Max", factor, one)
    elif min(given, default=1) < 1:
        d.set("nearest_mode", "ceil")
    d.inputs = [x, None, factor]


def _scatter(d: Draft) -> None:
    d.op_type = "ScatterElements"


def _scan(d: Draft) -> None:
    raise d.refuse("Scan had a batch axis and sequence lengths of its own")


def _roi_align(d: Draft) -> None:
    d.set("coordinate_transformation_mode", "output_half_pixel")


def _grid_sample(d: Draft) -> None:
    mode = d.pop("mode", "bilinear")
    d.set("mode", {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode))


def _group_norm(d: Draft) -> None:
    """Scale and bias per group -> per channel: each is repeated C / groups times."""
    groups = d.attributes["num_groups"].value
    count = d.constant([groups], np.int64)
    channels = d.make("Shape", d.input(0), start=1, end=2)
    one = d.constant([1], np.int64)
    repeat = d.make("Concat", one, d.make("Div", channels, count), axis=0)
    column, flat = d.constant([-1, 1], np.int64), d.constant([-1], np.int64)
    for index in (1, 2):
        wide = d.make("Expand", d.make("Reshape", d.input(index), column), repeat)
        d.put(index, d.make("Reshape", wide, flat))


_REDUCE = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")

# Operator -> (version, rule): the rule holds for nodes whose form is older than the version, in this order.
RULES: dict[str, tuple[tuple[int, Callable[[Draft], None]], ...]] = {
    "BatchNormalization": ((9, _batch_norm_spatial), (14, _batch_norm_outputs)),
    "Clip": ((11, _clip),),
    "DFT": ((20, _dft_axis),),
    "Dropout": ((12, _dropout),),
    "GridSample": ((20, _grid_sample),),
    "GroupNormalization": ((21, _group_norm),),
    "Hardmax": ((13, _softmax),),
    "LogSoftmax": ((13, _softmax),),
    "Pad": ((11, _pad),),
    "ReduceSum": ((13, _axes),),
    "Resize": ((11, _resize),),
    "RoiAlign": ((16, _roi_align),),
    "Scan": ((9, _scan),),
    "Scatter": ((11, _scatter),),
    "Slice": ((10, _slice),),
    "Softmax": ((13, _softmax),),
    "Split": ((13, _split_sizes), (18, _split_count)),
    "Squeeze": ((13, _axes),),
    "TopK": ((10, _top_k),),
    "Unsqueeze": ((13, _axes),),
    "Upsample": ((10, _resize),),
    **{f"Reduce{name}": ((18, _axes),) for name in _REDUCE},
}
