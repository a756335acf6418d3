"""The admin paths of backends: what is known of each, and taking one out of service and back.

Strategy: everything is read from shared memory at the moment of the question. A drain is one store in the backend's
row, which every worker reads ten times a second: what is in flight finishes, and no new request goes there. The row
keeps it over reloads and new controllers; it ends with the gateway.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from ..cache.rows import Tally
from ..cache.segment import Segment
from ..gateway.config import Backend, Published, places_itself
from ..gateway.hints import ramp
from ..gateway.upstream.origin import Origin
from . import store
from .answer import Answer, Refused
from .board import HEALTH, Board
from .breaker_view import BreakerView
from .question import Question
from .whereabouts import is_there

log = logging.getLogger(__name__)


class _Which(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a drain. backend: its name (host:port) or its URL; model: for a server of several, just there."""

    backend: str
    model: str | None = None


class BackendsAdmin:
    """Answers for the backends. published: the current generation. clock_ns: the clock of the board."""

    __slots__ = ("_board", "_breakers", "_clock_ns", "_published", "_tally")

    def __init__(
        self, segment: Segment, board: Board, published: Callable[[], Published], clock_ns: Callable[[], int]
    ) -> None:
        self._board = board
        self._published = published
        self._clock_ns = clock_ns
        self._tally = Tally(segment)
        self._breakers = BreakerView(segment)

    async def told(self, _: Question) -> Answer:
        """GET: every backend of every model."""
        published = self._published()
        return Answer.of({"backends": [self._shown(published, *one) for one in self._all(published)]})

    async def drain(self, question: Question) -> Answer:
        """POST: the backend that the body names gets no further request."""
        return self._set(question, True)

    async def undrain(self, question: Question) -> Answer:
        """POST: it gets requests again, slowly at first."""
        return self._set(question, False)

    def _set(self, question: Question, drained: bool) -> Answer:
        """Raises Refused: 400, 404 for a backend or model that is not configured, 415."""
        media = question.content_type.partition(";")[0].strip().lower()
        if media != "application/json":  # which no web page can send elsewhere without being allowed to
            raise Refused(415, "Content-Type must be application/json", "unsupported_media_type")
        try:
            which = msgspec.json.decode(question.body, type=_Which)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
            raise Refused(
                400, f"{fault}; give backend, and model where it is about one", "invalid_request"
            ) from None
        published = self._published()
        model = None if which.model is None else self._model(published, which.model)
        wanted = which.backend.rstrip("/")
        found = [
            one
            for one in self._all(published)
            if model in (None, one[0]) and wanted in (one[1].url.rstrip("/"), Origin.parse(one[1].url).name)
        ]
        if not found:
            raise Refused(404, f"there is no backend '{wanted[:200]}'", "backend_not_found", param="backend")
        for name, backend, index in found:
            self._board.drain(index, drained)
            log.info(
                "backend_%s model=%s backend=%s", "drained" if drained else "undrained", name, backend.url
            )
        return Answer.of({"backends": [self._shown(published, *one) for one in found]})

    def _model(self, published: Published, name: str) -> str:
        """A model's own name; raises Refused 404."""
        for own, model in published.config.models.items():
            if name == own or name in model.aliases:
                return own
        raise Refused(404, f"the model '{name[:200]}' does not exist", "model_not_found", param="model")

    def _all(self, published: Published) -> Iterator[tuple[str, Backend, int]]:
        for name, model in published.config.models.items():
            for backend in model.backends:
                index = published.indices[store.backend_key(name, backend.url)]
                if is_there(places_itself(model), self._board.row(index).pool_state):
                    yield name, backend, index

    def _shown(self, published: Published, model: str, backend: Backend, index: int) -> dict[str, Any]:
        row = self._board.row(index)
        now_ns = self._clock_ns()
        back_ns = max(row.since_ns, self._breakers.closed_ns(index, row.identity))
        return {
            "model": model,
            "backend": Origin.parse(backend.url).name,
            "url": backend.url,
            "zone": backend.zone,
            "priority": backend.priority,
            "health": HEALTH[row.health],
            "drained": bool(row.drained),
            "breaker": self._breakers.phase(index, row.identity),
            "inflight": self._tally.inflight(index),
            "waiting": row.waiting,
            "running": row.running,
            "kv_usage": row.kv_permille / 1000,
            "reported_age_s": _age_s(row.updated_ns, now_ns),
            "weight": backend.weight,
            "ramp": ramp((now_ns - back_ns) / 1e9, published.config.health.slow_start_s),
            "since_s": _age_s(row.since_ns, now_ns),
        }


def _age_s(then_ns: int, now_ns: int) -> float | None:
    return round(max(0, now_ns - then_ns) / 1e9, 3) if then_ns else None
