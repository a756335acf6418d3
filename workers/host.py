"""Drives Granian's RSGI worker on listeners that somebody else bound.

Strategy: Granian's own process manager is not used; its `RSGIWorker` is, one per listener, on the event loop
of the calling process. That is a private API, so it is named in this file and nowhere else, `pyproject.toml`
pins the range it was read from, and `tests/integration/test_host.py` fails loudly when a release changes it.

What was found by trying Granian 2.8.7, and what this file does about it:

* `SocketHolder` takes the descriptor's number and Granian's listener closes it when it stops: it gets a
  duplicate, the caller's socket stays the caller's.
* In the multi-threaded runtime the end is announced by a condition variable that is waited for without
  looking at its flag, so a stop with nothing in flight can be missed for ever. The single-threaded runtime
  joins its threads instead: it is the one used here.
* A stop closes every connection without a request at once, also one accepted a moment ago whose request is
  just arriving: ten rolling restarts under 16 clients lost 22 of 23,372 requests so, and none of 22,800 since
  accepting is stopped first. `Host.stop_accepting` puts a listener nobody knows in place of the descriptor
  that Granian polls, the connections already taken get time to send, then `Host.stop` is called.
* After a stop a connection with half a request head lives until its header deadline, one whose body does not
  come for as long as the application waits for it. Whoever stops must bound the wait.
* A header deadline counts from the end of the previous response, so it is the keep-alive idle time as well.
  With `http="auto"` and no TLS it does not run before a connection's first byte.

Refuses to know: configuration, what the application does, signals.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from granian._futures import _future_watcher_wrapper, _new_cbscheduler
from granian._granian import RSGIWorker, SocketHolder, WorkerSignal
from granian.http import HTTP1Settings, HTTP2Settings

from .listeners import BACKLOG

_H2_HEADERS_BYTES = 64 << 10
"""Of one request over HTTP/2; Granian's own 16 MiB would be 3 GiB a connection of 200 streams."""

RsgiApp = Callable[[Any, Any], Awaitable[None]]


class Host:
    """Listeners being served. Made by `serve`; all methods belong to the loop's thread."""

    __slots__ = ("_fds", "_loop", "_open", "_signals", "done")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._signals: list[WorkerSignal] = []
        self._fds: list[int] = []
        self._open = 0
        self.done: asyncio.Future[None] = loop.create_future()
        """Resolved when every listener is closed and every connection has ended after `stop`."""

    def _add(self, signal: WorkerSignal, fd: int) -> None:
        self._signals.append(signal)
        self._fds.append(fd)
        self._open += 1
        signal.add_cb(lambda: self._loop.call_soon_threadsafe(self._ended))

    def _ended(self) -> None:
        self._open -= 1
        if self._open == 0 and not self.done.done():
            self.done.set_result(None)

    def stop_accepting(self) -> None:
        """Take no further connection from the listeners; open ones, idle ones too, go on. Idempotent.

        Connections that arrive from now on wait in the caller's socket for whoever accepts from it next.
        """
        if not self._fds:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as nobody:
            nobody.bind("")  # an abstract name of the kernel's choosing
            nobody.listen(1)
            for fd in self._fds:
                os.dup2(nobody.fileno(), fd, inheritable=False)
        self._fds.clear()

    def stop(self) -> None:
        """Stop accepting and close idle connections; what is in flight goes on. Idempotent."""
        self._fds.clear()  # from here on Granian closes them
        for signal in self._signals:
            signal.set()
        self._signals.clear()


def serve(
    app: RsgiApp,
    listeners: Sequence[socket.socket],
    *,
    loop: asyncio.AbstractEventLoop,
    http: str = "1",
    tls: tuple[str, str] | None = None,
    idle_timeout_s: float = 120.0,
    backpressure: int = 16_384,
) -> Host:
    """Start serving `app` (`async def app(scope, proto)`, or an object with `__rsgi__`) and return at once.

    `listeners` are bound and listening TCP or Unix sockets. `http` is "1" or "auto" (HTTP/2 as well); `tls`
    names a certificate chain and a key in PEM and applies to TCP listeners alone. `idle_timeout_s` bounds the
    time from a connection's opening, or its last response, to the end of its next request head.
    `backpressure` is how many connections may be open before accepting stops (Granian's own
    default of 1,024 starves probes). Requests reach `app` only while `loop` runs.
    """
    callback = getattr(app, "__rsgi__", app)
    host = Host(loop)
    wrap: Any = _future_watcher_wrapper  # untyped there
    schedule: Any = _new_cbscheduler
    wrapped = wrap(callback)
    mixed = len({listener.family == socket.AF_UNIX for listener in listeners}) > 1
    for number, listener in enumerate(listeners, start=1):
        is_uds = listener.family == socket.AF_UNIX
        secured = tls is not None and not is_uds
        cert, key = tls if tls is not None and secured else (None, None)
        fd = os.dup(listener.fileno())
        worker: Any = _make_worker(
            number,
            SocketHolder(fd, is_uds, BACKLOG),  # type: ignore[call-arg]
            http,
            round(idle_timeout_s * 1000),
            _room(backpressure, is_uds) if mixed else backpressure,
            secured,
            cert,
            key,
        )
        signal = WorkerSignal()
        host._add(signal, fd)
        run = worker.serve_str_uds if is_uds else worker.serve_str
        run(schedule(loop, wrapped, impl_asyncio=True), loop, signal)
    return host


def _room(backpressure: int, is_uds: bool) -> int:
    """A Unix socket beside a port is for a neighbour on the same machine: a quarter is enough for it."""
    quarter = backpressure // 4
    return quarter if is_uds else backpressure - quarter


def _make_worker(
    number: int,
    holder: SocketHolder,
    http: str,
    idle_timeout_ms: int,
    backpressure: int,
    secured: bool,
    cert: str | None,
    key: str | None,
) -> Any:
    make: Any = RSGIWorker
    return make(
        number,
        (None, holder),
        None,  # no channel for Granian's metrics
        1,  # runtime threads
        1,  # blocking threads of the runtime: only files would use them
        1,  # threads for Python callbacks
        30,  # seconds after which such a thread ends
        backpressure,
        http,
        HTTP1Settings(header_read_timeout=idle_timeout_ms),
        HTTP2Settings(max_headers_size=_H2_HEADERS_BYTES) if http != "1" else None,
        False,  # websockets
        None,  # static files
        secured,
        cert,
        key,
        None,  # key password
        "tls1.2",
        None,  # certificate authority for clients
        [],  # revocation lists
        False,  # verify clients
        (None, None),  # metrics
    )
