"""Whatever bytes a client sends: a response of the right kind or a closed connection, and nothing is left of it."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from penstock.gateway.endpoints import ENDPOINTS

from ..support.dataplane import DataPlane, data_plane
from ..support.gateway import Gateway, gateway, one_model
from ..support.procs import wait_until
from ..support.sim import simulator
from ..support.wire import Reply, Wire, request
from ..unit.requests import SMALLEST
from ..unit.test_parse import values

MODEL = "sim-model"
PATHS = sorted(ENDPOINTS)
OURS = ["/health", "/ready", "/v1/models", f"/v1/models/{MODEL}", "/v1/responses/resp_1", "/"]


@pytest.fixture(scope="module")
def plane() -> Iterator[DataPlane]:
    """One worker for all examples; what it logged and what it holds is looked at in between and at the end."""
    # canned: an answer costs the backend nothing, whatever was asked for
    with simulator(canned=True) as sim:
        listen = {"body_timeout_s": 5}
        with data_plane(
            {"listen": listen, "models": {MODEL: {"aliases": ["an-alias"], "backends": [{"url": sim.url}]}}}
        ) as running:
            yield running


def check(plane: DataPlane, reply: Reply | None) -> None:
    """No answer of the gateway's own is a 5xx: nothing here is anybody's fault but the client's."""
    assert not plane.trouble
    if reply is None:
        return
    if reply.header("x-penstock-backend") is None and reply.headed:
        assert reply.status < 500, reply
        if reply.status >= 400 and reply.body:
            assert "error" in reply.json()
    if reply.complete and reply.status >= 400 and reply.header("content-type") == "application/json":
        json.loads(reply.body or b"{}")


def exchange(plane: DataPlane, data: bytes, *, fin: bool) -> list[Reply]:
    """Every response to these bytes, until the connection closes (`fin`) or the first one is there."""
    replies = []
    with Wire(plane.port) as wire:
        wire.send(data)
        if fin:
            wire.finish()
        to_head = data.lstrip(b"\r\n").startswith(b"HEAD ")
        while (reply := wire.reply(to_head=to_head)) is not None:
            replies.append(reply)
            check(plane, reply)
            if not fin or to_head or not reply.complete:
                break
    check(plane, None)
    return replies


# ---- bodies


@given(path=st.sampled_from(PATHS), body=st.binary(max_size=300), chunk=st.integers(0, 40))
@example(path="/v1/chat/completions", body=b"[" * 100_000, chunk=0)
@example(path="/v1/chat/completions", body=b"\xff", chunk=0)
@example(path="/v1/chat/completions", body=b'{"model":"sim-model","messages":[{"role":"\\ud800"}]}', chunk=0)
@example(path="/v1/audio/transcriptions", body=b"--x--", chunk=0)
def test_any_bytes_as_body_get_an_answer(plane: DataPlane, path: str, body: bytes, chunk: int) -> None:
    media = "multipart/form-data; boundary=x" if ENDPOINTS[path].multipart else "application/json"
    if chunk:
        parts = [body[i : i + chunk] for i in range(0, len(body), chunk)]
        framed = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        head = (
            f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {media}\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        data = head.encode() + framed
    else:
        data = request(path, body, headers={"content-type": media})
    (reply,) = exchange(plane, data, fin=False)
    assert reply.complete
    assert reply.status in (200, 400, 404, 411, 415, 422) or reply.header("x-penstock-backend")


fields = st.dictionaries(
    st.sampled_from(
        [
            *(
                "messages",
                "prompt",
                "input",
                "temperature",
                "n",
                "seed",
                "tools",
                "stream_options",
                "max_tokens",
            ),
            *("store", "background", "previous_response_id", "user", "cache", "stream", "model", "anything"),
        ]
    ),
    values,
    max_size=5,
)


@given(path=st.sampled_from(sorted(SMALLEST)), more=fields, name=st.sampled_from([MODEL, "an-alias", "nope"]))
@example(path="/v1/responses", more={"previous_response_id": "resp_1", "stream": True}, name="an-alias")
@example(path="/v1/chat/completions", more={"user": "x" * 1_500_000}, name="an-alias")
@example(path="/v1/chat/completions", more={"user": [{"model": "an-alias"}] * 100_000}, name="an-alias")
@example(path="/v1/chat/completions", more={"n": 10**400}, name=MODEL)
def test_any_json_as_body_gets_an_answer(
    plane: DataPlane, path: str, more: dict[str, Any], name: str
) -> None:
    body = json.dumps({"model": name, **SMALLEST[path], **more}).encode()
    (reply,) = exchange(plane, request(path, body), fin=False)
    assert reply.complete
    assert reply.status in (200, 400, 404) or reply.header("x-penstock-backend")


@given(value=values, path=st.sampled_from(PATHS))
def test_any_json_at_all_gets_an_answer(plane: DataPlane, value: Any, path: str) -> None:
    (reply,) = exchange(plane, request(path, json.dumps(value).encode()), fin=False)
    assert reply.status in (400, 404, 415)


# ---- request lines and headers

token = st.text(alphabet="ABCDEFGHIJKLMNOPQRSTUVWXYZabcz0129!#$%&'*+-.^_`|~", min_size=1, max_size=12)
# what a parser lets through, so that most examples reach the application; the rest is test_any_bytes_at_all's
shown = st.lists(st.sampled_from([*range(0x21, 0x7F), *range(0x80, 0x100)]), max_size=16).map(bytes)
method = st.sampled_from(
    ["POST"] * 16 + ["GET", "DELETE", "HEAD", "OPTIONS", "PUT", "CONNECT", "TRACE", "PRI", "FOO"]
)
paths = st.sampled_from([path.encode() for path in [*PATHS, *OURS]])
queries = st.sampled_from([b"", b"", b"?", b"?a=b", b"?a=\xc3\xa4", b"?a=\xff\xfe", b"?a=%00&b"])
wild = st.sampled_from([b"*", b"x:80", b"http://x/health", b"//", b"/%00", b"/%2e%2e", b"/../x", b"/#f", b""])
target = st.builds(bytes.__add__, paths, queries) | st.builds(bytes.__add__, paths, wild) | wild | shown
name = (
    st.sampled_from(
        [
            *(
                "Host",
                "Content-Type",
                "Content-Length",
                "Transfer-Encoding",
                "Connection",
                "Expect",
                "Upgrade",
                "TE",
            ),
            *(
                "Authorization",
                "X-Request-Id",
                "X-Penstock-Cache",
                "Cookie",
                "Trailer",
                "Keep-Alive",
                "Accept-Encoding",
            ),
            *(
                "HTTP2-Settings",
                "Sec-WebSocket-Key",
                "Sec-WebSocket-Version",
                "Range",
                "If-Match",
                "Content-Encoding",
            ),
        ]
    )
    | token
).map(str.encode)
value = st.sampled_from(
    [
        *(
            b"application/json",
            b"chunked",
            b"chunked, chunked",
            b"gzip, chunked",
            b"identity",
            b"0",
            b"1",
            b"50",
        ),
        *(b"-1", b"+5", b"5, 5", b"99999999999999999999", b"close", b"keep-alive", b"upgrade, x", b"host"),
        *(
            b"100-continue",
            b"websocket",
            b"h2c",
            b"Bearer x",
            b"\xff\xfe",
            b"x" * 300,
            b"",
            b"a\tb",
            b"a\x00b",
        ),
    ]
) | st.binary(max_size=20)
sane = st.sampled_from(
    [
        *((b"Content-Type", b"application/json"), (b"content-type", b"application/json; charset=utf-8")),
        *((b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"0"), (b"Content-Length", b"2")),
        *((b"Content-Length", b"500"), (b"Connection", b"close"), (b"Connection", b"keep-alive, x-a")),
        *((b"Authorization", b"Bearer x"), (b"X-A", b"b"), (b"X-Request-Id", b"\xff"), (b"X-B", b"\xe4")),
    ]
)
headers = st.lists(sane, max_size=4) | st.lists(sane | st.tuples(name, value), max_size=4)
body = st.sampled_from(
    [
        b"",
        b"{}",
        b"x",
        b"2\r\n{}\r\n0\r\n\r\n",
        b"0\r\n\r\n",
        b"zz\r\n",
        json.dumps({"model": MODEL}).encode(),
    ]
) | st.binary(max_size=60)


@given(
    method=method,
    target=target,
    version=st.sampled_from([b"HTTP/1.1"] * 20 + [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9.9", b"http/1.1", b""]),
    host=st.sampled_from([True, True, True, False]),
    fields=headers,
    body=body,
    end=st.sampled_from([b"\r\n"] * 20 + [b"\n", b"\r"]),
)
@example(
    "POST",
    b"/v1/chat/completions?\xff",
    b"HTTP/1.1",
    True,
    [(b"Content-Type", b"application/json")],
    b"",
    b"\r\n",
)
@example("POST", b"/v1/completions", b"HTTP/1.1", True, [(b"Content-Length", b"50")], b"{}", b"\r\n")
@example(
    "POST",
    b"/v1/completions",
    b"HTTP/1.1",
    True,
    [(b"Transfer-Encoding", b"chunked")],
    b"2\r\n{}\r\n",
    b"\r\n",
)
@example("GET", b"/health", b"HTTP/1.1", True, [(b"X-Many", b"1")] * 300, b"", b"\r\n")
@example("GET", b"/health", b"HTTP/1.1", True, [(b"X-Long", b"x" * 1_000_000)], b"", b"\r\n")
@example("GET", b"/" + b"x" * 100_000, b"HTTP/1.1", True, [], b"", b"\r\n")
def test_any_request_line_and_headers_get_an_answer_or_a_closed_connection(
    plane: DataPlane,
    method: str,
    target: bytes,
    version: bytes,
    host: bool,
    fields: list[tuple[bytes, bytes]],
    body: bytes,
    end: bytes,
) -> None:
    lines = [method.encode() + b" " + target + b" " + version]
    if host:
        lines.append(b"Host: x")
    lines += [name + b": " + value for name, value in fields]
    exchange(plane, end.join([*lines, b"", body]), fin=True)


@given(st.binary(max_size=400))
@example(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00" * 30)
@example(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
@example(b"\r\n\r\n\r\n")
def test_any_bytes_at_all_get_an_answer_or_a_closed_connection(plane: DataPlane, data: bytes) -> None:
    exchange(plane, data, fin=True)


@given(
    cut=st.integers(0, 400),
    path=st.sampled_from(PATHS),
    framing=st.sampled_from(["length", "chunked"]),
    reset=st.booleans(),
)
def test_a_good_request_cut_anywhere_leaves_nothing(
    plane: DataPlane, cut: int, path: str, framing: str, reset: bool
) -> None:
    payload = json.dumps({"model": MODEL, **SMALLEST.get(path, {})}).encode()
    whole = request(path, payload)
    if framing == "chunked":
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n".encode()
        whole = (
            head + b"transfer-encoding: chunked\r\n\r\n" + b"%x\r\n%b\r\n0\r\n\r\n" % (len(payload), payload)
        )
    with Wire(plane.port) as wire:
        wire.send(whole[:cut])
        if reset:
            wire.reset()
        else:
            check(plane, wire.finish().reply())
    check(plane, None)


def test_after_all_of_that_nothing_is_held_and_the_gateway_serves(plane: DataPlane) -> None:
    plane.wait_settled()
    body = json.dumps({"model": MODEL, **SMALLEST["/v1/chat/completions"]}).encode()
    (reply,) = exchange(plane, request(body=body), fin=False)
    assert reply.status == 200
    assert not any(status.startswith("5") for status in plane.statuses()), plane.statuses()


# ---- the same against `penstock serve`, whose log would hold a panic of the server host too


@pytest.fixture(scope="module")
def served() -> Iterator[Gateway]:
    """The whole of it: supervisor, one worker, controller."""
    with (
        simulator(canned=True) as sim,
        gateway(one_model(sim.url, name=MODEL), ready="/ready") as running,
    ):
        workers = running.worker_pids()
        yield running
        assert running.worker_pids() == workers, "no worker was replaced"
        gauges = ("penstock_inflight_requests", "penstock_running_requests", "penstock_queued_requests")
        wait_until(
            lambda: not any(map(running.metric, (*gauges, "penstock_buffered_bytes"))), what="all at zero"
        )
        assert not any(word in running.log() for word in ("Traceback", "panicked", "internal_error"))
        assert not running.metric("penstock_requests_total", status="500")


@settings(max_examples=max(50, settings.default.max_examples // 5))
@given(
    path=st.sampled_from(PATHS),
    fields=headers,
    body=body | st.just(json.dumps({"model": MODEL, **SMALLEST["/v1/chat/completions"]}).encode()),
    fin=st.booleans(),
)
@example("/v1/chat/completions", [(b"Content-Length", b"50")], b"{}", True)
@example("/v1/chat/completions", [(b"Content-Length", b"50")], b"{}", False)
def test_a_served_gateway_survives_any_client(
    served: Gateway, path: str, fields: list[tuple[bytes, bytes]], body: bytes, fin: bool
) -> None:
    lines = [
        b"POST " + path.encode() + b" HTTP/1.1",
        b"Host: x",
        *(name + b": " + value for name, value in fields),
    ]
    with Wire(served.port) as wire:
        wire.send(b"\r\n".join([*lines, b"", body]))
        if fin:
            reply = wire.finish().reply()
            assert reply is None or reply.status < 500 or reply.header("x-penstock-backend")
        else:
            wire.reset()
