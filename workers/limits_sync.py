"""What a node's keys have used, told to the other nodes through Redis, and what those have used, heard in return.

Redis has for each key that is in use `<prefix>:{limits}:<64 bits in hex>`, three integers: the times at which no
requests and no tokens are owed any more, and when that was written, in microseconds of its own clock. Where that clock
has been put back since, or another server with an earlier one has taken over, the debts move with it. A sorted set,
`<prefix>:{limits}:nodes`, has the nodes that live. All of them have one hash tag, so that one script may touch them in
a Cluster too.

Strategy: a node decides by its own cells (`penstock.gateway.limits.purse`) and never asks. The controller looks every
50 ms which cells have changed, adds what they were charged since to the key's in Redis, and takes what comes of that
as the node's. So a node is late by what others used in the meantime, and that is a debt, carried over in Redis: it
delays what comes next and is never forgiven, so it does not add up.

Charges are durations, and Redis gives back how far it is ahead of its own clock: nodes' clocks need not agree. Where
a key is not in Redis, because nobody used it or Redis was emptied, the node's own word is taken.

While Redis is away each node keeps to its share of every rate, by the number of nodes last seen. What is used then
is never told: it was within the share.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from typing import Any

from redis.exceptions import NoScriptError

from ..cache.gates import Gates
from ..cache.layout import GATE_CELLS, GATE_STRIPE_CELLS
from ..cache.redis_client import Client, RedisSettings, client, close, eviction_policy
from ..cache.segment import Segment
from ..gateway.config import MAX_BACKENDS
from .redis_bell import FAULTS, cancelled, said

log = logging.getLogger(__name__)

EVERY_S = 0.05
NODE_EVERY_NS = 1_000_000_000
NODE_MS = 5000
"""A node that was not heard of for so long is none."""
AWAY_NS = 2_000_000_000
"""Redis is away when it has not answered for so long."""
ROUND_S = 1.0
"""The most that one round with Redis takes, connecting included."""
_RETRY_S = 0.25
_TRIES = 20
_AT_ONCE = 256  # keys in one script
_WORD = 1 << 64
_OWED, _CHARGED, _OWED_TOKENS, _CHARGED_TOKENS, _, _WHO = range(6)

_SCRIPT = """
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
redis.call('ZADD', KEYS[1], now + ARGV[2] * 1000, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local told = {redis.call('ZCARD', KEYS[1])}
for i = 2, #KEYS do
  local at = 4 * i - 6
  local known = redis.call('GET', KEYS[i])
  local last = now
  local words = {}
  if known then
    for word in string.gmatch(known, '%d+') do words[#words + 1] = tonumber(word) end
  end
  local back = math.max(0, (words[3] or 0) - now)
  for j = 1, 2 do
    local more, own = tonumber(ARGV[at + j]), tonumber(ARGV[at + 2 + j])
    local owed = words[j]
    if not owed then
      owed = now + own
    elseif more < 0 then
      owed = owed - back + more
    else
      owed = math.max(owed - back, now) + more
    end
    if owed < 0 then owed = 0 end
    words[j] = owed
    last = math.max(last, owed)
    told[#told + 1] = owed - now
  end
  local ttl = math.floor((last - now) / 1000) + 60000
  local kept = string.format('%.0f %.0f %.0f', words[1], words[2], now)
  redis.call('SET', KEYS[i], kept, 'PX', string.format('%.0f', ttl))
end
return told
"""
_SHA = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()


class LimitsSync:
    """The controller's part in limits; `run` ends by cancellation alone.

    settings: None where nodes do not share limits. name: of this node, and of no other. clock_ns: monotonic.
    """

    def __init__(
        self,
        segment: Segment,
        settings: RedisSettings | None,
        prefix: str,
        name: str,
        *,
        clock_ns: Callable[[], int],
    ) -> None:
        self._segment = segment
        self._gates = Gates(segment)
        self._settings = settings
        self._prefix = f"{prefix}:{{limits}}:"
        self._name = name
        self._clock_ns = clock_ns
        self._at = segment.layout.gates_at + MAX_BACKENDS * GATE_STRIPE_CELLS
        rows = max(0, segment.geometry.gates - MAX_BACKENDS)
        self._sequences = segment.cells[self._at : self._at + rows * GATE_STRIPE_CELLS : GATE_STRIPE_CELLS]
        #: as they were when nothing was left to tell
        self._seen = [0] * rows
        #: by row: whose it is, and the sums of its charges that Redis knows
        self._told: dict[int, tuple[int, int, int]] = {}
        for row in self._changed():  # what an earlier controller did not tell is dropped
            found = self._read(row)
            if found is not None:
                self._told[row] = found[1][_WHO], found[1][_CHARGED], found[1][_CHARGED_TOKENS]
        self._heard_ns = clock_ns()
        self._registered_ns: int | None = None
        self._apart: bool | None = None

    async def run(self) -> None:
        """Until it is cancelled."""
        if self._settings is None or not self._seen:
            self._segment.publish_limit_nodes(1, apart=False)
            await asyncio.Event().wait()
            return
        redis = client(self._settings)
        judged = False
        try:
            while not cancelled():
                try:
                    async with asyncio.timeout(ROUND_S):
                        await self.round(redis)
                        if not judged:
                            judged = True
                            await _judge(redis)
                except FAULTS as fault:
                    self.failed(fault)
                    await asyncio.sleep(_RETRY_S)
                else:
                    await asyncio.sleep(EVERY_S)
        finally:
            await close(redis)

    async def round(self, redis: Client) -> None:
        """Tell Redis what is new, and take what it says; it is not asked when there is nothing to tell."""
        changed = self._changed()
        now = self._clock_ns()
        due = self._registered_ns is None or now - self._registered_ns >= NODE_EVERY_NS
        for first in range(0, max(len(changed), due), _AT_ONCE):
            if await self._tell(redis, changed[first : first + _AT_ONCE], due):
                self._registered_ns = now
                self._succeeded()

    def failed(self, fault: BaseException) -> None:
        """A round was not answered."""
        if not self._apart and self._clock_ns() - self._heard_ns >= AWAY_NS:
            self._apart = True
            nodes = self._segment.limit_nodes
            self._segment.publish_limit_nodes(nodes, apart=True)
            log.warning(
                "limits_apart nodes=%d: each keeps to its share of every limit: %s", nodes, said(fault)
            )

    def _succeeded(self) -> None:
        self._heard_ns = self._clock_ns()
        if self._apart is not False:
            self._apart = False
            nodes = self._segment.limit_nodes
            self._segment.publish_limit_nodes(nodes, apart=False)
            log.info("limits_shared nodes=%d", nodes)

    def _changed(self) -> list[int]:
        """Rows whose cells are not what they were."""
        sequences = self._sequences.tolist()
        if sequences == self._seen:
            return []
        return [row for row, (new, old) in enumerate(zip(sequences, self._seen, strict=True)) if new != old]

    def _read(self, row: int) -> tuple[int, list[int]] | None:
        """A row's sequence and cells; None when they changed meanwhile."""
        cells, at = self._segment.cells, self._at + row * GATE_STRIPE_CELLS
        sequence = cells[at]
        first = at + GATE_CELLS + (sequence & 1) * GATE_CELLS
        state = cells[first : first + GATE_CELLS].tolist()
        return (sequence, state) if cells[at] == sequence else None

    async def _tell(self, redis: Client, rows: list[int], due: bool) -> bool:
        """Whether there was something to tell."""
        keys, words, sent = [f"{self._prefix}nodes"], [self._name, str(NODE_MS)], []
        now = self._clock_ns()
        for row in rows:
            found = self._read(row)
            if found is None:
                continue  # it has changed again: so the next round sees it
            sequence, state = found
            who, charged, charged_tokens = state[_WHO], state[_CHARGED], state[_CHARGED_TOKENS]
            known = self._told.get(row)
            if known is None or known[0] != who:
                known = self._told[row] = who, 0, 0
            more, more_tokens = _us(charged - known[1]), _us(charged_tokens - known[2])
            if not (more or more_tokens):
                self._seen[row] = sequence
                continue
            told = who, (known[1] + more * 1000) % _WORD, (known[2] + more_tokens * 1000) % _WORD
            if self._apart:
                more = more_tokens = 0
                told = who, charged, charged_tokens
            keys.append(f"{self._prefix}{who:016x}")
            own = max(0, state[_OWED] - now) // 1000, max(0, state[_OWED_TOKENS] - now) // 1000
            words += map(str, (more, more_tokens, *own))
            sent.append((row, charged, charged_tokens, told))
        if not sent and not due:
            return False
        answer = await self._ask(redis, keys, words)
        now = self._clock_ns()
        if answer[0] != self._segment.limit_nodes:
            self._segment.publish_limit_nodes(answer[0], apart=bool(self._apart))
        for i, (row, charged, charged_tokens, told) in enumerate(sent):
            self._told[row] = told
            ahead = now + answer[1 + 2 * i] * 1000 - charged, now + answer[2 + 2 * i] * 1000 - charged_tokens
            await self._take(row, told[0], *ahead)
        return True

    async def _ask(self, redis: Client, keys: list[str], words: list[str]) -> list[int]:
        answer: Any
        try:
            answer = await redis.evalsha(_SHA, len(keys), *keys, *words)
        except NoScriptError:
            answer = await redis.eval(_SCRIPT, len(keys), *keys, *words)
        if len(answer) != 2 * len(keys) - 1:
            raise ValueError("not what the script gives")
        return [int(word) for word in answer]

    async def _take(self, row: int, who: int, base: int, base_tokens: int) -> None:
        """Make what Redis said the node's, and what was charged since: bases are that without any charge."""

        def taken(cells: list[int]) -> list[int]:
            if cells[_WHO] == who:
                cells[_OWED] = max(0, _signed(base + cells[_CHARGED]))
                cells[_OWED_TOKENS] = max(0, _signed(base_tokens + cells[_CHARGED_TOKENS]))
            return cells

        for _ in range(_TRIES):
            if self._gates.update(MAX_BACKENDS + row, taken):
                return
            await asyncio.sleep(0)


def _signed(cell: int) -> int:
    """A difference of cells, which wrap."""
    cell %= _WORD
    return cell if cell < _WORD >> 1 else cell - _WORD


def _us(difference: int) -> int:
    """In whole microseconds; what is left over is told later."""
    ns = _signed(difference)
    return ns // 1000 if ns >= 0 else -(-ns // 1000)


async def _judge(redis: Client) -> None:
    """Say so when this Redis may drop what it was told."""
    policy = await eviction_policy(redis)
    if policy not in (None, "noeviction"):
        log.warning(
            "limits_evictable: a full Redis forgets what keys have used; give limits.redis one whose "
            "maxmemory-policy is noeviction, not %s",
            policy,
        )
