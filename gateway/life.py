"""What is known of one request while it lives, for metrics, logs and whoever must end it."""

from __future__ import annotations

from ..cache.outcome import NoCache
from .flight import Flight
from .limits.grant import Grant
from .relay import Relay


class Life:
    """Defaults of the class: a request pays for what it meets alone."""

    model = ""
    status = 0
    upstream_ns = 0
    queued_ns = 0
    relay: Relay | None = None
    #: how the cache took part: a value of ``Outcome``
    cache = ""
    #: why it took no part
    reason: NoCache | None = None
    #: the flight that this request's task carries
    flight: Flight | None = None
    #: of a key that has limits
    grant: Grant | None = None
    #: its client is gone; the task goes on for others
    left = False

    def abandon(self) -> None:
        """Nobody wants the flight any more: what it is for, whoever runs the request's task knows."""
