"""The part of the configuration tree about servers that sleep: how a model's are started, stopped and shared."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from .fields import Duration, Env, EnvName, Size, Wait
from .redis import RedisServer

Name = Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]


class PoolTerms(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="provider"):
    """What goes for pools of every provider."""

    min: Annotated[
        int, Meta(ge=0, le=64, description="Servers that always run; above 0 the pool is never stopped.")
    ] = 0
    max: Annotated[
        int,
        Meta(
            ge=1,
            le=64,
            description="Servers at most. The model's `max_concurrent` is then each server's.",
        ),
    ] = 1
    target: Annotated[
        Annotated[int, Meta(ge=1, le=1_000_000)] | None,
        Meta(
            description="Requests, queued and running, for each server: above it for 10 s one more starts. Absent: the "
            "model's `max_concurrent`."
        ),
    ] = None
    idle_timeout_s: Annotated[
        Duration, Meta(description="With nothing in flight for so long the servers are stopped.")
    ] = 300.0
    ready_timeout_s: Annotated[
        Duration,
        Meta(description="A request that waited so long for a server gets 504; so long may a start take."),
    ] = 300.0
    stop_timeout_s: Annotated[
        Duration, Meta(description="A server that has not ended so long after it was told to is killed.")
    ] = 30.0
    sleep_after_s: Annotated[
        Duration | None,
        Meta(description="With nothing in flight for so long vLLM sleeps. Absent: it does not."),
    ] = None
    sleep_level: Annotated[
        Literal[1, 2] | None,
        Meta(
            description="vLLM's: 1 keeps the weights in main memory, 2 drops them and wakes by reloading. Absent: 1."
        ),
    ] = None
    hold_silent_s: Annotated[
        Wait,
        Meta(
            description="A stream that waits longer is opened, and kept alive; before, a failure has its status."
        ),
    ] = 25.0
    keepalive_s: Annotated[
        Wait,
        Meta(description="Time between two comments in such a stream; 0: none, the status is always true."),
    ] = 10.0
    gpus: Annotated[int, Meta(ge=0, le=64, description="GPUs that each server takes.")] = 1
    memory: Annotated[
        Size | None,
        Meta(
            description="What each server takes of each of its GPUs. Absent: learned; the first time all of it."
        ),
    ] = None
    group: Annotated[
        Annotated[str, Meta(min_length=1, max_length=64)] | None,
        Meta(description="Of pools with the same group one runs at a time."),
    ] = None
    pinned: Annotated[bool, Meta(description="Never stopped to make room for another pool.")] = False
    preload: Annotated[bool, Meta(description="Started with the gateway, not by the first request.")] = False
    api_key_env: Annotated[
        EnvName | None,
        Meta(description="Name of the environment variable that holds the key sent to the servers."),
    ] = None


class ProcessPool(PoolTerms, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="process"):
    """`provider: process`: commands that run on this machine."""

    command: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=32_768)], ...],
        Meta(
            min_length=1,
            description="Program and arguments. `{port}` is replaced by the port to listen on, on 127.0.0.1, and "
            "`{model}` by the model's name.",
        ),
    ]
    env: Annotated[
        dict[str, str],
        Meta(
            description="Environment variables beside the gateway's own; `CUDA_VISIBLE_DEVICES` is set by itself."
        ),
    ] = {}
    keep: Annotated[
        bool,
        Meta(description="Servers go on when the gateway is stopped, and are taken over by the next start."),
    ] = False


class DockerPool(PoolTerms, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="docker"):
    """`provider: docker`: containers on this machine."""

    image: Annotated[str, Meta(min_length=1, max_length=512, description="The image.")]
    command: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=32_768)], ...],
        Meta(description="Arguments for the image's entrypoint; `{port}` and `{model}` are replaced."),
    ] = ()
    container_port: Annotated[
        int, Meta(ge=1, le=65_535, description="The port in the container, published on 127.0.0.1.")
    ] = 8000
    env: Annotated[dict[str, str], Meta(description="Environment variables.")] = {}
    volumes: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^/[^:]*:/[^:]*(:ro|:rw)?$")], ...],
        Meta(description="`/host/path:/container/path[:ro]` each."),
    ] = ()
    shm_size: Annotated[Size, Meta(description="Of the container's /dev/shm.")] = 8 << 30
    socket: Annotated[Env, Meta(description="The Docker Engine's socket.")] = "/var/run/docker.sock"
    keep: Annotated[
        bool,
        Meta(
            description="Containers go on when the gateway is stopped, and are taken over by the next start."
        ),
    ] = False


class Scale(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is scaled."""

    kind: Annotated[Literal["deployment", "statefulset"], Meta(description="Its kind.")]
    name: Annotated[Name, Meta(description="Its name.")]


class Toleration(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A toleration, in the words of a Pod."""

    key: Annotated[str | None, Meta(description="The taint's key. Absent, with `Exists`: every taint.")] = (
        None
    )
    operator: Annotated[
        Literal["Exists", "Equal"] | None, Meta(description="What `value` is for. Absent: `Equal`.")
    ] = None
    value: Annotated[str | None, Meta(description="The taint's value.")] = None
    effect: Annotated[
        Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None,
        Meta(description="The taint's effect. Absent: each."),
    ] = None
    tolerationSeconds: Annotated[  # as Kubernetes spells it
        Annotated[int, Meta(ge=0)] | None, Meta(description="Of `NoExecute`: for how long.")
    ] = None


class PodTemplate(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What Pods made from a `VLLMModel` have beside what that says."""

    image: Annotated[str, Meta(min_length=1, max_length=512, description="The image.")] = (
        "vllm/vllm-openai:latest"
    )
    tensor_parallel_size: Annotated[
        Annotated[int, Meta(ge=1, le=64)] | None,
        Meta(description="vLLM's `--tensor-parallel-size`. Absent: as many as the pool's `gpus`."),
    ] = None
    cpu_offload_gb: Annotated[float, Meta(ge=0, le=4096, description="vLLM's `--cpu-offload-gb`.")] = 0.0
    cpu: Annotated[str, Meta(pattern=r"^[0-9]+(\.[0-9]+)?m?$", description="CPU request.")] = "4"
    memory: Annotated[str, Meta(pattern=r"^[0-9]+(Mi|Gi|Ti)$", description="Memory request.")] = "16Gi"
    shm_size: Annotated[str, Meta(pattern=r"^[0-9]+(Mi|Gi)$", description="Of /dev/shm.")] = "8Gi"
    cache_claim: Annotated[
        Name | None, Meta(description="PersistentVolumeClaim with downloaded models. Absent: none.")
    ] = None
    node_selector: Annotated[dict[str, str], Meta(description="Labels that a node must have.")] = {}
    tolerations: Annotated[
        tuple[Toleration, ...], Meta(description="Kubernetes tolerations, as in a Pod.")
    ] = ()
    secrets: Annotated[
        tuple[Name, ...],
        Meta(
            description="Secrets whose entries become environment variables: `VLLM_API_KEY`, with the same value as "
            "the pool's `api_key_env`, and `HF_TOKEN`."
        ),
    ] = ()
    service_account: Annotated[Name | None, Meta(description="The Pods' service account.")] = None


class KubernetesPool(PoolTerms, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="kubernetes"):
    """`provider: kubernetes`: one of `scale` and `vllm_model`."""

    namespace: Annotated[
        Name | None,
        Meta(
            description="Where it runs. Absent: the gateway's own namespace; `default` outside of a cluster."
        ),
    ] = None
    unplaced_timeout_s: Annotated[
        Duration,
        Meta(
            description="A Pod that no node takes for so long, for want of a GPU say, is given up; longer than a "
            "cluster autoscaler needs for a new node."
        ),
    ] = 60.0
    scale: Annotated[
        Scale | None,
        Meta(
            description="A Deployment or StatefulSet that is scaled; the model's `backends` say where it answers."
        ),
    ] = None
    vllm_model: Annotated[Name | None, Meta(description="A `VLLMModel` that Pods are made from.")] = None
    pod: Annotated[PodTemplate, Meta(description="Of Pods made from a `VLLMModel`.")] = PodTemplate()


class WebhookPool(PoolTerms, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="webhook"):
    """`provider: webhook`: anything else; the model's `backends` say where it answers."""

    url: Annotated[Env, Meta(description="Gets a signed POST for each start and stop.")]
    secret_env: Annotated[
        EnvName, Meta(description="Name of the environment variable that holds the key of the signatures.")
    ]
    timeout_s: Annotated[Duration, Meta(description="An answer that takes longer is asked for again.")] = 10.0


Pool = ProcessPool | DockerPool | KubernetesPool | WebhookPool


class Gpu(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One GPU of this node."""

    memory: Annotated[Size, Meta(description="Its memory.")]


class KubernetesApi(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the Kubernetes API is reached. Each key absent: as a Pod finds it."""

    server: Annotated[Env | None, Meta(description="`https://host:port`.")] = None
    token_file: Annotated[
        Env | None,
        Meta(description="A file with the bearer token; read again as it changes. Relative as `ca`."),
    ] = None
    ca: Annotated[
        Env | None,
        Meta(
            description="PEM file of trusted authorities; a relative path starts at the configuration's folder."
        ),
    ] = None


class Pools(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What pools of this node share."""

    gpus: Annotated[
        tuple[Gpu, ...],
        Meta(description="This node's GPUs. Absent: what NVML finds; none where there is none."),
    ] = ()
    max_running: Annotated[
        Annotated[int, Meta(ge=1, le=4096)] | None,
        Meta(description="Pools of this node that run at one time."),
    ] = None
    max_wait_s: Annotated[
        Duration,
        Meta(
            description="Nobody waits longer than this for the turn of their model, where models take turns."
        ),
    ] = 60.0
    state: Annotated[
        Env | None,
        Meta(
            description="Folder for what outlives the gateway: servers that run, what they take of GPUs, their logs. "
            "Absent: `$STATE_DIRECTORY`, `$XDG_STATE_HOME/penstock` or `~/.local/state/penstock`."
        ),
    ] = None
    redis: Annotated[
        RedisServer | None,
        Meta(description="Where nodes that share `kubernetes` and `webhook` pools agree; `noeviction`."),
    ] = None
    lease: Annotated[
        Literal["redis", "kubernetes"] | None,
        Meta(
            description="By what nodes agree who may stop a shared pool. Absent: this node is the only one."
        ),
    ] = None
    kubernetes: Annotated[KubernetesApi, Meta(description="The Kubernetes API.")] = KubernetesApi()
