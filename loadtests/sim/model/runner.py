"""Drives the engine from an event loop: one timer for all sequences, one ticket per request.

Refuses to know HTTP and text. Abandoning a ticket cancels its sequences at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from .engine import Engine, Progress, Sequence
from .metrics import Metrics
from .tokens import block_hashes, count


class Job(NamedTuple):
    """`goal` tokens to generate from `prompt` (0: prefill only), finishing for `reason`."""

    prompt: bytes
    goal: int = 0
    reason: str = "stop"
    cut: Callable[[int], None] | None = None
    """Told after how many tokens the answer ends when the engine aborts it."""
    garble: Callable[[], None] | None = None
    """Called at its first token where the server has no weights: the answer is exclamation marks then."""


class Ready(NamedTuple):
    """`tokens` more of choice number `choice` may be sent."""

    choice: int
    tokens: int
    finished: bool


class Ticket:
    """The sequences of one request; `async for` gives what is ready, then ends. Use as a context manager."""

    def __init__(self, runner: Runner, sequences: list[Sequence]) -> None:
        self.sequences = sequences
        self._runner = runner
        self._ready: deque[Ready] = deque()
        self._left = len(sequences)
        self._waiter: asyncio.Future[None] | None = None

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that the prefix cache saved, once admitted."""
        return max(s.cached_tokens for s in self.sequences)

    def put(self, ready: Ready) -> None:
        """Runner only: notes progress and wakes the reader."""
        self._ready.append(ready)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> Ticket:
        return self

    async def __anext__(self) -> Ready:
        while not self._ready:
            if not self._left:
                raise StopAsyncIteration
            self._waiter = self._runner.loop.create_future()
            await self._waiter
        ready = self._ready.popleft()
        if ready.tokens > 1:
            # Streams tell tokens one by one, also those that became ready together.
            self._ready.appendleft(Ready(ready.choice, ready.tokens - 1, ready.finished))
            return Ready(ready.choice, 1, False)
        if ready.finished:
            self._left -= 1
        return ready

    async def finish(self) -> None:
        """Waits until every sequence is complete."""
        while self._left:
            if not self._ready:
                self._waiter = self._runner.loop.create_future()
                await self._waiter
            self._left -= sum(ready.finished for ready in self._ready)
            self._ready.clear()

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.drop(self)


class Runner:
    """Feeds the engine the loop's time and hands its progress to the tickets."""

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        loop: asyncio.AbstractEventLoop,
        weightless: Callable[[], bool] = lambda: False,
    ) -> None:
        self.engine = engine
        self.loop = loop
        self._metrics = metrics
        self._owners: dict[Sequence, tuple[Ticket, int]] = {}
        self._weightless = weightless
        self._jobs: dict[Sequence, Job] = {}
        self._silent: set[Sequence] = set()
        self._drained: asyncio.Future[None] | None = None
        # with its time beside it: uvloop gives a handle without `when` for what is due now
        self._timer: asyncio.Handle | None = None
        self._timer_at = 0.0

    def start(self, jobs: Iterable[Job]) -> Ticket:
        """Submits one sequence per job; the ticket's choices are numbered in their order."""
        hashes: dict[bytes, tuple[bytes, ...]] = {}
        sequences = []
        for job in jobs:
            prompt = job.prompt
            if prompt not in hashes:
                hashes[prompt] = block_hashes(prompt)
            sequences.append(Sequence(max(count(prompt), 1), job.goal, hashes[prompt], job.reason))
            self._jobs[sequences[-1]] = job
            self._silent.add(sequences[-1])
        ticket = Ticket(self, sequences)
        now = self.loop.time()
        self._deliver(self.engine.advance(now))
        for index, sequence in enumerate(ticket.sequences):
            self._owners[sequence] = (ticket, index)
            self.engine.submit(sequence, now)
        self._deliver(self.engine.advance(now))
        self._arm()
        return ticket

    def drop(self, ticket: Ticket) -> None:
        """Cancels what is left of a ticket."""
        self._deliver(self.engine.advance(self.loop.time()))
        for sequence in ticket.sequences:
            self._owners.pop(sequence, None)
            self._jobs.pop(sequence, None)
            self._silent.discard(sequence)
            if not sequence.done:
                self.engine.cancel(sequence)
                self._metrics.finished("abort", sequence, self.loop.time())
        self._note_drained()
        self._arm()

    def abort(self) -> None:
        """Ends every sequence where it is, with one more token that says so (sleep's `abort`)."""
        now = self.loop.time()
        self._deliver(self.engine.advance(now))
        for sequence, (ticket, index) in list(self._owners.items()):
            self.engine.cancel(sequence)
            self._metrics.finished("abort", sequence, now)
            self._silent.discard(sequence)
            job = self._jobs.pop(sequence)
            if job.cut is not None:
                job.cut(sequence.made + 1)
            ticket.put(Ready(index, min(sequence.goal, 1), True))
        self._owners.clear()
        self._arm()

    async def drained(self) -> None:
        """Admits nobody any more, and waits until what runs is over (sleep's `wait`)."""
        self.engine.close()
        if self.engine.running:
            self._drained = self._drained or self.loop.create_future()
            await asyncio.shield(self._drained)

    def pause(self) -> None:
        """Holds every sequence where it is (sleep)."""
        self.engine.pause()

    def resume(self) -> None:
        """Goes on after `pause`."""
        self.engine.resume(self.loop.time())
        self._arm()

    def _tick(self) -> None:
        self._timer = None
        self._deliver(self.engine.advance(self.loop.time()))
        self._arm()

    def _arm(self) -> None:
        at = self.engine.next_at_s
        if at is None:
            return
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer_at = at
        self._timer = self.loop.call_at(at, self._tick)

    def _deliver(self, made: list[Progress]) -> None:
        for progress in made:
            owner = self._owners.get(progress.sequence)
            if owner is None:
                continue
            self._metrics.progressed(progress)
            if progress.sequence in self._silent:
                self._silent.discard(progress.sequence)
                garble = self._jobs[progress.sequence].garble
                if garble is not None and self._weightless():
                    garble()
            if progress.finished:
                del self._owners[progress.sequence]
                del self._jobs[progress.sequence]
            ticket, index = owner
            ticket.put(Ready(index, progress.tokens, progress.finished))
        self._note_drained()

    def _note_drained(self) -> None:
        if self._drained is not None and not self.engine.running:
            drained, self._drained = self._drained, None
            if not drained.done():
                drained.set_result(None)
