"""What a process's loop does, one event after another: callbacks, steps of tasks, the collector's pauses, and of each
request how long it waited for what.

Strategy: while a trace is taken the loop's methods that schedule are covered by ones which time what they schedule, and
the functions that bytes of backends and ends of requests go through by ones which time them; then they are uncovered.
Nothing of it is there at any other time. What uvloop calls by itself and is not listed here is a gap between events.

Events are `[phase, name, category, start ns, ns, arguments]`, times by CLOCK_MONOTONIC, which all processes share. Of a
request stages are known by how long they took, and laid one behind the other in the order in which they come.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from time import perf_counter_ns
from typing import Any

from ...gateway.ledger import Ledger
from ...gateway.upstream.call import Call
from ...gateway.upstream.h1 import ResponseReader

_CHUNK = 500
_SCHEDULES = {"call_soon": 0, "call_soon_threadsafe": 0, "call_later": 1, "call_at": 1}
"""Methods of a loop, and which of their arguments is the callback."""
_CALLED = ((ResponseReader, "feed", "upstream"), (Call, "push", "relay"))


class _Recorder:
    def __init__(self, most: int) -> None:
        self.events: list[tuple[Any, ...]] = []
        self._most = most
        self.dropped = 0
        self.on = True
        self._collecting = 0

    def add(self, *event: Any) -> None:
        if len(self.events) < self._most:
            self.events.append(event)
        else:
            self.dropped += 1

    def timed(self, name: str, category: str, began: int) -> None:
        if self.on:
            self.add("X", name, category, began, perf_counter_ns() - began, None)

    def callback(self, function: Callable[..., object], *args: object) -> None:
        """What the loop calls in the place of `function`."""
        name = _name(function) if self.on else ""
        began = perf_counter_ns()
        try:
            function(*args)
        finally:
            self.timed(name, "callback", began)

    def scheduling(self, schedule: Callable[..., Any], at: int) -> Callable[..., Any]:
        def scheduled(*args: Any, **more: Any) -> Any:
            return schedule(*args[:at], self.callback, *args[at:], **more)

        return scheduled

    def calling(self, function: Callable[..., Any], category: str) -> Callable[..., Any]:
        name = function.__qualname__

        def called(*args: Any) -> Any:
            began = perf_counter_ns()
            try:
                return function(*args)
            finally:
                self.timed(name, category, began)

        return called

    def recording(self, record: Callable[..., None]) -> Callable[..., None]:
        def recorded(ledger: Ledger, one: Any, endpoint: Any, started: int, total: int) -> None:
            record(ledger, one, endpoint, started, total)
            if started:
                self.request(one, endpoint, started, total)

        return recorded

    def request(self, one: Any, endpoint: Any, started: int, total: int) -> None:
        """One request and its stages."""
        told = {"model": one.model, "status": one.status, "cache": one.cache, "request_id": one.request_id}
        self.add("R", endpoint.path, "request", started - one.body_ns, one.body_ns + total, told)
        at = started - one.body_ns
        for stage, took in (
            ("body", one.body_ns),
            ("l2", one.far_ns),
            ("queue", one.queued_ns - one.wake_ns),
            ("wake", one.wake_ns),
            ("backend", one.upstream_ns),
        ):
            if took > 0:
                self.add("S", stage, "request", at, took, None)
            at += max(0, took)
        meter, end = one.meter, started + total
        if meter is not None and at <= meter.first_ns < end:
            self.add("S", "stream", "request", meter.first_ns, end - meter.first_ns, None)

    def collected(self, phase: str, told: dict[str, int]) -> None:
        now = perf_counter_ns()
        if phase == "start":
            self._collecting = now
        elif self._collecting:
            name = f"gc generation {told['generation']}"
            self.add(
                "X", name, "gc", self._collecting, now - self._collecting, {"collected": told["collected"]}
            )


def run(loop: asyncio.AbstractEventLoop, wait: Callable[[], None], most: int) -> Iterator[dict[str, Any]]:
    """Trace while `wait` waits; then the first `most` events, some at a time, and how many there were beyond."""
    recorder = _Recorder(most)
    put: list[tuple[Any, str, Any]] = [(owner, name, getattr(owner, name)) for owner, name, _ in _CALLED]
    try:
        for owner, name, category in _CALLED:
            setattr(owner, name, recorder.calling(getattr(owner, name), category))
        put.append((Ledger, "record", Ledger.record))
        setattr(Ledger, "record", recorder.recording(Ledger.record))  # noqa: B010 - a method is covered
        gc.callbacks.append(recorder.collected)
        for name, at in _SCHEDULES.items():
            setattr(loop, name, recorder.scheduling(getattr(loop, name), at))
        wait()
    finally:
        recorder.on = False
        for name in _SCHEDULES:
            vars(loop).pop(name, None)
        if recorder.collected in gc.callbacks:
            gc.callbacks.remove(recorder.collected)
        for owner, name, function in put:
            setattr(owner, name, function)
    events = recorder.events
    for first in range(0, len(events), _CHUNK):
        yield {"events": events[first : first + _CHUNK]}
    yield {"dropped": recorder.dropped}


def _name(function: Callable[..., object]) -> str:
    """A task by its outermost coroutine and the one that goes on; anything else by its own name."""
    task = getattr(function, "__self__", None)
    if not isinstance(task, asyncio.Task):
        return _short(function)
    outer: Any = task.get_coro()
    inner = outer
    while (further := getattr(inner, "cr_await", None)) is not None and hasattr(further, "cr_await"):
        inner = further
    return f"{_short(outer)} > {_short(inner)}" if inner is not outer else _short(outer)


def _short(named: Any) -> str:
    name = getattr(named, "__qualname__", None) or type(named).__name__
    return str(name).rpartition("<locals>.")[2]
