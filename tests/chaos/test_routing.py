"""Two workers that share their counts, beside one process that sees everything: how long requests take, really.

Four servers, one of them four times slower. What each choice knew is checked in
`tests/integration/test_routing_counts.py`, the same comparison is made in virtual time in `tests/unit/test_choice.py`.
"""

import asyncio

import pytest

from ..support.asking import Asker, Question
from ..support.gateway import gateway, one_model
from ..support.leaks import nothing_left
from ..support.sim import simulator

pytestmark = pytest.mark.slow

CLIENTS = 24
EACH = 100
ROUNDS = 4


async def _taken_s(port: int) -> list[float]:
    async def client(number: int) -> list[float]:
        async with Asker(port) as asker:
            replies = [await asker.ask(Question(f"{number} {n}")) for n in range(EACH)]
        assert {reply.status for reply in replies} == {200}
        return [reply.seconds for reply in replies]

    taken = await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return [seconds for one in taken for seconds in one]


def _p95_ms(taken_s: list[float]) -> float:
    return sorted(taken_s)[int(len(taken_s) * 0.95)] * 1e3


async def test_the_p95_of_two_workers_is_within_a_tenth_of_that_of_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All rounds together: the slow server has a thirteenth of the requests, and the p95 is among those."""
    with (
        simulator(model="m", decode_ms=5) as a,
        simulator(model="m", decode_ms=5) as b,
        simulator(model="m", decode_ms=5) as c,
        simulator(model="m", decode_ms=20) as slow,
    ):
        config = {
            **one_model(a.url, b.url, c.url, slow.url, max_concurrent=200),
            "health": {"slow_start_s": 0},
        }
        with (
            gateway({**config, "workers": {"count": 1}}) as one,
            gateway({**config, "workers": {"count": 2}}) as two,
        ):
            alone: list[float] = []
            shared: list[float] = []
            for _ in range(ROUNDS):  # in turn: the machine's mood is the same for both
                alone += await _taken_s(one.port)
                shared += await _taken_s(two.port)
            for gate in (one, two):
                await asyncio.to_thread(nothing_left, gate)
    ratio = _p95_ms(shared) / _p95_ms(alone)
    with capsys.disabled():
        print(f"\np95: one worker {_p95_ms(alone):.1f} ms, two {_p95_ms(shared):.1f} ms, × {ratio:.3f}")
    assert ratio <= 1.1
