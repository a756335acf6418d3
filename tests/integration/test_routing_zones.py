"""Zones, tiers and keys as configured, through a whole data plane: who answers while whom is well."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from ..support.dataplane import DataPlane, data_plane
from ..support.sim import Simulator, simulator


@pytest.fixture(scope="module")
def sims() -> Iterator[list[Simulator]]:
    with ExitStack() as stack:
        yield [stack.enter_context(simulator()) for _ in range(4)]


def _ask(plane: DataPlane, sims: list[Simulator], count: int, **body: Any) -> Counter[int]:
    """Which of the servers answered so many requests."""
    by_name = {sim.url.removeprefix("http://"): index for index, sim in enumerate(sims)}
    seen: Counter[int] = Counter()
    with httpx.Client(trust_env=False, verify=False, timeout=20) as client:
        for n in range(count):
            asked = {"model": "m", "messages": [{"role": "user", "content": f"{n}"}], "max_tokens": 1, **body}
            answer = client.post(f"http://127.0.0.1:{plane.port}/v1/chat/completions", json=asked)
            assert answer.status_code == 200, answer.text
            seen[by_name[answer.headers["x-penstock-backend"]]] += 1
    return seen


def _up(plane: DataPlane, *up: bool) -> None:
    def set_() -> None:
        for backend, state in zip(plane.worker.fleet.backends, up, strict=True):
            backend.up = state

    plane.call(set_)


def test_the_own_zone_then_the_next_then_the_next_tier(sims: list[Simulator]) -> None:
    backends = [
        {"url": sims[0].url, "zone": "b"},
        {"url": sims[1].url, "zone": "a"},
        {"url": sims[2].url, "zone": "a"},
        {"url": sims[3].url, "zone": "a", "priority": 1},
    ]
    with data_plane({"node": {"zone": "a"}, "models": {"m": {"backends": backends}}}) as plane:
        assert _ask(plane, sims, 100) == {1: 50, 2: 50}
        _up(plane, True, False, True, True)
        assert _ask(plane, sims, 10) == {2: 10}
        _up(plane, True, False, False, True)
        assert _ask(plane, sims, 10) == {0: 10}
        _up(plane, False, False, False, True)
        assert _ask(plane, sims, 10) == {3: 10}
        _up(plane, True, True, True, True)
        assert set(_ask(plane, sims, 10)) == {1, 2}


@pytest.mark.parametrize("policy", ["consistent_hash", "prefix_affinity"])
def test_what_ties_a_request_is_read_from_its_body(sims: list[Simulator], policy: str) -> None:
    config = {
        "models": {"m": {"aliases": ["n"], "policy": policy, "backends": [{"url": s.url} for s in sims]}}
    }
    users = [
        {"user": f"u{n}"}
        if policy == "consistent_hash"
        else {"messages": [{"role": "user", "content": f"q{n}"}]}
        for n in range(8)
    ]
    with data_plane(config) as plane:
        homes = []
        for body in users:
            seen = _ask(plane, sims, 4, **body) + _ask(plane, sims, 2, **body, model="n")
            assert len(seen) == 1
            homes += seen
        assert len(set(homes)) > 1
        (gone,) = _ask(plane, sims, 1, **users[0])
        _up(plane, *(index != gone for index in range(4)))
        after = [next(iter(_ask(plane, sims, 1, **body))) for body in users]
        assert all(new == old for new, old in zip(after, homes, strict=True) if old != gone)
        assert gone not in after


def test_peak_ewma_hears_how_long_answers_took(sims: list[Simulator]) -> None:
    config = {"models": {"m": {"policy": "peak_ewma", "backends": [{"url": s.url} for s in sims]}}}
    with data_plane(config) as plane:
        _ask(plane, sims, 16)

        def costs() -> list[float]:
            return [b.ewma.cost(plane.worker.clock()) for b in plane.worker.fleet.backends]

        known = plane.call(costs)
        assert sum(cost > 0 for cost in known) >= 1
        slow = max(range(4), key=known.__getitem__)
        plane.call(lambda: plane.worker.fleet.backends[slow].ewma.observe(60.0, plane.worker.clock()))
        assert slow not in _ask(plane, sims, 40)
