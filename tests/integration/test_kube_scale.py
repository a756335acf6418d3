"""`provider: kubernetes` with `scale`, against a strict API server whose controllers run replicas."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec
import pytest

from penstock.gateway.config import Backend, KubernetesPool, Pool
from penstock.workers.pools.providers.base import Order, ProviderFault
from penstock.workers.pools.providers.kube_access import KubeAccess
from penstock.workers.pools.providers.kube_api import KubeApi
from penstock.workers.pools.providers.kube_scale import ScaleProvider
from penstock.workers.pools.providers.kube_terms import KubeTerms
from penstock.workers.pools.providers.reach import Reach

from ..support.kube_api import KubeApiDouble
from ..support.kube_nodes import KubeNodes, Light, free_address
from ..support.kube_rules import granted, rules_of
from ..support.kube_store import Refused

RULES = rules_of("penstock-scale")
KINDS = ["deployment", "statefulset"]


def workload(kind: str) -> dict[str, Any]:
    labels = {"app": "vllm"}
    limits = {"nvidia.com/gpu": "1"}
    one = {"name": "vllm", "image": "vllm", "resources": {"limits": limits}}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [one]}}
    spec: dict[str, Any] = {"replicas": 0, "selector": {"matchLabels": labels}, "template": template}
    if kind == "statefulset":
        spec["serviceName"] = "vllm"
    name = {"deployment": "Deployment", "statefulset": "StatefulSet"}[kind]
    return {"apiVersion": "apps/v1", "kind": name, "metadata": {"name": "vllm"}, "spec": spec}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(kind: str) -> Iterator[KubeApiDouble]:
    with KubeApiDouble(rules=RULES) as double:
        double.store.create(f"{kind}s", "llm", workload(kind))
        yield double


@pytest.fixture
def nodes(server: KubeApiDouble) -> Iterator[KubeNodes]:
    with KubeNodes(server.store) as running:
        yield running


@pytest.fixture
def light() -> Iterator[Light]:
    """The server behind the Service."""
    server = Light(free_address(), None)
    yield server
    server.stop()


Make = Callable[..., ScaleProvider]


@pytest.fixture
async def make(kind: str, server: KubeApiDouble, nodes: KubeNodes, light: Light) -> AsyncIterator[Make]:
    made: list[ScaleProvider] = []

    def new(*, shared: bool = False, url: str | None = None, **pool: Any) -> ScaleProvider:
        terms: Pool = msgspec.convert(
            {"provider": "kubernetes", "scale": {"kind": kind, "name": "vllm"}, "max": 3} | pool, Pool
        )
        assert isinstance(terms, KubernetesPool)
        api = KubeApi(
            KubeAccess(server.url), clock=time.monotonic, patience_s=1.0, retry_s=0.01, most_retry_s=0.05
        )
        backends = (Backend(url=url or f"http://{light.ip}:8000"),)
        reach = Reach(backends, lambda: backends, members=3, health_path="/health", environ={}, every_s=0.02)
        made.append(
            ScaleProvider(
                api,
                terms,
                "llm",
                reach,
                KubeTerms(time.monotonic, "/health", None, shared, every_s=0.02, margin_s=0.5),
            )
        )
        return made[-1]

    yield new
    for provider in made:
        await provider.close()


@pytest.fixture
async def provider(make: Make) -> ScaleProvider:
    return make()


async def until(wanted: Callable[[], object]) -> None:
    while True:
        if wanted():
            return
        await asyncio.sleep(0.01)


def order(fence: int = 0) -> Order:
    return Order("k", fence)


def replicas(server: KubeApiDouble, kind: str) -> int:
    return int(server.store.get(f"{kind}s", "llm", "vllm")["spec"]["replicas"])


def pods(server: KubeApiDouble) -> list[dict[str, Any]]:
    return server.store.list("pods", "llm")


def scale(server: KubeApiDouble, kind: str, count: int) -> None:
    server.store.patch(f"{kind}s", "llm", "vllm", "", {"spec": {"replicas": count}})


# ---- starting


async def test_a_member_is_a_replica_more(server, kind, provider):
    await provider.ensure_ready(0, order(), 10)
    assert replicas(server, kind) == 1

    await provider.ensure_ready(1, order(), 10)

    assert replicas(server, kind) == len(pods(server)) == 2
    assert sorted(await provider.status()) == [0, 1]
    assert provider.ordered


async def test_a_start_that_is_repeated_scales_nothing(server, kind, provider):
    await provider.ensure_ready(0, order(), 10)
    await provider.ensure_ready(0, order(), 10)

    assert server.asked("update", f"{kind}s/scale") == 1


async def test_what_somebody_changed_meanwhile_is_read_again(server, kind, provider):
    server.fail(409, times=2, verb="update")

    await provider.ensure_ready(0, order(), 10)

    assert server.asked("update", f"{kind}s/scale") == 3


async def test_what_changes_all_the_time_is_given_up(server, kind, provider):
    server.fail(409, times=100, verb="update")

    with pytest.raises(ProviderFault, match="changes too often"):
        await provider.ensure_ready(0, order(), 10)


async def test_ready_needs_ready_replicas(server, kind, provider, nodes):
    nodes.nudge(not_ready=True)

    with pytest.raises(ProviderFault, match=r"not ready after 0\.3 s"):
        await provider.ensure_ready(0, order(), 0.3)

    assert replicas(server, kind) == 0


async def test_ready_needs_vllms_health(server, kind, make):
    with pytest.raises(ProviderFault, match=r"not ready after 0\.5 s"):
        await make(url=f"http://{free_address()}:8000").ensure_ready(0, order(), 0.5)

    assert replicas(server, kind) == 0


# ---- starts that fail


async def test_an_image_that_is_missing_fails_the_start_with_its_reason(server, kind, provider, nodes):
    nodes.broken["vllm"] = "ImagePullBackOff"

    with pytest.raises(ProviderFault, match="ImagePullBackOff"):
        await provider.ensure_ready(0, order(), 10)

    assert replicas(server, kind) == 0


async def test_no_node_with_a_gpu_fails_the_start_with_its_reason(server, kind, make, nodes):
    nodes.nudge(gpus=0)

    with pytest.raises(ProviderFault, match=r"Insufficient nvidia.com/gpu.* \(for 0\.1 s\)"):
        await make(unplaced_timeout_s=0.1).ensure_ready(0, order(), 10)

    assert replicas(server, kind) == 0


async def test_a_quota_that_is_used_up_fails_the_start(server, kind, provider):
    def full(plural: str, found: dict[str, Any]) -> None:
        if plural == "pods":
            raise Refused(403, "Forbidden", "exceeded quota: gpus")

    server.store.admit = full

    with pytest.raises(ProviderFault, match=r"exceeded quota: gpus|0 of 1 replicas"):
        await provider.ensure_ready(0, order(), 1)


async def test_what_is_not_there_fails_the_start(server, kind, provider):
    server.store.remove(f"{kind}s", "llm", "vllm")

    with pytest.raises(ProviderFault, match=f'404 to get {kind}s "vllm" in namespace "llm"'):
        await provider.ensure_ready(0, order(), 10)


async def test_who_scales_it_down_meanwhile_fails_the_start(server, kind, provider, nodes):
    nodes.nudge(not_ready=True)
    starting = asyncio.create_task(provider.ensure_ready(0, order(), 10))
    await until(lambda: nodes.servers)
    scale(server, kind, 0)

    with pytest.raises(ProviderFault, match="was scaled to 0 by somebody else"):
        await starting


async def test_a_start_survives_a_restart_of_the_api_server(server, kind, provider, nodes):
    nodes.nudge(slow=True)
    starting = asyncio.create_task(provider.ensure_ready(0, order(), 20))
    await until(lambda: pods(server))
    server.stop()
    nodes.nudge(slow=False)
    server.start()

    await starting


# ---- stopping


async def test_a_stop_is_a_replica_less_and_waits_for_its_pod(server, kind, provider, nodes):
    await provider.ensure_ready(0, order(), 10)
    nodes.nudge(stuck=True)
    stopping = asyncio.create_task(provider.ensure_stopped(0, order(), 5))
    await until(lambda: pods(server)[0]["metadata"].get("deletionTimestamp"))
    assert not stopping.done()
    nodes.nudge(stuck=False)

    await stopping

    assert replicas(server, kind) == 0
    assert pods(server) == []


async def test_a_stop_keeps_the_members_below(server, kind, provider):
    await provider.ensure_ready(1, order(), 10)

    await provider.ensure_stopped(1, order(), 5)

    assert replicas(server, kind) == len(pods(server)) == 1


async def test_a_stop_of_nothing_changes_nothing(server, kind, provider):
    await provider.ensure_stopped(0, order(), 5)
    server.store.remove(f"{kind}s", "llm", "vllm")
    await provider.ensure_stopped(0, order(), 5)

    assert server.asked("update", f"{kind}s/scale") == 0


async def test_a_pod_that_does_not_go_is_told(server, kind, provider, nodes):
    await provider.ensure_ready(0, order(), 10)
    nodes.nudge(stuck=True)

    with pytest.raises(ProviderFault, match=r"after 0\.1 s its Pods are still there"):
        await provider.ensure_stopped(0, order(), 0.1)
    nodes.nudge(stuck=False)


async def test_a_stop_by_who_no_longer_owns_the_pool_is_refused(server, kind, make):
    paused, owner = make(shared=True), make(shared=True)
    await paused.ensure_ready(0, order(5), 10)
    await owner.owned(6)

    with pytest.raises(ProviderFault, match="fence 6, not 5"):
        await paused.ensure_stopped(0, order(5), 1)
    assert replicas(server, kind) == 1

    await owner.ensure_stopped(0, order(6), 1)
    assert replicas(server, kind) == 0


async def test_a_start_of_what_runs_already_has_late_stops_refused(server, kind, make):
    paused, owner = make(shared=True), make(shared=True)
    await paused.ensure_ready(0, order(5), 10)

    await owner.ensure_ready(0, order(6), 10)

    with pytest.raises(ProviderFault, match="fence 6, not 5"):
        await paused.ensure_stopped(0, order(5), 1)
    assert replicas(server, kind) == 1


async def test_an_owner_that_comes_between_reading_and_stopping_is_seen(server, kind, make, monkeypatch):
    paused, owner = make(shared=True), make(shared=True)
    await paused.ensure_ready(0, order(5), 10)
    replace = paused._api.replace

    async def late(*args: Any, **terms: Any) -> Any:
        # it slept here, past its lease
        await owner.owned(6)
        return await replace(*args, **terms)

    monkeypatch.setattr(paused._api, "replace", late)

    with pytest.raises(ProviderFault, match="fence 6, not 5"):
        await paused.ensure_stopped(0, order(5), 1)
    assert replicas(server, kind) == 1


# ---- what others do


async def test_a_successor_finds_what_runs_and_hears_of_its_end(server, kind, make):
    await make().ensure_ready(1, order(), 10)
    after = make()
    ended: list[tuple[int, str]] = []
    after.ended = lambda member, reason: ended.append((member, reason))
    assert sorted(await after.status()) == [0, 1]

    scale(server, kind, 1)

    await until(lambda: ended)
    assert ended == [(1, f'{kind}s "vllm" in namespace "llm" was scaled to 1 by somebody else')]


async def test_a_stop_that_was_asked_for_is_not_told(server, kind, provider):
    ended: list[tuple[int, str]] = []
    provider.ended = lambda member, reason: ended.append((member, reason))
    await provider.ensure_ready(1, order(), 10)
    await until(lambda: server.watches)

    await provider.ensure_stopped(1, order(), 5)
    await until(lambda: provider._watch.objects["vllm"]["spec"]["replicas"] == 1)

    assert ended == []


async def test_what_is_deleted_is_told(server, kind, provider):
    ended: list[tuple[int, str]] = []
    provider.ended = lambda member, reason: ended.append((member, reason))
    await provider.ensure_ready(0, order(), 10)
    await until(lambda: server.watches)

    server.store.remove(f"{kind}s", "llm", "vllm")

    await until(lambda: ended)
    assert ended == [(0, f'{kind}s "vllm" in namespace "llm" was deleted')]


async def test_the_role_grants_what_is_needed_and_nothing_else(server, kind, make):
    provider = make(shared=True)
    await provider.ensure_ready(0, order(1), 10)
    await provider.owned(2)
    await provider.status()
    await provider.ensure_stopped(0, order(2), 5)
    await until(lambda: server.asked("watch", f"{kind}s"))
    # a watch goes on from the list of status(), or from one of its own
    await until(lambda: server.asked("list", f"{kind}s"))

    used = {(one.group, one.resource, one.verb) for one in server.requests}

    assert used == {
        (group, resource, verb)
        for group, resource, verb in granted(RULES)
        if resource.partition("/")[0] in ("pods", f"{kind}s")
    }
