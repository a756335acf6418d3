"""The limit on open files, raised at start: a gateway holds two descriptors for each request in flight.

Whether the configuration fits what could be had is the configuration check's to say.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

WANTED = 1_048_576
"""More than any configuration may need; what an unprivileged process gets is its hard limit."""


def raise_limit(wanted: int = WANTED) -> int:
    """Raise the soft limit to the hard one, and with the right to do so the hard one to `wanted`.

    Returns the soft limit reached. Children inherit it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _kernel_maximum()
    unlimited = hard == resource.RLIM_INFINITY
    if os.geteuid() == 0 and not unlimited and hard < min(wanted, most):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, min(wanted, most)))
        except (ValueError, OSError):
            pass  # root of a container without CAP_SYS_RESOURCE
        else:
            hard = min(wanted, most)
    target = min(wanted, most) if unlimited else hard
    if soft == resource.RLIM_INFINITY or soft >= target:
        return target if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
    return target


def _kernel_maximum() -> int:
    try:
        return int(Path("/proc/sys/fs/nr_open").read_text())
    except (OSError, ValueError):
        return WANTED
