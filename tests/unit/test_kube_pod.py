"""A VLLMModel as a Pod and a Service, and what a Pod's status comes to."""

import json
from typing import Any

import msgspec
import pytest

from penstock.gateway.config import KubernetesPool, Pool
from penstock.workers.pools.providers.base import ProviderFault
from penstock.workers.pools.providers.kube_pod import FENCE_NOTE, MADE_FROM_NOTE, PodPlan
from penstock.workers.pools.providers.kube_state import PodPhase, state_of

from ..support.kube_nodes import Light, free_address
from ..support.kube_schema import object_faults
from ..support.kube_store import pod_rules

FULL = {
    "modelName": "Qwen/Qwen3-8B",
    "servedModelName": "qwen3",
    "maxModelLen": 32768,
    "maxNumBatchedTokens": 8192,
    "maxNumSeqs": 64,
    "gpuMemoryUtilization": 0.9,
    "enableChunkedPrefill": True,
    "dtype": "bfloat16",
    "disableCustomAllReduce": True,
    "enablePrefixCaching": False,
    "enableAutoToolChoice": True,
    "toolCallParser": "hermes",
    "reasoningParser": "qwen3",
}


def plan(model: str = "qwen3", **pool: Any) -> PodPlan:
    made: Pool = msgspec.convert({"provider": "kubernetes", "vllm_model": "q", **pool}, Pool)
    assert isinstance(made, KubernetesPool)
    return PodPlan(model, "llm", made)


def source(**spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "q", "uid": "u-1"}, "spec": {"modelName": "Qwen/Qwen3-8B"} | spec}


def container(pod: dict[str, Any]) -> dict[str, Any]:
    (one,) = pod["spec"]["containers"]
    return dict(one)


def test_every_field_of_a_vllm_model_is_an_argument_of_vllm():
    made = plan("qwen3", gpus=2, pod={"cpu_offload_gb": 4.0}).arguments(source(**FULL))

    assert made == [
        "Qwen/Qwen3-8B",
        "--host=0.0.0.0",
        "--port=8000",
        "--served-model-name",
        "qwen3",
        "--max-model-len=32768",
        "--max-num-batched-tokens=8192",
        "--max-num-seqs=64",
        "--gpu-memory-utilization=0.9",
        "--dtype=bfloat16",
        "--tool-call-parser=hermes",
        "--reasoning-parser=qwen3",
        "--tensor-parallel-size=2",
        "--cpu-offload-gb=4",
        "--enable-chunked-prefill",
        "--no-enable-prefix-caching",
        "--disable-custom-all-reduce",
        "--enable-auto-tool-choice",
    ]


def test_what_a_vllm_model_does_not_say_is_left_to_vllm():
    made = plan().arguments(source())

    assert made == [
        "Qwen/Qwen3-8B",
        "--host=0.0.0.0",
        "--port=8000",
        "--served-model-name",
        "qwen3",
        "--tensor-parallel-size=1",
    ]


def test_vllm_answers_to_its_own_name_and_to_the_one_that_clients_use():
    made = plan("gpt-4o-mini").arguments(source(servedModelName="qwen3"))

    at = made.index("--served-model-name")
    assert made[at + 1 : at + 3] == ["qwen3", "gpt-4o-mini"]


@pytest.mark.parametrize(
    "spec",
    [{"modelName": "--trust-remote-code"}, {"modelName": ""}, {"maxModelLen": 0}, {"dtype": "a b"}],
    ids=["an argument", "empty", "zero", "a space"],
)
def test_a_vllm_model_that_says_something_impossible_is_refused(spec):
    with pytest.raises(ProviderFault, match='the VLLMModel "q" is not usable'):
        plan().arguments(source(**spec))


def test_a_dollar_in_an_argument_is_not_replaced_by_kubernetes():
    assert plan().arguments(source(modelName="/models/$(HOME)"))[0] == "/models/$$(HOME)"


def test_a_pod_has_what_the_pool_says_and_passes_a_strict_server():
    pool = {
        "gpus": 2,
        "stop_timeout_s": 45.5,
        "ready_timeout_s": 600,
        "pod": {
            "image": "registry/vllm:1",
            "cpu": "8",
            "memory": "64Gi",
            "shm_size": "16Gi",
            "cache_claim": "models",
            "node_selector": {"gpu": "h200"},
            "tolerations": [
                {
                    "key": "nvidia.com/gpu",
                    "operator": "Exists",
                    "effect": "NoExecute",
                    "tolerationSeconds": 60,
                }
            ],
            "service_account": "vllm",
            "secrets": ["hf"],
        },
    }
    pod = plan(**pool).pod(1, source(**FULL), fence=7)
    spec, one = pod["spec"], container(pod)

    assert object_faults(pod, "pods") == []
    pod_rules(spec)
    assert one["image"] == "registry/vllm:1"
    assert one["command"] == ["vllm", "serve"]
    assert one["resources"] == {
        "requests": {"cpu": "8", "memory": "64Gi"},
        "limits": {"nvidia.com/gpu": "2"},
    }
    assert spec["volumes"] == [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}},
        {"name": "models", "persistentVolumeClaim": {"claimName": "models"}},
    ]
    assert {mount["mountPath"] for mount in one["volumeMounts"]} == {"/dev/shm", "/var/cache/models"}
    assert {"name": "HF_HOME", "value": "/var/cache/models/huggingface"} in one["env"]
    assert spec["nodeSelector"] == {"gpu": "h200"}
    assert spec["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}
    ]
    assert spec["serviceAccountName"] == "vllm"
    assert one["envFrom"] == [{"secretRef": {"name": "hf"}}]
    assert spec["terminationGracePeriodSeconds"] == 46
    assert spec["restartPolicy"] == "Never"
    assert spec["enableServiceLinks"] is False
    probe = one["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 600
    assert pod["metadata"]["annotations"][FENCE_NOTE] == "7"
    (owner,) = pod["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("VLLMModel", "q", "u-1")


def test_a_pool_without_gpus_asks_for_none():
    pod = plan(gpus=0).pod(0, source())

    assert "limits" not in container(pod)["resources"]
    assert "--tensor-parallel-size=1" in container(pod)["args"]


def test_probes_send_the_key_and_the_pod_does_not_hold_it():
    pod = plan(api_key_env="VLLM_KEY", pod={"secrets": ["vllm"]}).pod(0, source())

    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        program, flag, script = container(pod)[kind]["exec"]["command"]
        assert (program, flag) == ("python3", "-c")
        assert "'Authorization': 'Bearer ' + os.environ['VLLM_API_KEY']" in script
        compile(script, kind, "exec")
    assert "httpHeaders" not in json.dumps(pod)


def test_the_probe_of_a_pod_with_a_key_passes_with_it_and_fails_without(monkeypatch):
    server = Light(free_address(), "the key")
    try:
        pod = plan(api_key_env="VLLM_KEY", pod={"secrets": ["vllm"]}).pod(0, source())
        script = container(pod)["livenessProbe"]["exec"]["command"][2].replace("127.0.0.1", server.ip)
        monkeypatch.setenv("VLLM_API_KEY", "the key")
        exec(compile(script, "probe", "exec"), {})
        monkeypatch.setenv("VLLM_API_KEY", "another")
        with pytest.raises(Exception, match="401"):
            exec(compile(script, "probe", "exec"), {})
    finally:
        server.stop()


def test_without_a_key_the_kubelet_asks_by_itself():
    probe = container(plan().pod(0, source()))["readinessProbe"]

    assert probe["httpGet"] == {"path": "/health", "port": "http"}


def test_a_pool_whose_servers_sleep_has_vllms_sleep_mode():
    one = container(plan(sleep_after_s=60).pod(0, source()))

    assert "--enable-sleep-mode" in one["args"]
    assert {"name": "VLLM_SERVER_DEV_MODE", "value": "1"} in one["env"]
    assert "--enable-sleep-mode" not in container(plan().pod(0, source()))["args"]


def test_names_follow_from_the_model_and_the_member():
    long = plan("Org/" + "Very-Long-Name." * 20)

    assert plan().pod(3, source())["metadata"]["name"] == plan().name(3) != plan("other").name(3)
    for one in (plan(), long, plan("日本語"), plan("a" * 36 + "-b")):
        pod = one.pod(0, source())
        assert len(pod["metadata"]["name"]) <= 63
        assert object_faults(pod, "pods") == []
        assert object_faults(one.service(source()), "services") == []
        assert one.member(pod) == 0
        assert plan("another").member(pod) is None


def test_a_pod_made_from_something_else_can_be_told():
    def made_from(pool: PodPlan, **spec: Any) -> str:
        return str(pool.pod(0, source(**spec))["metadata"]["annotations"][MADE_FROM_NOTE])

    assert made_from(plan()) == made_from(plan())
    assert made_from(plan()) != made_from(plan(), maxModelLen=5)
    assert made_from(plan()) != made_from(plan(pod={"image": "another"}))


def test_the_service_is_over_the_pods_of_the_pool_alone():
    service = plan().service(source())
    labels = plan().pod(0, source())["metadata"]["labels"]

    assert object_faults(service, "services") == []
    assert service["spec"]["selector"].items() <= labels.items()


# ---- what a status comes to


def waiting(reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    one = {"name": "vllm", "state": {"waiting": {"reason": reason, "message": message}}} | more
    return {"phase": "Pending", "containerStatuses": [one]}


def condition(kind: str, status: str, reason: str = "", message: str = "") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


ENDED = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
STATES: dict[str, tuple[dict[str, Any], PodPhase, str]] = {
    "new": ({}, PodPhase.PENDING, "is pending"),
    "ready": (
        {"phase": "Running", "podIP": "10.0.0.1", "conditions": [condition("Ready", "True")]},
        PodPhase.READY,
        "",
    ),
    "ready without an address": (
        {"phase": "Running", "conditions": [condition("Ready", "True")]},
        PodPhase.PENDING,
        "is running",
    ),
    "not ready": (
        {"phase": "Running", "podIP": "10.0.0.1", "conditions": [condition("Ready", "False")]},
        PodPhase.PENDING,
        "is running",
    ),
    "creating": (waiting("ContainerCreating"), PodPhase.PENDING, "ContainerCreating"),
    "no image": (waiting("ErrImagePull", "manifest unknown"), PodPhase.BROKEN, "manifest unknown"),
    "no image again": (waiting("ImagePullBackOff"), PodPhase.BROKEN, "ImagePullBackOff"),
    "no secret": (waiting("CreateContainerConfigError", 'secret "x" not found'), PodPhase.BROKEN, "secret"),
    "crashing": (
        waiting("CrashLoopBackOff", lastState={"terminated": {"reason": "Error", "exitCode": 3}}),
        PodPhase.BROKEN,
        "Error, exit code 3",
    ),
    "no node": (
        {"conditions": [condition("PodScheduled", "False", "Unschedulable", "Insufficient nvidia.com/gpu")]},
        PodPhase.UNPLACED,
        "Unschedulable: Insufficient nvidia.com/gpu",
    ),
    "evicted": (
        {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."},
        PodPhase.ENDED,
        "Evicted: The node was low on resource",
    ),
    "killed": (
        {"phase": "Failed", "containerStatuses": [{"name": "vllm", "state": ENDED}]},
        PodPhase.ENDED,
        "OOMKilled, exit code 137",
    ),
    "odd": (
        {"conditions": "?", "containerStatuses": [7, {"state": None}], "phase": None},
        PodPhase.PENDING,
        "",
    ),
}


@pytest.mark.parametrize("name", sorted(STATES))
def test_a_pods_status_comes_to(name):
    status, phase, reason = STATES[name]

    state = state_of({"metadata": {"name": "p"}, "status": status})

    assert state.phase is phase
    assert reason in state.reason
    assert "\n" not in state.reason


def test_a_pod_that_was_told_to_end_says_by_whom():
    pod = {
        "metadata": {"name": "p", "deletionTimestamp": "now"},
        "status": {"conditions": [condition("DisruptionTarget", "True", "EvictionByEvictionAPI")]},
    }

    state = state_of(pod)

    assert (state.phase, state.runs) == (PodPhase.ENDING, False)
    assert "EvictionByEvictionAPI" in state.reason


def test_what_a_container_said_last_is_not_passed_on():
    end = {"terminated": {"reason": "Error", "exitCode": 1, "message": "the key is s3cret"}}
    status = {"phase": "Failed", "containerStatuses": [{"name": "vllm", "state": end}]}

    assert "s3cret" not in state_of({"metadata": {"name": "p"}, "status": status}).reason
