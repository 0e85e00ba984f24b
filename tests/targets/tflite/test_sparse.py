"""Weights stored without their zeros: right on both resolvers, never larger, and read as the schema says."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tapeout.compiler import pipeline
from tapeout.compiler.errors import UsageError
from tapeout.compiler.target import Request
from tapeout.targets.tflite import TARGET
from tapeout.targets.tflite.inspection import inspect
from tapeout.targets.tflite.run import RESOLVERS, LiteRT
from tapeout.targets.tflite.sparse import RUNS, asked, encoding
from tests.passes.networks import network
from tests.targets.tflite import road

PACKED = {"sparse": "true"}
NETWORK = """
net (float[1,16,12,12] x) => (float[1,144,48] y) <
    float[32,16,3,3] w1, float[32] b1, float[32,1,3,3] wd, float[64,32,1,1] w2, float[64] b2, float[64,48] w3> {
    a = Conv<pads=[1,1,1,1]>(x, w1, b1)
    r = Relu(a)
    d = Conv<group=32, pads=[1,1,1,1]>(r, wd)
    c = Conv(d, w2, b2)
    t = Transpose<perm=[0,2,3,1]>(c)
    shape = Constant<value_ints=[1,144,64]>()
    f = Reshape(t, shape)
    y = MatMul(f, w3)
}"""


def model(left: float, run: int = 1) -> ir.Model:
    """NETWORK with weights of which the share `left` stays, in runs along the inputs of products."""
    rng = np.random.default_rng(0)
    made = network(NETWORK)
    for value in made.graph.initializers.values():
        shape = tuple(value.shape.numpy())  # type: ignore[union-attr]
        array = rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(np.prod(shape[1:], initial=1.0)))
        if len(shape) == 2:  # [K, O]
            array *= np.repeat(rng.random((shape[0] // run, shape[1])) < left, run, 0)
        elif len(shape) > 2:
            array *= rng.random(shape) < left
        value.const_value = ir.tensor(array, name=value.name)
    return made


def emitted(made: ir.Model, scheme: str, packed: bool, calibration: object = None) -> bytes:
    request = Request(scheme, options=PACKED if packed else {}, calibration=calibration)  # type: ignore[arg-type]
    pipeline.run(made, TARGET.passes(request))
    sink = io.BytesIO()
    TARGET.emit(made, sink, request)
    return sink.getvalue()


def calibration(made: ir.Model) -> object:
    from tapeout.compiler.calibration import Calibration

    return Calibration("random", made)


@pytest.mark.parametrize("scheme", ["float32", "float16", "int8", "w8", "int8-dynamic"])
@pytest.mark.parametrize(("left", "run"), [(0.1, 1), (0.2, 4), (0.02, 4)])
def test_packed_weights_compute_what_dense_ones_do(
    scheme: str, left: float, run: int, tmp_path: Path
) -> None:
    """The same codes on the same kernels: bit for bit where a kernel reads unpacked weights, within rounding where it
    skips zeros (float32 products, which add in another order)."""
    contents = []
    for packed in (False, True):
        made = model(left, run)
        contents.append(emitted(made, scheme, packed, calibration(made) if scheme == "int8" else None))
    dense, small = contents
    assert len(small) < len(dense)
    feed = road.inputs_of(model(left, run))
    for resolver in RESOLVERS:
        wanted, found = (LiteRT(c, resolver).run(feed)["y"] for c in contents)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())
    place = tmp_path / "m.tflite"
    place.write_bytes(small)
    told = inspect(place)["packed"]
    assert told["tensors"] and told["bytes"] < told["dense_bytes"]
    assert told["dense_bytes"] - told["bytes"] >= len(dense) - len(small)
    assert told["read_packed"] == (scheme == "float32" and (left, run) in {(0.2, 4), (0.02, 4)})


@pytest.mark.parametrize("scheme", ["float32", "int8"])
def test_what_saves_no_bytes_stays_dense(scheme: str) -> None:
    contents = []
    for packed in (False, True):
        made = model(0.95)
        contents.append(emitted(made, scheme, packed, calibration(made) if scheme == "int8" else None))
    assert contents[0] == contents[1]


@settings(deadline=None, max_examples=60)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 3), st.sampled_from([3, 4, 16, 300])),
           elements=st.sampled_from([0.0, 0.0, 0.0, 1.5, -2.0]))
)  # fmt: skip
def test_an_encoding_holds_every_element(array: np.ndarray[Any, Any]) -> None:
    found = encoding(array)
    assert found.run in RUNS
    runs = array.shape[-1] // found.run
    rows = np.zeros((array.size // array.shape[-1], runs, found.run), array.dtype)
    starts = found.starts.astype(np.int64)
    rows[np.repeat(np.arange(len(rows)), starts[1:] - starts[:-1]), found.places] = found.elements(array)
    np.testing.assert_array_equal(rows.reshape(array.shape), array)


@pytest.mark.parametrize(
    ("options", "device", "said"),
    [
        ({"sparse": "yes"}, "cpu", "expected true or false"),
        ({"sparse": "true"}, "ethos-u55-128", "offered for device cpu, not for ethos-u55-128"),
    ],
)
def test_what_is_refused(options: dict[str, str], device: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        asked(Request("float32", device=device, options=options))
