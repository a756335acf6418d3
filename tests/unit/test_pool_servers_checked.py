"""What is told, before anything starts, of pools whose servers could not be started or could not sleep."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.gateway.config import GIB, Config, load
from penstock.gateway.config.check_pools import pool_faults
from penstock.workers.cli import main
from tests.support.nvml import FakeGpu, FakeLibrary, pynvml_over

VLLM = ["vllm", "serve", "Qwen/Qwen3-8B", "--port", "{port}"]
DOCKER = {"provider": "docker", "image": "vllm/vllm-openai:v0.11.0"}
WEBHOOK = {"provider": "webhook", "url": "https://hooks.lan/x", "secret_env": "SECRET"}


def faults(pool: dict[str, Any], *backends: dict[str, Any], gpus: Sequence[dict[str, Any]] = ()) -> list[str]:
    models = {"m": {"pool": pool, "backends": list(backends)}}
    config = msgspec.convert({"models": models, "pools": {"gpus": list(gpus)}}, Config)
    return [f"{path}: {fault}" for path, fault, _ in pool_faults(config, {"SECRET": "s"})]


def sleeps(*command: str) -> bool:
    told = faults({"provider": "process", "command": list(command), "sleep_after_s": 60})
    assert told in (
        [],
        ["$.models.m.pool.sleep_after_s: vLLM gives back no memory without its `--enable-sleep-mode`"],
    )
    return not told


@pytest.mark.parametrize(
    "command",
    [
        [*VLLM],
        ["/opt/venv/bin/vllm", "serve", "x", "--port={port}"],
        ["env", "A=b", "vllm", "serve", "x", "--port={port}"],
        ["bash", "-c", "exec vllm serve x --port {port}"],
        ["python", "-m", "vllm.entrypoints.openai.api_server", "--port={port}"],
    ],
    ids=["plain", "path", "env", "shell", "module"],
)
def test_a_vllm_that_is_to_sleep_needs_its_sleep_mode(command: list[str]):
    assert not sleeps(*command)
    assert sleeps(*command[:-1], f"{command[-1]} --enable-sleep-mode")
    assert sleeps(*command, "--enable-sleep-mode")
    assert sleeps(*command, "--enable_sleep_mode")
    assert sleeps(*command, "--config", "vllm.yaml")  # which may say it
    assert faults({"provider": "process", "command": command}) == []


def test_a_level_of_sleep_needs_a_time_to_sleep():
    assert faults(DOCKER | {"sleep_level": 1}) == [
        "$.models.m.pool.sleep_level: of no use without `sleep_after_s`"
    ]
    command = ["--enable-sleep-mode"]
    assert faults(DOCKER | {"sleep_level": 2, "sleep_after_s": 60, "command": command}) == []


@pytest.mark.parametrize(
    ("pool", "told"),
    [
        ({"gpus": 2, "memory": 40 * GIB}, []),
        ({"gpus": 0, "memory": 4000 * GIB}, []),
        ({"gpus": 3}, ["$.models.m.pool.gpus: 3 for each server, and this node has 2"]),
        (
            {"gpus": 2, "memory": 80 * GIB},
            ["$.models.m.pool.memory: of 2 GPUs, and this node has 1 with as much"],
        ),
        ({"memory": 81 * GIB}, ["$.models.m.pool.memory: of 1 GPU, and this node has 0 with as much"]),
    ],
    ids=["fits", "none", "number", "two", "one"],
)
def test_a_server_that_no_gpus_of_this_node_could_carry_is_refused(pool: dict[str, Any], told: list[str]):
    gpus = [{"memory": 40 * GIB}, {"memory": 80 * GIB}]
    assert faults(DOCKER | pool, gpus=gpus) == told
    assert faults(DOCKER | pool) == []  # nobody knows
    elsewhere = WEBHOOK | {key: value for key, value in pool.items() if key == "gpus"}
    assert faults(elsewhere, {"url": "http://a"}, gpus=gpus) == []


@pytest.mark.parametrize(
    "command",
    [["penstock", "sim", "{port}"], ["./serve-vllm.sh", "{port}"], ["vllm-wrapper", "serve", "{port}"]],
)
def test_of_other_commands_nobody_knows_what_they_run(command: list[str]):
    assert sleeps(*command)


def test_an_image_of_vllm_that_is_to_sleep_needs_its_sleep_mode():
    (told,) = faults(DOCKER | {"sleep_after_s": 60})
    assert told.startswith("$.models.m.pool.sleep_after_s: vLLM gives back no memory")
    assert faults(DOCKER | {"sleep_after_s": 60, "command": ["--enable-sleep-mode"]}) == []
    assert faults(DOCKER | {"sleep_after_s": 60, "image": "my/own"}) == []
    assert faults(DOCKER) == []


def test_servers_without_addresses_of_their_own_do_not_sleep_one_by_one():
    one, two = {"url": "http://a"}, {"url": "http://b"}
    named = {"url": "http://a", "discover": "dns"}
    asleep = WEBHOOK | {"sleep_after_s": 60}
    told = [
        "$.models.m.pool.sleep_after_s: servers without addresses of their own cannot be put to sleep one by one"
    ]
    assert faults(asleep | {"max": 2}, one) == told
    assert faults(asleep | {"max": 2}, named, one) == told
    assert faults(asleep | {"max": 2}, one, two) == []
    assert faults(asleep, named) == []
    assert faults(WEBHOOK | {"max": 2}, one) == []


@pytest.mark.parametrize("url", ["ftp://h/", "https://", "hooks.lan/x", "http://h:99999/", "https://[::1/"])
def test_a_webhook_is_a_web_address(url: str):
    (told,) = faults(WEBHOOK | {"url": url}, {"url": "http://a"})
    assert told == "$.models.m.pool.url: neither http nor https, or without a host"


def test_the_socket_of_docker_is_a_path():
    assert faults(DOCKER | {"socket": "unix:///run/user/1000/docker.sock"}) == []
    (told,) = faults(DOCKER | {"socket": "tcp://10.0.0.1:2375"})
    assert told == "$.models.m.pool.socket: not an absolute path"


KUBERNETES = {"provider": "kubernetes"}
IN_POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KEY": "k"}


def kube_faults(
    pool: dict[str, Any], *backends: dict[str, Any], environ: dict[str, str] = IN_POD
) -> list[str]:
    models = {"m": {"pool": KUBERNETES | pool, "backends": list(backends)}}
    config = msgspec.convert({"models": models}, Config)
    return [path for path, _, _ in pool_faults(config, environ)]


def test_outside_of_a_cluster_it_must_be_said_where_the_kubernetes_api_is():
    assert kube_faults({"vllm_model": "q"}) == []
    assert kube_faults({"vllm_model": "q"}, environ={}) == ["$.pools.kubernetes.server"]


def test_replicas_of_a_deployment_cannot_be_told_apart():
    server = {"url": "http://vllm"}
    several = {"kind": "deployment", "name": "vllm"}
    assert kube_faults({"scale": several, "max": 2}, server) == ["$.models.m.pool.max"]
    assert kube_faults({"scale": several}, server) == []
    assert (
        kube_faults({"scale": several | {"kind": "statefulset"}, "max": 2}, server, {"url": "http://b"}) == []
    )


def test_pods_have_as_many_gpus_as_they_are_to_use():
    wide = {"vllm_model": "q", "pod": {"tensor_parallel_size": 2}}
    assert kube_faults(wide) == ["$.models.m.pool.pod.tensor_parallel_size"]
    assert kube_faults(wide | {"gpus": 2}) == []
    assert kube_faults(wide | {"gpus": 0}) == []


def test_pods_that_are_asked_with_a_key_get_it_from_a_secret():
    assert kube_faults({"vllm_model": "q", "api_key_env": "KEY"}) == ["$.models.m.pool.pod.secrets"]
    assert kube_faults({"vllm_model": "q", "api_key_env": "KEY", "pod": {"secrets": ["vllm"]}}) == []


def test_files_of_the_kubernetes_api_start_at_the_configurations_folder(tmp_path):
    file = tmp_path / "penstock.yaml"
    file.write_text(
        "models: {m: {pool: {provider: kubernetes, vllm_model: q}}}\n"
        "pools: {kubernetes: {server: https://k, token_file: token, ca: /etc/ca.pem}}\n"
    )
    api = load(file, {}).pools.kubernetes
    assert (api.token_file, api.ca) == (str(tmp_path / "token"), "/etc/ca.pem")


def test_a_command_that_does_not_say_the_port_is_refused_before_it_is_waited_for():
    (told,) = faults({"provider": "process", "command": ["vllm", "serve", "x", "--port", "8000"]})
    assert told.startswith("$.models.m.pool.command: nothing tells the server on which port to listen")
    assert faults({"provider": "process", "command": ["sh", "-c", "exec vllm serve x --port {port}"]}) == []
    assert faults(DOCKER | {"command": ["--model", "x"]}) == [], "a container's port is its own"


def test_what_this_machine_could_not_carry_is_told_of_a_file_that_does_not_say_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "pynvml", pynvml_over(FakeLibrary([FakeGpu(80 * GIB)])))
    file = tmp_path / "p.yaml"
    text = "models: {m: {pool: {provider: docker, image: i, gpus: %d}}}\n"
    file.write_text(text % 2)
    assert main(["config", "check", str(file)]) == 0  # it may be for another machine
    assert capsys.readouterr().out == (
        f"{file}: good, but on this machine\n"
        f"{file}: $.models.m.pool.gpus: 2 for each server, and this node has 1; lower it, or run it elsewhere\n"
    )
    for good in (text % 1, text % 2 + "pools: {gpus: [{memory: 8GiB}, {memory: 8GiB}]}\n"):
        file.write_text(good)
        assert main(["config", "check", str(file)]) == 0
        assert capsys.readouterr().out == f"{file}: good\n"
    monkeypatch.setitem(sys.modules, "pynvml", None)  # is not installed
    file.write_text(text % 2)
    assert main(["config", "check", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: good\n"
