"""The shared mapping: created whole or not at all, opened only when published.

Strategy: the creator allocates every page, writes the header, and stores the layout version last. An opener
that finds no version sees *NotReady*, one that finds another sees *WrongVersion*; nobody sees a half-built
map, and nobody dies of SIGBUS later because tmpfs was full: a full one is *NoRoom*, at once. It refuses to
know what the regions mean.

Ownership is a pid and that process's start time, because a pid alone is reused.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from typing import Protocol

import xxhash

from .layout import (
    GATE_LOCKS,
    H_CHECKSUM,
    H_CONFIG_DIGEST,
    H_CONFIG_GENERATION,
    H_GEOMETRY,
    H_KEYS_GENERATION,
    H_LIMIT_NODES,
    H_MAGIC,
    H_OWNER_PID,
    H_OWNER_START,
    H_TOTAL_BYTES,
    H_VERSION,
    HEADER_BYTES,
    LAYOUT_VERSION,
    MAGIC,
    MARK_LOCKS,
    MARK_STRIPES,
    SLOT_LOCKS,
    STICKY_CELLS,
    Geometry,
    Layout,
)
from .locks import Stripes

# Named here too: whoever opens a segment meets them.
from .memory import NoRoom as NoRoom
from .memory import NotReady as NotReady
from .memory import WrongVersion as WrongVersion
from .memory import made

_GEOMETRY = struct.Struct("@7Q")  # slots .. keys, then the size of the file


class Cells(Protocol):
    """What takes stores of cells: a memoryview, or a test that counts them."""

    def __setitem__(self, index: int, value: int, /) -> None: ...


class Segment:
    """One process's view of the shared mapping.

    fd: this object's own open file description, close-on-exec; its locks hang on it. cells: the map as 8-byte
    cells ("Q"); view: as bytes ("B"). slot_locks, gate_locks and mark_locks: the lock ranges of
    this description.
    A forked child must `attach` to have locks of its own.
    """

    __slots__ = (
        "_map",
        "cells",
        "fd",
        "gate_locks",
        "geometry",
        "layout",
        "mark_locks",
        "slot_locks",
        "view",
    )

    def __init__(self, fd: int, geometry: Geometry) -> None:
        """Map `fd`, already known to be as large as `geometry` asks; use create, open or attach instead."""
        self.fd = fd
        self.geometry = geometry
        self.layout = Layout.of(geometry)
        self._map = mmap.mmap(fd, self.layout.total_bytes, mmap.MAP_SHARED)
        self.view = memoryview(self._map)
        self.cells = self.view.cast("Q")
        self.slot_locks = Stripes(fd, SLOT_LOCKS, geometry.slots + 1)
        self.gate_locks = Stripes(fd, GATE_LOCKS, geometry.gates)
        self.mark_locks = Stripes(fd, MARK_LOCKS, MARK_STRIPES)

    @classmethod
    def create(cls, path: str | None, geometry: Geometry, *, owner_pid: int, owner_start: int) -> Segment:
        """Make and publish a segment, mode 0600: a file at `path`, or without a path a memfd.

        owner_start is in clock ticks, see `process_start`. Raises FileExistsError, and NoRoom when the memory
        cannot be had in full; then nothing is left behind.
        """
        with made(path, "penstock", Layout.of(geometry).total_bytes) as fd:
            segment = cls(fd, geometry)
        write_header(segment.cells, geometry, owner_pid, owner_start)
        return segment

    @classmethod
    def open(cls, path: str) -> Segment:
        """Open a published segment. Raises FileNotFoundError, NotReady, WrongVersion."""
        return cls._adopt_descriptor(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW))

    @classmethod
    def attach(cls, fd: int) -> Segment:
        """Open the file behind an inherited descriptor anew, so that locks are this process's own.

        `fd` stays open and is the caller's. Raises NotReady, WrongVersion.
        """
        return cls._adopt_descriptor(os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC))

    @classmethod
    def _adopt_descriptor(cls, fd: int) -> Segment:
        try:
            return cls(fd, _read_header(fd))
        except BaseException:
            os.close(fd)
            raise

    @property
    def generation(self) -> int:
        """The configuration generation, 0 before the first; one aligned load."""
        return self.cells[H_CONFIG_GENERATION]

    @property
    def config_digest(self) -> int:
        """64-bit digest of the configuration; may already belong to the next generation."""
        return self.cells[H_CONFIG_DIGEST]

    @property
    def sticky(self) -> memoryview:
        """The cells that say which backend holds a stored response."""
        at = self.layout.sticky_at
        return self.cells[at : at + STICKY_CELLS]

    def publish_generation(self, generation: int, digest: int) -> None:
        """Announce a configuration whose file is in place: the digest first, the generation last."""
        self.cells[H_CONFIG_DIGEST] = digest
        self.cells[H_CONFIG_GENERATION] = generation

    @property
    def keys_generation(self) -> int:
        """The generation of the API keys, 0 before the first; one aligned load."""
        return self.cells[H_KEYS_GENERATION]

    def publish_keys(self, generation: int) -> None:
        """Announce API keys whose file is in place."""
        self.cells[H_KEYS_GENERATION] = generation

    @property
    def limit_share(self) -> int:
        """Among how many nodes each key's rate is divided at this moment: 1 while they hear of each other."""
        nodes = self.cells[H_LIMIT_NODES]
        return nodes >> 1 if nodes & 1 else 1

    @property
    def limit_nodes(self) -> int:
        """How many nodes shared the limits when that was last known; at least 1."""
        return self.cells[H_LIMIT_NODES] >> 1 or 1

    def publish_limit_nodes(self, nodes: int, *, apart: bool) -> None:
        """Say how many nodes share the limits, and whether they cannot hear of each other."""
        self.cells[H_LIMIT_NODES] = max(1, nodes) << 1 | apart

    @property
    def owner(self) -> tuple[int, int]:
        """The supervisor: pid and start time in clock ticks; (0, …) when nobody owns the segment."""
        return self.cells[H_OWNER_PID], self.cells[H_OWNER_START]

    def take_over(self, owner_pid: int, owner_start: int) -> None:
        """Make another supervisor the owner. In between nobody is, never a pid with another's start time."""
        self.cells[H_OWNER_PID] = 0
        self.cells[H_OWNER_START] = owner_start
        self.cells[H_OWNER_PID] = owner_pid

    def close(self) -> None:
        """Give back locks and descriptor, and unmap unless rows still look into the map. Idempotent."""
        if self.fd < 0:
            return
        # The mapping keeps a duplicate of the descriptor, so closing ours would not free the locks.
        self.slot_locks.unlock_all()
        self.gate_locks.unlock_all()
        self.mark_locks.unlock_all()
        os.close(self.fd)
        self.fd = -1
        self.cells.release()
        self.view.release()
        with contextlib.suppress(BufferError):  # a row's slice is alive: the map goes when it does
            self._map.close()


def write_header(cells: Cells, geometry: Geometry, pid: int, start: int) -> None:
    """Fill the header of a zeroed map; the last store, the version, is what makes it a segment."""
    shape = _shape(geometry)
    cells[H_MAGIC] = MAGIC
    for i, value in enumerate(shape):
        cells[H_GEOMETRY + i] = value
    cells[H_CHECKSUM] = xxhash.xxh3_64_intdigest(_GEOMETRY.pack(*shape))
    cells[H_OWNER_START] = start
    cells[H_OWNER_PID] = pid
    cells[H_VERSION] = LAYOUT_VERSION


def process_start(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; None when there is none, or only its zombie.

    Field 22 of /proc/<pid>/stat, counted behind the last parenthesis because a name may contain anything.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # fields[0] is field 3, the state: Z zombie, X dead.
    if len(fields) < 20 or fields[0] in (b"Z", b"X"):
        return None
    return int(fields[19])


def owner_alive(segment: Segment) -> bool:
    """Whether the very process that owns the segment still runs; a successor with its pid does not count."""
    pid, start = segment.owner
    return pid != 0 and process_start(pid) == start


def _shape(geometry: Geometry) -> tuple[int, ...]:
    g = geometry
    total_bytes = Layout.of(geometry).total_bytes
    return g.slots, g.backends, g.models, g.counter_bytes, g.gates, g.keys, total_bytes


def _read_header(fd: int) -> Geometry:
    """The geometry of a published segment, believed only when checksum and file size agree."""
    size_bytes = os.fstat(fd).st_size
    if size_bytes < HEADER_BYTES:
        raise NotReady("the segment has no header yet")
    with mmap.mmap(fd, HEADER_BYTES, mmap.MAP_SHARED, mmap.PROT_READ) as header:
        # Copied in one go after the version was seen: what is published does not change any more.
        version = struct.unpack_from("@Q", header, H_VERSION * 8)[0]
        raw = header[:]
    cells = struct.unpack(f"@{HEADER_BYTES // 8}Q", raw)
    if version == 0:
        raise NotReady("the segment is not published yet")
    if cells[H_MAGIC] != MAGIC:
        raise WrongVersion("not a segment of Penstock")
    if version != LAYOUT_VERSION:
        raise WrongVersion(f"the segment has layout version {version}, this is {LAYOUT_VERSION}")
    shape = cells[H_GEOMETRY : H_TOTAL_BYTES + 1]
    if xxhash.xxh3_64_intdigest(_GEOMETRY.pack(*shape)) != cells[H_CHECKSUM]:
        raise WrongVersion("the segment's header is damaged")
    try:
        geometry = Geometry(*shape[:6])
    except ValueError as error:
        raise WrongVersion(f"the segment's header is impossible: {error}") from error
    if Layout.of(geometry).total_bytes != shape[6] or size_bytes != shape[6]:
        raise WrongVersion(f"the segment has {size_bytes} bytes, its layout wants {shape[6]}")
    return geometry
