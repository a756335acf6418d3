"""TLS, HTTP/2 and Unix sockets towards clients: requests, streams, leaving, and streams longer than can be paced."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from ..support.gateway import Gateway, gateway, one_model
from ..support.procs import wait_until
from ..support.scripted import certificate
from ..support.sim import Simulator, simulator
from .listener import CHAT, H2, MIB, Plain, chat, chat_request, wait_quiet

LONG = 24 * MIB
JSON = {"content-type": "application/json"}
KINDS = ["tls", "tls-h2", "h2c", "uds"]


@dataclass
class Edge:
    """One way in: a gateway, and clients that take that way."""

    kind: str
    gate: Gateway
    sim: Simulator
    trust: Path
    socket: Path

    @property
    def url(self) -> str:
        return self.gate.url

    def client(self) -> httpx.Client:
        h2 = self.kind in ("tls-h2", "h2c")
        transport = httpx.HTTPTransport(
            verify=_trusting(self.trust),
            http1=not h2,
            http2=h2,
            uds=str(self.socket) if self.kind == "uds" else None,
            trust_env=False,
        )
        return httpx.Client(transport=transport, base_url=self.url, timeout=60)

    def plain(self, **options: Any) -> Plain:
        if self.kind == "uds":
            return Plain(self.socket, **options)
        if self.kind == "h2c":
            return Plain(self.gate.port, **options)
        return Plain(
            self.gate.port, trust=self.trust, alpn="h2" if self.kind == "tls-h2" else None, **options
        )


def _trusting(certificate: Path) -> Any:
    import ssl

    return ssl.create_default_context(cafile=certificate)


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with simulator(model="m") as running:
        yield running


Open = Callable[[str], Edge]


@pytest.fixture(scope="module")
def opened(sim: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """Each way in, opened when it is first asked for."""
    folder = tmp_path_factory.mktemp("edge")
    trust = certificate(folder, "127.0.0.1")
    edges: dict[str, Edge] = {}
    with ExitStack() as stack:

        def open_edge(kind: str) -> Edge:
            sim.reset()
            if kind not in edges:
                socket = folder / f"{kind}.sock"
                listen: dict[str, Any] = {"http": "1" if kind in ("tls", "uds") else "auto"}
                if kind.startswith("tls"):
                    listen["tls"] = {"cert": str(trust), "key": str(trust)}
                if kind == "uds":
                    listen["uds"] = str(socket)
                gate = stack.enter_context(gateway({**one_model(sim.url), "listen": listen}))
                edges[kind] = Edge(kind, gate, sim, trust, socket)
            return edges[kind]

        yield open_edge


@pytest.mark.parametrize("kind", KINDS)
def test_requests_and_streams_are_answered(opened: Open, kind: str) -> None:
    edge = opened(kind)
    with edge.client() as client:
        for _ in range(3):
            answer = client.post(CHAT, json=chat())
            assert answer.status_code == 200, answer.text
            assert answer.http_version == ("HTTP/2" if "h2" in kind else "HTTP/1.1")
            whole = answer.json()["choices"][0]["message"]["content"]
            with client.stream("POST", CHAT, json=chat(stream=True)) as stream:
                events = [line[6:] for line in stream.iter_lines() if line.startswith("data: ")]
            assert events.pop() == "[DONE]"
            parts = [json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events]
            assert "".join(parts) == whole
        big = client.post(CHAT, json=chat(messages=[{"role": "user", "content": "a" * MIB}]))
        assert big.status_code == 200
        assert client.post(CHAT, content=b"{", headers=JSON).status_code == 400
        assert client.get("/v1/nothing").status_code == 404
    wait_quiet(edge.gate, edge.sim)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_client_that_leaves_ends_its_upstream_call(opened: Open, kind: str, stream: bool) -> None:
    edge = opened(kind)
    edge.sim.faults({"kind": "hang", "stage": "stream" if stream else "headers"})
    aborted = edge.sim.stats()["aborted"]
    link = edge.plain()
    if "h2" in kind:
        client = H2(link)
        client.request(json.dumps(chat(stream=stream)).encode())
    else:
        link.send(chat_request(stream=stream))
    wait_until(lambda: edge.sim.stats()["in_flight"] == 1, what="the call upstream")
    link.socket.close()
    wait_until(lambda: edge.sim.stats()["aborted"] > aborted, what="the end of the call upstream")
    edge.sim.reset()
    wait_quiet(edge.gate, edge.sim)


@pytest.mark.parametrize("length", [2000, 200_000, None])
def test_a_body_over_http_2_that_breaks_off_with_its_connection_holds_nothing(
    opened: Open, length: int | None
) -> None:
    edge = opened("h2c")
    before = edge.gate.metric("penstock_requests_total")
    for _ in range(20):
        with edge.plain() as link:
            client = H2(link)
            client.begin(b'{"model": "m", ', length)
            client.ping()
    wait_until(
        lambda: edge.gate.metric("penstock_requests_total") >= before + 20,
        what="the end of every request",
    )
    wait_quiet(edge.gate, edge.sim)


@pytest.mark.parametrize("trailing", [True, False], ids=["an empty frame", "the last data"])
def test_a_long_body_over_http_2_ends_with(opened: Open, trailing: bool) -> None:
    edge = opened("h2c")
    body = json.dumps(chat(messages=[{"role": "user", "content": "a" * 300_000}])).encode()
    for length in (len(body), None):
        with edge.plain() as link:
            client = H2(link)
            stream = client.begin(b"", length)
            client.go_on(stream, body, end=not trailing)
            if trailing:
                client.go_on(stream, b"", end=True)
            assert b"chat.completion" in client.finish(stream)
    wait_quiet(edge.gate, edge.sim)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
@pytest.mark.parametrize("kind", ["tls-h2", "h2c"])
def test_a_stream_of_http_2_that_is_reset_ends_its_own_call_and_no_other(
    opened: Open, kind: str, stream: bool
) -> None:
    edge = opened(kind)
    edge.sim.faults({"kind": "hang", "stage": "stream" if stream else "headers"})
    aborted = edge.sim.stats()["aborted"]
    body = json.dumps(chat(stream=stream)).encode()
    with edge.plain() as link:
        client = H2(link)
        one, other = client.request(body), client.request(body)
        wait_until(lambda: edge.sim.stats()["in_flight"] == 2, what="both calls upstream")
        client.cancel(one)
        wait_until(lambda: edge.sim.stats()["aborted"] == aborted + 1, what="the end of one call")
        edge.sim.faults({})
        assert (b"[DONE]" if stream else b"chat.completion") in client.finish(other)
        assert client.status[other] == 200
    edge.sim.reset()
    wait_quiet(edge.gate, edge.sim)


def test_many_streams_share_a_connection_of_http_2(opened: Open) -> None:
    edge = opened("tls-h2")
    with edge.plain() as link:
        client = H2(link)
        streams = [client.request(json.dumps(chat(stream=True, seed=n)).encode()) for n in range(100)]
        for stream in streams:
            assert client.finish(stream).endswith(b"data: [DONE]\n\n")
    wait_quiet(edge.gate, edge.sim)


def test_a_fast_reader_over_tls_gets_every_byte_of_a_long_stream(opened: Open) -> None:
    edge = opened("tls")
    for event_bytes in (64 << 10, 300):
        size = LONG if event_bytes > 1000 else 6 * MIB
        edge.sim.faults({"kind": "oversized", "bytes": size, "event_bytes": event_bytes})
        with edge.client() as client, client.stream("POST", CHAT, json=chat(stream=True)) as stream:
            received, last = 0, b""
            for piece in stream.iter_raw():
                received += len(piece)
                last = (last + piece)[-64:]
        assert last.endswith(b"data: [DONE]\n\n")
        assert received >= size
    wait_quiet(edge.gate, edge.sim)


def test_a_slow_reader_over_tls_pauses_its_upstream_and_gets_every_byte(opened: Open) -> None:
    edge = opened("tls")
    edge.sim.faults({"kind": "oversized", "bytes": LONG, "event_bytes": 1000})
    pauses = edge.gate.metric("penstock_stream_pauses_total")
    with edge.plain(receive_buffer=64 << 10) as link:
        link.send(chat_request(stream=True))
        # paused: the backend gets rid of no more
        wait_until(lambda: edge.sim.stats()["in_flight"] == 1, what="the call upstream")
        received, last = 0, b""
        while not last.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
            piece = link.socket.recv(16 << 10)
            assert piece, last
            received += len(piece)
            last = (last + piece)[-64:]
        assert received >= LONG
    wait_quiet(edge.gate, edge.sim)
    assert edge.gate.metric("penstock_stream_pauses_total") > pauses


def test_a_client_over_tls_that_does_not_read_costs_no_more_than_the_bound(opened: Open) -> None:
    edge = opened("tls")
    before = _resident(edge.gate)
    edge.sim.faults({"kind": "oversized", "bytes": 400 * MIB, "event_bytes": 1000})
    pauses = edge.gate.metric("penstock_stream_pauses_total")
    with edge.plain(receive_buffer=64 << 10) as link:
        link.send(chat_request(stream=True))
        wait_until(lambda: edge.sim.stats()["in_flight"] == 1, what="the call upstream")
        for _ in range(100):  # it has gone as far as it goes when nothing grows any more
            edge.gate.metrics()
        assert _resident(edge.gate) - before < 32 * MIB
    wait_until(lambda: edge.sim.stats()["in_flight"] == 0, what="the end of the call")
    assert edge.gate.metric("penstock_stream_pauses_total") > pauses
    edge.sim.reset()
    wait_quiet(edge.gate, edge.sim)


@pytest.mark.parametrize("kind", ["tls-h2", "h2c", "uds"])
def test_a_stream_that_cannot_be_paced_has_4_mib_and_is_told_so(opened: Open, kind: str) -> None:
    edge = opened(kind)
    with edge.client() as client:
        for size, whole in ((3 * MIB, True), (LONG, False)):
            edge.sim.faults({"kind": "oversized", "bytes": size})
            with client.stream("POST", CHAT, json=chat(stream=True)) as stream:
                body = b"".join(stream.iter_raw())
            last = body.rstrip().rpartition(b"\n\n")[2]
            if whole:
                assert last == b"data: [DONE]"
            else:
                error = json.loads(last.removeprefix(b"data: "))["error"]
                assert error["code"] == "stream_unpaced"
                assert "use HTTP/1.1 over TCP" in error["message"]
                assert 4 * MIB < len(body) < 6 * MIB
                assert b"[DONE]" not in body
    wait_quiet(edge.gate, edge.sim)


@pytest.mark.parametrize("kind", ["tls-h2", "h2c", "uds", "tls"])
def test_a_long_answer_that_is_no_stream_comes_whole(opened: Open, kind: str) -> None:
    edge = opened(kind)
    edge.sim.faults({"kind": "oversized", "bytes": LONG})
    with edge.client() as client:
        answer = client.post(CHAT, json=chat())
    assert answer.status_code == 200
    assert int(answer.headers["content-length"]) == len(answer.content) >= LONG
    wait_quiet(edge.gate, edge.sim)


@pytest.mark.parametrize("http2", [False, True], ids=["1", "2"])
def test_the_openai_sdk_works_over_tls(opened: Open, http2: bool) -> None:
    edge = opened("tls-h2" if http2 else "tls")
    own = httpx.Client(verify=_trusting(edge.trust), http2=http2, trust_env=False)
    with OpenAI(base_url=f"{edge.url}/v1", api_key="k", http_client=own, max_retries=0) as client:
        whole = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hello"}])
        parts = client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "Hello"}], stream=True
        )
        text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
        assert text == whole.choices[0].message.content
    wait_quiet(edge.gate, edge.sim)


def test_a_client_that_speaks_no_tls_is_closed_and_the_next_one_served(opened: Open) -> None:
    edge = opened("tls")
    with Plain(edge.gate.port) as link:
        got, _ = link.send(b"GET /health HTTP/1.1\r\nhost: t\r\n\r\n").read_all()
        assert not got.startswith(b"HTTP/")
    with edge.client() as client:
        assert client.get("/health").is_success


def _resident(gate: Gateway) -> float:
    return gate.metric("penstock_process_resident_bytes", process="worker-0")


def test_the_fields_of_a_request_over_http_2_are_bounded(opened: Open) -> None:
    def fields(kib: int) -> dict[str, str]:
        return {f"x-{number}": "a" * 1024 for number in range(kib)}

    with opened("h2c").client() as client:
        assert client.get("/health", headers=fields(40)).status_code == 200
        try:
            refused = client.get("/health", headers=fields(90)).status_code == 431
        except httpx.TransportError:
            refused = True
        assert refused
        assert client.get("/health").status_code == 200
