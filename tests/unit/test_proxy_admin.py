"""The paths of pools and of `/proxy/*`, asked without a server: shapes, aliases, what is refused, what is cached."""

from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.gateway.config import Published, load
from penstock.workers import store
from penstock.workers.answer import Answer, Refused
from penstock.workers.pools.words import StopAsked, WakeAsked
from penstock.workers.pools_admin import PoolsAdmin
from penstock.workers.proxy_admin import ProxyAdmin
from penstock.workers.question import Question

CONFIG = """
models:
  a:
    aliases: [first]
    max_model_len: 4096
    pool: {provider: process, command: [vllm, serve, org/a, --tool-call-parser, hermes, "{port}"]}
  b: {pool: {provider: process, command: [vllm, serve, org/b, "{port}"]}}
  always: {pool: {provider: process, command: [x, "{port}"], min: 1}}
  pinned: {pool: {provider: process, command: [x, "{port}"], pinned: true}}
  plain: {backends: [{url: "http://10.0.0.1:8000"}]}
"""


class Pools:
    """Pools whose phases a test writes; remembers what was asked of them."""

    def __init__(self) -> None:
        self.phases = dict.fromkeys(("a", "b", "always", "pinned"), "off")
        self.ready_for_s: dict[str, float] = {}
        self.asked: list[tuple[str, WakeAsked | StopAsked]] = []

    def report(self, model: str) -> dict[str, Any] | None:
        phase = self.phases.get(model)
        return phase and {
            "model": model,
            "phase": phase,
            "ready_for_s": self.ready_for_s.get(model),
            "members": [],
        }

    def ask(self, model: str, event: WakeAsked | StopAsked) -> None:
        self.asked.append((model, event))


class World:
    def __init__(self) -> None:
        self.published: Published = store.first(load(CONFIG, {}))
        self.pools = Pools()
        self.now = 100.0
        self.looks = 0
        self.admin = PoolsAdmin(self.pools, lambda: self.published)
        self.proxy = ProxyAdmin(self.admin, lambda: self.published, self.gpus, lambda: self.now, "1.2.3")

    async def gpus(self) -> list[dict[str, Any]]:
        self.looks += 1
        return [{"index": 0, "name": "H200"}]


@pytest.fixture
def world() -> World:
    return World()


def told(answer: Answer) -> Any:
    return json.loads(answer.body)


def post(**body: Any) -> Question:
    return Question(content_type="application/json", body=json.dumps(body).encode())


async def test_available_names_every_model(world):
    answer = told(await world.proxy.available(Question()))
    assert answer["count"] == len(answer["models"]) == 5
    assert answer["models"][0] == {
        "name": "a",
        "servedModelName": "a",
        "modelName": "org/a",
        "maxModelLen": 4096,
    }


async def test_running_is_the_one_that_became_ready_last(world):
    nothing = {
        "modelName": "",
        "servedModelName": "",
        "maxModelLen": 0,
        "toolCallParser": "",
        "reasoningParser": "",
    }
    assert told(await world.proxy.running(Question())) == {
        "active_model": "",
        "running": False,
        "config": nothing,
    }
    world.pools.phases["b"] = "starting"
    starting = told(await world.proxy.running(Question()))
    assert (starting["active_model"], starting["running"]) == ("b", False)
    world.pools.phases |= {"a": "ready", "b": "ready"}
    world.pools.ready_for_s = {"a": 5.0, "b": 50.0}
    assert told(await world.proxy.running(Question())) == {
        "active_model": "a",
        "running": True,
        "config": {
            "modelName": "org/a",
            "servedModelName": "a",
            "maxModelLen": 4096,
            "toolCallParser": "hermes",
            "reasoningParser": "",
        },
    }


async def test_a_switch_wakes_one_and_stops_the_others_that_may_be(world):
    answer = told(await world.proxy.switch(post(model_id="first")))
    assert set(answer) == {"message", "active_model", "note"}
    assert answer["active_model"] == "a"
    assert world.pools.asked == [("b", StopAsked()), ("a", WakeAsked())]


async def test_start_and_stop_say_that_they_were_done(world):
    assert told(await world.proxy.start(Question()))["status"] == "success"
    assert world.pools.asked == [("a", WakeAsked())]
    world.pools.asked.clear()
    answer = told(await world.proxy.stop(Question()))
    assert (set(answer), answer["status"]) == ({"status", "message"}, "success")
    assert world.pools.asked == [("a", StopAsked()), ("b", StopAsked()), ("pinned", StopAsked())]


async def test_figures_of_gpus_are_given_again_for_a_second(world):
    first = await world.proxy.stats(Question())
    assert dict(first.headers) == {"x-cache": "MISS"}
    world.now += 0.9
    again = await world.proxy.stats(Question())
    assert dict(again.headers) == {"x-cache": "HIT"}
    assert again.body == first.body
    assert set(told(again)) == {"timestamp", "gpus"}
    world.now += 0.2
    assert dict((await world.proxy.stats(Question())).headers) == {"x-cache": "MISS"}
    assert world.looks == 2


async def test_the_version_is_told(world):
    assert told(await world.proxy.version(Question())) == {"version": "1.2.3"}


@pytest.mark.parametrize(
    ("question", "status", "code"),
    [
        (post(model="nobody"), 404, "model_not_found"),
        (post(model="plain"), 409, "no_pool"),
        (post(model="a", more=1), 400, "invalid_request"),
        (post(), 400, "invalid_request"),
        (Question(content_type="text/plain", body=b'{"model": "a"}'), 415, "unsupported_media_type"),
        (Question(content_type="application/json", body=b"["), 400, "invalid_request"),
    ],
    ids=["unknown", "without-pool", "unknown-key", "no-model", "media", "json"],
)
async def test_what_cannot_be_is_refused(world, question, status, code):
    for verb in (world.admin.wake, world.admin.stop, world.admin.switch):
        with pytest.raises(Refused) as refused:
            await verb(question)
        assert refused.value.answer.status == status
        assert told(refused.value.answer)["error"]["code"] == code
    assert world.pools.asked == []


async def test_what_always_runs_is_not_stopped(world):
    with pytest.raises(Refused) as refused:
        await world.admin.stop(post(model="always"))
    assert told(refused.value.answer)["error"]["code"] == "always_on"
    assert world.pools.asked == []


async def test_by_alias_too_and_the_answer_says_what_the_pool_does(world):
    world.pools.phases["a"] = "starting"
    assert told(await world.admin.wake(post(model="first")))["pools"][0]["phase"] == "starting"
    assert [one["model"] for one in told(await world.admin.told(Question()))["pools"]] == [
        "a",
        "b",
        "always",
        "pinned",
    ]
