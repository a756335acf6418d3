"""A pool of containers behind the real gateway, made through a double of the Docker Engine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.support.docker_containers import sim_image
from tests.support.docker_engine import DockerDouble, docker_engine
from tests.support.gateway import gateway
from tests.support.placed_pools import IMAGE, in_containers
from tests.support.pool_gateway import ask, kill_controller, phases, pool, wait_phase
from tests.support.procs import wait_until


@pytest.fixture
def engine() -> Iterator[DockerDouble]:
    with docker_engine() as double:
        double.images[IMAGE] = sim_image()
        yield double


def test_from_zero_to_an_answer_and_to_zero_again(engine: DockerDouble):
    with gateway(in_containers(engine, idle_timeout_s=0.5)) as g:
        answer = ask(g)
        assert (answer.status_code, "x-penstock-wake-ms" in answer.headers) == (200, True)
        (container,) = engine.containers
        wait_phase(g, "off")
        assert engine.containers == []
        assert container.exit_code == 0
        assert phases(g) == ["off", "starting", "ready", "draining", "stopping", "off"]


def test_an_image_that_nobody_has_is_503_with_the_reason(engine: DockerDouble):
    with gateway(in_containers(engine, image="nobody/has:this")) as g:
        answer = ask(g)
        assert answer.status_code == 503
        assert "image nobody/has:this is missing" in answer.json()["error"]["message"]
        assert int(answer.headers["retry-after"]) >= 1


def test_a_killed_controllers_successor_takes_over_the_container(engine: DockerDouble):
    with gateway(in_containers(engine)) as g:
        assert ask(g).status_code == 200
        (container,) = engine.containers
        kill_controller(g)
        assert ask(g).status_code == 200
        wait_until(lambda: pool(g).get("phase") == "ready")
        assert engine.containers == [container]
        assert engine.called("POST", "/containers/create") == 1
        engine.kill(container)  # and hears of its end
        wait_phase(g, "off")


@pytest.mark.parametrize("how", ["kept", "killed"])
def test_the_next_start_takes_over_what_runs(engine: DockerDouble, how: str):
    with gateway(in_containers(engine, keep=how == "kept")) as g:
        assert ask(g).status_code == 200
        (container,) = engine.containers
        if how == "kept":
            g.proc.stop()
        else:
            os.kill(g.pid, signal.SIGKILL)
            g.proc.stop()
        assert container.running
        g.proc.start()
        wait_phase(g, "ready")
        assert ask(g).status_code == 200
        assert engine.containers == [container]
        if how == "kept":
            g.proc.stop()
            assert engine.containers == [container]
