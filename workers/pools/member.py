"""One server of a pool as the machine knows it: its phase, what is being done to it, how often it has failed."""

from __future__ import annotations

from .settling import Settling
from .words import Effect, MemberPhase, Sleep, Start, Stop, Wake

HELD_S = 10.0  #: who was ready for so long is no longer held to what went wrong before
DEATHS = 3  #: so many deaths in a row, each within HELD_S of being ready, count as a failed start
BACK_OFF_S, BACK_OFF_MAX_S = 1.0, 60.0


def back_off_s(times: int) -> float:
    """How long to wait after so many failures in a row, of which there is one at least."""
    return min(BACK_OFF_MAX_S, BACK_OFF_S * 2.0 ** min(times - 1, 16))


class Member:
    """Its phase and what it takes to decide the next one.

    doing: the effect whose end is awaited. settling: of a drain of its own, None in a drain of the whole pool.
    not_before: it is not started earlier, or its stop is not tried again. level: at which it sleeps. orderly: nothing
    was wrong with it when it was to be stopped, so who can reach it might use it.
    """

    __slots__ = (
        "_deaths",
        "_failed",
        "_stops_failed",
        "doing",
        "level",
        "not_before",
        "orderly",
        "phase",
        "ready_s",
        "settling",
        "since",
    )

    def __init__(self) -> None:
        self.phase = MemberPhase.OFF
        self.doing: Effect | None = None
        self.settling: Settling | None = None
        self.since = self.ready_s = self.not_before = 0.0
        self.level = 1
        self.orderly = False
        self._failed = self._deaths = self._stops_failed = 0

    def _become(self, phase: MemberPhase, now: float) -> None:
        self.phase, self.doing, self.settling, self.since = phase, None, None, now

    def start(self, effect: Start | Wake, now: float) -> None:
        """A start or a wake was ordered."""
        self._become(MemberPhase.STARTING, now)
        self.doing = effect

    def ready(self, now: float) -> None:
        """It answers."""
        self._become(MemberPhase.READY, now)
        self.ready_s = now

    def held(self, now: float) -> None:
        """Time has passed; a failure is forgotten once it has been ready for a while."""
        if self.phase is MemberPhase.READY and now >= self.ready_s + HELD_S:
            self._failed = self._deaths = 0

    def fail(self, now: float) -> None:
        """It did not start: it is off, and waits the longer the more often that was so."""
        self._become(MemberPhase.OFF, now)
        self._failed += 1
        self.not_before = now + back_off_s(self._failed)

    def die(self, now: float) -> bool:
        """It is gone; whether it has died so often, so soon, that it counts as not starting."""
        soon = self.phase is not MemberPhase.ASLEEP and now < self.ready_s + HELD_S
        self._become(MemberPhase.OFF, now)
        self._deaths = self._deaths + 1 if soon else 0
        self.not_before = 0.0
        return self._deaths >= DEATHS

    def off(self, now: float) -> None:
        """It is gone, as it should be."""
        self._become(MemberPhase.OFF, now)
        self.not_before = 0.0
        self._stops_failed = 0

    def drain(self, now: float, *, alone: bool) -> None:
        """It gets no more requests; a start that is under way goes on."""
        doing = self.doing
        self._become(MemberPhase.DRAINING, now)
        self.doing = doing
        self.settling = Settling(now) if alone else None

    def take_back(self, now: float) -> None:
        """It drains no longer."""
        doing = self.doing
        self._become(MemberPhase.READY if doing is None else MemberPhase.STARTING, now)
        self.doing = doing

    def sleep(self, effect: Sleep) -> None:
        """It was told to sleep, having drained."""
        self.doing, self.settling, self.level = effect, None, effect.level
        self._failed = self._deaths = 0

    def asleep(self, level: int, now: float) -> None:
        """It sleeps."""
        self._become(MemberPhase.ASLEEP, now)
        self.level = level

    def stop(self, now: float, *, in_order: bool = False) -> None:
        """It is to be stopped. in_order: nothing was wrong with it."""
        self._become(MemberPhase.STOPPING, now)
        self.not_before = now
        self._stops_failed = 0
        self.orderly = in_order
        if in_order:
            self._failed = self._deaths = 0

    def stopping(self, effect: Stop) -> None:
        """The order to stop is given."""
        self.doing = effect

    def stop_failed(self, now: float) -> None:
        """It would not stop; not OFF before it is known to be."""
        self.doing = None
        self._stops_failed += 1
        self.not_before = now + back_off_s(self._stops_failed)

    @property
    def drains_alone(self) -> bool:
        """Whether it drains while the pool goes on."""
        return self.settling is not None

    @property
    def falling_asleep(self) -> bool:
        """Whether it was told to sleep."""
        return isinstance(self.doing, Sleep)
