"""How long an artifact takes on a device, under the runtime's own hints: one request at a time, or many at once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tapeout.sdk import Request, UsageError
from tapeout.targets.openvino.devices import compiled, device, properties
from tapeout.targets.openvino.inspection import read
from tapeout.targets.openvino.options import nearest
from tapeout.targets.openvino.runtime import version

Array = np.ndarray[Any, Any]

HINTS = {"latency": "LATENCY", "throughput": "THROUGHPUT"}
# Sizes that inputs get where neither the file nor the data says any.
FREE = 1
WARM = 5


def timers(artifact: Path, request: Request, hint: str | None = None) -> list[Timer]:
    """`artifact` under each hint, or the one that is asked for, on the device that `request` names.

    Raises UsageError on a hint, device or property that there is not, VendorToolError where the device is not here.
    """
    if hint is not None and hint not in HINTS:
        raise UsageError(f"no hint '{hint}'; {nearest(hint, HINTS)}")
    return [Timer(artifact, request, h) for h in ([hint] if hint else HINTS)]


class Timer:
    """An artifact compiled for a device under a hint; at the precision that the device takes by itself."""

    def __init__(self, artifact: Path, request: Request, hint: str) -> None:
        self.device = device(request.device)
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": HINTS[hint],
            **properties(request.options, self.device),
        }
        threads = request.options.get("threads")
        if threads is not None and self.device == "CPU":
            settings["INFERENCE_NUM_THREADS"] = int(threads)
        self._hint = hint
        self._model = read(artifact)
        self._compiled = compiled(self._model, self.device, settings)
        self.runtime = f"OpenVINO {version()} {self.device} {hint}{self._precision()}"

    def _precision(self) -> str:
        try:
            return f" ({self._compiled.get_property('INFERENCE_PRECISION_HINT').get_type_name()})"
        except RuntimeError:
            return ""

    def measure(self, feed: Mapping[str, Array], runs: int) -> tuple[list[float], float]:
        """Milliseconds of each of `runs` inferences, and how many there were in a second."""
        inputs = {i: self._input(port, feed) for i, port in enumerate(self._model.inputs)}
        return self._latencies(inputs, runs) if self._hint == "latency" else self._rate(inputs, runs)

    def _latencies(self, inputs: Mapping[int, Array], runs: int) -> tuple[list[float], float]:
        request = self._compiled.create_infer_request()
        for _ in range(min(WARM, runs)):
            request.infer(inputs)
        times = []
        for _ in range(runs):
            start = time.perf_counter()
            request.infer(inputs, share_inputs=True)
            times.append(1000 * (time.perf_counter() - start))
        return times, 1000 * len(times) / sum(times)

    def _rate(self, inputs: Mapping[int, Array], runs: int) -> tuple[list[float], float]:
        # Requests in turn, and no callback: a worker thread that gives one back while the model goes waits for ever.
        count = int(self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        requests = [self._compiled.create_infer_request() for _ in range(count)]
        requests[0].infer(inputs)
        times: list[float] = []
        total = max(runs, count)
        start = time.perf_counter()
        for i in range(total + count):
            request = requests[i % count]
            if i >= count:
                request.wait()
                times.append(request.latency)
            if i < total:
                request.start_async(inputs)
        return times[:total], total / (time.perf_counter() - start)

    def _input(self, port: Any, feed: Mapping[str, Array]) -> Array:
        """What is given for an input of the file; random numbers where that is what the source takes, not the file."""
        kind, shape = port.get_element_type(), port.get_partial_shape()
        name = next((n for n in port.get_names() if n in feed), None)
        given = None if name is None else np.asarray(feed[name])
        if given is not None and _fits(given, kind, shape):
            return given
        sizes = [d.get_length() if d.is_static else d.get_max_length() for d in shape]
        dims = [n if 0 < n < 1 << 20 else FREE for n in sizes]
        if given is not None and given.ndim == len(dims):
            spatial = max(given.shape)
            dims = [d if s.is_static else spatial for d, s in zip(dims, shape, strict=True)]
        rng = np.random.default_rng(0)
        dtype = np.dtype(kind.to_dtype())
        if dtype.kind == "f":
            return rng.standard_normal(dims).astype(dtype)
        return rng.integers(0, 2 if dtype.kind == "b" or dtype.itemsize > 1 else 127, dims).astype(dtype)


def _fits(array: Array, kind: Any, shape: Any) -> bool:
    same = array.dtype == np.dtype(kind.to_dtype()) and array.ndim == len(shape)
    return same and all(
        not d.is_static or d.get_length() == n for d, n in zip(shape, array.shape, strict=True)
    )
