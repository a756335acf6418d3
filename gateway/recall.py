"""What the gateway remembers: looks answers up, gives them again, and keeps new ones.

A kept answer is given byte for byte as its server sent it, a stream in the same pieces. It touches no backend, no
queue and no tally. What is stored where, and for how long, is the tiers' business (:mod:`penstock.cache.tiered`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from operator import sub
from time import monotonic_ns

from ..cache.digest import Key
from ..cache.entry import Entry
from ..cache.epoch import Scope, under
from ..cache.l2 import Lease
from ..cache.outcome import Outcome
from ..cache.tiered import Tiers
from .caching import Directives
from .dialects import WORDS
from .parse import Request
from .record import Reader, Record, Writer, cut
from .upstream.h1 import MAX_CUTS

_Fields = list[tuple[str, str]]

_MINE = Lease.MINE  # looked up once: an enum's members are slow in Python 3.11
_NEAR, _FAR = Outcome.HIT_L1.value, Outcome.HIT_L2.value

#: Scopes remembered: models and tenants.
_SCOPES = 4096


class Question:
    """One cacheable request: its key, the epochs it was asked under, and what it says about caching."""

    __slots__ = ("asked_ns", "flight", "key", "request", "scope", "stamp", "wanted")

    def __init__(self, key: Key, scope: Scope, stamp: int, wanted: Directives, request: Request) -> None:
        #: CLOCK_MONOTONIC, before anything was looked up
        self.asked_ns = monotonic_ns()
        self.key = key
        #: what a flight and a lease go by: who asks after a flush joins none that was begun before it
        self.flight = under(key, stamp) if stamp else key
        self.scope = scope
        self.stamp = stamp
        self.wanted = wanted
        self.request = request

    def choices(self) -> int:
        """How many choices were asked for, at least: ``n`` for each prompt."""
        fields = self.request.fields or {}
        n, prompt = fields.get("n"), fields.get("prompt")
        count = n if isinstance(n, int) else 1
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
            count *= len(prompt)
        return count


class Recall:
    """One worker's memory of answers. ``now_ms`` is the wall clock."""

    def __init__(self, tiers: Tiers, max_entry: int, now_ms: Callable[[], int]) -> None:
        self.max_entry = max_entry
        self.now_ms = now_ms
        self.tiers = tiers
        self._reader = Reader()
        self._writer = Writer()
        self._scopes: dict[tuple[str, str], Scope] = {}

    def question(self, key: Key, model: str, tenant: str, wanted: Directives, request: Request) -> Question:
        """The question that a key stands for, asked now: a flush from here on makes its answer worthless."""
        scope = self._scopes.get((model, tenant))
        if scope is None:
            scope = self.tiers.epochs.scope(model, tenant)
            if len(self._scopes) < _SCOPES:
                self._scopes[(model, tenant)] = scope
        return Question(key, scope, self.tiers.epochs.stamp(scope, key), wanted, request)

    def near(self, question: Question) -> Kept | None:
        """What shared memory holds, if it is fresh enough for this question."""
        now_ms = self.now_ms()
        entry = self.tiers.near(question.key, question.stamp, now_ms)
        return None if entry is None else self._kept(entry, question, now_ms, _NEAR)

    def ask(self, question: Question) -> asyncio.Future[bytes | None] | None:
        """Look in Redis; what comes is for :meth:`leased`, then for :meth:`far`. None when it is not asked."""
        return self.tiers.ask(question.flight)

    def leased(self, question: Question, value: bytes | None) -> Lease | None:
        """Who is to ask upstream, where Redis has no answer; else None."""
        lease = self.tiers.leased(value)
        if lease is _MINE and not question.wanted.write:
            self.give_up(question)  # other nodes would wait for what will not be stored
            return Lease.NONE
        return lease

    async def far(self, question: Question, value: bytes | None) -> Kept | Lease:
        """The answer in what Redis gave; else who is to ask upstream."""
        found = await self.tiers.far(value, question.key, question.stamp, self.now_ms())
        if isinstance(found, Lease):
            return found
        return self._kept(found, question, self.now_ms(), _FAR) or Lease.NONE

    async def awaited(self, question: Question, until_s: float) -> Kept | Lease:
        """The answer that another node is asking for, if it comes by then; else who has the lease."""
        found = await self.tiers.awaited(question.key, question.stamp, self.now_ms, until_s)
        if isinstance(found, Lease):
            return found
        return self._kept(found, question, self.now_ms(), _FAR) or Lease.NONE

    def hold(self, question: Question) -> None:
        """This node asks upstream: others wait for it as long as it takes."""
        self.tiers.hold(question.flight)

    def _kept(self, entry: Entry, question: Question, now_ms: int, outcome: str) -> Kept | None:
        age_ms = max(0, now_ms - entry.created_ms)
        most_ms = question.wanted.max_age_ms
        if most_ms is not None and age_ms > most_ms:
            return None
        try:
            record = self._reader.read(entry)
        except ValueError:  # verified bytes that another version of Penstock packed
            return None
        return Kept(record, age_ms // 1000, outcome)

    def keep(
        self,
        question: Question,
        status: int,
        fields: _Fields,
        body: bytes | bytearray,
        cuts: Sequence[int] | None,
    ) -> bool:
        """Keep an answer that ended cleanly, if it may be kept; whether it was.

        ``cuts``: where the pieces of a stream end; None for what is no stream.
        """
        if not 200 <= status < 300 or not question.wanted.write or len(body) > self.max_entry:
            return False
        if self.tiers.epochs.stamp(question.scope, question.key) != question.stamp:
            return False  # flushed meanwhile: dead, it would only take the place of what was asked for since
        words = WORDS[question.request.endpoint.dialect]
        head = self._writer.head(status, fields)
        if head is None:
            return False
        parts: tuple[bytes | bytearray, ...]
        if cuts is None:
            if not words.may_keep_whole(body):
                return False
            parts = head, body
        elif len(cuts) >= MAX_CUTS or not words.may_keep_stream(bytes(body), question.choices()):
            return False
        else:
            ends = cuts if cuts and cuts[-1] == len(body) else [*cuts, len(body)]
            parts = cut(head, bytes(body), list(map(sub, ends, [0, *ends])))
        if sum(map(len, parts)) > self.max_entry:
            return False
        self.tiers.fill(
            question.key, question.flight, question.stamp, self.now_ms(), question.wanted.ttl_ms, *parts
        )
        return True

    def give_up(self, question: Question) -> None:
        """Nothing came of asking upstream: another node may try at once."""
        self.tiers.give_up(question.flight)


class Kept:
    """An answer that is given again.

    ``age_s`` is for the field Age (RFC 9111 §5.1), ``outcome`` is a value of ``Outcome``.
    """

    __slots__ = ("age_s", "outcome", "record")

    def __init__(self, record: Record, age_s: int, outcome: str) -> None:
        self.record = record
        self.age_s = age_s
        self.outcome = outcome

    def fields(self, request_id: str) -> _Fields:
        """The fields of the answer to one client."""
        return [
            *self.record.fields,
            ("x-request-id", request_id),
            ("x-penstock-cache", self.outcome),
            ("age", str(self.age_s)),
        ]
