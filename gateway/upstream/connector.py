"""From an origin to a connected protocol: resolve, connect, TLS. The one place where their errors become
faults.

The TCP connect is raced over a backend's addresses; TLS follows on the winner alone.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from time import perf_counter_ns
from typing import TypeVar

from .dns import Address, Resolver
from .eyeballs import STAGGER_S, first_to_connect
from .fault import FaultKind, UpstreamFault
from .origin import Origin
from .tls import TlsClient

Proto = TypeVar("Proto", bound=asyncio.BaseProtocol)

_NEVER = float("inf")
#: how long a connection that we close waits for the peer to say goodbye too
_TLS_SHUTDOWN_S = 2.0


class Connector:
    """Opens connections to one backend (its ``tls`` keeps that backend's sessions); the resolver is the
    worker's.

    Without ``tls`` an https origin gets the system's authorities and a session lifetime of one hour. ``opened`` is told
    how many nanoseconds each connection took.
    """

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        resolver: Resolver,
        tls: TlsClient | None = None,
        stagger_s: float = STAGGER_S,
        opened: Callable[[int], None] | None = None,
    ) -> None:
        self._opened = opened
        self._loop = loop
        self._clock = clock
        self._resolver = resolver
        self._tls = tls
        self._stagger_s = stagger_s

    async def connect(self, origin: Origin, factory: Callable[[], Proto], timeout_s: float) -> Proto:
        """A connected protocol. ``timeout_s`` covers name, TCP and TLS together.

        Raises UpstreamFault: DNS_FAILED, CONNECT_FAILED, CONNECT_TIMEOUT or TLS_FAILED.
        """
        began = perf_counter_ns()
        try:
            async with asyncio.timeout(timeout_s if timeout_s < _NEVER else None):
                sock = await self._reach(origin)
                protocol = await self._speak(origin, factory, sock)
            if self._opened is not None:
                self._opened(perf_counter_ns() - began)
            return protocol
        except TimeoutError:
            raise UpstreamFault(FaultKind.CONNECT_TIMEOUT, f"not connected after {timeout_s:g} s") from None

    def remember_session(self, transport: asyncio.Transport | None) -> None:
        """Keep the TLS session of a connection that has served a call, for the next ones."""
        if self._tls is not None and transport is not None:
            self._tls.remember(transport.get_extra_info("ssl_object"))

    async def _reach(self, origin: Origin) -> socket.socket:
        if origin.uds is not None:
            try:
                return await self._connect_socket(socket.AF_UNIX, origin.uds)
            except OSError as error:
                raise _connect_failed(error) from None
        try:
            addresses = await self._resolver.resolve(origin.host, origin.port)
        except (OSError, UnicodeError) as error:
            raise UpstreamFault(
                FaultKind.DNS_FAILED, getattr(error, "strerror", None) or type(error).__name__
            ) from None
        try:
            return await first_to_connect(addresses, self._connect_tcp, socket.socket.close, self._stagger_s)
        except OSError as error:
            self._resolver.forget(origin.host, origin.port)
            raise _connect_failed(error) from None

    async def _connect_tcp(self, address: Address) -> socket.socket:
        return await self._connect_socket(address.family, address.sockaddr)

    async def _connect_socket(self, family: int, sockaddr: str | tuple[object, ...]) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            if family != socket.AF_UNIX:
                # a head and a body in two segments must not wait for each other's acknowledgement
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.sock_connect(sock, sockaddr)
        except BaseException:
            sock.close()
            raise
        return sock

    async def _speak(self, origin: Origin, factory: Callable[[], Proto], sock: socket.socket) -> Proto:
        context: ssl.SSLContext | None = None
        server_name: str | None = None
        if origin.scheme == "https":
            if self._tls is None:
                self._tls = TlsClient(clock=self._clock)
            context, server_name = self._tls.context, self._tls.server_name or origin.host
        # from here the loop owns the socket, and closes it when this fails
        try:
            if origin.uds is not None:
                _, protocol = await self._loop.create_unix_connection(factory, sock=sock)
            elif context is None:
                _, protocol = await self._loop.create_connection(factory, sock=sock)
            else:
                _, protocol = await self._loop.create_connection(
                    factory,
                    sock=sock,
                    ssl=context,
                    server_hostname=server_name,
                    ssl_shutdown_timeout=_TLS_SHUTDOWN_S,
                )
        except (OSError, EOFError, ValueError) as error:
            if context is None:
                raise _connect_failed(error) from None
            detail = error.reason if isinstance(error, ssl.SSLError) else ""
            raise UpstreamFault(FaultKind.TLS_FAILED, detail or type(error).__name__) from None
        return protocol


def _connect_failed(error: BaseException) -> UpstreamFault:
    number = getattr(error, "errno", None)
    detail = errno.errorcode.get(number, type(error).__name__) if number else type(error).__name__
    return UpstreamFault(FaultKind.CONNECT_FAILED, detail)
