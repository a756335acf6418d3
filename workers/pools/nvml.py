"""NVIDIA's management library, as far as the gateway asks it: what each GPU has, and what takes it.

Strategy: nvidia-ml-py is imported when it is first needed, and may be missing, as may the driver. Its calls can block
in the driver for as long as they like, so each runs in a thread of its own that nobody waits for longer than a bound
and nothing joins; while one hangs no other is started. What a GPU does not support is None, never a fault.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")
_MIB = 1 << 20


class Unavailable(Exception):
    """NVML does not answer: it is not there, the driver is not, or it took too long."""


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """One GPU's memory, bytes. used: with the driver's own. processes: by pid, None where NVML does not tell."""

    index: int
    total_bytes: int
    used_bytes: int
    processes: Mapping[int, int] | None


def _library() -> Any:
    return importlib.import_module("pynvml")


class Nvml:
    """NVML, opened at the first question. `library` gives the module pynvml. Needs a running loop."""

    def __init__(
        self, library: Callable[[], Any] = _library, *, timeout_s: float = 2.0, open_timeout_s: float = 15.0
    ) -> None:
        self._import = library
        self._timeout_s = timeout_s
        self._open_timeout_s = open_timeout_s
        self._module: Any = None
        self._asking = False

    async def memory(self) -> tuple[GpuMemory, ...]:
        """Every GPU's memory. Raises Unavailable."""
        return await self._ask(self._memory)

    async def stats(self) -> list[dict[str, Any]]:
        """Every GPU's figures, as `GET /proxy/stats` shows them. Raises Unavailable."""
        return await self._ask(self._stats)

    async def _ask(self, question: Callable[[Any], T]) -> T:
        """Have a thread ask, and wait for it no longer than the bound."""
        if self._asking:
            raise Unavailable("NVML still has not answered the question before")
        opened = self._module is not None
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def tell(told: Callable[[], None]) -> None:
            self._asking = False
            try:
                loop.call_soon_threadsafe(lambda: None if answer.done() else told())
            except RuntimeError:
                log.debug("nvml answered after its loop had ended")

        def ask() -> None:
            try:
                result = question(self._opened())
            except Exception as fault:  # of pynvml's own kinds, known only once it is imported
                text = f"NVML: {fault}" if str(fault) else f"NVML: {type(fault).__name__}"
                tell(lambda: answer.set_exception(Unavailable(text)))
            else:
                tell(lambda: answer.set_result(result))

        thread = threading.Thread(target=ask, name="nvml", daemon=True)
        self._asking = True
        try:
            thread.start()
        except RuntimeError as fault:
            self._asking = False
            raise Unavailable(str(fault)) from None
        timeout_s = self._timeout_s if opened else self._open_timeout_s  # a driver may have to wake its GPUs
        try:
            return await asyncio.wait_for(answer, timeout_s)
        except TimeoutError:
            raise Unavailable(f"NVML did not answer within {timeout_s:g} s") from None

    # ---- in the thread

    def _opened(self) -> Any:
        if self._module is None:
            module = self._import()
            module.nvmlInit()
            self._module = module
        return self._module

    def _memory(self, nvml: Any) -> tuple[GpuMemory, ...]:
        found = []
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            memory = _maybe(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
            if memory is None:  # those that share the machine's memory have none of their own
                continue
            processes = _maybe(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, handle)
            by_pid: dict[int, int] | None = None
            if processes is not None and all(one.usedGpuMemory is not None for one in processes):
                by_pid = {}
                for one in processes:
                    by_pid[int(one.pid)] = by_pid.get(int(one.pid), 0) + int(one.usedGpuMemory)
            found.append(GpuMemory(index, int(memory.total), int(memory.used), by_pid))
        return tuple(found)

    def _stats(self, nvml: Any) -> list[dict[str, Any]]:
        return [
            _figures(nvml, index, nvml.nvmlDeviceGetHandleByIndex(index))
            for index in range(nvml.nvmlDeviceGetCount())
        ]


def _figures(nvml: Any, index: int, handle: Any) -> dict[str, Any]:
    """One GPU's figures. What it does not have is 0, what it does not tell too: those who read them expect numbers."""
    memory = _maybe(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    rates = _maybe(nvml, nvml.nvmlDeviceGetUtilizationRates, handle)
    used, total = (int(memory.used), int(memory.total)) if memory is not None else (0, 0)
    power = _maybe(nvml, nvml.nvmlDeviceGetPowerUsage, handle)
    limit = _maybe(nvml, nvml.nvmlDeviceGetEnforcedPowerLimit, handle)
    encoder = _maybe(nvml, nvml.nvmlDeviceGetEncoderUtilization, handle)
    decoder = _maybe(nvml, nvml.nvmlDeviceGetDecoderUtilization, handle)
    heat = _maybe(nvml, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
    return {
        "index": index,
        "name": _text(_maybe(nvml, nvml.nvmlDeviceGetName, handle)),
        "uuid": _text(_maybe(nvml, nvml.nvmlDeviceGetUUID, handle)),
        "utilization_percent": int(rates.gpu) if rates is not None else 0,
        "memory_used_mb": used // _MIB,
        "memory_total_mb": total // _MIB,
        "memory_util_percent": round(100 * used / total) if total else 0,
        "temperature_c": int(heat or 0),
        "power_draw_w": round((power or 0) / 1000, 1),
        "power_limit_w": round((limit or 0) / 1000, 1),
        "fan_speed_percent": int(_maybe(nvml, nvml.nvmlDeviceGetFanSpeed, handle) or 0),
        "encoder_util_percent": int(encoder[0]) if encoder is not None else 0,
        "decoder_util_percent": int(decoder[0]) if decoder is not None else 0,
    }


def _maybe(nvml: Any, question: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, or None where this GPU, or this driver, has none. A GPU that is lost is a fault."""
    try:
        return question(*arguments)
    except nvml.NVMLLibraryMismatchError:  # the driver is older than this function
        return None
    except nvml.NVMLError as fault:
        if fault.value in (
            nvml.NVML_ERROR_NOT_SUPPORTED,
            nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
            nvml.NVML_ERROR_NO_PERMISSION,
            nvml.NVML_ERROR_NO_DATA,
        ):
            return None
        raise


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")
