"""deploy/haproxy before two real gateways: what one body has once been answered is found again, no request is sent
twice that may not be, and HAProxy's own words are in the form that clients know."""

import http.client
import json
import random
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from penstock.gateway.config import load

from ..support.gateway import Gateway, gateway, one_model
from ..support.haproxy import FILE, HAProxy, haproxy, haproxy_check
from ..support.procs import free_port, wait_until
from ..support.scripted import certificate
from ..support.sim import Simulator, simulator

KIB = 1024
CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Site:
    """Two gateways, each before a simulator of its own, so that `x-penstock-backend` says which of them answered."""

    gates: tuple[Gateway, Gateway]
    sims: tuple[Simulator, Simulator]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:

        def start(_: int) -> tuple[Gateway, Simulator]:
            sim = stack.enter_context(simulator(model="m"))
            return stack.enter_context(gateway(config(sim))), sim

        (one, sim_one), (two, sim_two) = pool.map(start, range(2))
        yield Site((one, two), (sim_one, sim_two))


def config(sim: Simulator) -> dict[str, Any]:
    return {**one_model(sim.url), "cache": {"mode": "deterministic", "l1": {"size": "64MiB"}}}


@contextmanager
def before(site: Site, **env: str) -> Iterator[HAProxy]:
    with haproxy(site.gates[0].port, site.gates[1].port, **env) as made:
        yield made


def body(text: str, size: int = 0, namespace: str = "default", **more: Any) -> bytes:
    """A question that is cached; `size` is the length of the whole body, the text at its end."""
    question = {
        "model": "m",
        "temperature": 0,
        "max_tokens": 1,
        "cache": {"namespace": namespace},
        **more,
        "messages": [{"role": "user", "content": text}],
    }
    short = json.dumps(question).encode()
    question["messages"] = [{"role": "user", "content": "." * (size - len(short)) + text}]
    return json.dumps(question).encode()


def client(url: str) -> httpx.Client:
    headers = {"content-type": "application/json"}
    return httpx.Client(base_url=url, timeout=20, trust_env=False, verify=False, headers=headers)


def outcomes(url: str, draws: list[bytes]) -> Counter[str]:
    """By `x-penstock-cache`; every answer is a good one."""
    seen: Counter[str] = Counter()
    with client(url) as asking:
        for one in draws:
            answer = asking.post(CHAT, content=one)
            assert answer.status_code == 200, answer.text
            seen[answer.headers["x-penstock-cache"]] += 1
    return seen


def drawn(namespace: str, count: int = 400, unique: int = 120) -> list[bytes]:
    """Questions of 200 B to 64 KiB; some are asked much more often than others."""
    chance = random.Random(6)
    sizes = [chance.choice([0, KIB, 8 * KIB, 30 * KIB, 64 * KIB]) for _ in range(unique)]
    weights = [1 / (rank + 1) for rank in range(unique)]
    picks = chance.choices(range(unique), weights, k=count)
    return [body(f"question {i}", sizes[i], namespace) for i in picks]


def test_two_gateways_hit_as_often_as_one(site):
    alone = outcomes(site.gates[0].url, drawn("alone"))
    with before(site) as balancer:
        both = outcomes(balancer.url, drawn("both"))
        taken = balancer.taken()

    assert alone["HIT-L1"] > 200
    assert both["HIT-L1"] >= 0.98 * alone["HIT-L1"]
    assert min(taken.values()) > 0.2 * sum(taken.values()), taken


def test_bodies_of_64_kib_that_differ_at_their_end_alone_are_spread(site):
    """They would all be at one gateway if no more than HAProxy's usual 16 KiB were hashed."""
    with before(site) as balancer, client(balancer.url) as asking:
        # headers take of the same buffer
        asking.headers["x-padding"] = "p" * 8 * KIB
        for i in range(24):
            assert asking.post(CHAT, content=body(f"{i:03}", 64 * KIB)).is_success
        taken = balancer.taken()

    assert min(taken.values()) >= 3, taken


def test_a_body_that_comes_in_pieces_goes_where_it_went_whole(site):
    """Also one that is longer than what is hashed."""
    for size in (2 * KIB, 64 * KIB, 300 * KIB):
        whole = body("in pieces", size, f"pieces {size}")
        with before(site) as balancer, client(balancer.url) as asking:
            for cut in (len(whole), 1000, len(whole) // 3):
                pieces = (whole[at : at + cut] for at in range(0, len(whole), cut))
                length = {"content-length": str(len(whole))}
                assert asking.post(CHAT, content=pieces, headers=length).is_success
            assert sorted(balancer.taken().values()) == [0, 3], size


def placed(asking: httpx.Client, gates: dict[str, "Deaf"], texts: list[str]) -> dict[str, str]:
    """Which gateway each body came to."""
    at = {}
    for text in texts:
        before = {name: len(gate.asked) for name, gate in gates.items()}
        assert asking.post(CHAT, content=body(text)).is_success
        (at[text],) = (name for name, gate in gates.items() if len(gate.asked) > before[name])
    return at


def test_a_gateway_that_comes_or_goes_moves_no_body_between_the_others(tmp_path: Path):
    """As the page on deploying says: with a third line about a third moves, to it alone; its own when it is out."""
    texts = [f"question {i}" for i in range(90)]
    with ExitStack() as stack:
        gates = {name: stack.enter_context(closing(Deaf(answers=1_000_000))) for name in "abc"}
        ports = gates["a"].port, gates["b"].port
        more, third = tmp_path / "haproxy.cfg", rf"\g<0>\n    server c 127.0.0.1:{gates['c'].port}"
        more.write_text(re.sub(r"(?m)^ +server b .*$", third, FILE.read_text()))
        with haproxy(*ports) as balancer, client(balancer.url) as asking:
            two = placed(asking, gates, texts)
        with haproxy(*ports, file=more) as balancer, client(balancer.url) as asking:
            three = placed(asking, gates, texts)
            gates["a"].close()
            wait_until(lambda: balancer.up("b", "c"), 20, "one is out")
            left = placed(asking, gates, texts)

    moved = [text for text in texts if three[text] != two[text]]
    assert {three[text] for text in moved} == {"c"}
    assert 15 < len(moved) < 55
    assert min(Counter(three.values()).values()) > 10
    assert {text: left[text] for text in texts if three[text] != "a"} == {
        text: at for text, at in three.items() if at != "a"
    }
    assert {left[text] for text in texts if three[text] == "a"} == {"b", "c"}


def test_the_alternative_gives_one_body_to_both(site):
    with before(site, PENSTOCK_BALANCE="leastconn") as balancer:
        outcomes(balancer.url, [body("again")] * 10)
        assert sorted(balancer.taken().values()) == [5, 5]


def test_over_tls_clients_may_speak_http2_and_bodies_keep_their_gateway(site, tmp_path):
    pem = certificate(tmp_path, "127.0.0.1")
    with (
        before(site, PENSTOCK_TLS_PEM=str(pem)) as balancer,
        httpx.Client(http2=True, verify=False, trust_env=False, timeout=20) as asking,
    ):
        json_type = {"content-type": "application/json"}
        for size in (0, 64 * KIB):
            question = body("over h2", size, "h2")
            first, second = (
                asking.post(balancer.url + CHAT, content=question, headers=json_type) for _ in range(2)
            )
            assert (first.http_version, first.headers["x-penstock-cache"]) == ("HTTP/2", "MISS")
            assert second.headers["x-penstock-cache"] == "HIT-L1"


def test_a_client_that_leaves_ends_its_request_at_the_server(site):
    for sim in site.sims:
        sim.reset()
        sim.faults({"faults": [{"kind": "hang"}]})
    try:
        with before(site) as balancer:
            question = body("and away", namespace="away")
            with socket.create_connection(("127.0.0.1", balancer.port)) as line:
                line.sendall(b"POST %b HTTP/1.1\r\nhost: test\r\n" % CHAT.encode())
                line.sendall(b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(question))
                line.sendall(question)
                wait_until(
                    lambda: any(sim.stats()["in_flight_by_path"].get(CHAT) for sim in site.sims),
                    10,
                    "it is asked",
                )
            wait_until(lambda: any(sim.stats()["aborted"] for sim in site.sims), 10, "it is told")
    finally:
        for sim in site.sims:
            sim.reset()


class Deaf:
    """Well by its checks; answers so many POSTs on each connection, and closes it on the next without a word."""

    def __init__(self, answers: int = 0) -> None:
        self.asked: list[bytes] = []
        self._answers = answers
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                line, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(line,), daemon=True).start()

    def _serve(self, line: socket.socket) -> None:
        left = self._answers
        with line, suppress(OSError):
            line.settimeout(20)
            while got := line.recv(65536):
                if got.startswith(b"POST"):
                    self.asked.append(got)
                    left -= 1
                if left < 0:
                    return
                line.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    def close(self) -> None:
        with suppress(OSError):  # closed already
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def test_a_kept_connection_that_is_closed_under_a_request_closes_the_clients():
    """Which therefore asks again, as HTTP/1.1 has it; HAProxy neither does, nor answers with an error."""
    with closing(Deaf(answers=1)) as deaf, haproxy(deaf.port, deaf.port) as balancer:
        line = http.client.HTTPConnection("127.0.0.1", balancer.port, timeout=20)
        json_type = {"content-type": "application/json"}
        line.request("POST", CHAT, body("first"), json_type)
        assert line.getresponse().read() == b"{}"
        line.request("POST", CHAT, body("first"), json_type)
        with pytest.raises(http.client.RemoteDisconnected):
            line.getresponse()
        line.close()

        assert len(deaf.asked) == 2


def test_a_request_that_a_gateway_has_seen_is_not_sent_again():
    """A server that closes without a word may have done what it was asked."""
    with closing(Deaf()) as deaf, haproxy(deaf.port, deaf.port) as balancer, client(balancer.url) as asking:
        answer = asking.post(CHAT, content=body("once"))

        assert answer.status_code == 502
        assert answer.json()["error"]["code"] == "gateway_lost"
        assert len(deaf.asked) == 1


def test_where_no_gateway_is_left_the_answer_is_in_every_dialects_form():
    with haproxy(free_port(), free_port()) as balancer, client(balancer.url) as asking:
        answer = asking.post(CHAT, content=body("anybody?"))

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "type": "error",
        "error": {
            "message": "no gateway can be reached",
            "type": "server_error",
            "param": None,
            "code": "no_gateway",
        },
    }


def test_what_is_said_by_haproxy_itself_is_json():
    """As often as there is a status of its own that a client may see."""
    lines = [line for line in FILE.read_text().splitlines() if "http-error status" in line]
    assert {int(line.split()[2]) for line in lines} == {400, 408, 500, 502, 503, 504}
    for line in lines:
        said = json.loads(line.partition("string '")[2].partition("'")[0])
        assert set(said["error"]) == {"message", "type", "param", "code"}
        assert said["type"] == "error"


def test_the_statistics_are_prometheus_metrics_too(site):
    with before(site) as balancer:
        text = httpx.get(f"{balancer.stats_url}/metrics", trust_env=False).text
    assert 'haproxy_server_status{proxy="ready",server="a",state="UP"} 1' in text


@pytest.mark.parametrize("env", [{}, {"PENSTOCK_BALANCE": "leastconn"}])
def test_haproxy_itself_takes_the_file_without_a_warning(env):
    status, output = haproxy_check(FILE, **env)
    assert status == 0, output


def test_a_file_with_a_fault_is_not_taken(tmp_path: Path):
    """Or the test above would say nothing."""
    file = tmp_path / "haproxy.cfg"
    file.write_text(FILE.read_text().replace("balance hash req.body", "balance hash req.bodi"))
    status, _ = haproxy_check(file)
    assert status != 0


def seconds(name: str) -> float:
    """A time of the file."""
    (found,) = {float(value) for value in re.findall(rf"(?m)^ +(?:.* )?{name} ([0-9.]+)s", FILE.read_text())}
    return found


def test_the_deadlines_are_longer_than_a_gateway_may_be_silent():
    """By default: a server is woken, then a place is waited for, then the first byte."""
    plain = {"models": {"m": {"pool": {"provider": "process", "command": ["true", "{port}"]}}}}
    model = load(yaml.safe_dump(plain), {}).models["m"]
    assert model.pool is not None
    silence = model.pool.ready_timeout_s + model.queue_timeout_s + model.timeouts.first_byte_s

    assert seconds("timeout server") > silence
    assert seconds("timeout client") > silence


def test_a_gateway_is_out_before_a_drain_closes_its_listener():
    delay = load("models: {m: {backends: [{url: 'http://127.0.0.1:1'}]}}", {}).workers.drain_delay_s
    text = FILE.read_text()
    (fast,) = {int(value) for value in re.findall("fastinter ([0-9]+)ms", text)}
    (fall,) = {int(value) for value in re.findall("fall ([0-9]+)", text)}

    assert seconds("inter") + (fall - 1) * fast / 1000 < delay
