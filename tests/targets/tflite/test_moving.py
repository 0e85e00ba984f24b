"""Operators that move elements, in types that their kernels lack, on both resolvers."""

from __future__ import annotations

import numpy as np
import pytest

from tests.targets.tflite.road import agrees

RNG = np.random.default_rng(12)
CASES = {
    "Split": ("{t}[4,6] x", "{t}[4,3] y, {t}[4,3] z", "y, z = Split <axis = 1, num_outputs = 2> (x)"),
    "Concat": ("{t}[4,6] x", "{t}[4,12] y", "y = Concat <axis = 1> (x, x)"),
    "Gather": ("{t}[4,6] x", "{t}[2,6] y", "y = Gather (x, places)"),
    "GatherElements": ("{t}[4,6] x", "{t}[1,2] y", "y = GatherElements (x, row)"),
    "ScatterND": ("{t}[4,6] x, {t}[2,6] u", "{t}[4,6] y", "y = ScatterND (x, rows, u)"),
    "Pad": ("{t}[4,6] x", "{t}[6,8] y", "y = Pad (x, ones)"),
    "ReverseSequence": (
        "{t}[4,2] x", "{t}[4,2] y", "y = ReverseSequence <batch_axis = 1, time_axis = 0> (x, lengths)",
    ),
    "NonZero": ("{t}[4,6] x", "int64[2,N] y", "y = NonZero (x)"),
    "DepthToSpace": ("{t}[1,8,3,3] x", "{t}[1,2,6,6] y", "y = DepthToSpace <blocksize = 2> (x)"),
}  # fmt: skip
CONSTANTS = (
    "int64[2] places = {3, -1}, int64[1,2] row = {1, 3}, int64[2,1] rows = {3, 0}, "
    "int64[4] ones = {1, 1, 1, 1}, int64[2] lengths = {2, 3}"
)
# What each is tried in: where ONNX Runtime has a kernel as well.
TYPES = {
    "Split": ["bool", "uint32", "float16"], "Concat": ["uint16"], "Gather": ["uint16", "uint32"],
    "GatherElements": ["uint16", "uint32"], "ScatterND": ["int16", "uint16", "uint32", "float16"],
    "Pad": ["uint32"], "ReverseSequence": ["bool", "int8", "uint16", "uint32", "float16"], "NonZero": [],
    "DepthToSpace": ["uint8"],
}  # fmt: skip
WIDEST = {"uint16": 2**16, "uint32": 2**32, "int16": 2**15, "int8": 2**7, "uint8": 2**8, "bool": 2}


@pytest.mark.parametrize(("op", "kind"), [(op, t) for op, kinds in TYPES.items() for t in kinds])
def test_moved_in_a_type_without_a_kernel(op: str, kind: str) -> None:
    taken, given, call = (part.format(t=kind) for part in CASES[op])
    inputs = {}
    for text in taken.split("] "):
        if "[" not in text:
            continue
        shape = [int(n) for n in text.partition("[")[2].split(",")]
        drawn = RNG.standard_normal(shape) if kind == "float16" else RNG.integers(0, WIDEST[kind], shape)
        inputs["u" if inputs else "x"] = np.asarray(drawn).astype(kind)
    agrees(f"agraph ({taken}) => ({given}) <{CONSTANTS}> {{ {call} }}", inputs=inputs)
