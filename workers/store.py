"""Configuration on its way to the workers: numbered files beside the segment, and the numbers in them.

Strategy: a generation is a file written whole, synced and renamed before its number is published in the segment,
so whoever sees the number finds the file. The last few files stay, for a process that read the number a moment
ago. Models and backends get a column that stays theirs as long as they exist, and a column is reused only when
nobody had it in the generation before, so that a late count never lands on another backend.

Refuses to know what the configuration means.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import xxhash
from msgspec.structs import replace

from ..cache.segment import Segment
from ..gateway.config import MAX_BACKENDS, MAX_MODELS, Config, Layer, Published, pack, unpack
from .expand import Found, expand, members_in, names_in

KEPT_FILES = 3
_NAME = re.compile(r"(config|keys)-(\d+)\.msgpack\Z")


class Full(Exception):
    """No column is free: too many models or backends in this generation and the one before together."""


def backend_key(model: str, url: str) -> str:
    """The name of a backend in a published file."""
    return f"{model}\n{url}"


def identity(key: str) -> int:
    """The 64-bit identity of a backend, by which a row of the backend table is recognised."""
    return xxhash.xxh3_64_intdigest(key.encode())


def assign(config: Config, previous: Mapping[str, int], busy: Container[int] = ()) -> dict[str, int]:
    """A column for every backend of `config`, by `backend_key`, those in `busy` last of all; raises Full."""
    keys = [backend_key(name, b.url) for name, model in config.models.items() for b in model.backends]
    return columns(keys, previous, MAX_BACKENDS, busy)


def assign_models(config: Config, previous: Mapping[str, int]) -> dict[str, int]:
    """A column for every model of `config`; raises Full."""
    return columns(config.models, previous, MAX_MODELS)


def columns(
    keys: Iterable[str], previous: Mapping[str, int], capacity: int, busy: Container[int] = ()
) -> dict[str, int]:
    """A column below `capacity` for each of `keys`: its own of `previous`, or one nobody had there; raises Full.

    Those in `busy` are given to somebody new only where there are no others.
    """
    taken = set(previous.values())
    free = iter(sorted((one for one in range(capacity) if one not in taken), key=lambda one: one in busy))
    found: dict[str, int] = {}
    for key in keys:
        column = previous.get(key)
        if column is None:
            column = next(free, None)
        if column is None:
            raise Full(
                f"all {capacity} columns are in use; remove some first, add others with the next reload"
            )
        found[key] = column
    return found


def first(config: Config, document: Layer | None = None) -> Published:
    """Generation 1 of a new gateway, and the document that is in it."""
    return msgspec.structs.replace(following(config, None), document=document)


def following(
    config: Config, previous: Published | None, found: Found | None = None, busy: Container[int] = ()
) -> Published:
    """The generation after `previous`; raises Full.

    config: as the operator wrote it; what only a new start applies stays as it was. found: where servers are that it
    does not place, by default where they were before. busy: columns in which something is counted still, of requests
    to a backend that is gone.
    """
    before = {**(previous.found if previous else {}), **(found or {})}
    known = {name: before[name] for name in (*names_in(config), *members_in(config)) if name in before}
    columns_before = previous.indices if previous else {}
    expanded, _ = expand(pinned(config, previous.config) if previous else config, known, columns_before)
    return Published(
        config=expanded,
        indices=assign(expanded, columns_before, busy),
        model_indices=assign_models(config, previous.model_indices if previous else {}),
        generation=previous.generation + 1 if previous else 1,
        source=config if expanded is not config else None,
        found=known,
        document=previous.document if previous else None,
    )


def write(folder: Path, published: Published) -> int:
    """Put a generation's file in place, mode 0600, and remove those too old to be read; its 64-bit digest.

    The number is not published: `Segment.publish_generation` with this digest does that. Raises OSError.
    """
    data = pack(published)
    place(folder, "config", published.generation, data)
    return xxhash.xxh3_64_intdigest(data)


def place(folder: Path, kind: str, generation: int, data: bytes) -> None:
    """Put the file `<kind>-<generation>.msgpack` in place, mode 0600, and remove those of its kind too old to be read.

    Raises OSError.
    """
    target = path_of(folder, kind, generation)
    temporary = target.with_suffix(".new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, target)
    for path in folder.iterdir():
        match = _NAME.match(path.name)
        if match and match[1] == kind and int(match[2]) <= generation - KEPT_FILES:
            path.unlink(missing_ok=True)


def read(folder: Path, generation: int) -> Published:
    """A published generation. Raises OSError, and ValueError for a file that does not hold it."""
    try:
        published = unpack(path_of(folder, "config", generation).read_bytes())
    except msgspec.DecodeError as fault:
        raise ValueError(f"generation {generation} cannot be decoded: {fault}") from fault
    if published.generation != generation:
        raise ValueError(f"the file of generation {generation} holds {published.generation}")
    return published


def read_current(folder: Path, segment: Segment) -> Published:
    """The generation that the segment announces; tried anew when a newer one comes meanwhile."""
    while True:
        generation = segment.generation
        try:
            return read(folder, generation)
        except (OSError, ValueError):
            if segment.generation == generation:
                raise


def newest(folder: Path) -> Published | None:
    """The newest generation that can be read in a run directory, for who has no segment to ask; None without one."""
    matches = (_NAME.match(path.name) for path in folder.iterdir())
    numbers = [int(match[2]) for match in matches if match and match[1] == "config"]
    for generation in sorted(numbers, reverse=True):
        with contextlib.suppress(OSError, ValueError):
            return read(folder, generation)
    return None


def path_of(folder: Path, kind: str, generation: int) -> Path:
    """Where the file of a generation is; `kind` is `config` or `keys`."""
    return folder / f"{kind}-{generation}.msgpack"


def changed(old: object, new: object, prefix: str = "") -> list[str]:
    """Paths of the keys that differ between two configurations, such as `models.m.max_queue`."""
    if old == new:
        return []
    if isinstance(old, msgspec.Struct) and type(old) is type(new):
        fields = old.__struct_fields__
        pairs = {name: (getattr(old, name), getattr(new, name)) for name in fields}
    elif isinstance(old, dict) and isinstance(new, dict):
        pairs = {name: (old.get(name), new.get(name)) for name in {**old, **new}}
    else:
        return [prefix]
    join = f"{prefix}." if prefix else ""
    return [path for name, (a, b) in pairs.items() for path in changed(a, b, f"{join}{name}")]


RESTART = (
    *("listen.host", "listen.port", "listen.uds", "admin", "workers.count", "workers.cores"),
    *("cache.l1.size", "cache.l1.max_entry", "cache.l1.keep", "cache.l2", "keys", "pools.state"),
    *("pools.lease", "pools.redis", "store", "limits.redis"),
)
"""Keys that only a new start applies."""
LIVE = ("cache.l2.ttl_s",)
"""Those below them that are applied at once."""
ROLL = ("listen.http", "listen.tls", "listen.max_connections", "listen.read_timeout_s", "listen.keep_alive_s")
"""Keys that a rolling restart applies."""


def needing(paths: Iterable[str], keys: Iterable[str]) -> list[str]:
    """Those `paths` that are, or lie under, one of `keys`."""
    wanted = tuple(keys)
    return [
        path
        for path in paths
        if path not in LIVE and any(path == key or path.startswith(f"{key}.") for key in wanted)
    ]


def pinned(config: Config, before: Config) -> Config:
    """`config` with what only a new start applies as it was `before`.

    Else a process that is replaced would have it alone: a worker would ask a Redis of which no controller hears what
    was flushed there, and a controller would ask for another admin key than it was started with.
    """
    made: Config = config
    for key in RESTART:
        made = _as_in(made, before, key.split("."))
    l2, told = made.cache.l2, config.cache.l2
    if l2 is not None and told is not None and l2.ttl_s != told.ttl_s:
        made = replace(made, cache=replace(made.cache, l2=replace(l2, ttl_s=told.ttl_s)))
    return made


def _as_in(new: Any, old: Any, path: list[str]) -> Any:
    name, *rest = path
    value = getattr(new, name)
    kept = _as_in(value, getattr(old, name), rest) if rest else getattr(old, name)
    return new if kept == value else replace(new, **{name: kept})
