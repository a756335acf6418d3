"""One server's process: started so that it is on record before it runs anything, watched, and ended with all its kin.

Strategy: its end is noticed by a descriptor of the process (pidfd), whoever's child it is; only its parent learns the
status. Needs a running loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from ....cache.segment import process_start
from . import kin, launcher, output
from .record import Record, boot_id, remove, write

LOOK_S = 0.05
KIN_S = 2.0
"""What is left of a server when its first process has ended in order is given so long to end too."""


class Child:
    """A server's process that runs, or did. exited: done when it has ended; its result is how, as a clause."""

    def __init__(self, record: Record, state: Path, popen: subprocess.Popen[bytes] | None = None) -> None:
        """Of one that is on record. Raises ProcessLookupError when it is gone."""
        self.record = record
        self._state = state
        self._popen = popen
        self._left: kin.Kin = {}
        self._fd = os.pidfd_open(record.pid)
        loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[str] = loop.create_future()
        loop.add_reader(self._fd, self._end)

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        environ: Mapping[str, str],
        state: Path,
        record: Record,
        log: Path,
    ) -> Child:
        """Start `argv`. record: without pid, start and boot. Raises OSError.

        Whenever this process is killed, there is either no server or one that is on record.
        """
        gate, opener = os.pipe2(os.O_CLOEXEC)
        try:
            written = output.open_new(log)
            try:
                popen = subprocess.Popen(
                    [sys.executable, "-I", "-S", launcher.__file__, str(gate), *argv],
                    stdin=subprocess.DEVNULL,
                    stdout=written,
                    stderr=written,
                    env={**environ, kin.MARK: record.mark},
                    pass_fds=(gate,),
                    start_new_session=True,
                )
            finally:
                os.close(written)
            start = process_start(popen.pid)
            if start is None:
                raise ProcessLookupError(f"process {popen.pid} was gone at once")
            known = replace(record, pid=popen.pid, start=start, boot=boot_id())
            write(state, known)
            made = cls(known, state, popen)
            os.write(opener, b"g")
        finally:
            os.close(gate)
            os.close(opener)
        return made

    def close(self) -> None:
        """Watch it no more; it stays as it is."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _end(self) -> None:
        self.close()
        self._left = kin.kin_of(self.record, just_ended=True)  # before its number may be given to another
        how = "ended"
        with contextlib.suppress(ChildProcessError):
            pid, status = os.waitpid(self.record.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                how = f"was ended by {_name(-code)}" if code < 0 else f"ended with status {code}"
                if self._popen is not None:
                    self._popen.returncode = code
        if not self.exited.done():
            self.exited.set_result(how)

    async def end(self, timeout_s: float) -> None:
        """End it and all that came of it: asked first, made to after `timeout_s`; forgotten when nothing is left."""
        if not self.record.ending:
            self.record = replace(self.record, ending=True)
            with contextlib.suppress(OSError):
                write(self._state, self.record)
        family = await asyncio.to_thread(kin.kin_of, self.record)
        kin.send(family, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self.exited)
        # one that ended in order was given its time; what it left behind is given a little
        await self.bury(family, KIN_S if self.exited.done() else 0.0)

    async def bury(self, family: kin.Kin | None = None, patience_s: float = 0.0) -> None:
        """End what is left of it, and forget it."""
        family = dict(family or {}) | self._left
        until = time.monotonic() + patience_s
        while True:
            family |= await asyncio.to_thread(kin.kin_of, self.record)
            family = kin.still(family)
            if not family:
                break
            if time.monotonic() >= until:
                kin.send(family, signal.SIGKILL)
            await asyncio.sleep(LOOK_S)
        self.close()
        if not self.exited.done():
            reap(self.record.pid)
            if self._popen is not None:
                self._popen.returncode = -signal.SIGKILL
            self.exited.set_result("was ended")
        remove(self._state, self.record)


def reap(pid: int) -> None:
    """Take note of the end of a process that may be this one's child."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def new_mark() -> str:
    """A mark that no other server has."""
    return secrets.token_hex(16)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
