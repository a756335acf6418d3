"""Requests of this worker that wait for servers to wake: in order, bounded, and counted as the demand that wakes them.

Whoever finds its model's pool not ready leaves admission and waits here; that it waits is what the controller sees
(``TallyRow.add_waiting``), for as long as it does and no longer. The worker's tick looks at each pool that is waited
for: when it is ready and a backend may be asked, those that wait go on, in fair order among tenants, a portion each
tick; when a wake has failed, all that were there are told why; who has waited too long is told that. A newcomer does
not overtake those that are still to go on. What is known of a model is looked up by its name each time: the
configuration may have changed meanwhile.

What waits here and in admission's queue together is bounded by ``max_queue``; where that is full, a tenant that has
more of it for its weight gives way, as there. Who was let in once keeps its seat. It refuses to know what a pool is
made of and what is asked of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from ..cache.pool_table import PoolRow
from .admission import Admission
from .breakers import Breakers
from .caller import Caller
from .errors import Fault, Kind, shutting_down
from .fairness import Line, Waiter
from .fleet import Backend, Model
from .life import Life
from .metrics import WAITED, WAITS, Metrics
from .pool_view import FAILED, READY, PoolView
from .seldom import Seldom

log = logging.getLogger(__name__)

#: Waiters of one model that go on in one tick: so many tasks run before anything else does.
PORTION = 128
#: A server that could not be reached is asked again after so long (s), or once it was seen down and up again.
SHY_S = 0.25
#: How often it is looked who has waited too long (s).
_LATE_EVERY_S = 0.1
#: SDKs do not wait longer (s): told to, they ask again within seconds, for nothing.
LONGEST_WAIT_S = 60.0
USELESS = (("x-should-retry", "false"),)
_OUTCOMES = {Kind.WAKE_FAILED: "failed", Kind.WAKE_TIMEOUT: "timeout", Kind.QUEUE_FULL: "refused"}


class Patience:
    """How long one request may still wait for one model's servers (s), however often it has to."""

    __slots__ = ("left_s",)

    def __init__(self, left_s: float) -> None:
        self.left_s = left_s


class _Held(Waiter):
    """One request. ``failures``: wakes that had failed when it came. ``shy_of``: the server (its identity) that it
    could not reach just now, left alone until ``shy_until``.
    """

    __slots__ = ("failures", "shy_of", "shy_until")

    def __init__(self, future: asyncio.Future[None], since: float, deadline: float, failures: int) -> None:
        super().__init__(future, since, deadline)
        self.failures = failures
        self.shy_of = ""
        self.shy_until = 0.0


class _Room:
    """One model's waiters in this worker. ``leaving``: how many may go on and have not run yet."""

    __slots__ = ("failures", "late_at", "leaving", "line", "shy", "tags")

    def __init__(self, failures: int) -> None:
        #: how far each tenant has come among those that went on from here
        self.tags: dict[int, int] = {}
        self.line = Line(lambda _: 0, lambda account: self.tags.get(account, 0))
        self.leaving = 0
        #: those that leave a server alone, and have no other to go to
        self.shy: list[_Held] = []
        self.failures = failures
        self.late_at = 0.0


class _Band:
    """Followers of requests for one model, until their answers begin. ``ready``: as they were told."""

    __slots__ = ("lives", "ready")

    def __init__(self, ready: bool) -> None:
        self.lives: dict[Life, bool] = {}
        self.ready = ready


class Hold:
    """One worker's held requests. ``rooms``: the models (by name) for which any wait here, or are still to go on."""

    def __init__(
        self,
        admission: Admission,
        breakers: Breakers,
        metrics: Metrics,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
    ) -> None:
        self.rooms: dict[str, _Room] = {}
        #: no controller is left that could wake anything: who would wait for that is told so instead
        self.orphaned = False
        self._admission = admission
        self._breakers = breakers
        self._metrics = metrics
        self._loop = loop
        self._clock = clock
        self._models: dict[str, Model] = {}
        self._pooled: list[Model] = []
        self._bands: dict[str, _Band] = {}
        self._seldom = Seldom()

    def swap(self, models: Iterable[Model]) -> None:
        """Other models from now on; who waits for one that is gone is told so at the next tick."""
        self._models = {model.name: model for model in models}
        self._pooled = [model for model in self._models.values() if model.pool is not None]

    @property
    def waiting(self) -> int:
        """Requests of this worker that are held now."""
        return sum(room.line.waiting + room.leaving for room in self.rooms.values())

    @property
    def following(self) -> int:
        """Requests of this worker whose answers others ask for, at models with pools."""
        return sum(len(band.lives) for band in self._bands.values())

    def able(self, model: Model) -> int:
        """How many requests may go on to the model's backends: 0, 1 where all there is is a probe that is due, or
        :data:`PORTION`.
        """
        probe = 0
        for backend in model.backends:
            if backend.up:
                if not backend.shut:
                    return PORTION
                if self._breakers.now_ns() >= backend.probe_ns:
                    probe = 1
        return probe

    # ---- for requests

    async def wait(
        self,
        model: Model,
        caller: Caller,
        life: Life,
        patience: Patience,
        *,
        streams: bool = False,
        seated: bool = False,
        failed: Backend | None = None,
    ) -> Model:
        """Wait until the model's servers may be asked; the model as it is configured by then.

        Raises :class:`Fault` 503 when the wake fails, 504 when ``patience`` ends, 429 when there is no room.
        ``streams``: an event stream is asked for. ``seated``: it was let in before, so it finds room, and goes on
        before those that come now. ``failed``: what it could not reach just now.
        """
        began, outcome, name = self._clock(), "left", model.name
        pool = model.pool
        assert pool is not None
        try:
            room, held = self._join(model, pool, caller, patience, seated, failed)
        except Fault as fault:
            self._metrics.count(WAITS, name, _OUTCOMES.get(fault.kind, "failed"))
            raise
        life.hold_pool, life.hold_since = pool, began
        if streams:
            life.keep_alive()
        try:
            await held.future
            outcome = "released"
        except Fault as fault:
            outcome = _OUTCOMES.get(fault.kind, "failed")
            raise
        finally:
            if held.lane is not None:  # cancelled
                room.line.remove(held)
            else:
                room.leaving -= 1
            self._admission.count_waiting(model.index, caller, -1)
            if not room.line.waiting and not room.leaving and self.rooms.get(name) is room:
                del self.rooms[name]
            life.hold_since = 0.0
            spent_s = self._clock() - began
            patience.left_s -= spent_s
            spent_ns = int(spent_s * 1e9)
            life.wake_ns += spent_ns
            life.queued_ns += spent_ns
            self._metrics.count(WAITS, name, outcome)
            self._metrics.histogram(WAITED, name)(spent_ns)
        return self._models.get(name, model)

    def follow(self, model: Model, life: Life, streams: bool) -> None:
        """The request's answer is asked for by another one; while the model's pool is not ready it waits for that.
        :meth:`unfollow` must come after.
        """
        pool, name = model.pool, model.name
        assert pool is not None
        band = self._bands.get(name)
        if band is None:
            band = self._bands[name] = _Band(pool.ready)
        band.lives[life] = streams
        if not band.ready:
            _begin(life, pool, streams, self._clock())

    def unfollow(self, model: Model, life: Life) -> None:
        """Its answer begins, or it has none."""
        band = self._bands[model.name]
        del band.lives[life]
        if not band.lives:
            del self._bands[model.name]
        _end(life, self._clock())

    def _join(
        self,
        model: Model,
        pool: PoolView,
        caller: Caller,
        patience: Patience,
        seated: bool,
        failed: Backend | None,
    ) -> tuple[_Room, _Held]:
        admission, name, index, now = self._admission, model.name, model.index, self._clock()
        row = pool.row()
        if _has_failed(row, now):
            raise self._failure(model, row, now)
        if patience.left_s <= 0:
            raise _late(model)
        lane = admission.lane(index, caller)
        # of one tenant and priority those that had been let in before come first
        lane.priority = 2 * lane.priority - seated
        room = self.rooms.get(name)
        full = not seated and admission.depth(index) >= model.max_queue
        if full:
            victim = admission.gives_way(room.line, lane) if room is not None else None
            if room is None or victim is None:
                raise admission.full(model, 0.0)
            self._fail(room, next(reversed(victim.waiters)), admission.full(model, 0.0))
        admission.count_waiting(index, caller, 1)
        if not seated and not full and admission.depth(index) > model.max_queue:
            admission.count_waiting(index, caller, -1)
            raise admission.full(model, 0.0)
        if room is None:
            room = self.rooms[name] = _Room(row.failures)
        held = _Held(self._loop.create_future(), now, now + patience.left_s, row.failures)
        if failed is not None:
            held.shy_of, held.shy_until = failed.identity, now + SHY_S
            room.shy.append(held)
        room.line.join(held, lane, ())
        return room, held

    # ---- between requests

    def tick(self, now: float) -> None:
        """Let go on who may, and tell those who cannot; pools and backends have been looked at just before.

        Who is queued for a place at servers that go is sent here: the queue's clock is for those that are there.
        """
        for one in self._pooled:
            if one.pool is not None and not one.pool.ready:
                self._admission.dismiss(one.index)
        for name, room in list(self.rooms.items()):
            if room.line.waiting:
                self._look(room, name, now)
        for name, band in self._bands.items():
            model = self._models.get(name)
            pool = model.pool if model is not None else None
            ready = pool is None or pool.ready
            if ready is not band.ready:
                band.ready = ready
                for life, streams in band.lives.items():
                    if pool is None or ready:
                        _end(life, now)
                    else:
                        _begin(life, pool, streams, now)

    def _look(self, room: _Room, name: str, now: float) -> None:
        model = self._models.get(name)
        if model is None:
            text = f"the model '{name}' is not configured any more"
            for held in _all(room.line):
                self._fail(room, held, Fault(Kind.NO_BACKEND, text, headers=USELESS))
            return
        pool = model.pool
        if room.shy:
            room.shy = [held for held in room.shy if held.lane is not None and _shy(held, model, now)]
        if pool is not None:
            row = pool.row()
            if row.failures != room.failures or _has_failed(row, now):
                self._told(room, model, row, now)
            if now >= room.late_at:
                room.late_at = now + _LATE_EVERY_S
                for held in [one for one in _all(room.line) if one.deadline <= now]:
                    self._fail(room, held, _late(model))
            if self.orphaned and not (row.phase == READY and any(one.up for one in model.backends)):
                for held in _all(room.line):
                    self._fail(room, held, shutting_down())
            if row.phase != READY:
                return
        self._release(room, model, now)

    def _told(self, room: _Room, model: Model, row: PoolRow, now: float) -> None:
        """A wake has failed: so it has for all who were there. A controller that counts anew has told nobody."""
        anew = row.failures < room.failures
        room.failures = row.failures
        failed = _has_failed(row, now)
        for held in _all(room.line):
            if failed or (row.failures > held.failures and not anew):
                self._fail(room, held, self._failure(model, row, now))
            elif anew:
                held.failures = row.failures

    def _release(self, room: _Room, model: Model, now: float) -> None:
        line = room.line
        left = PORTION if model.pool is None else self.able(model)
        while line.waiting and left:
            lane, _ = line.neediest(now)
            first = next(iter(lane.waiters))
            if first in room.shy:
                return
            _, room.tags[lane.account] = line.admit(lane, now)
            room.leaving += 1
            if not first.future.done():  # else it is cancelled, and its task has not run yet
                first.future.set_result(None)
                left -= 1

    # ---- ends

    def _fail(self, room: _Room, held: Waiter, fault: Fault) -> None:
        room.line.remove(held)
        room.leaving += 1
        if not held.future.done():
            held.future.set_exception(fault)

    def _failure(self, model: Model, row: PoolRow, now: float) -> Fault:
        more = self._seldom.due((model.name, row.failures), now)
        if more is not None:
            log.info("wake_failed model=%s cause=%s more=%d", model.name, row.reason, more)
        again_s = max(row.not_before_ns / 1e9 - now, 0.0)
        return Fault(
            Kind.WAKE_FAILED,
            f"no server of '{model.name}' could be started: {row.reason or 'the reason is not known'}",
            retry_after_s=again_s,
            headers=USELESS if again_s > LONGEST_WAIT_S else (),
        )


def _has_failed(row: PoolRow, now: float) -> bool:
    """Whether a wake has failed, and the next is not due; whoever comes when it is waits for that."""
    return row.phase == FAILED and now < row.not_before_ns / 1e9


def _all(line: Line) -> list[_Held]:
    return [held for lane in line.lanes() for held in lane.waiters if isinstance(held, _Held)]


def _shy(held: _Held, model: Model, now: float) -> bool:
    """Whether all there is to be asked is what it could not reach just now."""
    mine = next((backend for backend in model.backends if backend.identity == held.shy_of), None)
    if mine is None or not mine.up or now >= held.shy_until:
        return False
    others = [
        backend for backend in model.backends if backend is not mine and backend.up and not backend.shut
    ]
    return all(backend.shunned_until > now for backend in others)


def _late(model: Model) -> Fault:
    limit = model.pool.ready_timeout_s if model.pool is not None else 0.0
    return Fault(
        Kind.WAKE_TIMEOUT, f"no server of '{model.name}' was ready within ready_timeout_s ({limit:g} s)"
    )


def _begin(life: Life, pool: PoolView, streams: bool, now: float) -> None:
    life.hold_pool, life.hold_since = pool, now
    if streams:
        life.keep_alive()


def _end(life: Life, now: float) -> None:
    if life.hold_since:
        spent_ns = int((now - life.hold_since) * 1e9)
        life.hold_since = 0.0
        life.wake_ns += spent_ns
        life.queued_ns += spent_ns
