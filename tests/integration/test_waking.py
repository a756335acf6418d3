"""Clients that wait through a whole wake: a real gateway, a pool of processes, and a gate that the test opens.

Until its gate is opened the server does not start; the times of keep-alives are short.
"""

import hashlib
import json
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from penstock.gateway.keepalive import COMMENT

from ..conformance.bodies import GENERATING, chat, message
from ..support.crowd import key_file, secret_of
from ..support.gateway import Gateway, gateway
from ..support.leaks import nothing_left
from ..support.pool_gateway import pool, pooled, simulator
from ..support.procs import wait_until
from ..support.scripted import certificate
from ..support.wire import Wire, request
from .listener import CHAT, H2, Plain

SILENT_S, EVERY_S = 0.3, 0.1
KEEPING = {"hold_silent_s": SILENT_S, "keepalive_s": EVERY_S}


def gated(gate: Path, *options: str) -> list[str]:
    """The command of a server that starts once there is a file `gate`."""
    wait = f"while [ ! -e '{gate}' ]; do sleep 0.02; done; exec \"$@\""
    return ["/bin/sh", "-c", wait, "sh", *simulator(*options)]


@contextmanager
def waking(
    folder: Path, *options: str, settings: dict[str, Any] | None = None, **more: Any
) -> Iterator[tuple[Gateway, Callable[[], None]]]:
    """A gateway whose one model is at zero, and what lets its server start."""
    gate = folder / "gate"
    config = pooled(gated(gate, *options), settings=settings, **{**KEEPING, "ready_timeout_s": 100})
    with gateway({"cache": {"mode": "all", "l1": {"size": "32MiB"}}, **config, **more}) as running:
        yield running, gate.touch


def wait_waiting(running: Gateway, count: int) -> None:
    wait_until(lambda: running.metric("penstock_waiting_requests") == count, 30, f"{count} waiting")


def starts(running: Gateway) -> int:
    return running.log().count("pool_process ")


def stream_request(**more: Any) -> bytes:
    return request(CHAT, json.dumps(chat("m", stream=True, **more)).encode())


def text_of(body: bytes) -> str:
    """What a whole stream says, comments left out as a parser does."""
    events = [block[6:] for block in body.decode().split("\n\n") if block.startswith("data: ")]
    assert events.pop() == "[DONE]"
    return "".join(json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events)


# ---- every way in


def over_http1(link: Plain, comments: int) -> Callable[[], bytes]:
    """Ask, and wait for so many comments; what gives the rest."""
    link.send(stream_request())
    got = b""
    while got.count(COMMENT) < comments:
        got += link.until(COMMENT)
    return lambda: got + link.until(b"\r\n0\r\n\r\n")


def over_http2(link: Plain, comments: int) -> Callable[[], bytes]:
    client = H2(link)
    stream = client.request(json.dumps(chat("m", stream=True)).encode())
    while bytes(client.body[stream]).count(COMMENT) < comments:
        assert client.turn()
    assert client.status[stream] == 200
    return lambda: client.finish(stream)


def test_over_tls_and_http2_a_stream_is_kept_alive_and_answered(tmp_path: Path) -> None:
    trust = certificate(tmp_path, "127.0.0.1")
    listen = {"http": "auto", "tls": {"cert": str(trust), "key": str(trust)}}
    with (
        waking(tmp_path, listen=listen) as (running, start),
        Plain(running.port, trust=trust) as first,
        Plain(running.port, trust=trust, alpn="h2") as second,
    ):
        rests = [over_http1(first, 2), over_http2(second, 2)]
        start()
        one, two = (rest() for rest in rests)
        assert b"data: [DONE]" in one
        assert text_of(two)
        assert COMMENT not in one[one.index(b"data: ") :]
        assert COMMENT not in two[two.index(b"data: ") :]


def test_over_a_unix_socket_a_stream_is_kept_alive_and_answered(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with waking(tmp_path, listen={"uds": str(path)}) as (_, start), Plain(path) as link:
        rest = over_http1(link, 3)
        start()
        whole = rest()
        assert b"data: [DONE]" in whole
        assert COMMENT not in whole[whole.index(b"data: ") :]


# ---- several workers


def test_who_follows_in_another_worker_is_kept_alive_and_gets_the_same_bytes(tmp_path: Path) -> None:
    with ExitStack() as stack:
        running, start = stack.enter_context(waking(tmp_path, workers={"count": 2}))
        wires = [stack.enter_context(Wire(running.port)) for _ in range(12)]
        for wire in wires:
            wire.send(stream_request())
        got = [wire.read() for wire in wires]
        assert all(head.startswith(b"HTTP/1.1 200 ") for head in got)
        heads = [head.partition(b"\r\n\r\n")[0].lower() for head in got]
        assert sum(b"x-penstock-cache: miss" in head for head in heads) == 1
        assert sum(b"x-penstock-cache: coalesced" in head for head in heads) == 11
        assert running.metric("penstock_waiting_requests") == 1
        start()
        ends = []
        for wire, begun in zip(wires, got, strict=True):
            whole = begun
            while not whole.endswith(b"\r\n0\r\n\r\n"):
                whole += wire.read()
            assert COMMENT in whole
            ends.append(whole[whole.index(b"data: ") :])
        assert len(set(ends)) == 1
        assert starts(running) == 1
        again = httpx.post(f"{running.url}{CHAT}", json=chat("m", stream=True), trust_env=False)
        assert again.headers["x-penstock-cache"] == "HIT-L1"
        assert COMMENT not in again.content


# ---- a wake that fails


def test_a_server_that_ends_instead_of_starting_is_told_to_all_who_wait_in_their_dialects(
    tmp_path: Path,
) -> None:
    """Status and reason to those that are silent, a frame with both to those that are open; then the next is served."""
    gate, good = tmp_path / "gate", tmp_path / "good"
    wait = f"[ -e '{good}' ] && exec \"$@\"; while [ ! -e '{gate}' ]; do sleep 0.02; done; exit 3"
    command = ["/bin/sh", "-c", wait, "sh", *simulator()]
    with gateway(pooled(command, **KEEPING)) as running, ExitStack() as stack:
        opened = {path: stack.enter_context(Plain(running.port)) for path in GENERATING}
        silent = {path: stack.enter_context(Wire(running.port)) for path in GENERATING}
        for path, make in GENERATING.items():
            opened[path].send(request(path, json.dumps(make("m", stream=True)).encode()))
            silent[path].send(request(path, json.dumps(make("m")).encode()))
        for link in opened.values():
            link.until(COMMENT)
        wait_waiting(running, 2 * len(GENERATING))
        gate.touch()
        for path in GENERATING:
            refused = silent[path].reply()
            assert refused is not None
            assert refused.status == 503
            assert refused.header("retry-after")
            message = refused.json()["error"]["message"]
            assert "3" in str(message)
            frame = opened[path].until(b"\r\n0\r\n\r\n")
            error = json.loads(frame[frame.index(b"data: ") + 6 :].split(b"\n")[0])["error"]
            assert (error["code"], error["status"], error["message"]) == ("wake_failed", 503, message)
            assert (b"event: error\n" in frame) is (path in ("/v1/messages", "/v1/responses"))
        failed = running.metric("penstock_requests_total", model="m", status="503")
        assert failed == 2 * len(GENERATING)
        good.touch()
        wait_until(lambda: pool(running).get("phase") == "off", 30, "the next try may be made")
        answer = httpx.post(f"{running.url}{CHAT}", json=chat("m"), timeout=60, trust_env=False)
        assert answer.status_code == 200


# ---- a drain


def test_a_drain_ends_what_is_open_by_its_frame_and_what_is_silent_by_503(tmp_path: Path) -> None:
    with (
        waking(tmp_path, workers={"drain_timeout_s": 2, "count": 1}) as (running, _),
        Plain(running.port) as opened,
        Wire(running.port) as silent,
    ):
        opened.send(stream_request())
        opened.until(COMMENT)
        silent.send(request(CHAT, json.dumps(chat("m")).encode()))
        wait_waiting(running, 2)
        running.proc.send(signal.SIGTERM)
        refused = silent.reply()
        assert refused is not None
        assert (refused.status, refused.code) == (503, "draining")
        body, reset = opened.read_all()
        assert not reset
        assert body.endswith(b"\r\n0\r\n\r\n")
        frame = json.loads(body[body.index(b"data: ") + 6 :].split(b"\n")[0])["error"]
        assert (frame["status"], frame["code"]) == (503, "draining")
        assert running.proc.wait() == 0


# ---- a crowd


class Tenant(H2):
    """One tenant's requests, in order on one connection; notes when each began to be answered."""

    def __init__(self, port: int, name: str) -> None:
        self._plain = Plain(port)
        self._plain.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().__init__(self._plain, window=1 << 20)
        self._secret = secret_of(name)
        self.asked_s: dict[int, float] = {}
        self.began_s: dict[int, float] = {}

    def _open(self, fields: list[tuple[str, str]], *, end: bool) -> int:
        return super()._open([*fields, ("authorization", f"Bearer {self._secret}")], end=end)

    def ask(self, body: bytes) -> int:
        stream = self.request(body)
        self.asked_s[stream] = time.monotonic()
        return stream

    def turn(self, *, acknowledge: bool = True) -> bool:
        more = super().turn(acknowledge=acknowledge)
        now = time.monotonic()
        for stream, body in self.body.items():
            if body:
                self.began_s.setdefault(stream, now)
        return more

    def take(self) -> None:
        """What has come, without waiting."""
        waiting = select.poll()  # a run has more descriptors than select can name
        waiting.register(self._plain.socket, select.POLLIN)
        while waiting.poll(0):
            assert self.turn()

    def close(self) -> None:
        self._plain.socket.close()


TENANTS = 5


def crowd(folder: Path, each: int) -> None:
    """So many at once of each tenant, half of them streams, for a pool at zero."""
    names = [f"t{n}" for n in range(TENANTS)]
    keys = folder / "keys.json"
    keys.write_text(key_file(*names))
    settings = {"max_concurrent": 1, "max_queue": 2000}
    with (
        waking(
            *(folder, "--decode-ms", "0", "--record", "2000"),
            settings=settings,
            listen={"http": "auto"},
            cache={"mode": "off", "l1": {"size": "32MiB"}},
            keys={"file": str(keys)},
        ) as (running, start),
        ExitStack() as stack,
    ):
        tenants = [Tenant(running.port, name) for name in names]
        for tenant in tenants:
            stack.callback(tenant.close)
        sent: dict[str, tuple[int, int]] = {}
        streams: list[list[int]] = [[] for _ in tenants]
        for n in range(each):
            for t, tenant in enumerate(tenants):
                body = json.dumps(chat("m", stream=n % 2 == 0, user=f"{t} {n}", max_tokens=1)).encode()
                sent[hashlib.sha256(body).hexdigest()] = (t, n)
                streams[t].append(tenant.ask(body))
                tenant.ping()  # the next one comes later
        wait_waiting(running, TENANTS * each)

        def kept(tenant: Tenant, mine: list[int]) -> bool:
            tenant.take()
            return all(COMMENT in tenant.body[one] for one in mine[::2])

        for tenant, mine in zip(tenants, streams, strict=True):
            wait_until(lambda tenant=tenant, mine=mine: kept(tenant, mine), 30, "a comment in each stream")  # type: ignore[misc]
            assert not any(tenant.body[one] for one in mine[1::2])
            assert all(tenant.began_s[one] - tenant.asked_s[one] >= SILENT_S - 0.05 for one in mine[::2])
        start()
        for tenant, mine in zip(tenants, streams, strict=True):
            for n, one in enumerate(mine):
                body = tenant.finish(one)
                assert tenant.status[one] == 200
                if n % 2:
                    assert json.loads(body)["choices"]
                else:
                    assert body.startswith(COMMENT)
                    assert b"error" not in body
                    assert body.endswith(b"data: [DONE]\n\n")
        assert starts(running) == 1
        url = pool(running)["members"][0]["url"]
        recent = httpx.get(f"{url}/sim/stats", trust_env=False).json()["recent"]
        arrived = [sent[one["body_sha256"]] for one in recent if one["body_sha256"] in sent]
        assert len(arrived) == TENANTS * each
        for t in range(TENANTS):
            assert [n for tenant, n in arrived if tenant == t] == list(range(each))
        assert running.metric("penstock_requests_total", model="m", status="200") == TENANTS * each
        stack.close()
        nothing_left(running)


def test_a_hundred_at_once_for_a_pool_at_zero_are_all_answered_after_one_start(tmp_path: Path) -> None:
    """Streams are kept alive, after the silent time and not before; each tenant's in order."""
    crowd(tmp_path, 20)


# ---- SDKs, with their own settings


def _stream_with_openai(url: str) -> str:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x") as client:
        chunks = client.chat.completions.create(**chat("m", user="stream"), stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def _ask_with_openai(url: str) -> str:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x") as client:
        answer = client.chat.completions.create(**chat("m", user="whole"))
        return answer.choices[0].message.content or ""


def _stream_with_anthropic(url: str) -> str:
    with (
        anthropic.Anthropic(base_url=url, api_key="x") as client,
        client.messages.stream(**message("m")) as stream,
    ):
        return "".join(stream.text_stream)


@pytest.mark.parametrize(
    ("startup_s", "terms"),
    [
        pytest.param(1.0, KEEPING, id="scaled"),
        pytest.param(90.0, {}, id="90 s", marks=[pytest.mark.soak, pytest.mark.timeout(300)]),
    ],
)
def test_the_sdks_wait_through_a_wake_with_their_default_settings(
    startup_s: float, terms: dict[str, Any]
) -> None:
    """One request of each kind, once: nothing is asked again."""
    command = simulator("--startup-s", str(startup_s))
    config = pooled(command, **{"ready_timeout_s": 300, **terms})
    asks = (_stream_with_openai, _ask_with_openai, _stream_with_anthropic)
    with gateway(config) as running, ThreadPoolExecutor(len(asks)) as threads:
        began = time.monotonic()
        assert all(threads.map(lambda ask: ask(running.url), asks))
        assert time.monotonic() - began >= startup_s
        assert starts(running) == 1
        assert running.metric("penstock_requests_total", model="m") == len(asks)
        assert running.metric("penstock_requests_total", model="m", status="200") == len(asks)
