"""Closes client connections that are nobody's business any more, which the server host leaves open.

Granian has one deadline for all that: from a connection's opening, or its last response, to the end of the next
request head, and on HTTP/2 none. That deadline is set to the longest of ours; the shorter ones are kept here, by
looking every few seconds at what the kernel knows of each connection (TCP_INFO): when it last carried a byte, in
which direction, and whether bytes wait to be sent. A connection with a request in flight is never touched here;
its deadlines are the request's.

    a head that does not come     nothing ever received, or the client spoke last, for `read_timeout_s`
    idle                          no byte either way for `keep_alive_s`
    an answer that is not read    its bytes wait to be sent, none went out for `write_timeout_s`
    condemned                     a stream was given up: Granian can only end it cleanly, which would be a lie

A verdict is carried out when the next look confirms it: an answer may be done and not yet with the kernel.

Descriptors are the process's own, found in /proc/self/fd. Each is duplicated before it is looked at, so that the
connection judged is the connection closed even when the server host closes its own meanwhile. Knows TCP alone: on
a Unix socket the server host's deadline is all there is. Knows nothing of requests but where they came from.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Callable
from enum import Enum
from itertools import islice

from .config.structs import Listen

log = logging.getLogger(__name__)

#: Descriptors looked at in one tick; each takes some 5 to 10 µs, which every request waits for.
SLICE = 64
MAX_INTERVAL_S = 5.0
_PARTS = 8  # looks within the shortest deadline
_MAX_H2 = 65_536

_ESTABLISHED, _CLOSE_WAIT = 1, 8
_STATE_BYTES = 148
_TIMES = struct.Struct("=I4xI")
_TIMES_AT = 44  # tcpi_last_data_sent, tcpi_last_data_recv (ms)
_COUNTS = struct.Struct("=QQ8xI")
_COUNTS_AT = 120  # tcpi_bytes_acked, tcpi_bytes_received, tcpi_notsent_bytes
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: what is not sent is dropped


class Why(Enum):
    """Why a connection is closed."""

    HEAD_TIMEOUT = "head_timeout"
    IDLE = "idle"
    NOT_READ = "not_read"
    CONDEMNED = "condemned"


class Sweep:
    """All client connections of this process to one TCP port.

    ``busy`` gives the client addresses (``ip:port``) of the requests in flight.
    """

    __slots__ = (
        *("_busy", "_condemned", "_doomed", "_doubted", "_doubted_before", "_h2", "_next_s", "_pending"),
        *("_port", "_scan", "_seen", "_found", "connections"),
    )

    def __init__(self, port: int, busy: Callable[[], list[str]]) -> None:
        self._port = port
        self._busy = busy
        #: how many there were when the last look was through
        self.connections = 0
        self._found = 0
        # clients whose connections are to be reset, with what must not be let go of before
        self._condemned: dict[str, object] = {}
        # those of them that this look began with: it may have passed the others
        self._doomed: dict[str, object] = {}
        # clients to be closed if the next look finds the same
        self._doubted: set[str] = set()
        self._doubted_before: set[str] = set()
        self._scan: os._ScandirIterator[str] | None = None
        self._h2: set[str] = set()
        self._next_s = 0.0
        # clients that have spoken last: since when, and how much they had been sent
        self._pending: dict[str, tuple[float, int]] = {}
        self._seen: dict[str, tuple[float, int]] = {}

    def speaks_h2(self, client: str) -> None:
        """This client's connection is HTTP/2, where a client that has spoken last need not have more to say."""
        if len(self._h2) >= _MAX_H2:
            self._h2.clear()
        self._h2.add(_port(client))

    def condemn(self, client: str, held: object = None) -> None:
        """Reset this client's connection, at once but for the look that finds it.

        ``held`` is kept until then: the server host would end the connection cleanly when it lost its transport.
        """
        self._condemned[client] = held
        self._next_s = 0.0

    def close(self) -> None:
        """End a look that is not through."""
        if self._scan is not None:
            self._scan.close()
            self._scan = None

    @property
    def looking(self) -> bool:
        """Whether a look has begun and is not through."""
        return self._scan is not None

    def tick(self, now: float, listen: Listen) -> None:
        """Called every 20 ms: goes on with a look at all connections, or begins one when it is time."""
        if self._scan is None:
            if now < self._next_s:
                return
            shortest = min(listen.read_timeout_s, listen.keep_alive_s, listen.write_timeout_s)
            self._next_s = now + min(shortest / _PARTS, MAX_INTERVAL_S)
            try:
                self._scan = os.scandir(
                    "/proc/self/fd"
                )  # read as it is gone through: all at once takes 40 ms
            except OSError:
                return  # out of descriptors: later
            self._doomed, self._condemned = self._condemned, {}
        part = [int(entry.name) for entry in islice(self._scan, SLICE)]
        busy: set[str] | None = None
        for fd in part:
            one = _open(fd)
            if one is None:
                continue
            with one:
                try:
                    why, client = self._judge(one, now, listen)
                    if why is None:
                        continue
                    if why is not Why.CONDEMNED:
                        if busy is None:
                            busy = {_port(address) for address in self._busy()}
                        if _port(client) in busy:
                            continue
                        self._doubted.add(client)
                        if client not in self._doubted_before:
                            continue
                    self._close(one, why, client)
                except OSError:
                    continue  # no TCP, or gone
        if len(part) < SLICE:
            self._scan = None
            self.connections, self._found = self._found, 0
            self._pending, self._seen = self._seen, {}
            self._doubted_before, self._doubted = self._doubted, set()
            self._doomed.clear()

    def _judge(self, one: socket.socket, now: float, listen: Listen) -> tuple[Why | None, str]:
        name = one.getsockname()
        if type(name) is not tuple or len(name) < 2 or name[1] != self._port:
            return None, ""
        info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        if len(info) < _STATE_BYTES or info[0] not in (_ESTABLISHED, _CLOSE_WAIT):
            return None, ""
        self._found += 1
        sent_ms, received_ms = _TIMES.unpack_from(info, _TIMES_AT)
        acked, received, unsent = _COUNTS.unpack_from(info, _COUNTS_AT)
        peer = one.getpeername()
        client = f"[{peer[0]}]:{peer[1]}" if ":" in peer[0] else f"{peer[0]}:{peer[1]}"
        if client in self._doomed:
            return Why.CONDEMNED, client
        if unsent and sent_ms >= listen.write_timeout_s * 1000:
            return Why.NOT_READ, client
        quiet_ms = min(sent_ms, received_ms)
        if quiet_ms >= listen.keep_alive_s * 1000:
            return Why.IDLE, client
        if not received:
            return (Why.HEAD_TIMEOUT if quiet_ms >= listen.read_timeout_s * 1000 else None), client
        # up to now it was sent nothing (the handshake counts as a byte), or less lately than it sent something
        if (acked <= 1 or received_ms < sent_ms) and _port(client) not in self._h2:
            since = self._pending.get(client)
            if since is None or since[1] != acked:
                since = (now - received_ms / 1000, acked)
            self._seen[client] = since
            if now - since[0] >= listen.read_timeout_s:
                return Why.HEAD_TIMEOUT, client
        return None, client

    def _close(self, one: socket.socket, why: Why, client: str) -> None:
        if why in (Why.NOT_READ, Why.CONDEMNED):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        one.shutdown(socket.SHUT_RDWR)
        log.debug("connection_closed reason=%s client=%s", why.value, client)


def _open(fd: int) -> socket.socket | None:
    """The socket behind a descriptor, with a descriptor of its own; None when there is none (any more)."""
    try:
        own = os.dup(fd)
    except OSError:
        return None
    try:
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=own)
    except OSError:
        os.close(own)
        return None


def _port(client: str) -> str:
    # a port is enough to tell that a connection may be in use, and it is written in one way only
    return client.rpartition(":")[2]
