"""What servers of pools take of GPUs and of time, as it was measured; kept in a file, and known after a restart.

Strategy: one entry for each model and each way of running it (`key_of`); another command is another server, and what
was learned of the first says nothing of it. Memory is the most that was ever seen: who started without room for that
would fail. Durations are the longest of the last few. The file is replaced whole; one that makes no sense is left out,
because everything in it can be learned again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from ...gateway.config.pool import Pool, PoolTerms

log = logging.getLogger(__name__)

MOST_BYTES = 1 << 20
MOST_ENTRIES = 512
MOST_DURATIONS = 10
_TERMS = frozenset(field.name for field in msgspec.structs.fields(PoolTerms))
_Bytes = Annotated[int, Meta(ge=0, le=1 << 50)]
_Durations = Annotated[list[Annotated[float, Meta(ge=0, le=86_400)]], Meta(max_length=MOST_DURATIONS)]


class Footprint(Struct, omit_defaults=True):
    """One way of running one model. need, asleep: bytes of each of its GPUs, None while unknown.

    start, wake, drain, stop: the last durations, seconds: of a start, of a wake from sleep, of finishing what was in
    flight when its turn was over, and of ending.
    """

    need: _Bytes | None = None
    asleep: _Bytes | None = None
    start: _Durations = msgspec.field(default_factory=list)
    wake: _Durations = msgspec.field(default_factory=list)
    drain: _Durations = msgspec.field(default_factory=list)
    stop: _Durations = msgspec.field(default_factory=list)


class _File(Struct):
    version: int = 1
    pools: Annotated[
        dict[Annotated[str, Meta(max_length=1024)], Footprint], Meta(max_length=MOST_ENTRIES)
    ] = {}


def key_of(model: str, pool: Pool) -> str:
    """Under what a model's footprint is kept: its name and what of its pool says what is run."""
    run = {
        name: value
        for name, value in msgspec.to_builtins(pool).items()
        if name not in _TERMS or name in ("provider", "gpus")
    }
    run.pop("keep", None)
    run["sleeps"] = (pool.sleep_level or 1) if pool.sleep_after_s is not None else 0
    return (
        f"{model[:200]}\n{hashlib.sha256(msgspec.json.encode(run, order='deterministic')).hexdigest()[:32]}"
    )


class Footprints:
    """The entries of one gateway, in the file `path`. One process at a time has them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries = _read(path)

    def of(self, key: str) -> Footprint:
        """What is known; an empty entry where nothing is."""
        return self._entries.get(key) or Footprint()

    def saw(self, key: str, size: int, *, asleep: bool = False) -> bool:
        """A server was seen to take so many bytes of a GPU; whether that is news."""
        entry = self._entry(key)
        known = entry.asleep if asleep else entry.need
        if known is not None and size <= known:
            return False
        if asleep:
            entry.asleep = size
        else:
            entry.need = size
        self._write()
        return True

    def took(self, key: str, what: str, seconds: float) -> None:
        """A `start`, `wake`, `drain` or `stop` took so long."""
        durations: list[float] = getattr(self._entry(key), what)
        durations.append(round(min(max(seconds, 0.0), 86_400.0), 3))
        del durations[:-MOST_DURATIONS]
        self._write()

    def _entry(self, key: str) -> Footprint:
        """The entry, as the one that was used last."""
        entry = self._entries.pop(key, None) or Footprint()
        self._entries[key] = entry
        while len(self._entries) > MOST_ENTRIES:
            del self._entries[next(iter(self._entries))]
        return entry

    def _write(self) -> None:
        data = msgspec.json.encode(_File(pools=self._entries))
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            with contextlib.suppress(FileNotFoundError):
                new.unlink()
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(data)
            new.replace(self._path)
        except OSError as fault:
            log.warning("footprints_not_written path=%s: %s", self._path, fault.strerror)


def _read(path: Path) -> dict[str, Footprint]:
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ValueError("it is too large")
        found = msgspec.json.decode(data, type=_File)
        if found.version != 1:
            raise ValueError(f"its version is {found.version}")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, msgspec.DecodeError) as fault:
        log.warning("footprints_not_read path=%s, they are learned again: %s", path, fault)
        return {}
    return found.pools
