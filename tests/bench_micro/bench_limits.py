"""What limits cost a request: admitted, its tokens reserved, its usage found and settled; high limits and low."""

from collections.abc import Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from penstock.cache.layout import Geometry
from penstock.cache.outcome import Outcome
from penstock.cache.rows import Tally, TallyRow
from penstock.cache.segment import Segment
from penstock.gateway.caller import Caller
from penstock.gateway.config import MAX_BACKENDS
from penstock.gateway.endpoints import ENDPOINTS
from penstock.gateway.life import Life
from penstock.gateway.limits.limits import Limits
from penstock.gateway.metrics import Family
from penstock.gateway.parse import Parser
from penstock.gateway.raw import RawRequest

from .material import SLOTS

PATH = "/v1/chat/completions"
BODY = b'{"model":"m","messages":[{"role":"user","content":"%s"}],"max_tokens":16}' % (b"x" * 400)
ANSWER = b'{"choices":[{"message":{"content":"%s"}}],"usage":{"prompt_tokens":100,"total_tokens":116}}' % (
    b"y" * 400
)


class Uncounted:
    def count(self, family: Family, *labels: str, n: int = 1) -> None: ...


class Clock:
    """20 ms later each time it is asked."""

    def __init__(self) -> None:
        self.now = 10**12

    def __call__(self) -> int:
        self.now += 20_000_000
        return self.now


@pytest.fixture
def limits() -> Iterator[Limits]:
    geometry = Geometry(slots=SLOTS, gates=MAX_BACKENDS + 4, keys=4)
    segment = Segment.create(None, geometry, owner_pid=1, owner_start=1)
    row, tally = TallyRow(segment, 0), Tally(segment)
    yield Limits(segment, row, tally, Uncounted(), workers=2, clock_ns=Clock())
    segment.close()


@pytest.mark.parametrize(
    ("name", "limited"),
    [
        ("requests", {"rpm": 600_000}),
        ("all", {"rpm": 600_000, "tpm": 600_000_000, "concurrent": 100}),
        ("low", {"rpm": 2_900, "tpm": 1_000_000_000, "burst": 2_900}),
    ],
)
def test_admit_and_settle(
    benchmark: BenchmarkFixture, limits: Limits, name: str, limited: dict[str, int]
) -> None:
    caller = Caller("tenant", id="key", row=0, **limited)
    request = Parser().parse(
        ENDPOINTS[PATH], RawRequest("POST", PATH, "", "", "application/json", "id", BODY)
    )
    life = Life()
    life.cache, life.status = Outcome.MISS.value, 200
    clock = limits.clock_ns

    def serve() -> None:
        grant = limits.admit(caller)
        grant.reserve(request)
        grant.answered(ANSWER)
        grant.end(life)
        clock()

    benchmark(serve)


def test_fields(benchmark: BenchmarkFixture, limits: Limits) -> None:
    caller = Caller("tenant", id="key", row=0, rpm=600_000, tpm=600_000_000)
    grant = limits.admit(caller)
    fields = [("content-type", "application/json"), ("x-request-id", "a"), ("x-penstock-backend", "b")]
    assert len(benchmark(grant.fields, fields)) == 9
