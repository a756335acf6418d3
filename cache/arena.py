"""The cache's own shared file: this docstring is its byte format, version 1.

Strategy: as in `segment.py`, created whole or not at all and opened only when published. It is a file apart from
the control segment, so that it can be kept over a restart of the whole gateway while everything else starts
afresh; `adopt` takes over such a file when it is of this layout, this geometry and this digest. It refuses to know
how entries are found and replaced (`index.py`, `log.py`).

Cells are 8-byte unsigned integers in native byte order, each stored in one go. A *unit* is 64 bytes.

    header     4096 bytes at 0
        [0] magic, the bytes b"PENARENA"   [1] layout version; 0 until everything else is there
        [2] slots   [3] max_entry_bytes   [4] sets   [5] segments   [6] segment_bytes
        [7] digest of what must be equal for a kept file to be taken over   [8] size of the whole file in bytes
        [9] xxh3_64 of cells [2]..[8]
        [16] the sequence last given to a segment (holder of the lock)
        [17] life: raised when the file is taken over; who opened a log in an earlier life writes no more
        [24]..[31] zero: the one, empty set of an arena without L1
    epochs     from byte 4096: see `epoch.py`
    rows       `segments` rows of 128 bytes
        [0] state of the segment: w (bits 0-20), c (bits 21-41), e (bits 42-62), in units from its begin
        [1] owner: slot (bits 32-63) and generation (bits 0-31); 0: nobody
        [2] sequence: a segment with a smaller one was opened earlier   [3]..[15] zero
    index      `sets` sets of 8 words of 8 bytes
        word: location in bytes from the begin of the file (bits 0-39), a multiple of 64, length in units
              (bits 40-55), tag (bits 56-63); bit 0: read since it was last looked at. 0: empty
    segments   `segments` x segment_bytes, each a run of entries (`entry.py`), see `log.py`
    a page     behind them, so that an entry's head may be read wherever one can be thought to begin

Every region begins on a page boundary. There is one lock, the byte at `TAKE_LOCK` far behind the end of the file:
who takes a segment holds it. Its order: after a slot's lock, never together with another one.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from dataclasses import dataclass

import xxhash

from .entry import UNIT_BYTES, packed_bytes
from .epoch import EPOCH_CELLS, Epochs
from .layout import CELL_BYTES, HEADER_BYTES, PAGE_BYTES
from .locks import Stripes
from .memory import NotReady, WrongVersion, made

MAGIC = int.from_bytes(b"PENARENA", "little")
LAYOUT_VERSION = 1
TAKE_LOCK = 1 << 40

H_MAGIC = 0
H_VERSION = 1
H_SHAPE = 2
H_DIGEST = 7
H_TOTAL_BYTES = 8
H_CHECKSUM = 9
H_SEQUENCE = 16
H_LIFE = 17

ROW_CELLS = 16
WAYS = 8

_SHAPE = struct.Struct("@7Q")
_MAX_UNITS = (1 << 21) - 1  # of a segment: what a state's field holds
_MAX_LENGTH = (1 << 16) - 1  # of an entry, in units: what a word's field holds
_SEGMENTS = 64  # aimed at
# For each word of the index there are so many bytes of the file, up to twice as many. Answers are seldom smaller; an
# index with twice the words would cost more answers than its sets would let overflow (`make hitratio`).
_BYTES_A_WORD = 256
_MAX_SIZE = 1 << 38  # what a location reaches
_MIB = 1024 * 1024
_MADV_POPULATE_READ = 22  # asm-generic/mman-common.h; a shared tmpfs page is mapped writable by it too


@dataclass(frozen=True, slots=True)
class ArenaGeometry:
    """What decides where everything lies in an arena; equal geometries mean compatible files.

    slots: worker slots, each may own one open segment. max_entry_bytes: the largest value. sets: sets of the index,
    a power of two; segments x segment_bytes: where entries lie. All of the last three are 0 in an arena without L1,
    which has epochs only.
    """

    slots: int
    max_entry_bytes: int
    sets: int
    segments: int
    segment_bytes: int

    @classmethod
    def of(cls, size_bytes: int, max_entry_bytes: int, slots: int) -> ArenaGeometry:
        """Share out a file of at most `size_bytes`; 0 means an arena without L1.

        Raises ValueError, with a line for an operator, when that is too small or too large: see `smallest`.
        """
        if slots < 1 or max_entry_bytes < 1:
            raise ValueError(f"an arena of {slots} slots for entries of {max_entry_bytes} bytes")
        if size_bytes == 0:
            return cls(slots, max_entry_bytes, 0, 0, 0)
        entry = packed_bytes(max_entry_bytes)
        if entry > _MAX_LENGTH * UNIT_BYTES:
            most = _MAX_LENGTH * UNIT_BYTES - packed_bytes(0)
            raise ValueError(f"max_entry is {max_entry_bytes} bytes, the most is {most}")
        if size_bytes > _MAX_SIZE:
            raise ValueError(f"the cache's size is {size_bytes} bytes, the most is {_MAX_SIZE}")
        least = _fewest(slots)
        sets = WAYS
        while 2 * sets * WAYS * _BYTES_A_WORD <= size_bytes:
            sets *= 2
        room = size_bytes - _around(sets, least)
        most = _MAX_UNITS * UNIT_BYTES
        segments = max(least, min(_SEGMENTS, room // (2 * entry)), -(-room // most))
        room = size_bytes - _around(sets, segments)
        segment_bytes = min(room // segments // UNIT_BYTES * UNIT_BYTES, most)
        if segment_bytes < entry:
            raise ValueError(
                f"a cache of {size_bytes / _MIB:.1f} MiB cannot hold {least} segments for entries of up to "
                f"{max_entry_bytes} bytes: give it {cls.smallest(max_entry_bytes, slots) / _MIB:.1f} MiB, "
                "or make max_entry smaller"
            )
        return cls(slots, max_entry_bytes, sets, segments, segment_bytes)

    @classmethod
    def smallest(cls, max_entry_bytes: int, slots: int) -> int:
        """A size in bytes that `of` accepts; not much less will do."""
        data_bytes = _fewest(slots) * packed_bytes(max_entry_bytes)
        # The index takes at most 8 bytes for each 256 of the whole.
        return _up((_around(0, _fewest(slots)) + data_bytes) * 32 // 31 + 4 * PAGE_BYTES, PAGE_BYTES)

    @property
    def rows_at(self) -> int:
        """First byte of the segments' rows."""
        return HEADER_BYTES + _up(EPOCH_CELLS * CELL_BYTES, PAGE_BYTES)

    @property
    def index_at(self) -> int:
        """First byte of the index."""
        return self.rows_at + _up(self.segments * ROW_CELLS * CELL_BYTES, PAGE_BYTES)

    @property
    def data_at(self) -> int:
        """First byte of the segments."""
        return _data_at(self.sets, self.segments)

    @property
    def data_bytes(self) -> int:
        """Bytes of all segments."""
        return self.segments * self.segment_bytes

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole file."""
        return self.data_at + (_up(self.data_bytes, PAGE_BYTES) + PAGE_BYTES if self.segments else 0)


class Arena:
    """One process's view of the cache's file.

    fd: this object's own open file description, close-on-exec; its lock hangs on it. map: the bytes; cells: the same
    as 8-byte cells ("Q"). lock: one lock, for who takes a segment. epochs: the node's epochs.
    A forked child must `attach` to have a lock of its own.
    """

    __slots__ = ("_epoch_cells", "cells", "digest", "epochs", "fd", "geometry", "lock", "map")

    def __init__(self, fd: int, geometry: ArenaGeometry, digest: int) -> None:
        """Map `fd`, already known to be as large as `geometry` asks; use create, open, attach or adopt instead."""
        self.fd = fd
        self.geometry = geometry
        self.digest = digest
        self.map = mmap.mmap(fd, geometry.total_bytes, mmap.MAP_SHARED)
        self.cells = memoryview(self.map).cast("Q")
        self.lock = Stripes(fd, TAKE_LOCK, 1)
        at = HEADER_BYTES // CELL_BYTES
        self._epoch_cells = self.cells[at : at + EPOCH_CELLS]
        self.epochs = Epochs(self._epoch_cells)

    @classmethod
    def create(cls, path: str | None, geometry: ArenaGeometry, digest: int) -> Arena:
        """Make and publish an empty arena, mode 0600: a file at `path`, or without a path a memfd.

        digest: 64 bits that stand for what must be equal if the file is kept and taken over. Raises
        FileExistsError, and NoRoom when the memory cannot be had in full; then nothing is left behind.
        """
        with made(path, "penstock-cache", geometry.total_bytes, "the cache") as fd:
            arena = cls(fd, geometry, digest)
        shape = _shape(geometry, digest)
        arena.cells[H_MAGIC] = MAGIC
        for i, value in enumerate(shape):
            arena.cells[H_SHAPE + i] = value
        arena.cells[H_CHECKSUM] = xxhash.xxh3_64_intdigest(_SHAPE.pack(*shape))
        arena.cells[H_VERSION] = LAYOUT_VERSION
        return arena

    @classmethod
    def open(cls, path: str) -> Arena:
        """Open a published arena. Raises FileNotFoundError, NotReady, WrongVersion."""
        return cls._adopt_descriptor(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW))

    @classmethod
    def attach(cls, fd: int) -> Arena:
        """Open the file behind an inherited descriptor anew, so that the lock is this process's own.

        `fd` stays open and is the caller's. Raises NotReady, WrongVersion.
        """
        return cls._adopt_descriptor(os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC))

    @classmethod
    def adopt(cls, path: str, geometry: ArenaGeometry, digest: int) -> Arena | None:
        """Take over a file that an earlier gateway left, when it is one that `create` would make now.

        Its entries and epochs stay; nobody owns a segment any more, and it is not synced. None, and the file as
        it was, when there is none or it is another's. The caller knows that no other gateway uses it.
        """
        try:
            arena = cls.open(path)
        except (FileNotFoundError, NotReady, WrongVersion):
            return None
        if arena.geometry != geometry or arena.digest != digest:
            arena.close()
            return None
        arena.reset_owners()
        arena.epochs.mark_synced(False)
        return arena

    @classmethod
    def _adopt_descriptor(cls, fd: int) -> Arena:
        try:
            return cls(fd, *_read_header(fd))
        except BaseException:
            os.close(fd)
            raise

    def populate(self) -> None:
        """Have every page in this process's page table now, instead of a fault (1 to 2 µs) at its first touch.

        Takes 70 ms a GiB (measured). For who serves requests from it; where the kernel cannot (before 5.14), it
        does nothing.
        """
        with contextlib.suppress(OSError):
            self.map.madvise(_MADV_POPULATE_READ)

    def reset_owners(self) -> None:
        """Begin another life of the file: nobody owns a segment, and processes of the last one write no more.

        For a file that is taken over. Slots and generations begin anew with the control segment, so an old worker
        that still drains would otherwise share a name, and a segment, with a new one.
        """
        self.cells[H_LIFE] = (self.cells[H_LIFE] + 1) & ((1 << 64) - 1)
        at = self.geometry.rows_at // CELL_BYTES
        for row in range(self.geometry.segments):
            self.cells[at + row * ROW_CELLS + 1] = 0

    def close(self) -> None:
        """Give back lock and descriptor, and unmap unless an L1 still looks into the map; epochs do not any more.

        Idempotent.
        """
        if self.fd < 0:
            return
        # The mapping keeps a duplicate of the descriptor, so closing ours would not free the lock.
        self.lock.unlock_all()
        os.close(self.fd)
        self.fd = -1
        self._epoch_cells.release()  # `epochs` is of no use any more
        with contextlib.suppress(BufferError):  # a slice is alive: the map goes when it does
            self.cells.release()
            self.map.close()


def _shape(geometry: ArenaGeometry, digest: int) -> tuple[int, ...]:
    g = geometry
    return g.slots, g.max_entry_bytes, g.sets, g.segments, g.segment_bytes, digest, g.total_bytes


def _read_header(fd: int) -> tuple[ArenaGeometry, int]:
    """Geometry and digest of a published arena, believed only when checksum and file size agree."""
    size_bytes = os.fstat(fd).st_size
    if size_bytes < HEADER_BYTES:
        raise NotReady("the cache's file has no header yet")
    with mmap.mmap(fd, HEADER_BYTES, mmap.MAP_SHARED, mmap.PROT_READ) as header:
        # Copied in one go after the version was seen: what is published does not change any more.
        version = struct.unpack_from("@Q", header, H_VERSION * CELL_BYTES)[0]
        cells = struct.unpack_from(f"@{H_CHECKSUM + 1}Q", header)
    if version == 0:
        raise NotReady("the cache's file is not published yet")
    if cells[H_MAGIC] != MAGIC:
        raise WrongVersion("not a cache of Penstock")
    if version != LAYOUT_VERSION:
        raise WrongVersion(f"the cache's file has layout version {version}, this is {LAYOUT_VERSION}")
    shape = cells[H_SHAPE:H_CHECKSUM]
    if xxhash.xxh3_64_intdigest(_SHAPE.pack(*shape)) != cells[H_CHECKSUM]:
        raise WrongVersion("the header of the cache's file is damaged")
    geometry = ArenaGeometry(*shape[:5])
    if geometry.total_bytes != cells[H_TOTAL_BYTES] or size_bytes != cells[H_TOTAL_BYTES]:
        raise WrongVersion(
            f"the cache's file has {size_bytes} bytes, its layout wants {geometry.total_bytes}"
        )
    return geometry, cells[H_DIGEST]


def _fewest(slots: int) -> int:
    """Segments that must be there: one for each worker (slots are twice the workers), and some to take."""
    return (slots + 1) // 2 + 2


def _around(sets: int, segments: int) -> int:
    """Bytes of a file that are not its segments', at most."""
    return _data_at(sets, segments) + 2 * PAGE_BYTES


def _data_at(sets: int, segments: int) -> int:
    at = HEADER_BYTES + _up(EPOCH_CELLS * CELL_BYTES, PAGE_BYTES)
    at += _up(segments * ROW_CELLS * CELL_BYTES, PAGE_BYTES)
    return at + _up(sets * WAYS * CELL_BYTES, PAGE_BYTES)


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
