"""The double of the Docker Engine is one that the `docker` command takes for an engine."""

import os
import shutil
from collections.abc import Callable, Iterator

import pytest

from tests.support.docker_containers import sim_image
from tests.support.docker_engine import DockerDouble, docker_engine
from tests.support.procs import run, wait_until

pytestmark = pytest.mark.skipif(shutil.which("docker") is None, reason="no docker command here")

Docker = Callable[..., tuple[int, str]]


@pytest.fixture
def engine() -> Iterator[DockerDouble]:
    with docker_engine() as double:
        double.images["vllm:latest"] = sim_image()
        yield double


@pytest.fixture
def docker(engine: DockerDouble) -> Docker:
    env = {**os.environ, "DOCKER_HOST": f"unix://{engine.socket}"}
    return lambda *words: run(["docker", *words], env=env, timeout_s=30)


def test_a_container_is_made_started_seen_read_and_removed(engine: DockerDouble, docker: Docker):
    made = "create --name one -p 127.0.0.1::8000 --label a=b vllm --port 8000"
    assert docker(*made.split())[0] == 0
    assert "Created" in docker("ps", "-a")[1]
    assert docker("start", "one") == (0, "one\n")
    (container,) = engine.containers
    assert docker("port", "one") == (0, f"8000/tcp -> 127.0.0.1:{container.published}\n")
    listed = docker("ps", "--no-trunc", "--filter", "label=a=b", "--format", "{{.ID}} {{.Names}} {{.State}}")
    assert listed == (0, f"{container.ident} one running\n")
    assert docker("ps", "--filter", "label=a=c", "-q") == (0, "")
    wait_until(lambda: "serving" in docker("logs", "one")[1], what="the log")
    assert docker("inspect", "-f", "{{.State.Status}} {{.Config.Labels.a}}", "one") == (0, "running b\n")
    status, said = docker("rm", "one")
    assert (status, "container is running" in said) == (1, True)
    assert docker("stop", "-t", "5", "one") == (0, "one\n")
    assert docker("wait", "one") == (0, "0\n")
    assert docker("rm", "one") == (0, "one\n")
    assert engine.containers == []


def test_a_name_is_given_once_and_an_image_that_nobody_has_is_not_run(engine: DockerDouble, docker: Docker):
    assert docker("create", "--name", "one", "vllm")[0] == 0
    status, said = docker("create", "--name", "one", "vllm")
    assert status == 1
    assert 'The container name "/one" is already in use by container' in said
    status, said = docker("create", "--name", "two", "nowhere")
    assert status == 1
    assert "pull access denied for nowhere" in said


def test_an_image_is_fetched_from_the_registry(engine: DockerDouble, docker: Docker):
    engine.registry["far:latest"] = sim_image()
    assert docker("create", "--name", "one", "far")[0] == 0
    assert "far:latest" in engine.images


def test_gpus_without_their_runtime_are_refused_as_by_the_engine(engine: DockerDouble, docker: Docker):
    assert docker("create", "--name", "one", "--gpus", "driver=nvidia,count=1", "vllm")[0] == 0
    status, said = docker("start", "one")
    assert status == 1
    assert 'could not select device driver "nvidia" with capabilities: [[gpu]]' in said
