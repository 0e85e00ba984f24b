"""What a TFLite file holds: operators with versions, tensors, sizes, signatures."""

from __future__ import annotations

import math
import mmap
from collections import Counter
from pathlib import Path
from typing import Any

from tapeout.sdk import InvalidModelError


def inspect(artifact: Path) -> dict[str, Any]:
    """The contents of a TFLite file as plain data. Raises InvalidModelError where it is none."""
    from ai_edge_litert import schema_py_generated as s

    with artifact.open("rb") as file:
        size = file.seek(0, 2)
        # Mapped: only the tables are looked at, however large the weights behind them are.
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b"")
    if len(data) < 8 or bytes(data[4:8]) != b"TFL3":
        raise InvalidModelError(f"'{artifact.name}' is not a TFLite file: its identifier is not TFL3")
    try:
        model = s.Model.GetRootAs(data, 0)
        if model.Version() != 3 or not model.SubgraphsLength():
            raise ValueError(f"version {model.Version()} with {model.SubgraphsLength()} subgraphs")
        return _contents(s, model, data)
    except Exception as error:
        raise InvalidModelError(f"'{artifact.name}' is damaged: {type(error).__name__}: {error}") from error


def _contents(s: Any, model: Any, data: memoryview) -> dict[str, Any]:
    operators = {v: k for k, v in vars(s.BuiltinOperator).items() if isinstance(v, int)}
    types = {v: k.lower() for k, v in vars(s.TensorType).items() if isinstance(v, int)}
    codes = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
    names = [
        operators.get(max(c.BuiltinCode(), c.DeprecatedBuiltinCode()), "UNKNOWN")
        if c.CustomCode() is None
        else c.CustomCode().decode()
        for c in codes
    ]
    subgraphs = []
    for index in range(model.SubgraphsLength()):
        graph = model.Subgraphs(index)
        used: Counter[str] = Counter()
        for k in range(graph.OperatorsLength()):
            code = graph.Operators(k).OpcodeIndex()
            used[f"{names[code]} v{codes[code].Version()}"] += 1
        subgraphs.append(
            {
                "name": (graph.Name() or b"").decode(),
                "operators": dict(sorted(used.items())),
                "tensors": graph.TensorsLength(),
                "inputs": [
                    _tensor(graph.Tensors(graph.Inputs(k)), types) for k in range(graph.InputsLength())
                ],
                "outputs": [
                    _tensor(graph.Tensors(graph.Outputs(k)), types) for k in range(graph.OutputsLength())
                ],
            }
        )
    weights = sum(
        model.Buffers(i).DataLength() or model.Buffers(i).Size() for i in range(model.BuffersLength())
    )
    metadata = {}
    for i in range(model.MetadataLength()):
        entry = model.Metadata(i)
        text = _bytes(model.Buffers(entry.Buffer()), data).rstrip(b"\0")
        metadata[entry.Name().decode()] = (
            text.decode(errors="replace") if len(text) < 256 else f"{len(text)} bytes"
        )
    signatures = [_signature(model.SignatureDefs(i)) for i in range(model.SignatureDefsLength())]
    return {
        "format": "tflite",
        "description": (model.Description() or b"").decode(),
        "bytes": len(data),
        "weight_bytes": weights,
        "weights_by_type": _by_type(model, types),
        "packed": _packed(s, model),
        "metadata": metadata,
        "signatures": signatures,
        "subgraphs": subgraphs,
    }


def _bytes(buffer: Any, data: memoryview) -> bytes:
    """The content of a buffer, inside the FlatBuffer or behind it."""
    if buffer.DataLength():
        return bytes(buffer.DataAsNumpy())
    return bytes(data[buffer.Offset() : buffer.Offset() + buffer.Size()])


def _by_type(model: Any, types: dict[int, str]) -> dict[str, dict[str, int]]:
    """Number and bytes of the constants by the type that tensors read them as, most bytes first."""
    seen: set[int] = set()
    found: dict[str, dict[str, int]] = {}
    for i in range(model.SubgraphsLength()):
        graph = model.Subgraphs(i)
        for k in range(graph.TensorsLength()):
            tensor = graph.Tensors(k)
            buffer = model.Buffers(tensor.Buffer())
            size = buffer.DataLength() or buffer.Size()
            if not size or tensor.Buffer() in seen:
                continue
            seen.add(tensor.Buffer())
            entry = found.setdefault(types[tensor.Type()], {"tensors": 0, "bytes": 0})
            entry["tensors"] += 1
            entry["bytes"] += size
    return dict(sorted(found.items(), key=lambda item: -item[1]["bytes"]))


def _packed(s: Any, model: Any) -> dict[str, int]:
    """How many weights are stored without their zeros, the bytes they take, places included, and took dense; how
    many of them kernels read as they are stored."""
    found = {"tensors": 0, "bytes": 0, "dense_bytes": 0, "read_packed": 0}
    sizes = {s.TensorType.FLOAT32: 4, s.TensorType.FLOAT16: 2, s.TensorType.INT8: 1}
    for i in range(model.SubgraphsLength()):
        graph = model.Subgraphs(i)
        unpacked = {
            operator.Inputs(0)
            for k in range(graph.OperatorsLength())
            for operator in (graph.Operators(k),)
            if model.OperatorCodes(operator.OpcodeIndex()).BuiltinCode() == s.BuiltinOperator.DENSIFY
        }
        for k in range(graph.TensorsLength()):
            tensor = graph.Tensors(k)
            if tensor.Sparsity() is None:
                continue
            record = s.SparsityParametersT.InitFromObj(tensor.Sparsity())
            buffer = model.Buffers(tensor.Buffer())
            lists = [
                v for d in record.dimMetadata for v in (d.arraySegments, d.arrayIndices) if v is not None
            ]
            shape = [tensor.Shape(n) for n in range(tensor.ShapeLength())]
            found["tensors"] += 1
            found["bytes"] += (buffer.DataLength() or buffer.Size()) + sum(v.values.nbytes for v in lists)
            found["dense_bytes"] += math.prod(shape) * sizes[tensor.Type()]
            found["read_packed"] += k not in unpacked
    return found


def _tensor(tensor: Any, types: dict[int, str]) -> dict[str, Any]:
    signature = tensor.ShapeSignatureLength()
    dims = tensor.ShapeSignature if signature else tensor.Shape
    shape = [int(dims(i)) for i in range(signature or tensor.ShapeLength())]
    return {"name": (tensor.Name() or b"").decode(), "type": types[tensor.Type()], "shape": shape}


def _signature(found: Any) -> dict[str, Any]:
    return {
        "key": (found.SignatureKey() or b"").decode(),
        "inputs": [found.Inputs(i).Name().decode() for i in range(found.InputsLength())],
        "outputs": [found.Outputs(i).Name().decode() for i in range(found.OutputsLength())],
    }
