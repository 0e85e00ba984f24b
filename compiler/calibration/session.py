"""The float graph opened for measuring: weights are lent to ONNX Runtime where they lie, not written out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tapeout.compiler.errors import InvalidModelError
from tapeout.compiler.ir.save import to_proto
from tapeout.compiler.reference import Reference

Array = NDArray[Any]
Run = Callable[[Mapping[str, Array]], dict[str, Array]]

# Constants from this size on are lent.
LENT = 1 << 12
# What numpy and ONNX Runtime call by the same name.
_PLAIN = frozenset(
    {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16,
     ir.DataType.INT32, ir.DataType.INT64}
)  # fmt: skip


def opened(model: ir.Model, names: Sequence[str]) -> Run:
    """A function that gives the values `names` for a feed, each call in the calling thread alone, so that the
    numbers are the same however many calls run at once. Optimizations are off.

    Raises InvalidModelError where a call fails.
    """
    session, held = _session(model, names)
    if session is None:
        reference = Reference(model, threads=1)
        return lambda feed: reference.run(feed, names)
    wanted = list(names)

    def run(feed: Mapping[str, Array]) -> dict[str, Array]:
        assert held is not None  # lives as long as the session
        try:
            found = session.run(wanted, dict(feed))
        except Exception as error:
            text = str(error).strip().splitlines()
            raise InvalidModelError(
                f"the model does not run on the calibration data: {text[0][:500] if text else type(error).__name__}"
            ) from error
        return dict(zip(wanted, (np.asarray(v) for v in found), strict=True))

    return run


def _session(model: ir.Model, names: Sequence[str]) -> tuple[Any, list[Any] | None]:
    """A session and what must live as long; None where ONNX Runtime lacks a kernel."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    lent = {
        name: value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
        and value.const_value.dtype in _PLAIN
        and value.const_value.nbytes >= LENT
    }
    arrays = {
        name: np.ascontiguousarray(value.const_value.numpy())
        for name, value in lent.items()
        if value.const_value is not None
    }
    proto = _shell(model, lent)
    known = {o.name for o in proto.graph.output}
    for name in names:
        if name not in known:
            proto.graph.output.add().name = name
    values = [ort.OrtValue.ortvalue_from_numpy(a) for a in arrays.values()]
    if values:
        options.add_external_initializers(list(arrays), values)
    try:
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # whatever is wrong, the reference says it, or runs it in another way
        return None, None
    return session, [arrays, values]


def _shell(model: ir.Model, lent: Mapping[str, ir.Value]) -> Any:
    """The model as protobuf with `lent` constants as external data that is nowhere."""
    kept = {name: value.const_value for name, value in lent.items()}
    try:
        for name, value in lent.items():
            tensor = kept[name]
            assert tensor is not None
            value.const_value = ir.ExternalTensor(
                "lent",
                0,
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape([int(d) for d in tensor.shape]),  # type: ignore[arg-type]
                name=name,
                base_dir="",
            )
        return to_proto(model)
    finally:
        for name, value in lent.items():
            value.const_value = kept[name]
