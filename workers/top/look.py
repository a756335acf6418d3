"""Asking the gateway again and again, in a thread of its own: a gateway that hangs must not hold up the keyboard."""

from __future__ import annotations

import argparse
import threading
import time
from queue import SimpleQueue

from ..admin import METRICS, STATUS
from ..verbs import Failed, asked
from .sample import Sample, read

TIMEOUT_S = 5.0


def look(args: argparse.Namespace) -> Sample:
    """One sample. Raises Failed."""
    metrics = asked(args, "GET", METRICS, timeout_s=TIMEOUT_S)
    at_s = time.monotonic()
    status = asked(args, "GET", STATUS, timeout_s=TIMEOUT_S)
    try:
        return read(at_s, metrics, status)
    except (ValueError, LookupError, TypeError) as fault:
        raise Failed(f"the gateway's answer cannot be read: {fault}", 1) from None


def looking(args: argparse.Namespace, interval_s: float) -> SimpleQueue[Sample | str]:
    """A queue that gets a sample each interval, or why there is none, for as long as this process."""
    found: SimpleQueue[Sample | str] = SimpleQueue()
    threading.Thread(target=_keep_looking, args=(args, interval_s, found), daemon=True).start()
    return found


def _keep_looking(args: argparse.Namespace, interval_s: float, found: SimpleQueue[Sample | str]) -> None:
    while True:
        began = time.monotonic()
        try:
            found.put(look(args))
        except Exception as fault:  # else the frame would stand still and say nothing
            found.put(str(fault) or type(fault).__name__)
        time.sleep(max(0.0, interval_s - (time.monotonic() - began)))
