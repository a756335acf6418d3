"""The run directory of one gateway: where its segment, its configuration files and its private socket are.

`/dev/shm/penstock-<uid>-<16 hex digits>/`, mode 0700, named after the configuration's real path and the API
address. Its file `owner` says whose it is: pid and start time of the supervisor (a pid alone is reused), the
configuration's path and the port, by which `penstock restart` finds it. A directory whose owner is dead is
removed by the next start, whichever gateway's it was. Where there is no /dev/shm the temporary folder serves.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ..cache.segment import process_start

_PREFIX = "penstock-"


class Owner(msgspec.Struct, frozen=True):
    """What the file `owner` holds, as JSON. start: clock ticks since boot, see `process_start`.

    config: the configuration's real path; file: its absolute path as given, which may lead elsewhere later.
    """

    pid: int
    start: int
    config: str
    port: int
    file: str

    @property
    def alive(self) -> bool:
        """Whether that very process still runs."""
        return bool(process_start(self.pid) == self.start)


class Owned(Exception):
    """The directory belongs to a gateway that runs."""


def base() -> Path:
    """Where run directories are made."""
    shm = Path("/dev/shm")
    return shm if shm.is_dir() and os.access(shm, os.W_OK) else Path(tempfile.gettempdir())


def create(within: Path, owner: Owner, host: str, uds: str | None) -> Path:
    """Make the run directory of a gateway, after removing those whose owners are dead.

    Raises Owned when it exists and its owner runs, OSError when it cannot be made.
    """
    name = "\n".join((owner.config, host, str(owner.port), uds or ""))
    folder = within / f"{_prefix()}{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    for other in _all(within):
        found = read_owner(other)
        # one without an owner file may be in the making, unless it bears our name
        if (found is None and other == folder) or (found is not None and not found.alive):
            shutil.rmtree(other, ignore_errors=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        raise Owned(f"{folder} belongs to a gateway that runs") from None
    _sign(folder, owner)
    return folder


def restore(folder: Path, owner: Owner) -> None:
    """Make the run directory `folder` of `owner` again where it, or its file `owner`, was removed.

    Raises OSError, also when somebody else has made something of that name.
    """
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = os.lstat(folder)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise
    if not (folder / "owner").exists():
        (folder / "owner.new").unlink(missing_ok=True)
        _sign(folder, owner)


def _sign(folder: Path, owner: Owner) -> None:
    data = msgspec.json.encode(owner)
    fd = os.open(folder / "owner.new", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
    os.rename(folder / "owner.new", folder / "owner")


def read_owner(folder: Path) -> Owner | None:
    """Whose a run directory is; None when it does not say."""
    try:
        return msgspec.json.decode((folder / "owner").read_bytes(), type=Owner)
    except (OSError, msgspec.DecodeError):
        return None


def running(within: Path) -> Iterator[tuple[Path, Owner]]:
    """This user's gateways that run, with their run directories."""
    for folder in _all(within):
        owner = read_owner(folder)
        if owner is not None and owner.alive:
            yield folder, owner


def remove(folder: Path) -> None:
    """Remove a run directory and all in it."""
    shutil.rmtree(folder, ignore_errors=True)


def kept_cache(within: Path, owner: Owner) -> Path:
    """Where a gateway keeps its cache between two lives: beside the run directories, named after configuration and
    port.
    """
    name = hashlib.sha256(f"{owner.config}\n{owner.port}".encode()).hexdigest()[:16]
    return within / f"penstock-cache-{os.getuid()}-{name}"


def _prefix() -> str:
    return f"{_PREFIX}{os.getuid()}-"


def _all(within: Path) -> list[Path]:
    return [path for path in within.glob(f"{_prefix()}*") if path.is_dir() and not path.is_symlink()]
