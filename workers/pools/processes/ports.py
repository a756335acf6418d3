"""A port on this machine that nobody uses, for a server that is about to start.

Strategy: below the range from which the kernel takes ports for outgoing connections, so that none of those can take it
before the server does; and bound for a moment on every address, so that nobody listens on it anywhere here. Ports that
were given out a moment ago are not given out again, for a server may take its time.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

_LOWEST = 10_240
_FALLBACK = 32_768


class Ports:
    """random: of the interval it is called with, `random.randrange`."""

    def __init__(self, random: Callable[[int, int], int]) -> None:
        self._random = random
        self._given: list[int] = []

    def take(self) -> int:
        """A free port. Raises OSError where there is none to be found."""
        low, high = _LOWEST, max(_lowest_outgoing(), _LOWEST + 1)
        for _ in range(200):
            port = self._random(low, high)
            if port not in self._given and is_free(port):
                self._given = [*self._given[-63:], port]
                return port
        raise OSError("no free port found")


def is_free(port: int) -> bool:
    """Whether nobody has this port on any address of the machine."""
    for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        with contextlib.ExitStack() as stack:
            try:
                probe = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            except OSError:
                continue  # no IPv6 here
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind((host, port))
            except OSError as fault:
                if family == socket.AF_INET6 and fault.errno not in (98, 13):
                    continue
                return False
    return True


def _lowest_outgoing() -> int:
    try:
        low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _FALLBACK
    return low if low > _LOWEST + 1000 else 65_536
