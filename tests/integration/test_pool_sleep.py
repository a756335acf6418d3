"""vLLM's sleep levels behind the real gateway, whose servers are simulators with vLLM's sleep."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.support.gateway import Gateway, gateway
from tests.support.pool_gateway import (
    ask,
    kill_controller,
    phases,
    pool,
    pooled,
    records,
    simulator,
    wait_phase,
)


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


@pytest.mark.parametrize(("level", "reloads"), [(1, 0), (2, 1)], ids=["level-1", "level-2"])
def test_a_server_with_nothing_to_do_sleeps_and_the_next_request_wakes_the_same_one(level: int, reloads: int):
    flags = ("--startup-s", "0.5", "--wake-s", "0.05", "--reload-s", "0.1")
    with gateway(pooled(simulator(*flags), sleep_after_s=0.3, sleep_level=level)) as g:
        said = _text(ask(g))
        wait_phase(g, "asleep")
        (record,) = records(g)
        assert _stats(g)["engine"]["asleep"]
        assert _text(ask(g)) == said  # with the right weights
        assert records(g) == [record]
        slept = _stats(g)["sleep"]
        assert (slept["wakes"], slept["reloads"]) == (1, reloads)
        if level == 1:
            assert slept["waking_s"] <= slept["startup_s"] / 10
        assert phases(g)[:7] == ["off", "starting", "ready", "draining", "asleep", "starting", "ready"]


@pytest.mark.parametrize(
    ("level", "fault", "how"),
    [(1, "wake_fails", "error"), (1, "wake_fails", "dies"), (2, "reload_fails", "error")],
    ids=["error", "dies", "reload"],
)
def test_a_wake_that_fails_becomes_a_restart_and_the_request_is_answered(level: int, fault: str, how: str):
    with gateway(pooled(sleep_after_s=0.3, sleep_level=level)) as g:
        said = _text(ask(g))
        wait_phase(g, "asleep")
        (before,) = records(g)
        _fault(g, kind=fault, how=how)
        assert _text(ask(g)) == said
        (after,) = records(g)
        assert after["pid"] != before["pid"]
        assert "failed" not in phases(g)


def test_a_killed_controllers_successor_knows_what_sleeps():
    with gateway(pooled(sleep_after_s=0.3, sleep_level=2)) as g:
        said = _text(ask(g))
        wait_phase(g, "asleep")
        before = records(g)
        kill_controller(g)
        wait_phase(g, "asleep")
        assert _stats(g)["engine"]["asleep"]  # nobody woke it to see
        assert _text(ask(g)) == said
        assert [record["pid"] for record in records(g)] == [record["pid"] for record in before]
        assert _stats(g)["sleep"]["reloads"] == 1


def test_the_routes_of_the_development_mode_are_not_offered_by_the_gateway():
    with gateway(pooled(sleep_after_s=50)) as g:
        assert ask(g).status_code == 200
        for path in ("/sleep", "/wake_up", "/collective_rpc", "/v1/sleep"):
            answer = httpx.post(g.url + path, json={"model": "m"}, timeout=5, trust_env=False)
            assert answer.status_code == 404
        assert httpx.get(f"{g.url}/is_sleeping", timeout=5, trust_env=False).status_code == 404
        assert _stats(g)["sleep"]["sleeps"] == 0
