"""What a configuration comes to when the names in it have been looked up."""

from typing import Any

import pytest

from penstock.gateway.config import (
    MAX_BACKENDS,
    Backend,
    BackendTls,
    Config,
    Model,
    Published,
    Server,
    pack,
    unpack,
)
from penstock.workers import store
from penstock.workers.expand import expand, names_in


def _config(*backends: Backend, **more: Backend) -> Config:
    models = {"m": Model(backends=backends)} if backends else {}
    return Config(models=models | {name: Model(backends=(one,)) for name, one in more.items()})


def _dns(url: str = "http://vllm:8000", **keys: Any) -> Backend:
    return Backend(url=url, discover="dns", **keys)


def _srv(url: str = "http://_http._tcp.vllm.lan", **keys: Any) -> Backend:
    return Backend(url=url, discover="srv", **keys)


def _hosts(*addresses: str) -> dict[str, tuple[Server, ...]]:
    return {"dns vllm": tuple(Server(address=one) for one in addresses)}


def _backends(config: Config, found: dict[str, tuple[Server, ...]], model: str = "m") -> tuple[Backend, ...]:
    return expand(config, found)[0].models[model].backends


def test_a_configuration_without_names_is_itself() -> None:
    config = _config(Backend(url="http://a:1"))
    assert expand(config, {})[0] is config
    assert names_in(config) == []


def test_each_address_is_a_backend_with_the_keys_of_the_name() -> None:
    config = _config(_dns("http://vllm:8000/base", weight=2, zone="a", api_key_env="K", max_concurrent=7))
    keys: dict[str, Any] = {"weight": 2, "zone": "a", "api_key_env": "K", "max_concurrent": 7}
    assert _backends(config, _hosts("10.0.0.1", "fd00::1")) == (
        Backend(url="http://10.0.0.1:8000/base", **keys),
        Backend(url="http://[fd00::1]:8000/base", **keys),
    )


def test_the_port_of_a_name_may_be_the_schemes_own() -> None:
    assert _backends(_config(_dns("http://vllm")), _hosts("10.0.0.1"))[0].url == "http://10.0.0.1"


def test_before_anything_is_found_a_model_has_the_backends_that_say_where_they_are() -> None:
    config = _config(_dns(), Backend(url="http://a:1"), n=_dns())
    assert [one.url for one in _backends(config, {})] == ["http://a:1"]
    assert _backends(config, {}, "n") == ()


def test_the_name_stays_what_a_certificate_is_verified_for() -> None:
    (one,) = _backends(_config(_dns("https://vllm")), _hosts("10.0.0.1"))
    assert one.tls == BackendTls(server_name="vllm")
    kept = BackendTls(ca="/ca.pem", server_name="other")
    (one,) = _backends(_config(_dns("https://vllm", tls=kept)), _hosts("10.0.0.1"))
    assert one.tls == kept
    found = {"srv _http._tcp.vllm.lan": (Server(address="10.0.0.1", port=443, weight=1),)}
    (one,) = _backends(_config(_srv("https://_http._tcp.vllm.lan")), found)
    assert one.tls == BackendTls(server_name="vllm.lan")


def test_srv_records_say_ports_weights_and_tiers() -> None:
    servers = tuple(
        Server(address=f"10.0.0.{i}", port=8000 + i, weight=weight, priority=priority)
        for i, (weight, priority) in enumerate([(30, 10), (10, 10), (0, 20), (0, 20), (5, 50)])
    )
    made = _backends(_config(_srv(weight=2, priority=3)), {"srv _http._tcp.vllm.lan": servers})
    assert [(one.url, one.weight, one.priority) for one in made] == [
        ("http://10.0.0.0:8000", 3.0, 3),
        ("http://10.0.0.1:8001", 1.0, 3),
        ("http://10.0.0.2:8002", 2.0, 4),
        ("http://10.0.0.3:8003", 2.0, 4),
        ("http://10.0.0.4:8004", 2.0, 5),
    ]


def test_a_weight_of_nothing_is_the_least_there_is_and_tiers_end() -> None:
    servers = (
        Server(address="10.0.0.1", port=1, weight=0, priority=0),
        Server(address="10.0.0.2", port=1, weight=65535, priority=0),
        Server(address="10.0.0.3", port=1, weight=1, priority=9),
    )
    made = _backends(_config(_srv(priority=99, weight=900)), {"srv _http._tcp.vllm.lan": servers})
    assert [(one.weight, one.priority) for one in made] == [(0.001, 99), (1000.0, 99), (900.0, 99)]


def test_an_address_that_is_there_already_is_one_backend() -> None:
    config = _config(_dns(), Backend(url="http://10.0.0.1:8000/"), _dns("http://vllm:8000/"))
    made = _backends(config, _hosts("10.0.0.1", "10.0.0.2"))
    assert [one.url for one in made] == ["http://10.0.0.2:8000", "http://10.0.0.1:8000/"]


def test_there_are_never_more_than_there_is_room_for() -> None:
    many = _hosts(*(f"10.0.{i // 250}.{i % 250}" for i in range(MAX_BACKENDS + 5)))
    config = _config(_dns(), n=Backend(url="http://a:1"))
    made, left_out = expand(config, many)
    assert (len(made.models["m"].backends), left_out) == (MAX_BACKENDS - 1, 6)


def test_servers_that_are_all_others_at_once_come_in_as_columns_become_free() -> None:
    config = _config(_dns())
    old = _hosts(*(f"10.0.0.{i}" for i in range(200)))
    new = _hosts(*(f"10.0.1.{i}" for i in range(200)))
    published = store.following(config, store.first(config), old)
    sizes = []
    for _ in range(3):
        published = store.following(config, published, new)
        sizes.append(len(published.config.models["m"].backends))
    assert sizes == [56, 200, 200]


def test_the_first_generation_has_no_name_among_its_backends() -> None:
    config = _config(_dns())
    published = store.first(config)
    assert (published.config.models["m"].backends, published.indices) == ((), {})
    assert (published.told, published.found) == (config, {})
    assert unpack(pack(published)) == published


def test_a_reload_keeps_what_was_found_for_the_names_that_stay() -> None:
    config = _config(_dns(), n=_srv())
    first = store.following(config, store.first(config), _hosts("10.0.0.1"))
    second = store.following(_config(_dns(weight=5)), first)
    assert [(one.url, one.weight) for one in second.config.models["m"].backends] == [
        ("http://10.0.0.1:8000", 5.0)
    ]
    assert second.indices == first.indices
    third = store.following(_config(_srv()), second)
    assert (third.found, third.config.models["m"].backends) == ({}, ())


def test_a_column_in_which_something_is_counted_is_given_away_last() -> None:
    def after(busy: set[int], addresses: tuple[str, ...]) -> Published:
        config = _config(_dns())
        gone = store.following(config, store.first(config), _hosts("10.0.0.1"))
        gone = store.following(config, gone, _hosts("10.0.0.2"))
        return store.following(config, gone, _hosts(*addresses), busy)

    assert list(after(set(), ("10.0.0.3",)).indices.values()) == [0]
    assert list(after({0}, ("10.0.0.3",)).indices.values()) == [2]
    many = tuple(f"10.0.1.{i}" for i in range(255))
    assert list(after({0}, many).indices.values())[-1] == 0


@pytest.mark.parametrize("count", [1, 3])
def test_a_name_is_looked_up_once_however_often_it_stands_there(count: int) -> None:
    more = {f"n{i}": _dns("https://vllm:1") for i in range(count)}
    assert names_in(_config(_dns(), _srv(), **more)) == ["dns vllm", "srv _http._tcp.vllm.lan"]
