"""What could be done with bytes and is not: `python -m tests.bench_micro.bench_bytes` prints a line for each.

Validation in batches, buffers that are made before they are needed, sending without a copy, and what of a request goes
through wide registers. `docs/python.md` says what follows. All cases are taken in turn, and the median of the rounds is
told, in microseconds; read the ratios.
"""

from __future__ import annotations

import hashlib
import os
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable

import msgspec
import xxhash

from penstock.gateway.parse import Parser

from .material import CHAT, chat

_ROUNDS = 9
_ROUND_S = 0.03
_AT_ONCE = 64
_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %06d\r\n"
    b"x-request-id: 0123456789abcdef0123456789abcdef\r\nx-penstock-cache: HIT-L1\r\nage: 12\r\n\r\n"
)


def show(title: str, cases: dict[str, tuple[Callable[[], object], int]]) -> None:
    """Print what each case costs: one call of it, divided by how many it is for."""
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(_ROUNDS):
        for name, (call, each) in cases.items():
            done, began = 0, time.perf_counter()
            while (now := time.perf_counter()) - began < _ROUND_S:
                call()
                done += each
            taken[name].append((now - began) / done * 1e6)
    print(f"\n{title}")
    for name, figures in taken.items():
        print(f"  {name:<52}{statistics.median(figures):10.2f} us")


def validation() -> None:
    """One request after the other, or as many as arrive in one turn of a busy loop with one call."""
    raw = chat(2)
    body, parser, plain = raw.body, Parser(), msgspec.json.Decoder()
    fields = plain.decode(body)
    bodies, several, every = (
        [body] * _AT_ONCE,
        b"[" + b",".join([body] * _AT_ONCE) + b"]",
        [fields] * _AT_ONCE,
    )
    shapes = list[CHAT.shape]  # type: ignore[name-defined]
    show(
        f"a chat request of {len(body)} bytes: decoded and checked",
        {
            "both, one by one, as the gateway does": (lambda: parser.parse(CHAT, raw), 1),
            "decoded, one by one": (lambda: [plain.decode(one) for one in bodies], _AT_ONCE),
            f"decoded, {_AT_ONCE} in one call": (lambda: plain.decode(several), _AT_ONCE),
            "checked, one by one": (lambda: [msgspec.convert(one, CHAT.shape) for one in every], _AT_ONCE),
            f"checked, {_AT_ONCE} in one call": (lambda: msgspec.convert(every, shapes), _AT_ONCE),
        },
    )


def buffers() -> None:
    """A head and a body made into one piece: new bytes, or a buffer that is there already."""
    for size in (640, 8_192, 65_536):
        body = bytes(size)
        ready = bytearray(len(_HEAD % size) + size)
        view = memoryview(ready)

        def fresh(body: bytes = body) -> bytes:
            return _HEAD % len(body) + body

        def filled(body: bytes = body, view: memoryview = view) -> memoryview:
            head = _HEAD % len(body)
            at = len(head)
            view[:at] = head
            view[at : at + len(body)] = body
            return view[: at + len(body)]

        show(
            f"a head and a body of {size} bytes in one piece",
            {"new bytes each time": (fresh, 1), "a buffer made before": (filled, 1)},
        )


def sending() -> None:
    """From shared memory to a socket: copied and sent, as two pieces, or by the kernel from the file itself."""
    for size in (640, 8_192, 65_536, 1_048_576):
        with tempfile.TemporaryFile(dir="/dev/shm") as file, socket.create_server(("127.0.0.1", 0)) as door:
            file.write(bytes(size))
            file.flush()
            near = socket.create_connection(door.getsockname())
            far, _ = door.accept()
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            reader = threading.Thread(target=_read_all, args=(far,))
            reader.start()
            head, body, fd = _HEAD % size, os.pread(file.fileno(), size, 0), file.fileno()

            def sent(near: socket.socket = near, head: bytes = head, body: bytes = body) -> None:
                near.sendall(head + body)

            def pieces(near: socket.socket = near, head: bytes = head, body: bytes = body) -> None:
                done = near.sendmsg([head, body])
                if done < len(head) + len(body):
                    near.sendall((head + body)[done:])

            def by_kernel(
                near: socket.socket = near, head: bytes = head, fd: int = fd, size: int = size
            ) -> None:
                near.send(head, socket.MSG_MORE)
                at = 0
                while at < size:
                    at += os.sendfile(near.fileno(), fd, at, size - at)

            show(
                f"a head and a body of {size} bytes to a socket on this machine",
                {
                    "joined, send": (sent, 1),
                    "sendmsg of both (writev)": (pieces, 1),
                    "send of the head, sendfile of the body": (by_kernel, 1),
                },
            )
            near.close()
            reader.join()
            far.close()


def _read_all(connection: socket.socket) -> None:
    into = bytearray(1 << 20)
    while connection.recv_into(into):
        pass


def wide_registers() -> None:
    """What goes through all bytes of a request or an answer, and whose code that is."""
    for turns in (2, 40):
        raw = chat(turns)
        body, plain = raw.body, msgspec.json.Decoder()
        fields = plain.decode(body)
        show(
            f"a body of {len(body)} bytes",
            {
                "JSON, msgspec (one byte after the other)": (lambda b=body, d=plain: d.decode(b), 1),
                "canonical JSON, msgspec": (
                    lambda f=fields: msgspec.json.encode(f, order="deterministic"),
                    1,
                ),
                "SHA-256, OpenSSL (SHA instructions)": (lambda b=body: hashlib.sha256(b).digest(), 1),
                "xxh3, xxhash (vectors)": (lambda b=body: xxhash.xxh3_64_intdigest(b), 1),
                **_others(body),
            },
        )


def _others(body: bytes) -> dict[str, tuple[Callable[[], object], int]]:
    """Decoders that use vectors, where they are installed."""
    found: dict[str, tuple[Callable[[], object], int]] = {}
    try:
        import orjson  # type: ignore[import-not-found,unused-ignore]

        found["JSON, orjson"] = (lambda: orjson.loads(body), 1)
    except ImportError:
        pass
    try:
        import simdjson  # type: ignore[import-not-found,unused-ignore]

        parser = simdjson.Parser()
        found["JSON, simdjson (vectors), to Python's objects"] = (
            lambda: parser.parse(body, recursive=True),
            1,
        )
    except ImportError:
        pass
    return found


if __name__ == "__main__":
    validation()
    buffers()
    sending()
    wide_registers()
