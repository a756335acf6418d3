"""From a model's backends and what is going on at them to the one that is asked: gathers what the policy needs.

Who may be asked at all comes first (up, no open breaker, not tried yet; those that refused a connection lately only
when there is no other), then tiers and zones, then the model's policy. The policies are pure; what they need is
fetched here, and no more than that: a request to a model with one backend, or in turn, looks at no tally.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..cache.rows import Tally, TallyRow
from .affinity import affinity
from .caller import ANYONE
from .fleet import Backend, Model
from .policies.bounded_load import bounded_load
from .policies.eligible import eligible
from .policies.least_connections import least_connections
from .policies.peak_ewma import peak_ewma
from .policies.power_of_two import pair, power_of_two
from .policies.rendezvous import rendezvous
from .policies.weighted_round_robin import weighted_round_robin

if TYPE_CHECKING:
    from .errand import Errand

#: Cells of the tally that one choice may read; a fleet with more is summed once a turn of the loop.
_CELLS = 256
_MOST = float("inf")


class Choice:
    """One worker's choices. ``row``, ``slot``: its own; ``tick`` tells turns of the loop apart; ``draw``: [0, 1)."""

    __slots__ = (
        *(
            "_columns",
            "_draw",
            "_others",
            "_others_at",
            "_own",
            "_slot",
            "_tally",
            "_tick",
            "_turn",
            "_widest",
        ),
    )

    def __init__(
        self,
        row: TallyRow,
        tally: Tally,
        slot: int,
        *,
        tick: Callable[[], float],
        draw: Callable[[], float],
    ) -> None:
        self._own = row.inflight
        self._tally = tally
        self._columns = tally.inflight_columns
        self._slot = slot
        self._widest = _CELLS // tally.slots
        self._tick = tick
        self._draw = draw
        self._turn = slot  # workers do not take their turns in step
        self._others: dict[int, int] = {}
        self._others_at = -1.0

    def pick(
        self, model: Model, tried: tuple[Backend, ...], now: float, errand: Errand | None = None
    ) -> Backend | None:
        """The backend to ask; None when there is none that may be asked. ``now``: the worker's clock."""
        everyone = model.backends
        if model.plain and not tried and 1 < len(everyone) <= self._widest:
            # while all is well: what follows, `_counts`, `least_connections` and `lightest`, in one pass
            columns = self._columns
            least, equal = _MOST, []
            for backend in everyone:
                if not backend.up or backend.shut or backend.shunned_until > now:
                    break
                n = sum(columns[backend.index])
                score = (n + backend.hint + 1.0) / (backend.weight * backend.ramp)
                if score < least:
                    least, equal = score, [backend]
                elif score == least:
                    equal.append(backend)
            else:
                self._turn = turn = self._turn + 1
                return equal[turn % len(equal)]
        backends = [
            b
            for b in everyone
            if b.up and b.shunned_until <= now and not b.shut and (not tried or b not in tried)
        ] or [b for b in everyone if b.up and not b.shut and b not in tried]
        if len(backends) < 2:
            return backends[0] if backends else None
        self._turn = turn = self._turn + 1
        counts: list[int] | None = None
        if model.ranked:
            counts = self._counts(backends)
            at = eligible([b.rank for b in backends], counts, [b.max_concurrent for b in backends])
            backends = [backends[i] for i in at]
            if len(backends) == 1:
                return backends[0]
            counts = [counts[i] for i in at]
        weights = [b.weight * b.ramp for b in backends]
        policy = model.policy
        if policy == "weighted_round_robin":
            chosen, credits = weighted_round_robin([b.credit for b in backends], weights)
            for backend, credit in zip(backends, credits, strict=True):
                backend.credit = credit
            return backends[chosen]
        if policy == "power_of_two":
            two = pair(weights, self._draw(), self._draw())
            one, other = (backends[i] for i in two)
            columns = self._columns
            loads = (sum(columns[one.index]) + one.hint, sum(columns[other.index]) + other.hint)
            return (one, other)[power_of_two(loads, (weights[two[0]], weights[two[1]]))]
        if counts is None:
            counts = self._counts(backends)
        loads_ = [n + b.hint for n, b in zip(counts, backends)]  # noqa: B905 (200 ns)
        if policy == "peak_ewma":
            return backends[peak_ewma([b.ewma.cost(now) for b in backends], loads_, weights, turn)]
        if policy != "least_connections" and errand is not None:
            key = self._key(model, errand)
            if key is not None:
                order = rendezvous(key, [b.seed for b in backends], weights)
                share = model.max_concurrent / sum(weights)
                rooms = [b.max_concurrent or share * w for b, w in zip(backends, weights, strict=True)]
                return backends[bounded_load(order, loads_, weights, rooms, turn)]
        return backends[least_connections(loads_, weights, turn)]

    def _counts(self, backends: list[Backend]) -> list[int]:
        """Requests in flight at each, of all workers.

        Read anew for each choice: another worker may have chosen any number of times since this turn of the loop
        began, and in-flight counts would differ by as many. Between the read and the lease there is no wait, so each
        other worker can be one ahead. Only where a sum costs more than the choice is worth it is kept for the turn.
        """
        if len(backends) <= self._widest:
            columns = self._columns
            return [sum(columns[b.index]) for b in backends]
        now, others = self._tick(), self._others
        if now != self._others_at:
            self._others_at = now
            others.clear()
        for backend in backends:
            if backend.index not in others:
                others[backend.index] = self._tally.others_inflight(backend.index, self._slot)
        return [self._own(b.index) + others[b.index] for b in backends]

    def _key(self, model: Model, errand: Errand) -> bytes | None:
        tenant = errand.caller.tenant if errand.caller is not ANYONE else None
        return affinity(model.policy, model.prefix_chars, tenant, errand.fields, errand.body)
