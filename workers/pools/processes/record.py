"""Which process is which member: a small file each, by which whoever comes next recognises it.

`<state>/processes/<16 hex digits of the model's name>-<member>.json`, mode 0600, replaced whole. Written when the
process exists and before it may run what it is for (`launcher`), so there is none without a file.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import xxhash
from msgspec import Meta

from .. import state as folders

_NAME = re.compile(r"[0-9a-f]{16}-\d{1,4}\.json\Z")
_MOST_BYTES = 64 << 10


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One process. start: clock ticks since boot, see `process_start`; boot: which boot that is.

    mark: in its environment and its children's. digest: of what it was started with. ending: it has been told to end.
    keep, stop_timeout_s: of the pool, for who ends what is left without knowing the configuration.
    """

    model: str
    member: int
    pid: Annotated[int, Meta(ge=1, lt=1 << 31)]
    start: int
    boot: str
    port: Annotated[int, Meta(ge=0, lt=1 << 16)]
    mark: Annotated[str, Meta(min_length=1)]
    digest: str
    gpus: tuple[int, ...] = ()
    keep: bool = False
    stop_timeout_s: float = 30.0
    ending: bool = False


def folder_in(state: Path) -> Path:
    """Where the records of a gateway are."""
    return state / "processes"


def path_of(state: Path, model: str, member: int) -> Path:
    """The file of one member."""
    return folder_in(state) / f"{xxhash.xxh3_64_hexdigest(model.encode())}-{member}.json"


def write(state: Path, record: Record) -> None:
    """Put a record in place, and the folder where somebody removed it. Raises OSError."""
    path = path_of(state, record.model, record.member)
    folders.make(state)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    beside = path.with_suffix(".new")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(msgspec.json.encode(record))
    beside.rename(path)


def remove(state: Path, record: Record) -> None:
    """Forget a process that is gone, unless there is another in its place already."""
    known = read(state, record.model, record.member)
    if known is not None and known.mark == record.mark:
        with contextlib.suppress(OSError):
            path_of(state, record.model, record.member).unlink()


def read_all(state: Path) -> Iterator[Record]:
    """Every record that can be read; what is no record, or has the name of another, is passed over."""
    try:
        names = sorted(os.listdir(folder_in(state)))
    except OSError:
        return
    for name in filter(_NAME.match, names):
        try:
            with open(folder_in(state) / name, "rb", opener=_at_once) as file:
                one = msgspec.json.decode(file.read(_MOST_BYTES), type=Record)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        if path_of(state, one.model, one.member).name == name:
            yield one


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe would be waited for


def read(state: Path, model: str, member: int) -> Record | None:
    """The record of one member; None without one."""
    return next((one for one in read_all(state) if (one.model, one.member) == (model, member)), None)


def boot_id() -> str:
    """Which boot of the machine this is; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
