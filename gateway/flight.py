"""One question that several clients wait for, asked once: what came so far, and how each of them gets it.

Strategy: the answer's pieces lie in one log, and each member has a place in it; who is behind, because he joined
late or reads slowly, catches up from there. While the whole of it fits the bound, anybody may still join, and the
backend is paused only when all members are. After that what all have taken is let go of, nobody joins any more, and
one member that does not read pauses the backend, so that no member's backlog grows beyond what one read brings. It
refuses to know what is answered, where it came from and whether its members are in this process.

Nothing here waits and nothing is copied. A flight with nobody but its leader and a whole answer makes one object.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..cache.digest import Key
from .errors import Fault, Kind
from .faults import fault_of
from .ticket import Head, Member
from .upstream.fault import UpstreamFault

#: What a flight keeps is counted in steps of at most this.
_STEP_BYTES = 64 << 10


class UpstreamSink(Protocol):
    """What a flight is for the call that feeds it."""

    def on_data(self, data: bytes) -> None: ...

    def on_end(self) -> None: ...

    def on_fault(self, fault: UpstreamFault) -> None: ...

    def on_fail(self, fault: Fault) -> None: ...


class Feed(Protocol):
    """Where a flight's pieces come from: an upstream call, or another worker's flight."""

    def attach(self, sink: UpstreamSink) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


@dataclass(slots=True)
class Terms:
    """What all flights of a worker share. ``limit_bytes`` is how much of a body is kept for those who join late.

    ``try_hold(n)`` asks for n bytes of the node's memory, ``release(n)`` gives them back. ``forget`` hears of a flight
    that nobody can join any more.
    """

    loop: asyncio.AbstractEventLoop
    limit_bytes: int
    try_hold: Callable[[int], bool]
    release: Callable[[int], None]
    forget: Callable[[Flight], None]


class Flight:
    """One answer on its way to whoever asked for it.

    ``led_for_all``: this worker asks for everybody on the node, and the question is marked as being asked.

    ``joinable``: one may still :meth:`join`. ``head``, ``fault``, ``ended``: what it has come to.
    ``on_last_left`` is called when nobody wants the answer any more, the leader's client having left before
    (``leader_left``) or being none of this worker's.
    """

    # Defaults of the class: a flight that nobody joins sets few of them.
    joinable = True
    led_for_all = False
    ended = False
    head: Head | None = None
    fault: Fault | None = None
    on_last_left: Callable[[], None] | None = None
    leader_left = False
    _blocked = False
    _closed = False
    _kept = True
    _base = 0
    _held_bytes = 0
    _size_bytes = 0
    _aside = 0
    _paused = 0
    _call: Feed | None = None
    _finished: asyncio.Future[Fault | None] | None = None
    _leader: Member | None = None
    _log: list[bytes] | None = None

    def __init__(self, key: Key, terms: Terms) -> None:
        self.key = key
        self._terms = terms
        self._members: dict[Member, None] = {}

    # ---- who wants it

    def join(self) -> Member:
        """A place in this flight. Raises RuntimeError when it is not joinable."""
        if not self.joinable:
            raise RuntimeError("nobody may join this flight any more")
        member = Member(self)
        self._members[member] = None
        self._aside += 1
        self._steer()
        return member

    def lead(self) -> Member:
        """The leader's own place, for its own client; the same at each call until it is left."""
        if self._leader is None:
            self._leader = self.join()
        return self._leader

    @property
    def others(self) -> int:
        """Members beside the leader."""
        return len(self._members) - (self._leader in self._members)

    @property
    def joined(self) -> bool:
        """Whether anybody is there beside a leader that took no place."""
        return bool(self._members)

    @property
    def wanted(self) -> bool:
        """Whether anybody is there, the leader's client included."""
        return not self.leader_left or bool(self._members)

    def leave_leader(self) -> bool:
        """The leader's client has left. True: others want the answer, so its task goes on; False: nobody does."""
        if self._leader is not None:
            self._leader.abort()
        self.leader_left = True
        if self.ended:
            return False
        if not self._members:
            self.retire()
            return False
        return True

    # ---- what the leader says

    def respond(self, head: Head) -> None:
        """The whole answer: everybody who waits gets it."""
        self.head = head
        self.ended = True
        if self._members:
            size = len(head.body or b"")
            if size > _STEP_BYTES and self._terms.try_hold(size):
                self._held_bytes = size  # it stays as long as members look at it
            self._wake()
        if self._finished is not None and not self._finished.done():
            self._finished.set_result(None)

    def begin(self, head: Head, call: Feed) -> None:
        """The answer begins, and what ``call`` brings is its body: this flight becomes its sink."""
        self.head = head
        self._call = call
        self._log = []
        self._wake()
        call.attach(self)

    def fail(self, fault: Fault) -> None:
        """There will be no (more of the) answer: everybody hears ``fault``, behind what came before it."""
        if not self.ended:
            self.fault = fault
            self._settle()

    def finish(self) -> None:
        """The body is complete."""
        if not self.ended:
            self._settle()

    def lose(self) -> None:
        """The leader is gone: who waits for the head may ask anew, who has bytes hears of it."""
        if self.ended:
            return
        if self.head is not None:
            self.fault = Fault(Kind.FLIGHT_LOST, "the worker that carried this answer was lost")
        self._settle()

    def close(self) -> None:
        """The leader has done with it: nobody joins, and pieces stay only for members that are behind. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self.joinable:
            self.joinable = False
            self._terms.forget(self)
        if self._members or self._held_bytes or self._log is not None or self._finished is not None:
            self.lose()
            self._kept = False
            self._trim()
        else:
            self.ended = True

    @property
    def finished(self) -> asyncio.Future[Fault | None]:
        """Resolves when the answer is complete, or with what it failed of; None also when its leader was lost."""
        if self._finished is None:
            self._finished = self._terms.loop.create_future()
            if self.ended:
                self._finished.set_result(self.fault)
        return self._finished

    @property
    def pieces(self) -> list[bytes] | None:
        """The body so far, whole; None once it passed the bound, and before it began."""
        return self._log if self._kept else None

    # ---- the sink of the upstream call

    def on_data(self, data: bytes) -> None:
        """One read's worth."""
        log = self._log
        if self.ended or log is None:
            return
        self._size_bytes += len(data)
        if self._kept and not self._fits():
            self._kept = False
            self.retire()
        log.append(data)
        for member in tuple(self._members):
            member.push()
        if not self._kept:
            self._trim()
            self._steer()

    def on_end(self) -> None:
        """The backend ended the body."""
        self.finish()

    def on_fault(self, fault: UpstreamFault) -> None:
        """The backend broke off."""
        self.fail(fault_of(fault))

    def on_fail(self, fault: Fault) -> None:
        """The flight that this one follows failed."""
        self.fail(fault)

    # ---- for members

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._terms.loop

    @property
    def begun(self) -> bool:
        """Whether there is a head, or never will be."""
        return self.head is not None or self.ended

    def piece(self, at: int) -> bytes | None:
        """The body's piece number ``at``; None behind the last."""
        log, i = self._log, at - self._base
        return log[i] if log is not None and i < len(log) else None

    def attached(self, member: Member) -> None:
        self._aside -= 1
        self._go_on(member)

    def paused(self, member: Member) -> None:
        self._paused += 1
        self._steer()

    def resumed(self, member: Member) -> None:
        self._paused -= 1
        self._go_on(member)

    def left(self, member: Member) -> None:
        if member not in self._members:
            return
        del self._members[member]
        if member is self._leader:
            self._leader = None  # they refer to each other: the collector would have to come by
        self._paused -= member.paused
        self._aside -= not member.attached
        if not self._kept or self.ended:
            self._trim()
        if self.ended:
            return
        if self._members:
            self._steer()
        elif self.leader_left:
            self.retire()
            if self.on_last_left is not None:
                self.on_last_left()

    # ---- inside

    def retire(self) -> None:
        """Nobody joins any more. Idempotent."""
        if self.joinable:
            self.joinable = False
            self._terms.forget(self)

    def _wake(self) -> None:
        for member in tuple(self._members):
            member.wake()

    def _settle(self) -> None:
        self.ended = True
        self._call = None
        if self.fault is not None or self.head is None:
            self.retire()
        self._wake()
        for member in tuple(self._members):
            member.push()
        if self._finished is not None and not self._finished.done():
            self._finished.set_result(self.fault)

    def _go_on(self, member: Member) -> None:
        member.push()
        if not self._kept:
            self._trim()
        self._steer()

    def _steer(self) -> None:
        """Pause or resume what feeds this flight."""
        call = self._call
        if call is None:
            return
        if self._kept:
            blocked = self._paused > 0 and self._paused == len(self._members)
        else:
            blocked = self._paused > 0 or self._aside > 0
        if blocked is not self._blocked:
            self._blocked = blocked
            if blocked:
                call.pause()
            else:
                call.resume()

    def _fits(self) -> bool:
        """Whether the body so far may be kept whole; counts what it takes."""
        size, held = self._size_bytes, self._held_bytes
        if size > self._terms.limit_bytes:
            return False
        if size > held:
            step = max(size - held, min(held, _STEP_BYTES))
            if not self._terms.try_hold(step):
                return False
            self._held_bytes = held + step
        return True

    def _trim(self) -> None:
        """Let go of what no member needs any more, unless the whole is kept."""
        log = self._log
        if log and not self._kept:
            count = len(log)
            if self._members:
                count = min(member.at for member in self._members) - self._base
            self._base += count
            self._size_bytes = 0 if count == len(log) else self._size_bytes - sum(map(len, log[:count]))
            del log[:count]
        if not self._members and (self._closed or not self._kept):
            self._size_bytes = 0
        elif self._kept or log is None:
            return
        surplus = self._held_bytes - self._size_bytes
        if surplus > 0:
            self._held_bytes -= surplus
            self._terms.release(surplus)
