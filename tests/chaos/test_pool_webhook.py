"""Controllers and servers that die while somebody else starts the servers."""

from __future__ import annotations

import pytest

from tests.integration.test_webhook_provider import fleet
from tests.support.placed_pools import by_webhook
from tests.support.pool_gateway import ask, kill_controller, phases, wait_phase
from tests.support.procs import wait_until

pytestmark = pytest.mark.slow


def test_a_killed_controllers_successor_sees_the_server_and_starts_none():
    with fleet() as (servers, heard), by_webhook(servers.urls, heard) as g:
        assert ask(g).status_code == 200
        kill_controller(g)
        assert ask(g).status_code == 200
        wait_phase(g, "ready")
        assert [fields["action"] for fields in heard.acted] == ["start"]


def test_a_server_that_is_gone_without_a_word_is_asked_for_again():
    with fleet() as (servers, heard), by_webhook(servers.urls, heard) as g:
        assert ask(g).status_code == 200
        servers.procs.pop(0).stop()
        wait_until(lambda: "off" in phases(g)[1:])
        assert ask(g).status_code == 200
        assert [fields["action"] for fields in heard.acted].count("start") == 2
