"""What outlives every worker: the guard of the port, the listeners, the run directory and the segment.

Strategy: the supervisor makes all of it before the first fork and keeps it until the last child is gone, so a
dead worker's accept queue waits for its successor and nothing is refused. Each worker has its own TCP listener
(SO_REUSEPORT: one shared by all balances badly); the Unix path has one for all.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import xxhash

from ..cache.arena import Arena, ArenaGeometry
from ..cache.layout import Geometry
from ..cache.segment import NoRoom, NotReady, Segment, WrongVersion, process_start
from ..gateway.config import L1, MAX_BACKENDS, MAX_MODELS, Cache, Config, Keys, Layer, Published
from ..gateway.keys import MAX_KEYS
from . import rundir, store
from .guard import Taken, guard
from .keys import published as published_keys
from .keys.sources import source_of
from .keys.text import BadKeys, NoKeys
from .listeners import listen_tcp, listen_unix
from .room import is_wanted, memory_size

log = logging.getLogger(__name__)

CONTROL = "control.sock"
"""The controller's private socket in the run directory."""


class CannotStart(Exception):
    """The gateway cannot be started here; the text is one line for the operator."""


class Foundation:
    """The open parts; `lay` makes them all or raises CannotStart and leaves nothing."""

    def __init__(self) -> None:
        self._undo = contextlib.ExitStack()
        self.tcp: list[socket.socket] = []
        self.uds: socket.socket | None = None
        self.admin: socket.socket
        self.control: socket.socket
        self.folder: Path
        self.segment: Segment
        self.arena: Arena
        self.node = os.urandom(16)
        self._owner: rundir.Owner
        self._published: Published

    @classmethod
    def lay(
        cls,
        config: Config,
        path: Path,
        workers: int,
        environ: Mapping[str, str] = MappingProxyType({}),
        document: Layer | None = None,
    ) -> Foundation:
        """Guard, bind, create and publish generation 1 of `config`, which was read from `path`, and of its API keys.

        environ: for the password of the Redis that has the keys. document: what of it was not in `path`.
        """
        made = cls()
        try:
            made._guard(config.listen.host, config.listen.port, "use --port")
            made._guard(config.admin.host, config.admin.port, "change `admin.port`")
            made._bind(config, workers)
            made._settle(config, path, workers, document)
            if config.keys is not None:
                made._open_keys(config.keys, environ)
        except BaseException:
            made.remove()
            raise
        return made

    def of_worker(self, index: int) -> list[socket.socket]:
        """The listeners that worker `index` serves."""
        return [self.tcp[index], self.uds] if self.uds else [self.tcp[index]]

    def current(self) -> Published:
        """The published configuration; the last one seen where its file cannot be read."""
        with contextlib.suppress(OSError, ValueError):
            self._published = store.read_current(self.folder, self.segment)
        return self._published

    def mend(self) -> bool:
        """Put back what children need of the run directory, should somebody have cleaned it away.

        Whether the control socket is a new one, which a controller that runs does not have.
        """
        try:
            rundir.restore(self.folder, self._owner)
            try:
                self._published = store.read_current(self.folder, self.segment)
            except (OSError, ValueError):
                # an older one in its place would give columns to the wrong backends
                if self._published.generation != self.segment.generation:
                    raise
                store.write(self.folder, self._published)
                log.warning("run_directory_restored folder=%s: somebody had removed files of it", self.folder)
            path = self.folder / CONTROL
            if path.exists():
                return False
            gone, self.control = self.control, self._unix(str(path), "the control socket")
            gone.close()
            log.warning("control_socket_restored path=%s: the controller is replaced", path)
        except (OSError, ValueError, CannotStart) as fault:
            log.error("run_directory_lost folder=%s: %s", self.folder, fault)
            return False
        return True

    def stop_listening(self) -> None:
        """Close the API listeners here; they end when the last worker that has them closes its own."""
        for listener in (*self.tcp, self.uds):
            if listener is not None:
                listener.close()

    def remove(self) -> None:
        """Close everything and remove the run directory and the Unix socket's file. Idempotent."""
        self._undo.close()

    def _guard(self, host: str, port: int, fix: str) -> None:
        try:
            self._keep(guard(host, port))
        except Taken as fault:
            raise CannotStart(
                f"a gateway already runs on {fault.address}:{port}; stop it, or {fix}"
            ) from None
        except OSError as fault:
            raise CannotStart(f"cannot guard {host}:{port}: {fault.strerror}") from None

    def _bind(self, config: Config, workers: int) -> None:
        listen, admin = config.listen, config.admin
        for _ in range(workers):
            self.tcp.append(self._tcp(listen.host, listen.port, "listen"))
        # Shared as well: a dead supervisor's controller may not have closed it yet.
        self.admin = self._tcp(admin.host, admin.port, "admin")
        if listen.uds is not None:
            self.uds = self._unix(listen.uds, "listen.uds")

    def _settle(self, config: Config, path: Path, workers: int, document: Layer | None) -> None:
        start = process_start(os.getpid())
        assert start is not None
        self._owner = owner = rundir.Owner(
            os.getpid(), start, os.path.realpath(path), config.listen.port, os.path.abspath(path)
        )
        base = rundir.base()
        try:
            self.folder = rundir.create(base, owner, config.listen.host, config.listen.uds)
        except rundir.Owned as fault:
            raise CannotStart(f"{fault}; stop it first") from None
        except OSError as fault:
            raise CannotStart(f"cannot make a run directory in {base}: {fault.strerror}") from None
        self._undo.callback(rundir.remove, self.folder)
        self.control = self._unix(str(self.folder / CONTROL), "the control socket")
        keys = MAX_KEYS if config.keys is not None else 0
        geometry = Geometry(
            slots=2 * workers,
            backends=MAX_BACKENDS,
            models=MAX_MODELS,
            gates=MAX_BACKENDS + keys,
            keys=keys,
        )
        try:
            self.segment = self._segment(geometry, owner)
            self._published = published = store.first(config, document)
            digest = store.write(self.folder, published)
        except (NoRoom, store.Full) as fault:
            raise CannotStart(str(fault)) from None
        except OSError as fault:
            raise CannotStart(f"cannot write in {self.folder}: {fault.strerror}") from None
        self.segment.publish_generation(published.generation, digest)
        self.arena = self._arena(config.cache, geometry.slots)

    def _open_keys(self, keys: Keys, environ: Mapping[str, str]) -> None:
        """Publish the first keys before anybody can ask; where there are none to be had yet, that is what is said."""
        source = source_of(keys, environ, os.urandom)
        published = published_keys.unknown(keys)
        try:
            published = published_keys.following(source.once(), published)
        except BadKeys as fault:
            if keys.file is not None and not isinstance(fault, NoKeys):
                raise CannotStart(f"keys: {fault}") from None
            log.warning("keys_unknown: every request gets 503: %s", fault)
        try:
            published_keys.write(self.folder, published)
        except OSError as fault:
            raise CannotStart(f"cannot write in {self.folder}: {fault.strerror}") from None
        self.segment.publish_keys(published.generation)

    def _segment(self, geometry: Geometry, owner: rundir.Owner) -> Segment:
        try:
            segment = Segment.create(
                str(self.folder / "segment"), geometry, owner_pid=owner.pid, owner_start=owner.start
            )
        except NoRoom as fault:
            # Nothing in it has to survive the supervisor yet, so memory without a name does as well.
            log.warning("segment_in_memory reason=%s", fault)
            segment = Segment.create(None, geometry, owner_pid=owner.pid, owner_start=owner.start)
        self._undo.callback(segment.close)
        return segment

    def _arena(self, cache: Cache, slots: int) -> Arena:
        """The memory of the cache: that of an earlier life where it is to be kept, else a new one."""
        l1 = cache.l1
        wanted = l1.size != 0 and is_wanted(self._published.config)
        kept = rundir.kept_cache(rundir.base(), self._owner)
        if not (wanted and l1.keep):
            kept.unlink(missing_ok=True)  # of a time when it was to be kept
        shape = _shape(l1, slots, kept) if wanted else ArenaGeometry.of(0, l1.max_entry, slots)
        digest = xxhash.xxh3_64_intdigest(f"{l1.max_entry}".encode())
        try:
            arena = Arena.adopt(str(kept), shape, digest)
            if arena is not None:
                log.info("cache_kept bytes=%d", shape.total_bytes)
            elif wanted and l1.keep:
                kept.unlink(missing_ok=True)
                arena = Arena.create(str(kept), shape, digest)
            else:
                arena = Arena.create(str(self.folder / "cache"), shape, digest)
        except NoRoom as fault:
            if l1.keep:
                raise CannotStart(f"cache.l1: {fault}; lower `cache.l1.size`, or remove `keep`") from None
            log.warning("cache_in_memory reason=%s", fault)
            try:
                arena = Arena.create(None, shape, digest)
            except NoRoom as again:
                raise CannotStart(f"cache.l1: {again}; lower `cache.l1.size`") from None
        except OSError as fault:
            raise CannotStart(f"cache.l1: cannot make its memory: {fault.strerror}") from None
        self._undo.callback(arena.close)
        return arena

    def _tcp(self, host: str, port: int, key: str) -> socket.socket:
        try:
            return self._keep(listen_tcp(host, port))
        except OSError as fault:
            raise CannotStart(f"{key}: cannot listen on {host}:{port}: {fault.strerror or fault}") from None

    def _unix(self, path: str, key: str) -> socket.socket:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(path) == 0:
                    raise CannotStart(f"{key}: somebody listens on {path} already")
            listener = self._keep(listen_unix(path))
            inode = os.stat(path).st_ino
        except OSError as fault:
            raise CannotStart(f"{key}: cannot listen on {path}: {fault.strerror or fault}") from None
        self._undo.callback(_unlink_own, path, inode)
        return listener

    def _keep(self, opened: socket.socket) -> socket.socket:
        self._undo.callback(opened.close)
        return opened


def _shape(l1: L1, slots: int, kept: Path) -> ArenaGeometry:
    """How large the memory is, and how it is divided. Raises CannotStart for a size that is too small."""
    if l1.size is not None:
        try:
            return ArenaGeometry.of(l1.size, l1.max_entry, slots)
        except ValueError as fault:
            raise CannotStart(f"cache.l1.size: {fault}") from None
    with contextlib.suppress(OSError, NotReady, WrongVersion):
        # what is kept takes room itself: its size was found when it did not
        earlier = Arena.open(str(kept))
        earlier.close()
        if (earlier.geometry.slots, earlier.geometry.max_entry_bytes) == (slots, l1.max_entry):
            return earlier.geometry
    size = memory_size(rundir.base())
    return ArenaGeometry.of(max(size, ArenaGeometry.smallest(l1.max_entry, slots)), l1.max_entry, slots)


def _unlink_own(path: str, inode: int) -> None:
    """Remove a socket's file unless a successor put its own there."""
    with contextlib.suppress(OSError):
        if os.stat(path).st_ino == inode:
            os.unlink(path)
