"""One worker's part in one key's limits: what it has taken from the key's cells and not yet spent.

A gate stripe, which all workers of the node change under its lock, holds for each key

    [0] requests: the time at which nothing is owed any more, nanoseconds of the node's monotonic clock (`gcra`)
    [1] requests: the sum of all costs ever added to [0], modulo 2**64: what other nodes are told the increments of
    [2] and [3] the same of tokens, whose sum also falls: what was reserved and not used is given back
    [4] tokens that are charged in [2] but not spent: reserved for requests, or in a purse
    [5] whose cells these are    [6] [7] zero

Strategy: where the rate is high, a visit to the cells takes what 20 ms of it allow, so that few requests pay for the
lock; where it is low each request visits. What is reserved for a request is charged at once and corrected when its
usage is known. A worker's row says how many of the tokens in [4] are its own. It is raised before [4] and lowered
after it, so the rows never add up to less; they do once a dead worker's row was zeroed, and the next who visits gives
back what that one held. A lock that is not free is tried a few times; then the worker admits its own share of the
rate, and owes it to the cells until its next visit. It refuses to know what a request is.
"""

from __future__ import annotations

import xxhash

from ...cache.gates import Gates
from ...cache.rows import KEY_RUNNING, KEY_TOKENS, Tally, TallyRow
from ..caller import Caller
from .gcra import cost_ns, default_burst, room, used, wait_ns

_CELL = 0xFFFF_FFFF_FFFF_FFFF
_TRIES = 8
_GRANTS_A_MINUTE = 3000  # one is what 20 ms allow
_BELIEVED_NS = 20_000_000
"""For so long a refusal is repeated without a look at the cells."""


def identity(key: str) -> int:
    """By what nodes name a key's cells: 64 bits, never 0."""
    return xxhash.xxh3_64_intdigest(key.encode()) or 1


class Purse:
    """Tokens and requests of one key. ``workers``: how many share its rate."""

    __slots__ = (
        *("_burst_requests", "_burst_tokens", "_free_at", "_gates", "_grant_requests", "_grant_tokens"),
        *("_held", "_now", "_own_requests", "_own_tokens", "_raised", "_refused_until", "_row", "_share"),
        *("_stripe", "_tally", "_tokens_free_at", "_tokens_refused_until", "_wait", "_want_requests"),
        *("_want_tokens", "_who", "_workers", "caller", "owed_requests", "owed_tokens", "requests"),
        *("all_running", "reserved", "running", "tokens", "told", "told_ns"),
    )

    def __init__(
        self, caller: Caller, stripe: int, gates: Gates, row: TallyRow, tally: Tally, workers: int
    ) -> None:
        self._stripe = stripe
        self._gates = gates
        self._row = row
        self._tally = tally
        self._workers = workers
        #: requests under way: the cell of this worker, and those of all
        self.running = row.key_cell(KEY_RUNNING, caller.row)
        self.all_running = tally.key_column(KEY_RUNNING, caller.row)
        #: what answers say of the key, and since when
        self.told: list[tuple[str, str]] | None = None
        self.told_ns = 0
        #: taken and free; below zero: owed to the cells
        self.requests = 0
        self.tokens = 0
        #: tokens of requests under way
        self.reserved = 0
        #: of `tokens` and `reserved`, what the worker's row and the cells know
        self._held = 0
        self._own_requests = self._own_tokens = 0
        #: the cells as they were last seen
        self.owed_requests = self.owed_tokens = 0
        self._now = self._want_requests = self._want_tokens = self._raised = self._wait = 0
        self._share = 1
        self.take(caller)

    def take(self, caller: Caller) -> None:
        """The key as it is from now on."""
        self.caller = caller
        self.told = None
        self._who = identity(caller.id)
        self._refused_until = self._free_at = self._tokens_refused_until = self._tokens_free_at = 0
        rpm, tpm, share = caller.rpm, caller.tpm, 2 * self._workers
        burst = caller.burst or default_burst(rpm)
        self._burst_requests = cost_ns(burst, rpm) if rpm else 0
        self._grant_requests = min(rpm // _GRANTS_A_MINUTE, burst // share)
        # a burst of one is a time of the other: who may send for so long may use tokens for so long
        burst_tokens = default_burst(tpm)
        self._burst_tokens = cost_ns(burst_tokens, tpm) if tpm else 0
        if tpm and rpm and caller.burst:
            self._burst_tokens = max(self._burst_tokens, self._burst_requests)
        self._grant_tokens = min(tpm // _GRANTS_A_MINUTE, burst_tokens // share)

    # ---- for requests

    def request(self, now: int, share: int) -> int:
        """Take one request; 0, or how many nanoseconds it would have to wait (then nothing is taken).

        share: among how many nodes the rate is divided.
        """
        if self.requests > 0:
            self.requests -= 1
            return 0
        if now < self._refused_until:
            return self._free_at - now
        if self._visit(now, share, 1, 0):
            wait = self._wait
        else:
            cost = cost_ns(1, self.caller.rpm) * share * self._workers
            wait = wait_ns(self._own_requests, now, cost, cost)
            if not wait:
                self._own_requests = used(self._own_requests, now, cost)
        if wait:
            self._free_at = now + wait
            self._refused_until = now + min(wait, _BELIEVED_NS)
            return wait
        self.requests -= 1
        return 0

    def reserve(self, n: int, now: int, share: int) -> int:
        """Set n tokens apart; 0, or how long to wait, as :meth:`request`."""
        if self.tokens < n:
            if now < self._tokens_refused_until:
                return self._tokens_free_at - now
            if self._visit(now, share, 0, n):
                wait = self._wait
            else:
                cost = cost_ns(n, self.caller.tpm) * share * self._workers
                burst = self._burst_tokens
                wait = wait_ns(self._own_tokens, now, cost, burst)
                if not wait:
                    self._own_tokens = used(self._own_tokens, now, cost)
            if wait:
                self._tokens_free_at = now + wait
                self._tokens_refused_until = now + min(wait, _BELIEVED_NS)
                return wait
        self.tokens -= n
        self.reserved += n
        return 0

    @property
    def unsettled(self) -> bool:
        """Whether the cells should hear of what is owed or left over here."""
        return self.requests < 0 or not 0 <= self.tokens <= 2 * self._grant_tokens

    def visit(self, now: int, share: int) -> bool:
        """Make the cells right; False when their lock was not free."""
        return self._visit(now, share, 0, 0)

    def rooms(self, now: int) -> tuple[int, int, int, int]:
        """As last seen: requests that may come at once, and nanoseconds until none is owed; the same of tokens."""
        rpm, tpm = self.caller.rpm, self.caller.tpm
        requests = room(self.owed_requests, now, self._burst_requests, rpm) + self.requests if rpm else 0
        tokens = room(self.owed_tokens, now, self._burst_tokens, tpm) + self.tokens if tpm else 0
        return (
            min(rpm, max(0, requests)),
            max(0, self.owed_requests - now),
            min(tpm, max(0, tokens)),
            max(0, self.owed_tokens - now),
        )

    # ---- at the cells

    def _visit(self, now: int, share: int, requests: int, tokens: int) -> bool:
        """Settle, and take what is wanted; whether it could be tried, ``_wait`` says how it went."""
        self.told = None
        self._now, self._share, self._wait = now, share, 0
        self._want_requests, self._want_tokens = requests, tokens
        at = self.caller.row
        held = self._held
        limited = self.caller.tpm or held
        raised = 0
        if limited:
            most = self.reserved + tokens + max(0, self.tokens) + 2 * self._grant_tokens
            raised = max(0, most - held)
            self._row.add_key(KEY_TOKENS, at, raised)
        self._raised = raised
        update, stripe = self._gates.update, self._stripe
        done = update(stripe, self._changed)
        if not done:
            for _ in range(_TRIES):
                done = update(stripe, self._changed)
                if done:
                    break
        if limited:
            self._row.add_key(KEY_TOKENS, at, self._held - held - raised)
        return done

    def _changed(self, cells: list[int]) -> list[int]:
        """The cells after this visit; under their lock."""
        owed, charged, owed_tokens, charged_tokens, held, who, a, b = cells
        now, share, rpm, tpm = self._now, self._share, self.caller.rpm, self.caller.tpm
        if who != self._who:
            owed = charged = owed_tokens = charged_tokens = 0
        if rpm:
            free = self.requests
            want = self._want_requests
            take = -free if free < 0 else 0  # what is owed from before is charged whatever happens
            if take:
                cost = cost_ns(take, rpm) * share
                owed, charged = used(owed, now, cost), charged + cost
                free = 0
            if want > free:
                one = cost_ns(want, rpm) * share
                self._wait = wait_ns(owed, now, one, self._burst_requests)
                if not self._wait:
                    most = room(owed, now, self._burst_requests, rpm) // share
                    take = max(want, min(want + self._grant_requests, most))
                    cost = cost_ns(take, rpm) * share
                    owed, charged = used(owed, now, cost), charged + cost
                    free += take
            self.requests = free
        if tpm or self._held:
            live = self._tally.of_key(KEY_TOKENS, self.caller.row) - self._raised
            change = held - live if held > live else 0  # of the dead
            held -= change
            change = -change
            free, grant = self.tokens, self._grant_tokens
            if free < 0 or free > 2 * grant:
                change += grant * (free > 0) - free
                free = grant * (free > 0)
            if tpm:
                cost = cost_ns(change, tpm) * share if change > 0 else -cost_ns(-change, tpm) * share
                owed_tokens, charged_tokens = used(owed_tokens, now, cost), charged_tokens + cost
                want = self._want_tokens - free
                if want > 0:
                    one = cost_ns(want, tpm) * share
                    self._wait = wait_ns(owed_tokens, now, one, self._burst_tokens)
                    if not self._wait:
                        most = room(owed_tokens, now, self._burst_tokens, tpm) // share
                        take = max(want, min(want + grant, most))
                        cost = cost_ns(take, tpm) * share
                        owed_tokens, charged_tokens = used(owed_tokens, now, cost), charged_tokens + cost
                        free += take
            self.tokens = free
            after = free + self.reserved
            held += after - self._held
            self._held = after
        self.owed_requests, self.owed_tokens = owed, owed_tokens
        return [owed, charged & _CELL, owed_tokens, charged_tokens & _CELL, max(0, held), self._who, a, b]
