"""The part of the configuration tree that is about cached answers; `structs` says what goes for all of it."""

from typing import Annotated

from msgspec import Meta, Struct

from .fields import KIB, MIB, CacheMode, Duration, Size, sized
from .redis import RedisServer

#: The most that an index of L1 can name is 4 MiB; an answer comes with its headers and a head of its own.
MAX_ENTRY = 3584 * KIB


class L1(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Answers in memory that all workers of the node share."""

    size: Annotated[
        Annotated[int, sized(0)] | None,
        Meta(
            description="Allocated in full at start; 0: no such memory. Absent: the least of 4 GiB, a quarter of "
            "the cgroup's memory and 80 % of what is free in /dev/shm."
        ),
    ] = None
    ttl_s: Annotated[
        Duration, Meta(description="How long an answer is kept here, unless its request says otherwise.")
    ] = 300.0
    max_entry: Annotated[
        Annotated[int, sized(KIB, MAX_ENTRY)],
        Meta(description="A longer answer is not cached anywhere; at most 3.5 MiB."),
    ] = 2 * MIB
    keep: Annotated[
        bool, Meta(description="Keep the entries over a restart of the whole gateway, in /dev/shm.")
    ] = False


class L2(RedisServer, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A Redis behind the shared memory, for all nodes."""

    ttl_s: Annotated[
        Duration, Meta(description="How long an answer is kept there, give or take a tenth.")
    ] = 3600.0
    deadline_ms: Annotated[
        int, Meta(ge=1, le=10_000, description="A look-up that takes longer counts as a miss.")
    ] = 10
    lease_ms: Annotated[
        int,
        Meta(
            ge=0,
            le=600_000,
            description="How long a node that died while it asked upstream keeps the others waiting, and how long a "
            "stream waits for another node before it is begun here too; 0: nodes do not wait for each other.",
        ),
    ] = 2000
    compress_above: Annotated[Size, Meta(description="Longer entries are compressed with zstd.")] = 1 * KIB


class Cache(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which answers are kept, and where."""

    mode: Annotated[
        CacheMode,
        Meta(
            description="`deterministic`: temperature 0, a seed, or an endpoint without sampling. `all`: every "
            "request. `opt_in`: those that ask for it. `off`: none."
        ),
    ] = "deterministic"
    l1: Annotated[L1, Meta(description="Shared memory.")] = L1()
    l2: Annotated[L2 | None, Meta(description="Redis. Absent: none.")] = None


class ModelCache(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What differs for one model."""

    mode: Annotated[CacheMode, Meta(description="Instead of `cache.mode`.")]
