"""Backends that fail under load: who sees it, how often they are asked all the same, and how service comes back."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from ..support.gateway import Gateway, gateway
from ..support.leaks import nothing_left
from ..support.sim import Simulator, simulator
from .paced import Answered, Paced, paced

pytestmark = pytest.mark.slow

RATE = 2000
BAD_S = 4.0
OPEN_S = 1.0
WINDOW_S = 0.25
MOST_UNDER_WAY = 100
CHAT = "/v1/chat/completions"

FAULTS: dict[str, dict[str, Any]] = {
    "refuses": {"kind": "refuse", "seconds": BAD_S},
    "resets": {"kind": "reset_before_headers"},
    "hangs": {"kind": "hang"},
    "500": {"kind": "status", "status": 500},
    "503": {"kind": "status", "status": 503},
    "429": {"kind": "status", "status": 429},
}


@pytest.fixture
def sims() -> Iterator[list[Simulator]]:
    with ExitStack() as stack:
        yield [stack.enter_context(simulator(model="m", canned=True)) for _ in range(4)]


def _config(sims: list[Simulator]) -> dict[str, Any]:
    return {
        "models": {
            "m": {
                "backends": [{"url": sim.url} for sim in sims],
                "timeouts": {"first_byte_s": 1},
                "max_concurrent": 2000,
            }
        },
        "breaker": {"failures": 5, "open_s": OPEN_S},
        "health": {"interval_s": 0.5, "slow_start_s": 3},
        "workers": {"count": 2},
    }


def _outcomes(sims: list[Simulator]) -> Counter[str]:
    found: Counter[str] = Counter()
    for sim in sims:
        found.update(sim.stats()["paths"].get(CHAT, {}).get("outcomes", {}))
    return found


def _shares(answers: list[Answered], name: str, since: float, until: float) -> list[float]:
    """What of all answers this backend gave, window by window."""
    windows = int((until - since) / WINDOW_S)
    all_, own = [0] * windows, [0] * windows
    for one in answers:
        at = int((one.done - since) / WINDOW_S)
        if one.done >= since and at < windows:
            all_[at] += 1
            own[at] += one.backend == name and one.status == 200
    return [part / whole if whole else 0.0 for part, whole in zip(own, all_, strict=True)]


async def _one_is_bad(gate: Gateway, sim: Simulator, how: str) -> tuple[Paced, float, float]:
    """One second well, `BAD_S` bad, five seconds well again; when the second began, and its end."""
    loop = asyncio.get_running_loop()
    async with paced(gate.port, "m", RATE) as clients:
        await asyncio.sleep(1)
        await asyncio.to_thread(sim.faults, FAULTS[how])
        await asyncio.sleep(BAD_S)
        if how != "refuses":
            await asyncio.to_thread(sim.faults, {})
        well = loop.time()
        await asyncio.sleep(5)
        end = loop.time()
    return clients, well, end


@pytest.mark.parametrize("how", FAULTS)
async def test_one_backend_of_four_that_fails_costs_next_to_nothing(
    sims: list[Simulator], how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with gateway(_config(sims)) as gate:
        clients, well, end = await _one_is_bad(gate, sims[0], how)
        statuses, outcomes = clients.statuses(), _outcomes(sims)
        errors = statuses.total() - statuses[200]
        faults = {
            kind: int(gate.metric("penstock_upstream_faults_total", kind=kind))
            for kind in ("connect_failed", "closed", "first_byte_timeout")
        }
        retries = {
            cause: int(gate.metric("penstock_upstream_retries_total", cause=cause))
            for cause in ("connect_failed", "stale_connection", "502", "503")
        }
        attempts = outcomes.total() + faults["connect_failed"]
        shares = _shares(clients.answers, f"127.0.0.1:{sims[0].port}", well, end)
        with capsys.disabled():
            print(
                f"\n{how}: {statuses.total()} requests, {dict(statuses)}, attempts {attempts} "
                f"({attempts / statuses.total():.4f} x), faults {faults}, retries {retries}, "
                f"at the simulators {dict(outcomes)}; share after its return, by {WINDOW_S} s: "
                f"{' '.join(f'{share:.2f}' for share in shares)}"
            )
        assert attempts <= 1.2 * statuses.total()
        expected = {
            "refuses": {},
            "503": {},
            "resets": {502: faults["closed"] - retries["stale_connection"]},
            "hangs": {504: faults["first_byte_timeout"]},
            "500": {500: outcomes["500"]},
            "429": {429: outcomes["429"]},
        }[how]
        if expected:
            assert {status: n for status, n in statuses.items() if status != 200} == expected
            assert 0 < errors < statuses.total() / 50
        else:
            assert errors <= statuses.total() / 1000
        if how != "refuses":  # the retry's own memory and the probes may be quicker
            assert ("breaker_open" in gate.log()) is (how != "429")
        assert max(shares) <= 0.4, "no burst when it comes back"
        assert shares[-1] >= 0.15, "it has its share again"
        await asyncio.to_thread(nothing_left, gate)


@pytest.mark.parametrize("how", ["refuses", "503", "500"])
async def test_a_whole_outage_brings_no_storm_and_ends_when_it_ends(
    sims: list[Simulator], how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with gateway(_config(sims)) as gate:
        loop = asyncio.get_running_loop()
        async with paced(gate.port, "m", RATE) as clients:
            await asyncio.sleep(1)
            began = loop.time()
            await asyncio.gather(*(asyncio.to_thread(sim.faults, FAULTS[how]) for sim in sims))
            await asyncio.sleep(BAD_S)
            if how != "refuses":
                await asyncio.gather(*(asyncio.to_thread(sim.faults, {}) for sim in sims))
            well = loop.time()
            await asyncio.sleep(OPEN_S + 3)
        statuses, outcomes = clients.statuses(), _outcomes(sims)
        failed = sum(n for outcome, n in outcomes.items() if outcome != "200")
        failed += int(gate.metric("penstock_upstream_faults_total", kind="connect_failed"))
        during = sum(began <= one.sent <= well for one in clients.answers)
        last = max(one.sent for one in clients.answers if one.status != 200) - well
        with capsys.disabled():
            print(
                f"\nall {how}: {statuses.total()} requests, {dict(statuses)}; of {during} during the outage "
                f"{failed} reached a backend ({failed / during:.4f}); the last failure {last:+.2f} s after its end"
            )
        # of each backend: five open its breaker, then one a second; beside them what was under way
        assert failed <= 4 * (5 + BAD_S / OPEN_S + 1) + MOST_UNDER_WAY
        assert last <= OPEN_S + 1
        assert statuses[0] == 0
        await asyncio.to_thread(nothing_left, gate)
