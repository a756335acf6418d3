"""The admin port's `/debug` paths: what is asked of which process, bounded, one at a time, and in which format.

A client that leaves ends what it began. A process that is lost meanwhile is named in the header `x-penstock-lost`;
where none is left to tell of, the answer is 503.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import msgspec

from ...cache.segment import Segment
from ..answer import Answer, Refused
from ..question import Question
from . import formats
from .asking import Process, Told, ask_all, processes
from .formats import Stacks
from .hatch import MOST_S, Wish

PROFILE = "/debug/profile"
HEAP = "/debug/heap"
TRACE = "/debug/trace"
TASKS = "/debug/tasks"
PPROF_PROFILE = "/debug/pprof/profile"
PPROF_HEAP = "/debug/pprof/heap"
PPROF_TRACE = "/debug/pprof/trace"

_EVENTS = 100_000
"""In one trace, of all processes together."""
_CPU = (("samples", "count"), ("cpu", "nanoseconds"))
_BLOCKS = (("inuse_objects", "count"), ("inuse_space", "bytes"))
_PPROF_TYPE = "application/octet-stream"

Handler = Callable[[Question], Coroutine[Any, Any, Answer]]
_Telling = Callable[[list[Told]], Answer]


class DebugPages:
    """`exporter` is what a file says it was made by."""

    def __init__(self, segment: Segment, folder: Path, exporter: str) -> None:
        self._segment = segment
        self._folder = folder
        self._exporter = exporter
        self._busy = ""

    def routes(self) -> dict[str, dict[str, Handler]]:
        """Path, method and what answers."""
        return {
            PROFILE: {"GET": self._profile},
            HEAP: {"GET": self._heap},
            TRACE: {"GET": lambda question: self._trace(question, 5.0)},
            TASKS: {"GET": self._tasks},
            PPROF_PROFILE: {"GET": self._pprof_profile},
            PPROF_HEAP: {"GET": self._pprof_heap},
            PPROF_TRACE: {"GET": lambda question: self._trace(question, 1.0)},
        }

    async def _profile(self, question: Question) -> Answer:
        query = _Query(question)
        seconds = query.seconds(10.0)
        page = query.one_of("format", "speedscope", "html") == "html"
        as_one = query.one_of("merged", "false", "true") == "true"

        def tell(told: list[Told]) -> Answer:
            each = _stacks(told)
            whole = each[0] if len(each) == 1 else formats.merged("all processes", each, rooted=page)
            if page:
                return Answer(formats.html(whole, seconds, time.time() - seconds), "text/html; charset=utf-8")
            profiles = [whole] if as_one or len(each) == 1 else [whole, *each]
            name = f"penstock, {seconds:g} s"
            return Answer(formats.speedscope(name, profiles, self._exporter))

        return await self._ask(question, query, Wish("profile", seconds), tell)

    async def _pprof_profile(self, question: Question) -> Answer:
        query = _Query(question)
        seconds = query.seconds(30.0)

        def tell(told: list[Told]) -> Answer:
            return Answer(formats.pprof(_stacks(told), _CPU, seconds, time.time_ns()), _PPROF_TYPE)

        return await self._ask(question, query, Wish("profile", seconds), tell)

    async def _heap(self, question: Question) -> Answer:
        query = _Query(question)
        return await self._ask(question, query, Wish("heap", query.seconds(0.0)), _heaps)

    async def _pprof_heap(self, question: Question) -> Answer:
        query = _Query(question)
        seconds = query.seconds(0.0)

        def tell(told: list[Told]) -> Answer:
            each = _stacks(told) if seconds else [_types(one) for one in told]
            return Answer(formats.pprof(each, _BLOCKS, seconds, time.time_ns()), _PPROF_TYPE)

        return await self._ask(question, query, Wish("heap", seconds), tell)

    async def _trace(self, question: Question, default_s: float) -> Answer:
        query = _Query(question)

        def tell(told: list[Told]) -> Answer:
            each = [(_label(one.process), one.process.pid, one.lines or ()) for one in told]
            return Answer(formats.chrome(each))

        return await self._ask(question, query, Wish("trace", query.seconds(default_s)), tell)

    async def _tasks(self, question: Question) -> Answer:
        return await self._ask(question, _Query(question), Wish("tasks"), _listed)

    async def _ask(self, question: Question, query: _Query, wish: Wish, tell: _Telling) -> Answer:
        chosen = query.chosen(processes(self._segment, self._folder))
        wish = msgspec.structs.replace(wish, most=_EVENTS // len(chosen))
        query.refuse_others()
        if self._busy:
            raise Refused(
                409,
                f"a {self._busy} is being taken; one at a time",
                "debug_busy",
                headers=(("retry-after", "5"),),
            )
        self._busy = wish.what
        asking = asyncio.ensure_future(ask_all(chosen, wish))
        leaving = asyncio.ensure_future(question.gone())
        try:
            await asyncio.wait((asking, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise Refused(499, "the client has left", "client_closed_request")
            told = asking.result()
            lost = ", ".join(_label(one.process) for one in told if one.lines is None)
            kept = [one for one in told if one.lines is not None]
            if not kept:
                raise Refused(503, f"{lost} gave no answer", "process_lost", kind="server_error")
            answer = await asyncio.to_thread(tell, kept)
        finally:
            self._busy = ""
            asking.cancel()
            leaving.cancel()
        if lost:
            return Answer(answer.body, answer.content_type, headers=(("x-penstock-lost", lost),))
        return answer


class _Query:
    """What a question asks for; everything it does not know, or that makes no sense, is Refused with 400."""

    def __init__(self, question: Question) -> None:
        self._given = parse_qs(question.query, keep_blank_values=True)

    def _take(self, name: str) -> str | None:
        given = self._given.pop(name, None)
        return given[-1] if given else None

    def seconds(self, default: float) -> float:
        """How long, in (0, MOST_S]; `default` where nothing is said."""
        said = self._take("seconds")
        if said is None:
            return default
        try:
            seconds = float(said)
        except ValueError:
            seconds = -1.0
        if not 0 < seconds <= MOST_S:
            raise _bad("seconds", f"a number up to {MOST_S:g}")
        return seconds

    def one_of(self, name: str, *words: str) -> str:
        """A word of these; the first where nothing is said."""
        said = self._take(name)
        if said is None:
            return words[0]
        if said not in words:
            raise _bad(name, " or ".join(words))
        return said

    def chosen(self, found: list[Process]) -> list[Process]:
        """Whom `worker` names: a worker's number, `controller`, or all workers, which is what nothing said means."""
        said = self._take("worker") or "all"
        chosen = [one for one in found if one.name == said or (said == "all" and one.name != "controller")]
        if not chosen:
            names = ", ".join(dict.fromkeys(one.name for one in found))
            raise _bad("worker", f"all, or one of {names}")
        return chosen

    def refuse_others(self) -> None:
        """Call it last."""
        for name in self._given:
            raise Refused(400, f"no such parameter: {name[:100]}", "invalid_request", param=name[:100])


def _bad(param: str, what: str) -> Refused:
    return Refused(400, f"{param} must be {what}", "invalid_request", param=param)


def _label(process: Process) -> str:
    role = "controller" if process.name == "controller" else f"worker {process.name}"
    return f"{role} ({process.pid})"


def _stacks(told: list[Told]) -> list[Stacks]:
    return [Stacks.of(_label(one.process), one.lines or ()) for one in told]


def _types(told: Told) -> Stacks:
    found = [
        (((kind["type"], "", 0),), kind["bytes"], kind["count"])
        for line in told.lines or ()
        for kind in line.get("types", ())
    ]
    return Stacks(_label(told.process), found)


def _listed(told: list[Told]) -> Answer:
    """Each process with all that it said as one mapping."""
    each = []
    for one in told:
        said: dict[str, Any] = {"worker": one.process.name, "pid": one.process.pid}
        for line in one.lines or ():
            said |= line
        each.append(said)
    return Answer.of({"processes": each})


def _heaps(told: list[Told]) -> Answer:
    """As `_listed`; allocations with their stacks spelled out."""
    each = []
    for one in told:
        said: dict[str, Any] = {"worker": one.process.name, "pid": one.process.pid}
        for line in one.lines or ():
            said |= {name: value for name, value in line.items() if name not in ("frames", "stack")}
        allocated = Stacks.of("", one.lines or ()).found
        if allocated:
            said["allocated"] = [
                {"bytes": size, "blocks": number, "stack": [f"{file}:{line}" for _, file, line in frames]}
                for frames, size, number in allocated
            ]
        each.append(said)
    return Answer.of({"processes": each})
