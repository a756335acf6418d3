"""API keys on their way to the workers: `keys-<generation>.msgpack` beside the segment, mode 0600, hashes alone.

As with the configuration (`store`), whoever sees a number in the segment finds its file. A limited key has a row of
cells that stays its own as long as the key exists, and that no other key has in the generation after.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from ...cache.segment import Segment
from ...gateway.config import Keys
from ...gateway.keys import MAX_KEYS, Key, PublishedKeys
from .. import store

KIND = "keys"


def unknown(source: Keys) -> PublishedKeys:
    """Generation 1 of a gateway that could not read its keys yet."""
    return PublishedKeys(generation=1, source=source, keys=None, rows={})


def following(keys: Mapping[str, Key], previous: PublishedKeys) -> PublishedKeys:
    """The generation after `previous`.

    A limited key for which no row is left is left out: it is refused, rather than served without its limits.
    """
    old = {id: row for id, row in previous.rows.items() if 0 <= row < MAX_KEYS}
    limited = [id for id in sorted(keys) if keys[id].limited]
    fits = [id for id in limited if id in old]
    fits += [id for id in limited if id not in old][: MAX_KEYS - len(old)]
    rows = store.columns(fits, old, MAX_KEYS)
    left_out = set(limited) - rows.keys()
    return PublishedKeys(
        generation=previous.generation + 1,
        source=previous.source,
        keys={id: key for id, key in keys.items() if id not in left_out},
        rows=rows,
    )


def write(folder: Path, published: PublishedKeys) -> None:
    """Put a generation's file in place; `Segment.publish_keys` then announces it. Raises OSError."""
    store.place(folder, KIND, published.generation, msgspec.msgpack.encode(published))


def exists(folder: Path, generation: int) -> bool:
    """Whether the file of a generation is still there."""
    return store.path_of(folder, KIND, generation).exists()


def read_current(folder: Path, segment: Segment) -> PublishedKeys:
    """The generation that the segment announces; tried anew when a newer one comes meanwhile.

    Raises OSError, and ValueError for a file that does not hold it.
    """
    while True:
        generation = segment.keys_generation
        try:
            return _read(folder, generation)
        except (OSError, ValueError):
            if segment.keys_generation == generation:
                raise


def _read(folder: Path, generation: int) -> PublishedKeys:
    data = store.path_of(folder, KIND, generation).read_bytes()
    try:
        published = msgspec.msgpack.decode(data, type=PublishedKeys)
    except msgspec.DecodeError as fault:
        raise ValueError(f"keys {generation} cannot be decoded: {fault}") from fault
    if published.generation != generation:
        raise ValueError(f"the file of keys {generation} holds {published.generation}")
    return published
