"""Stands for the CUDA driver: memory of this machine, and launches that NumPy computes from the addresses and numbers
that they are handed, as a GPU would."""

from __future__ import annotations

import ctypes
import enum
from typing import Any

import numpy as np

from tapeout.targets.nvidia.executor import numpy_type
from tapeout.targets.nvidia.plan.expressions import value
from tapeout.targets.nvidia.plan.parts import DTYPES, Plan
from tapeout.targets.nvidia.reference import KERNELS


class Status(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_ILLEGAL_ADDRESS = 700


OK = Status.CUDA_SUCCESS


class CUdevice_attribute(enum.IntEnum):  # the driver's own name
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class CUfunction_attribute(enum.IntEnum):
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8


class FakeDriver:
    """A GPU of `architecture` with `memory` bytes, on which the launches of `plan` come in order, at `sizes`."""

    CUdevice_attribute = CUdevice_attribute
    CUfunction_attribute = CUfunction_attribute

    def __init__(self, plan: Plan, sizes: list[int], architecture: int = 90, memory: int = 1 << 30) -> None:
        self.plan, self.sizes, self.architecture, self.left = plan, sizes, architecture, memory
        self.held: dict[int, Any] = {}
        self.launched: list[tuple[int, ...]] = []
        self.fails_at = -1

    def cuDeviceGet(self, ordinal: int) -> tuple[Any, ...]:
        return OK, ordinal

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[Any, ...]:
        return OK, "context"

    def cuCtxSetCurrent(self, context: Any) -> tuple[Any, ...]:
        return (OK,)

    def cuCtxSynchronize(self) -> tuple[Any, ...]:
        return (OK,)

    def cuDeviceGetAttribute(self, kind: CUdevice_attribute, device: int) -> tuple[Any, ...]:
        return OK, self.architecture // 10 if kind.value == 75 else self.architecture % 10

    def cuLibraryLoadData(self, image: bytes, *_: Any) -> tuple[Any, ...]:
        return OK, image

    def cuLibraryGetKernel(self, library: bytes, name: bytes) -> tuple[Any, ...]:
        return OK, (library, name)

    def cuKernelGetFunction(self, kernel: Any) -> tuple[Any, ...]:
        return OK, kernel

    def cuFuncSetAttribute(self, *_: Any) -> tuple[Any, ...]:
        return (OK,)

    def cuMemAlloc(self, size: int) -> tuple[Any, ...]:
        if size > self.left:
            return Status.CUDA_ERROR_OUT_OF_MEMORY, 0
        self.left -= size
        made = np.full(size, 0xFF, np.uint8)
        self.held[made.ctypes.data] = made
        return OK, made.ctypes.data

    def cuMemFree(self, address: int) -> tuple[Any, ...]:
        self.left += self.held.pop(address).size
        return (OK,)

    def cuMemcpyHtoD(self, target: int, source: int, size: int) -> tuple[Any, ...]:
        ctypes.memmove(target, source, size)
        return (OK,)

    cuMemcpyDtoH = cuMemcpyHtoD

    def cuMemsetD8(self, address: int, byte: int, size: int) -> tuple[Any, ...]:
        ctypes.memset(address, byte, size)
        return (OK,)

    def cuLaunchKernel(self, function: Any, *given: Any) -> tuple[Any, ...]:
        *shape, parameters, _ = given
        number = len(self.launched)
        self.launched.append(tuple(shape))
        if number == self.fails_at:
            return (Status.CUDA_ERROR_ILLEGAL_ADDRESS,)
        launch = self.plan.launches[number % len(self.plan.launches)]
        slots = ctypes.cast(parameters, ctypes.POINTER(ctypes.c_void_p))
        tensors = [*launch.reads, *launch.writes]
        arrays = [
            self._array(i, ctypes.c_uint64.from_address(slots[k] or 0).value) for k, i in enumerate(tensors)
        ]
        kinds = [ctypes.c_int32 if a.kind == 1 else ctypes.c_int64 for a in launch.arguments[len(tensors) :]]
        numbers = [kind.from_address(slots[len(tensors) + k] or 0).value for k, kind in enumerate(kinds)]
        count = len(launch.reads)
        with np.errstate(all="ignore"):
            KERNELS[launch.operation](arrays[:count], arrays[count:], numbers, launch.attributes)
        return (OK,)

    def _array(self, index: int, address: int) -> np.ndarray[Any, Any]:
        tensor = self.plan.tensors[index]
        shape = [value(code, self.sizes) for code in tensor.shape]
        size = int(np.prod(shape, dtype=np.int64)) * DTYPES[tensor.dtype][1]
        raw = (ctypes.c_uint8 * size).from_address(address)
        return np.frombuffer(raw, numpy_type(tensor.dtype)).reshape(shape)
