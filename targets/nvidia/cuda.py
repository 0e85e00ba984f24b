"""Runs a plan on a GPU, with the driver's bindings and NumPy alone: neither Triton nor torch is imported.

Weights are uploaded once; inner tensors lie in one arena, at the offsets of the profile that the inputs fit.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tapeout.sdk import InvalidModelError, ResourceError, TapeoutError, VendorToolError
from tapeout.targets.nvidia.executor import Arrays, bytes_of, choose, numpy_type, sizes_for
from tapeout.targets.nvidia.plan.expressions import value
from tapeout.targets.nvidia.plan.parts import (
    DTYPES,
    Argument,
    ArgumentKind,
    Kernel,
    Kind,
    Launch,
    Tensor,
    padded,
)
from tapeout.targets.nvidia.plan.read import PlanFile

WARP = 32
WARM = 3  # runs before those that are timed
# Dynamic shared memory beyond this is asked for in advance.
SHARED = 48 << 10
POISON = 0xFF
OUT_OF_MEMORY = "CUDA_ERROR_OUT_OF_MEMORY"


def probe() -> Any:
    """The driver's bindings, once there is a driver and a GPU. Raises VendorToolError that says what is missing."""
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        raise VendorToolError(
            "plans run on a GPU through the package cuda-bindings, which is not installed",
            hint="pip install 'tapeout[nvidia]'",
        )
    from cuda.bindings import driver

    try:
        (status,) = driver.cuInit(0)
    except Exception as error:  # the library of the driver is looked for at the first call
        raise VendorToolError(
            "there is no NVIDIA driver on this machine", hint="the plan runs on the CPU with --device cpu"
        ) from error
    if int(status):
        raise VendorToolError(
            f"the NVIDIA driver finds no GPU that it can use: {status.name}",
            hint="nvidia-smi says what the driver sees",
        )
    return driver


class Engine:
    """A plan on one GPU. `debug` poisons the arena and waits for each launch, so that an error names its launch.

    Raises VendorToolError where there is no driver or no GPU, InvalidModelError where the plan has no kernels for it,
    ResourceError where its memory does not suffice.
    """

    def __init__(self, file: PlanFile, ordinal: int = 0, *, driver: Any = None, debug: bool = False) -> None:
        self.plan, self.debug = file.plan, debug
        self._driver = probe() if driver is None else driver
        self._owned: list[int] = []
        self._arena, self._arena_bytes = 0, 0
        d = self._driver
        device = self._call(d.cuDeviceGet(ordinal), f"GPU {ordinal}")
        self._context = self._call(d.cuDevicePrimaryCtxRetain(device), f"the context of GPU {ordinal}")
        self._call(d.cuCtxSetCurrent(self._context), "the context")
        kinds = d.CUdevice_attribute
        major, minor = (
            self._call(d.cuDeviceGetAttribute(kind, device), "the architecture")
            for kind in (
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        self.architecture = 10 * major + minor
        self._kernels = kernels_for(file, self.architecture)
        self._functions = {group: self._load(kernel) for group, kernel in self._kernels.items()}
        self._weights = self._uploaded(file)

    def _uploaded(self, file: PlanFile) -> int:
        """The address of the weights, once they are on the GPU; each is held against its sha256."""
        address = self._allocate(self.plan.weight_bytes, "the weights")
        for weight in self.plan.weights:
            content = np.frombuffer(file.weight(weight), np.uint8)
            place = self._driver.cuMemcpyHtoD(address + weight.offset, content.ctypes.data, weight.size)
            self._call(place, f"weight '{weight.name}'")
        return address

    def _load(self, kernel: Kernel) -> Any:
        d, what = self._driver, f"kernel '{kernel.symbol}' for sm_{kernel.arch}"
        library = self._call(d.cuLibraryLoadData(kernel.image, None, None, 0, None, None, 0), what)
        found = self._call(d.cuLibraryGetKernel(library, kernel.symbol.encode()), what)
        function = self._call(d.cuKernelGetFunction(found), what)
        if kernel.shared > SHARED:
            kind = d.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._call(d.cuFuncSetAttribute(function, kind, kernel.shared), what)
        return function

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        """The outputs for `inputs`, both by name. Raises UsageError as the CPU executor does, VendorToolError that
        names the launch and its source nodes where CUDA fails."""
        with self._placed(inputs) as (places, sizes):
            self._all(places, sizes)
            self._call(self._driver.cuCtxSynchronize(), "the launches")
            return {
                t.name: self._fetched(places[i], _shape(t, sizes), t.dtype, t.name)
                for i, t in enumerate(self.plan.tensors)
                if t.kind == Kind.OUTPUT
            }

    def measure(self, inputs: Mapping[str, np.ndarray[Any, Any]], runs: int) -> list[float]:
        """Milliseconds of each of `runs` runs, inputs and outputs on the GPU; three come before that do not count."""
        found = []
        with self._placed(inputs) as (places, sizes):
            for run in range(WARM + runs):
                start = time.perf_counter()
                self._all(places, sizes)
                self._call(self._driver.cuCtxSynchronize(), "the launches")
                if run >= WARM:
                    found.append((time.perf_counter() - start) * 1e3)
        return found

    @contextlib.contextmanager
    def _placed(
        self, inputs: Mapping[str, np.ndarray[Any, Any]]
    ) -> Iterator[tuple[dict[int, int], list[int]]]:
        """Where each tensor lies while the block lasts, the inputs with their content; and the sizes."""
        sizes = sizes_for(self.plan, inputs)
        chosen = choose(self.plan, sizes)
        self._call(self._driver.cuCtxSetCurrent(self._context), "the context")
        self._reserve(chosen.arena)
        places: dict[int, int] = {}
        borrowed: list[int] = []
        try:
            for index, tensor in enumerate(self.plan.tensors):
                if tensor.kind == Kind.WEIGHT:
                    places[index] = self._weights + self.plan.weights[tensor.weight].offset
                elif tensor.kind == Kind.INNER and self.plan.tensors[tensor.storage].kind == Kind.INNER:
                    places[index] = self._arena + chosen.offsets[index]
                elif tensor.kind != Kind.INNER:
                    size = math.prod(_shape(tensor, sizes)) * DTYPES[tensor.dtype][1]
                    places[index] = self._allocate(size, f"'{tensor.name}'", borrowed)
                    if tensor.kind == Kind.INPUT and size:
                        source = bytes_of(np.ascontiguousarray(inputs[tensor.name]))
                        copied = self._driver.cuMemcpyHtoD(places[index], source.ctypes.data, size)
                        self._call(copied, f"input '{tensor.name}'")
            for index, tensor in enumerate(self.plan.tensors):
                places.setdefault(index, places[tensor.storage])
            yield places, sizes
        finally:
            for address in borrowed:
                self._driver.cuMemFree(address)

    def _all(self, places: Mapping[int, int], sizes: Sequence[int]) -> None:
        for number, launch in enumerate(self.plan.launches):
            self._launch(number, launch, places, sizes)

    def _launch(self, number: int, launch: Launch, places: Mapping[int, int], sizes: Sequence[int]) -> None:
        kernel = self._kernels[launch.kernel]
        grid = [value(code, sizes) for code in launch.grid]
        if not all(grid):
            return  # nothing to compute at these sizes
        slots = arguments(launch.arguments, kernel, places, sizes)
        pointers = (ctypes.c_void_p * len(slots))(*(ctypes.addressof(s) for s in slots))
        what = f"launch {number} ({launch.operation} of {', '.join(launch.sources)})"
        status = self._driver.cuLaunchKernel(
            self._functions[launch.kernel], *grid, WARP * kernel.warps, 1, 1, kernel.shared, 0,
            ctypes.addressof(pointers), 0,
        )  # fmt: skip
        self._call(status, what, launch.sources)
        if self.debug:
            self._call(self._driver.cuCtxSynchronize(), what, launch.sources)

    def _reserve(self, size: int) -> None:
        """An arena of at least `size` bytes; it grows and is kept."""
        if size > self._arena_bytes:
            if self._arena:
                self._owned.remove(self._arena)
                self._driver.cuMemFree(self._arena)
            self._arena, self._arena_bytes = 0, 0
            self._arena = self._allocate(size, "the arena")
            self._arena_bytes = size
        if self.debug and self._arena_bytes:
            self._call(self._driver.cuMemsetD8(self._arena, POISON, self._arena_bytes), "the arena")

    def _allocate(self, size: int, what: str, to: list[int] | None = None) -> int:
        if not size:
            return 0
        address = int(self._call(self._driver.cuMemAlloc(padded(size)), f"{size:,} bytes for {what}"))
        (self._owned if to is None else to).append(address)
        return address

    def _fetched(self, address: int, shape: tuple[int, ...], dtype: str, name: str) -> np.ndarray[Any, Any]:
        made = np.empty(shape, numpy_type(dtype))
        if made.size:
            self._call(self._driver.cuMemcpyDtoH(made.ctypes.data, address, made.nbytes), f"output '{name}'")
        return made

    def _call(self, result: tuple[Any, ...], what: str, nodes: Sequence[str] = ()) -> Any:
        """What the driver returned. Raises where it failed, naming what it was asked for."""
        status, *values = result
        if int(status):
            raise failure(status.name, what, nodes)
        return values[0] if values else None

    def close(self) -> None:
        """Give back what lies on the GPU."""
        for address in self._owned:
            self._driver.cuMemFree(address)
        self._owned.clear()


def _shape(tensor: Tensor, sizes: Sequence[int]) -> tuple[int, ...]:
    return tuple(value(code, sizes) for code in tensor.shape)


def failure(status: str, what: str, nodes: Sequence[str]) -> TapeoutError:
    """The error for a status of the driver."""
    if status == OUT_OF_MEMORY:
        return ResourceError(
            f"the GPU has no room for {what}", hint="smaller sizes, or a profile with a smaller largest size"
        )
    return VendorToolError(f"CUDA failed at {what}: {status}", nodes=list(nodes))


def kernels_for(file: PlanFile, architecture: int) -> dict[int, Kernel]:
    """The kernel of each group that runs on `architecture`: of the same generation, and no newer.

    Raises InvalidModelError where the plan has none.
    """
    plan = file.plan
    fitting = [a for a in plan.architectures if a // 10 == architecture // 10 and a <= architecture]
    known = ", ".join(f"sm_{a}" for a in plan.architectures) or "none"
    if plan.launches and not fitting:
        raise InvalidModelError(
            f"'{file.path.name}' has no kernels for this GPU (sm_{architecture}), it has {known}",
            hint=f"export it with --device sm_{architecture}, or add one with --option also=...",
        )
    found = {k.group: k for k in plan.kernels if fitting and k.arch == max(fitting)}
    missing = next((n for n in plan.launches if n.kernel not in found), None)
    if missing is not None:
        raise InvalidModelError(
            f"'{file.path.name}' has no kernel for {missing.operation} of {', '.join(missing.sources)}",
            nodes=list(missing.sources),
        )
    return found


def arguments(
    given: Sequence[Argument], kernel: Kernel, places: Mapping[int, int], sizes: Sequence[int]
) -> list[Any]:
    """The arguments of a launch as C has them, and zeros for the scratch pointers behind them.

    Raises InvalidModelError where the kernel has other parameters.
    """
    slots: list[Any] = []
    for argument in given:
        match argument.kind:
            case ArgumentKind.TENSOR:
                slots.append(ctypes.c_uint64(places[argument.tensor]))
            case ArgumentKind.INT32:
                slots.append(ctypes.c_int32(value(argument.code, sizes)))
            case ArgumentKind.INT64:
                slots.append(ctypes.c_int64(value(argument.code, sizes)))
            case ArgumentKind.FLOAT32:
                slots.append(ctypes.c_float(argument.number))
    wanted = [size for _, size in kernel.parameters]
    found = [ctypes.sizeof(s) for s in slots]
    slots += [ctypes.c_uint64(0)] * (len(wanted) - len(found))
    if wanted != [*found, *[8] * (len(wanted) - len(found))]:
        raise InvalidModelError(
            f"kernel '{kernel.symbol}' takes parameters of {wanted} bytes, the plan hands it {found}",
            hint="the plan is damaged: export the model again",
        )
    return slots
