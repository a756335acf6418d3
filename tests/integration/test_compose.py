"""deploy/compose: docker-compose takes it, and its services, started here with the words it has for them, serve."""

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from penstock.gateway.config import Machine, load

from ..support.gateway import gateway
from ..support.haproxy import haproxy
from ..support.procs import console_script, run, wait_until
from ..support.redis import RedisServer
from ..support.sim import simulator

FOLDER = Path(__file__).parents[2] / "deploy" / "compose"
FILE = FOLDER / "compose.yaml"
KEY = "0123456789abcdef"
SITE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, Any] = SITE["services"]
CONFIG = (FOLDER / "penstock.yaml").read_text()
MIB = 1 << 20

needs_compose = pytest.mark.skipif(
    shutil.which("docker-compose") is None, reason="docker-compose is not installed"
)


def compose(file: Path, **env: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if name != "PENSTOCK_ADMIN_KEY"} | env
    return subprocess.run(
        ["docker-compose", "-f", str(file), "config"],
        capture_output=True,
        text=True,
        env=environ,
        timeout=60,
        check=False,
    )


@needs_compose
def test_docker_compose_takes_the_file_and_what_it_mounts_is_there():
    done = compose(FILE, PENSTOCK_ADMIN_KEY=KEY)

    assert done.returncode == 0, done.stderr
    said = yaml.safe_load(done.stdout)
    assert set(said["services"]) == {
        *("haproxy", "gateway-a", "gateway-b", "redis-cache", "redis-limits"),
        *("sim-a", "sim-b", "prometheus", "grafana"),
    }
    mounts = [volume.split(":")[0] for one in said["services"].values() for volume in one.get("volumes", ())]
    folders = [Path(path) for path in mounts if path.startswith("/")]
    assert len(folders) >= 7
    assert [path for path in folders if not path.exists()] == []
    build = said["services"]["gateway-a"]["build"]
    assert (Path(build["context"]) / build["dockerfile"]).exists()


@needs_compose
def test_docker_compose_wants_a_key_and_finds_what_is_wrong(tmp_path):
    without = compose(FILE)
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(FILE.read_text().replace("shm_size:", "shm_sice:"))

    assert without.returncode != 0
    assert "the key of the admin port" in without.stderr
    assert compose(wrong, PENSTOCK_ADMIN_KEY=KEY).returncode != 0


def test_shared_memory_descriptors_and_time_are_enough_for_the_configuration():
    one = SERVICES["gateway-a"]
    descriptors = one["ulimits"]["nofile"]["hard"]
    config = load(CONFIG, {"PENSTOCK_ADMIN_KEY": KEY}, machine=Machine(frozenset({0, 1}), int(descriptors)))

    assert int(one["shm_size"].removesuffix("m")) * MIB >= config.cache.l1.size + 64 * MIB
    assert int(one["stop_grace_period"].removesuffix("s")) > config.workers.drain_timeout_s
    assert one == SERVICES["gateway-b"]


def words(service: str) -> list[str]:
    command: list[str] = SERVICES[service]["command"]
    return command


class Site:
    """Everything of the compose file but Prometheus and Grafana, on loopback."""

    def __init__(self, stack: ExitStack) -> None:
        self.cache, self.limits = (
            stack.enter_context(RedisServer(_settings(words(name))))
            for name in ("redis-cache", "redis-limits")
        )
        self.sims = [stack.enter_context(simulator(*_sim(words(name)))) for name in ("sim-a", "sim-b")]
        env = {
            "PENSTOCK_ADMIN_KEY": KEY,
            "REDIS_CACHE": self.cache.address,
            "REDIS_LIMITS": self.limits.address,
            "SIM_A": self.sims[0].url.removeprefix("http://"),
            "SIM_B": self.sims[1].url.removeprefix("http://"),
        }
        plain = yaml.safe_load(CONFIG)
        plain["listen"] = {}  # ports of this machine
        plain["admin"] = {key: value for key, value in plain["admin"].items() if key == "key_env"}
        plain["workers"] |= {"count": 1, "drain_delay_s": 0}
        plain["cache"]["l1"]["size"] = "32MiB"
        self.gates = [stack.enter_context(gateway(plain, env=env, ready="/ready")) for _ in range(2)]
        self.balancer = stack.enter_context(haproxy(self.gates[0].port, self.gates[1].port))
        make = ["keys", "create", "--tenant", "me", "--json", "-c", str(self.gates[0].file)]
        status, output = run([console_script(), *make], env=env)
        assert status == 0, output
        self.key: str = json.loads(output)["key"]


def _settings(command: list[str]) -> dict[str, str]:
    """redis-server's arguments; what the test's own server sets by itself is left out."""
    assert command[0] == "redis-server"
    pairs = dict(zip(command[1::2], command[2::2], strict=True))
    return {
        name.removeprefix("--"): value
        for name, value in pairs.items()
        if name not in ("--save", "--appendonly")
    }


def _sim(command: list[str]) -> list[str]:
    """A simulator's arguments without where it listens."""
    assert command[:5] == ["sim", "--host", "0.0.0.0", "--port", "8000"]
    return command[5:]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(stack)


def test_the_site_answers_through_haproxy_and_both_gateways_share_one_cache(site):
    question = {"model": "gpt-4o-mini", "temperature": 0, "messages": [{"role": "user", "content": "hello"}]}
    bearer = {"authorization": f"Bearer {site.key}"}
    with httpx.Client(timeout=20, trust_env=False, headers=bearer) as asking:

        def ask(url: str) -> httpx.Response:
            return asking.post(f"{url}/v1/chat/completions", json=question)

        def known() -> bool:
            listed = [asking.get(f"{gate.url}/v1/models").status_code for gate in site.gates]
            return listed == [200, 200]

        # made with one gateway's configuration, kept where both look
        wait_until(known, 10, "both know the key")
        first, second = ask(site.balancer.url), ask(site.balancer.url)
        assert (first.status_code, second.status_code) == (200, 200), first.text
        assert [a.headers["x-penstock-cache"] for a in (first, second)] == ["MISS", "HIT-L1"]
        # stored in the background; then whoever has not got it finds it in Redis
        wait_until(lambda: site.cache.info("keyspace"), 10, "the answer is in Redis")
        assert {ask(gate.url).headers["x-penstock-cache"] for gate in site.gates} == {"HIT-L1", "HIT-L2"}


def test_the_redis_of_the_limits_forgets_nothing_and_that_of_the_cache_may(site):
    policies = [one.info("memory")["maxmemory_policy"] for one in (site.cache, site.limits)]
    assert policies == ["allkeys-lru", "noeviction"]
    # nor does the gateway warn of it
    assert "noeviction" not in site.gates[0].log()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_takes_its_file_and_reads_its_key_from_the_environment(tmp_path):
    shutil.copy(FOLDER / "prometheus.yml", tmp_path)
    shutil.copy(FOLDER.parent / "prometheus" / "rules.yml", tmp_path)
    text = (tmp_path / "prometheus.yml").read_text()
    key = tmp_path / "admin-key"
    assert "/tmp/admin-key" in text
    (script,) = words("prometheus")
    write = script.partition("&&")[0].replace("$$", "$").replace("/tmp/admin-key", shlex.quote(str(key)))

    assert run(["/bin/sh", "-c", write], env={"PENSTOCK_ADMIN_KEY": KEY}) == (0, "")
    assert key.read_text() == KEY
    (tmp_path / "prometheus.yml").write_text(text.replace("/tmp/admin-key", str(key)))
    status, output = run(["promtool", "check", "config", str(tmp_path / "prometheus.yml")])
    assert status == 0, output


def test_everything_that_is_scraped_is_a_service():
    scraped = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    targets = {target for job in scraped for one in job["static_configs"] for target in one["targets"]}
    assert targets == {"gateway-a:9090", "gateway-b:9090", "haproxy:8405"}
    assert {target.partition(":")[0] for target in targets} <= set(SERVICES)
    assert SERVICES["haproxy"]["environment"]["PENSTOCK_STATS"] == ":8405"
    assert (
        load(CONFIG, {"PENSTOCK_ADMIN_KEY": KEY}, machine=Machine(frozenset({0}), 1 << 20)).admin.port == 9090
    )


def test_names_that_the_configuration_and_haproxy_ask_for_are_services():
    environment = SERVICES["haproxy"]["environment"]
    config = load(CONFIG, {"PENSTOCK_ADMIN_KEY": KEY}, machine=Machine(frozenset({0}), 1 << 20))
    assert config.cache.l2 is not None
    assert config.limits.redis is not None
    urls = [config.cache.l2.url, config.limits.redis.url]
    urls += [backend.url for backend in config.models["qwen3-coder"].backends]
    hosts = [url.partition("://")[2].partition(":")[0] for url in urls]
    hosts += [environment[name].partition(":")[0] for name in ("PENSTOCK_A", "PENSTOCK_B")]
    assert len(hosts) == 6
    assert set(hosts) <= set(SERVICES)
    ports = {environment[name].partition(":")[2] for name in ("PENSTOCK_A", "PENSTOCK_B")}
    assert ports == {str(config.listen.port)}
