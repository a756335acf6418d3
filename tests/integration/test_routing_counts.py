"""Two workers, four servers, one of them four times slower: what each choice knew, and how near it came to the least.

The gateway writes down what its workers read as they choose and what they count (`support/recorded.py`); it is checked
when it has ended. How long requests take is for `tests/chaos/test_routing.py`.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ..chaos.load import load
from ..support.gateway import gateway, one_model
from ..support.recorded import read_back, truths
from ..support.scripted import until
from ..support.sim import Simulator, simulator

WORKERS = 2
CLIENTS = 20
REQUESTS = 1200


@pytest.fixture(scope="module")
def sims() -> Iterator[list[Simulator]]:
    with ExitStack() as stack:
        yield [stack.enter_context(simulator(model="m", decode_ms=ms)) for ms in (2, 2, 2, 8)]


async def _recorded(sims: list[Simulator], folder: Path, *flags: str) -> None:
    config = {
        **one_model(*(sim.url for sim in sims), max_concurrent=200),
        "workers": {"count": WORKERS, "drain_delay_s": 0},
        # what servers say of themselves moves choices too; here counts alone do
        "health": {"interval_s": 600, "slow_start_s": 0},
    }
    command = [sys.executable, "-m", "tests.support.recorded", str(folder), *flags]
    with gateway(config, command=command) as gate:
        async with load(gate.port, "m", CLIENTS) as clients:
            await until(lambda: clients.done >= REQUESTS)
        assert set(clients.answered) == {200}
        assert clients.lost == []


def _checked(folder: Path) -> tuple[Counter[str], int, int]:
    """(choices by worker, how many read what was not so, by how much the worst missed the least)."""
    chosen, added = read_back(folder)
    assert sum(add.n for add in added) == 0  # every one was given back
    by_worker: Counter[str] = Counter()
    untrue = worst = 0
    for one, truth in truths(chosen, added):
        by_worker[one.worker] += 1
        untrue += any(not low <= one.read[index] <= high for index, (low, high) in truth.items())
        worst = max(worst, truth[one.index][0] - min(high for _, high in truth.values()))
    return by_worker, untrue, worst


async def test_each_choice_is_within_one_of_the_least_busy(sims: list[Simulator], tmp_path: Path) -> None:
    await _recorded(sims, tmp_path)
    by_worker, untrue, worst = _checked(tmp_path)
    assert by_worker.total() >= REQUESTS
    assert len(by_worker) == WORKERS
    assert untrue == 0
    assert worst <= WORKERS - 1


async def test_the_check_finds_workers_that_count_themselves_alone(
    sims: list[Simulator], tmp_path: Path
) -> None:
    await _recorded(sims, tmp_path, "--own-only")
    _, untrue, worst = _checked(tmp_path)
    assert untrue > 100
    assert worst > WORKERS - 1
