"""The flights of one worker: those it leads, those it follows, and the socket by which others follow.

Who leads a question is decided by the marks in shared memory. All of this worker's followers of one leader share one
connection and a flight of their own, so that a node opens at most one connection a worker and question. The socket
is ``flight-<slot>-<generation>.sock`` in the run directory, mode 0600. A peer that hangs (its slot's heartbeat stands
still) is given up; one whose connection closes was lost or has left. It refuses to know what is asked and answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path

from ..cache.digest import Key
from ..cache.marks import Claim, Marks
from ..cache.segment import Segment
from ..cache.slots import alive, claimed, heartbeat_ns
from .flight import Flight, Terms
from .flight_frames import wish
from .flight_link import Carried, Served
from .ticket import Member

log = logging.getLogger(__name__)

_LED = Claim.LED  # looked up once: an enum's members are slow in Python 3.11

#: A peer whose heartbeat (every 20 ms) is this old hangs.
HANGS_NS = 10_000_000_000
#: A follower says what it wants within this (s).
WISH_S = 5.0
_EVERY_S = 1.0
#: A mark that is set late stands for this long.
_MARKED_NS = 3600 * 1_000_000_000
_BACKLOG = 4096
_PAUSE_S = 0.005
#: How often a full backlog is tried again, with a pause in between.
_TRIES = 200
#: How often it is looked whether a leader is dead whose connection has closed: the kernel closes a dead process's
#: descriptors one after another, the one with its slot's lock perhaps later than this connection's.
_LOCK_TRIES = 20

_NAME = re.compile(r"flight-(\d{1,9})-(\d{1,10})\.sock")


class Flights:
    """What one worker's requests share. ``limit_bytes``: how much of an answer is kept for late joiners.

    ``gather_bytes`` is the longest whole answer taken from another worker. ``clock_ns`` is CLOCK_MONOTONIC, which all
    workers share. ``try_hold`` and ``release`` count bytes of the node's memory. ``path`` is this worker's socket.
    """

    def __init__(
        self,
        segment: Segment,
        slot: int,
        generation: int,
        *,
        folder: Path,
        loop: asyncio.AbstractEventLoop,
        clock_ns: Callable[[], int],
        limit_bytes: int,
        gather_bytes: int,
        try_hold: Callable[[int], bool],
        release: Callable[[int], None],
    ) -> None:
        self.gather_bytes = gather_bytes
        self._segment = segment
        self._slot = slot
        self._generation = generation & 0xFFFF_FFFF
        self.folder = folder
        self._loop = loop
        self._clock_ns = clock_ns
        self._terms = Terms(loop, limit_bytes, try_hold, release, self._forget)
        self._marks = Marks(segment, slot, generation)
        self._flights: dict[Key, Flight] = {}
        self._served: dict[Served, None] = {}
        self._carried: dict[Carried, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.AbstractServer | None = None
        self.path = self._path_of(slot, self._generation)
        self._alone = False
        #: when a flight ended last that might have been for the question claimed last (CLOCK_MONOTONIC): an answer
        #: that was looked for before that may be kept by now
        self.cleared_ns = 0
        self._look_around()
        self._served_all: asyncio.Future[None] | None = None
        self._next_s = 0.0

    # ---- for requests

    @property
    def limit_bytes(self) -> int:
        """How much of an answer is kept for those who join late; a change is for what comes from now on."""
        return self._terms.limit_bytes

    @limit_bytes.setter
    def limit_bytes(self, limit_bytes: int) -> None:
        self._terms.limit_bytes = limit_bytes

    def get(self, key: Key) -> Flight | None:
        """A flight of this worker for that question that may be joined."""
        return self._flights.get(key)

    def lead(self, key: Key, deadline_s: float) -> Flight | None:
        """The flight of a question that this worker leads from now on; None when somebody else may (``get`` and
        ``claim`` tell who).
        """
        if key in self._flights or (not self._alone and self.claim(key, deadline_s) is not _LED):
            return None
        if self._alone:
            self.cleared_ns = 0
        flight = self._flights[key] = Flight(key, self._terms)
        flight.led_for_all = True
        return flight

    def claim(self, key: Key, deadline_s: float) -> Claim | tuple[int, int]:
        """Ask to lead: LED (``open`` and ``close`` must follow), who leads instead (``remote``), or FULL or BUSY.

        ``deadline_s`` is how long the flight may take before others no longer wait for a leader that hangs.
        """
        if self._alone:
            self.cleared_ns = 0
            return _LED
        now_ns = self._clock_ns()
        found = self._marks.claim(key, now_ns, now_ns + int(deadline_s * 1e9))
        self.cleared_ns = self._marks.cleared_ns
        return Claim.FULL if found == (self._slot, self._generation) else found

    def _look_around(self) -> None:
        """A worker that is the only one needs no marks. When another one comes (a rolling restart, at the latest),
        what is in flight here is marked; for a tick the two may ask the same question upstream.
        """
        segment, mine = self._segment, self._slot
        alone = not any(claimed(segment, slot) for slot in range(segment.geometry.slots) if slot != mine)
        if self._alone and not alone:
            now_ns = self._clock_ns()
            for key, flight in self._flights.items():
                if flight.led_for_all:
                    self._marks.claim(key, now_ns, now_ns + _MARKED_NS)
        self._alone = alone

    def open(self, key: Key) -> Flight:
        """The flight of a question that this worker leads, its mark claimed by ``claim``."""
        flight = self._flights[key] = Flight(key, self._terms)
        flight.led_for_all = True
        return flight

    def private(self, key: Key) -> Flight:
        """A flight that nobody finds: for a question asked for one client alone."""
        return Flight(key, self._terms)

    def close(self, flight: Flight) -> None:
        """The leader has done with a flight, whatever became of it; its mark goes last. Idempotent."""
        flight.close()

    def remote(self, leader: tuple[int, int], key: Key) -> Member:
        """A place in the flight that another worker leads."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = Flight(key, self._terms)
            flight.leader_left = True
            carried = Carried(
                flight,
                leader,
                wish(key, self._slot, self._generation),
                self._terms,
                self.gather_bytes,
                self._lost,
                self._over,
            )
            flight.on_last_left = carried.abort
            self._carried[carried] = None
            self._run(self._connect(carried))
        return flight.join()

    def _forget(self, flight: Flight) -> None:
        """Nobody can join it any more: the registry's entry goes, then the mark."""
        key = flight.key
        if self._flights.get(key) is flight:
            del self._flights[key]
            if flight.led_for_all and self._marks.led:
                self._marks.clear(key, self._clock_ns())

    # ---- following

    async def _connect(self, carried: Carried) -> None:
        try:
            if not self._hangs(carried.leader):
                await self._open(carried, self._path_of(*carried.leader))
                return
        except ConnectionRefusedError:
            carried.give_up()  # it may be dying
            return
        except OSError as error:
            log.debug("flight_unreached slot=%d cause=%s", carried.leader[0], error)
        carried.abort()

    async def _open(self, carried: Carried, path: Path) -> None:
        """Connect. Raises OSError. A Unix socket connects at once or, its backlog full, not at all."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            for tries_left in range(_TRIES, -1, -1):
                try:
                    connection.connect(os.fspath(path))
                    break
                except BlockingIOError:
                    if not tries_left:
                        raise
                    await asyncio.sleep(_PAUSE_S)
            await self._loop.create_unix_connection(lambda: carried, sock=connection)
        except BaseException:
            connection.close()
            raise

    def _over(self, carried: Carried) -> None:
        self._carried.pop(carried, None)
        carried.flight.close()

    def _lost(self, carried: Carried) -> None:
        """A leader was lost before its answer began: who waits asks anew, once the leader is known to be dead."""
        self._run(self._lose(carried))

    async def _lose(self, carried: Carried) -> None:
        for _ in range(_LOCK_TRIES):
            if not alive(self._segment, *carried.leader) or self._hangs(carried.leader):
                break
            await asyncio.sleep(_PAUSE_S)
        self._over(carried)

    def _run(self, coroutine: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _path_of(self, slot: int, generation: int) -> Path:
        return self.folder / f"flight-{slot}-{generation}.sock"

    # ---- leading

    @property
    def serving(self) -> int:
        """Connections of other workers that are being served: a drain waits for them."""
        return len(self._served)

    async def start(self) -> None:
        """Listen for followers, and remove what dead workers left. Without a socket others ask for themselves."""
        for path in self.folder.glob("flight-*.sock"):
            match = _NAME.fullmatch(path.name)
            if match and not alive(self._segment, int(match[1]), int(match[2])):
                path.unlink(missing_ok=True)
        await self._listen()

    async def _listen(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            os.fchmod(listener.fileno(), 0o600)  # before bind, which makes the file with these rights
            self.path.unlink(missing_ok=True)
            listener.bind(os.fspath(self.path))
            listener.listen(_BACKLOG)
            self._server = await self._loop.create_unix_server(self._serve, sock=listener)
        except OSError as error:
            listener.close()
            log.warning("flights_unheard path=%s cause=%s", self.path, error)

    def _serve(self) -> Served:
        served = Served(self._led, self._left, self._loop.time())
        self._served[served] = None
        return served

    def _led(self, key: Key) -> Flight | None:
        flight = self._flights.get(key)
        return flight if flight is not None and flight.led_for_all else None

    def _left(self, served: Served) -> None:
        self._served.pop(served, None)
        if self._served_all is not None and not self._served and not self._served_all.done():
            self._served_all.set_result(None)

    async def stop(self) -> None:
        """Stop listening, and wait until followers have what was sent to them; the caller bounds the wait."""
        if self._server is not None:
            self._server.close()
            self._server = None
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        for task in list(self._tasks):
            task.cancel()
        for carried in list(self._carried):
            carried.abort()
        for flight in list(self._flights.values()):
            flight.close()
        try:
            if self._served:
                self._served_all = self._loop.create_future()
                await self._served_all
        finally:
            for served in list(self._served):
                served.drop()

    # ---- between requests

    def tick(self, now_s: float) -> None:
        """Called often; once a second it gives up peers that hang, and listens again where its socket was removed.

        ``now_s`` is the loop's time.
        """
        self._look_around()
        if now_s < self._next_s:
            return
        self._next_s = now_s + _EVERY_S
        for carried in list(self._carried):
            if self._hangs(carried.leader):
                log.warning("flight_leader_hangs slot=%d", carried.leader[0])
                carried.give_up()
        for served in list(self._served):
            if served.peer is None:
                if now_s - served.began_s > WISH_S:
                    served.drop()
            elif self._hangs(served.peer):
                log.warning("flight_follower_hangs slot=%d", served.peer[0])
                served.drop()
        if self._server is not None and not self.path.exists() and self.folder.exists():
            self._run(self._listen())

    def _hangs(self, peer: tuple[int, int]) -> bool:
        """Whether that worker's loop stands still, or it is none."""
        slot = peer[0]
        if not 0 <= slot < self._segment.geometry.slots:
            return True
        return self._clock_ns() - heartbeat_ns(self._segment, slot) > HANGS_NS
