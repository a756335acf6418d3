"""`penstock restart`: which gateway is meant, whether it would come up again, and the signal.

Strategy: the run directories of this user say what runs. The file is checked as the gateway itself would, with its
environment, its cores and its limits, because successors that cannot start are best not begun.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

from ..gateway.config import ConfigError, Machine
from . import rundir, store
from .source import Source


class CannotRestart(Exception):
    """No gateway was told anything; the text is one line for the operator."""


def restart(file: Path | None, port: int | None) -> rundir.Owner:
    """Begin the rolling restart of the one gateway that is meant, and say whose. Raises CannotRestart."""
    folders = {owner: folder for folder, owner in rundir.running(rundir.base())}
    owner = choose(list(folders), file, port)
    try:
        source = Source(Path(owner.file), port=owner.port, machine=Machine.here(owner.pid))
        published = store.newest(folders[owner])
        source.read(environ_of(owner.pid), published.document if published is not None else None)
        os.kill(owner.pid, signal.SIGUSR2)
    except ConfigError as fault:
        raise CannotRestart(f"not restarted: {fault}") from None
    except OSError as fault:
        raise CannotRestart(f"cannot reach supervisor {owner.pid}: {fault.strerror}") from None
    return owner


def environ_of(pid: int) -> dict[str, str]:
    """A process's environment as it was when that process began. Raises OSError."""
    lines = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return {os.fsdecode(k): os.fsdecode(v) for k, _, v in (line.partition(b"=") for line in lines)}


def choose(running: Sequence[rundir.Owner], file: Path | None, port: int | None) -> rundir.Owner:
    """The one of `running` that has this configuration and this port, where given. Raises CannotRestart."""
    real = os.path.realpath(file) if file is not None else None
    found = [one for one in running if real in (None, one.config) and port in (None, one.port)]
    if len(found) == 1:
        return found[0]
    if found:
        raise CannotRestart(f"several gateways run: {_list(found)}; {_hint(found)}")
    asked = "".join((f" with {file}" if file else "", f" on port {port}" if port else ""))
    raise CannotRestart(f"no gateway of this user runs{asked}; running: {_list(running) or 'none'}")


def _list(owners: Sequence[rundir.Owner]) -> str:
    return ", ".join(f"port {one.port} with {one.file} (supervisor {one.pid})" for one in owners)


def _hint(found: Sequence[rundir.Owner]) -> str:
    """What tells these apart."""
    if len({one.port for one in found}) == len(found):
        return "say which with --port"
    if len({one.config for one in found}) == len(found):
        return "say which with -c"
    if len({(one.config, one.port) for one in found}) == len(found):
        return "say which with -c and --port"
    return "send SIGUSR2 to the supervisor that is meant"
