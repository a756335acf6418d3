"""Where everything lies in the shared segment: this docstring is the byte format, version 4.

Strategy: one flat file, cut into regions by a `Geometry`; equal geometries give equal offsets, so any two
processes that agree on the header agree on every byte. It refuses to know files, locks and who may write
what.

Every cell is an 8-byte unsigned integer in native byte order on an 8-byte boundary, stored with
`memoryview.cast("Q")[i] = v`: one aligned store, which no reader sees half done on x86-64. Never with
`struct.pack_into`, which writes zeros first. Offsets below are in bytes, `[n]` counts cells of a row.

    header     4096 bytes at 0
        [0]  magic, the bytes b"PENSTOCK"
        [1]  layout version; 0 until everything else is there: it is published last
        [2]  slots   [3] backends   [4] models   [5] counter_bytes   [6] gates
        [7]  keys    [8]  size of the whole file in bytes
        [9]  xxh3_64 of cells [2]..[8]
        [16] supervisor pid (0: nobody)    [17] its start time, clock ticks since boot
        [24] configuration digest          [25] configuration generation, published after the digest
        [26] generation of the API keys
        [27] nodes that share the limits of keys, times 2, plus 1 while they cannot hear of each other
    slots      (slots + 1) rows of 128 bytes; the last is the controller's
        [0] 1 claimed, 0 free   [1] pid   [2] start time, clock ticks   [3] generation of the slot
        [4] heartbeat, nanoseconds of the holder's clock   [5]..[15] zero
    tally      `slots` rows, each a multiple of 128 bytes, in this order:
        backends cells: requests in flight with each backend
        models cells: requests running    models cells: requests queued    models cells: bytes held
        1 cell: the sum of the bytes held
        models cells: how much the neediest that waits here needs a place (format: `penstock.gateway.fairness`)
        models cells: the share that it belongs to
        models cells: requests that wait for a pool to be ready
        models cells: when a request of a model with a pool ended last, nanoseconds of the worker's clock
        keys cells, five times: of each API key the requests in flight, the tokens reserved; of each share (a hash of
        model and tenant) the requests running, the requests queued, its tag (format: `penstock.gateway.fairness`)
    counters   (slots + 1) rows of counter_bytes; the last is the controller's
        [0] used: cells of the row that are published, these heads included
        [1] how often a name found no room   [2]..[65] the cells such names share
        then entries, one after another up to `used`:
            1 cell: length of the name in bytes (bits 0-15), number of value cells (bits 16-31)
            the name, padded with zeros to whole cells;  the value cells
    backends   `backends` rows of 128 bytes
        [0] xxh3_64 of [1]..[15], seeded with the row's number   [1] health   [2] weight x 1000
        [3] waiting   [4] running   [5] KV cache use in permille   [6] pool state
        [7] time of writing, nanoseconds   [8] identity   [9] drained   [10] up since, nanoseconds
        [11]..[15] zero
    pools      `models` rows of 256 bytes: the servers that sleep, by the column of their model
        [0] xxh3_64 of [1]..[31], seeded with the row's number   [1] state; also read alone, as one load
        [2] identity   [3] wakes that failed   [4] not before, nanoseconds   [5] in this state since, nanoseconds
        [6] ready members   [7] ready since, nanoseconds   [8] length of the reason in bytes
        [9]..[31] why the last wake failed, UTF-8, 184 bytes at most, padded with zeros
    gates      `gates` stripes of 192 bytes
        [0] sequence; its lowest bit names the copy that counts   [1]..[7] zero
        [8]..[15] copy 0   [16]..[23] copy 1
    sticky     65,536 cells: which backend holds a stored response
        (format: `penstock.gateway.sticky`; here it is a run of cells that anybody may write)
    marks      2,048 stripes of 4 marks of 64 bytes: which questions are being asked, and by whom
        [0] the leader: slot << 32 | generation, 0 none; stored last, and zeroed before the rest changes
        [1]..[4] the key, 32 bytes   [5] deadline, nanoseconds of the holder's clock
        [6] when its leader last cleared it, by that clock; stored before [0]   [7] zero

The file ends on a page boundary. Locks are byte ranges far behind the end of the file, where no data can be
(`SLOT_LOCKS`, `GATE_LOCKS`, `MARK_LOCKS`): byte `base + i` is the lock of slot or stripe i.
"""

from __future__ import annotations

from dataclasses import dataclass

CELL_BYTES = 8
PAGE_BYTES = 4096
MAGIC = int.from_bytes(b"PENSTOCK", "little")
LAYOUT_VERSION = 4

# Header cells.
H_MAGIC = 0
H_VERSION = 1
H_GEOMETRY = 2
H_TOTAL_BYTES = 8
H_CHECKSUM = 9
H_OWNER_PID = 16
H_OWNER_START = 17
H_CONFIG_DIGEST = 24
H_CONFIG_GENERATION = 25
H_KEYS_GENERATION = 26
H_LIMIT_NODES = 27

HEADER_BYTES = PAGE_BYTES
SLOT_ROW_CELLS = 16
BACKEND_ROW_CELLS = 16
POOL_ROW_CELLS = 32
GATE_CELLS = 8
GATE_STRIPE_CELLS = 3 * GATE_CELLS
STICKY_CELLS = 1 << 16
KEY_COLUMNS = 5
MARK_STRIPES = 2048
MARK_CELLS = 8
MARK_STRIPE_CELLS = 4 * MARK_CELLS
ROW_ALIGN_BYTES = 128  # two cache lines: the neighbour's prefetcher fetches pairs of them

COUNTER_OVERFLOW_CELLS = 64
COUNTER_HEAD_CELLS = 2 + COUNTER_OVERFLOW_CELLS

# Lock bytes, by kind; a kind has room for 2**20 locks.
SLOT_LOCKS = 1 << 40
GATE_LOCKS = SLOT_LOCKS + (1 << 20)
MARK_LOCKS = GATE_LOCKS + (1 << 20)


@dataclass(frozen=True, slots=True)
class Geometry:
    """What decides the size of a segment; equal geometries mean compatible maps.

    slots: worker slots, twice the workers, so that old and new ones can stand side by side in a rolling
    restart. backends: rows of the backend table and columns of the tally. models: columns of the per-model
    cells. counter_bytes: size of one counter row; there are slots + 1, the last is the controller's. gates:
    stripes for limits and gates. keys: API keys that have limits, and shares of queues; 0 when there are no keys.

    Raises ValueError for what cannot be laid out.
    """

    slots: int
    backends: int = 256
    models: int = 256
    counter_bytes: int = 512 * 1024
    gates: int = 64
    keys: int = 0

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("slots", self.slots, 1, 1 << 16),
            ("backends", self.backends, 1, 1 << 16),
            ("models", self.models, 1, 1 << 16),
            ("counter_bytes", self.counter_bytes, 1024, 1 << 30),
            ("gates", self.gates, 1, 1 << 16),
            ("keys", self.keys, 0, 1 << 16),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}, not between {low} and {high}")
        if self.counter_bytes % CELL_BYTES:
            raise ValueError(f"counter_bytes is {self.counter_bytes}, not a multiple of {CELL_BYTES}")

    @property
    def controller(self) -> int:
        """Index of the controller's slot row and counter row: the one after the workers'."""
        return self.slots


@dataclass(frozen=True, slots=True)
class Layout:
    """Offsets that follow from a geometry: `*_at` and `*_stride` in cells, `*_bytes` in bytes."""

    slots_at: int
    tally_at: int
    tally_stride: int
    counters_at: int
    counters_stride: int
    backends_at: int
    pools_at: int
    gates_at: int
    sticky_at: int
    marks_at: int
    total_bytes: int

    @classmethod
    def of(cls, geometry: Geometry) -> Layout:
        """Lay out the regions one after another, each on its own boundary."""
        g = geometry
        slots_at = HEADER_BYTES
        tally_at = _up(slots_at + (g.slots + 1) * SLOT_ROW_CELLS * CELL_BYTES, ROW_ALIGN_BYTES)
        tally_stride = _up(
            (g.backends + 7 * g.models + 1 + KEY_COLUMNS * g.keys) * CELL_BYTES, ROW_ALIGN_BYTES
        )
        if tally_stride % PAGE_BYTES == 0:
            # A column of page-strided cells would fall into one set of the L1 cache and evict itself.
            tally_stride += ROW_ALIGN_BYTES
        counters_at = _up(tally_at + g.slots * tally_stride, PAGE_BYTES)
        counters_stride = _up(g.counter_bytes, ROW_ALIGN_BYTES)
        backends_at = _up(counters_at + (g.slots + 1) * counters_stride, PAGE_BYTES)
        pools_at = _up(backends_at + g.backends * BACKEND_ROW_CELLS * CELL_BYTES, PAGE_BYTES)
        gates_at = _up(pools_at + g.models * POOL_ROW_CELLS * CELL_BYTES, PAGE_BYTES)
        sticky_at = _up(gates_at + g.gates * GATE_STRIPE_CELLS * CELL_BYTES, PAGE_BYTES)
        marks_at = _up(sticky_at + STICKY_CELLS * CELL_BYTES, PAGE_BYTES)
        return cls(
            slots_at=slots_at // CELL_BYTES,
            tally_at=tally_at // CELL_BYTES,
            tally_stride=tally_stride // CELL_BYTES,
            counters_at=counters_at // CELL_BYTES,
            counters_stride=counters_stride // CELL_BYTES,
            backends_at=backends_at // CELL_BYTES,
            pools_at=pools_at // CELL_BYTES,
            gates_at=gates_at // CELL_BYTES,
            sticky_at=sticky_at // CELL_BYTES,
            marks_at=marks_at // CELL_BYTES,
            total_bytes=_up(marks_at + MARK_STRIPES * MARK_STRIPE_CELLS * CELL_BYTES, PAGE_BYTES),
        )


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
