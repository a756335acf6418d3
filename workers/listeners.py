"""Listening sockets: how they are made, and how one is closed without resetting what is in its queue."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import stat
import struct
from collections.abc import Sequence

BACKLOG = 4096
"""Connections the kernel may hold for a listener that is not accepting."""

# Classic BPF: of a packet to this socket, whose first byte is the TCP header's, drop it if SYN is set and ACK is not.
_DROP_SYN = struct.pack(
    "=" + "HBBI" * 5,
    *(0x30, 0, 0, 13),  # load the byte of the flags
    *(0x54, 0, 0, 0x12),  # keep SYN and ACK
    *(0x15, 0, 1, 0x02),  # SYN alone?
    *(0x06, 0, 0, 0),  # then drop
    *(0x06, 0, 0, 0xFFFFFFFF),  # else pass
)
_SO_ATTACH_FILTER = 26


def refuse_new(listeners: Sequence[socket.socket]) -> None:
    """Let no further TCP connection begin on these listeners; handshakes under way still end, and are accepted.

    Closing a listener resets what waits in its accept queue. Behind this filter the queue runs empty first; a
    client's SYN goes unanswered for that moment and is sent again a second later, to whoever listens then.
    """
    program = ctypes.create_string_buffer(_DROP_SYN)
    fprog = struct.pack("@HxxxxxxP", len(_DROP_SYN) // 8, ctypes.addressof(program))
    for listener in listeners:
        if listener.family != socket.AF_UNIX:
            listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)


def listen_tcp(host: str, port: int, *, shared: bool = True) -> socket.socket:
    """A listening, non-blocking TCP socket; `shared` sets SO_REUSEPORT. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # inherited by every accepted connection: no 40 ms from Nagle meeting a delayed acknowledgement
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def listen_unix(path: str) -> socket.socket:
    """A listening, non-blocking Unix socket at `path`; a stale socket there is replaced, no other file.

    Raises OSError.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)
        listener.bind(path)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
