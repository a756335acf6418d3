"""What admission needs of the worker's cells, of a model and of a request."""

from __future__ import annotations

from typing import Protocol


class OwnRow(Protocol):
    """The cells of this worker (:class:`penstock.cache.rows.TallyRow`)."""

    def add_running(self, model: int, n: int) -> None: ...

    def add_queued(self, model: int, n: int) -> None: ...

    def add_waiting(self, model: int, n: int) -> None: ...

    def add_key(self, what: int, at: int, n: int) -> None: ...

    def tag(self, at: int, value: int) -> None: ...

    def wish(self, model: int, need: int, share: int) -> None: ...


class Sums(Protocol):
    """Sums over all workers (:class:`penstock.cache.rows.Tally`)."""

    def running(self, model: int) -> int: ...

    def queued(self, model: int) -> int: ...

    def waiting(self, model: int) -> int: ...

    def of_key(self, what: int, at: int) -> int: ...

    def tag(self, at: int) -> int: ...

    def wishes(self, model: int) -> list[int]: ...

    def wish_shares(self, model: int) -> list[int]: ...


class Bounds(Protocol):
    """What admission needs to know of a model; ``places`` may change while requests wait."""

    @property
    def index(self) -> int: ...

    @property
    def name(self) -> str: ...

    @property
    def places(self) -> int: ...

    @property
    def max_queue(self) -> int: ...

    @property
    def queue_timeout_s(self) -> float: ...


class Queued(Protocol):
    """Who waits, and for how long."""

    queued_ns: int
