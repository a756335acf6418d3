"""A double of NVIDIA's `libnvidia-ml.so.1` under the real nvidia-ml-py, whose readings of it are true ones.

`pynvml_over(library)` is an nvidia-ml-py of its own, not the one that others import, over this library.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
import threading
from dataclasses import dataclass, field
from typing import Any

OK, NOT_SUPPORTED, NOT_FOUND, TOO_SMALL, NOT_LOADED, LOST = 0, 3, 6, 7, 9, 15


@dataclass
class FakeGpu:
    """One GPU. unsupported: functions that answer 'not supported'; lost: it fell off the bus."""

    total: int
    used: int = 0
    processes: dict[int, int | None] = field(default_factory=dict)
    name: str = "NVIDIA H200"
    unsupported: set[str] = field(default_factory=set)
    lost: bool = False


class FakeLibrary:
    """The functions of the C library that pynvml calls, with its calling convention: pointers out, a status back."""

    def __init__(self, gpus: list[FakeGpu], *, init: int = OK) -> None:
        self.gpus = gpus
        self.init = init
        self.calls: list[str] = []
        self.absent: set[str] = set()
        self.go_on = threading.Event()
        self.go_on.set()

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml"):
            if name in object.__getattribute__(self, "absent"):
                raise AttributeError(name)
            object.__getattribute__(self, "calls").append(name)
        return object.__getattribute__(self, name)

    def _of(self, handle: Any, function: str) -> tuple[FakeGpu, int]:
        gpu = self.gpus[ctypes.cast(handle, ctypes.c_void_p).value - 1]  # type: ignore[operator]
        return gpu, LOST if gpu.lost else NOT_SUPPORTED if function in gpu.unsupported else OK

    def nvmlInitWithFlags(self, flags: int) -> int:
        return self.init

    def nvmlErrorString(self, status: int) -> bytes:
        return b"some fault"

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        self.go_on.wait(20)
        count._obj.value = len(self.gpus)
        return OK

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:
        pointer = ctypes.cast(ctypes.c_void_p(index.value + 1), type(handle._obj))
        ctypes.memmove(ctypes.byref(handle._obj), ctypes.byref(pointer), ctypes.sizeof(pointer))
        return OK

    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:
        gpu, status = self._of(handle, "memory")
        memory._obj.total, memory._obj.used, memory._obj.free = gpu.total, gpu.used, gpu.total - gpu.used
        return status

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: Any, count: Any, found: Any) -> int:
        gpu, status = self._of(handle, "processes")
        if status or not gpu.processes:
            return status
        if found is None:
            count._obj.value = len(gpu.processes)
            return TOO_SMALL
        for i, (pid, size) in enumerate(gpu.processes.items()):
            found[i].pid = pid
            found[i].usedGpuMemory = (1 << 64) - 1 if size is None else size
        count._obj.value = len(gpu.processes)
        return OK

    def nvmlDeviceGetUtilizationRates(self, handle: Any, rates: Any) -> int:
        rates._obj.gpu, rates._obj.memory = 73, 41
        return self._of(handle, "utilization")[1]

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: Any, heat: Any) -> int:
        heat._obj.value = 64
        return self._of(handle, "temperature")[1]

    def nvmlDeviceGetPowerUsage(self, handle: Any, power: Any) -> int:
        power._obj.value = 412_345
        return self._of(handle, "power")[1]

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Any, power: Any) -> int:
        power._obj.value = 700_000
        return self._of(handle, "limit")[1]

    def nvmlDeviceGetFanSpeed(self, handle: Any, speed: Any) -> int:
        speed._obj.value = 30
        return self._of(handle, "fan")[1]

    def nvmlDeviceGetEncoderUtilization(self, handle: Any, share: Any, period: Any) -> int:
        share._obj.value, period._obj.value = 5, 100_000
        return self._of(handle, "encoder")[1]

    def nvmlDeviceGetDecoderUtilization(self, handle: Any, share: Any, period: Any) -> int:
        share._obj.value, period._obj.value = 7, 100_000
        return self._of(handle, "decoder")[1]

    def nvmlDeviceGetName(self, handle: Any, name: Any, size: Any) -> int:
        gpu, status = self._of(handle, "name")
        name.value = gpu.name.encode()
        return status

    def nvmlDeviceGetUUID(self, handle: Any, uuid: Any, size: Any) -> int:
        uuid.value = b"GPU-5d1e"
        return self._of(handle, "uuid")[1]


def pynvml_over(library: FakeLibrary) -> Any:
    """A fresh nvidia-ml-py over this library."""
    found = importlib.util.find_spec("pynvml")
    assert found is not None, "nvidia-ml-py is among the dev requirements"
    assert found.origin is not None
    name = f"pynvml_over_{id(library)}"
    spec = importlib.util.spec_from_file_location(name, found.origin)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where it looks itself up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    module.nvmlLib = library  # type: ignore[attr-defined]
    return module
