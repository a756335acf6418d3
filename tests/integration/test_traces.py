"""Traces as a collector gets them, joined with what the backend was sent: one span a request, one a call upstream."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ..support.collector import CLIENT, SERVER, Collector, Seen, collector
from ..support.dataplane import DataPlane, data_plane
from ..support.procs import free_port, wait_until
from ..support.sim import Simulator, simulator

SECRET = "collector-secret-7f3a"


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with simulator(model=["m", "m-2"]) as running:
        yield running


@pytest.fixture(scope="module")
def taker() -> Iterator[Collector]:
    with collector() as running:
        yield running


def config(sim: Simulator, url: str, **telemetry: Any) -> dict[str, Any]:
    return {
        "cache": {"mode": "all"},
        "telemetry": {"otlp_endpoint": url, **telemetry},
        "models": {
            "m": {
                "aliases": ["alias"],
                "backends": [{"url": sim.url}, {"url": f"http://localhost:{sim.port}"}],
            },
            "gone": {"backends": [{"url": f"http://127.0.0.1:{free_port()}"}], "fallbacks": ["m-2"]},
            "m-2": {"backends": [{"url": sim.url}]},
        },
    }


@pytest.fixture(scope="module")
def plane(sim: Simulator, taker: Collector) -> Iterator[DataPlane]:
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("COLLECTOR", f"x-token={SECRET}, x-other=a%20b")
        with data_plane(config(sim, taker.url, headers_env="COLLECTOR")) as running:
            yield running


@pytest.fixture(autouse=True)
def fresh(sim: Simulator) -> None:
    sim.reset()


_words = iter(range(10_000))


def ask(plane: DataPlane, words: str = "", headers: Any = None, **told: Any) -> httpx.Response:
    body = {
        "model": "m",
        "max_tokens": 3,
        "temperature": 0,
        "messages": [{"role": "user", "content": words or f"number {next(_words)}"}],
        **told,
    }
    return httpx.post(
        f"http://127.0.0.1:{plane.port}/v1/chat/completions?secret=of-the-query",
        json=body,
        headers=headers,
        timeout=30,
        trust_env=False,
        verify=False,  # no authorities to load: it is quicker
    )


def heads(sim: Simulator, name: str) -> list[str | None]:
    """A field of every request that the backend got."""
    return [dict(one["headers"]).get(name) for one in sim.stats()["recent"] if one["method"] == "POST"]


def parent(number: int, flags: str = "01") -> tuple[str, dict[str, str]]:
    """An incoming trace."""
    trace_id = f"{number:032x}"
    return trace_id, {
        "traceparent": f"00-{trace_id}-00f067aa0ba902b7-{flags}",
        "tracestate": "vendor=1,other=2",
    }


def traced(
    plane: DataPlane, taker: Collector, spans: int, number: int, **told: Any
) -> tuple[str, list[Seen]]:
    trace_id, headers = parent(number)
    assert ask(plane, headers=headers, **told).status_code == 200
    return trace_id, taker.of(trace_id, spans)


def test_a_request_and_its_call_upstream_are_spans_of_the_callers_trace(
    sim: Simulator, plane: DataPlane, taker: Collector
) -> None:
    trace_id, spans = traced(plane, taker, 2, 1, model="alias")
    server, client = spans
    assert (server.kind, server.parent_id, server.state) == (SERVER, "00f067aa0ba902b7", "vendor=1,other=2")
    assert (client.kind, client.parent_id) == (CLIENT, server.span_id)
    assert heads(sim, "traceparent") == [f"00-{trace_id}-{client.span_id}-01"]
    assert heads(sim, "tracestate") == ["vendor=1,other=2"]
    assert server.began_ns <= client.began_ns <= client.ended_ns <= server.ended_ns
    assert server.name == "POST /v1/chat/completions"
    assert client.name == "chat m"
    wanted = {
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "m",
        "penstock.cache": "MISS",
        "url.path": "/v1/chat/completions",
        "http.route": "/v1/chat/completions",
        "client.address": "127.0.0.1",
    }
    assert wanted.items() <= server.attributes.items()
    wanted = {
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "m",
        "gen_ai.response.model": "m",
        "gen_ai.usage.output_tokens": 3,
        "server.port": sim.port,
        "http.response.status_code": 200,
    }
    assert wanted.items() <= client.attributes.items()
    assert client.attributes["gen_ai.usage.input_tokens"] > 0
    assert not server.failed
    assert not client.failed
    assert server.resource["service.name"] == "penstock"
    assert {"x-token": SECRET, "x-other": "a b"}.items() <= taker.headers.items()
    text = json.dumps([server.attributes, client.attributes, server.resource])
    assert SECRET not in text
    assert "of-the-query" not in text
    assert "number" not in text.replace("port number", "")


def test_each_try_is_a_span_of_its_own(sim: Simulator, plane: DataPlane, taker: Collector) -> None:
    sim.faults({"kind": "status", "status": 503, "count": 1})
    trace_id, (server, first, second) = traced(plane, taker, 3, 2)
    assert [one.kind for one in (first, second)] == [CLIENT, CLIENT]
    assert {one.parent_id for one in (first, second)} == {server.span_id}
    assert heads(sim, "traceparent") == [f"00-{trace_id}-{one.span_id}-01" for one in (first, second)]
    assert first.attributes["error.type"] == "503"
    assert (first.failed, second.failed, server.failed) == (True, False, False)
    assert second.attributes["http.request.resend_count"] == 1
    assert first.ended_ns <= second.began_ns
    assert "gen_ai.usage.output_tokens" not in first.attributes
    assert second.attributes["gen_ai.usage.output_tokens"] == 3


def test_a_server_that_cannot_be_reached_is_a_span_and_the_model_that_stands_in_another(
    plane: DataPlane, taker: Collector
) -> None:
    _, (server, first, second) = traced(plane, taker, 3, 3, model="gone")
    assert (first.attributes["error.type"], first.failed) == ("connect_failed", True)
    assert "http.response.status_code" not in first.attributes
    assert (first.name, second.name, server.attributes["gen_ai.request.model"]) == (
        "chat gone",
        "chat m-2",
        "gone",
    )


def test_what_is_kept_has_no_call(sim: Simulator, plane: DataPlane, taker: Collector) -> None:
    ask(plane, "kept")
    trace_id, (server,) = traced(plane, taker, 1, 4, words="kept")
    assert (server.kind, server.attributes["penstock.cache"]) == (SERVER, "HIT-L1")
    assert len(heads(sim, "traceparent")) == 1
    traced(plane, taker, 2, 5)  # later ones are there: none was still on its way
    assert len(taker.of(trace_id, 1)) == 1


def test_who_follows_has_no_call_of_its_own(sim: Simulator, plane: DataPlane, taker: Collector) -> None:
    sim.faults({"kind": "hang", "stage": "headers"})
    traces = [parent(number) for number in (6, 7)]
    threads = [threading.Thread(target=ask, args=(plane, "shared", headers)) for _, headers in traces]
    for count, thread in enumerate(threads, 1):
        thread.start()
        plane.wait_for(requests=count)
    wait_until(lambda: len(heads(sim, "traceparent")) == 1, what="the leader asks")
    sim.faults({})
    for thread in threads:
        thread.join()
    spans = [taker.of(trace_id, count) for (trace_id, _), count in zip(traces, (2, 1), strict=True)]
    assert [len(one) for one in spans] == [2, 1]
    assert [one[0].attributes["penstock.cache"] for one in spans] == ["MISS", "COALESCED"]
    assert spans[0][1].kind == CLIENT


def test_a_stream_is_told_of_to_its_end(sim: Simulator, plane: DataPlane, taker: Collector) -> None:
    told = {"stream": True, "max_tokens": 5, "stream_options": {"include_usage": True}}
    _, (server, client) = traced(plane, taker, 2, 8, **told)
    assert client.attributes["gen_ai.usage.output_tokens"] == 5
    assert client.attributes["gen_ai.response.model"] == "m"
    assert server.ended_ns == client.ended_ns
    assert server.attributes["http.response.body.size"] > 500


def test_a_stream_that_breaks_is_an_error_of_both(sim: Simulator, plane: DataPlane, taker: Collector) -> None:
    sim.faults({"kind": "cut_mid_stream", "after": 2})
    _, (server, client) = traced(plane, taker, 2, 9, stream=True, max_tokens=50)
    assert client.attributes["http.response.status_code"] == 200
    assert server.failed
    assert client.failed
    assert server.attributes["error.type"] == client.attributes["error.type"]


@pytest.mark.parametrize(
    ("number", "value"),
    [(10, "00-{0}-00f067aa0ba902b7-01-more"), (11, "00-{0}-0000000000000000-01"), (12, "{0}")],
)
def test_a_malformed_parent_is_none(
    sim: Simulator, plane: DataPlane, taker: Collector, number: int, value: str
) -> None:
    trace_id, _ = parent(number)
    sent = len(taker.spans)
    ask(plane, headers={"traceparent": value.format(trace_id), "tracestate": "vendor=1"})
    wait_until(lambda: len(taker.spans) == sent + 2, what="its spans")
    server = next(one for one in taker.spans[sent:] if one.kind == SERVER)
    assert (server.trace_id != trace_id, server.parent_id, server.state) == (True, "", "")
    assert heads(sim, "traceparent")[0].startswith(f"00-{server.trace_id}-")  # type: ignore[union-attr]
    assert heads(sim, "tracestate") == [None]


def test_the_callers_decision_is_kept(sim: Simulator, plane: DataPlane, taker: Collector) -> None:
    trace_id, headers = parent(13, flags="00")
    ask(plane, headers=headers)
    assert heads(sim, "traceparent") == [headers["traceparent"]]
    traced(plane, taker, 2, 14)
    assert not [one for one in taker.spans if one.trace_id == trace_id]


def test_nothing_is_traced_of_its_own_accord_where_the_ratio_is_0(sim: Simulator, taker: Collector) -> None:
    with data_plane(config(sim, taker.url, sample_ratio=0)) as plane:
        ask(plane)
        assert heads(sim, "traceparent")[0].endswith("-00")  # type: ignore[union-attr]
        traced(plane, taker, 2, 15)
    assert {one.trace_id for one in taker.spans[-2:]} == {parent(15)[0]}


def test_without_traces_what_came_is_passed_on(sim: Simulator) -> None:
    plain = config(sim, "http://127.0.0.1:1")
    del plain["telemetry"]
    _, headers = parent(16)
    with data_plane(plain) as plane:
        ask(plane, headers=headers)
        ask(plane)
    assert heads(sim, "traceparent") == [headers["traceparent"], None]


def test_requests_do_not_notice_that_the_collector_is_gone_or_refuses(sim: Simulator) -> None:
    with collector() as taker, data_plane(config(sim, taker.url)) as plane:
        taker.status = 400
        ask(plane)
        wait_until(lambda: lost(plane) == 2, what="both spans are counted")
        taker.status = 200
        assert ask(plane).status_code == 200
        wait_until(lambda: len(taker.spans) == 2, what="the next come")


def test_what_waits_at_a_workers_end_is_sent(sim: Simulator) -> None:
    with collector() as taker:
        with data_plane(config(sim, taker.url)) as plane:
            ask(plane)
        assert [one.kind for one in taker.spans] == [SERVER, CLIENT]


def lost(plane: DataPlane) -> int:
    reporter = plane.worker.reporter
    assert reporter is not None
    assert reporter.tracing is not None
    return reporter.tracing.outlet.lost
