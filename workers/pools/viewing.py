"""How a pool looks to the house: made of its machine, of what there is to do, and of what was learned of its servers.

Strategy: what is configured goes before what was learned, and where nobody knows a guess stands in that is too large
rather than too small. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...cache.pool_table import PoolPhase
from ...gateway.config.pool import PoolTerms
from .footprints import Footprint
from .machine import Machine
from .views import MemberView, View
from .words import Load, MemberPhase

WAKE_GUESS_S, DRAIN_GUESS_S = 3.0, 3.0
ASLEEP_SHARE = 0.05
"""Of what a server takes, for one that sleeps: its context and what vLLM does not put away; until it is learned."""


def view_of(
    machine: Machine,
    load: Load,
    pool: PoolTerms,
    footprint: Footprint,
    gpus: Mapping[int, tuple[int, ...]],
    now: float,
    *,
    busy_elsewhere: bool = False,
    local: bool = True,
) -> View:
    """One pool now. gpus: by member, the devices it has; one that is OFF and has some is about to be found running."""
    need = pool.memory if pool.memory is not None else footprint.need
    asleep = footprint.asleep
    if asleep is None and need is not None:
        asleep = round(need * ASLEEP_SHARE)
    members = []
    for number, phase in enumerate(machine.members):
        if phase is MemberPhase.OFF and number in gpus:
            phase = MemberPhase.STARTING
        members.append(MemberView(phase, gpus.get(number, ())))
    wakes = MemberPhase.ASLEEP in machine.members
    began = footprint.wake or [WAKE_GUESS_S] if wakes else footprint.start
    return View(
        members=tuple(members),
        wants_room=machine.wants_room,
        patient=machine.preloads,
        waiting=load.waiting,
        oldest_s=load.oldest_s,
        running=load.queued + load.running + int(busy_elsewhere),
        last_used_s=machine.idle_since if machine.idle_since is not None else now,
        ready_since_s=machine.ready_since if machine.phase is PoolPhase.READY else None,
        gpus=pool.gpus,
        need_bytes=need,
        asleep_bytes=asleep,
        group=pool.group,
        pinned=pool.pinned,
        min=pool.min,
        local=local,
        start_s=max(began, default=None),
        leave_s=max(footprint.drain or [DRAIN_GUESS_S]) + max(footprint.stop) if footprint.stop else None,
    )
