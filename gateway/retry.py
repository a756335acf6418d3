"""Whether a failed attempt may be made again: only where the backend cannot have acted, and within a budget.

Safe are: the connection never opened; a reused connection that was closed before any byte of a response (the
keep-alive race of RFC 9112 §9.3.1); 502 and 503 before the first byte. Another backend comes first. Pure: the
caller says what happened and what is left to try.
"""

from __future__ import annotations

import enum

from .upstream.fault import FaultKind, UpstreamFault

#: No request makes more upstream attempts than this, whatever the budget.
MAX_ATTEMPTS = 3

#: After a connection that never opened, other backends come first for so long (s); probes say the rest.
SHUN_S = 1.0

#: Faults after which the backend cannot have seen the request.
NEVER_OPENED = frozenset(
    {FaultKind.CONNECT_FAILED, FaultKind.CONNECT_TIMEOUT, FaultKind.DNS_FAILED, FaultKind.TLS_FAILED}
)


class Again(enum.Enum):
    """What to do about a failed attempt."""

    NO = "no"
    ELSEWHERE = "elsewhere"
    SAME_FRESH = "same_fresh"


class RetryBudget:
    """Retries may be at most a share of requests, so that they cannot multiply an outage.

    A request adds ``share`` of a token (0.2: one retry for five requests), a retry takes one; at most ``burst``
    tokens are kept. Stale keep-alive connections are no sign of an outage and take none.
    """

    __slots__ = ("_burst", "_share", "tokens")

    def __init__(self, share: float = 0.2, burst: float = 10.0) -> None:
        self._share = share
        self._burst = burst
        self.tokens = burst

    def deposit(self) -> None:
        """One request has come."""
        tokens = self.tokens + self._share
        self.tokens = tokens if tokens < self._burst else self._burst

    def withdraw(self) -> bool:
        """Whether one retry may be made; takes its token."""
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


def after_fault(fault: UpstreamFault, attempt: int, others: bool, budget: RetryBudget) -> Again:
    """What to do after attempt number ``attempt`` (from 1); ``others``: whether another backend is left."""
    if attempt >= MAX_ATTEMPTS:
        return Again.NO
    if fault.stale:
        return Again.ELSEWHERE if others else Again.SAME_FRESH
    if fault.kind in NEVER_OPENED and others and budget.withdraw():
        return Again.ELSEWHERE
    return Again.NO


def after_status(status: int, attempt: int, others: bool, budget: RetryBudget) -> Again:
    """The same for an answer whose head has come and of whose body nothing was passed on."""
    if status in (502, 503) and attempt < MAX_ATTEMPTS and others and budget.withdraw():
        return Again.ELSEWHERE
    return Again.NO
