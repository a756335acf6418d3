"""Processes are killed and restarted under load: what the dead one did is lost, and nothing else."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from ..support.gateway import Gateway, gateway, one_model
from ..support.leaks import nothing_left
from ..support.procs import Proc, console_script, is_running, wait_until
from ..support.sim import Simulator, simulator
from .load import Load, load

CLIENTS = 12


@pytest.fixture
def sim() -> Iterator[Simulator]:
    with simulator(model="m", decode_ms=2) as made:
        yield made


def _config(sim: Simulator, workers: int = 2) -> dict[str, object]:
    return {
        **one_model(sim.url, max_concurrent=200),
        "workers": {"count": workers, "drain_delay_s": 0.5, "drain_timeout_s": 10},
    }


async def _until(predicate: Callable[[], object], what: str) -> None:
    await asyncio.to_thread(wait_until, predicate, 30, what)


async def _more(running: Load, count: int = 40) -> None:
    """Wait until the clients had so many further answers."""
    target = running.answered[200] + count
    await _until(lambda: running.answered[200] >= target, f"{count} more answers")


def _workers_up(gate: Gateway, count: int) -> bool:
    return len(gate.worker_pids()) == count


async def test_a_killed_worker_takes_only_its_own_requests_with_it(sim: Simulator) -> None:
    with gateway(_config(sim)) as gate:
        async with load(gate.port, "m", CLIENTS) as running:
            await _more(running)
            victim = gate.worker_pids()[0]
            os.kill(victim, signal.SIGKILL)
            await _until(lambda: victim not in gate.worker_pids() and _workers_up(gate, 2), "a successor")
            await _more(running)
        assert len(running.lost) <= CLIENTS
        assert set(running.answered) == {200}, running.refusals
        await asyncio.to_thread(nothing_left, gate)


async def test_a_worker_killed_twice_within_a_second_stops_nothing(sim: Simulator) -> None:
    with gateway(_config(sim)) as gate:
        async with load(gate.port, "m", CLIENTS) as running:
            await _more(running)
            for _ in range(2):
                victim = gate.worker_pids()[0]
                os.kill(victim, signal.SIGKILL)
                await _until(
                    lambda v=victim: v not in gate.worker_pids() and _workers_up(gate, 2), "a successor"
                )
            await _more(running)
        assert len(running.lost) <= 2 * CLIENTS
        assert set(running.answered) == {200}, running.refusals
        await asyncio.to_thread(nothing_left, gate)
        assert gate.proc.exit_status() is None


async def test_a_killed_controller_costs_no_request(sim: Simulator) -> None:
    with gateway(_config(sim)) as gate:
        async with load(gate.port, "m", CLIENTS) as running:
            await _more(running)
            victim = gate.controller_pid()
            assert victim is not None
            os.kill(victim, signal.SIGKILL)
            await _until(lambda: gate.controller_pid() not in (None, victim), "another controller")
            await _more(running)
        assert running.lost == []
        assert set(running.answered) == {200}, running.refusals
        await _until(lambda: _answers_metrics(gate), "metrics")
        await asyncio.to_thread(nothing_left, gate)


def _answers_metrics(gate: Gateway) -> bool:
    try:
        return bool(gate.metrics())
    except OSError:
        return False
    except Exception as fault:
        return "Transport" not in type(fault).__name__ and "Connect" not in type(fault).__name__


async def test_a_killed_supervisor_leaves_no_orphan_and_the_next_start_serves(sim: Simulator) -> None:
    with gateway(_config(sim)) as gate:
        orphans = [*gate.worker_pids(), gate.controller_pid()]
        async with load(gate.port, "m", CLIENTS) as running:
            await _more(running)
            os.kill(gate.pid, signal.SIGKILL)
            gate.proc.wait()
            again = Proc(
                [console_script(), "serve", "-c", str(gate.file)],
                name="again",
                ready=lambda: _answers_metrics(gate),
            )
            with again:
                await _until(lambda: not any(pid and is_running(pid) for pid in orphans), "the orphans' end")
                before = running.answered[200]
                await _until(lambda: running.answered[200] > before + 40, "answers from the new gateway")
                running.stop()
                await asyncio.to_thread(nothing_left, gate)
        # Orphans drain; what their closing sockets had not accepted yet may be reset.
        assert len(running.lost) <= CLIENTS, running.lost
        assert set(running.answered) == {200}, running.refusals


@pytest.mark.parametrize("fresh", [False, True], ids=["keep-alive", "a connection each"])
async def test_a_rolling_restart_loses_no_request(sim: Simulator, fresh: bool) -> None:
    with gateway(_config(sim)) as gate:
        async with load(gate.port, "m", CLIENTS, fresh=fresh) as running:
            await _more(running)
            for _ in range(3):
                old = set(gate.worker_pids())
                gate.proc.send(signal.SIGUSR2)
                await _until(
                    lambda old=old: not old & set(gate.worker_pids()) and _workers_up(gate, 2),
                    "new workers alone",
                )
            await _more(running)
        assert running.lost == []
        assert set(running.answered) == {200}, running.refusals
        assert running.resent == 0
        await asyncio.to_thread(nothing_left, gate)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_sigterm_under_load_loses_no_accepted_request(sim: Simulator, stream: bool) -> None:
    with gateway(_config(sim)) as gate:
        async with load(gate.port, "m", CLIENTS, stream=stream) as running:
            await _more(running)
            gate.proc.send(signal.SIGTERM)
            await _until(lambda: "worker_left" in gate.log() or running.lost, "the first worker's end")
            running.stop()
            await _until(lambda: gate.proc.exit_status() is not None, "the gateway's end")
        assert gate.proc.exit_status() == 0
        # After the listener is closed a new connection is refused: that is no accepted request.
        assert [why for why in running.lost if "refused" not in why and "Refused" not in why] == []
        assert set(running.answered) == {200}, running.refusals


async def test_a_stream_cut_by_the_end_of_the_drain_gets_its_error_frame() -> None:
    with simulator(model="m", decode_ms=1000) as slow:
        config = {**one_model(slow.url), "workers": {"count": 1, "drain_delay_s": 0, "drain_timeout_s": 2}}
        with gateway(config) as gate:
            reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
            body = b'{"model":"m","stream":true,"max_tokens":500,"messages":[{"role":"user","content":"x"}]}'
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\n\r\n" % len(body) + body
            )
            await reader.readuntil(b"data: ")
            gate.proc.send(signal.SIGTERM)
            rest = await reader.read()
            writer.close()
            assert b'"error"' in rest
            assert b"[DONE]" not in rest
            assert rest.endswith(b"0\r\n\r\n")
            assert await asyncio.to_thread(gate.proc.wait) == 0


def test_stopping_takes_no_longer_than_it_must(sim: Simulator) -> None:
    with gateway(_config(sim)) as gate:
        began = time.monotonic()
        gate.proc.send(signal.SIGTERM)
        assert gate.proc.wait() == 0
        assert time.monotonic() - began >= 0.5  # the drain's delay was kept
