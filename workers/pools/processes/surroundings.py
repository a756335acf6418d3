"""What a server is started with: its environment and its arguments. Pure.

The environment is the gateway's own without its secrets: no variable that any key of the configuration names as one,
but for the pool's own key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
import xxhash

from ....gateway.config import Config
from ....gateway.config.pool import ProcessPool


def secret_names(config: Config) -> set[str]:
    """Names of the environment variables that hold the gateway's secrets."""
    return set(_named(config))


def _named(one: object) -> Iterator[str]:
    if isinstance(one, msgspec.Struct):
        for field in one.__struct_fields__:
            value = getattr(one, field)
            if field.endswith("_env") and isinstance(value, str):
                yield value
            else:
                yield from _named(value)
    elif isinstance(one, dict):
        for value in one.values():
            yield from _named(value)
    elif isinstance(one, tuple | list):
        for value in one:
            yield from _named(value)


def environment(
    config: Config, pool: ProcessPool, environ: Mapping[str, str], gpus: tuple[int, ...]
) -> dict[str, str]:
    """The environment of one server on these devices."""
    secrets = secret_names(config) - {pool.api_key_env}
    made = {name: value for name, value in environ.items() if name not in secrets}
    made |= pool.env
    if gpus:
        made["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
        made["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as NVML, and so the configuration, counts them
    if pool.sleep_after_s is not None:
        made["VLLM_SERVER_DEV_MODE"] = "1"  # without it vLLM has no /sleep
    key = environ.get(pool.api_key_env) if pool.api_key_env else None
    if key:
        made["VLLM_API_KEY"] = key
    return made


def arguments(pool: ProcessPool, model: str, port: int) -> list[str]:
    """Program and arguments."""
    return [one.replace("{port}", str(port)).replace("{model}", model) for one in pool.command]


def digest(pool: ProcessPool, model: str) -> str:
    """The same for two servers that are started alike."""
    told = (
        model,
        pool.command,
        sorted(pool.env.items()),
        pool.api_key_env,
        pool.sleep_after_s is not None,
        pool.gpus,
    )
    return xxhash.xxh3_128_hexdigest(msgspec.json.encode(told))
