"""How many workers, and on which cores: a pure plan, a reader of what the machine grants, and the pinning.

Strategy: what this process may use is its affinity mask and its cgroup's CPU quota, never the host's count. From
eight cores up one is left to the controller and the supervisor and one to the system. Where a quota grants less
than the mask, nobody is pinned: every container of the host would choose the same first cores.

Pinning is done once in a child before it starts a thread, so that Granian's runtime threads inherit it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

LEAVE_CORES_FROM = 8
"""From this many cores on, one is left to controller and supervisor and one to the system."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`workers` has one entry per worker: its core, or None where it is not pinned.

    `control` are the cores of the controller, empty where it is not pinned.
    """

    workers: tuple[int | None, ...]
    control: tuple[int, ...]


def plan(
    mask: Collection[int],
    quota_cores: float | None,
    *,
    count: int | None = None,
    cores: Sequence[int] | None = None,
) -> Plan:
    """Lay out workers on the usable cores `mask`.

    quota_cores: CPU time granted, in cores; None for no limit. count: so many workers; None decides.
    cores: these cores and no others, in this order. With more workers than cores, cores are shared in turn.
    Raises ValueError for an empty mask.
    """
    usable = list(cores) if cores else sorted(mask)
    if not usable:
        raise ValueError("no core to run on")
    granted = len(usable) if quota_cores is None else max(1, min(len(usable), int(quota_cores)))
    if cores:
        wanted = granted if count is None else count
        return Plan(_in_turn(usable, wanted), tuple(sorted(set(mask) - set(usable[:wanted]))))
    if granted < len(usable):
        return Plan((None,) * (granted if count is None else count), ())
    # The first core takes most interrupts: it is the system's, the second the controller's.
    left = 2 if len(usable) >= LEAVE_CORES_FROM else 0
    wanted = len(usable) - left if count is None else count
    order = usable[left:] + usable[:left][::-1]
    spare = set(usable) - set(order[:wanted])
    if len(spare) > 1:
        spare.discard(usable[0])
    return Plan(_in_turn(order, wanted), tuple(sorted(spare)))


def _in_turn(cores: Sequence[int], count: int) -> tuple[int, ...]:
    return tuple(cores[i % len(cores)] for i in range(count))


def pin(cores: Collection[int]) -> None:
    """Keep the calling process on `cores`; threads it starts later inherit that. No cores: no change.

    Raises OSError when none of them may be used.
    """
    if cores:
        os.sched_setaffinity(0, cores)


def batch() -> None:
    """Schedule the calling process, and threads it starts later, as batch work: no preemption on waking.

    A worker's loop and the server host's threads wake one another several times a request and share a core. As
    ordinary threads each wake-up may interrupt the other in mid-step; as batch threads the woken one runs when the
    waker waits. `docs/adr/0007-batch-scheduling.md` has the figures. Source: sched(7), "SCHED_BATCH".
    """
    with contextlib.suppress(OSError):  # forbidden in some sandboxes, and then it is only slower
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def read_quota(root: Path = Path("/")) -> float | None:
    """The tightest CPU quota of this process's cgroup and its parents, in cores; None for none.

    Both cgroup versions; `root` is where /proc and /sys are. What cannot be read grants everything.
    Source: Documentation/admin-guide/cgroup-v2.rst and scheduler/sched-bwc.rst of the kernel.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    quotas: list[float] = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            quotas += _quotas_up(root / "sys/fs/cgroup", path, _quota_v2)
        elif "cpu" in controllers.split(","):
            for mount in (controllers, "cpu"):
                quotas += _quotas_up(root / "sys/fs/cgroup" / mount, path, _quota_v1)
    return min(quotas, default=None)


def _quotas_up(base: Path, path: str, read: Callable[[Path], float | None]) -> list[float]:
    """Quotas of a group and of all above it; inside a container the path may not exist, the base does."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    found = (read(base.joinpath(*parts[:n])) for n in range(len(parts), -1, -1))
    return [quota for quota in found if quota is not None]


def _quota_v2(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()[:2]
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(group: Path) -> float | None:
    try:
        quota = int((group / "cpu.cfs_quota_us").read_text())
        period = int((group / "cpu.cfs_period_us").read_text())
        return quota / period if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
