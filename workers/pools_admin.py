"""The admin paths of pools: what each is doing, and waking, stopping and switching by hand.

What is asked for is done as for a request that came, or for an idle time that has passed: it is said at once what the
pool does by then, and nobody waits here for a server.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

import msgspec

from ..gateway.config import Model, Published
from .answer import Answer, Refused
from .pools.words import StopAsked, WakeAsked
from .question import Question

log = logging.getLogger(__name__)

_Body = TypeVar("_Body")


class Pools(Protocol):
    """What the controller knows of its pools. report: one of them, JSON-like; None for a model without one."""

    def report(self, model: str) -> dict[str, Any] | None: ...

    def ask(self, model: str, event: WakeAsked | StopAsked) -> None: ...


class _Which(msgspec.Struct, forbid_unknown_fields=True):
    """model: its name or an alias."""

    model: str


class PoolsAdmin:
    """Answers for the pools. published: the current generation."""

    __slots__ = ("_pools", "_published")

    def __init__(self, pools: Pools, published: Callable[[], Published]) -> None:
        self._pools = pools
        self._published = published

    async def told(self, _: Question) -> Answer:
        """GET: every pool."""
        return self._shown(self._published().config.models)

    async def wake(self, question: Question) -> Answer:
        """POST: the model that the body names is to be ready."""
        name = self._named(question)
        self.have_ready(name)
        return self._shown([name])

    async def stop(self, question: Question) -> Answer:
        """POST: it is to be off as soon as nothing is in flight; the next request wakes it."""
        name = self._named(question)
        self.have_off([name])
        return self._shown([name])

    async def switch(self, question: Question) -> Answer:
        """POST: it is to be ready, and every other that may be stopped is to be off."""
        name = self._named(question)
        self.switch_to(name)
        return self._shown(self._published().config.models)

    # ---- what others of the admin port do as well

    def find(self, name: str, param: str = "model") -> str:
        """The own name of a model with a pool. Raises Refused: 404 for no such model, 409 for one without a pool."""
        for own, model in self._published().config.models.items():
            if name == own or name in model.aliases:
                if model.pool is None:
                    raise Refused(
                        409, f"the model '{own}' has no pool: it is always on", "no_pool", param=param
                    )
                return own
        raise Refused(404, f"the model '{name[:200]}' does not exist", "model_not_found", param=param)

    def have_ready(self, name: str) -> None:
        """Wake a pool."""
        log.info("pool_wake_asked pool=%s", name)
        self._pools.ask(name, WakeAsked())

    def have_off(self, names: Iterable[str]) -> None:
        """Stop pools when nothing is in flight. Raises Refused 409 for one that always runs, before any is told."""
        names = list(names)
        for name in names:
            if not self.may_stop(name):
                raise Refused(409, f"the model '{name}' has `min` servers that always run", "always_on")
        for name in names:
            log.info("pool_stop_asked pool=%s", name)
            self._pools.ask(name, StopAsked())

    def switch_to(self, name: str) -> None:
        """Wake one pool and stop the others, but for those that always run or are pinned."""
        others = [one for one, model in self.with_pools() if one != name and self.may_stop(one)]
        self.have_off(one for one in others if not self._pool(one).pinned)
        self.have_ready(name)

    def may_stop(self, name: str) -> bool:
        """Whether the configuration lets a pool be off."""
        return bool(self._pool(name).min == 0)

    def with_pools(self) -> list[tuple[str, Model]]:
        """The models that have one, in the order of the configuration."""
        return [(name, one) for name, one in self._published().config.models.items() if one.pool is not None]

    def reports(self) -> dict[str, dict[str, Any]]:
        """By model, what its pool is doing."""
        found = ((name, self._pools.report(name)) for name, _ in self.with_pools())
        return {name: report for name, report in found if report is not None}

    def _pool(self, name: str) -> Any:
        return self._published().config.models[name].pool

    def _named(self, question: Question) -> str:
        return self.find(body_of(question, _Which, "give model").model)

    def _shown(self, names: Iterable[str]) -> Answer:
        reports = self.reports()
        return Answer.of({"pools": [reports[name] for name in names if name in reports]})


def body_of(question: Question, kind: type[_Body], fix: str) -> _Body:
    """The JSON body of a POST. Raises Refused: 400, 415."""
    media = question.content_type.partition(";")[0].strip().lower()
    if media != "application/json":  # which no web page can send elsewhere without being allowed to
        raise Refused(415, "Content-Type must be application/json", "unsupported_media_type")
    try:
        return msgspec.json.decode(question.body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise Refused(400, f"{fault}; {fix}", "invalid_request") from None
