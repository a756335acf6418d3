"""A TCP port belongs to one gateway, however its address is spelt.

Strategy: SO_REUSEPORT, which the listeners need, would let a second gateway share a port in silence. So whoever
starts binds an abstract Unix socket named after port and resolved address, then looks whether another such name
overlaps its own: the kernel lists them all. Bound before looking: of two that start at one moment at least one
sees the other. The name dies with the supervisor, so that a start is possible while orphans still drain.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from pathlib import Path

_NAMES = Path("/proc/net/unix")


class Taken(Exception):
    """A gateway has this port on this address, or on one that overlaps it; `address` says which."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.address = address


def guard(host: str, port: int) -> socket.socket:
    """Hold `port` on `host` until the socket is closed. Raises Taken, and OSError for a host without address."""
    mine = _address(host, port)
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            holder.bind(f"\0penstock:{port}:{mine}")
        except OSError as fault:
            if fault.errno != errno.EADDRINUSE:
                raise
            raise Taken(mine) from None
        for other in _held(port):
            if other != mine and (_is_any(mine) or _is_any(other)):
                raise Taken(other)
    except BaseException:
        holder.close()
        raise
    return holder


def _address(host: str, port: int) -> str:
    """What a listener for `host` is bound to, in one spelling."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0][4][0]
    address = ipaddress.ip_address(found)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _held(port: int) -> list[str]:
    """The addresses on which some gateway holds `port`."""
    mark = f"@penstock:{port}:"
    lines = _NAMES.read_text(errors="replace").splitlines()
    return [line.partition(mark)[2] for line in lines if mark in line]


def _is_any(address: str) -> bool:
    return ipaddress.ip_address(address).is_unspecified
