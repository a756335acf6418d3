"""Three times as much is asked as can be answered: who is let in is answered as ever, the rest is refused at once."""

import asyncio
from pathlib import Path
from statistics import median, quantiles

import pytest

from ..integration.test_balance import probed_beside
from ..support.crowd import Crowd, key_file
from ..support.gateway import Gateway, gateway, one_model
from ..support.leaks import nothing_left
from ..support.sim import simulator

PLACES = 8
QUEUE = 16
WORKERS = 2
BUFFERED_BYTES = 64 << 20


async def _watch(gate: Gateway, crowd: Crowd, seconds: float) -> tuple[float, float]:
    """The most bytes that were held and the most that waited, until the crowd's time is over."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    held = queued = 0.0
    while loop.time() < end:
        text = await asyncio.to_thread(
            lambda: (gate.metric("penstock_buffered_bytes"), gate.metric("penstock_queued_requests"))
        )
        held, queued = max(held, text[0]), max(queued, text[1])
        done = asyncio.Event()
        loop.call_later(0.25, done.set)
        await done.wait()
    crowd.over.set()
    return held, queued


def _said(crowd: Crowd) -> str:
    parts = [f"{tenant} {dict(counts)}" for tenant, counts in crowd.answered.items()]
    for status, took in sorted(crowd.took_s.items()):
        high = quantiles(took, n=100)[98] if len(took) > 1 else took[0]
        parts.append(f"{status}: median {median(took) * 1000:.1f} ms, p99 {high * 1000:.1f} ms")
    return "; ".join(parts)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("padding", "clients", "seconds"),
    [(0, {"heavy": 100, "light": 10}, 60.0), ((10 << 20) - 1024, {"heavy": 20, "light": 4}, 20.0)],
    ids=["small bodies", "10 MiB bodies"],
)
async def test_an_overload_is_refused_early_and_fairly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], padding: int, clients: dict[str, int], seconds: float
) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(key_file(*clients))
    keys.chmod(0o600)
    with simulator(model="m", decode_ms=20, max_seqs=64, max_body_bytes=32 << 20) as sim:
        config = {
            **one_model(sim.url, max_concurrent=PLACES, max_queue=QUEUE, queue_timeout_s=5),
            "workers": {"count": WORKERS},
            "keys": {"file": str(keys)},
            "limits": {"max_buffered": BUFFERED_BYTES},
        }
        with gateway(config) as gate:
            alone = Crowd(gate.port)
            await alone.client("light", enough=20)
            crowd = Crowd(gate.port, padding=padding)
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(_watch(gate, crowd, seconds))
                for tenant, count in clients.items():
                    for _ in range(count):
                        # who is refused asks again soon, so that more is asked than can be answered
                        group.create_task(crowd.client(tenant, pause_s=0.1 if tenant == "light" else 0.25))
            held, queued = watching.result()
            with capsys.disabled():
                print(
                    f"\nalone {_said(alone)}\n{_said(crowd)}; held {held / 2**20:.1f} MiB, queued {queued:.0f}"
                )
            assert {status for counts in crowd.answered.values() for status in counts} <= {0, 200, 429}
            assert crowd.bad == []
            assert held <= BUFFERED_BYTES
            assert queued <= QUEUE + 64
            if not padding:
                assert crowd.answered["heavy"][429] > crowd.answered["heavy"][200]
                assert crowd.answered["light"][200] == pytest.approx(crowd.answered["heavy"][200], rel=0.05)
            await asyncio.to_thread(nothing_left, gate)


@pytest.mark.slow
async def test_a_health_probe_answers_while_16_000_connections_are_open() -> None:
    await probed_beside(16_000)
