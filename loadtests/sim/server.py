"""Listeners and the life of the process: listens when loaded, stops for a `refuse` fault, ends on SIGTERM.

vLLM does not listen before its model is loaded, so neither does this. A socket bound to the port but not listening
keeps the port reserved while connections are refused. Refuses to know HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import stat
from collections.abc import Callable

from .canned import Canned
from .connection import Connection
from .settings import Settings
from .simulator import Simulator

_GRACE_S = 2.0


class Server:
    """Runs one simulator until told to stop. `say` gets one line when it listens."""

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._say = say
        self._members: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._control: asyncio.Server | None = None
        self._reserved: socket.socket | None = None
        self._port = settings.port
        self._reopen: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Until SIGTERM or SIGINT."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        self._loop = loop
        self._tls = _tls(self._settings)
        self._simulator = Simulator(self._settings, loop, self._refuse)
        self._canned = None
        if self._settings.canned:
            self._canned = Canned(self._settings, self._simulator, loop)
            await self._canned.prepare()
        if self._settings.startup_s:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), self._settings.startup_s)
                return
        if self._settings.control_port is not None:
            self._control = await loop.create_server(
                self._plain, self._settings.host, self._settings.control_port
            )
        await self._open()
        where = self._settings.uds or f"{self._settings.host}:{self._port}"
        scheme = "unix" if self._settings.uds else "https" if self._tls else "http"
        self._say(f"penstock sim: serving {', '.join(self._settings.models)} on {scheme}://{where}")
        await stop.wait()
        await self._close()

    async def _open(self) -> None:
        settings = self._settings
        if settings.uds is not None:
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISSOCK(os.stat(settings.uds).st_mode):
                    os.unlink(settings.uds)
            self._server = await self._loop.create_unix_server(
                self._plain, settings.uds, backlog=settings.backlog, ssl=self._tls
            )
            return
        if self._reserved is None:
            self._reserved = _bound(settings.host, self._port)
            self._port = self._reserved.getsockname()[1]
        self._server = await self._loop.create_server(
            self._plain, sock=_bound(settings.host, self._port), backlog=settings.backlog, ssl=self._tls
        )

    def _plain(self) -> Connection:
        return Connection(
            self._loop,
            self._settings,
            self._simulator.stats,
            self._canned.serve if self._canned else self._simulator.serve,
            self._members,
            self._canned.fast if self._canned else None,
        )

    def _refuse(self, seconds: float, drop_idle: bool) -> None:
        """Stops listening for a while; idle connections are reset, as a dying server's would be."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        if drop_idle:
            for connection in list(self._members):
                if not connection.busy and not connection.control:
                    connection.reset()
        self._reopen = self._loop.call_later(seconds, self._again)

    def _again(self) -> None:
        self._reopen = None
        self._opening = self._loop.create_task(self._open())

    async def _close(self) -> None:
        if self._reopen is not None:
            self._reopen.cancel()
        for server in (self._server, self._control):
            if server is not None:
                server.close()
        give_up = self._loop.time() + _GRACE_S
        while any(c.busy for c in self._members) and self._loop.time() < give_up:  # noqa: ASYNC110 - bounded, once, at exit
            await asyncio.sleep(0.01)
        for connection in list(self._members):
            connection.fin()
        if self._settings.uds is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._settings.uds)


def _bound(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet. SO_REUSEADDR lets two of them hold one port until one listens."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(settings.tls_cert, settings.tls_key)
    return context
