"""Runs a scoring script that lies beside the real models, on OpenVINO files as well as .onnx and .tflite.

    python benchmarks/scoring.py EVAL_FOLDER SCRIPT FILE.. --data FOLDER

The scripts open what is no .tflite in ONNX Runtime: a `.xml` is given to them as a session of OpenVINO's CPU plugin
that looks like one of ONNX Runtime, at float32 (integers stay integers) unless TAPEOUT_PRECISION says otherwise.
"""

from __future__ import annotations

import os
import runpy
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

TYPES = {"f32": "tensor(float)", "f16": "tensor(float16)", "i64": "tensor(int64)", "i32": "tensor(int32)",
         "u8": "tensor(uint8)", "i8": "tensor(int8)"}  # fmt: skip
PRECISION = os.environ.get("TAPEOUT_PRECISION", "f32")

InferenceSession = onnxruntime.InferenceSession


class Session:
    """An OpenVINO file behind the few methods of an InferenceSession that the scripts call."""

    def __init__(self, path: str) -> None:
        import openvino

        core = openvino.Core()
        settings = {"INFERENCE_PRECISION_HINT": PRECISION, "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
        model = core.read_model(path)
        self._compiled = core.compile_model(model, "CPU", settings)
        self._inputs = [self._port(p) for p in model.inputs]
        self._outputs = [self._port(p) for p in model.outputs]

    @staticmethod
    def _port(port: Any) -> SimpleNamespace:
        shape = [d.get_length() if d.is_static else None for d in port.get_partial_shape()]
        return SimpleNamespace(
            name=sorted(port.get_names())[0], shape=shape, type=TYPES[port.get_element_type().get_type_name()]
        )

    def get_inputs(self) -> list[SimpleNamespace]:
        return self._inputs

    def get_outputs(self) -> list[SimpleNamespace]:
        return self._outputs

    def run(self, _: Any, feed: dict[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        found = self._compiled(feed)
        return [np.array(found[i]) for i in range(len(self._outputs))]


def open_session(path: str, *rest: Any, **options: Any) -> Any:
    return Session(path) if str(path).endswith(".xml") else InferenceSession(path, *rest, **options)


def main() -> None:
    folder, script, *rest = sys.argv[1:]
    sys.dont_write_bytecode = True
    sys.path.insert(0, folder)
    onnxruntime.InferenceSession = open_session
    sys.argv = [script, *rest]
    runpy.run_path(os.path.join(folder, script), run_name="__main__")


if __name__ == "__main__":
    main()
