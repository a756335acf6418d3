"""What is left of pools' processes when the gateway has stopped and its controller could not end them.

Strategy: for the supervisor, and for processes of models that are no longer configured: by their
records alone, no loop and no configuration; called again and again until nothing is left. Those to be kept stay.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Collection
from pathlib import Path

from . import kin
from .child import LOOK_S, reap
from .record import Record, read_all, remove


def _ends_with_the_gateway(record: Record) -> bool:
    return record.ending or not record.keep


class LeftOver:
    """Processes on record in a state folder: those that `concerns` says, else those that end with the gateway."""

    def __init__(self, state: Path, concerns: Callable[[Record], bool] = _ends_with_the_gateway) -> None:
        self._state = state
        self._records = [one for one in read_all(state) if concerns(one)]
        self._kill_at: dict[int, float] = {}
        self._kin: dict[int, kin.Kin] = {}

    def end(self, now: float, *, at_once: bool) -> bool:
        """Go on ending them; whether any is left. at_once: they are given no time."""
        self._records = [one for one in self._records if self._is_left(one, now, at_once)]
        return bool(self._records)

    def _is_left(self, record: Record, now: float, at_once: bool) -> bool:
        family = kin.still(self._kin.get(record.pid, {})) | kin.kin_of(record)
        if not family:
            reap(record.pid)
            remove(self._state, record)
            return False
        if record.pid not in self._kill_at:
            self._kill_at[record.pid] = now + record.stop_timeout_s
            kin.send(family, signal.SIGTERM)
        if at_once or now >= self._kill_at[record.pid]:
            kin.send(family, signal.SIGKILL)
        self._kin[record.pid] = family
        return True


async def end_unwanted(state: Path, wanted: Collection[str]) -> None:
    """End the processes of models that are not among those `wanted`: nobody else would."""
    left = await asyncio.to_thread(LeftOver, state, lambda one: one.model not in wanted)
    while await asyncio.to_thread(left.end, time.monotonic(), at_once=False):  # noqa: ASYNC110
        await asyncio.sleep(LOOK_S)
