"""A request's path through a real worker to a simulated backend: what is decoded, what is sent, what is refused."""

import ast
import asyncio
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock import gateway as gateway_package
from penstock.cache.rows import read_counters
from penstock.gateway.endpoints import ENDPOINTS, Endpoint
from penstock.gateway.metrics import TASKS, series
from penstock.gateway.parse import Parser, Request
from penstock.gateway.raw import RawRequest
from penstock.gateway.schema import Routed
from penstock.gateway.worker import TICK_S

from ..support.dataplane import DataPlane, data_plane
from ..support.sim import Simulator, simulator
from ..support.wire import Reply, Wire, ask, request
from ..unit.requests import SMALLEST, form

MODEL, ALIAS = "sim-model", "an-alias"
STREAMING = {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"}


def config(sim: Simulator, **listen: Any) -> dict[str, Any]:
    return {
        "listen": {"host": "127.0.0.1", **listen},
        "models": {
            MODEL: {"aliases": [ALIAS], "backends": [{"url": sim.url}]},
            "down": {"backends": [{"url": "http://127.0.0.1:9"}]},
        },
    }


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with simulator("--no-any-model") as running:
        yield running


@pytest.fixture(scope="module")
def plane(sim: Simulator) -> Iterator[DataPlane]:
    with data_plane(config(sim)) as running:
        yield running


def body_of(path: str, model: str, stream: bool) -> tuple[bytes, str]:
    if ENDPOINTS[path].multipart:
        return form(
            ("model", model.encode()),
            ("response_format", b"json"),
            *([("stream", b"true")] if stream else []),
        )
    fields = {"model": model, **SMALLEST[path]} | ({"stream": True} if stream else {})
    return json.dumps(fields, indent=1).encode(), "application/json"


# ---- one decode, the very same bytes


class Watched(Parser):
    """The worker's own parser, its decodes counted and its requests kept."""

    def __init__(self) -> None:
        self.decodes = 0
        self.received: list[bytes] = []
        whole, routed = msgspec.json.Decoder().decode, msgspec.json.Decoder(Routed).decode

        def decode(body: bytes) -> Any:
            self.decodes += 1
            return whole(body)

        def decode_routed(body: bytes) -> Routed:
            self.decodes += 1
            return routed(body)

        super().__init__(decode, decode_routed)

    def parse(self, endpoint: Endpoint, raw: RawRequest) -> Request:
        self.received.append(raw.body)
        return super().parse(endpoint, raw)


@pytest.fixture
def watched(plane: DataPlane) -> Iterator[tuple[Watched, list[bytes | None]]]:
    """The parser of the running worker, and the bodies that its pools were given."""
    parser, sent = Watched(), []
    pool = next(b.pool for b in plane.worker.fleet.backends if b.identity.startswith(MODEL))
    usual, call = plane.worker.pipeline._parser, pool.call

    async def kept(head: bytes, body: bytes | None, *args: Any, **options: Any) -> Any:
        sent.append(body)
        return await call(head, body, *args, **options)

    plane.worker.pipeline._parser = parser
    pool.call = kept  # type: ignore[method-assign]
    yield parser, sent
    plane.worker.pipeline._parser = usual
    pool.call = call  # type: ignore[method-assign]


@pytest.mark.parametrize("size", [0, 70_000, 1_200_000], ids=["small", "long", "over 1 MiB"])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("name", [MODEL, ALIAS], ids=["model", "alias"])
@pytest.mark.parametrize("path", sorted(ENDPOINTS))
def test_a_request_is_decoded_once_and_its_bytes_go_upstream_untouched(
    plane: DataPlane,
    watched: tuple[Watched, list[bytes | None]],
    path: str,
    name: str,
    stream: bool,
    size: int,
) -> None:
    parser, sent = watched
    body, content_type = body_of(path, name, stream)
    multipart = ENDPOINTS[path].multipart
    if size and not multipart:
        body = body[:-1] + b',"user":"' + b"x" * size + b'"}'
    reply = ask(plane.port, path, body, headers={"content-type": content_type})
    assert reply.status != 500
    assert reply.header("x-penstock-backend")
    assert parser.decodes == (0 if multipart else 1)
    assert parser.received == [body]
    assert len(sent) == 1
    if name == MODEL:
        assert sent[0] is parser.received[0], "the very object, not a copy"
    else:
        assert sent[0] == body.replace(ALIAS.encode(), MODEL.encode())


def test_no_other_module_of_the_gateway_decodes_requests() -> None:
    folder = Path(str(gateway_package.__path__[0]))
    decoding = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Attribute)
                and node.attr in ("decode", "Decoder", "loads", "load")
                and isinstance(node.value, ast.Attribute | ast.Name)
                and ast.unparse(node.value).endswith("json")
            ):
                decoding.add(file.relative_to(folder).as_posix())
    # the dialects look into answers, once they have ended: may they be kept? And of a body over 1 MiB, which is not
    # decoded, affinity reads where a conversation begins, and the errand of a client with a key looks for a priority;
    # where requests go upstream together, their bodies and answers are cut into pieces
    seldom = {"affinity.py", "errand.py", "portion.py", "batch_text.py", "counting.py"}
    assert {name for name in decoding if not name.startswith(("config/", "dialects/"))} - seldom == {
        "parse.py"
    }


@pytest.mark.parametrize("path", sorted(ENDPOINTS))
def test_every_endpoint_answers_through_the_gateway_as_the_backend_does(
    plane: DataPlane, sim: Simulator, path: str
) -> None:
    for stream in (False, True) if path in STREAMING else (False,):
        body, content_type = body_of(path, MODEL, stream)
        ours = ask(plane.port, path, body, headers={"content-type": content_type, "x-request-id": "same"})
        theirs = ask(sim.port, path, body, headers={"content-type": content_type, "x-request-id": "same"})
        assert (ours.status, ours.header("content-type")) == (200, theirs.header("content-type"))
        assert ours.body == theirs.body
        assert ours.header("x-request-id") == "same"
        assert ours.header("x-penstock-cache") == "BYPASS"


# ---- what a client is refused


def chat(**fields: Any) -> bytes:
    return msgspec.json.encode({"model": MODEL, **SMALLEST["/v1/chat/completions"], **fields})


def error(reply: Reply, status: int, code: str) -> Reply:
    assert (reply.status, reply.code) == (status, code)
    assert reply.header("content-type") == "application/json"
    assert reply.header("x-request-id")
    return reply


@pytest.mark.parametrize("path", [*sorted(ENDPOINTS), "/v1/responses/resp_1/cancel"])
def test_a_wrong_method_on_a_proxied_path_is_405_with_allow(plane: DataPlane, path: str) -> None:
    for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "FOO"):
        reply = ask(plane.port, path, method=method)
        assert (reply.status, reply.header("allow")) == (405, "POST")
        assert reply.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/health", "/ready", "/v1/models", f"/v1/models/{MODEL}"])
def test_a_wrong_method_on_our_own_paths_is_405_with_allow(plane: DataPlane, path: str) -> None:
    for method in ("POST", "DELETE"):
        assert error(ask(plane.port, path, method=method), 405, "method_not_allowed").header("allow") == "GET"
    with Wire(plane.port) as wire:
        reply = wire.send(request(path, method="HEAD")).reply(to_head=True)
        assert reply is not None
        assert (reply.status, reply.header("allow")) == (405, "GET")


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/",
            "/v1",
            "/v1/",
            "/v1/chat",
            "/v1/chat/completions/",
            "//v1/chat/completions",
            "/V1/chat/completions",
        ),
        *(
            "/sleep",
            "/wake_up",
            "/is_sleeping",
            "/collective_rpc",
            "/reset_prefix_cache",
            "/pause",
            "/resume",
        ),
        *("/server_info", "/scale_elastic_ep", "/metrics", "/load", "/version", "/docs", "/openapi.json"),
        *(
            "/v1/../sleep",
            "/v1/%2e%2e/sleep",
            "/v1/chat/completions/../../../sleep",
            "/./sleep",
            "/sleep%00",
            "/sleep/",
        ),
        *(
            "/v1/load_lora_adapter",
            "/invocations",
            "/ping",
            "/tokenizer_info",
            "/start_profile",
            "/gateway/status",
        ),
        *("/v1/responses/..", "/v1/responses/a%2f..%2f..%2fsleep", "/v1/responses/a%3fb", "/v1/responses/"),
    ],
)
def test_anything_outside_the_list_is_404_and_reaches_no_backend(
    plane: DataPlane, sim: Simulator, path: str
) -> None:
    before = sim.stats()["requests"]
    for method in ("GET", "POST"):
        error(ask(plane.port, path, chat() if method == "POST" else b"", method=method), 404, "not_found")
    assert sim.stats()["requests"] == before


def test_a_missing_body_is_411(plane: DataPlane) -> None:
    error(ask(plane.port), 411, "body_missing")
    with Wire(plane.port) as wire:
        reply = wire.send(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\r\n"
        ).reply()
        assert reply is not None
        error(reply, 411, "body_missing")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/audio/transcriptions"])
def test_another_media_type_is_415(plane: DataPlane, path: str) -> None:
    error(
        ask(plane.port, path, chat(), headers={"content-type": "text/plain"}), 415, "unsupported_media_type"
    )


def test_on_messages_errors_speak_anthropic(plane: DataPlane) -> None:
    reply = ask(plane.port, "/v1/messages", b"{}")
    assert reply.status == 400
    assert reply.json()["type"] == "error"
    assert set(reply.json()["error"]) == {"type", "message"}


def test_an_unknown_model_is_404_and_the_message_lists_those_there_are(plane: DataPlane) -> None:
    reply = error(ask(plane.port, body=chat(model="nope")), 404, "model_not_found")
    message = str(reply.json()["error"]["message"])
    assert all(f in message for f in (MODEL, ALIAS, "down"))
    assert reply.json()["error"]["param"] == "model"


def test_a_body_over_the_limit_is_413_before_it_is_sent(plane: DataPlane) -> None:
    with Wire(plane.port) as wire:
        head = request(headers={"content-length": str(20 << 20)})
        reply = wire.send(head).reply()
        assert reply is not None
        error(reply, 413, "body_too_large")


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    parts = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return head + b"transfer-encoding: chunked\r\n\r\n" + parts + end


def test_a_chunked_body_over_the_limit_is_413_while_it_comes(plane: DataPlane) -> None:
    with Wire(plane.port) as wire:
        wire.send(chunked(*[b"x" * (1 << 20)] * 11, end=b""))
        reply = wire.reply()
        assert reply is not None
        error(reply, 413, "body_too_large")


@pytest.mark.parametrize("size", [1, 7, 100, 100_000])
def test_a_chunked_body_arrives_whole_whatever_its_chunks(plane: DataPlane, size: int) -> None:
    body = chat(user="x" * (1000 if size < 100 else 300_000))
    with Wire(plane.port) as wire:
        reply = wire.send(chunked(*(body[i : i + size] for i in range(0, len(body), size)))).reply()
        assert reply is not None
        assert reply.status == 200
    assert reply.body == ask(plane.port, body=body).body


BROKEN = {
    "chunked, between chunks": chunked(chat(), end=b""),
    "chunked, in a chunk": chunked(b"", end=b"")[:-5] + b"400\r\n{",
    "chunked, in the last one": chunked(chat(), end=b"0\r\n"),
    "chunked, a bad size": chunked(chat(), end=b"zz\r\n"),
    "chunked, nothing of it": chunked(end=b""),
    "of a length, small": request(body=chat(), headers={"content-length": "5000"}),
    "of a length, long": request(body=chat(), headers={"content-length": "500000"}),
    "of a length, nothing of it": request(headers={"content-length": "50"}),
}


@pytest.mark.parametrize("fin", [True, False], ids=["fin", "rst"])
@pytest.mark.parametrize("kind", sorted(BROKEN))
def test_a_body_that_broke_off_is_400_or_closed_and_never_forwarded(
    plane: DataPlane, sim: Simulator, kind: str, fin: bool
) -> None:
    before = sim.stats()["requests"]
    with Wire(plane.port) as wire:
        wire.send(BROKEN[kind])
        if fin:
            reply = wire.finish().reply()
            assert reply is None or reply.status == 400
        else:
            wire.reset()
    plane.wait_settled()
    assert sim.stats()["requests"] == before


def test_a_chunked_body_that_was_whole_when_its_client_left_is_not_taken_for_broken(plane: DataPlane) -> None:
    with Wire(plane.port) as wire:
        reply = wire.send(chunked(chat())).reply()
    assert reply is not None
    assert reply.status == 200


@pytest.mark.parametrize("line", ["GET /health HTTP/1.1", "GET http://x/health HTTP/1.1"])
def test_http_1_1_without_host_is_400(plane: DataPlane, line: str) -> None:
    with Wire(plane.port) as wire:
        reply = wire.send(f"{line}\r\n\r\n".encode()).reply()
        assert reply is not None
        error(reply, 400, "missing_host")


def test_http_1_0_needs_no_host(plane: DataPlane) -> None:
    with Wire(plane.port) as wire:
        reply = wire.send(b"GET /health HTTP/1.0\r\n\r\n").reply()
        assert reply is not None
        assert reply.status == 200


def test_a_query_that_is_not_ascii_goes_upstream_encoded(plane: DataPlane) -> None:
    reply = ask(plane.port, "/v1/chat/completions?n=ä&p=%20".encode().decode("latin-1"), chat())
    assert reply.status == 200


def test_expect_continue_is_met(plane: DataPlane) -> None:
    with Wire(plane.port) as wire:
        body = chat()
        wire.send(request(headers={"expect": "100-continue", "content-length": str(len(body))}))
        assert b"100" in wire.read()
        reply = wire.send(body).reply()
        assert reply is not None
        assert reply.status == 200


# ---- bodies that do not come


@pytest.mark.parametrize(
    "sent",
    [
        request(headers={"content-length": "50"}),
        request(body=b"{", headers={"content-length": "50"}),
        request(body=b"{", headers={"content-length": "500000"}),
        chunked(b"{", end=b""),
    ],
    ids=["nothing", "a part", "a part of a long one", "a chunk"],
)
def test_a_body_that_does_not_come_is_408_and_holds_nothing(sim: Simulator, sent: bytes) -> None:
    with data_plane(config(sim, body_timeout_s=0.2)) as plane, Wire(plane.port) as wire:
        reply = wire.send(sent).reply()
        assert reply is not None
        error(reply, 408, "body_timeout")
        plane.wait_settled()


def test_bytes_held_for_bodies_are_bounded_and_given_back(sim: Simulator) -> None:
    settings = config(sim)
    settings["limits"] = {"max_buffered": "12MiB", "max_response": "12MiB"}
    with data_plane(settings) as plane, Wire(plane.port) as first:
        first.send(request(body=b" " * ((9 << 20) - 1), headers={"content-length": str(9 << 20)}))
        plane.wait_for(held=9 << 20)
        reply = error(ask(plane.port, body=chat(user="x" * (4 << 20))), 429, "buffers_full")
        assert reply.header("retry-after")
        assert ask(plane.port, body=chat(user="x" * (1 << 20))).status == 200
        first.reset()
        plane.wait_for(held=0)
        assert ask(plane.port, body=chat(user="x" * (4 << 20))).status == 200


# ---- what we answer ourselves


def test_health_ready_and_models_answer_from_this_worker(plane: DataPlane, sim: Simulator) -> None:
    before = sim.stats()["requests"]
    assert ask(plane.port, "/health", method="GET").status == 200
    assert ask(plane.port, "/ready", method="GET").status == 200
    listed: Any = ask(plane.port, "/v1/models", method="GET").json()
    assert [card["id"] for card in listed["data"]] == [MODEL, "down", ALIAS]
    shown: Any = ask(plane.port, f"/v1/models/{ALIAS}", method="GET").json()
    assert (shown["id"], shown["root"]) == (ALIAS, MODEL)
    error(ask(plane.port, "/v1/models/nope", method="GET"), 404, "model_not_found")
    assert sim.stats()["requests"] == before


def test_without_a_healthy_backend_a_model_is_503_but_never_not_found(sim: Simulator) -> None:
    with data_plane(config(sim)) as plane:
        for backend in plane.worker.fleet.backends:
            backend.up = False
        reply = error(ask(plane.port, body=chat()), 503, "no_healthy_backend")
        assert reply.header("retry-after")
        error(ask(plane.port, "/ready", method="GET"), 503, "no_healthy_backend")
        assert ask(plane.port, "/health", method="GET").status == 200
        shown: Any = ask(plane.port, f"/v1/models/{MODEL}", method="GET").json()
        assert shown["state"] == "down"


def test_a_draining_worker_is_not_ready_and_asks_clients_to_close(sim: Simulator) -> None:
    with data_plane(config(sim)) as plane:
        plane.call(plane.worker.begin_drain)
        error(ask(plane.port, "/ready", method="GET"), 503, "draining")
        reply = ask(plane.port, body=chat())
        assert reply.status == 200
        assert reply.header("connection") == "close"


def test_a_backend_that_refuses_is_502_and_leaves_nothing(plane: DataPlane) -> None:
    error(ask(plane.port, body=chat(model="down")), 502, "upstream_broken")
    plane.wait_settled()


def test_requests_on_one_connection_follow_each_other(plane: DataPlane) -> None:
    with Wire(plane.port) as wire:
        for number in range(3):
            reply = wire.send(request(body=chat(), headers={"x-request-id": f"n-{number}"})).reply()
            assert reply is not None
            assert (reply.status, reply.header("x-request-id")) == (200, f"n-{number}")
        wire.send(request(body=b"{") + request(body=chat()))
        replies = [wire.reply(), wire.reply()]
    assert [reply and reply.status for reply in replies] == [400, 200]


def test_counts_are_of_true_statuses(sim: Simulator) -> None:
    with data_plane(config(sim)) as plane:
        ask(plane.port, body=chat())
        ask(plane.port, body=b"{")
        ask(plane.port, body=chat(model="nope"))
        sim.faults({"kind": "cut_mid_stream", "how": "clean", "count": 1})
        streamed = ask(plane.port, body=chat(stream=True))
        assert streamed.status == 200
        assert b'"code":"upstream_incomplete"' in streamed.body
        plane.wait_settled()
        assert plane.statuses() == {"200": 1, "400": 1, "404": 1, "502": 1}
    sim.faults({})


def test_nodelay_is_set_towards_clients(plane: DataPlane) -> None:
    assert plane._listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_workers_tasks_are_counted_each_second_while_it_answers_nothing(sim: Simulator) -> None:
    with data_plane(config(sim)) as plane:
        plane.ticks = False

        def counted() -> int:
            """After a second's ticks."""
            for _ in range(round(1 / TICK_S)):
                plane.worker.tick(time.monotonic(), 0.0)
            return dict(read_counters(plane.segment, 0))[series(TASKS)][0]

        def more() -> list[asyncio.Task[bool]]:
            return [plane.loop.create_task(asyncio.Event().wait()) for _ in range(7)]

        plane.call(counted)
        before = plane.call(counted)
        made = plane.call(more)
        assert plane.call(counted) == before + 7
        plane.call(lambda: [task.cancel() for task in made])
