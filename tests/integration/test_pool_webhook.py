"""A pool that somebody else starts and stops, behind the real gateway: what is told, and what clients see."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.integration.test_webhook_provider import fleet
from tests.support.placed_pools import by_webhook
from tests.support.pool_gateway import ask, phases, wait_phase
from tests.support.receiver import Answer


def test_from_zero_to_an_answer_and_to_zero_again_with_a_receiver_that_fails_twice():
    with fleet() as (servers, heard):
        heard.answers = [Answer(status=503), Answer(drop=True)]
        with by_webhook(servers.urls, heard, idle_timeout_s=0.5) as g, ThreadPoolExecutor(8) as work:
            asked = [work.submit(ask, g) for _ in range(8)]
            assert [one.result().status_code for one in asked] == [200] * 8
            wait_phase(g, "off")
            assert not servers.procs
            assert phases(g) == ["off", "starting", "ready", "draining", "stopping", "off"]
    assert [(fields["action"], fields["replicas"]) for fields in heard.acted] == [("start", 1), ("stop", 0)]
    assert len(heard.posts) == 4
    assert all(post.genuine for post in heard.posts)
    fences = [fields["fence"] for fields in heard.acted]
    assert fences == sorted(fences)


def test_a_receiver_that_refuses_is_503_with_its_words_and_the_next_success_serves():
    with fleet() as (servers, heard):
        heard.answers = [Answer(status=422, body=b'{"detail": "quota of GPUs exceeded"}')]
        with by_webhook(servers.urls, heard) as g:
            answer = ask(g)
            assert answer.status_code == 503
            assert "webhook answered 422: quota of GPUs exceeded" in answer.json()["error"]["message"]
            wait_phase(g, "off")
            assert ask(g).status_code == 200
