"""What a Pod's status comes to: whether it serves, may yet do so, or never will, and the reason in one line. Pure.

The reasons are the kubelet's and the scheduler's own words (Kubernetes, "Pod Lifecycle").
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from .kube_api import Json

_MOST_WORDS = 300
_HOPELESS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
        "CrashLoopBackOff",
    }
)


class PodPhase(enum.Enum):
    """What is to be expected of a Pod."""

    PENDING = "it may yet be ready"
    UNPLACED = "no node takes it"
    READY = "it is ready"
    BROKEN = "it will not be ready by itself"
    ENDING = "it was told to end"
    ENDED = "it has ended"


@dataclass(frozen=True, slots=True)
class PodState:
    """ip: once there is one. reason: one line, without a secret."""

    phase: PodPhase
    reason: str = ""
    ip: str | None = None

    @property
    def runs(self) -> bool:
        """Whether it holds, or will hold, what it was made for."""
        return self.phase not in (PodPhase.ENDING, PodPhase.ENDED)


def state_of(pod: Json) -> PodState:
    """What there is to say of a Pod."""
    status = _dict(pod.get("status"))
    meta = _dict(pod.get("metadata"))
    called = f'Pod "{meta.get("name")}"'
    ip = str(status["podIP"]) if status.get("podIP") else None
    conditions = {str(one.get("type")): one for one in _dicts(status.get("conditions"))}
    if status.get("phase") in ("Failed", "Succeeded"):
        return PodState(PodPhase.ENDED, f"{called} ended: {_end(status)}", ip)
    if meta.get("deletionTimestamp"):
        why = _words(conditions.get("DisruptionTarget", {}))
        return PodState(PodPhase.ENDING, f"{called} is being deleted{why and f': {why}'}", ip)
    for container in _dicts(status.get("initContainerStatuses")) + _dicts(status.get("containerStatuses")):
        waiting = _dict(_dict(container.get("state")).get("waiting"))
        if waiting.get("reason") in _HOPELESS:
            why = _words(waiting)
            before = _dict(_dict(container.get("lastState")).get("terminated"))
            if before:
                why += f" ({_exit(before)})"
            return PodState(PodPhase.BROKEN, f"{called}: {why}", ip)
        if waiting:
            return PodState(PodPhase.PENDING, f"{called}: {_words(waiting)}", ip)
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return PodState(PodPhase.UNPLACED, f"{called}: {_words(scheduled)}", ip)
    if conditions.get("Ready", {}).get("status") == "True" and ip is not None:
        return PodState(PodPhase.READY, ip=ip)
    return PodState(PodPhase.PENDING, f"{called} is {str(status.get('phase') or 'Pending').lower()}", ip)


def _end(status: Json) -> str:
    if status.get("reason"):
        return _words(status)
    for container in _dicts(status.get("containerStatuses")):
        ended = _dict(_dict(container.get("state")).get("terminated"))
        if ended:
            return _exit(ended)
    return str(status.get("phase"))


def _exit(ended: Json) -> str:
    """The end of a container. Its message may be the end of its log, which is nobody else's business."""
    reason = str(ended.get("reason") or "Error")
    return (
        f"{reason}, signal {ended['signal']}"
        if ended.get("signal")
        else f"{reason}, exit code {ended.get('exitCode')}"
    )


def _words(said: Json) -> str:
    reason, message = str(said.get("reason") or ""), " ".join(str(said.get("message") or "").split())
    return ": ".join(text for text in (reason, message[:_MOST_WORDS]) if text)


def _dict(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _dicts(value: object) -> list[Json]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
