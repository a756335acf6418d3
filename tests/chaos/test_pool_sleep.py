"""Servers that fail to sleep, die asleep, or are needed longer than it takes to fall asleep."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.support.gateway import Gateway, gateway
from tests.support.pool_gateway import (
    ask,
    chat,
    phases,
    pool,
    pooled,
    records,
    servers,
    simulator,
    wait_phase,
)
from tests.support.procs import wait_until

pytestmark = pytest.mark.slow


def _url(g: Gateway) -> str:
    (member,) = pool(g)["members"]
    return str(member["url"])


def _stats(g: Gateway) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{_url(g)}/sim/stats", timeout=5, trust_env=False).json()
    return found


def _fault(g: Gateway, **fields: Any) -> None:
    httpx.post(f"{_url(g)}/sim/faults", json=fields, timeout=5, trust_env=False).raise_for_status()


def _text(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def test_what_sleeps_for_long_is_stopped_without_being_woken():
    with gateway(pooled(sleep_after_s=0.2, idle_timeout_s=1.0)) as g:
        assert ask(g).status_code == 200
        wait_phase(g, "off")
        assert servers(g) == []
        assert phases(g) == ["off", "starting", "ready", "draining", "asleep", "stopping", "off"]


def test_a_sleep_that_fails_becomes_a_stop_and_the_next_request_starts_it():
    with gateway(pooled(sleep_after_s=0.3)) as g:
        said = _text(ask(g))
        (before,) = records(g)
        _fault(g, kind="sleep_fails")
        wait_until(lambda: phases(g)[-1] == "off")
        assert "asleep" not in phases(g)
        assert _text(ask(g)) == said
        assert records(g)[0]["pid"] != before["pid"]


def test_a_server_that_dies_asleep_is_off_and_the_next_request_starts_it():
    with gateway(pooled(sleep_after_s=0.3)) as g:
        said = _text(ask(g))
        wait_phase(g, "asleep")
        _fault(g, kind="wake_fails", how="dies")
        with pytest.raises(httpx.TransportError):
            httpx.post(f"{_url(g)}/wake_up", timeout=5, trust_env=False)
        wait_until(lambda: phases(g)[-1] == "off")
        assert _text(ask(g)) == said


def test_a_stream_outlives_the_time_to_sleep_and_its_last_byte_counts():
    with gateway(pooled(simulator("--decode-ms", "20"), sleep_after_s=0.2)) as g:
        with httpx.stream(
            "POST",
            f"{g.url}/v1/chat/completions",
            json=chat(tokens=40, stream=True),
            timeout=30,
            trust_env=False,
        ) as answer:
            lines = [line for line in answer.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        assert '"finish_reason":"abort"' not in "".join(lines)
        assert "asleep" not in phases(g)
        wait_phase(g, "asleep")
