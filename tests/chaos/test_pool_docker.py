"""Containers that die, engines that are away, and what must not be left of either."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.docker_containers import script_image, sim_image
from tests.support.docker_engine import DockerDouble, docker_engine
from tests.support.gateway import gateway
from tests.support.placed_pools import IMAGE, in_containers
from tests.support.pool_gateway import ask, phases, wait_phase
from tests.support.procs import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def engine() -> Iterator[DockerDouble]:
    with docker_engine() as double:
        double.images[IMAGE] = sim_image()
        yield double


def test_a_container_that_dies_at_start_is_503_with_its_last_line(engine: DockerDouble):
    says = script_image(sys.executable, "-c", "raise SystemExit('ValueError: no such model')")
    engine.images["vllm/vllm-openai:v1"] = says
    with gateway(in_containers(engine)) as g:
        answer = ask(g)
        assert answer.status_code == 503
        assert "exited with 1: ValueError: no such model" in answer.json()["error"]["message"]
        wait_phase(g, "off")
        assert engine.containers == []
        engine.images["vllm/vllm-openai:v1"] = sim_image()
        assert ask(g).status_code == 200


def test_an_engine_that_is_down_is_503_and_when_it_is_up_again_requests_are_served(engine: DockerDouble):
    engine.down()
    with gateway(in_containers(engine)) as g:
        answer = ask(g)
        assert answer.status_code == 503
        assert "docker: ping: no answer at" in answer.json()["error"]["message"]
        engine.up()
        wait_phase(g, "off")
        assert ask(g).status_code == 200


def test_a_container_killed_under_load_is_started_again_and_who_waits_is_answered(engine: DockerDouble):
    with gateway(in_containers(engine)) as g, ThreadPoolExecutor(4) as work:
        assert ask(g).status_code == 200
        over = threading.Event()

        def keep_asking() -> list[int]:
            got = []
            while not over.is_set():
                got.append(ask(g).status_code)
            return got

        asking = [work.submit(keep_asking) for _ in range(4)]
        engine.kill(engine.containers[0])
        wait_until(lambda: phases(g).count("ready") == 2)
        over.set()
        got = [status for one in asking for status in one.result()]
        assert set(got) <= {200, 502}
        assert len(got) - got.count(200) <= 4  # what was in flight with it, and nothing else
        assert g.metric("penstock_pool_deaths_total", model="m") == 1


def test_a_stop_of_the_gateway_removes_its_containers(engine: DockerDouble):
    with gateway(in_containers(engine)) as g:
        assert ask(g).status_code == 200
        assert len(engine.containers) == 1
        g.proc.stop()
        assert engine.containers == []


def test_a_pool_that_is_gone_from_the_configuration_while_the_gateway_was_down_leaves_no_container(
    engine: DockerDouble,
):
    with gateway(in_containers(engine, keep=True)) as g:
        assert ask(g).status_code == 200
        g.proc.stop()
        assert len(engine.containers) == 1
        g.write({"models": {"other": in_containers(engine)["models"]["m"]}})
        g.proc.start()
        wait_until(lambda: not engine.containers)
        assert "docker_stray_ended pool=m" in g.log()
