"""A snapshot of models and backends: routes, heads, and what a reload keeps."""

from typing import Any

import msgspec
import pytest
import yaml

from penstock.gateway.config import Published
from penstock.gateway.config.model import Backend as BackendConfig
from penstock.gateway.config.structs import UpstreamSettings
from penstock.gateway.errors import Fault
from penstock.gateway.fleet import Fleet, build
from penstock.gateway.models import list_models, show_model
from penstock.gateway.upstream.pool import Pool

from ..support.dataplane import published

ENVIRON = {"KEY": "sk-secret"}


class Pools:
    """Makes stand-ins for pools and remembers for which backend."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def __call__(self, backend: BackendConfig, _: UpstreamSettings) -> Pool:
        self.made.append(backend.url)
        return object()  # type: ignore[return-value]


def config(*urls: str, **more: Any) -> Published:
    models = {"m": {"aliases": ["a", "b"], "backends": [{"url": url} for url in urls], **more}}
    return published(yaml.safe_dump({"models": models}))


def fleet(*urls: str, pools: Pools | None = None, previous: Fleet | None = None, **more: Any) -> Fleet:
    return build(config(*urls, **more), ENVIRON, pools or Pools(), previous)


def test_a_model_is_reached_by_its_name_and_by_each_alias() -> None:
    made = fleet("http://a:1")
    assert set(made.routes) == {"m", "a", "b"}
    assert {route.model.name for route in made.routes.values()} == {"m"}
    assert made.routes["m"].alias is None
    alias = made.routes["a"].alias
    assert alias is not None
    assert (alias.alias, alias.model) == ("a", "m")


def test_a_reload_keeps_the_pools_and_the_health_of_backends_that_stay() -> None:
    pools = Pools()
    old = fleet("http://a:1", "http://b:1", pools=pools)
    old.backends[0].up = False
    new = fleet("http://a:1", "http://c:1", pools=pools, previous=old)
    assert pools.made == ["http://a:1", "http://b:1", "http://c:1"]
    assert new.backends[0].pool is old.backends[0].pool
    assert [backend.up for backend in new.backends] == [False, True]


def test_a_reload_keeps_what_was_learned_of_a_backend() -> None:
    old = fleet("http://a:1", "http://b:1")
    old.backends[0].ewma.observe(2.0, 1.0)
    old.backends[0].credit = -3.0
    old.backends[0].hint = 4.0
    new = fleet("http://b:1", "http://a:1", "http://c:1", previous=old)
    assert [b.ewma.cost(1.0) for b in new.backends] == [0.0, 2.0, 0.0]
    assert [b.credit for b in new.backends] == [0.0, -3.0, 0.0]
    assert [b.hint for b in new.backends] == [0.0, 4.0, 0.0]


def test_a_model_has_the_places_of_its_backends_that_are_up_and_never_more_than_its_own() -> None:
    backends = [{"url": "http://a:1", "max_concurrent": 3}, {"url": "http://b:1", "max_concurrent": 4}]

    def places(*down: int, **more: Any) -> int:
        models = {"m": {"backends": backends, "max_concurrent": 6, **more}}
        model = build(published(yaml.safe_dump({"models": models})), ENVIRON, Pools()).models[0]
        for index in down:
            model.backends[index].up = False
        model.count_places()
        return model.places

    assert places() == 6
    assert places(max_concurrent=9) == 7
    assert (places(0), places(1)) == (4, 3)
    assert places(0, 1) == 6, "who asks is told that nobody answers"
    backends[0].pop("max_concurrent")
    assert (places(), places(0)) == (6, 4)


def test_a_backend_whose_connections_are_made_otherwise_gets_a_new_pool() -> None:
    pools = Pools()
    old = build(published(yaml.safe_dump(tls(insecure=False))), ENVIRON, pools)
    new = build(published(yaml.safe_dump(tls(insecure=True))), ENVIRON, pools, old)
    assert len(pools.made) == 2
    assert new.backends[0].pool is not old.backends[0].pool


def tls(**settings: Any) -> dict[str, Any]:
    return {"models": {"m": {"backends": [{"url": "https://a:1", "tls": settings}]}}}


def test_a_head_names_the_backend_and_carries_its_key_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "sk-secret")
    made = fleet(backends=[{"url": "http://a:1/base", "api_key_env": "KEY"}])
    head = made.backends[0].head("POST", "/v1/completions?x=y")
    assert head == (
        "POST /base/v1/completions?x=y HTTP/1.1\r\nhost: a:1\r\nauthorization: Bearer sk-secret\r\n"
    )


def test_heads_of_endless_targets_are_not_kept() -> None:
    backend = fleet("http://a:1").backends[0]
    for number in range(500):
        assert f"/v1/responses/{number} " in backend.head("GET", f"/v1/responses/{number}")
    assert len(backend._heads) <= 64


def test_models_answer_also_while_all_their_backends_are_down() -> None:
    made = fleet("http://a:1", max_model_len=4096)
    made.backends[0].up = False
    cards = msgspec.json.decode(list_models(made))["data"]
    assert [(card["id"], card["root"], card["state"]) for card in cards] == [
        ("m", "m", "down"),
        ("a", "m", "down"),
        ("b", "m", "down"),
    ]
    made.backends[0].up = True
    card = msgspec.json.decode(show_model(made, "a"))
    assert (card["id"], card["state"], card["max_model_len"]) == ("a", "ready", 4096)


def test_a_model_that_was_never_configured_is_404_and_the_message_lists_those_that_were() -> None:
    with pytest.raises(Fault) as caught:
        show_model(fleet("http://a:1"), "nope")
    assert caught.value.status == 404
    assert "m, a, b" in caught.value.message
