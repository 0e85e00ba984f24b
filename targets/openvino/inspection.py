"""What an OpenVINO file holds, and in which precision the CPU plugin executes every layer of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tapeout.sdk import AccuracyError, InvalidModelError
from tapeout.targets.openvino.runtime import core, version

# Types of constants that are meant to stay as they are until a kernel reads them.
LOW = frozenset(
    {"u1", "u2", "i4", "u4", "i8", "u8", "nf4", "f4e2m1", "f8e4m3", "f8e5m2", "u3", "u6", "f8e8m0"}
)
# Precisions of a layer that has widened its weights.
WIDE = frozenset({"f32", "f16", "bf16", "f64"})
# What stands between codes and the operator that reads them.
MAKING_REAL = frozenset({"Convert", "Subtract", "Multiply", "Reshape", "Transpose", "Unsqueeze", "Squeeze"})
# Constants with fewer elements are tables, zero points and shapes.
SMALLEST = 1024
# Operators that one layer may be made of, in a row.
FUSED = 8
# Nodes of the compiled graph that compute nothing.
PASSIVE = frozenset({"Input", "Output", "Const"})


@dataclass(frozen=True)
class Layer:
    """A layer as the plugin executes it: `precision` is that of its kernel, `kernel` what the plugin calls it,
    `sources` the operators of the file that it computes."""

    name: str
    kind: str
    precision: str
    kernel: str
    output: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Weight:
    """A constant of the file that is stored in few bits, the operators that read it, and in what they execute."""

    name: str
    type: str
    shape: tuple[int, ...]
    readers: tuple[str, ...]
    executed: tuple[str, ...]

    @property
    def widened(self) -> bool:
        """Whether a reader has made floats of it beforehand."""
        return not self.executed or any(p in WIDE for p in self.executed)


def inspect(artifact: Path) -> dict[str, Any]:
    """The contents of an OpenVINO file as plain data. Raises InvalidModelError where it is none."""
    weights = artifact.with_suffix(".bin")
    model = read(artifact)
    found: dict[str, Any] = {
        "format": "openvino",
        "bytes": artifact.stat().st_size + (weights.stat().st_size if weights.is_file() else 0),
        "weight_bytes": weights.stat().st_size if weights.is_file() else 0,
        "weights_by_type": _by_type(model),
        "inputs": [_port(p) for p in model.inputs],
        "outputs": [_port(p) for p in model.outputs],
        "states": [_variable(s) for s in model.get_variables()],
        "operators": dict(Counter(op.get_type_name() for op in _computing(model)).most_common()),
        "runtime": f"OpenVINO {version()} CPU",
    }
    try:
        compiled = core().compile_model(model, "CPU", {})
    except RuntimeError as error:
        return found | {"failure": f"does not compile: {_text(error)}"}
    layers = executed(compiled)
    stored = low_bit(model, layers)
    return found | {
        "precisions": dict(Counter(x.precision for x in layers if x.kind not in PASSIVE).most_common()),
        "low_bit": [asdict(w) | {"widened": w.widened} for w in stored],
        "layers": [asdict(x) for x in layers if x.kind not in PASSIVE],
    }


def read(artifact: Path) -> Any:
    """The file as an openvino.Model."""
    if not artifact.is_file():
        raise InvalidModelError(f"no OpenVINO file at {artifact}")
    try:
        return core().read_model(artifact)
    except RuntimeError as error:
        raise InvalidModelError(f"'{artifact.name}' is no OpenVINO model: {_text(error)}") from error


def executed(compiled: Any) -> list[Layer]:
    """The layers of a compiled model, in the order in which they run."""
    layers = []
    for op in compiled.get_runtime_model().get_ordered_ops():
        facts = {k: v.astype(str) for k, v in op.get_rt_info().items()}
        layers.append(
            Layer(
                op.get_friendly_name(),
                facts.get("layerType", op.get_type_name()),
                facts.get("runtimePrecision", "unknown"),
                facts.get("primitiveType", "unknown"),
                facts.get("outputPrecisions", "unknown"),
                tuple(n for n in facts.get("originalLayersNames", "").split(",") if n),
            )
        )
    return layers


def low_bit(model: Any, layers: Iterable[Layer]) -> list[Weight]:
    """The constants of `model` that are stored in few bits, with how the `layers` that read them execute."""
    precision = precisions(layers)
    found = []
    for op in model.get_ordered_ops():
        if op.get_type_name() != "Constant":
            continue
        kind, shape = op.get_element_type().get_type_name(), tuple(op.get_output_shape(0))
        if kind not in LOW or _size(shape) < SMALLEST:
            continue
        readers = _readers(op)
        if readers is None:
            continue  # codes that are used as they are, an image or a mask: nothing to widen
        names = tuple(n.get_friendly_name() for n in readers)
        kernels = tuple(p for n in readers if (p := _precision(n, precision)) is not None)
        found.append(Weight(op.get_friendly_name(), kind, shape, names, kernels))
    return found


def _precision(reader: Any, known: Mapping[str, str]) -> str | None:
    """The precision of the layer that computes `reader`: it may be called after what it is fused with, which comes
    behind."""
    level = [reader]
    for _ in range(FUSED):
        for op in level:
            if op.get_friendly_name() in known:
                return known[op.get_friendly_name()]
        level = [p.get_node() for op in level for port in op.outputs() for p in port.get_target_inputs()]
    return None


def hold(model: Any, compiled: Any, name: str) -> None:
    """Raise AccuracyError where a weight of `model` that is stored in few bits executes as floats."""
    wide = [w for w in low_bit(model, executed(compiled)) if w.widened]
    if not wide:
        return
    first = wide[0]
    what = ", ".join(sorted(set(first.executed))) or "folded into another constant"
    more = f", and {len(wide) - 1} more" if len(wide) > 1 else ""
    raise AccuracyError(
        f"'{name}': weight '{first.name}' is stored as {first.type} and OpenVINO {version()} executes it as {what}, "
        f"for '{', '.join(first.readers)}'{more}",
        hint="leave it in floats with a rule of a recipe, or choose another scheme",
        nodes=[r for w in wide for r in w.readers][:10],
    )


def precisions(layers: Iterable[Layer]) -> Mapping[str, str]:
    """The precision that each operator of the file is executed in: of the layer that computes it."""
    found: dict[str, str] = {}
    for layer in layers:
        if layer.kind not in PASSIVE:
            for source in (*layer.sources, layer.name):
                found.setdefault(source, layer.precision)
    return found


def _readers(constant: Any) -> list[Any] | None:
    """The operators that compute with a constant once it is real, None where it never becomes real."""
    found, seen, real = [], set(), False
    stack = [constant]
    while stack:
        op = stack.pop()
        for port in op.output(0).get_target_inputs():
            node = port.get_node()
            name = node.get_friendly_name()
            kind = node.get_type_name()
            real = real or (kind == "Convert" and node.get_element_type().is_real())
            if kind in MAKING_REAL and (real or kind != "Multiply"):
                if name not in seen:
                    seen.add(name)
                    stack.append(node)
            else:
                found.append(node)
    return found if real else None


def _size(shape: Iterable[int]) -> int:
    total = 1
    for d in shape:
        total *= d
    return total


def _by_type(model: Any) -> dict[str, dict[str, int]]:
    """Number and bytes of the constants by type, most bytes first."""
    found: dict[str, dict[str, int]] = {}
    for op in model.get_ordered_ops():
        if op.get_type_name() == "Constant":
            entry = found.setdefault(op.get_element_type().get_type_name(), {"tensors": 0, "bytes": 0})
            entry["tensors"] += 1
            entry["bytes"] += op.get_byte_size()
    return dict(sorted(found.items(), key=lambda item: -item[1]["bytes"]))


def _computing(model: Any) -> list[Any]:
    return [
        o for o in model.get_ordered_ops() if o.get_type_name() not in ("Constant", "Parameter", "Result")
    ]


def _port(port: Any) -> dict[str, Any]:
    shape = port.get_partial_shape()
    dims = [d.get_length() if d.is_static else str(d) for d in shape] if shape.rank.is_static else None
    names = sorted(port.get_names())
    return {"name": names[0] if names else "", "type": port.get_element_type().get_type_name(), "shape": dims}


def _variable(variable: Any) -> dict[str, Any]:
    info = variable.get_info()
    return {"name": info.variable_id, "type": info.data_type.get_type_name(), "shape": str(info.data_shape)}


def _text(error: Exception) -> str:
    return " ".join(str(error).split())
