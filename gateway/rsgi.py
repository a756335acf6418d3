"""The RSGI application: which of the worker's answers a path gets, and what becomes of faults.

This file and :mod:`penstock.gateway.exchange` are all of the gateway that knows Granian's RSGI. A failure before the
first byte is an error response, one after it is said in the stream, in the words of the endpoint's dialect.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from math import ceil
from time import perf_counter_ns
from typing import Any

from .answer import woken_for
from .caller import ANYONE, Caller
from .dialects import WORDS
from .endpoints import ENDPOINTS, Endpoint, model_id, stored_response
from .errors import Fault, Kind
from .exchange import Exchange
from .ledger import Ledger
from .models import list_models, show_model
from .raw import ClientGone, RawRequest
from .seldom import Seldom
from .telemetry.told import Told
from .worker import Worker

log = logging.getLogger(__name__)

_JSON = ("content-type", "application/json")


class App:
    """The RSGI application of one worker."""

    def __init__(
        self, worker: Worker, admin: Callable[[Any, Any, str], Awaitable[int]] | None = None
    ) -> None:
        self.worker = worker
        self._admin = admin
        self._loop = worker.loop
        self._watch = worker.watch
        #: what is still to be counted, at the end of the loop's turn (`turn` says why)
        self._answered: list[tuple[Exchange, Endpoint | None, str, int, int]] = []
        self._seldom = Seldom()
        self._ledger = Ledger(worker.metrics)

    async def __rsgi__(self, scope: Any, proto: Any) -> None:
        """Answer one request; nothing leaves here but cancellation of the loop itself."""
        task = asyncio.current_task(self._loop)
        assert task is not None  # Granian runs each request as a task
        kind = Exchange if self.worker.reporter is None else Told
        exchange = kind(self.worker, scope, proto, task)
        self._watch.add(exchange)
        endpoint: Endpoint | None = None
        started = 0
        path = scope.path
        try:
            raw, length = exchange.read_head(path)
            endpoint = ENDPOINTS.get(path)
            if endpoint is not None and raw.method == "POST":
                exchange.dialect = endpoint.dialect
                keyring = self.worker.keyring
                caller = ANYONE
                if keyring is not None:
                    caller = exchange.caller = keyring.who(exchange.credential)
                await exchange.read_body(raw, length)
                started = perf_counter_ns()
                rest = self.worker.pipeline.serve(endpoint, raw, exchange, exchange, caller)
                if rest is not None:
                    await rest
            else:
                await self._other(exchange, endpoint, raw, length, scope, proto)
        except Fault as fault:
            self._fail(exchange, fault)
        except ClientGone:
            exchange.status = 499
        except asyncio.CancelledError:
            if exchange.aborted is None:
                raise
            task.uncancel()
            self._fail(exchange, exchange.aborted)
        except Exception:
            log.exception("internal_error path=%s", path)
            self._fail(exchange, Fault(Kind.INTERNAL, "the gateway failed; its log says why"))
        finally:
            self._watch.remove(exchange)
            if exchange.held_bytes:
                self.worker.release(exchange.held_bytes)
            total = perf_counter_ns() - started if started else 0
            answered = self._answered
            if not answered:
                self._loop.call_soon(self._record_all)
            answered.append((exchange, endpoint, path, started, total))
            exchange.let_go()

    def _caller(self, exchange: Exchange) -> Caller:
        """Who asks; raises :class:`Fault` where that must be known and is not."""
        keyring = self.worker.keyring
        if keyring is None:
            return ANYONE
        caller = exchange.caller = keyring.who(exchange.credential)
        return caller

    def _fail(self, exchange: Exchange, fault: Fault) -> None:
        exchange.status = fault.status
        exchange.error = fault.kind.value
        self._ledger.failed(exchange.model, fault)
        if fault.kind is Kind.CLIENT_CLOSED:
            return
        if fault.kind is Kind.CLIENT_STALLED:
            # a clean end, read one day, would pass for success; where the host is faster than the reset, the frame
            # below is what is read before it
            self.worker.sweep.condemn(exchange.client, exchange.transport)
        words = WORDS[exchange.dialect]
        if exchange.begun:
            relay = exchange.relay
            more = self._seldom.due((exchange.model, fault.kind), self.worker.clock())
            if more is not None:
                log.warning(
                    "stream_failed model=%s cause=%s request_id=%s more=%d",
                    *(exchange.model, fault.kind.value, exchange.request_id, more),
                )
            if not (exchange.opened if relay is None else relay.events):
                return  # a body of known length: ending it short is all that can be said
            cut = relay is not None and not relay.last.endswith((b"\n\n", b"\r\n\r\n"))
            broken = b"\n\n" if cut else b""
            try:
                exchange.send(broken + words.error_frame(fault))
            except ClientGone:
                exchange.status = 499
            return
        headers = [
            _JSON,
            ("x-request-id", exchange.request_id or self.worker.new_request_id()),
            *fault.headers,
            *woken_for(exchange),
        ]
        if fault.retry_after_s is not None:
            headers.append(("retry-after", str(max(1, ceil(fault.retry_after_s)))))
            headers.append(("retry-after-ms", str(ceil(fault.retry_after_s * 1000))))
        exchange.respond(fault.status, headers, words.error_body(fault))

    def _record_all(self) -> None:
        answered, self._answered = self._answered, []
        for one in answered:
            exchange = one[0]
            if exchange.grant is not None:
                try:
                    exchange.grant.end(exchange)
                except Exception:  # the others have places to give back, too
                    log.exception("settling_failed request_id=%s", exchange.request_id)
        record = self._ledger.record
        for exchange, endpoint, _, started, total in answered:
            record(exchange, endpoint, started, total)
        if self.worker.reporter is not None:
            self.worker.reporter.tell(answered)
        if self.worker.debug:
            for exchange, endpoint, path, _, total in answered:
                log.debug(
                    "request method=%s path=%s model=%s status=%d ms=%.3f request_id=%s",
                    *("POST" if endpoint else "-", path, exchange.model, exchange.status),
                    *(total / 1e6, exchange.request_id),
                )

    # ---- everything that is not proxied with a body

    async def _other(
        self,
        exchange: Exchange,
        endpoint: Endpoint | None,
        raw: RawRequest,
        length: int | None,
        scope: Any,
        proto: Any,
    ) -> None:
        path, method = raw.path, raw.method
        if endpoint is not None:
            exchange.dialect = endpoint.dialect
            raise _method_not_allowed(path, ("POST",))
        if path == "/v1/models" or path == "/health" or path == "/ready":
            if method != "GET":
                raise _method_not_allowed(path, ("GET",))
            self._own(exchange, path)
            return
        name = model_id(path)
        if name is not None:
            if method != "GET":
                raise _method_not_allowed(path, ("GET",))
            self._json(exchange, 200, show_model(self.worker.fleet, name, self._caller(exchange)))
            return
        stored = stored_response(method, path)
        if isinstance(stored, frozenset):
            raise _method_not_allowed(path, tuple(sorted(stored)))
        if stored is not None:
            caller = self._caller(exchange)
            await exchange.read_body(raw, length)
            await self.worker.pipeline.stored(stored, raw, exchange, exchange, caller)
            return
        if self._admin is not None and self.worker.is_admin_path(path):
            exchange.status = await self._admin(scope, proto, exchange.request_id)
            return
        raise Fault(Kind.NOT_FOUND, f"there is no {method} {path[:200]} here")

    def _own(self, exchange: Exchange, path: str) -> None:
        worker = self.worker
        if path == "/health":
            self._json(exchange, 200, b'{"status":"ok"}')
        elif path == "/v1/models":
            self._json(exchange, 200, list_models(worker.fleet, self._caller(exchange)))
        elif worker.draining:
            raise Fault(Kind.DRAINING, "this node is draining", retry_after_s=5.0)
        elif any(model.ready for model in worker.fleet.models):
            self._json(exchange, 200, b'{"status":"ready"}')
        else:
            raise Fault(Kind.NO_BACKEND, "no model can be served or woken", retry_after_s=2.0)

    def _json(self, exchange: Exchange, status: int, body: bytes) -> None:
        exchange.respond(status, [_JSON, ("x-request-id", exchange.request_id)], body)


def _method_not_allowed(path: str, allowed: tuple[str, ...]) -> Fault:
    text = ", ".join(allowed)
    return Fault(Kind.METHOD_NOT_ALLOWED, f"{path} takes {text}", headers=(("allow", text),))
