"""`penstock config check` on a machine with GPUs: pools whose servers could never start on these.

Where `pools.gpus` says what there is, the configuration itself is refused. What NVML finds is this machine's, which
need not be the one that the file is for: it is only told.
"""

from __future__ import annotations

import asyncio

from ..gateway.config import Config, ConfigError
from ..gateway.config.check_pools import gpu_faults
from .pools.nvml import Nvml, Unavailable


def gpu_doubts(name: str, config: Config, nvml: Nvml) -> list[str]:
    """A line for each such pool; none where NVML does not answer. name: of the file."""
    if config.pools.gpus or all(model.pool is None for model in config.models.values()):
        return []
    try:
        found = asyncio.run(nvml.memory())
    except Unavailable:
        return []
    return [
        str(ConfigError(name, path, what, "lower it, or run it elsewhere"))
        for path, what, _ in gpu_faults(config, [gpu.total_bytes for gpu in found])
    ]
