"""Controllers and servers that die while somebody else starts the servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.integration.test_webhook_provider import Fleet, fleet
from tests.support.gateway import Gateway, gateway
from tests.support.pool_gateway import ask, kill_controller, phases, wait_phase
from tests.support.procs import wait_until
from tests.support.receiver import SECRET, Receiver

pytestmark = pytest.mark.slow


@contextmanager
def pooled(servers: Fleet, heard: Receiver, **terms: Any) -> Iterator[Gateway]:
    settings = {
        "provider": "webhook",
        "url": heard.url,
        "secret_env": "HOOK_SECRET",
        "timeout_s": 2,
        "ready_timeout_s": 20,
        "stop_timeout_s": 5,
        "idle_timeout_s": 100,
        **terms,
    }
    backends = [{"url": url} for url in servers.urls]
    config = {"models": {"m": {"pool": settings, "backends": backends}}}
    with gateway(config, env={"HOOK_SECRET": SECRET}) as g:
        yield g


def test_a_killed_controllers_successor_sees_the_server_and_starts_none():
    with fleet() as (servers, heard), pooled(servers, heard) as g:
        assert ask(g).status_code == 200
        kill_controller(g)
        assert ask(g).status_code == 200
        wait_phase(g, "ready")
        assert [fields["action"] for fields in heard.acted] == ["start"]


def test_a_server_that_is_gone_without_a_word_is_asked_for_again():
    with fleet() as (servers, heard), pooled(servers, heard) as g:
        assert ask(g).status_code == 200
        servers.procs.pop(0).stop()
        wait_until(lambda: "off" in phases(g)[1:])
        assert ask(g).status_code == 200
        assert [fields["action"] for fields in heard.acted].count("start") == 2
