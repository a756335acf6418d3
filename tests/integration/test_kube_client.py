"""The Kubernetes client and its watches against a strict API server."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from penstock.gateway.config import KubernetesApi
from penstock.workers.pools.providers.base import ProviderFault
from penstock.workers.pools.providers.kube_access import KubeAccess
from penstock.workers.pools.providers.kube_api import KubeApi, KubeFault
from penstock.workers.pools.providers.kube_place import LEASES, PODS, VLLM_MODELS, VLLM_MODELS_STATUS
from penstock.workers.pools.providers.kube_watch import KubeWatch

from ..support.kube_api import KubeApiDouble
from ..support.scripted import certificate

AT = LEASES.at("llm")


def lease(name: str = "a", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "namespace": "llm", "labels": {"of": "me"}},
        "spec": spec,
    }


@pytest.fixture
def server() -> Iterator[KubeApiDouble]:
    with KubeApiDouble(token="t0ken") as double:
        yield double


@pytest.fixture
async def api(server, tmp_path) -> AsyncIterator[KubeApi]:
    (tmp_path / "token").write_text("t0ken\n")
    client = KubeApi(
        KubeAccess(server.url, tmp_path / "token"),
        clock=time.monotonic,
        patience_s=2.0,
        retry_s=0.01,
        most_retry_s=0.05,
    )
    yield client
    await client.close()


async def until(wanted: Callable[[], object]) -> None:
    while True:
        if wanted():
            return
        await asyncio.sleep(0.01)


# ---- how the API is found


def in_pod(tmp_path):
    (tmp_path / "token").write_text("t")
    (tmp_path / "ca.crt").write_text("c")
    (tmp_path / "namespace").write_text("llm\n")
    return tmp_path


def test_a_pod_finds_its_api_server_token_authority_and_namespace(tmp_path):
    environ = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "6443"}

    access = KubeAccess.of(KubernetesApi(), environ, in_pod(tmp_path))

    assert access == KubeAccess("https://10.0.0.1:6443", tmp_path / "token", tmp_path / "ca.crt", "llm")
    assert KubeAccess.of(
        KubernetesApi(), environ | {"KUBERNETES_SERVICE_HOST": "fd00::1"}, tmp_path
    ).server == ("https://[fd00::1]:6443")


def test_a_configured_server_does_not_get_the_pods_own_token(tmp_path):
    terms = KubernetesApi(server="https://elsewhere:6443/")

    access = KubeAccess.of(terms, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, in_pod(tmp_path))

    assert (access.server, access.token_file, access.ca) == ("https://elsewhere:6443", None, None)


def test_outside_of_a_cluster_the_server_must_be_configured(tmp_path):
    with pytest.raises(ProviderFault, match=r"`pools\.kubernetes\.server` is absent"):
        KubeAccess.of(KubernetesApi(), {}, tmp_path)


async def test_a_server_must_be_known_to_the_authority(tmp_path):
    with KubeApiDouble(tls=certificate(tmp_path, "127.0.0.1")) as server:
        for ca, trusted in ((server.tls, True), (None, False)):
            api = KubeApi(KubeAccess(server.url, None, ca), clock=time.monotonic, patience_s=0.1)
            if trusted:
                assert await api.list(AT) == ([], "100")
            else:
                with pytest.raises(KubeFault, match=r"does not answer: .*CERTIFICATE_VERIFY_FAILED"):
                    await api.list(AT)
            await api.close()


# ---- requests


async def test_an_object_is_made_read_changed_and_ended(api):
    made = await api.create(AT, lease(holderIdentity="a"))
    made["spec"]["holderIdentity"] = "b"

    changed = await api.replace(LEASES.at("llm", "a"), made)
    patched = await api.merge(LEASES.at("llm", "a"), {"spec": {"leaseTransitions": 3}})
    read = await api.get(LEASES.at("llm", "a"))
    await api.delete(LEASES.at("llm", "a"), uid=made["metadata"]["uid"])

    assert changed["spec"] == {"holderIdentity": "b"}
    assert read == patched
    assert read["spec"] == {"holderIdentity": "b", "leaseTransitions": 3}
    with pytest.raises(KubeFault) as gone:
        await api.get(LEASES.at("llm", "a"))
    assert gone.value.status == 404


async def test_what_was_changed_meanwhile_is_a_conflict(api):
    made = await api.create(AT, lease())
    await api.merge(LEASES.at("llm", "a"), {"spec": {"holderIdentity": "other"}})
    version = made["metadata"]["resourceVersion"]

    for doing in (
        lambda: api.replace(LEASES.at("llm", "a"), made),
        lambda: api.merge(LEASES.at("llm", "a"), {"metadata": {"resourceVersion": version}, "spec": {}}),
        lambda: api.delete(LEASES.at("llm", "a"), uid=made["metadata"]["uid"], version=version),
        lambda: api.delete(LEASES.at("llm", "a"), uid="another one's"),
        lambda: api.create(AT, lease()),
    ):
        with pytest.raises(KubeFault) as fault:
            await doing()
        assert fault.value.status == 409


async def test_a_list_is_read_page_by_page(api, server):
    server.page = 2
    for i in range(5):
        await api.create(AT, lease(f"l{i}"))

    items, version = await api.list(AT, labels="of=me")

    assert [one["metadata"]["name"] for one in items] == [f"l{i}" for i in range(5)]
    assert version == str(server.store.version)
    assert server.asked("list", "leases") == 3
    assert (await api.list(AT, labels="of=you"))[0] == []
    assert len((await api.list(AT, name="l3"))[0]) == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_a_server_that_is_busy_is_asked_again(api, server, status):
    server.fail(status, times=2)

    await api.create(AT, lease())

    assert server.asked("create", "leases") == 3


async def test_a_server_says_when_to_ask_again(api, server):
    server.fail(429, retry_after=1)
    began = time.monotonic()

    await api.create(AT, lease())

    assert time.monotonic() - began >= 1


async def test_a_wait_longer_than_the_deadline_is_not_begun(api, server):
    server.fail(429, retry_after=3000)

    with pytest.raises(KubeFault) as fault:
        await api.create(AT, lease(), timeout_s=5)

    assert fault.value.status == 429
    assert server.asked("create", "leases") == 1


async def test_a_connection_that_breaks_is_made_anew(api, server):
    server.fail(0, times=2, cut=True)

    await api.create(AT, lease())

    assert server.asked("create", "leases") == 3


async def test_a_server_that_restarts_is_waited_for(api, server):
    server.stop()
    asking = asyncio.create_task(api.create(AT, lease()))
    await asyncio.sleep(0.05)
    server.start()

    assert (await asking)["metadata"]["name"] == "a"


async def test_a_server_that_is_away_is_given_up(api, server):
    server.stop()

    with pytest.raises(ProviderFault, match=r"the Kubernetes API at http://127\.0\.0\.1:\d+ does not answer"):
        await api.get(LEASES.at("llm", "a"), timeout_s=0.2)


async def test_a_token_that_was_renewed_is_read_again(api, server, tmp_path):
    await api.create(AT, lease())
    server.token = "next"
    (tmp_path / "token").write_text("next")

    await api.get(LEASES.at("llm", "a"))

    assert server.asked("get", "leases") == 1


async def test_a_token_that_cannot_be_read_is_told_and_looked_for_again(api, server, watch, tmp_path, caplog):
    (tmp_path / "token").rename(tmp_path / "away")
    with pytest.raises(KubeFault, match="the Kubernetes token cannot be read: No such file"):
        await api.get(LEASES.at("llm", "a"))
    watch.start()
    await until(lambda: watch.fault is not None)

    (tmp_path / "away").rename(tmp_path / "token")

    await until(lambda: server.watches == 1)
    assert "Traceback" not in caplog.text
    assert server.asked("get", "leases") == 0


async def test_a_401_is_asked_again_once(api, server):
    server.fail(401, times=1)
    await api.create(AT, lease())
    server.token = "another"

    with pytest.raises(KubeFault) as fault:
        await api.get(LEASES.at("llm", "a"))

    assert fault.value.status == 401
    assert (server.asked("create", "leases"), server.asked("get", "leases")) == (2, 2)
    assert "t0ken" not in str(fault.value)


async def test_what_is_not_allowed_says_the_verb_and_the_resource(api, server):
    server.rules = []

    with pytest.raises(ProviderFault, match='403 to create leases in namespace "llm": leases is forbidden'):
        await api.create(AT, lease())

    assert server.asked("create", "leases") == 1


async def test_the_double_is_strict(api, server):
    """What the double refuses, so that what passes here would pass elsewhere."""
    wrong = lease()
    wrong["spec"]["holder"] = "a"
    with pytest.raises(KubeFault, match="unknown field"):
        await api.create(AT, wrong)
    made = await api.create(AT, lease())
    with pytest.raises(KubeFault, match="must be specified"):
        await api.replace(LEASES.at("llm", "a"), lease())
    with pytest.raises(KubeFault, match="should not be set"):
        await api.create(AT, made)
    with pytest.raises(KubeFault) as missing:
        await api.get(VLLM_MODELS.at("llm", "a"))
    assert missing.value.status == 404
    with pytest.raises(KubeFault) as missing:
        await api.list(PODS.at(None))
    assert missing.value.status == 404
    with pytest.raises(KubeFault) as kind:
        await api._ask("PATCH", "patch", LEASES.at("llm", "a"), 5, {})
    assert kind.value.status == 415
    model = {
        "apiVersion": "vllm.sir-alfred.io/v1alpha1",
        "kind": "VLLMModel",
        "metadata": {"name": "q"},
        "spec": {"modelName": "a/b", "dtype": "int3"},
    }
    with pytest.raises(KubeFault, match="dtype: must be one of"):
        await api.create(VLLM_MODELS.at(None), model)
    model["spec"] = {"modelName": "a/b"}
    await api.create(VLLM_MODELS.at(None), model)
    with pytest.raises(KubeFault, match="phase: must be one of"):
        await api.merge(VLLM_MODELS_STATUS.at(None, "q"), {"status": {"phase": "Sleepy"}})
    changed = await api.merge(
        VLLM_MODELS_STATUS.at(None, "q"), {"status": {"phase": "Ready"}, "spec": {"modelName": "c/d"}}
    )
    assert (changed["status"], changed["spec"]) == ({"phase": "Ready"}, {"modelName": "a/b"})


# ---- watches


class Told(list[tuple[str, bool]]):
    def __call__(self, name: str, found: dict[str, Any] | None) -> None:
        self.append((name, found is not None))


@pytest.fixture
async def told() -> Told:
    return Told()


@pytest.fixture
async def watch(api, told) -> AsyncIterator[KubeWatch]:
    made = KubeWatch(api, AT, labels="of=me", seen=told, retry_s=0.01, most_retry_s=0.05)
    yield made
    await made.close()


def holder(watch: KubeWatch, name: str = "a") -> object:
    return watch.objects.get(name, {}).get("spec", {}).get("holderIdentity")


async def set_holder(api: KubeApi, text: str, name: str = "a") -> None:
    await api.merge(LEASES.at("llm", name), {"spec": {"holderIdentity": text}})


async def test_a_watch_shows_what_is_there_and_what_changes(api, server, watch, told):
    await api.create(AT, lease(holderIdentity="one"))
    watch.start()
    await watch.until(lambda: holder(watch) == "one" or None)
    await until(lambda: server.watches == 1)

    await set_holder(api, "two")
    await watch.until(lambda: holder(watch) == "two" or None)
    made = await api.create(AT, lease("b"))
    await api.delete(LEASES.at("llm", "b"), uid=made["metadata"]["uid"])
    await until(lambda: told[-1] == ("b", False))

    assert told == [("a", True), ("a", True), ("b", True), ("b", False)]
    assert list(watch.objects) == ["a"]
    assert server.asked("list", "leases") == 1


async def test_a_watch_that_ends_goes_on_where_it_was(api, server, watch, told):
    await api.create(AT, lease(holderIdentity="one"))
    watch.start()
    await until(lambda: server.watches == 1)

    for i in range(3):
        server.end_watches()
        await set_holder(api, str(i))
        await watch.until(lambda i=i: holder(watch) == str(i) or None)

    assert server.asked("list", "leases") == 1
    assert server.asked("watch", "leases") >= 3
    assert len(told) == 4


@pytest.mark.parametrize("as_event", [True, False], ids=["event", "answer"])
async def test_a_version_that_is_forgotten_means_to_list_again(api, server, watch, as_event):
    server.gone_as_event = as_event
    await api.create(AT, lease(holderIdentity="one"))
    await api.create(AT, lease("b"))
    watch.start()
    await until(lambda: server.watches == 1 and "b" in watch.objects)
    # while nobody watches things change, and what changed is forgotten
    server.fail(503, times=1_000_000, verb="watch")
    server.end_watches()
    await until(lambda: server.watches == 0)
    await set_holder(api, "two")
    await api.delete(LEASES.at("llm", "b"), uid=watch.objects["b"]["metadata"]["uid"])
    server.store.forget()
    server.faults.clear()

    await watch.until(lambda: (holder(watch) == "two" and "b" not in watch.objects) or None)
    await until(lambda: server.watches == 1)

    assert server.asked("list", "leases") == 2


async def test_a_bookmark_keeps_a_quiet_watch_from_being_forgotten(api, server, watch):
    await api.create(AT, lease(holderIdentity="one"))
    watch.start()
    await until(lambda: server.watches == 1)
    await api.create(LEASES.at("other"), lease() | {"metadata": {"name": "x", "namespace": "other"}})
    server.bookmark()
    await until(lambda: int(watch._version) == server.store.version)

    with server.store.changed:
        server.store.forgotten = server.store.version
        server.store.history.clear()
    server.end_watches()
    await until(lambda: server.asked("watch", "leases") == 2)
    await set_holder(api, "two")
    await watch.until(lambda: holder(watch) == "two" or None)

    assert server.asked("list", "leases") == 1


async def test_a_watch_survives_a_restart_of_the_server(api, server, watch):
    await api.create(AT, lease(holderIdentity="one"))
    watch.start()
    await until(lambda: server.watches == 1)
    server.stop()
    await until(lambda: watch.fault is not None)
    server.start()

    await set_holder(api, "two")
    await watch.until(lambda: holder(watch) == "two" or None)

    assert watch.fault is None


async def test_a_watch_that_is_not_allowed_says_so_to_who_waits(api, server, watch):
    server.rules = [{"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["list"]}]

    with pytest.raises(KubeFault, match="403 to watch leases"):
        await watch.until(lambda: None)


async def test_a_watch_that_is_closed_lets_go(server, watch):
    watch.start()
    await until(lambda: server.watches == 1)

    await watch.close()
    await asyncio.sleep(0)
    server.store.forget()

    await until(lambda: server.watches == 0)
