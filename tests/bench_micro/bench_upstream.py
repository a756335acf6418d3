"""One call on an idle upstream connection, without the socket: request written, answer parsed, caller woken."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

from pytest_benchmark.fixture import BenchmarkFixture

from penstock.gateway.upstream.call import CallTimeouts
from penstock.gateway.upstream.connection import Connection
from penstock.gateway.upstream.connector import Connector
from penstock.gateway.upstream.origin import Origin
from penstock.gateway.upstream.pool import Pool

_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 700\r\n\r\n"
_BODY = b"x" * 700
_ANSWER = (
    b"HTTP/1.1 200 OK\r\ndate: Mon, 01 Jan 2024 00:00:00 GMT\r\nserver: uvicorn\r\n"
    b"content-length: 640\r\ncontent-type: application/json\r\n\r\n" + b"y" * 640
)


class _Transport(asyncio.Transport):
    def write(self, data: bytes | bytearray | memoryview) -> None: ...

    def writelines(self, list_of_data: Any) -> None: ...

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...


class _Connector:
    """Opens connections that nobody is behind, and remembers the last."""

    last: Connection

    async def connect(self, origin: Origin, make: Callable[[], Connection], timeout_s: float) -> Connection:
        self.last = make()
        self.last.connection_made(_Transport())
        return self.last


async def test_upstream_call_without_its_socket(benchmark: BenchmarkFixture) -> None:
    connector = _Connector()
    pool = Pool(
        Origin.parse("http://a"),
        loop=asyncio.get_running_loop(),
        clock=time.monotonic,
        connector=cast(Connector, connector),
        min_idle=1,
        max_idle=8,
        idle_s=4.0,
    )
    timeouts = CallTimeouts()

    def call() -> int:
        coroutine = pool.call(_HEAD, _BODY, timeouts)
        coroutine.send(None)
        connector.last.data_received(_ANSWER)
        try:
            coroutine.send(None)
        except StopIteration as done:
            return cast(int, done.value.status)
        raise AssertionError("a whole answer did not end the call")

    assert benchmark(call) == 200
    await pool.close()
