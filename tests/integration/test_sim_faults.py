"""Every fault of the simulator, as a raw socket sees it."""

import json
import re
import socket
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from penstock.loadtests.sim.faults import CHOICES, KINDS, SLEEP_PATHS
from tests.support.procs import Proc, accepts, free_port, wait_until

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
STREAM = CHAT | {"stream": True}


class Sim:
    """A simulator, its faults, and raw connections to it."""

    def __init__(self, port: int, control: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{control}", trust_env=False, timeout=30)

    def fault(self, kind: str, **fields: Any) -> None:
        self.http.post("/sim/faults", json={"kind": kind, **fields}).raise_for_status()

    def outcomes(self, path: str = "/v1/chat/completions") -> dict[str, int]:
        paths = self.http.get("/sim/stats").json()["paths"]
        found: dict[str, int] = paths.get(path, {"outcomes": {}})["outcomes"]
        return found

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def raw(self, body: dict[str, Any], path: str = "/v1/chat/completions") -> tuple[bytes, str]:
        """What came back on a fresh connection, and how it ended: fin or rst."""
        with self.connect() as sock:
            send(sock, body, path, close=True)
            return receive(sock)


def send(
    sock: socket.socket, body: dict[str, Any], path: str = "/v1/chat/completions", *, close: bool = False
) -> None:
    payload = json.dumps(body).encode()
    sock.sendall(
        b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b"
        % (path.encode(), b"connection: close\r\n" if close else b"", len(payload), payload)
    )


def receive(sock: socket.socket) -> tuple[bytes, str]:
    """Everything until the end."""
    got = bytearray()
    try:
        while data := sock.recv(1 << 20):
            got += data
    except ConnectionResetError:
        return bytes(got), "rst"
    return bytes(got), "fin"


def one(sock: socket.socket) -> bytes:
    """One whole response with a content-length."""
    got = b""
    while True:
        head, split, rest = got.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        if split and length and len(rest) >= int(length[1]):
            return got
        data = sock.recv(65_536)
        if not data:
            return got
        got += data


@contextmanager
def running(*flags: str) -> Iterator[Sim]:
    port, control = free_port(), free_port()
    argv = [sys.executable, "-m", "penstock.loadtests.sim.main", "--port", str(port), *flags]
    argv += ["--control-port", str(control)]
    with Proc(argv, name="sim", ready=lambda: accepts("127.0.0.1", port) or "--uds" in flags):
        sim = Sim(port, control)
        with sim.http:
            yield sim


@pytest.fixture(scope="module")
def shared() -> Iterator[Sim]:
    with running() as sim:
        yield sim


@pytest.fixture
def sim(shared: Sim) -> Iterator[Sim]:
    shared.http.post("/sim/reset").raise_for_status()
    yield shared
    shared.http.post("/sim/reset").raise_for_status()


def test_refuse_closes_the_listener_for_a_while_and_opens_it_again(sim):
    idle = sim.connect()
    with idle:
        send(idle, CHAT)
        one(idle)
        sim.fault("refuse", seconds=0.5)
        wait_until(lambda: not accepts("127.0.0.1", sim.port), what="refused connections")
        assert receive(idle) == (b"", "rst")
    wait_until(lambda: accepts("127.0.0.1", sim.port), what="the listener to be back")
    assert sim.raw(CHAT)[0].startswith(b"HTTP/1.1 200 ")


def test_refuse_can_be_ordered_over_the_port_that_then_refuses(sim):
    answer = httpx.post(f"{sim.url}/sim/faults", json={"kind": "refuse", "seconds": 0.2})
    assert answer.status_code == 200
    wait_until(lambda: accepts("127.0.0.1", sim.port), what="the listener to be back")


def test_reset_before_headers_sends_nothing_and_resets(sim):
    sim.fault("reset_before_headers")
    assert sim.raw(CHAT) == (b"", "rst")
    assert sim.outcomes() == {"fault:reset_before_headers": 1}


@pytest.mark.parametrize("body", [CHAT, STREAM])
def test_reset_after_headers_sends_the_head_alone(sim, body):
    sim.fault("reset_after_headers")
    got, end = sim.raw(body)
    assert got.startswith(b"HTTP/1.1 200 OK\r\n")
    assert got.endswith(b"\r\n\r\n")
    assert end == "rst"


@pytest.mark.parametrize(("how", "end"), [("clean", "fin"), ("fin", "fin"), ("rst", "rst"), ("chunk", "fin")])
def test_cut_mid_stream_ends_after_so_many_events(sim, how, end):
    sim.fault("cut_mid_stream", after=2, how=how)
    got, ended = sim.raw(STREAM)
    assert ended == end
    assert got.count(b"\r\ndata: ") == (3 if how == "chunk" else 2)
    assert got.endswith(b"\r\n0\r\n\r\n") == (how == "clean")
    assert b"[DONE]" not in got
    assert sim.outcomes() == {"fault:cut_mid_stream": 1}


@pytest.mark.parametrize("kind", ["cut_mid_stream", "truncated"])
def test_a_plain_answer_is_cut_before_its_length(sim, kind):
    sim.fault(kind)
    got, _ = sim.raw(CHAT)
    head, _, body = got.partition(b"\r\n\r\n")
    promised = int(re.search(rb"content-length: (\d+)", head)[1])
    assert 0 < len(body) < promised


def test_truncated_can_miss_a_single_byte(sim):
    sim.fault("truncated", missing=1)
    head, _, body = sim.raw(CHAT)[0].partition(b"\r\n\r\n")
    assert len(body) + 1 == int(re.search(rb"content-length: (\d+)", head)[1])


@pytest.mark.parametrize(
    ("path", "body", "frame", "last"),
    [
        ("/v1/chat/completions", STREAM, b'data: {"error":{"message":"boom"', b"data: [DONE]\n\n"),
        ("/v1/completions", {"prompt": "x", "stream": True}, b'data: {"error":', b"data: [DONE]\n\n"),
        ("/v1/messages", STREAM, b'event: error\ndata: {"type":"error","error":{', b"}}\n\n"),
        ("/v1/responses", {"input": "x", "stream": True}, b'event: error\ndata: {"type":"error",', b"}}\n\n"),
    ],
)
def test_error_frame_then_done_speaks_each_dialect(sim, path, body, frame, last):
    sim.fault("error_frame_then_done", after=2, message="boom")
    got, _ = sim.raw(body, path)
    assert frame in got
    assert got.endswith(last + b"\r\n0\r\n\r\n")
    assert b"message_stop" not in got
    assert b"response.completed" not in got


@pytest.mark.parametrize(
    ("path", "body", "terminal"),
    [
        ("/v1/chat/completions", STREAM, b"[DONE]"),
        ("/v1/messages", STREAM, b"message_stop"),
        ("/v1/responses", {"input": "x", "stream": True}, b"response.completed"),
    ],
)
def test_no_terminal_ends_cleanly_without_the_last_word(sim, path, body, terminal):
    assert terminal in sim.raw(body, path)[0]
    sim.fault("no_terminal")
    got, end = sim.raw(body, path)
    assert terminal not in got
    assert (got[-5:], end) == (b"0\r\n\r\n", "fin")


def test_hang_before_headers_lasts_until_the_fault_is_switched_off(sim):
    sim.fault("hang")
    with sim.connect() as sock:
        send(sock, CHAT, close=True)
        wait_until(lambda: sim.http.get("/sim/stats").json()["in_flight"] == 1, what="the request to hang")
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(1)
        sock.settimeout(30)
        sim.fault("none")
        assert receive(sock)[0].startswith(b"HTTP/1.1 200 ")


def test_hang_mid_stream_has_sent_its_events_and_notices_the_client_leaving(sim):
    sim.fault("hang", stage="stream", after=2)
    with sim.connect() as sock:
        send(sock, STREAM)
        got = b""
        while got.count(b"\r\ndata: ") < 2:
            got += sock.recv(65_536)
        assert sim.http.get("/sim/stats").json()["in_flight"] == 1
    wait_until(lambda: sim.outcomes() == {"aborted": 1}, what="the abort")


def test_slow_still_answers(sim):
    sim.fault("slow", seconds=0.05, per_event_s=0.001)
    assert sim.raw(STREAM)[0].endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert sim.outcomes() == {"200": 1}


def test_status_answers_in_vllms_shape_with_what_was_asked_for(sim):
    sim.fault("status", status=503, message="overloaded", retry_after=7)
    got, _ = sim.raw(CHAT)
    assert got.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"retry-after: 7\r\n" in got
    assert json.loads(got.partition(b"\r\n\r\n")[2])["error"]["code"] == 503
    sim.fault("status", status=502, content_type="text/html")
    assert b"<html>" in sim.raw(CHAT)[0]
    sim.fault("status", statuses=[500, 429])
    seen = {sim.raw(CHAT)[0][9:12] for _ in range(40)}
    assert seen == {b"500", b"429"}


GARBAGE = {
    "not_http": b"^SSH-2.0",
    "bad_chunk_size": rb"chunked\r\n\r\nzz\r\n",
    "bad_chunk_end": rb"5\r\nhelloXX",
    "bad_content_length": rb"content-length: abc\r\n",
    "negative_content_length": rb"content-length: -5\r\n",
    "two_content_lengths": rb"content-length: 5\r\ncontent-length: 7\r\n",
    "length_and_chunked": rb"content-length: 5\r\ntransfer-encoding: chunked\r\n",
    "status_99": rb"^HTTP/1.1 99 ",
    "status_101": rb"^HTTP/1.1 101 ",
    "status_700": rb"^HTTP/1.1 700 ",
    "header_flood": rb"x-flood-1999: y\r\n",
    "long_header": rb"x-long: y{262144}\r\n",
    "bad_header": rb"bad header\x00name",
    "trailing": rb"\{\}HTTP/1.1 200 OK",
    "early_100s": rb"^(HTTP/1.1 100 Continue\r\n\r\n){1000}HTTP/1.1 200 OK",
}


@pytest.mark.parametrize("variant", sorted(CHOICES["garbage", "variant"]))
def test_garbage_breaks_http_in_the_way_it_names(sim, variant):
    sim.fault("garbage", variant=variant)
    got, _ = sim.raw(CHAT)
    assert re.search(GARBAGE[variant], got)
    assert sim.outcomes() == {"fault:garbage": 1}


@pytest.mark.parametrize("chunked", [False, True])
def test_oversized_sends_as_much_as_was_asked_for(sim, chunked):
    sim.fault("oversized", bytes=3_000_000, chunked=chunked)
    got, _ = sim.raw(CHAT)
    assert (b"content-length: 3000000\r\n" in got) == (not chunked)
    assert (b"transfer-encoding: chunked\r\n" in got) == chunked
    assert len(got) > 3_000_000


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_an_oversized_stream_is_still_a_stream(sim, path):
    sim.fault("oversized", bytes=2_000_000, event_bytes=50_000)
    got, _ = sim.raw(STREAM, path)
    assert len(got) > 2_000_000
    assert got.endswith((b"data: [DONE]\n\n\r\n0\r\n\r\n", b'data: {"type":"message_stop"}\n\n\r\n0\r\n\r\n'))


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_stale_closes_a_reused_connection_when_its_next_request_arrives(sim, how):
    sim.fault("stale", how=how)
    with sim.connect() as sock:
        send(sock, CHAT)
        assert one(sock).startswith(b"HTTP/1.1 200 ")
        send(sock, CHAT)
        assert receive(sock) == (b"", how)
    assert sim.outcomes() == {"200": 1, "fault:stale": 1}


def test_every_kind_of_fault_is_tested_here():
    tested = "\n".join(name for name in globals() if name.startswith("test_"))
    elsewhere = ("error_frame_then_done", *SLEEP_PATHS)  # the latter in test_sim_sleep
    missing = [k for k in KINDS if k not in tested and k not in elsewhere]
    assert missing == []
    assert set(GARBAGE) == CHOICES["garbage", "variant"]


def test_faults_do_not_touch_control_requests_and_report_their_hits(sim):
    sim.fault("reset_before_headers", path="*", count=2)
    for _ in range(2):
        sim.raw(CHAT)
    assert httpx.get(f"{sim.url}/sim/faults").json()["faults"][0]["hits"] == 2
    assert sim.raw(CHAT)[0].startswith(b"HTTP/1.1 200 ")
    assert httpx.delete(f"{sim.url}/sim/faults").json() == {"faults": []}


def test_a_wrong_fault_is_refused_and_changes_nothing(sim):
    sim.fault("slow")
    answer = sim.http.post("/sim/faults", json={"kind": "slow", "seconds": -1})
    assert answer.status_code == 400
    assert "seconds must be a number" in answer.json()["error"]["message"]
    assert len(sim.http.get("/sim/faults").json()["faults"]) == 1


def test_an_idle_connection_is_closed_after_the_keep_alive_time():
    with running("--keep-alive-s", "0.2") as sim, sim.connect() as sock:
        send(sock, CHAT)
        assert one(sock).startswith(b"HTTP/1.1 200 ")
        assert receive(sock) == (b"", "fin")


def test_a_request_fed_byte_by_byte_and_pipelined_requests_are_answered_in_order(sim):
    with sim.connect() as sock:
        payload = json.dumps({"prompt": "x"}).encode()
        request = b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (
            len(payload),
            payload,
        )
        for i in range(len(request)):
            sock.sendall(request[i : i + 1])
        assert b'"count":1' in one(sock)
        last = b"GET /version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        sock.sendall(request * 5 + last)
        got, _ = receive(sock)
    assert got.count(b'"count":1') == 5
    assert got.endswith(b'"}')


@pytest.mark.parametrize(
    "data",
    [
        b"\0\1\2\3 nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 500 + b"\r\n",
        b"GET / HTTP/1.1\r\na: " + b"b" * 100_000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 99999999999999999999\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_malformed_or_too_large_gets_400_and_a_close(sim, data):
    with sim.connect() as sock:
        sock.sendall(data)
        got, _ = receive(sock)
    assert got.startswith(b"HTTP/1.1 400 ") or not got
    assert sim.http.get("/sim/stats").json()["malformed"] >= 1


def test_a_body_over_the_limit_is_refused():
    with running("--max-body-bytes", "1000") as sim, sim.connect() as sock:
        send(sock, CHAT | {"user": "x" * 2000})
        assert receive(sock)[0].startswith(b"HTTP/1.1 400 ")


def test_a_unix_socket_serves_and_is_removed_at_the_end(tmp_path):
    path = tmp_path / "sim.sock"
    with running("--uds", str(path)) as sim:
        wait_until(path.exists, what="the socket")
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://sim") as http:
            assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
            sim.fault("reset_before_headers")
            with pytest.raises(httpx.TransportError):
                http.post("/v1/chat/completions", json=CHAT)
            sim.fault("refuse", seconds=0.3)
            with pytest.raises(httpx.ConnectError):
                http.post("/v1/chat/completions", json=CHAT)
            wait_until(lambda: _works(http), what="the socket to be back")
    assert not path.exists()


def _works(http: httpx.Client) -> bool:
    try:
        return http.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def test_resumed_tls_sessions_are_counted(tmp_path):
    certificate(tmp_path)
    flags = ("--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem"))
    with running(*flags) as sim:
        context = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        session = None
        for _ in range(3):
            with context.wrap_socket(sim.connect(), server_hostname="localhost", session=session) as sock:
                send(sock, CHAT, close=True)
                assert receive(sock)[0].startswith(b"HTTP/1.1 200 ")
                session = sock.session
        connections = sim.http.get("/sim/stats").json()["connections"]
        assert connections["tls"] == 3
        assert connections["tls_resumed"] == 2


def certificate(folder: Any) -> None:
    """A self-signed certificate for localhost."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
