"""Two workers that share their counts, beside one process that sees everything: how long requests take, really.

Four servers, one of them four times slower. What each choice knew is checked in
`tests/integration/test_routing_counts.py`, the same comparison is made in virtual time in `tests/unit/test_choice.py`.
"""

import asyncio
import statistics

import pytest

from ..support.asking import Asker, Question
from ..support.gateway import gateway, one_model
from ..support.sim import simulator

pytestmark = pytest.mark.slow

CLIENTS = 24
EACH = 60
ROUNDS = 5


async def _p95_s(port: int) -> float:
    async def client(number: int) -> list[float]:
        async with Asker(port) as asker:
            replies = [await asker.ask(Question(f"{number} {n}")) for n in range(EACH)]
        assert {reply.status for reply in replies} == {200}
        return [reply.seconds for reply in replies[5:]]

    taken = await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return statistics.quantiles([seconds for one in taken for seconds in one], n=20)[-1]


async def test_the_p95_of_two_workers_is_within_a_tenth_of_that_of_one() -> None:
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
            ratios = []
            for _ in range(ROUNDS):  # side by side in time: the machine's mood is the same for both
                alone, shared = await _p95_s(one.port), await _p95_s(two.port)
                print(
                    f"p95: one worker {alone * 1e3:.1f} ms, two {shared * 1e3:.1f} ms, × {shared / alone:.3f}"
                )
                ratios.append(shared / alone)
    assert statistics.median(ratios) <= 1.1, ratios
