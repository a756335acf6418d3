"""Which backends answer: every backend asked at an interval, each for itself, the verdict shown on the board.

Strategy: each server has a loop of its own, so one that hangs delays no other's probe. Beside the probe a server that
is up is asked for its metrics (`backend_scrape`). `rise` successes or `fall` failures in a row change the verdict; a
verdict survives a new controller, and a reload that keeps the backend. Two models on one server are one probe, unless
probes are completions: those ask the model.

Refuses to know what a worker makes of a verdict. Servers of pools are not its business.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from ..cache.table import DOWN, UNKNOWN, UP
from ..gateway.config import Health, Published
from . import store
from .backend_scrape import BackendScrape
from .board import HEALTH, Board
from .target import Target, TargetKey, Unanswered

log = logging.getLogger(__name__)

_MOST_BYTES = 1 << 20


@dataclass(slots=True)
class Verdict:
    """Successes and failures in a row, and what they amount to. Pure."""

    health: int = UNKNOWN
    good: int = 0
    bad: int = 0

    def note(self, success: bool, health: Health) -> int:
        """Take in one probe's outcome; the health it leads to."""
        self.good, self.bad = (self.good + 1, 0) if success else (0, self.bad + 1)
        if self.good >= health.rise:
            self.health = UP
        elif self.bad >= health.fall:
            self.health = DOWN
        return self.health


@dataclass(slots=True)
class _Watched:
    target: Target
    verdict: Verdict = field(default_factory=Verdict)
    asking: asyncio.Task[None] | None = None


class Prober:
    """Probes what the current generation names. `observe` is told each outcome: backend's name, success."""

    def __init__(
        self,
        board: Board,
        scrape: BackendScrape,
        environ: Mapping[str, str],
        observe: Callable[[str, bool], None],
    ) -> None:
        self._board = board
        self._scrape = scrape
        self._environ = environ
        self._observe = observe
        self._watched: dict[TargetKey, _Watched] = {}
        self._health = Health()
        self._group: asyncio.TaskGroup | None = None

    async def swap(self, published: Published) -> None:
        """Probe this generation's backends from now on, and give each a row in the table at once."""
        self._board.swap(published)
        health, old = published.config.health, self._watched
        told_anew = health != self._health
        self._health = health
        self._watched = {}
        for model, settings in published.config.models.items():
            # a server that is off or asleep must not be asked: `pools.watch` does what there is to do
            if settings.pool is not None:
                continue
            for backend in settings.backends:
                of_model = model if health.completion else None
                key = TargetKey(backend.url, backend.api_key_env, backend.tls, of_model, backend.protocol)
                one = self._watched.get(key)
                if one is None:
                    one = old.pop(key, None) or _Watched(Target(key, backend, self._environ))
                    one.target.indices.clear()
                    self._watched[key] = one
                index = published.indices[store.backend_key(model, backend.url)]
                one.target.indices.add(index)
                if one.verdict.health == UNKNOWN:
                    one.verdict.health = self._board.health_of(index)  # a predecessor's word
        for one in old.values():
            await self._leave(one)
        for one in self._watched.values():
            self._board.judge(one.target.indices, one.verdict.health)
            if told_anew and one.asking is not None:
                one.asking.cancel()
                one.asking = None
            self._start(one)

    async def run(self) -> None:
        """Probe for ever. Raises nothing a backend could cause."""
        try:
            async with asyncio.TaskGroup() as self._group:
                for one in self._watched.values():
                    self._start(one)
                await asyncio.Event().wait()
        finally:
            self._group = None

    def _start(self, one: _Watched) -> None:
        if self._group is not None and one.asking is None:
            one.asking = self._group.create_task(self._keep_asking(one))

    async def _leave(self, one: _Watched) -> None:
        if one.asking is not None:
            one.asking.cancel()
            await asyncio.wait([one.asking])
        self._scrape.forget(one.target)
        one.target.indices.clear()
        await one.target.close()

    async def _keep_asking(self, one: _Watched) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            await self._ask(one)
            await asyncio.sleep(max(0.0, self._health.interval_s - (clock() - began)))

    async def _ask(self, one: _Watched) -> None:
        """Probe one server, and have its metrics meanwhile where it is up; take in what comes of it."""
        if one.verdict.health == UP:
            fault, load = await asyncio.gather(
                self._probe(one.target), self._scrape.ask(one.target, self._health.timeout_s)
            )
            if load is not None:
                self._board.report(one.target.indices, load)
        else:
            fault = await self._probe(one.target)
        before = one.verdict.health
        after = one.verdict.note(fault is None, self._health)
        self._observe(one.target.name, fault is None)
        if after != before:
            if after == UP:
                log.info("backend_health backend=%s health=%s", one.target.name, HEALTH[after])
            else:
                log.warning("backend_health backend=%s health=%s: %s", one.target.name, HEALTH[after], fault)
            self._board.judge(one.target.indices, after)
            if after != UP:
                self._scrape.forget(one.target)

    async def _probe(self, target: Target) -> str | None:
        """What was wrong; None: nothing."""
        path, body = self._health.path, None
        if target.key.model is not None:
            path = "/v1/completions"
            body = msgspec.json.encode({"model": target.key.model, "prompt": "1", "max_tokens": 1})
        try:
            status, _ = await target.ask(
                path, timeout_s=self._health.timeout_s, most_bytes=_MOST_BYTES, body=body
            )
        except Unanswered as fault:
            log.debug("probe_failed backend=%s: %s", target.name, fault)
            return str(fault)
        return None if 200 <= status < 300 else f"{path} answered {status}"

    async def close(self) -> None:
        """Stop probing, and close every client."""
        watched, self._watched = self._watched, {}
        for one in watched.values():
            await self._leave(one)
