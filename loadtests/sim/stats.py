"""What the simulator saw, for tests to ask about: counts, attempts, the last requests, connections.

Everything is bounded. Refuses to know why something happened; outcomes are handed in as words.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from hashlib import sha256
from typing import Any

from .wire import Request

_ATTEMPTS = 20_000
_PATHS = 256
_MANY = "(other)"


class Stats:
    """Counters since the start or the last reset. Connection counts survive a reset, they describe the present."""

    def __init__(self, record: int) -> None:
        self._record = record
        self.open = 0
        self.reset()

    def reset(self) -> None:
        """Forgets everything but the number of open connections and requests in flight now."""
        self.accepted = 0
        self.tls = 0
        self.tls_resumed = 0
        self.malformed = 0
        self.reused = 0
        self.requests = 0
        self.aborted = 0
        self._in_flight: dict[str, int] = getattr(self, "_in_flight", {})
        self._most_in_flight = sum(self._in_flight.values())
        self._paths: dict[str, dict[str, int]] = {}
        self._attempts: OrderedDict[str, int] = OrderedDict()
        self._recent: deque[dict[str, Any]] = deque(maxlen=self._record)

    def connected(self, ssl_object: Any) -> None:
        """A connection was accepted (and its TLS handshake done, if any)."""
        self.open += 1
        self.accepted += 1
        if ssl_object is not None:
            self.tls += 1
            self.tls_resumed += bool(ssl_object.session_reused)

    def began(self, request: Request) -> None:
        """A request is complete and about to be answered."""
        self.requests += 1
        self.reused += request.ordinal > 1
        path = self._path(request.path)
        self._in_flight[path] = self._in_flight.get(path, 0) + 1
        self._most_in_flight = max(self._most_in_flight, sum(self._in_flight.values()))
        ident = request.header(b"x-request-id")
        if ident is not None:
            key = ident.decode("latin-1")[:256]
            self._attempts[key] = self._attempts.pop(key, 0) + 1
            if len(self._attempts) > _ATTEMPTS:
                self._attempts.popitem(last=False)
        if self._record:
            self._recent.append(
                {
                    "method": request.method,
                    "target": request.target,
                    "headers": [[k.decode("latin-1"), v.decode("latin-1")] for k, v in request.headers],
                    "body_bytes": len(request.body),
                    "body_sha256": sha256(request.body).hexdigest(),
                    "ordinal": request.ordinal,
                }
            )

    def ended(self, request: Request, outcome: str) -> None:
        """The answer is over; `outcome` is a status ("200"), "aborted" or the kind of a fault."""
        path = self._path(request.path)
        left = self._in_flight.get(path, 0) - 1
        if left > 0:
            self._in_flight[path] = left
        else:
            self._in_flight.pop(path, None)
        self.count(path, outcome)

    def count(self, path: str, outcome: str, n: int = 1) -> None:
        """Adds to a path's outcome without the rest (canned mode)."""
        outcomes = self._paths.setdefault(path, {})
        outcomes[outcome] = outcomes.get(outcome, 0) + n
        self.aborted += n * (outcome == "aborted")

    def snapshot(self) -> dict[str, Any]:
        """Everything, as JSON can carry it."""
        return {
            "requests": self.requests,
            "aborted": self.aborted,
            "malformed": self.malformed,
            "in_flight": sum(self._in_flight.values()),
            "in_flight_by_path": dict(self._in_flight),
            "most_in_flight": self._most_in_flight,
            "paths": {
                path: {"total": sum(outcomes.values()), "outcomes": dict(outcomes)}
                for path, outcomes in self._paths.items()
            },
            "attempts": dict(self._attempts),
            "connections": {
                "open": self.open,
                "accepted": self.accepted,
                "tls": self.tls,
                "tls_resumed": self.tls_resumed,
                "reused_requests": self.reused,
            },
            "recent": list(self._recent),
        }

    def _path(self, path: str) -> str:
        path = path[:256]
        return path if path in self._paths or len(self._paths) < _PATHS else _MANY
