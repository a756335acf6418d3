"""Small requests to one model that arrive together become one upstream request, and get an answer each.

The first of its kind waits a window for others (or until there are as many as may go together); then one request goes
upstream through the same dispatch as any other: one place, one lease, its retries, its breaker. Who is still alone
when the window ends goes as it came. The answer is taken apart (:mod:`.batch_text`); when it cannot be, or is an error
that one caller's input may have caused, each goes alone after all, so that nobody suffers for another. Who leaves is
taken out; when the last has left, the request is not sent, or is cancelled.

Servers tell the tokens of all inputs of an embedding together: what each caller's were is asked of a server's
``/tokenize`` meanwhile. Refuses to know bodies and headers.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine, Sequence
from time import perf_counter_ns
from typing import Any

from .answer import Answering
from .batch_terms import BatchTerms
from .batch_text import Unsplit, merge, split
from .buffers import Buffers
from .counting import Counting
from .dispatch import Dispatch
from .errand import Errand
from .errors import Fault, Kind
from .fleet import Backend, Model
from .life import Life
from .metrics import BATCHED, BATCHES, Metrics
from .parse import Request
from .part import Held, Part
from .portion import Portion, portion_of
from .raw import RawRequest
from .seldom import Seldom
from .sent import Sent

log = logging.getLogger(__name__)

#: After an answer that could not be taken apart, requests of that kind go alone for so long (s).
APART_S = 60.0
_MORE_BYTES = 512  # what a body of many has that none of its parts has, at most
#: Statuses that speak of the server's state: asking again at once, for each alone, would only make it worse.
_NOT_AGAIN = frozenset({408, 429})
#: Of a failure to several tenants, what each is told.
_ERROR = b'{"error":{"message":"the backend answered %d","type":"%s","param":null,"code":null}}'


class Batching:
    """One worker's batches; ``send`` stands before ``dispatch``'s own for models that have ``batching``."""

    def __init__(
        self,
        dispatch: Dispatch,
        answering: Answering,
        buffers: Buffers,
        metrics: Metrics,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
    ) -> None:
        self._dispatch = dispatch
        self._answering = answering
        self._buffers = buffers
        self._metrics = metrics
        self._loop = loop
        self._clock = clock
        self._open: dict[tuple[object, ...], _Batch] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        #: until when requests of a kind go alone, by model and endpoint
        self._apart: dict[tuple[str, str], float] = {}
        self._turns = itertools.count()
        self._seldom = Seldom()

    def send(self, errand: Errand, life: Life) -> Coroutine[Any, Any, Sent] | None:
        """As ``Dispatch.send``, together with others; None for an errand that is to go alone."""
        terms = errand.model.batching
        if terms is None or errand.pinned is not None or self._goes_apart(errand):
            return None
        portion = portion_of(errand)
        if portion is None or len(portion.items) >= terms.max_items:
            return None
        return self._wait(errand, portion, terms, life)

    # ---- before it is sent

    async def _wait(self, errand: Errand, portion: Portion, terms: BatchTerms, life: Life) -> Sent:
        began = perf_counter_ns()
        member = _Member(errand, portion, self._loop.create_future())
        batch = self._open.get(portion.key)
        if batch is not None and not batch.has_room(member):
            self._close(batch)
            batch = None
        if batch is None:
            batch = self._open[portion.key] = _Batch(portion.key, terms)
            batch.timer = self._loop.call_later(terms.window_s, self._close, batch)
        batch.join(member)
        if batch.items >= terms.max_items:
            self._close(batch)
        try:
            part = await member.future
        except BaseException:
            self._leave(batch, member)
            raise
        finally:
            life.queued_ns += (batch.closed_ns or perf_counter_ns()) - began + batch.life.queued_ns
            life.wake_ns += batch.life.wake_ns
            life.upstream_ns += batch.life.upstream_ns
        return part if part is not None else await self._dispatch.send(errand, life, False)

    def _leave(self, batch: _Batch, member: _Member) -> None:
        """Its client is gone, or it was told a fault."""
        future = member.future
        if future.done() and not future.cancelled() and future.exception() is None:
            part = future.result()
            if part is not None:  # handed over in the very turn that cancelled the wait
                part.end()
        batch.leave(member)
        if not batch.members:
            if batch.task is not None:
                batch.task.cancel()
            elif not batch.closed_ns:
                self._take_out(batch)

    def _take_out(self, batch: _Batch) -> None:
        del self._open[batch.key]
        if batch.timer is not None:
            batch.timer.cancel()

    def _close(self, batch: _Batch) -> None:
        """Nobody joins any more: send it."""
        self._take_out(batch)
        batch.closed_ns = perf_counter_ns()
        members = [member for member in batch.members if not member.future.done()]
        if len(members) < 2:
            _alone(members)
            return
        task = batch.task = self._loop.create_task(self._fly(batch, members))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- sent

    async def _fly(self, batch: _Batch, members: Sequence[_Member]) -> None:
        model = members[0].errand.model.name
        self._metrics.count(BATCHED, model, n=len(members))
        outcome = "left"
        try:
            outcome = await self._ask(batch, members)
        except Fault as fault:
            if fault.kind is Kind.UPSTREAM_TOO_LARGE:
                outcome = "resent"  # of each alone it may not be
                _alone(members)
            else:
                outcome = "failed"
                _tell(members, fault)
        except Exception:
            outcome = "failed"
            log.exception("batch_failed model=%s", model)
            _tell(members, Fault(Kind.INTERNAL, "the gateway failed; its log says why"))
        finally:
            self._metrics.count(BATCHES, model, outcome)

    async def _ask(self, batch: _Batch, members: Sequence[_Member]) -> str:
        """Ask for all, and give each its part; what came of it."""
        portions = [member.portion for member in members]
        first = members[0].errand
        together = _Together([member.errand for member in members], portions, batch.terms.exact)
        size = len(together.body or b"")
        if not self._buffers.try_hold(size):
            _alone(members)
            return "resent"
        able = [backend for backend in first.model.backends if backend.up and not backend.shut]
        counts = self._count(batch.terms, members, portions, able)
        try:
            sent = await self._dispatch.send(together, batch.life, False)
            held = Held(self._answering.account(sent.call))
            if counts is None and not sent.fallback:  # nobody was there to count before
                counts = self._count(batch.terms, members, portions, (sent.backend,))
            try:
                return await self._share_out(batch, members, portions, sent, held, counts)
            finally:
                sent.end()
                held.drop()
        except Unsplit as why:
            self._apart[(first.model.name, first.endpoint.path)] = self._clock() + APART_S
            more = self._seldom.due(("unsplit", first.model.name), self._clock())
            if more is not None:
                log.warning(
                    "batch_unsplit model=%s path=%s cause=%s request_id=%s more=%d",
                    *(first.model.name, first.endpoint.path, why, first.raw.request_id, more),
                )
            _alone(members)
            return "unsplit"
        finally:
            self._buffers.release(size)
            if counts is not None:
                counts.cancel()

    def _count(
        self,
        terms: BatchTerms,
        members: Sequence[_Member],
        portions: Sequence[Portion],
        able: Sequence[Backend],
    ) -> asyncio.Task[list[list[int]]] | None:
        """Begin to count the texts' tokens while they are embedded: all servers of a model count alike."""
        model = members[0].errand.model
        if not (terms.exact and portions[0].texts and portions[0].field == "input" and able):
            return None
        counting = Counting(able[next(self._turns) % len(able)], model.name, model.timeouts, self._clock)
        task = self._loop.create_task(counting.of(portions, members[0].errand.raw.request_id))
        task.add_done_callback(_seen)
        return task

    async def _share_out(
        self,
        batch: _Batch,
        members: Sequence[_Member],
        portions: Sequence[Portion],
        sent: Sent,
        held: Held,
        counting: asyncio.Task[list[list[int]]] | None,
    ) -> str:
        began = perf_counter_ns()
        exact = batch.terms.exact
        call = sent.call
        try:
            body = await self._answering.gather(call, held.account)
            if call.status >= 300:
                return self._pass_on(members, sent, bytes(body), held)
            if counting is not None and sent.fallback:
                raise Unsplit("another model answered, which counts in its own way")
            counts = await counting if counting is not None else None
        finally:
            batch.life.upstream_ns += perf_counter_ns() - began
        idents = [member.errand.raw.request_id for member in members]
        for member, own in zip(
            members, split(body, portions, idents, exact=exact, counts=counts), strict=True
        ):
            member.give(sent, own, held)
        return "answered"

    def _pass_on(self, members: Sequence[_Member], sent: Sent, body: bytes, held: Held) -> str:
        """An error: one caller's input may be to blame, so each asks alone, after a failure within the budget."""
        status = sent.call.status
        outcome = "refused"
        # a server may quote what it was asked
        foreign = len({member.errand.caller.tenant for member in members}) > 1
        if foreign:
            body = _ERROR % (status, b"rate_limit_error" if status == 429 else b"server_error")
        for member in members:
            if status not in _NOT_AGAIN and (status < 500 or self._dispatch.budget.withdraw()):
                outcome = "resent"
                _alone((member,))
            else:
                member.give(sent, body, held, own=not foreign)
        return outcome

    def _goes_apart(self, errand: Errand) -> bool:
        if not self._apart:
            return False
        kind = (errand.model.name, errand.endpoint.path)
        until = self._apart.get(kind)
        if until is None:
            return False
        if self._clock() < until:
            return True
        del self._apart[kind]
        return False


class _Member:
    """One caller: ``future`` gets its part, or None when it is to go alone. ``size``: bytes of its body."""

    __slots__ = ("errand", "future", "portion", "size")

    def __init__(self, errand: Errand, portion: Portion, future: asyncio.Future[Part | None]) -> None:
        self.errand = errand
        self.portion = portion
        self.future = future
        self.size = len(errand.body or b"")

    def give(self, sent: Sent, body: bytes, held: Held, own: bool = True) -> None:
        """Its answer; nothing when it has left. ``own``: the body is the server's, else JSON of ours."""
        if not self.future.done():
            part = Part(sent, body, held)
            if not own:
                kept = [field for field in sent.call.headers if not field[0].lower().startswith(b"content-")]
                part.call.headers = [*kept, (b"content-type", b"application/json")]
            self.future.set_result(part)


class _Batch:
    """Those that go together. ``closed_ns``: when nobody could join any more; 0: not yet."""

    __slots__ = ("_bytes", "closed_ns", "items", "key", "life", "members", "task", "terms", "timer")

    def __init__(self, key: tuple[object, ...], terms: BatchTerms) -> None:
        self.key = key
        self.terms = terms
        self.life = Life()
        self.members: dict[_Member, None] = {}
        self.items = 0
        self._bytes = _MORE_BYTES
        self.closed_ns = 0
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None

    def has_room(self, member: _Member) -> bool:
        """Whether that much more may go together."""
        items = self.items + len(member.portion.items)
        return items <= self.terms.max_items and self._bytes + member.size <= self.terms.max_bytes

    def join(self, member: _Member) -> None:
        """One more."""
        self.members[member] = None
        self.items += len(member.portion.items)
        self._bytes += member.size

    def leave(self, member: _Member) -> None:
        """One less. Idempotent."""
        if member in self.members:
            del self.members[member]
            self.items -= len(member.portion.items)
            self._bytes -= member.size


class _Together(Errand):
    """All errands of a batch as one, for the caller among them that is served first."""

    __slots__ = ("_ask_ids", "_portions")

    def __init__(self, errands: Sequence[Errand], portions: Sequence[Portion], exact: bool) -> None:
        first = errands[0]
        self._portions = portions
        self._ask_ids = exact and first.endpoint.path == "/v1/completions"
        body = merge(portions, first.model.name, self._ask_ids)
        raw = first.raw
        raw = RawRequest(
            *(raw.method, raw.path, raw.query, portions[0].forwarded),
            *(raw.content_type, raw.request_id, body),
        )
        request = Request(first.endpoint, body, first.model.name, False, first.fields)
        caller = min((errand.caller for errand in errands), key=lambda c: (c.priority, -c.weight))
        super().__init__(first.endpoint, first.model, "POST", first.target, raw, body, caller, request)

    def body_for(self, model: Model) -> bytes | None:
        """The body as another model must be asked."""
        return self.body if model is self.model else merge(self._portions, model.name, self._ask_ids)


def _alone(members: Sequence[_Member]) -> None:
    for member in members:
        if not member.future.done():
            member.future.set_result(None)


def _seen(task: asyncio.Task[list[list[int]]]) -> None:
    """What counting failed of is told where it is waited for, and nobody waits after an error."""
    if not task.cancelled():
        task.exception()


def _tell(members: Sequence[_Member], fault: Fault) -> None:
    for member in members:
        if not member.future.done():
            member.future.set_exception(fault)
