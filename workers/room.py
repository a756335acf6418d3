"""Whether the cache takes memory, and how much where the configuration does not say.

The least of 4 GiB, a quarter of what the cgroup allows, and 80 % of what is free in shared memory, where it is to lie.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ..gateway.config import Config

_MOST = 4 << 30
_MIB = 1 << 20


def is_wanted(config: Config) -> bool:
    """Whether anything may be cached: of a node whose models are all `off` no memory is taken."""
    modes = [config.cache.mode, *(model.cache.mode for model in config.models.values() if model.cache)]
    return any(mode != "off" for mode in modes)


def memory_size(folder: Path, root: Path = Path("/")) -> int:
    """The bytes that suit this machine, in whole MiB.

    folder: where shared memory is; root: where /proc and /sys are.
    """
    stat = os.statvfs(folder)
    size = min(_MOST, stat.f_bavail * stat.f_frsize * 8 // 10, _memory(root) // 4)
    return size // _MIB * _MIB


def _memory(root: Path) -> int:
    """What the cgroup and the machine allow, in bytes; both cgroup versions (cgroup-v2.rst, memory.rst)."""
    known = [_physical(root)]
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                known += _limits(root / "sys/fs/cgroup", path, "memory.max")
            elif "memory" in controllers.split(","):
                known += _limits(root / "sys/fs/cgroup/memory", path, "memory.limit_in_bytes")
    return min(known)


def _limits(base: Path, path: str, name: str) -> list[int]:
    """The limits of a group and of its parents."""
    found = []
    group = Path(path.lstrip("/"))
    for one in (group, *group.parents):
        with contextlib.suppress(OSError, ValueError):  # "max" is none
            found.append(int((base / one / name).read_text()))
    return found


def _physical(root: Path) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
    return _MOST
