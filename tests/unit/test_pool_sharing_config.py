"""What the configuration says of pools that nodes share, and what it is told when that cannot work."""

from pathlib import Path

import pytest

from penstock.gateway.config import Config, ConfigError, Machine, load
from penstock.workers import store

from ..support.scripted import certificate

ROOMY = Machine(cores=frozenset(range(8)), max_descriptors=1_000_000)
ENV = {"SECRET": "s"}
WEBHOOK = """models:
  m:
    backends: [{url: 'http://h:8000'}]
    pool: {provider: webhook, url: 'http://hook', secret_env: SECRET}
"""
PROCESS = "models:\n  m: {pool: {provider: process, command: [vllm, '{port}']}}\n"
BROKEN = [
    (WEBHOOK + "pools: {lease: redis}", "$.pools.lease: `redis` needs `pools.redis`; "),
    (WEBHOOK + "pools: {redis: {url: 'redis://h'}}", "$.pools.redis: of no use without `lease: redis`; "),
    (
        WEBHOOK + "pools: {lease: kubernetes, redis: {url: 'redis://h'}}",
        "$.pools.redis: of no use without `lease: redis`; ",
    ),
    (
        PROCESS + "pools: {lease: redis, redis: {url: 'redis://h'}}",
        "$.pools.lease: no pool here can be shared by nodes; ",
    ),
    (WEBHOOK + "pools: {lease: kubernetes}", "$.pools.kubernetes.server: is missing, and this is no Pod; "),
    (
        WEBHOOK + "pools: {lease: redis, redis: {url: 'http://h'}}",
        "$.pools.redis.url: not the URL of a Redis; ",
    ),
    (
        WEBHOOK + "pools: {lease: redis, redis: {url: 'redis://h', password_env: NOT_SET}}",
        "$.pools.redis.password_env: ",
    ),
]


def loaded(source: str | Path) -> Config:
    return load(source, ENV, machine=ROOMY)


@pytest.mark.parametrize(("text", "said"), BROKEN, ids=[str(i) for i in range(len(BROKEN))])
def test_what_cannot_work_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(text)
    assert said in str(caught.value)


def test_a_shared_pool_needs_no_more_than_a_lease_and_where_it_is() -> None:
    config = loaded(WEBHOOK + "pools: {lease: redis, redis: {url: 'redis://h:6380/1'}}")
    assert config.pools.redis is not None
    assert (config.pools.lease, config.pools.redis.prefix) == ("redis", "penstock")
    server = "https://10.0.0.1:6443"
    config = loaded(WEBHOOK + f"pools: {{lease: kubernetes, kubernetes: {{server: '{server}'}}}}")
    assert config.pools.kubernetes.server == server


def test_its_certificates_are_found_from_the_files_folder(tmp_path: Path) -> None:
    pair = certificate(tmp_path, "h").name
    file = tmp_path / "penstock.yaml"
    file.write_text(WEBHOOK + f"pools: {{lease: redis, redis: {{url: 'rediss://h', tls: {{ca: {pair}}}}}}}")
    config = loaded(file)
    assert config.pools.redis is not None
    assert config.pools.redis.tls is not None
    assert config.pools.redis.tls.ca == str(tmp_path / pair)


def test_another_lease_needs_a_new_start() -> None:
    alone = loaded(WEBHOOK)
    shared = loaded(WEBHOOK + "pools: {lease: redis, redis: {url: 'redis://h'}}")
    changed = store.changed(alone, shared)
    assert {"pools.lease", "pools.redis"} <= set(store.needing(changed, store.RESTART))
