"""What the runtime accepts and then computes wrongly, or has no kernel for: each fact against the row that forbids it.

Same scales and fixed scales are in `test_integers.py`, the layout of the file in `test_writer.py`.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import pytest

from tapeout.compiler import pipeline
from tapeout.compiler.calibration import Calibration
from tapeout.compiler.declaration import Row
from tapeout.compiler.ir.load import from_text
from tapeout.compiler.target import Request
from tapeout.targets.tflite import TARGET
from tapeout.targets.tflite.run import RESOLVERS, LiteRT
from tests.targets.tflite.integers import Cluster, constant
from tests.targets.tflite.road import HEADER

RNG = np.random.default_rng(4)
MAP = (1, 6, 9, 9)


def weight(*shape: int, per_channel: bool = True) -> tuple[np.ndarray, np.ndarray]:
    scale = RNG.uniform(0.002, 0.01, shape[0] if per_channel else ()).astype(np.float32)
    return RNG.integers(-127, 128, shape).astype(np.int8), scale


@dataclass
class Spoiled(Cluster):
    """A cluster in which one thing is not as a kernel takes for granted."""

    spoil: Callable[[ir.Graph], None] = field(default=lambda graph: None)

    def model(self, integers: bool = True) -> ir.Model:
        model = super().model(integers)
        self.spoil(model.graph)
        return model


def put(name: str, make: Callable[[np.ndarray], np.ndarray]) -> Callable[[ir.Graph], None]:
    def spoil(graph: ir.Graph) -> None:
        value = graph.initializers[name]
        assert value.const_value is not None
        array = make(value.const_value.numpy())
        value.const_value = ir.tensor(array, name=name)
        value.shape = ir.Shape(array.shape)

    return spoil


def along_inputs(graph: ir.Graph) -> None:
    put("w_s", lambda _: RNG.uniform(0.002, 0.01, 6).astype(np.float32))(graph)
    put("w_z", lambda _: np.zeros(6, np.int8))(graph)
    node = next(n for n in graph if n.outputs[0].name == "w")
    node.attributes["axis"] = ir.AttrInt64("axis", 1)


CONV = "y = Conv <pads = [1,1,1,1]> (a, w, b)"
KERNEL = (8, 6, 3, 3)
BIAS = (RNG.integers(-3000, 3000, 8).astype(np.int32), np.float32(0))
HELD = {"w": weight(*KERNEL), "b": BIAS}

# The fact, and a cluster that breaks it.
WRONG = {
    "a bias has the scale of X times that of W, which the runtime does not check": Spoiled(
        CONV, {"a": MAP}, HELD, spoil=put("b_s", lambda s: s * np.float32(2))
    ),
    "a weight has zero point 0": Spoiled(
        CONV, {"a": MAP}, {"w": weight(*KERNEL, per_channel=False), "b": BIAS},
        spoil=put("w_z", lambda z: z + np.int8(3)),
    ),
    "activations of 16 bits have zero point 0": Spoiled(
        CONV, {"a": MAP}, HELD, act="int16", spoil=put("a_z", lambda z: z + np.int16(5))
    ),
    "scales of a convolution's weight lie along its output channels": Spoiled(
        CONV, {"a": MAP}, HELD, spoil=along_inputs
    ),
    "a product of computed matrices takes no scale per channel: it would be all zeros": Cluster(
        "y = MatMul (a, w)", {"a": (2, 5, 16)}, {"w": weight(2, 16, 7)}
    ),
}  # fmt: skip
RIGHT = {
    "convolution": Spoiled(CONV, {"a": MAP}, HELD),
    "convolution of 16 bits": Spoiled(CONV, {"a": MAP}, HELD, act="int16"),
    "product": Cluster("y = MatMul (a, w)", {"a": (2, 5, 16)}, {"w": weight(2, 16, 7, per_channel=False)}),
}


def in_integers(model: ir.Model) -> list[str]:
    """The kernels that the rows give to stored tensors, conversions aside."""
    rows = TARGET.declaration("cpu").accept(model).placed
    return [
        r.lower or r.op
        for n, r in rows
        if any(p.dtypes for p in r.ports.values()) and n.op_type not in ("QuantizeLinear", "DequantizeLinear")
    ]


@pytest.mark.parametrize("fact", WRONG)
def test_what_would_be_wrong_is_no_integer_kernel(fact: str) -> None:
    assert in_integers(WRONG[fact].legalized()) == []


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_one(name: str) -> None:
    assert len(in_integers(RIGHT[name].legalized())) == 1


@pytest.mark.parametrize(
    ("dtype", "block", "taken"),
    [("INT4", 32, True), ("INT4", 64, True), ("INT4", 16, False), ("INT8", 32, False), ("INT2", 32, False)],
)
def test_blocks_are_of_four_bits_and_some_sizes_alone(dtype: str, block: int, taken: bool) -> None:
    """Blocks of 8 and 2 bits come out as garbage. What the row takes is spoiled in the graph that the scheme makes."""
    w = constant("w", RNG.standard_normal((128, 24)).astype(np.float32))
    model = from_text(f"{HEADER}agraph (float[3,128] x) => (float[3,24] y)\n<{w}>\n{{ y = MatMul (x, w) }}")
    pipeline.run(model, TARGET.passes(Request("w4g32")))
    (product,) = [n for n in model.graph if n.op_type == "FullyConnected"]
    weight = product.inputs[1]
    made = None if weight is None else weight.producer()
    assert made is not None and made.attributes["block_size"].as_int() == 32
    codes, scale = made.inputs[:2]
    assert codes is not None and scale is not None
    kind = ir.DataType[dtype]
    drawn = RNG.integers(-2, 2, (24, 128)).astype(kind.numpy())
    codes.const_value, codes.dtype = ir.tensor(drawn, dtype=kind, name=codes.name), kind
    scales = RNG.uniform(0.01, 0.02, (24, 128 // block)).astype(np.float32)
    scale.const_value, scale.shape = ir.tensor(scales, name=scale.name), ir.Shape(scales.shape)
    made.attributes["block_size"] = ir.AttrInt64("block_size", block)
    found = TARGET.declaration("cpu").match(product, model.functions)
    assert (isinstance(found, Row) and any(p.dtypes for p in found.ports.values())) is taken


# Operators without a kernel for integers of 8 bits, and those which 16 bits lack besides.
NEVER = {"SIN", "COS", "FLOOR", "CEIL", "ROUND", "SQUARE", "SIGN", "POW", "CUMSUM", "L2_POOL_2D", "CONV_3D"}
NOT_16 = {
    "HARD_SWISH", "ELU", "RELU_N1_TO_1", "RELU_0_TO_1", "LOG_SOFTMAX", "L2_NORMALIZATION", "SQUARED_DIFFERENCE",
    "SPACE_TO_DEPTH", "DEPTH_TO_SPACE", "ARG_MAX",
}  # fmt: skip


def test_no_row_names_a_kernel_that_is_not_there() -> None:
    rows = [r for r in TARGET.declaration("cpu") if r.file.startswith("quantized/int")]

    def kernels(kind: str) -> set[str]:
        return {
            r.lower or ""
            for r in rows
            if any(kind in p.dtypes for p in r.ports.values() if p.role != "weight")
        }

    assert len(kernels("int8")) > 30 and len(kernels("int16")) > 15
    assert not kernels("int8") & NEVER
    assert not kernels("int16") & (NEVER | NOT_16)


def test_weights_of_two_bits_belong_to_products_and_tables_alone() -> None:
    rows = [r for r in TARGET.declaration("cpu") if any("int2" in p.dtypes for p in r.ports.values())]
    assert {r.lower for r in rows if r.lower not in ("DEQUANTIZE", "DEQUANTIZE_CODES")} <= {
        "FULLY_CONNECTED",
        "EMBEDDING_LOOKUP",
    }


def test_an_output_that_is_all_but_zero_gets_the_scale_that_its_kernel_needs() -> None:
    """HARD_SWISH refuses a scale below a 128th of its input's."""
    model = from_text(
        f"{HEADER}agraph (float[1,4] x) => (float[1,4] y)\n"
        f"<{constant('w', np.eye(4, dtype=np.float32))}, {constant('b', np.full(4, -40, np.float32))}>\n"
        "{ t = Gemm (x, w, b) y = HardSwish (t) }"
    )
    drawn = [{"x": RNG.standard_normal((1, 4)).astype(np.float32) / 10} for _ in range(6)]
    drawn[0]["x"] += np.float32(37.2)  # a range of 0.1 behind one of 40
    request = Request("int8", calibration=Calibration(lambda: drawn, model), options={"refine": "off"})
    pipeline.run(model, TARGET.passes(request))
    assert "HARD_SWISH" in in_integers(model)
    sink = io.BytesIO()
    TARGET.emit(model, sink, request)
    for resolver in RESOLVERS:
        (y,) = LiteRT(sink.getvalue(), resolver).run(drawn[1]).values()
        assert np.abs(y).max() < 0.5
