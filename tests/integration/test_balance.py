"""Many connections: spread over the workers, and none so many that the next one hangs."""

import asyncio
import os
import resource
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from ..support.gateway import Gateway, gateway, one_model
from ..support.procs import wait_until

DEAD = "http://127.0.0.1:9"


def _connections(gate: Gateway) -> Counter[int]:
    """Established connections to the API port, by worker."""
    port = f":{gate.port:04X}"
    established = {
        fields[9]
        for fields in map(str.split, Path("/proc/net/tcp").read_text().splitlines()[1:])
        if fields[3] == "01" and fields[1].endswith(port)
    }
    held: Counter[int] = Counter()
    for pid in gate.worker_pids():
        links = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
        held[pid] = len({f"socket:[{inode}]" for inode in established} & links)
    return held


@contextmanager
def _many_files() -> Iterator[int]:
    """As many as this process may open; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_worker_has_more_than_twice_the_mean_of_the_connections() -> None:
    with gateway({**one_model(DEAD), "workers": {"count": 4, "drain_delay_s": 0}}) as gate:
        sockets = [socket.create_connection(("127.0.0.1", gate.port)) for _ in range(64)]
        held = wait_until(
            lambda: (found := _connections(gate)).total() >= 64 and found, what="64 accepted connections"
        )
        assert max(held.values()) <= 2 * 64 / 4, held
        for one in sockets:
            one.close()


async def probed_beside(count: int) -> None:
    """A health probe is answered while so many connections are open."""
    with (
        _many_files() as files_at_most,
        gateway({**one_model(DEAD), "workers": {"count": 1, "drain_delay_s": 0}}) as gate,
    ):
        if files_at_most < count + 500:
            pytest.skip("this process may not open so many files")
        sockets: list[socket.socket] = []
        try:
            for _ in range(count):
                # one source address has some 28,000 ports
                sockets.append(socket.create_connection(("127.0.0.1", gate.port)))
            (worker,) = gate.worker_pids()
            files = Path(f"/proc/{worker}/fd")
            await asyncio.to_thread(
                wait_until, lambda: len(os.listdir(files)) >= count, 30, "all connections accepted"
            )
            async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
                assert (await client.get(f"{gate.url}/health")).is_success
        finally:
            for one in sockets:
                one.close()


async def test_a_health_probe_answers_beside_more_connections_than_granian_would_take() -> None:
    """Which are 1,024; 16,000 of them are `make chaos`."""
    await probed_beside(2_000)
