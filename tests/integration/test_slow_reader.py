"""A client that reads slowly pauses its upstream; one that does not read is bounded in bytes and in time."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from penstock.gateway.relay import ASK_EVERY_BYTES, PAUSE_ABOVE_BYTES, Relay

from ..support.dataplane import DataPlane, data_plane
from ..support.procs import wait_until
from ..support.sim import Simulator, simulator
from ..support.wire import Wire, request
from ..unit.requests import SMALLEST

#: What the kernel of a client with a small receive buffer may take without its reading.
KERNEL_BYTES = 1 << 20
#: One read from a backend.
READ_BYTES = 256 << 10


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with simulator() as running:
        yield running


def config(sim: Simulator, **listen: Any) -> dict[str, Any]:
    return {"listen": listen, "models": {"m": {"backends": [{"url": sim.url}]}}}


def chat(**fields: Any) -> bytes:
    return request(
        body=msgspec.json.encode(
            {"model": "m", **SMALLEST["/v1/chat/completions"], "max_tokens": 20, **fields}
        )
    )


def relay(plane: DataPlane) -> Relay | None:
    """The one body on its way."""

    def look() -> Relay | None:
        watch = plane.worker.watch
        return next((e.relay for e in (*watch._young, *watch._old)), None)

    return plane.call(look)


def pausing(plane: DataPlane) -> Relay:
    """That body, once its upstream is paused."""

    def paused() -> Relay | None:
        found = relay(plane)
        return found if found is not None and found.paused else None

    return wait_until(paused, what="the upstream is paused")


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
def test_a_client_that_does_not_read_pauses_its_upstream_within_the_bound(
    sim: Simulator, stream: bool
) -> None:
    sim.faults({"kind": "oversized", "bytes": 400 << 20})
    with data_plane(config(sim)) as plane, Wire(plane.port, receive_buffer=64 << 10) as wire:
        wire.send(chat(stream=stream))
        body = pausing(plane)
        assert body.sent <= PAUSE_ABOVE_BYTES + ASK_EVERY_BYTES + 2 * READ_BYTES + KERNEL_BYTES
        sent = body.sent
        for _ in range(20):  # ticks, each of which asks again
            plane.call(lambda: None)
            plane.state()
        assert pausing(plane).sent == sent
        wire.reset()
        plane.wait_settled()
        wait_until(lambda: sim.stats()["in_flight"] == 0, what="the backend was let go")


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
def test_a_client_that_reads_late_gets_every_byte(sim: Simulator, stream: bool) -> None:
    size = 12 << 20
    sim.faults({"kind": "oversized", "bytes": size})
    with data_plane(config(sim)) as plane, Wire(plane.port, receive_buffer=64 << 10) as wire:
        wire.send(chat(stream=stream))
        body = pausing(plane)
        reply = wire.reply()
        assert reply is not None
        assert (reply.status, reply.complete) == (200, True)
        assert len(reply.body) == body.sent >= size
        if stream:
            assert reply.body.endswith(b"data: [DONE]\n\n")
        assert body.pauses >= 1


def test_a_client_that_never_reads_is_given_up_and_its_upstream_closed(sim: Simulator) -> None:
    sim.faults({"kind": "oversized", "bytes": 400 << 20})
    sim_before = sim.stats()["aborted"]
    with (
        data_plane(config(sim, write_timeout_s=0.5)) as plane,
        Wire(plane.port, receive_buffer=64 << 10) as wire,
    ):
        wire.send(chat(stream=True))
        wait_until(lambda: sim.stats()["aborted"] > sim_before, what="the upstream is closed")
        plane.wait_settled()
        assert plane.statuses() == {"499": 1}
        rest = b""
        while piece := wire.read():
            rest = (rest + piece)[-200:]
        assert b"[DONE]" not in rest, "a cut stream is not to be taken for a whole one"


def test_others_are_served_while_one_does_not_read(sim: Simulator) -> None:
    sim.faults({"kind": "oversized", "bytes": 400 << 20, "count": 1})
    with data_plane(config(sim)) as plane, Wire(plane.port, receive_buffer=64 << 10) as slow:
        slow.send(chat(stream=True))
        pausing(plane)
        for _ in range(5):
            with Wire(plane.port) as other:
                reply = other.send(chat(stream=True)).reply()
                assert reply is not None
                assert reply.complete
        slow.reset()
