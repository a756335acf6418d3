"""What the controller tells of the node."""

import re
from collections.abc import Iterator

import pytest

from penstock.cache.layout import Geometry
from penstock.cache.pool_table import PoolPhase
from penstock.cache.segment import Segment
from penstock.cache.table import DOWN, UP, BackendState
from penstock.gateway.config import Backend, Config, Health, Model, Published
from penstock.workers import scrape, store
from penstock.workers.status import Status


@pytest.fixture
def segment() -> Iterator[Segment]:
    made = Segment.create(None, Geometry(slots=2, backends=8, models=8), owner_pid=1, owner_start=1)
    yield made
    made.close()


def _published(*urls: str) -> Published:
    backends = tuple(Backend(url=url) for url in urls)
    return store.first(Config(models={"m": Model(backends=backends)}, health=Health(fall=1)))


def test_a_backend_has_one_name_in_every_family(segment: Segment) -> None:
    published = _published("https://vllm/base", "unix:///run/v.sock")
    text = scrape.render(
        segment, Status(segment, lambda: published, lambda _: BackendState(health=UP)).metrics()
    ).decode()
    for family in ("penstock_backend_up", "penstock_inflight_requests"):
        found = re.findall(family + r'\{backend="([^"]*)",model="m"\}', text)
        assert found == ["vllm:443", "/run/v.sock"]


def test_urls_that_share_a_name_are_one_series_that_is_up_when_all_are(segment: Segment) -> None:
    published = _published("http://vllm:1/a", "http://vllm:1/b")
    down = published.indices[store.backend_key("m", "http://vllm:1/b")]
    status = Status(
        segment, lambda: published, lambda index: BackendState(health=DOWN if index == down else UP)
    )
    text = scrape.render(segment, status.metrics()).decode()
    assert re.findall(r"^penstock_backend_up\S* (\S+)$", text, re.M) == ["0.0"]


@pytest.mark.parametrize(
    ("phase", "told"),
    [
        (PoolPhase.OFF, []),
        (PoolPhase.STARTING, []),
        (PoolPhase.ASLEEP, []),
        (PoolPhase.READY, ["0.0"]),
        (PoolPhase.DRAINING, ["0.0"]),
    ],
)
def test_a_server_that_sleeps_is_neither_up_nor_down(
    segment: Segment, phase: PoolPhase, told: list[str]
) -> None:
    published = _published("http://vllm:1")
    status = Status(segment, lambda: published, lambda _: BackendState(health=DOWN, pool_state=int(phase)))
    text = scrape.render(segment, status.metrics()).decode()
    assert re.findall(r"^penstock_backend_up\S* (\S+)$", text, re.M) == told
