"""The `/debug` paths of a gateway that runs: two workers under load, and what becomes of those who leave or die."""

import json
import os
import signal
import socket
import subprocess
import threading
from collections import Counter

import httpx
import pytest

from penstock.workers.cli import main

from ..support.gateway import gateway, one_model
from ..support.procs import wait_until
from ..support.sim import simulator
from ..unit.test_debug_formats import obeys_speedscope, read_pprof

#: A conversation: long enough that reading it is what a hit costs.
TURNS = [{"role": "user", "content": f"turn {number} of it"} for number in range(300)]
KEY = "the-admin-key"


@pytest.fixture(scope="module")
def gate():
    with simulator() as sim:
        config = one_model(sim.url) | {
            "workers": {"count": 2},
            "cache": {"mode": "deterministic"},
            "admin": {"key_env": "ADMIN_KEY"},
        }
        with gateway(config, env={"ADMIN_KEY": KEY}) as running:
            yield running


def ask(gate, path, timeout_s=60.0, **params):
    headers = {"authorization": f"Bearer {KEY}"}
    return httpx.get(
        gate.admin_url + path, params=params or None, headers=headers, timeout=timeout_s, trust_env=False
    )


@pytest.fixture
def load(gate, tmp_path):
    """One question over and over, by wrk, until the test ends."""
    body = json.dumps({"model": "m", "temperature": 0, "messages": TURNS})
    url = f"{gate.url}/v1/chat/completions"
    for _ in range(4):
        httpx.post(
            url, content=body, headers={"content-type": "application/json"}, trust_env=False, timeout=20
        )
    script = tmp_path / "ask.lua"
    script.write_text(
        f"wrk.method='POST'\nwrk.headers['content-type']='application/json'\nwrk.body=[[{body}]]\n"
    )
    # of sixteen connections each worker has some
    wrk = subprocess.Popen(["wrk", "-t1", "-c16", "-d30s", "-s", str(script), url], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: _busy(gate), 10, "its load on both workers")
        yield
    finally:
        wrk.kill()
        wrk.wait()


def _busy(gate):
    """Whether each worker is at some request now and then."""
    events = [ask(gate, "/debug/pprof/trace", seconds=0.05, worker=n).json()["traceEvents"] for n in range(2)]
    return all(any(one["ph"] == "b" for one in of_one) for of_one in events)


def test_a_profile_under_load_names_the_hot_functions(gate, load):
    file = ask(gate, "/debug/profile", seconds=1).json()
    obeys_speedscope(file)
    pids = gate.worker_pids()
    names = [one["name"] for one in file["profiles"]]
    assert names[0] == "all processes"
    assert {int(name.partition("(")[2][:-1]) for name in names[1:]} == set(pids)
    whole = file["profiles"][0]
    assert whole["endValue"] == pytest.approx(sum(one["endValue"] for one in file["profiles"][1:]))
    frames = file["shared"]["frames"]
    share = Counter()
    for stack, weight in zip(whole["samples"], whole["weights"], strict=True):
        for frame in {frames[at]["name"] for at in stack}:
            share[frame] += weight / whole["endValue"]
    assert share["Parser.parse"] > 0.05
    assert share["fingerprint"] > 0.02
    assert share["Parser.parse"] + share["fingerprint"] < share["Pipeline.serve"] < share["App.__rsgi__"] < 1
    assert share["(event loop)"] > 0
    assert share["(other threads)"] > 0


def test_a_trace_under_load_has_requests_and_the_steps_of_their_tasks(gate, load):
    events = ask(gate, "/debug/pprof/trace", seconds=0.1, worker=0).json()["traceEvents"]
    [process] = {one["args"]["name"] for one in events if one["name"] == "process_name"}
    assert process.startswith("worker 0 (")
    requests = [one for one in events if one["ph"] == "b" and one["name"] == "/v1/chat/completions"]
    assert requests
    assert all(one["args"]["cache"] == "HIT-L1" and one["args"]["status"] == 200 for one in requests)
    steps = Counter(one["name"] for one in events if one["ph"] == "X")
    assert steps["future_watcher"] >= len(requests) / 2
    assert steps["_Life._tick"]


def test_every_format_and_every_process(gate):
    page = ask(gate, "/debug/profile", seconds=0.1, format="html", worker="controller")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "controller (" in page.text
    file = ask(gate, "/debug/profile", seconds=0.1, merged="true").json()
    assert [one["name"] for one in file["profiles"]] == ["all processes"]
    types, samples, _ = read_pprof(ask(gate, "/debug/pprof/profile", seconds=0.1).content)
    assert types == [("samples", "count"), ("cpu", "nanoseconds")]
    assert {one[3].partition(" (")[0] for one in samples} == {"worker 0", "worker 1"}
    types, samples, _ = read_pprof(ask(gate, "/debug/pprof/heap", worker="0").content)
    assert types == [("inuse_objects", "count"), ("inuse_space", "bytes")]
    assert any(stack[0][0] == "builtins.dict" for stack, *_ in samples)
    heaps = ask(gate, "/debug/heap").json()["processes"]
    assert [one["worker"] for one in heaps] == ["0", "1"]
    assert all(one["frozen"] > 10_000 and one["memory"]["rss"] > 1 << 20 for one in heaps)
    [heap] = ask(gate, "/debug/heap", seconds=0.1, worker="1").json()["processes"]
    assert heap["allocated"][0]["bytes"] > 0
    [tasks] = ask(gate, "/debug/tasks", worker="controller").json()["processes"]
    assert any("Prober." in place for one in tasks["tasks"] for place in one["stack"])


def test_the_command_writes_what_the_files_name_asks_for(gate, tmp_path, capsys):
    for name, begins in (("a.json", b'{"$schema"'), ("a.html", b"<!DOCTYPE html>"), ("a.pb.gz", b"\x1f\x8b")):
        file = tmp_path / name
        words = ["profile", "--seconds", "0.05", "--worker", "0", "-o", str(file), "-c", str(gate.file)]
        assert main(words) == 0
        assert file.read_bytes().lstrip().startswith(begins)
        assert capsys.readouterr().out.startswith(f"{file}: ")
    assert main(["profile", "--seconds", "61", "-c", str(gate.file)]) == 2
    assert "seconds must be a number up to 60" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("param", "query"),
    [
        ("seconds", "seconds=61"),
        ("seconds", "seconds=nan"),
        ("seconds", "seconds="),
        ("format", "format=svg"),
        ("worker", "worker=2"),
        ("hz", "hz=1"),
    ],
)
def test_what_makes_no_sense_is_refused(gate, param, query):
    answer = ask(gate, f"/debug/profile?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_without_the_admin_key_there_is_nothing_to_see(gate):
    for path in ("/debug/profile", "/debug/heap", "/debug/tasks", "/debug/pprof/profile"):
        assert httpx.get(gate.admin_url + path, trust_env=False).status_code == 401
        assert httpx.get(gate.url + path, trust_env=False).status_code == 404


def begun(gate, what):
    return gate.log().count(f"debug_begun what={what}")


def test_one_at_a_time_and_whoever_leaves_ends_what_he_began(gate):
    before = begun(gate, "profile")
    with socket.create_connection(("127.0.0.1", gate.admin_port)) as leaver:
        head = f"GET /debug/profile?seconds=60 HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\n\r\n"
        leaver.sendall(head.encode())
        wait_until(lambda: begun(gate, "profile") == before + 2, 20, "both workers have begun")
        busy = ask(gate, "/debug/tasks")
        assert (busy.status_code, busy.json()["error"]["code"]) == (409, "debug_busy")
        assert busy.headers["retry-after"] == "5"
    wait_until(lambda: ask(gate, "/debug/tasks").status_code == 200, 20, "the next one is answered")
    assert gate.log().count("debug_left cause=_Left") == 2


def test_a_worker_that_dies_meanwhile_holds_up_nobody(gate):
    before = begun(gate, "trace")
    answers = []
    asker = threading.Thread(target=lambda: answers.append(ask(gate, "/debug/trace", seconds=1.5)))
    asker.start()
    wait_until(lambda: begun(gate, "trace") == before + 2, 20, "both workers have begun")
    victim = gate.worker_pids()[0]
    os.kill(victim, signal.SIGKILL)
    asker.join()
    [answer] = answers
    assert answer.status_code == 200
    assert answer.headers["x-penstock-lost"].endswith(f"({victim})")
    pids = {one["pid"] for one in answer.json()["traceEvents"]}
    assert len(pids) == 1
    assert victim not in pids
    wait_until(lambda: len(gate.worker_pids()) == 2, 20, "it has a successor")
    wait_until(
        lambda: len(ask(gate, "/debug/tasks").json().get("processes", ())) == 2,
        20,
        "which can be looked into",
    )
