"""The part of `/gateway/status` that was written for vllm_gateway, in its shapes, from what this gateway knows.

There one number goes for all models; here each model has its own, and the largest of them is told. Sizes are MiB.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..cache.rows import Tally
from ..gateway.config import MIB, Config, Published


def compat(
    published: Published,
    tally: Tally,
    reports: Mapping[str, Mapping[str, Any]],
    total_bytes: int,
    footprints: Mapping[str, int],
) -> dict[str, Any]:
    """The keys and their values.

    reports: by model what its pool is doing. total_bytes: memory of this node's GPUs. footprints: by model, bytes that
    a server takes of each of its GPUs, as far as is known.
    """
    config = published.config
    return {
        "queue_status": {
            name: {
                "queue_depth": tally.queued(index) + tally.waiting(index),
                "max_concurrent": model.max_concurrent,
                "max_queue_size": model.max_queue,
            }
            for name, model in config.models.items()
            for index in [published.model_indices[name]]
        },
        "total_gpu_vram_mib": total_bytes // MIB,
        "known_footprints_mib": {name: size // MIB for name, size in footprints.items()},
        "active_containers": {
            f"{name}-{number}": {"model": name, "url": member["url"], "phase": member["phase"]}
            for name, report in reports.items()
            for number, member in enumerate(report["members"])
            if member["phase"] != "off"
        },
        "config": _config(config),
    }


def _config(config: Config) -> dict[str, Any]:
    models = config.models.values()
    pools = [model.pool for model in models if model.pool is not None]
    return {
        "log_level": config.log.level,
        "log_level_numeric": logging.getLevelNamesMapping()[config.log.level],
        "gateway_max_concurrent": max(model.max_concurrent for model in models),
        "gateway_max_queue_size": max(model.max_queue for model in models),
        "gateway_max_models_concurrent": config.pools.max_running or len(config.models),
        "http_pool_size": config.upstream.connections.max_idle,
        "vllm_inactivity_timeout": max((pool.idle_timeout_s for pool in pools), default=0.0),
    }
