"""All breakers of the node, as one worker sees and moves them.

A breaker's cells are a stripe of the segment's gates, so every worker counts into the same one and one probe is one on
the node. A request reads only what the last tick copied into its backend, or this worker's own outcome since: it takes
no lock while all is well.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from .breaker import CLOSED, State

log = logging.getLogger(__name__)

_TRIES = 20  # a stripe's lock is held for microseconds


class Stripes(Protocol):
    """Shared stripes of eight cells (:class:`penstock.cache.gates.Gates`)."""

    def read(self, stripe: int) -> list[int] | None: ...

    def stamp(self, stripe: int) -> int: ...

    def update(self, stripe: int, fn: Callable[[list[int]], list[int]]) -> bool: ...


class Guarded(Protocol):
    """The part of a backend that breakers need. ``index`` is its stripe as well.

    ``shut``: no request may go but the probe. ``probe_ns``: when that is due. ``doubted``: it failed lately, so a
    success is worth telling.
    """

    index: int
    identity: str
    name: str
    identity64: int
    shut: bool
    probe_ns: int
    doubted: bool
    breaker_stamp: int

    def recovered(self, closed_ns: int) -> None: ...


class Breakers:
    """One worker's view; ``limit`` failures in a row open one for ``open_ns``, both changed by a reload."""

    __slots__ = ("_stripes", "limit", "now_ns", "open_ns", "shut")

    def __init__(self, stripes: Stripes, clock_ns: Callable[[], int], limit: int, open_s: float) -> None:
        self._stripes = stripes
        self.now_ns = clock_ns
        self.limit = limit
        self.open_ns = int(open_s * 1e9)
        #: backends that no request may go to but a probe
        self.shut: set[Guarded] = set()

    def forget(self) -> None:
        """Another fleet is used from now on; the next tick says which of its backends are shut."""
        self.shut.clear()

    def tick(self, backends: Iterable[Guarded]) -> None:
        """Copy what other workers have done."""
        stamp = self._stripes.stamp
        for backend in backends:
            if stamp(backend.index) != backend.breaker_stamp:
                now = stamp(backend.index)
                cells = self._stripes.read(backend.index)
                if cells is not None:
                    backend.breaker_stamp = now
                    self._show(backend, State(cells, backend.identity64))

    def failed(self, backend: Guarded, token: int, why: str) -> None:
        """An attempt at a backend has failed by the backend's fault; ``token`` is 0 for one that was no probe."""

        def count(state: State) -> None:
            state.failed(token, self.now_ns(), self.limit, self.open_ns)

        before = backend.shut
        self._change(backend, count)
        if backend.shut and (token or not before):
            log.warning(
                "breaker_open model=%s backend=%s for_s=%g cause=%s again=%s",
                *(_model(backend), backend.name, self.open_ns / 1e9, why, bool(token)),
            )

    def succeeded(self, backend: Guarded, token: int) -> None:
        """An attempt went well; for a backend that is not ``doubted`` this need not be told."""
        before = backend.shut
        self._change(backend, lambda state: state.succeeded(token, self.now_ns()))
        if before and not backend.shut:
            log.info("breaker_closed model=%s backend=%s", _model(backend), backend.name)

    def probe(self, backend: Guarded) -> int:
        """The token of the probe, when it is due and no other request on the node has it; else 0."""
        if self.now_ns() < backend.probe_ns:
            return 0
        claimed = 0

        def claim(state: State) -> None:
            nonlocal claimed
            claimed = state.claim(self.now_ns(), self.open_ns)

        self._change(backend, claim)
        return claimed

    def _change(self, backend: Guarded, move: Callable[[State], None]) -> None:
        after: State | None = None

        def moved(cells: list[int]) -> list[int]:
            nonlocal after
            after = State(cells, backend.identity64)
            move(after)
            return after.cells()

        for _ in range(_TRIES):
            if self._stripes.update(backend.index, moved):
                break
        if after is not None:
            self._show(backend, after)

    def _show(self, backend: Guarded, state: State) -> None:
        was_shut = backend.shut
        backend.shut = state.phase != CLOSED
        if backend.shut:
            self.shut.add(backend)
        else:
            self.shut.discard(backend)
        backend.doubted = backend.shut or state.failures > 0
        backend.probe_ns = state.until_ns
        if was_shut and not backend.shut:
            backend.recovered(state.closed_ns)


def _model(backend: Guarded) -> str:
    return backend.identity.partition("\n")[0]
