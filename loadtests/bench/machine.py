"""What the figures were taken on: machine, kernel, and the version of everything that took part."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("penstock", "granian", "uvloop", "msgspec", "httptools", "xxhash")


def describe(repository: Path, router: Path | None) -> dict[str, object]:
    """Return what a reader needs to judge the figures by."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": sorted(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "commit": _said(["git", "-C", str(repository), "rev-parse", "--short", "HEAD"]),
        "changed_files": len(_said(["git", "-C", str(repository), "status", "--porcelain"]).splitlines()),
        **{name: _installed(name) for name in _PACKAGES},
        "wrk": _said(["wrk", "-v"]).splitlines()[0] if _said(["wrk", "-v"]) else "",
        "nginx": _said(["/usr/sbin/nginx", "-v"]) or _said(["nginx", "-v"]),
        "vllm-router": _said([str(router), "--version"]) if router else "",
    }


def split(cores: Sequence[int]) -> tuple[int, list[int]]:
    """Return the core under test and the cores of load and backend: the first, and the second alone.

    Load and backend share one core even where there are more, so that figures of machines can be compared. With
    a single core they share that too, and the figures mean little.
    """
    ordered = sorted(cores)
    return ordered[0], [ordered[1]] if len(ordered) > 1 else ordered


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _said(argv: list[str]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    except OSError:
        return ""
    return (done.stdout + done.stderr).strip()
