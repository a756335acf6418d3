"""What is known of one request while it lives, for metrics, logs and whoever must end it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..cache.outcome import NoCache
from .caller import Caller
from .errors import Fault
from .flight import Flight
from .limits.grant import Grant
from .meter import StreamMeter
from .pool_view import PoolView
from .relay import Relay

if TYPE_CHECKING:
    from .fleet import Backend


class Life:
    """Defaults of the class: a request pays for what it meets alone."""

    model = ""
    status = 0
    upstream_ns = 0
    queued_ns = 0
    #: how long it waited for servers to wake; counted in ``queued_ns`` too
    wake_ns = 0
    #: how long Redis was waited for
    far_ns = 0
    #: how long its body took to come, where that took more than one await
    body_ns = 0
    #: a backend's whole answer, of which the tokens are still to be counted; of streams, where ``meter`` lacks some
    told: bytes | bytearray = b""
    #: what it has cost of prompt and completion, once it is counted
    tokens: tuple[int, int] | None = None
    #: of a stream that comes from a backend
    meter: StreamMeter | None = None
    #: since when it waits for a pool that is not ready, by itself or behind who asks for it (s, the worker's clock);
    #: 0.0: it does not. ``hold_pool`` is set before, and stays.
    hold_since = 0.0
    hold_pool: PoolView | None = None
    relay: Relay | None = None
    #: how the cache took part: a value of ``Outcome``
    cache = ""
    #: why it took no part
    reason: NoCache | None = None
    #: the flight that this request's task carries
    flight: Flight | None = None
    #: of a key that has limits
    grant: Grant | None = None
    #: who asks, where there are keys
    caller: Caller | None = None
    #: the code of what the gateway itself had to say against it
    error = ""
    #: it is to be told what is asked upstream: ``asks``, ``answered``, ``missed``
    witnessed = False
    #: its client is gone; the task goes on for others
    left = False
    #: what its own client is still to be told, while the task goes on for others
    fault: Fault | None = None
    #: its response was begun while it waited, as an event stream: only events can follow
    opened = False
    #: bytes on the wire that went into such a response before its answer
    said_bytes = 0

    def keep_alive(self) -> None:
        """It is to be an event stream, and begins to wait (``hold_since`` and ``hold_pool`` are set): after a while
        its client is to be told so. Idempotent.
        """

    def asks(self, backend: Backend, model: str) -> str:
        """A backend is about to be asked, for this model: lines to be added to the request's head."""
        return ""

    def answered(self, status: int) -> None:
        """The backend's answer has begun."""

    def missed(self, cause: str) -> None:
        """The backend has failed to answer."""

    def abandon(self) -> None:
        """Nobody wants the flight any more: what it is for, whoever runs the request's task knows."""
