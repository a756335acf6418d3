"""The scenarios of `k6/scenarios.json` with Locust: users that each ask at a pace, streams read event by event.

    SCENARIO=baseline RATE=0.1 TIME=0.01 TARGET=http://127.0.0.1:8080 CORPUS=corpus.jsonl locust --headless -f FILE

RATE and TIME are factors of the full scenario; SUMMARY names a file for the figures. Distributed as Locust is: the
same with `--master` and `--worker`, and WORKERS, their number; each takes its share of the corpus's draws. TTFT and
inter-token latency are those of streams: until the first event that carries text, and between two of them. Entries of
kind `time` and `cache` are in microseconds, because Locust keeps whole numbers. A climb until failure is left out: no
user knows when all of them together have failed.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import time
from pathlib import Path
from typing import Any

import gevent  # type: ignore[import-untyped]
from locust import FastHttpUser, LoadTestShape, constant_throughput, events, task
from locust.env import Environment
from locust.runners import WorkerRunner
from locust.stats import StatsEntry

from penstock.loadtests.suite.questions import Corpus, read
from penstock.loadtests.suite.scenario import scenarios, without_climb

PER_USER = 10.0
"""Requests a second of one user: one that waits longer than a tenth of a second for an answer falls behind."""
OUTCOMES = ("HIT-L1", "HIT-L2", "COALESCED", "MISS", "BYPASS")

_TARGET = os.environ.get("TARGET", "http://127.0.0.1:8080")
_SCALED = scenarios(float(os.environ.get("RATE", "1")), float(os.environ.get("TIME", "1")))
_SCENARIO = without_climb(_SCALED[os.environ.get("SCENARIO", "baseline")])
_LOOPBACK = re.compile(r"http://(127\.\d+\.\d+\.\d+|localhost|\[::1\])(:\d+)?")

if not _LOOPBACK.fullmatch(_TARGET):
    raise SystemExit(f"TARGET={_TARGET}: a load stays on this machine: http://127.0.0.1:PORT")


class Draws:
    """Which question comes next in this process: every `workers`-th draw, from the `index`-th on."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self.next = 0
        self.step = 1

    def deal(self, index: int, workers: int) -> None:
        """Take one's share."""
        self.next, self.step = index, workers

    def draw(self) -> tuple[str, bool]:
        """A body, and whether it asks for a stream."""
        number = self.next
        self.next += self.step
        length = len(self.corpus.draws)
        question = self.corpus.questions[self.corpus.draws[number % length]]
        return question.of(number // length), question.stream


with Path(os.environ.get("CORPUS", "corpus.jsonl")).open() as _lines:
    _draws = Draws(read(_lines))


class Asker(FastHttpUser):
    """One user."""

    host = _TARGET
    wait_time = constant_throughput(PER_USER)
    network_timeout = 60.0
    connection_timeout = 10.0

    def on_start(self) -> None:
        """Not all at once."""
        gevent.sleep(random.random() / PER_USER)

    @task
    def ask(self) -> None:
        """Ask one question and read its answer to the end."""
        body, stream = _draws.draw()
        began = time.perf_counter()
        failure: str | None = None
        first_s = 0.0
        with self.client.post(
            "/v1/chat/completions",
            data=body,
            headers={"content-type": "application/json"},
            stream=True,
            catch_response=True,
            name="ask",
        ) as response:
            first_s = time.perf_counter() - began
            if response.status_code != 200:
                failure = f"status {response.status_code}"
            elif stream:
                failure = self._read_stream(response, began)
            elif not response.content:
                failure = "no body"
            outcome = (response.headers or {}).get("x-penstock-cache", "none")
            response.request_meta["response_time"] = (time.perf_counter() - began) * 1000
            if failure:
                response.failure(failure)
            else:
                response.success()
        self._log("first", "time", first_s)
        self._log(outcome, "cache", first_s)

    def _read_stream(self, response: Any, began: float) -> str | None:
        last: float | None = None
        done = False
        while line := response.stream.readline(b"\n"):
            if line.startswith(b"data: [DONE]"):
                done = True
            elif line.startswith(b"data: ") and b'"content":"' in line and b'"content":""' not in line:
                now = time.perf_counter()
                if last is None:
                    self._log("ttft", "time", now - began)
                else:
                    self._log("gap", "time", now - last)
                last = now
        return None if done else "a stream without its end"

    def _log(self, name: str, kind: str, seconds: float) -> None:
        self.environment.stats.get(name, kind).log(round(seconds * 1e6), 0)


class Shape(LoadTestShape):
    """As many users as the scenario's rate needs now."""

    use_common_options = False

    def tick(self) -> tuple[int, float] | None:
        """Users and spawn rate; None at the end."""
        at_s = self.get_run_time()  # type: ignore[no-untyped-call]
        if at_s >= _SCENARIO.seconds:
            return None
        users = math.ceil(_SCENARIO.rate(at_s) / PER_USER)
        return max(1, users), max(100.0, users)


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def _deal(environment: Environment, **_: Any) -> None:
    runner = environment.runner
    if isinstance(runner, WorkerRunner):
        _draws.deal(runner.worker_index, int(os.environ.get("WORKERS", "1")))


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def _tell(environment: Environment, **_: Any) -> None:
    file = os.environ.get("SUMMARY")
    if not file or isinstance(environment.runner, WorkerRunner):
        return
    stats = environment.stats
    asked = stats.get("ask", "POST")
    found = {
        "scenario": _SCENARIO.name,
        "seconds": (stats.last_request_timestamp or 0) - stats.start_time,
        "asked": _figures(asked, 1) | {"failed": asked.num_failures},
        "first": _figures(stats.get("first", "time")),
        "ttft": _figures(stats.get("ttft", "time")),
        "gaps": _figures(stats.get("gap", "time")),
        "outcomes": {name: stats.get(name, "cache").num_requests for name in OUTCOMES},
        "workers": int(os.environ.get("WORKERS", "1")),
    }
    Path(file).write_text(json.dumps(found))


def _figures(entry: StatsEntry, per_ms: float = 1000) -> dict[str, float]:
    of = entry.get_response_time_percentile
    return {
        "count": entry.num_requests,
        "p50_ms": of(0.5) / per_ms,
        "p95_ms": of(0.95) / per_ms,
        "p99_ms": of(0.99) / per_ms,
    }
