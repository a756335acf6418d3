"""A `VLLMModel` as a Pod and a Service: names, labels, vLLM's arguments, resources, probes. Pure.

Names follow from the model's name and the member's number, so that a second attempt meets the first one's Pod. What a
Pod was made from is kept in it as a digest: one made from something else is not taken for the one that is wanted.

restartPolicy is Never: the pool decides whether, and after which back-off, a server is started again, and the reason
of its end stays readable. Keys come from Secrets and never stand in the Pod: a probe of the kubelet's own takes its
`Authorization` as plain text, so where a key is needed the probe is a command that reads it from the environment.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from ....gateway.config import KubernetesPool
from .base import ProviderFault
from .kube_api import Json
from .kube_place import VLLM_MODELS

PORT = 8000
DOMAIN = "penstock.sir-alfred.io"
POOL_LABEL = f"{DOMAIN}/pool"
MEMBER_LABEL = f"{DOMAIN}/member"
MODEL_NOTE = f"{DOMAIN}/model"
MADE_FROM_NOTE = f"{DOMAIN}/made-from"
FENCE_NOTE = f"{DOMAIN}/fence"
CACHE = "/var/cache/models"
_PROBE_S = 10

#: vLLM's image has python3 and need not have curl
_ASK = (
    "import os, urllib.request as u; "
    "u.urlopen(u.Request('http://127.0.0.1:{port}{path}', "
    "headers={{'Authorization': 'Bearer ' + os.environ['VLLM_API_KEY']}}), timeout={timeout})"
)

Text = Annotated[str, Meta(min_length=1, max_length=512, pattern=r"^[^-\s]\S*$")]
Count = Annotated[int, Meta(ge=1, le=1 << 31)]


class VllmModelSpec(Struct, frozen=True, rename="camel"):
    """`spec` of a `VLLMModel`; what else stands there is for others."""

    model_name: Text
    served_model_name: Text | None = None
    max_model_len: Count | None = None
    max_num_batched_tokens: Count | None = None
    max_num_seqs: Count | None = None
    gpu_memory_utilization: Annotated[float, Meta(gt=0, le=1)] | None = None
    enable_chunked_prefill: bool | None = None
    dtype: Text | None = None
    disable_custom_all_reduce: bool | None = None
    enable_prefix_caching: bool | None = None
    enable_auto_tool_choice: bool | None = None
    tool_call_parser: Text | None = None
    reasoning_parser: Text | None = None


@dataclass(frozen=True, slots=True)
class PodPlan:
    """What Pods of one pool are made from. model: as clients name it. health_path: where vLLM tells its health."""

    model: str
    namespace: str
    pool: KubernetesPool
    health_path: str = "/health"

    @property
    def base(self) -> str:
        """The name of the Service, and the value of the label of all the pool's Pods."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.model.lower()).strip("-")[:36].strip("-") or "model"
        return f"penstock-{slug}-{hashlib.sha256(self.model.encode()).hexdigest()[:8]}"

    @property
    def selector(self) -> str:
        """The label selector of the pool's Pods."""
        return f"{POOL_LABEL}={self.base}"

    def name(self, member: int) -> str:
        """Of a member's Pod."""
        return f"{self.base}-{member}"

    def member(self, pod: Json) -> int | None:
        """Which member a Pod is; None for one that is not the pool's."""
        labels = (pod.get("metadata") or {}).get("labels") or {}
        number = str(labels.get(MEMBER_LABEL, ""))
        if labels.get(POOL_LABEL) != self.base or not number.isdecimal() or len(number) > 4:
            return None
        return int(number) if self.name(int(number)) == pod["metadata"].get("name") else None

    def pod(self, member: int, source: Json, fence: int = 0) -> Json:
        """The Pod of a member, made from a VLLMModel. Raises ProviderFault where that says something impossible."""
        spec = self._spec(source)
        made_from = hashlib.sha256(msgspec.json.encode(spec, order="deterministic")).hexdigest()[:32]
        notes = {MODEL_NOTE: self.model, MADE_FROM_NOTE: made_from}
        if fence:
            notes[FENCE_NOTE] = str(fence)
        labels = self._labels(source) | {MEMBER_LABEL: str(member)}
        meta = self._meta(self.name(member), source) | {"labels": labels, "annotations": notes}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}

    def service(self, source: Json) -> Json:
        """The Service over all members that are ready: for others in the cluster, the gateway asks each by itself."""
        port = {"name": "http", "port": PORT, "targetPort": "http", "protocol": "TCP"}
        meta = self._meta(self.base, source) | {
            "labels": self._labels(source),
            "annotations": {MODEL_NOTE: self.model},
        }
        spec = {"selector": {POOL_LABEL: self.base}, "ports": [port]}
        return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}

    def arguments(self, source: Json) -> list[str]:
        """What `vllm serve` is given (vLLM, "Engine arguments"; a flag's no is spelled `--no-`)."""
        try:
            spec = msgspec.convert(source.get("spec"), VllmModelSpec)
        except msgspec.ValidationError as fault:
            raise ProviderFault(f'the VLLMModel "{_name(source)}" is not usable: {fault}') from None
        pod, pool = self.pool.pod, self.pool
        served = dict.fromkeys((spec.served_model_name or self.model, self.model))
        made = [spec.model_name, "--host=0.0.0.0", f"--port={PORT}", "--served-model-name", *served]
        for key, value in (
            ("max-model-len", spec.max_model_len),
            ("max-num-batched-tokens", spec.max_num_batched_tokens),
            ("max-num-seqs", spec.max_num_seqs),
            ("gpu-memory-utilization", spec.gpu_memory_utilization),
            ("dtype", spec.dtype),
            ("tool-call-parser", spec.tool_call_parser),
            ("reasoning-parser", spec.reasoning_parser),
            ("tensor-parallel-size", pod.tensor_parallel_size or max(pool.gpus, 1)),
            ("cpu-offload-gb", pod.cpu_offload_gb or None),
        ):
            if value is not None:
                made.append(f"--{key}={value:g}" if isinstance(value, float) else f"--{key}={value}")
        for key, flag in (
            ("enable-chunked-prefill", spec.enable_chunked_prefill),
            ("enable-prefix-caching", spec.enable_prefix_caching),
            ("disable-custom-all-reduce", spec.disable_custom_all_reduce),
            ("enable-auto-tool-choice", spec.enable_auto_tool_choice),
        ):
            if flag is not None:
                made.append(f"--{key}" if flag else f"--no-{key}")
        if pool.sleep_after_s is not None:
            made.append("--enable-sleep-mode")
        # Kubernetes replaces $(NAME) in arguments, and $$ by $
        return [text.replace("$", "$$") for text in made]

    def _spec(self, source: Json) -> Json:
        pool, pod = self.pool, self.pool.pod
        mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
        volumes: list[Json] = [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": pod.shm_size}}]
        env: list[Json] = []
        if pod.cache_claim is not None:
            mounts.append({"name": "models", "mountPath": CACHE})
            volumes.append({"name": "models", "persistentVolumeClaim": {"claimName": pod.cache_claim}})
            env += [
                {"name": "HF_HOME", "value": f"{CACHE}/huggingface"},
                {"name": "VLLM_CACHE_ROOT", "value": f"{CACHE}/vllm"},
            ]
        if pool.sleep_after_s is not None:
            # vLLM has /sleep and /wake_up only then; the gateway does not let them through
            env.append({"name": "VLLM_SERVER_DEV_MODE", "value": "1"})
        resources: Json = {"requests": {"cpu": pod.cpu, "memory": pod.memory}}
        if pool.gpus:
            # of an extended resource the request is the limit, which alone need be given
            resources["limits"] = {"nvidia.com/gpu": str(pool.gpus)}
        container: Json = {
            "name": "vllm",
            "image": pod.image,
            "command": ["vllm", "serve"],
            "args": self.arguments(source),
            "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
            "env": env,
            "envFrom": [{"secretRef": {"name": name}} for name in pod.secrets],
            "resources": resources,
            "volumeMounts": mounts,
            "startupProbe": self._probe(period_s=5, failures=math.ceil(pool.ready_timeout_s / 5) + 1),
            "readinessProbe": self._probe(period_s=5, failures=3),
            "livenessProbe": self._probe(period_s=10, failures=6),
            "securityContext": {"allowPrivilegeEscalation": False},
        }
        spec: Json = {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": math.ceil(pool.stop_timeout_s),
            # a Service called vllm would set VLLM_PORT, which vLLM reads as its own
            "enableServiceLinks": False,
            "automountServiceAccountToken": pod.service_account is not None,
            "containers": [container],
            "volumes": volumes,
        }
        if pod.service_account is not None:
            spec["serviceAccountName"] = pod.service_account
        if pod.node_selector:
            spec["nodeSelector"] = dict(pod.node_selector)
        if pod.tolerations:
            spec["tolerations"] = [
                {key: value for key, value in msgspec.to_builtins(one).items() if value is not None}
                for one in pod.tolerations
            ]
        return spec

    def _probe(self, *, period_s: int, failures: int) -> Json:
        terms: Json = {"periodSeconds": period_s, "timeoutSeconds": _PROBE_S, "failureThreshold": failures}
        if self.pool.api_key_env is None:
            return {"httpGet": {"path": self.health_path, "port": "http"}} | terms
        asked = _ASK.format(port=PORT, path=self.health_path, timeout=_PROBE_S - 1)
        return {"exec": {"command": ["python3", "-c", asked]}} | terms

    def _meta(self, name: str, source: Json) -> Json:
        owner = {
            "apiVersion": f"{VLLM_MODELS.group}/{VLLM_MODELS.version}",
            "kind": "VLLMModel",
            "name": _name(source),
            "uid": str((source.get("metadata") or {}).get("uid")),
            "controller": True,
        }
        return {"name": name, "namespace": self.namespace, "ownerReferences": [owner]}

    def _labels(self, source: Json) -> dict[str, str]:
        return {
            "app.kubernetes.io/name": "vllm",
            "app.kubernetes.io/instance": self.base,
            "app.kubernetes.io/managed-by": "penstock",
            POOL_LABEL: self.base,
        }


def _name(source: Json) -> str:
    return str((source.get("metadata") or {}).get("name"))
