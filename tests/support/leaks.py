"""That a gateway holds nothing once nobody asks it anything: every count back at zero."""

import os
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from .gateway import Gateway
from .procs import WaitFailed, wait_until

#: What counts something that is under way, and must be at zero.
COUNTS = (
    "penstock_inflight_requests",
    "penstock_running_requests",
    "penstock_queued_requests",
    "penstock_waiting_requests",
    "penstock_buffered_bytes",
)
#: A worker's own tasks while it has nothing to do.
IDLE_TASKS = 4


def left_behind(gate: Gateway) -> dict[str, float]:
    """What is not at zero: counts, active connections to backends, tasks, connections of clients."""
    try:
        text = gate.metrics()
    except httpx.TransportError:  # its controller is being replaced
        return {"metrics": 1.0}
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            counts = sample.name in COUNTS
            active = sample.name == "penstock_upstream_connections" and sample.labels["state"] == "active"
            busy = sample.name == "penstock_tasks" and sample.value > IDLE_TASKS
            if sample.value and (counts or active or busy):
                found[f"{sample.name} {sample.labels}"] = sample.value
    clients = _clients(gate)
    return {**found, "clients": clients} if clients else found


def nothing_left(gate: Gateway, timeout_s: float = 30.0) -> None:
    """Wait until nothing is left behind; its clients must have closed. Tasks are counted each second then."""
    try:
        wait_until(lambda: not left_behind(gate), timeout_s, "nothing left behind")
    except WaitFailed:
        raise WaitFailed(f"left behind: {left_behind(gate)}") from None


def _clients(gate: Gateway) -> int:
    """Established connections to the API port that a worker holds."""
    port = f":{gate.port:04X}"
    mine = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "01" and fields[1].endswith(port):
            mine.add(f"socket:[{fields[9]}]")
    held = 0
    for pid in gate.worker_pids():
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            try:
                held += os.readlink(fd) in mine
            except OSError:
                continue
    return held
