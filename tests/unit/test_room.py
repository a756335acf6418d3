"""How much memory the cache takes by itself."""

import os
from pathlib import Path

from penstock.workers.room import memory_size

MIB = 1 << 20
GIB = 1 << 30


def machine(folder: Path, memory: int, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": f"MemTotal: {memory // 1024} kB\n", **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def room_in(folder: Path) -> int:
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize * 8 // 10


def test_a_quarter_of_the_machine(tmp_path: Path) -> None:
    root = machine(tmp_path, 40 * MIB, {})
    assert memory_size(tmp_path, root) == min(10 * MIB, room_in(tmp_path) // MIB * MIB)


def test_a_quarter_of_the_tightest_cgroup_of_either_version(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        400 * MIB,
        {
            "proc/self/cgroup": "4:memory,cpu:/a/b\n0::/x/y\n",
            "sys/fs/cgroup/memory/a/memory.limit_in_bytes": str(80 * MIB),
            "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": str(1 << 62),
            "sys/fs/cgroup/x/memory.max": "max",
            "sys/fs/cgroup/x/y/memory.max": str(60 * MIB),
        },
    )
    assert memory_size(tmp_path, root) == 15 * MIB
    (root / "sys/fs/cgroup/x/y/memory.max").write_text("max")
    assert memory_size(tmp_path, root) == 20 * MIB


def test_never_more_than_4_gib_nor_than_shared_memory_has(tmp_path: Path) -> None:
    root = machine(tmp_path, 1000 * GIB, {})
    assert memory_size(tmp_path, root) == min(4 * GIB, room_in(tmp_path) // MIB * MIB)
