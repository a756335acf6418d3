"""Which Python functions a process's main thread spends its processor time in, by the kernel's profiling timer.

Strategy: `ITIMER_PROF` interrupts where processor time is spent; the handler runs on the main thread, at the next
instruction that looks for signals, and adds the time this thread has used since the last sample to the stack it finds.
So samples need not be evenly spaced, and their sum is the time used (`docs/adr/0030-profiles.md` has the alternatives
and what they said). While the timer is off nothing runs.

A signal that came while no Python ran is handled at the entry of the next function, which has used nothing yet: such a
sample is its caller's. Refuses to know who asks.
"""

from __future__ import annotations

import dis
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

PERIOD_S = 0.001
"""What is asked of the kernel, which has its own tick."""
LOOP = "(event loop)"
OTHERS = "(other threads)"
_RESUME = dis.opmap["RESUME"]

Frame = tuple[str, str, int]
"""Name, file, first line."""
_Key = tuple[Any, ...]


class Sampler:
    """One process's; made on its main thread. runner: the frame that runs the loop, above which stacks begin."""

    def __init__(self, runner: FrameType) -> None:
        self._runner = runner
        self._clock = time.pthread_getcpuclockid(threading.get_ident())
        self._stacks: dict[_Key, list[int]] = {}
        self._last_ns = 0
        signal.signal(signal.SIGPROF, self._take)
        signal.siginterrupt(signal.SIGPROF, False)

    def _take(self, _: int, frame: FrameType | None) -> None:
        now = time.thread_time_ns()
        used, self._last_ns = now - self._last_ns, now
        runner = self._runner
        at = frame.f_lasti if frame is not None else -1
        codes: list[CodeType] = []
        while frame is not None and frame is not runner:
            codes.append(frame.f_code)
            frame = frame.f_back
        found = self._stacks.setdefault((at, *codes), [0, 0])
        found[0] += used
        found[1] += 1

    def run(self, wait: Callable[[], None]) -> Iterator[dict[str, Any]]:
        """Sample while `wait` waits; then `frames`, `stacks` (frames from the root, ns, samples) and a summary.

        From any thread but one at a time. What `wait` raises ends it.
        """
        self._stacks = {}
        wall, process = time.monotonic_ns(), time.process_time_ns()
        own = self._last_ns = time.clock_gettime_ns(self._clock)
        signal.setitimer(signal.ITIMER_PROF, PERIOD_S, PERIOD_S)
        try:
            wait()
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        wall = time.monotonic_ns() - wall
        process = time.process_time_ns() - process
        own = time.clock_gettime_ns(self._clock) - own
        taken, self._stacks = self._stacks, {}
        yield from _told(taken, max(0, process - own))
        samples = sum(one[1] for one in taken.values())
        yield {"wall_ns": wall, "cpu_ns": process, "loop_cpu_ns": own, "samples": samples}


def _told(taken: dict[_Key, list[int]], others_ns: int) -> Iterator[dict[str, Any]]:
    frames: dict[Frame, int] = {}
    stacks: dict[tuple[int, ...], list[int]] = {}
    for (at, *codes), (used, count) in taken.items():
        if codes and codes[0].co_code[at] == _RESUME:
            del codes[0]
        named = [_frame(code) for code in reversed(codes)] or [(LOOP, "", 0)]
        _add(frames, stacks, named, used, count)
    if others_ns:
        _add(frames, stacks, [(OTHERS, "", 0)], others_ns, 0)
    yield {"frames": list(frames)}
    for ids, values in stacks.items():
        yield {"stack": [ids, *values]}


def _add(
    frames: dict[Frame, int],
    stacks: dict[tuple[int, ...], list[int]],
    named: list[Frame],
    used: int,
    count: int,
) -> None:
    found = stacks.setdefault(tuple(frames.setdefault(one, len(frames)) for one in named), [0, 0])
    found[0] += used
    found[1] += count


def _frame(code: CodeType) -> Frame:
    return code.co_qualname, code.co_filename, code.co_firstlineno
