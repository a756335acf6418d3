"""The supervisor: binds, makes the segment, forks, watches, replaces, and owns the signals.

Strategy: synchronous and single-threaded, no event loop: one selector over the signals' wakeup socket and the
children's pipes, and `waitpid` for the pids it started. It imports everything before the first fork, so a replacement
costs a fork. Nothing it does waits for a child.

    SIGTERM, SIGINT  drain and end; a second one ends at once      SIGHUP   reload, done by the controller
    SIGUSR2          rolling restart: for each worker a successor, which must be ready before the old one leaves
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping

from ..gateway.config import Config, Layer
from . import affinity, child, logs, store
from .boot import LEAVING, READY, RELOADED, AppFactory, Inheritance, gateway_app, run_worker
from .controller import run_controller
from .foundation import Foundation
from .listeners import BACKLOG
from .pools import state
from .pools.processes.leftover import LeftOver
from .room import is_wanted
from .seats import Child, Part, Seat
from .source import Source

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD)
PATIENCE_S = 5.0
"""How long after its own deadline a leaving process is killed."""
START_S = 60.0
"""A process that is not ready by then never will be."""
MAX_FAILED_SUCCESSORS = 3
CRASHED = FORCED = 1


class Supervisor:
    """Runs one gateway. `on_ready` is called once, when every worker is ready for the first time.

    document: what was laid over the file to make `config`.
    """

    def __init__(
        self,
        source: Source,
        config: Config,
        environ: Mapping[str, str],
        *,
        document: Layer | None = None,
        on_ready: Callable[[], None] = lambda: None,
        app_factory: AppFactory = gateway_app,
    ) -> None:
        self._source = source
        self._config = config
        self._environ = environ
        self._document = document
        self._on_ready = on_ready
        self._app_factory = app_factory
        cores = config.workers.cores
        count = config.workers.count
        self._plan = affinity.plan(
            os.sched_getaffinity(0),
            affinity.read_quota(),
            count=None if count == "auto" else count,
            cores=cores,
        )
        self._workers = [Seat(index) for index in range(len(self._plan.workers))]
        self._controller = Seat(None)
        self._state = state.of_gateway(config.pools.state, environ, source.path, config.listen.port)
        self._selector = selectors.DefaultSelector()
        self._to_roll: list[Seat] = []
        self._reload_wanted = False
        self._announced = False
        self._stopping = False
        self._code = 0

    @property
    def _seats(self) -> list[Seat]:
        return [*self._workers, self._controller]

    def run(self) -> int:
        """Until the last child is gone; the exit status. Raises CannotStart before the first fork."""
        logs.set_up("supervisor", self._config.log.level)
        self._base = Foundation.lay(
            self._config, self._source.path, len(self._workers), self._environ, self._document
        )
        child.adopt_orphans()
        listen = self._config.listen
        log.info("supervisor_started address=%s:%d workers=%d", listen.host, listen.port, len(self._workers))
        self._say_what_is_cached()
        try:
            with self._signals():
                # what lives now is never looked at again, so that no child copies its pages
                gc.collect()
                gc.freeze()
                while self._children() or not self._stopping:
                    self._turn()
                self._end_processes()
        finally:
            self._base.remove()
        log.info("supervisor_ended status=%d", self._code)
        return self._code

    def _say_what_is_cached(self) -> None:
        cache = self._config.cache
        text = {
            "deterministic": "temperature 0, a seed, or an endpoint without sampling; ordinary sampling traffic is not",
            "all": "every request, sampled ones too",
            "opt_in": "requests that ask for it",
            "off": "nothing",
        }
        l1_mib = self._base.arena.geometry.data_bytes >> 20
        l2 = cache.l2.topology if cache.l2 is not None else "none"
        log.info("cache_mode mode=%s l1_mib=%d l2=%s; kept: %s", cache.mode, l1_mib, l2, text[cache.mode])

    def _end_processes(self) -> None:
        """What the controller has not ended of pools' processes, because it was killed itself."""
        left = LeftOver(self._state)
        while left.end(time.monotonic(), at_once=self._code == FORCED):
            for key, _ in self._selector.select(0.05):
                if key.data is None:
                    self._signalled(key.fileobj.recv(4096))  # type: ignore[union-attr]
            self._reap()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        mine, theirs = socket.socketpair()
        with mine, theirs:
            mine.setblocking(False)
            theirs.setblocking(False)
            signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
            before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
            self._selector.register(mine, selectors.EVENT_READ, None)
            try:
                yield
            finally:
                signal.set_wakeup_fd(-1)
                for number, handler in before.items():
                    signal.signal(number, handler)
                self._selector.close()

    def _children(self) -> list[tuple[Seat, Child]]:
        return [(seat, one) for seat in self._seats for one in seat.children]

    def _turn(self) -> None:
        now = time.monotonic()
        if not self._stopping:
            for seat in self._seats:
                part = seat.wants_start(now)
                if part is not None:
                    self._start(seat, part)
        for seat, one in self._children():
            if one.kill_at_s is not None and now >= one.kill_at_s:
                what = "leave" if one.ready else "become ready"
                log.error("process_killed name=%s pid=%d: it did not %s in time", seat.name, one.pid, what)
                one.kill_at_s = None
                os.kill(one.pid, signal.SIGKILL)
        for key, _ in self._selector.select(self._pause_s(now)):
            if key.data is None:
                self._signalled(key.fileobj.recv(4096))  # type: ignore[union-attr]
            else:
                self._heard(*key.data)
        self._reap()

    def _pause_s(self, now: float) -> float | None:
        """Until the next thing that is due; None when only an event can change anything."""
        due = [one.kill_at_s for _, one in self._children() if one.kill_at_s is not None]
        if not self._stopping:
            due += [seat.start_at_s for seat in self._seats if seat.wants_start(seat.start_at_s)]
        return max(0.0, min(due) - now) if due else None

    # ---- starting

    def _start(self, seat: Seat, part: Part) -> None:
        base, index = self._base, seat.index
        self._mend()
        listeners = [base.admin, base.control] if index is None else base.of_worker(index)
        if index is not None and seat.loop_said:
            base.tcp[index].listen(BACKLOG)
        heard, said = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        mine = Inheritance(
            index=index or 0,
            workers=len(self._workers),
            core=None if index is None else self._plan.workers[index],
            segment_fd=base.segment.fd,
            arena_fd=base.arena.fd,
            node=base.node,
            ready_fd=said,
            folder=base.folder,
            listeners=listeners,
            environ=self._environ,
            state=self._state,
        )

        # taken before the fork: were a reload to come between, the worker would only be newer than is said
        config = base.current().config

        def main() -> int:
            if index is None:
                return run_controller(mine, self._source, self._plan.control)
            return run_worker(mine, self._app_factory)

        try:
            pid = child.fork(seat.name, mine.descriptors, main)
        except OSError as fault:
            log.error("fork_failed name=%s: %s", seat.name, fault.strerror)
            os.close(heard)
            seat.start_at_s = time.monotonic() + 1.0
            return
        finally:
            os.close(said)
        one = Child(pid, heard, part, kill_at_s=time.monotonic() + START_S, config=config)
        seat.children.append(one)
        self._selector.register(heard, selectors.EVENT_READ, (seat, one))
        log.info("process_started name=%s pid=%d", seat.name, pid)

    # ---- listening

    def _heard(self, seat: Seat, one: Child) -> None:
        try:
            words = os.read(one.pipe, 16)
        except BlockingIOError:
            return
        if not words:
            self._selector.unregister(one.pipe)  # the end itself is noticed by waitpid
            return
        if READY in words:
            self._ready(seat, one)
        if RELOADED in words:
            self._reload_wanted = False
            current = self._base.current()
            logs.set_level(current.config.log.level)
            self._say_pending(current.told, current.config)
        if LEAVING in words and one.part is Part.HOLDER and not self._stopping:
            # told to by somebody else; who takes its connections must not wait until it has left
            log.info("process_leaves name=%s pid=%d", seat.name, one.pid)
            one.part = Part.LEAVING
            one.kill_at_s = self._patience()

    def _ready(self, seat: Seat, one: Child) -> None:
        one.ready = True
        seat.loop_said = False
        if one.part is not Part.LEAVING and not self._stopping:
            one.kill_at_s = None
        if one.part is Part.SUCCESSOR:
            seat.failed_successors = 0
            old = seat.succeed()
            if old is not None:
                old.kill_at_s = self._patience()
                os.kill(old.pid, signal.SIGUSR2 if old.ready else signal.SIGTERM)
            self._roll_next()
        if seat is self._controller and self._reload_wanted:
            self._reload()
        if not self._announced and not self._stopping and all(one.ready for one in self._workers):
            self._announced = True
            log.info("gateway_ready workers=%d", len(self._workers))
            self._on_ready()

    def _say_pending(self, told: Config, current: Config) -> None:
        """Name the keys whose value in the file is not the one in use: at every reload, until they agree."""
        restart = store.needing(store.changed(self._config, told), store.RESTART)
        if is_wanted(current) and not is_wanted(self._config):
            restart.append("cache.mode")  # at the start no memory was taken
        stay = [one for seat in self._workers for one in seat.children if one.part is not Part.LEAVING]
        stale = {path for one in stay for path in store.changed(one.config or current, current)}
        # what only a start applies is not had by a roll, whatever a worker began with
        roll = sorted(set(store.needing(stale, store.ROLL)) - set(store.needing(stale, store.RESTART)))
        if restart:
            log.warning("config_needs_start keys=%s: stop and start the gateway to apply", ",".join(restart))
        if roll:
            log.warning("config_needs_roll keys=%s: `penstock restart` applies them", ",".join(roll))

    def _patience(self) -> float:
        return time.monotonic() + self._base.current().config.workers.drain_timeout_s + PATIENCE_S

    # ---- signals

    def _signalled(self, numbers: bytes) -> None:
        for number in numbers:
            if number in (signal.SIGTERM, signal.SIGINT):
                log.info("stop_asked signal=%s", signal.Signals(number).name)
                self._stop() if not self._stopping else self._force()
            elif number == signal.SIGHUP and not self._stopping:
                self._reload()
            elif number == signal.SIGUSR2 and not self._stopping:
                log.info("roll_asked")
                self._to_roll = list(self._workers)
                self._roll_next()

    def _reload(self) -> None:
        """Ask the controller, and its successor again should it die before it has said that it is done."""
        self._reload_wanted = True
        self._mend()
        holder = self._controller.child(Part.HOLDER)
        if holder is not None and holder.ready:
            os.kill(holder.pid, signal.SIGHUP)

    def _mend(self) -> None:
        """Before a child needs the run directory; a controller whose control socket was lost is replaced."""
        holder = self._controller.child(Part.HOLDER)
        if self._base.mend() and holder is not None:
            holder.kill_at_s = time.monotonic() + PATIENCE_S
            os.kill(holder.pid, signal.SIGTERM)

    def _roll_next(self) -> None:
        if any(seat.rolling for seat in self._workers):
            return
        if self._to_roll:
            seat = self._to_roll.pop(0)
            seat.rolling = True
            seat.failed_successors = 0
            if not self._to_roll:
                log.info("roll_last name=%s", seat.name)

    def _stop(self) -> None:
        self._stopping = True
        self._base.stop_listening()
        for seat in self._workers:
            for one in seat.children:
                one.kill_at_s = self._patience()
                os.kill(one.pid, signal.SIGTERM)
        self._stop_controller()

    def _stop_controller(self) -> None:
        """Last: metrics can be had as long as there is something to measure."""
        if not any(seat.children for seat in self._workers):
            models = self._base.current().config.models.values()
            ends_s = max((one.pool.stop_timeout_s for one in models if one.pool is not None), default=0.0)
            for one in self._controller.children:
                one.kill_at_s = time.monotonic() + ends_s + PATIENCE_S
                os.kill(one.pid, signal.SIGUSR1)  # not it alone: pools' servers end as well
                os.kill(one.pid, signal.SIGTERM)

    def _force(self) -> None:
        self._code = FORCED
        for _, one in self._children():
            os.kill(one.pid, signal.SIGKILL)

    # ---- ends

    def _reap(self) -> None:
        for seat, one in self._children():
            pid, status = os.waitpid(one.pid, os.WNOHANG)
            if pid:
                self._ended(seat, one, os.waitstatus_to_exitcode(status))
        child.reap_orphans({one.pid for _, one in self._children()})

    def _ended(self, seat: Seat, one: Child, code: int) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(one.pipe)
        os.close(one.pipe)
        expected = self._stopping or one.part is Part.LEAVING
        delay_s = seat.died(one, time.monotonic())
        how = f"signal={signal.Signals(-code).name}" if code < 0 else f"status={code}"
        if expected:
            log.info("process_ended name=%s pid=%d %s", seat.name, one.pid, how)
        else:
            log.error("process_died name=%s pid=%d %s restart_in_s=%g", seat.name, one.pid, how, delay_s)
        if self._stopping:
            if seat is not self._controller:
                self._stop_controller()
            return
        if seat.rolling and seat.failed_successors >= MAX_FAILED_SUCCESSORS:
            log.error(
                "roll_abandoned name=%s: its successor does not become ready; old workers stay", seat.name
            )
            seat.rolling = False
            self._to_roll = []
        self._roll_next()
        if seat.index is not None and seat.looping:
            self._looping(seat, seat.index)

    def _looping(self, seat: Seat, index: int) -> None:
        """A worker that never gets ready: the others serve without it, as long as there is another."""
        why = "it dies before it is ready, again and again"
        if all(one.looping for one in self._workers):
            log.critical("crash_loop name=%s: %s, and no other is ready; giving up", seat.name, why)
            self._code = CRASHED
            self._stop()
            return
        if not seat.loop_said:
            log.critical("crash_loop name=%s: %s; others serve, it is tried on", seat.name, why)
            seat.loop_said = True
        if not seat.children:
            # New connections would wait for it: not listening, its listener gets none of them.
            with contextlib.suppress(OSError):  # it did not listen
                self._base.tcp[index].shutdown(socket.SHUT_RD)
