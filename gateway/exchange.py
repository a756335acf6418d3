"""One request and its way back, over Granian's RSGI: its head and body read, its answer sent, its end brought about.

What RSGI does not do is done here (`docs/architecture.md`, "What the server host leaves to us"): bodies are bounded
in size and time, a body that broke off is told from one that ended, a client that leaves is noticed once its request
has waited a little (:mod:`penstock.gateway.watch`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import perf_counter_ns
from typing import Any
from urllib.parse import quote

from granian.rsgi import ProtocolClosed

from .dialects.refusal import refusal
from .endpoints import Dialect
from .errors import Fault, Kind
from .keepalive import COMMENT
from .life import Life
from .limits.usage import StreamUsage
from .pool_view import PoolView
from .raw import ClientGone, RawRequest
from .respond import NOT_UPSTREAM, named_by_connection
from .worker import Worker

_WHOLE_BYTES = 64 << 10  # bodies up to this are taken in one await

#: What of a query goes upstream as it came; the rest is not ASCII and must not stand in a request line (RFC 3986).
_QUERY = "".join(map(chr, range(0x21, 0x7F)))

#: What TLS adds to each of its records, and the most that one carries (RFC 8446 §5.2).
_SEAL_BYTES = 22
_RECORD_BYTES = 16 << 10

#: A comment as a chunk of HTTP/1.1 (RFC 9112 §7.1).
_COMMENT_WIRE_BYTES = len(f"{len(COMMENT):x}") + 4 + len(COMMENT)
#: As much is said where it cannot be seen whether the client reads it.
_UNSEEN_BYTES = 64 << 10

_USELESS = (("x-should-retry", "false"),)

_UNCOUNTED_BYTES = 4 << 10  # as much per connection is not worth counting against limits.max_buffered
_COUNTED_BYTES = 64 << 10  # longer bodies are counted in steps of this, as they arrive


class Exchange(Life):
    """One request and its way back: what the pipeline's ``Out`` and ``StreamOut`` are, and what the watch ends."""

    # Defaults of the class: a request that never streams, waits or fails pays for none of them.
    request_id = ""
    dialect = Dialect.OPENAI
    #: the API key that came with the request, where there are keys
    credential = ""
    #: when the response began (perf_counter_ns); 0: not yet
    first_ns = 0
    #: when the body must have come (s, the worker's clock); 0: nothing is awaited
    body_by = 0.0
    held_bytes = 0
    aborted: Fault | None = None
    watching: asyncio.Task[None] | None = None
    #: the host's transport of a body that has begun; the body ends when nobody holds it any more
    transport: Any = None
    _usage: StreamUsage | None = None
    _tls = False
    _seal_bytes = 0
    #: it stands in the worker's KeepAlive
    _kept = False
    #: since when the client has not taken what it was sent (s, the worker's clock); 0.0: it has
    _unread_since = 0.0

    def __init__(self, worker: Worker, scope: Any, proto: Any, task: asyncio.Task[Any]) -> None:
        self._worker = worker
        self._scope = scope
        self._proto = proto
        self.task = task
        self.began_s = worker.clock()

    @property
    def begun(self) -> bool:
        """Whether the response has begun."""
        return self.first_ns != 0

    @property
    def client(self) -> str:
        """Where the request came from, ``ip:port``; something else on a Unix socket."""
        address: str = self._scope.client
        return address

    # ---- Out and StreamOut

    def _begin(self, status: int, headers: list[tuple[str, str]]) -> None:
        if not 200 <= status <= 599:  # the server host would panic and take the worker along
            raise ValueError(f"status {status}")
        if self._worker.draining:
            headers.append(("connection", "close"))
        self.first_ns = perf_counter_ns()
        self.status = status

    def respond(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """Send a whole response; ValueError for a status outside 200–599, :class:`Fault` where a stream is open."""
        if self.opened:
            raise refusal(status, body)
        self._begin(status, headers)
        if self.grant is not None:
            headers = self.grant.fields(headers, body)
        self._proto.response_bytes(status, headers, body)

    def stream(self, status: int, headers: list[tuple[str, str]]) -> Exchange:
        """Begin a response whose body follows by ``send``, or go on with one that is open."""
        if self.opened:
            self.first_ns = perf_counter_ns()
            self.status = status
            if self.grant is not None:
                self._usage = self.grant.streamed(self)
            return self
        self._begin(status, headers)
        if self.grant is not None:
            headers = self.grant.fields(headers)
            self._usage = self.grant.streamed(self)
        self._tls = self._scope.scheme == "https"
        self.transport = self._proto.response_stream(status, headers)
        return self

    def send(self, data: bytes) -> None:
        """Hand bytes to the server host, which never waits; raises :class:`ClientGone`."""
        try:
            self.transport.send_bytes(data)  # eager: the awaitable it gives back is already done
            if self._tls:
                self._seal_bytes += _SEAL_BYTES * (1 + len(data) // _RECORD_BYTES)
        except ProtocolClosed:
            raise ClientGone from None
        if self._usage is not None:
            self._usage.feed(data)

    def send_all(self, pieces: Sequence[bytes]) -> None:
        """As in ``StreamOut``."""
        send = self.transport.send_bytes
        try:
            for data in pieces:
                send(data)
        except ProtocolClosed:
            raise ClientGone from None

    def acked(self) -> tuple[int, int] | None:
        """What the client's kernel has acknowledged of this connection, and what is still queued for it."""
        scope = self._scope
        if scope.http_version != "1.1" and scope.http_version != "1":
            return None  # streams of one HTTP/2 connection cannot be told apart by its bytes
        known = self._worker.meter.acked(scope.client, scope.server)
        return None if known is None else (known.bytes_acked - self._seal_bytes, known.wqueue)

    # ---- while servers start

    def keep_alive(self) -> None:
        """As in :class:`Life`."""
        pool = self.hold_pool
        if not self._kept and pool is not None and pool.keepalive_s:
            self._kept = True
            self._worker.keepalive.add(self, self._opens_at(pool))

    def look(self, now: float, write_timeout_s: float) -> float | None:
        """Open the stream or send it a comment, if that is due; when to look again. As in ``keepalive.Kept``.

        A client that takes nothing for ``write_timeout_s`` is dropped.
        """
        relay, pool = self.relay, self.hold_pool
        waits = relay is None or not relay.sent if self.opened else self.hold_since and not self.begun
        if not waits or pool is None or self.left or self.aborted is not None or self.task.done():
            self._kept = False
            return None
        if not self.opened:
            due = self._opens_at(pool)
            if now < due:
                return due
        else:
            known = self.acked()
            if known is None:
                if self.said_bytes > _UNSEEN_BYTES:
                    return None
            elif known[1]:  # not even the last comment has been taken
                self._unread_since = self._unread_since or now
                if now - self._unread_since > write_timeout_s:
                    self._give_up(write_timeout_s)
                    return None
                return now + min(pool.keepalive_s, write_timeout_s)
            else:
                self._unread_since = 0.0
        try:
            if not self.opened:
                self._open()
            self.send(COMMENT)
        except (ClientGone, ProtocolClosed):
            self.abort(Fault(Kind.CLIENT_CLOSED, "the client left"))
            return None
        self.said_bytes += _COMMENT_WIRE_BYTES
        if relay is not None:
            relay.said(_COMMENT_WIRE_BYTES)
        return now + pool.keepalive_s

    def _opens_at(self, pool: PoolView) -> float:
        """When it has waited too long to be silent, what it waited before included (s, the worker's clock)."""
        return self.hold_since + max(0.0, pool.hold_silent_s - self.wake_ns / 1e9)

    def _open(self) -> None:
        """Begin the response before its answer is known, with the fields that are."""
        fields = [
            ("content-type", "text/event-stream; charset=utf-8"),
            ("cache-control", "no-cache"),
            ("x-request-id", self.request_id),
        ]
        if self.cache:
            fields.append(("x-penstock-cache", self.cache))
        if self.reason is not None:
            fields.append(("x-penstock-cache-reason", self.reason.value))
        self._begin(200, fields)
        if self.grant is not None:  # what the answer costs is counted when there is one
            fields = self.grant.fields(fields)
        self._tls = self._scope.scheme == "https"
        self.transport = self._proto.response_stream(200, fields)
        self.opened = True

    def _give_up(self, write_timeout_s: float) -> None:
        self._worker.sweep.condemn(self.client, self.transport)
        message = f"the client read nothing for write_timeout_s ({write_timeout_s:g} s)"
        self.abort(Fault(Kind.CLIENT_STALLED, message))

    def let_go(self) -> None:
        """End the body. The host does so when nobody holds its transport any more, and life and relay refer back
        to this exchange: without this the collector would have to come by first.
        """
        self.transport = None
        self.relay = None

    # ---- ended from outside

    def abort(self, fault: Fault) -> None:
        """End the request wherever it waits; what it is told is ``fault``.

        Where others wait for the answer that this request's task is fetching, the task goes on without a client.
        """
        if self.aborted is not None:
            return
        leaves = fault.kind is Kind.CLIENT_CLOSED or fault.kind is Kind.CLIENT_STALLED
        if self.flight is not None and leaves and self.flight.leave_leader():
            self.left = True
            if self.relay is not None:
                self.relay.on_fail(fault)
            return
        self.aborted = fault
        self.task.cancel()

    def abandon(self) -> None:
        """The last who waited for the answer has left as well."""
        self.flight = None
        self.abort(self.fault or Fault(Kind.CLIENT_CLOSED, "all clients left"))

    async def gone(self) -> None:
        """Wait for the client to close its connection, then end the request."""
        await self._proto.client_disconnect()
        self.abort(Fault(Kind.CLIENT_CLOSED, "the client left"))

    # ---- the request's bytes

    def read_head(self, path: str) -> tuple[RawRequest, int | None]:
        """The request without its body, and the length of the body: None when it is chunked or, over HTTP/2, open."""
        scope = self._scope
        length: str | None = None
        chunked = has_host = looped = False
        content_type = request_id = cache_control = cache_ttl = api_key = ""
        keyed = self._worker.keyring is not None
        dropped: frozenset[str] = frozenset()
        lines = []
        pairs = scope.headers.items()
        for name, value in pairs:
            if name not in NOT_UPSTREAM:
                if name == "content-type":
                    content_type = value
                elif name.startswith("x-penstock-"):
                    if name == "x-penstock-cache-ttl":
                        cache_ttl = value
                        continue
                    if name != "x-penstock-via":
                        continue
                    looped = looped or self._worker.via in value
                lines.append(f"{name}: {value}\r\n")
            elif name == "content-length":
                length = value
            elif name == "host":
                has_host = True
            elif name == "x-request-id":
                request_id = request_id or value
            elif name == "transfer-encoding":
                chunked = True
            elif name == "cache-control":
                cache_control = f"{cache_control},{value}" if cache_control else value
            elif name == "connection" and value.lower() not in ("keep-alive", "close"):
                dropped |= named_by_connection([value])
            elif keyed:
                if name == "authorization":
                    if not self.credential and value[:7].lower() == "bearer ":
                        self.credential = value[7:].strip()
                elif name == "x-api-key" or name == "api-key":
                    api_key = api_key or value
        if api_key and not self.credential:
            self.credential = api_key
        if dropped:
            lines = [line for line in lines if line.partition(":")[0] not in dropped]
        if not (0 < len(request_id) <= 128 and request_id.isascii() and request_id.isprintable()):
            request_id = self._worker.new_request_id()
        self.request_id = request_id
        if looped:
            raise Fault(
                Kind.LOOP,
                "this gateway has sent this request itself: the address of one of its backends leads back to it",
                headers=_USELESS,
            )
        if not has_host:  # HTTP/1.0 needs none, HTTP/2 has :authority
            version = scope.http_version
            if version == "1.1" or (version == "2" and not scope.authority):
                raise Fault(Kind.MISSING_HOST, "the request has no Host header")
            if version == "2":
                self._worker.sweep.speaks_h2(scope.client)
        query = scope.query_string
        if not query.isascii():
            query = quote(query, safe=_QUERY)
        raw = RawRequest(
            *(scope.method, path, query, "".join(lines), content_type, request_id, b""),
            cache_control,
            cache_ttl,
        )
        if chunked or (length is None and scope.http_version == "2"):
            return raw, None
        return raw, int(length) if length is not None and length.isdigit() else 0

    async def read_body(self, raw: RawRequest, length: int | None) -> None:
        """Read the body into ``raw``, bounded in size and in time; raises :class:`Fault` 400, 408, 413 or 429."""
        if length == 0:
            return
        worker = self._worker
        limits = worker.fleet.config.limits
        if length is not None and length > limits.max_body:
            raise Fault(Kind.BODY_TOO_LARGE, f"the body is over limits.max_body ({limits.max_body} bytes)")
        listen = worker.fleet.config.listen
        self.body_by = self.began_s + listen.body_timeout_s
        if length is not None and length <= _WHOLE_BYTES:
            if length > _UNCOUNTED_BYTES:
                self.held_bytes = worker.hold(length)
            try:
                raw.body = await self._proto()
            except ProtocolClosed:
                raise Fault(Kind.BODY_BROKEN, "the body ended before its Content-Length") from None
        else:
            began = perf_counter_ns()
            raw.body = await self._gather(
                limits.max_body, self.began_s + listen.read_timeout_s, listen.body_timeout_s
            )
            self.body_ns = perf_counter_ns() - began
        self.body_by = 0.0
        if length is not None and len(raw.body) != length:
            raise Fault(Kind.BODY_BROKEN, "the body ended before its Content-Length")

    async def _gather(self, limit: int, total_by: float, idle_s: float) -> bytes:
        """A long or chunked body. A whole one ends in an empty chunk, in two over HTTP/2 where an empty frame says
        that it ends. One that broke off ends in one more; over HTTP/2 they never end when the connection is gone.
        """
        chunks: list[bytes] = []
        size = empty = held = 0
        hold = self._worker.hold
        allowed = 2 if self._scope.http_version == "2" else 1
        clock = self._worker.clock
        async for chunk in self._proto:
            if chunk:
                size += len(chunk)
                empty = 0
                if size > limit:
                    raise Fault(Kind.BODY_TOO_LARGE, f"the body is over limits.max_body ({limit} bytes)")
                if size > held and size > _UNCOUNTED_BYTES:
                    held += hold(-(-(size - held) // _COUNTED_BYTES) * _COUNTED_BYTES)
                    self.held_bytes = held
                chunks.append(chunk)
                self.body_by = min(clock() + idle_s, total_by)
            else:
                empty += 1
                if empty > allowed:
                    raise Fault(Kind.BODY_BROKEN, "the body broke off")
        if held:  # of the last step, what did not come
            self._worker.release(held - size)
            self.held_bytes = size
        return b"".join(chunks)
