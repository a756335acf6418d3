"""API keys: what is known of each, and who a request's credential says that it comes from.

A key is a random secret of 256 bits, so its SHA-256 is as hard to turn back as the secret is to guess, and no slow
hash is needed (`docs/adr/0015-hashed-keys.md`). The secret itself is nowhere: what comes with a request is hashed,
looked up, and forgotten.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
from collections.abc import Callable
from typing import Annotated

import msgspec
from msgspec import Meta

from .caller import Caller
from .config import Keys
from .errors import Fault, Kind

SCHEME = "sha256:"
MAX_KEYS = 4096
"""Keys with limits, on one gateway: each has a row of cells in the shared segment."""
_MOST_CHARS = 512
"""No key is longer; what is longer is not hashed."""
_PLACE_BYTES = 16
_RETRY_S = 1.0
_FIRST = datetime.datetime(1, 1, 2, tzinfo=datetime.UTC)
_LAST = datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC)

_Rate = Annotated[int, Meta(ge=0, le=1_000_000_000)]


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """One key as it is kept. Fields mean what those of :class:`Caller` mean; times are UTC.

    ``hash``: ``sha256:`` and 64 hexadecimal digits. ``models``: names or aliases, None for all.
    """

    hash: Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]
    tenant: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:@/-]{1,64}\Z")]
    models: (
        Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...], Meta(min_length=1)] | None
    ) = None
    rpm: _Rate = 0
    tpm: _Rate = 0
    concurrent: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    burst: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    priority: Annotated[int, Meta(ge=-1000, le=1000)] = 0
    weight: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    expires: Annotated[datetime.datetime, Meta(tz=True)] | None = None
    created: Annotated[datetime.datetime, Meta(tz=True)] | None = None

    def __post_init__(self) -> None:
        for name, time in (("expires", self.expires), ("created", self.created)):
            if time is not None and not _FIRST <= time < _LAST:  # what is sent on is in UTC
                raise ValueError(f"{name}: not a time between the years 1 and 9999")

    @property
    def limited(self) -> bool:
        """Whether something has to be counted for it."""
        return bool(self.rpm or self.tpm or self.concurrent)


class PublishedKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a `keys-<generation>.msgpack` file holds. ``source``: where they come from, for this gateway's whole life.

    ``keys``: by id; None until they could be read for the first time. ``rows``: those of limited keys, by id.
    """

    generation: int
    source: Keys
    keys: dict[str, Key] | None
    rows: dict[str, int]


def hashed(secret: str) -> str:
    """A secret as a key's ``hash`` has it."""
    return SCHEME + hashlib.sha256(secret.encode()).hexdigest()


class Keyring:
    """All keys of one generation. ``clock``: seconds since the epoch, by which keys expire."""

    __slots__ = ("_callers", "_clock", "generation")

    def __init__(self, published: PublishedKeys, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.generation = published.generation
        #: by a piece of the digest; None: not known yet
        self._callers: dict[bytes, tuple[bytes, Caller]] | None = None
        if published.keys is not None:
            self._callers = {}
            for id, key in published.keys.items():
                digest = bytes.fromhex(key.hash[len(SCHEME) :])
                caller = _caller(id, key, published.rows.get(id, -1))
                self._callers[digest[:_PLACE_BYTES]] = digest, caller

    def who(self, credential: str) -> Caller:
        """Whose the credential is; raises :class:`Fault` 401, and 503 as long as no keys could be read."""
        callers = self._callers
        if callers is None:
            raise Fault(
                Kind.KEYS_UNKNOWN,
                "the gateway has not been able to read its API keys yet",
                retry_after_s=_RETRY_S,
            )
        if not credential:
            raise _refused("no API key was given; send it as 'Authorization: Bearer KEY'")
        if len(credential) <= _MOST_CHARS:
            digest = hashlib.sha256(credential.encode("utf-8", "surrogatepass")).digest()
            found = callers.get(digest[:_PLACE_BYTES])
            if found is not None and hmac.compare_digest(found[0], digest):
                caller = found[1]
                if caller.expires_s and caller.expires_s <= self._clock():
                    raise _refused("the API key has expired")
                return caller
        raise _refused("the API key is not valid")


def _caller(id: str, key: Key, row: int) -> Caller:
    return Caller(
        key.tenant,
        id=id,
        models=None if key.models is None else frozenset(key.models),
        priority=key.priority,
        weight=key.weight,
        rpm=key.rpm,
        tpm=key.tpm,
        concurrent=key.concurrent,
        burst=key.burst,
        expires_s=0.0 if key.expires is None else key.expires.timestamp() or -1.0,  # 0 is for never
        row=row,
    )


def _refused(why: str) -> Fault:
    return Fault(Kind.UNAUTHORIZED, why, headers=(("www-authenticate", "Bearer"),))
