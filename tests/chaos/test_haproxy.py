"""Gateways behind deploy/haproxy are restarted and killed under load: clients see an error only of what a killed one
held."""

import asyncio
import http.client
import json
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any

import httpx
import pytest

from ..support.gateway import Gateway, gateway, one_model
from ..support.haproxy import HAProxy, haproxy
from ..support.procs import children, console_script, free_port, run, wait_until
from ..support.sim import Simulator, simulator
from .load import Load, load

CHAT = "/v1/chat/completions"
DRAIN = {"drain_delay_s": 2, "drain_timeout_s": 12}


class Site:
    """Two gateways on ports of their own behind HAProxy, each before a simulator of its own."""

    def __init__(self, stack: ExitStack, **workers: Any) -> None:
        self.ports = (free_port(), free_port())
        self._workers = {**DRAIN, **workers}
        self._stacks: list[ExitStack] = [stack.enter_context(ExitStack()) for _ in range(2)]
        self.gates: list[Gateway] = []
        with ThreadPoolExecutor(2) as pool:
            self.sims = list(
                pool.map(lambda _: stack.enter_context(simulator(model="m", decode_ms=40)), range(2))
            )
            self.gates = list(pool.map(self._start, range(2)))
        self.balancer: HAProxy = stack.enter_context(haproxy(*self.ports, PENSTOCK_SLOWSTART="2s"))

    def _start(self, which: int) -> Gateway:
        config = {
            **one_model(self.sims[which].url, max_concurrent=500),
            "listen": {"port": self.ports[which]},
            "workers": self._workers,
        }
        return self._stacks[which].enter_context(gateway(config))

    def end(self, which: int) -> int:
        """Tell one to end, and wait until it has; its exit status."""
        self.gates[which].proc.send(signal.SIGTERM)
        return self.gates[which].proc.wait()

    def start(self, which: int) -> None:
        """Start it again, and wait until HAProxy gives requests to both."""
        self._stacks[which].close()
        self.gates[which] = self._start(which)
        wait_until(lambda: self.balancer.up("a", "b"), 30, "both are up")

    def kill(self, which: int) -> None:
        """SIGKILL to all of its processes."""
        gate = self.gates[which]
        for pid in (gate.pid, *children(gate.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def site(**workers: Any) -> Iterator[Site]:
    with ExitStack() as stack:
        made = Site(stack, **workers)
        yield made
        for which in range(2):  # what is looked at has been seen: no further drains
            made.kill(which)


@asynccontextmanager
async def loads(port: int) -> AsyncIterator[list[Load]]:
    """Clients that keep their connections and clients that do not, streams and not, of bodies for both gateways."""
    async with AsyncExitStack() as stack:
        running = [
            await stack.enter_async_context(
                load(port, "m", 1, stream=i % 2 == 0, fresh=i % 3 == 0, text=f"text {i}")
            )
            for i in range(18)
        ]
        yield running
        for one in running:
            one.stop()


async def _until(predicate: Any, what: str) -> None:
    await asyncio.to_thread(wait_until, predicate, 30, what)


async def _more(running: list[Load]) -> None:
    """Wait until every client has had two further answers."""
    targets = [one.done + 2 for one in running]
    await _until(lambda: all(one.done >= n for one, n in zip(running, targets, strict=True)), "answers")


def _untouched(running: list[Load]) -> None:
    """Every request had its answer, and none had to be asked twice by its client."""
    for one in running:
        assert one.lost == []
        assert set(one.answered) == {200}, one.refusals
        assert one.resent == 0


def _body(text: str, **more: Any) -> bytes:
    question = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 4, **more}
    return json.dumps(question).encode()


class Steady:
    """One client that never gives up its connection, until `ended`."""

    def __init__(self, port: int, text: str) -> None:
        self.statuses: list[int] = []
        self.connections = 0
        self.ended = threading.Event()
        self._text = text
        self._line = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def run(self) -> None:
        while not self.ended.is_set():
            if self._line.sock is None:
                self.connections += 1
            self._line.request("POST", CHAT, _body(self._text), {"content-type": "application/json"})
            answer = self._line.getresponse()
            self.statuses.append(answer.status)
            answer.read()
        self._line.close()


async def test_a_gateway_drains_and_no_client_sees_it() -> None:
    with site() as made:
        steady = [Steady(made.balancer.port, f"steady {i}") for i in range(4)]
        tasks = [asyncio.create_task(asyncio.to_thread(one.run)) for one in steady]
        try:
            async with loads(made.balancer.port) as running:
                await _more(running)
                assert await asyncio.to_thread(made.end, 0) == 0
                await _more(running)
        finally:
            for one in steady:
                one.ended.set()
        await asyncio.gather(*tasks)
        said = made.balancer.proc.log()
    _untouched(running)
    # its own word took it out, before it could no longer be reached
    assert "Server ready/a is DOWN, reason: Layer7 wrong status, code: 503" in said
    for one in steady:
        # the gateway's `connection: close` was for HAProxy
        assert (set(one.statuses), one.connections) == ({200}, 1)


def _asked(made: Site, which: int) -> int:
    return int(made.sims[which].stats()["paths"].get(CHAT, {"total": 0})["total"])


@pytest.mark.slow
async def test_a_rolling_restart_of_both_loses_no_request() -> None:
    with site() as made:
        async with loads(made.balancer.port) as running:
            for which in (0, 1, 0, 1):
                await _more(running)
                assert await asyncio.to_thread(made.end, which) == 0
                before = _asked(made, which)
                await asyncio.to_thread(made.start, which)
                await _until(lambda w=which, n=before: _asked(made, w) > n + 10, "it is asked again")
            await _more(running)
    _untouched(running)


@pytest.mark.slow
async def test_new_workers_for_both_gateways_lose_no_request() -> None:
    """`penstock restart`: the gateway is never out of HAProxy. A connection may then be closed under a request that
    is just being sent; its client is told by its own closed connection, and asks again as HTTP/1.1 has it."""
    with site(count=2) as made:
        async with loads(made.balancer.port) as running:
            for gate in made.gates:
                await _more(running)
                old = set(gate.worker_pids())
                status, output = await asyncio.to_thread(
                    run, [console_script(), "restart", "-c", str(gate.file)]
                )
                assert status == 0, output
                await _until(lambda g=gate, o=old: not o & set(g.worker_pids()), "new workers")
            await _more(running)
    for one in running:
        assert one.lost == []
        assert set(one.answered) == {200}, one.refusals


async def _stream(asking: httpx.AsyncClient, text: str, at: dict[str, str]) -> bool:
    """One stream; whether it was whole. `at`: who answers it."""
    content = _body(text, stream=True, max_tokens=30)
    try:
        async with asking.stream("POST", CHAT, content=content) as answer:
            assert answer.status_code == 200
            at[text] = answer.headers["x-penstock-backend"]
            whole = b"".join([piece async for piece in answer.aiter_bytes()])
    except httpx.TransportError:
        return False
    return b"[DONE]" in whole and b'"error"' not in whole


def _backend(sim: Simulator) -> str:
    return sim.url.removeprefix("http://")


async def test_a_gateway_that_is_killed_fails_only_what_it_held() -> None:
    with site() as made:
        at: dict[str, str] = {}
        async with httpx.AsyncClient(
            base_url=made.balancer.url,
            headers={"content-type": "application/json"},
            timeout=30,
            trust_env=False,
        ) as asking:
            texts = [f"long {i}" for i in range(20)]
            streams = {text: asyncio.create_task(_stream(asking, text, at)) for text in texts}
            await _until(lambda: len(at) == len(texts), "all have begun")
            made.kill(0)
            # before its checks have failed: who comes for the dead one is given to the other
            answers = await asyncio.gather(
                *(asking.post(CHAT, content=_body(text, max_tokens=1)) for text in texts)
            )
            whole = {text: await task for text, task in streams.items()}
        row = made.balancer.servers()["a"]

    assert [answer.status_code for answer in answers] == [200] * len(texts)
    assert {answer.headers["x-penstock-backend"] for answer in answers} == {_backend(made.sims[1])}
    assert int(row["wredis"]) > 0
    assert set(at.values()) == {_backend(sim) for sim in made.sims}
    assert whole == {text: at[text] == _backend(made.sims[1]) for text in texts}


@pytest.mark.slow
async def test_where_no_model_can_be_served_what_is_in_the_cache_still_is() -> None:
    """`/ready` is 503 on every gateway: they are asked all the same, and say themselves what is wrong."""
    with simulator(model="m") as sim:
        config = {
            **one_model(sim.url),
            "cache": {"mode": "deterministic"},
            "health": {"interval_s": 0.2, "timeout_s": 1, "fall": 2},
        }
        with (
            gateway(config) as gate,
            haproxy(gate.port, gate.port) as balancer,
            httpx.Client(base_url=balancer.url, timeout=30, trust_env=False) as asking,
        ):
            json_type = {"content-type": "application/json"}

            def ask(text: str) -> httpx.Response:
                return asking.post(CHAT, content=_body(text, temperature=0), headers=json_type)

            assert ask("known").headers["x-penstock-cache"] == "MISS"
            sim.proc.stop()
            wait_until(balancer.up, 30, "no gateway is ready")
            known, new = ask("known"), ask("new")

    assert (known.status_code, known.headers["x-penstock-cache"]) == (200, "HIT-L1")
    assert (new.status_code, new.json()["error"]["code"]) == (503, "no_healthy_backend")
