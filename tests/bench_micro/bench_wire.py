"""What could be done on the wire and is not: `python -m tests.bench_micro.bench_wire` prints a line for each.

A request on a kept connection, on a new one, on a new one with TCP Fast Open (where the kernel has it on for servers:
`net.ipv4.tcp_fastopen` with bit 2), and several requests sent before the first is answered (pipelining). The server is
a simulator with stored answers (`penstock sim --canned`); all are taken in turn, and the median of the rounds is told.
`docs/python.md` says what follows.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from ..support.sim import simulator

_ROUNDS = 7
_ROUND_S = 0.15
_DEEP = 16
_FASTOPEN = Path("/proc/sys/net/ipv4/tcp_fastopen")
_BODY = b'{"model":"sim-model","prompt":"x","max_tokens":1}'
_ASK = (
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    % len(_BODY)
) + _BODY


def _read(connection: socket.socket, answers: int) -> None:
    """Read so many answers, each under its content-length."""
    held = b""
    while answers:
        head, end, rest = held.partition(b"\r\n\r\n")
        if end:
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
            if len(rest) >= length:
                assert head.startswith(b"HTTP/1.1 200")
                held, answers = rest[length:], answers - 1
                continue
        more = connection.recv(1 << 18)
        assert more, "the server closed the connection"
        held += more


def _measure(cases: dict[str, tuple[Callable[[], object], int]]) -> None:
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(_ROUNDS):
        for name, (call, each) in cases.items():
            done, began = 0, time.perf_counter()
            while (now := time.perf_counter()) - began < _ROUND_S:
                call()
                done += each
            taken[name].append((now - began) / done * 1e6)
    for name, figures in taken.items():
        print(f"  {name:<52}{statistics.median(figures):10.1f} us")


def main() -> None:
    """Print what a request costs each way, from its first byte sent to the last of its answer."""
    with simulator(canned=True) as server:
        address = ("127.0.0.1", server.port)
        kept = socket.create_connection(address)
        kept.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def again() -> None:
            kept.sendall(_ASK)
            _read(kept, 1)

        def deep() -> None:
            kept.sendall(_ASK * _DEEP)
            _read(kept, _DEEP)

        def anew() -> None:
            with socket.create_connection(address) as one:
                one.sendall(_ASK)
                _read(one, 1)

        def anew_fast() -> None:
            with socket.socket() as one:
                one.sendto(_ASK, socket.MSG_FASTOPEN, address)
                _read(one, 1)

        cases: dict[str, tuple[Callable[[], object], int]] = {
            "a request on a kept connection": (again, 1),
            "a request on a new connection": (anew, 1),
        }
        allowed = int(_FASTOPEN.read_text())
        print(f"net.ipv4.tcp_fastopen is {allowed}: {'clients' if allowed & 1 else 'nobody'}")
        if allowed & 1:
            cases["a request on a new connection, TCP Fast Open asked for"] = (anew_fast, 1)
        cases[f"{_DEEP} requests sent before the first answer, each"] = (deep, _DEEP)
        _measure(cases)
        kept.close()


if __name__ == "__main__":
    main()
