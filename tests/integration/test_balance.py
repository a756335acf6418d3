"""Many connections: spread over the workers, and none so many that the next one hangs."""

import asyncio
import os
import resource
import socket
from collections import Counter
from collections.abc import Iterator
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


@pytest.fixture
def _many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
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


@pytest.mark.usefixtures("_many_files")
async def test_a_health_probe_answers_while_16_000_connections_are_open() -> None:
    count = 16_000
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < count + 500:
        pytest.skip("this process may not open so many files")
    with gateway({**one_model(DEAD), "workers": {"count": 1, "drain_delay_s": 0}}) as gate:
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
