"""The simulator: composes model, endpoints, faults and stats, and answers each request once.

The life of a request: count it, check the key, ask the faults, route, answer, count the outcome. Refuses to know
listeners (server) and what any endpoint says (api/).
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable

from .api import routes
from .api.context import Context
from .api.errors import ApiError
from .connection import Connection
from .control import Control
from .exchange import Exchange
from .faults import Faults
from .model.engine import Engine, TimeModel
from .model.metrics import Metrics
from .model.runner import Runner
from .model.sleep import SleepMode
from .sabotage import Sabotage
from .settings import Settings
from .stats import Stats
from .wire import Header, Request

_log = logging.getLogger("penstock.sim")


class Simulator:
    """`serve` is what connections call; everything else is for the server and the control endpoints."""

    def __init__(
        self,
        settings: Settings,
        loop: asyncio.AbstractEventLoop,
        refuse: Callable[[float, bool], None],
    ) -> None:
        self.settings = settings
        self.stats = Stats(settings.record)
        self.faults = Faults(settings.seed)
        model = TimeModel(
            settings.prefill_tps,
            settings.decode_ms,
            settings.decode_ms_per_seq,
            settings.max_seqs,
            settings.kv_blocks,
            settings.step_tokens,
        )
        engine = Engine(model)
        metrics = Metrics(engine, settings.models[0])
        sleeping = SleepMode()
        runner = Runner(engine, metrics, loop, lambda: sleeping.dropped)
        self.context = Context(settings, runner, metrics, self.stats, sleeping)
        self._loop = loop
        self._control = Control(self.context, self.faults, refuse)
        self._tasks: set[asyncio.Task[None]] = set()

    def serve(self, connection: Connection, request: Request) -> asyncio.Task[None]:
        """Answers one request in a task of its own."""
        task = self._loop.create_task(self._answer(connection, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _answer(self, connection: Connection, request: Request) -> None:
        extra: list[Header] = []
        if self.settings.request_id_headers:
            extra.append((b"x-request-id", request.header(b"x-request-id") or b"none"))
        exchange = Exchange(connection, request, extra)
        if connection.control:
            await self._guarded(exchange, self._control.serve(exchange))
            connection.done(exchange.keep_alive)
            return
        self.stats.began(request)
        try:
            fault = self.faults.pick(request)
            if fault is not None:
                sabotage = Sabotage(fault, self.faults)
                if await sabotage.on_request(exchange):
                    return
                exchange.saboteur = sabotage
            if not await self._authorised(exchange):
                return
            handler = routes.find(request.method, request.path)
            self.context.load += handler.counted
            try:
                await self._guarded(exchange, handler.call(self.context, exchange))
            finally:
                self.context.load -= handler.counted
        except asyncio.CancelledError:
            if not exchange.complete:
                exchange.outcome, exchange.mark = "aborted", None
            raise
        except Exception:
            _log.exception("%s %s failed", request.method, request.path)
            if not exchange.status:
                await exchange.json(500, ApiError(500, "internal error of the simulator").openai())
        finally:
            if connection.closed and not exchange.complete:
                exchange.outcome, exchange.mark = "aborted", None
            self.stats.ended(request, exchange.mark or exchange.outcome)
            connection.done(exchange.keep_alive and exchange.complete)

    async def _guarded(self, exchange: Exchange, answer: Awaitable[None]) -> None:
        try:
            await answer
        except (ApiError, RecursionError) as problem:
            if exchange.status:
                raise
            err = problem if isinstance(problem, ApiError) else ApiError(400, "nested too deeply")
            extra: tuple[Header, ...] = ((b"allow", b"POST"),) if err.status == 405 else ()
            await exchange.reply(err.status, routes.encode(err.for_path(exchange.request.path)), extra=extra)

    async def _authorised(self, exchange: Exchange) -> bool:
        """vLLM's AuthenticationMiddleware guards /v1 alone and answers with a bare string."""
        key = self.settings.api_key
        if key is None or not exchange.request.path.startswith("/v1"):
            return True
        given = exchange.request.header(b"authorization") or b""
        scheme, _, token = given.partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(token, key.encode()):
            return True
        await exchange.json(401, {"error": "Unauthorized"})
        return False
