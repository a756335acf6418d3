"""One line a record on standard error; every process of the gateway writes the same form.

    2026-01-31T12:00:00.123Z INFO worker-0[4711] penstock.workers.boot: worker_ready slot=0

The event's stable name comes first in the message. Levels of the libraries are their own concern: only what they
warn of is written.
"""

from __future__ import annotations

import logging
import sys
import time

ROOT = "penstock"


class _Utc(logging.Formatter):
    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


def set_up(role: str, level: str) -> None:
    """Make this process, named `role`, log at `level`; replaces what a parent had set up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Utc(f"%(asctime)s %(levelname)s {role}[%(process)d] %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    set_level(level)


def set_role(role: str) -> None:
    """In a child: log as `role`, at the level inherited from the parent."""
    set_up(role, logging.getLevelName(logging.getLogger(ROOT).getEffectiveLevel()))


def set_level(level: str) -> None:
    """Change the level of the gateway's own records, live."""
    logging.getLogger(ROOT).setLevel(level)
