"""What types cannot say of pools. Pure: each function yields (path, fault, likely fix) for what cannot work."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from .addresses import parts_of
from .faults import Fault
from .model import Model
from .outside import unset
from .pool import DockerPool, KubernetesPool, ProcessPool, WebhookPool
from .structs import Config


def places_itself(model: Model) -> bool:
    """Whether the provider says where the servers answer; otherwise the model's `backends` do."""
    pool = model.pool
    return pool is not None and not (
        isinstance(pool, WebhookPool) or (isinstance(pool, KubernetesPool) and pool.scale is not None)
    )


def pool_faults(config: Config, environ: Mapping[str, str]) -> Iterator[Fault]:
    """Everything that is wrong with the pools of a configuration, in its order."""
    for name, model in config.models.items():
        if model.pool is not None:
            yield from _of_one(f"$.models.{name}", model, environ)
            yield from _of_sleep(f"$.models.{name}.pool", model)
            if isinstance(model.pool, KubernetesPool):
                yield from _of_kubernetes(f"$.models.{name}.pool", model.pool)
    yield from gpu_faults(config, [gpu.memory for gpu in config.pools.gpus])
    yield from _of_lease(config)
    if (
        (
            any(isinstance(model.pool, KubernetesPool) for model in config.models.values())
            or config.pools.lease == "kubernetes"
        )
        and config.pools.kubernetes.server is None
        and not environ.get("KUBERNETES_SERVICE_HOST")
    ):
        yield "$.pools.kubernetes.server", "is missing, and this is no Pod", "say where the Kubernetes API is"


def gpu_faults(config: Config, gpus: Sequence[int]) -> Iterator[Fault]:
    """Pools of this node whose servers could never start on these GPUs, bytes each. None known: no fault."""
    for name, model in config.models.items():
        pool, path = model.pool, f"$.models.{name}.pool"
        if not gpus or not isinstance(pool, ProcessPool | DockerPool):
            continue
        large = sum(size >= (pool.memory or 0) for size in gpus)
        if pool.gpus > len(gpus):
            yield (
                f"{path}.gpus",
                f"{pool.gpus} for each server, and this node has {len(gpus)}",
                "lower it, or correct `pools.gpus`",
            )
        elif pool.gpus > large:
            yield (
                f"{path}.memory",
                f"of {pool.gpus} GPU{'s' if pool.gpus > 1 else ''}, and this node has {large} with as much",
                "lower it, or correct `pools.gpus`",
            )


def _of_lease(config: Config) -> Iterator[Fault]:
    pools = config.pools
    if pools.redis is not None and pools.lease != "redis":
        yield "$.pools.redis", "of no use without `lease: redis`", "give `pools.lease`, or remove it"
    if pools.lease is None:
        return
    if pools.lease == "redis" and pools.redis is None:
        yield "$.pools.lease", "`redis` needs `pools.redis`", "say where the Redis is"
    if not any(isinstance(m.pool, KubernetesPool | WebhookPool) for m in config.models.values()):
        yield "$.pools.lease", "no pool here can be shared by nodes", "remove it"


def _of_one(path: str, model: Model, environ: Mapping[str, str]) -> Iterator[Fault]:
    pool = model.pool
    assert pool is not None
    if isinstance(pool, KubernetesPool) and (pool.scale is None) is (pool.vllm_model is None):
        yield f"{path}.pool", "one of `scale` and `vllm_model` is needed", "give one of them"
    if places_itself(model) and model.backends:
        yield f"{path}.backends", "the pool's servers are its backends", "remove them, or remove `pool`"
    if not places_itself(model) and not model.backends:
        yield f"{path}", "`backends` is missing", "say where the pool's servers answer"
    if model.max_queue == 0:
        yield f"{path}.max_queue", "nobody could wait for the pool's servers to wake", "raise it"
    if isinstance(pool, ProcessPool) and not any("{port}" in word for word in pool.command):
        yield (
            f"{path}.pool.command",
            "nothing tells the server on which port to listen: `{port}` is in none of the arguments",
            'add for example --port, "{port}"',
        )
    if pool.min > pool.max:
        yield f"{path}.pool.min", "larger than `max`", "lower it, or raise `max`"
    if pool.sleep_after_s is not None and pool.sleep_after_s >= pool.idle_timeout_s:
        yield f"{path}.pool.sleep_after_s", "not shorter than `idle_timeout_s`", "lower it, or remove it"
    if isinstance(pool, DockerPool) and not pool.socket.removeprefix("unix://").startswith("/"):
        yield f"{path}.pool.socket", "not an absolute path", "write /var/run/docker.sock"
    if isinstance(pool, WebhookPool) and not _is_web(pool.url):
        yield f"{path}.pool.url", "neither http nor https, or without a host", "write https://host/path"
    for key in ("api_key_env", "secret_env"):
        yield from unset(f"{path}.pool.{key}", getattr(pool, key, None), environ)


def _is_web(url: str) -> bool:
    parts, port = parts_of(url)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0


def _of_sleep(path: str, model: Model) -> Iterator[Fault]:
    """What keeps vLLM from sleeping, as far as it can be seen."""
    pool = model.pool
    if pool is None or pool.sleep_after_s is None:
        if pool is not None and pool.sleep_level is not None:
            yield f"{path}.sleep_level", "of no use without `sleep_after_s`", "give that, or remove this"
        return
    if isinstance(pool, ProcessPool | DockerPool) and _sleepless(pool):
        yield (
            f"{path}.sleep_after_s",
            "vLLM gives back no memory without its `--enable-sleep-mode`",
            "add that to `command`, or remove this",
        )
    if not places_itself(model) and (
        len(model.backends) < pool.max or (pool.max > 1 and any(one.discover for one in model.backends))
    ):
        yield (
            f"{path}.sleep_after_s",
            "servers without addresses of their own cannot be put to sleep one by one",
            "give each of them a backend, or remove this",
        )


def _sleepless(pool: ProcessPool | DockerPool) -> bool:
    """Whether it is vLLM's own server that is started, without the option that lets it sleep."""
    words = " ".join(pool.command).replace("_", "-").split()
    if isinstance(pool, DockerPool):
        runs = pool.image.rpartition("/")[2].startswith("vllm-openai")
    else:
        programs = [word.rpartition("/")[2] for word in words]
        runs = ("vllm", "serve") in pairwise(programs) or "vllm.entrypoints.openai.api-server" in words
    # a file may say it
    said = any(word.partition("=")[0] in ("--enable-sleep-mode", "--config") for word in words)
    return runs and not said


def _of_kubernetes(path: str, pool: KubernetesPool) -> Iterator[Fault]:
    if pool.scale is not None and pool.scale.kind == "deployment" and pool.max > 1:
        yield (
            f"{path}.max",
            "which replica of a Deployment ends is not ours to say, so it might be one with requests",
            "use a StatefulSet, or `max: 1`",
        )
    if pool.vllm_model is None:
        return
    parallel = pool.pod.tensor_parallel_size
    if parallel is not None and 0 < pool.gpus < parallel:
        yield f"{path}.pod.tensor_parallel_size", "larger than the pool's `gpus`", "raise `gpus`, or lower it"
    if pool.api_key_env is not None and not pool.pod.secrets:
        yield (
            f"{path}.pod.secrets",
            "is missing: the Pods would not know the key of `api_key_env`",
            "name a Secret with the entry VLLM_API_KEY",
        )
