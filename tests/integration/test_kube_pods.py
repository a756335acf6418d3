"""`provider: kubernetes` with `vllm_model`, against a strict API server whose nodes run Pods."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec
import pytest

from penstock.cache.pool_table import PoolPhase
from penstock.gateway.config import KubernetesPool, Pool
from penstock.workers.pools.providers.base import Order, ProviderFault
from penstock.workers.pools.providers.kube_access import KubeAccess
from penstock.workers.pools.providers.kube_api import KubeApi
from penstock.workers.pools.providers.kube_pod import FENCE_NOTE, PodPlan
from penstock.workers.pools.providers.kube_pods import PodsProvider
from penstock.workers.pools.providers.kube_terms import KubeTerms

from ..support.kube_api import KubeApiDouble
from ..support.kube_nodes import KubeNodes
from ..support.kube_rules import granted, rules_of
from ..support.kube_store import Refused

MODEL = {
    "apiVersion": "vllm.sir-alfred.io/v1alpha1",
    "kind": "VLLMModel",
    "metadata": {"name": "qwen3"},
    "spec": {"modelName": "Qwen/Qwen3-8B"},
}
RULES = rules_of("penstock-models", "penstock-pods")


@pytest.fixture
def server() -> Iterator[KubeApiDouble]:
    with KubeApiDouble(rules=RULES) as double:
        double.store.create("vllmmodels", "", MODEL)
        yield double


@pytest.fixture
def nodes(server: KubeApiDouble) -> Iterator[KubeNodes]:
    with KubeNodes(server.store) as running:
        yield running


Make = Callable[..., PodsProvider]


async def until(wanted: Callable[[], object]) -> None:
    while True:
        if wanted():
            return
        await asyncio.sleep(0.01)


@pytest.fixture
async def make(server: KubeApiDouble, nodes: KubeNodes) -> AsyncIterator[Make]:
    made: list[PodsProvider] = []

    def new(
        *, api_key: str | None = None, shared: bool = False, margin_s: float = 5.0, **pool: Any
    ) -> PodsProvider:
        terms: Pool = msgspec.convert(
            {"provider": "kubernetes", "vllm_model": "qwen3", "max": 2, "stop_timeout_s": 2} | pool, Pool
        )
        assert isinstance(terms, KubernetesPool)
        api = KubeApi(
            KubeAccess(server.url), clock=time.monotonic, patience_s=1.0, retry_s=0.01, most_retry_s=0.05
        )
        made.append(
            PodsProvider(
                api,
                PodPlan("qwen3", "llm", terms),
                "qwen3",
                KubeTerms(time.monotonic, "/health", api_key, shared, every_s=0.02, margin_s=margin_s),
            )
        )
        return made[-1]

    yield new
    for provider in made:
        await provider.close()


@pytest.fixture
async def provider(make: Make) -> PodsProvider:
    return make()


def order(fence: int = 0) -> Order:
    return Order("k", fence)


def pods(server: KubeApiDouble) -> list[dict[str, Any]]:
    return server.store.list("pods", "llm")


def name_of(provider: PodsProvider, member: int = 0) -> str:
    return provider._plan.name(member)


class Ended(list[tuple[int, str]]):
    def __init__(self, provider: PodsProvider) -> None:
        super().__init__()
        provider.ended = lambda member, reason: self.append((member, reason))

    async def come(self) -> tuple[int, str]:
        await until(lambda: self)
        return self[0]


# ---- starting


async def test_a_pod_is_made_and_answers_at_its_own_address(server, provider):
    running = await provider.ensure_ready(0, order(), 10)

    (pod,) = pods(server)
    (service,) = server.store.list("services", "llm")
    assert running.url == f"http://{pod['status']['podIP']}:8000"
    assert await provider.status() == {0: running}
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert (
        pod["metadata"]["ownerReferences"][0]["uid"]
        == server.store.get("vllmmodels", "", "qwen3")["metadata"]["uid"]
    )


async def test_members_are_pods_of_their_own(server, provider):
    first, second = await asyncio.gather(
        provider.ensure_ready(0, order(), 10), provider.ensure_ready(1, order(), 10)
    )

    assert first.url != second.url
    assert len(pods(server)) == 2
    assert server.asked("create", "services") == 2
    assert len(server.store.list("services", "llm")) == 1


async def test_a_start_that_is_repeated_makes_nothing_anew(server, provider, nodes):
    first = await provider.ensure_ready(0, order(), 10)

    assert await provider.ensure_ready(0, order(), 10) == first
    assert len(nodes.started) == 1


async def test_two_gateways_that_start_the_same_member_make_one_pod(server, make, nodes):
    one, two = make(), make()

    first, second = await asyncio.gather(one.ensure_ready(0, order(), 10), two.ensure_ready(0, order(), 10))

    assert first == second
    assert len(nodes.started) == len(pods(server)) == 1


async def test_a_successor_finds_what_runs(server, make, nodes):
    before = make()
    running = await before.ensure_ready(1, order(), 10)
    await before.close()

    after = make()

    assert await after.status() == {1: running}
    assert await after.ensure_ready(1, order(), 10) == running
    await after.ensure_stopped(1, order(), 1)
    assert pods(server) == []
    assert len(nodes.started) == 1


async def test_a_successor_finds_what_is_starting(server, make, nodes):
    nodes.nudge(slow=True)
    before = make()
    starting = asyncio.create_task(before.ensure_ready(0, order(), 10))
    await until(lambda: pods(server))
    starting.cancel()
    await asyncio.wait([starting])

    after = make()
    assert list(await after.status()) == [0]
    nodes.nudge(slow=False)
    await after.ensure_ready(0, order(), 10)

    assert len(nodes.started) == 1


async def test_what_was_made_from_something_else_is_stale_and_makes_way(server, make, nodes):
    before = make()
    old = await before.ensure_ready(0, order(), 10)
    server.store.patch("vllmmodels", "", "qwen3", "", {"spec": {"maxModelLen": 4096}})

    after = make()
    found = await after.status()
    new = await after.ensure_ready(0, order(), 10)

    assert (found[0].url, found[0].stale) == (old.url, True)
    assert (await after.status())[0].stale is False
    assert new.url != old.url
    (pod,) = pods(server)
    assert "--max-model-len=4096" in pod["spec"]["containers"][0]["args"]


async def test_a_pod_that_has_ended_makes_way(server, provider, nodes):
    await provider.ensure_ready(0, order(), 10)
    nodes.crash(name_of(provider), "llm")
    assert await provider.status() == {}

    await provider.ensure_ready(0, order(), 10)

    assert len(nodes.started) == 2
    assert len(pods(server)) == 1


async def test_a_pod_of_somebody_else_is_not_taken(server, provider):
    theirs = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name_of(provider), "namespace": "llm"},
        "spec": {"containers": [{"name": "a", "image": "a"}]},
    }
    server.store.create("pods", "llm", theirs)

    with pytest.raises(ProviderFault, match="is not this pool's"):
        await provider.ensure_ready(0, order(), 5)
    await provider.ensure_stopped(0, order(), 1)

    assert len(pods(server)) == 1


async def test_ready_needs_the_pods_condition(server, provider, nodes):
    nodes.nudge(not_ready=True)

    with pytest.raises(ProviderFault, match="not ready after 1 s: Pod"):
        await provider.ensure_ready(0, order(), 1)

    assert pods(server) == []


async def test_ready_needs_vllms_health_asked_with_the_key(server, make, nodes):
    nodes.api_key = "the key"
    wrong = make(api_key="another")
    with pytest.raises(ProviderFault, match="not ready after 1 s"):
        await wrong.ensure_ready(0, order(), 1)
    assert pods(server) == []

    right = make(api_key="the key")
    await right.ensure_ready(0, order(), 10)


# ---- starts that fail


async def fails(provider: PodsProvider, server: KubeApiDouble, match: str, timeout_s: float = 10.0) -> None:
    """With a reason, and nothing left."""
    with pytest.raises(ProviderFault, match=match) as fault:
        await provider.ensure_ready(0, order(), timeout_s)
    assert "\n" not in str(fault.value)
    assert pods(server) == []


@pytest.mark.parametrize(
    "reason", ["ErrImagePull", "ImagePullBackOff", "CrashLoopBackOff", "CreateContainerConfigError"]
)
async def test_a_container_that_cannot_run_fails_the_start_with_its_reason(server, provider, nodes, reason):
    nodes.broken["vllm/vllm-openai:latest"] = reason

    await fails(provider, server, rf'{reason}: image "vllm/vllm-openai:latest": not found')


async def test_a_pod_that_no_node_takes_is_given_up(server, make, nodes):
    nodes.nudge(gpus=0)

    await fails(
        make(unplaced_timeout_s=0.1), server, r"Unschedulable: .*Insufficient nvidia.com/gpu.*for 0\.1 s"
    )


async def test_a_pod_may_wait_for_a_node(server, make, nodes):
    nodes.nudge(gpus=0)
    starting = asyncio.create_task(make().ensure_ready(0, order(), 10))
    await until(lambda: pods(server) and pods(server)[0]["status"].get("conditions"))
    nodes.nudge(gpus=8)

    assert (await starting).url is not None


async def test_a_quota_that_is_used_up_fails_the_start_with_its_reason(server, provider):
    def full(plural: str, found: dict[str, Any]) -> None:
        if plural == "pods":
            raise Refused(
                403, "Forbidden", 'pods "x" is forbidden: exceeded quota: gpus, requested: 1, used: 4'
            )

    server.store.admit = full

    await fails(provider, server, "403 to create pods.*exceeded quota: gpus")


async def test_a_server_that_ends_while_it_starts_fails_the_start(server, provider, nodes):
    nodes.nudge(not_ready=True)
    starting = asyncio.create_task(fails(provider, server, "ended: Error, exit code 3"))
    await until(lambda: nodes.servers)
    nodes.crash(name_of(provider), "llm", 3)

    await starting


async def test_a_pod_that_somebody_deletes_while_it_starts_fails_the_start(server, provider, nodes):
    nodes.nudge(not_ready=True, stuck=True)
    starting = asyncio.create_task(fails(provider, server, "is being deleted"))
    await until(lambda: nodes.servers)
    server.store.delete("pods", "llm", name_of(provider), {})
    await until(lambda: server.asked("delete", "pods"))
    nodes.nudge(stuck=False)

    await starting


async def test_a_start_that_fails_ends_when_its_pod_is_gone(server, provider, nodes):
    nodes.nudge(not_ready=True, stuck=True)
    starting = asyncio.create_task(fails(provider, server, "not ready after 0.5 s", 0.5))
    await until(lambda: pods(server) and pods(server)[0]["metadata"].get("deletionTimestamp"))
    for _ in range(20):
        await asyncio.sleep(0.01)
    assert not starting.done()
    nodes.nudge(stuck=False)

    await starting


async def test_a_pod_that_ends_before_vllm_is_healthy_fails_the_start(server, make, nodes):
    nodes.api_key = "the key"
    provider = make(api_key="another")
    starting = asyncio.create_task(fails(provider, server, "ended: Error, exit code 4"))
    # it is Ready then, and the gateway asks
    await until(lambda: any(one.asked for one in nodes.servers.values()))
    nodes.crash(name_of(provider), "llm", 4)

    await starting


async def test_a_model_that_is_not_there_fails_the_start(server, provider):
    server.store.remove("vllmmodels", "", "qwen3")

    await fails(provider, server, 'there is no VLLMModel "qwen3"')


async def test_what_the_gateway_may_not_do_fails_the_start_with_verb_and_resource(server, provider):
    server.rules = [rule for rule in RULES if rule["resources"] != ["services"]]

    await fails(provider, server, 'cannot create resource "services"')


async def test_an_api_server_that_is_down_fails_the_start(server, provider):
    server.stop()

    with pytest.raises(ProviderFault, match="does not answer"):
        await provider.ensure_ready(0, order(), 0.3)


async def test_a_start_survives_a_restart_of_the_api_server(server, provider, nodes):
    nodes.nudge(slow=True)
    starting = asyncio.create_task(provider.ensure_ready(0, order(), 20))
    await until(lambda: pods(server))
    server.stop()
    await until(lambda: provider._watch.fault is not None)
    nodes.nudge(slow=False)
    server.start()

    assert (await starting).url is not None
    assert len(nodes.started) == 1


async def test_a_start_survives_an_api_server_that_forgets(server, provider, nodes):
    nodes.nudge(slow=True)
    starting = asyncio.create_task(provider.ensure_ready(0, order(), 20))
    await until(lambda: server.watches)
    server.fail(500, times=3)
    server.fail(429, times=2, retry_after=0)
    server.end_watches()
    server.store.forget()
    nodes.nudge(slow=False)

    assert (await starting).url is not None


# ---- stopping


async def test_a_stop_ends_the_pod_and_waits_until_it_is_gone(server, provider, nodes):
    await provider.ensure_ready(0, order(), 10)
    nodes.nudge(stuck=True)
    stopping = asyncio.create_task(provider.ensure_stopped(0, order(), 3))
    await until(lambda: pods(server)[0]["metadata"].get("deletionTimestamp"))
    assert pods(server)[0]["metadata"]["deletionGracePeriodSeconds"] == 3
    assert not stopping.done()
    nodes.nudge(stuck=False)

    await stopping

    assert pods(server) == []
    assert nodes.servers == {}


async def test_a_stop_of_nothing_is_nothing(server, provider):
    await provider.ensure_stopped(0, order(), 1)

    assert server.asked("delete", "pods") == 0


async def test_a_pod_whose_node_does_not_say_that_it_is_gone_is_forced(server, make, nodes):
    provider = make(margin_s=0.1)
    await provider.ensure_ready(0, order(), 10)
    nodes.nudge(stuck=True)

    await provider.ensure_stopped(0, order(), 0.1)

    assert pods(server) == []
    assert server.asked("delete", "pods") == 2


async def test_a_pod_that_changes_meanwhile_is_read_again(server, provider):
    await provider.ensure_ready(0, order(), 10)
    server.fail(409, times=2, verb="delete", message="Precondition failed")

    await provider.ensure_stopped(0, order(), 1)

    assert pods(server) == []
    assert server.asked("delete", "pods") == 3


async def test_a_stop_by_who_no_longer_owns_the_pool_is_refused(server, make):
    paused, owner = make(shared=True), make(shared=True)
    await paused.ensure_ready(0, order(5), 10)
    await owner.owned(6)

    with pytest.raises(ProviderFault, match="belongs to another node by now: fence 6, not 5"):
        await paused.ensure_stopped(0, order(5), 1)
    assert len(pods(server)) == 1
    await paused.owned(5)
    assert pods(server)[0]["metadata"]["annotations"][FENCE_NOTE] == "6"

    await owner.ensure_stopped(0, order(6), 1)
    assert pods(server) == []


async def test_an_owner_that_comes_between_reading_and_stopping_is_seen(server, make, monkeypatch):
    paused, owner = make(shared=True), make(shared=True)
    await paused.ensure_ready(0, order(5), 10)
    delete = paused._api.delete

    async def late(*args: Any, **terms: Any) -> Any:
        # it slept here, past its lease
        await owner.owned(6)
        return await delete(*args, **terms)

    monkeypatch.setattr(paused._api, "delete", late)

    with pytest.raises(ProviderFault, match="fence 6, not 5"):
        await paused.ensure_stopped(0, order(5), 1)
    assert len(pods(server)) == 1


async def test_a_start_of_what_runs_already_has_late_stops_refused(server, make):
    paused, owner = make(shared=True), make(shared=True)
    await paused.ensure_ready(0, order(5), 10)
    server.fail(409, times=1, verb="patch")

    await owner.ensure_ready(0, order(6), 10)

    with pytest.raises(ProviderFault, match="fence 6, not 5"):
        await paused.ensure_stopped(0, order(5), 1)
    await paused.ensure_ready(0, order(5), 10)
    assert pods(server)[0]["metadata"]["annotations"][FENCE_NOTE] == "6"


async def test_a_start_that_fails_here_ends_no_pod_that_serves_others(server, make, nodes):
    nodes.api_key = "the key"
    there, here = make(shared=True, api_key="the key"), make(shared=True, api_key="wrong")
    await there.ensure_ready(0, order(), 10)

    with pytest.raises(ProviderFault, match="not ready after 1 s"):
        await here.ensure_ready(0, order(), 1)

    assert len(pods(server)) == 1


# ---- ends that nobody asked for


async def test_a_pod_that_ends_is_told(server, provider, nodes):
    ended = Ended(provider)
    await provider.ensure_ready(1, order(), 10)

    nodes.crash(name_of(provider, 1), "llm", 137)

    assert await ended.come() == (1, f'Pod "{name_of(provider, 1)}" ended: Error, exit code 137')


async def test_a_pod_that_is_deleted_by_hand_is_told_when_it_begins(server, provider, nodes):
    ended = Ended(provider)
    await provider.ensure_ready(0, order(), 10)
    nodes.nudge(stuck=True)

    server.store.delete("pods", "llm", name_of(provider), {})

    assert "is being deleted" in (await ended.come())[1]
    nodes.nudge(stuck=False)


async def test_a_pod_that_was_adopted_and_goes_is_told(server, make, nodes):
    first = make()
    await first.ensure_ready(0, order(), 10)
    after = make()
    await after.status()
    ended = Ended(after)

    server.store.remove("pods", "llm", name_of(after))

    assert await ended.come() == (0, f'Pod "{name_of(after)}" was deleted')


async def test_a_pod_that_goes_while_the_api_server_is_away_is_told(server, provider, nodes):
    ended = Ended(provider)
    await provider.ensure_ready(0, order(), 10)
    server.stop()
    server.store.remove("pods", "llm", name_of(provider))
    server.store.forget()
    server.start()

    assert await ended.come() == (0, f'Pod "{name_of(provider)}" was deleted')


async def test_a_stop_that_was_asked_for_is_not_told(server, provider):
    ended = Ended(provider)
    await provider.ensure_ready(0, order(), 10)

    await provider.ensure_stopped(0, order(), 1)
    await provider.ensure_ready(1, order(), 10)

    assert ended == []


# ---- the VLLMModel's status


async def test_the_phase_is_written_back(server, provider):
    server.store.patch("vllmmodels", "", "qwen3", "", {"spec": {"maxNumSeqs": 4}})

    await provider.show(PoolPhase.FAILED, "no GPU")
    await provider.show(PoolPhase.FAILED, "no GPU")

    found = server.store.get("vllmmodels", "", "qwen3")
    assert found["status"] == {"phase": "Failed", "message": "no GPU", "observedGeneration": 2}
    assert server.asked("patch", "vllmmodels/status") == 1


@pytest.mark.parametrize(
    "phase", [one for one in PoolPhase if one is not PoolPhase.NONE], ids=lambda one: one.name
)
async def test_every_phase_may_be_shown(server, provider, phase):
    await provider.show(phase, "")

    assert server.store.get("vllmmodels", "", "qwen3")["status"]["phase"] == phase.name.capitalize()


async def test_phases_that_come_quickly_end_with_the_last(server, provider):
    server.fail(503, times=2, verb="patch")

    await asyncio.gather(
        *(provider.show(phase, "") for phase in (PoolPhase.STARTING, PoolPhase.READY, PoolPhase.OFF))
    )

    assert server.store.get("vllmmodels", "", "qwen3")["status"]["phase"] == "Off"


async def test_a_phase_that_cannot_be_written_harms_nothing(server, provider):
    server.store.remove("vllmmodels", "", "qwen3")

    await provider.show(PoolPhase.READY, "")


# ---- what it may do


async def test_the_roles_grant_what_is_needed_and_nothing_else(server, make):
    """The double refuses what the roles do not grant, and has noted everything that was asked."""
    provider = make(shared=True)
    await provider.ensure_ready(0, order(1), 10)
    await provider.status()
    await provider.owned(2)
    await provider.show(PoolPhase.READY, "")
    await provider.ensure_stopped(0, order(2), 1)

    used = {(one.group, one.resource, one.verb) for one in server.requests}

    assert used == granted(RULES)
