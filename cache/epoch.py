"""Epochs: everything, a model, a tenant or a key is flushed by one store, however many entries that are.

Strategy: an epoch is a cell that holds a random number, 0 before the first flush. An entry carries its *stamp*,
the sum of the four cells that concern it, and is valid while the cells still sum to that. A flush stores
another random number. Numbers are drawn at random, not counted, so that nodes that flush at once, miss a
message or lose their memory can disagree but never agree by accident: a disagreement is a miss. Names of models
and tenants share stripes, so a flush may take more with it, never less.

The stamp is taken when the question is asked, before anybody is asked upstream. An answer that was under way when
the flush came is then stored dead.

It refuses to know who flushes, where the numbers come from, and how they reach other nodes.

Cells, 8 bytes each:

    [0] synced: this node has read the other nodes' epochs since it started   [1]..[7] zero
    [8] all   [9] 256 of models   [265] 1,024 of tenants   [1289] 4,096 of keys
"""

from __future__ import annotations

import xxhash

from .digest import Key

MODEL_STRIPES = 256
TENANT_STRIPES = 1024
KEY_STRIPES = 4096

_SYNCED = 0
_ALL = 8
_MODELS = _ALL + 1
_TENANTS = _MODELS + MODEL_STRIPES
_KEYS = _TENANTS + TENANT_STRIPES

#: Cells of the region.
EPOCH_CELLS = _KEYS + KEY_STRIPES

_MASK = (1 << 64) - 1
_KINDS = {"m": (_MODELS, MODEL_STRIPES), "t": (_TENANTS, TENANT_STRIPES), "k": (_KEYS, KEY_STRIPES)}


class Scope:
    """A model and a tenant as their two cells; for keeping by whoever asks often."""

    __slots__ = ("model", "tenant")

    def __init__(self, model: int, tenant: int) -> None:
        self.model = model
        self.tenant = tenant


class Epochs:
    """The epochs of this node, in memory that all its processes share.

    cells: EPOCH_CELLS cells ("Q"). Any process may store; each store is whole, and nothing else is needed for a
    flush to hold: readers add up the cells each time, so no process has a sum that could be out of date.
    """

    __slots__ = ("_cells",)

    def __init__(self, cells: memoryview) -> None:
        self._cells = cells

    def scope(self, model: str, tenant: str) -> Scope:
        """The cells of a model and a tenant."""
        return Scope(_MODELS + _stripe(model, MODEL_STRIPES), _TENANTS + _stripe(tenant, TENANT_STRIPES))

    def stamp(self, scope: Scope, key: Key) -> int:
        """What an answer to this key is to be stored with, and must be stored with to be valid now."""
        cells = self._cells
        stripe = key[30] << 4 & 0xF00 | key[31]
        return (cells[_ALL] + cells[scope.model] + cells[scope.tenant] + cells[_KEYS + stripe]) & _MASK

    def set(self, name: str, nonce: int) -> None:
        """Flush: `name` is "all", or what a `name_of_…` function gave; nonce is another random number of 64 bits.

        Raises ValueError for a name or number that is none.
        """
        if not 0 <= nonce <= _MASK:
            raise ValueError(f"{nonce} is no number of 64 bits")
        self._cells[_cell(name)] = nonce

    def get(self, name: str) -> int:
        """The number under a name, 0 if it was never flushed. Raises ValueError for what is no name."""
        return self._cells[_cell(name)]

    def names_set(self) -> dict[str, int]:
        """All that was ever flushed, name to number."""
        raw = self._cells.tolist()
        found = {"all": raw[_ALL]} if raw[_ALL] else {}
        for kind, (base, count) in _KINDS.items():
            found |= {f"{kind}:{i}": nonce for i, nonce in enumerate(raw[base : base + count]) if nonce}
        return found

    @property
    def synced(self) -> bool:
        """Whether this node knows the other nodes' flushes: before that, what they stored must not be believed."""
        return self._cells[_SYNCED] != 0

    def mark_synced(self, synced: bool) -> None:
        """Say whether this node knows the other nodes' flushes."""
        self._cells[_SYNCED] = int(synced)


def under(key: Key, stamp: int) -> Key:
    """What a question goes by where entries of several epochs must not meet: among flights, and in Redis, where a
    node that has not heard of a flush would overwrite what others stored after it.
    """
    if not stamp:
        return key
    return Key(key[:-8] + (int.from_bytes(key[-8:], "little") ^ stamp).to_bytes(8, "little"))


def name_of_model(model: str) -> str:
    """The name under which a model's entries are flushed, the same on every node."""
    return f"m:{_stripe(model, MODEL_STRIPES)}"


def name_of_tenant(tenant: str) -> str:
    """The name under which a tenant's entries are flushed, the same on every node."""
    return f"t:{_stripe(tenant, TENANT_STRIPES)}"


def name_of_key(key: Key) -> str:
    """The name under which one key's entry is flushed (and every 4,096th other), the same on every node."""
    return f"k:{key[30] << 4 & 0xF00 | key[31]}"


def _stripe(name: str, count: int) -> int:
    return xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogatepass")) % count


def _cell(name: str) -> int:
    if name == "all":
        return _ALL
    kind, _, number = name.partition(":")
    base, count = _KINDS.get(kind, (0, 0))
    if not (number.isascii() and number.isdigit() and len(number) <= 4 and int(number) < count):
        raise ValueError(f"{name[:80]!r} is no name of an epoch")
    return base + int(number)
