"""Runs a TFLite file on LiteRT, under both of its resolvers: XNNPACK and the builtin kernels."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tapeout.sdk import InternalError, InvalidModelError, Port, Request, TapeoutError, UsageError

Arrays = dict[str, np.ndarray[Any, Any]]

RESOLVERS = {"XNNPACK": "AUTO", "builtin kernels": "BUILTIN_WITHOUT_DEFAULT_DELEGATES"}
LARGE = 1 << 30  # bytes of a file of which there is no second copy in memory
RESET = "reset"  # the signature that sets the states of a file to zero
CHOICES = {"both": tuple(RESOLVERS), "xnnpack": ("XNNPACK",), "builtin": ("builtin kernels",)}


def runners(artifact: Path, request: Request) -> tuple[LiteRT, ...]:
    """`artifact` on both resolvers, which must agree on it. Option `threads` bounds their threads, `resolver` is
    "both", "xnnpack" or "builtin": from 1 GiB on the builtin kernels alone unless it is given, since XNNPACK keeps
    a copy of all weights in memory."""
    text = request.options.get("threads", "1")
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"option threads: '{text}', expected a number of at least 1")
    large = artifact.is_file() and artifact.stat().st_size >= LARGE
    chosen = request.options.get("resolver", "builtin" if large else "both")
    if chosen not in CHOICES:
        raise UsageError(f"option resolver: '{chosen}', expected {', '.join(CHOICES)}")
    return tuple(LiteRT(artifact, resolver, threads=int(text)) for resolver in CHOICES[chosen])


class LiteRT:
    """A TFLite file (a path, or its bytes) opened under one resolver of LiteRT.

    Raises InvalidModelError where the file is none, InternalError where LiteRT refuses a well-formed one.
    """

    device = "cpu"

    def __init__(self, model: Path | bytes, resolver: str = "XNNPACK", threads: int = 1) -> None:
        self._model = model
        self._resolver = resolver
        self._threads = threads
        self._shown: Any = None
        self.runtime = f"LiteRT {_version()} {resolver}"
        self._interpreter = self._open(keep=False)
        signature = self._signature(self._interpreter)
        self.inputs: dict[str, int] = signature["inputs"]
        self.outputs: dict[str, int] = signature["outputs"]

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        """The outputs for `inputs`, both keyed by the source's names. A file that keeps states has them from the
        run before; see `reset`."""
        self._invoke(self._interpreter, inputs)
        try:
            return {name: _read(self._interpreter, index) for name, index in self.outputs.items()}
        except (ValueError, RuntimeError) as error:  # a damaged file: an output that nothing computes
            raise self._failure("does not run", error) from error

    def reset(self) -> None:
        """Set the states that the file keeps to what they begin with."""
        _reset(self._interpreter)

    def tensors(self, inputs: Mapping[str, np.ndarray[Any, Any]], names: Sequence[str]) -> Arrays:
        """The tensors of the main graph among `names`, as far as the runtime shows them: what a delegate has
        fused away is absent. States are those of a first run."""
        if self._shown is None:
            self._shown = self._open(keep=True)
        _reset(self._shown)
        self._invoke(self._shown, inputs)
        wanted = set(names)
        found: Arrays = {}
        for detail in self._shown.get_tensor_details():
            if detail["name"] in wanted:
                try:
                    found[detail["name"]] = self._shown.get_tensor(detail["index"])
                except ValueError:
                    continue  # never computed: it lies inside a delegate or in a branch that was not taken
        return found

    def ports(self) -> tuple[list[Port], list[Port]]:
        """Inputs and outputs as the file states them, under the names of its signature."""
        found = []
        for named, details in (
            (self.inputs, self._interpreter.get_input_details()),
            (self.outputs, self._interpreter.get_output_details()),
        ):
            by_index = {d["index"]: d for d in details}
            found.append([_port(name, by_index[index]) for name, index in named.items()])
        return found[0], found[1]

    def names(self) -> list[str]:
        """The names of the tensors that operators of the main graph compute, in order."""
        plain = LiteRT(self._model, "builtin kernels") if self._resolver == "XNNPACK" else self
        named = {d["index"]: d["name"] for d in plain._interpreter.get_tensor_details()}
        made = [named.get(i, "") for op in plain._interpreter._get_ops_details() for i in op["outputs"]]
        return [name for name in dict.fromkeys(made) if name]

    @property
    def quantized(self) -> bool:
        """Whether some tensor holds integers that stand for other numbers."""
        details = self._interpreter.get_tensor_details()
        return any(len(d["quantization_parameters"]["scales"]) for d in details)

    def _open(self, keep: bool) -> Any:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        source: dict[str, Any] = {"model_content": self._model}
        if not isinstance(self._model, bytes):
            if not self._model.is_file():
                raise InvalidModelError(f"no TFLite file at {self._model}")
            source = {"model_path": os.fspath(self._model)}
        try:
            made = Interpreter(
                **source,
                experimental_op_resolver_type=getattr(OpResolverType, RESOLVERS[self._resolver]),
                experimental_preserve_all_tensors=keep,
                num_threads=self._threads,
            )
        except (ValueError, RuntimeError) as error:
            raise self._failure("does not load", error) from error
        return made

    def _signature(self, interpreter: Any) -> dict[str, Any]:
        found = interpreter._get_full_signature_list()
        if "serving_default" in found:
            return dict(found["serving_default"])
        if found:
            return dict(next(iter(found.values())))
        named = {"inputs": interpreter.get_input_details(), "outputs": interpreter.get_output_details()}
        return {kind: {d["name"]: d["index"] for d in details} for kind, details in named.items()}

    def _invoke(self, interpreter: Any, inputs: Mapping[str, np.ndarray[Any, Any]]) -> None:
        details = {d["index"]: d for d in interpreter.get_input_details()}
        arrays: dict[int, np.ndarray[Any, Any]] = {}
        for name, index in self.inputs.items():
            if name not in inputs:
                raise UsageError(f"input '{name}' is missing; given: {', '.join(inputs) or 'none'}")
            if index not in details:
                error = ValueError(f"its signature calls tensor {index} the input '{name}', which is none")
                raise self._failure("does not load", error)
            array, detail = np.ascontiguousarray(inputs[name]).reshape(np.shape(inputs[name])), details[index]
            if array.dtype != detail["dtype"]:
                raise UsageError(
                    f"input '{name}' is {array.dtype}, expected {np.dtype(detail['dtype']).name}"
                )
            arrays[index] = array
        try:
            for index, array in arrays.items():
                if tuple(details[index]["shape"]) != array.shape:
                    interpreter.resize_tensor_input(index, array.shape)
            interpreter.allocate_tensors()
            interpreter.reset_all_variables()
            for index, array in arrays.items():
                interpreter.set_tensor(index, array)
            interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise self._failure("does not run", error) from error

    def _failure(self, what: str, error: Exception) -> TapeoutError:
        name = "the TFLite file" if isinstance(self._model, bytes) else f"'{self._model.name}'"
        text = " ".join(str(error).split())
        kind = InvalidModelError if what == "does not load" and "builtin" not in text else InternalError
        return kind(f"{name} {what} on {self.runtime}: {text}")


def _port(name: str, detail: Mapping[str, Any]) -> Port:
    signature = detail["shape_signature"] if len(detail["shape_signature"]) else detail["shape"]
    scale, zero = detail["quantization"]
    shape = tuple(None if d < 0 else int(d) for d in signature)
    return Port(name, str(np.dtype(detail["dtype"]).name), shape, float(scale), int(zero), detail["name"])


def _read(interpreter: Any, index: int) -> np.ndarray[Any, Any]:
    """A tensor after a run; the runtime has no bytes to show of one without elements."""
    detail = interpreter._get_tensor_details(index, 0)
    if 0 in detail["shape"]:
        return np.zeros(detail["shape"], detail["dtype"])
    return interpreter.get_tensor(index)  # type: ignore[no-any-return]


def _reset(interpreter: Any) -> None:
    if RESET in interpreter._get_full_signature_list():
        interpreter.get_signature_runner(RESET)()


@functools.cache
def _version() -> str:
    import importlib.metadata

    return importlib.metadata.version("ai-edge-litert")
