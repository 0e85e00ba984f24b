"""Runs an OpenVINO model on the CPU plugin at the precision of its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tapeout.sdk import InternalError, InvalidModelError, Port, Request, TapeoutError, UsageError
from tapeout.targets.openvino.functions import UNSIGNED
from tapeout.targets.openvino.preparation import without
from tapeout.targets.openvino.promises import keep
from tapeout.targets.openvino.runtime import core, openvino, version

Arrays = dict[str, np.ndarray[Any, Any]]

# Types that the runtime shows under another type of the same bits.
OWN_TYPES = {
    "f8e5m2": "float8_e5m2",
    "f8e4m3": "float8_e4m3fn",
    "f8e8m0": "float8_e8m0fnu",
    "bf16": "bfloat16",
}
PASSIVE = frozenset({"Result", "Parameter", "Constant"})
# Types of constants that hold codes.
CODES = frozenset({"i8", "u8", "i4", "u4", "u2", "nf4", "f4e2m1", "f8e4m3", "f8e5m2"})
REJECTED = ".rejected"
# The plugin computes in bfloat16 where the CPU has it, and quantizes activations before compressed weights, unless
# told otherwise: numbers are judged without either.
EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "PERFORMANCE_HINT": "LATENCY",
}


def runners(artifact: Path, request: Request) -> tuple[OpenVINO, ...]:
    """`artifact` on the CPU plugin, whatever the device it is for: option `threads` bounds its threads. Inputs are
    those of the source: what prepares them inside the file is judged by itself (`promises`)."""
    text = request.options.get("threads", "1")
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"option threads: '{text}', expected a number of at least 1")
    keep(artifact, weights_of(artifact), request)
    return (OpenVINO(artifact, threads=int(text)),)


def weights_of(artifact: Path) -> Path:
    """The file of weights beside `artifact`."""
    plain = Path(artifact.name.removesuffix(REJECTED)).with_suffix(".bin").name
    return artifact.with_name(plain + (REJECTED if artifact.name.endswith(REJECTED) else ""))


class OpenVINO:
    """An artifact (`x.xml` with `x.bin` beside it) compiled for the CPU.

    Raises InvalidModelError where the files are none, InternalError where the plugin refuses a well-formed one.
    """

    device = "cpu"

    def __init__(self, artifact: Path, threads: int = 1) -> None:
        self._artifact = artifact
        self._threads = threads
        self.runtime = f"OpenVINO {version()} CPU"
        self._model = self._read()
        self._request = self._compiled(self._model).create_infer_request()

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        """The outputs for `inputs`, both keyed by the source's names."""
        return self._infer(self._request, self._model, inputs)

    def tensors(self, inputs: Mapping[str, np.ndarray[Any, Any]], names: Sequence[str]) -> Arrays:
        """The tensors of the main graph among `names` that the file has."""
        model, wanted = self._read(), set(names)
        shown: dict[str, int] = {}
        for op in _computing(model):
            for port in op.outputs():
                for name in sorted({n.removesuffix(UNSIGNED) for n in port.get_names()} & wanted):
                    if name not in shown:
                        model.add_outputs(port)
                        shown[name] = next(
                            i for i, o in enumerate(model.outputs) if o.get_node().input_value(0) == port
                        )
        request = self._compiled(model).create_infer_request()
        self._infer(request, model, inputs)
        found = {name: _read(request.get_output_tensor(index)) for name, index in shown.items()}
        signed = {
            n
            for n, i in shown.items()
            if n + UNSIGNED in model.outputs[i].get_node().input_value(0).get_names()
        }
        return {n: (a.astype(np.int16) - 128).astype(np.int8) if n in signed else a for n, a in found.items()}

    def ports(self) -> tuple[list[Port], list[Port]]:
        """Inputs and outputs as the file states them."""
        return [_port(p) for p in self._model.inputs], [_port(p) for p in self._model.outputs]

    def names(self) -> list[str]:
        """The names of the tensors that operators of the main graph compute, in order."""
        found = [n for op in _computing(self._model) for o in op.outputs() for n in sorted(o.get_names())]
        return list(dict.fromkeys(name.removesuffix(UNSIGNED) for name in found))

    @property
    def quantized(self) -> bool:
        """Whether some tensor holds integers that stand for other numbers."""
        ops = self._model.get_ordered_ops()
        return any(
            op.get_type_name() == "FakeQuantize"
            or (op.get_type_name() == "Constant" and op.get_element_type().get_type_name() in CODES)
            for op in ops
        )

    def _read(self) -> Any:
        weights = weights_of(self._artifact)
        for file in (self._artifact, weights):
            if not file.is_file():
                raise InvalidModelError(f"no OpenVINO file at {file}")
        try:
            self._artifact.read_bytes().decode()  # names that are no text the runtime hands on as they are
            return without(core().read_model(self._artifact, weights))
        except (RuntimeError, UnicodeDecodeError) as error:
            raise self._failure("does not load", error) from error

    def _compiled(self, model: Any) -> Any:
        try:
            return core().compile_model(model, "CPU", {**EXACT, "INFERENCE_NUM_THREADS": self._threads})
        except RuntimeError as error:
            raise self._failure("does not compile", error) from error

    def _infer(self, request: Any, model: Any, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        for index, port in enumerate(model.inputs):
            name = next((n for n in sorted(port.get_names()) if n in inputs), None)
            if name is None:
                raise UsageError(
                    f"input '{port.get_any_name()}' is missing; given: {', '.join(inputs) or 'none'}"
                )
            array = np.ascontiguousarray(inputs[name]).reshape(np.shape(inputs[name]))
            try:
                request.set_input_tensor(index, _tensor(array, port.get_element_type()))
            except RuntimeError as error:
                raise self._failure("does not take its input", error) from error
        try:
            request.infer()
        except RuntimeError as error:
            raise self._failure("does not run", error) from error
        found: Arrays = {}
        for index, port in enumerate(model.outputs):
            for name in port.get_names():
                found[name] = _read(request.get_output_tensor(index))
        return found

    def _failure(self, what: str, error: Exception) -> TapeoutError:
        text = " ".join(str(error).split())
        kind = InvalidModelError if what == "does not load" else InternalError
        return kind(f"'{self._artifact.name}' {what} on {self.runtime}: {text}")


def _computing(model: Any) -> list[Any]:
    return [op for op in model.get_ordered_ops() if op.get_type_name() not in PASSIVE]


def _port(port: Any) -> Port:
    shape = tuple(d.get_length() if d.is_static else None for d in port.get_partial_shape())
    kind = port.get_element_type()
    known = OWN_TYPES.get(kind.get_type_name())
    return Port(sorted(port.get_names())[0], known or str(np.dtype(kind.to_dtype()).name), shape)


def _tensor(array: np.ndarray[Any, Any], kind: Any) -> Any:
    """`array` as the runtime takes it: types that NumPy lacks go by their bits."""
    ov = openvino()
    if array.dtype.type.__module__ == "numpy":
        return ov.Tensor(array)
    return ov.Tensor(np.ascontiguousarray(array).reshape(-1).view(np.uint8), ov.Shape(array.shape), kind)


def _read(tensor: Any) -> np.ndarray[Any, Any]:
    import ml_dtypes

    array, name = np.array(tensor.data), tensor.get_element_type().get_type_name()
    own = OWN_TYPES.get(name)
    return array if own is None else array.view(getattr(ml_dtypes, own))
