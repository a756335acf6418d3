"""Configuration as it travels between Penstock's processes: msgpack, with no secret in it."""

import msgspec

from .layers import Layer
from .structs import Config


class Server(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A server that was found behind a name: an IP address, and of an SRV record what else it says."""

    address: str
    port: int | None = None
    weight: int = 0
    priority: int = 0


class Published(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a `config-<generation>.msgpack` file holds.

    `indices` gives each backend, named `<model>\\n<url>`, its column in the tally and the backend table;
    `model_indices` gives each model its column. `config` names the servers that requests may go to, so it has no
    backend with `discover`; `source` is what the operator wrote where that is something else, and `found` what its
    names led to. `document` is what was laid over the operator's file.
    """

    config: Config
    indices: dict[str, int]
    model_indices: dict[str, int]
    generation: int
    source: Config | None = None
    found: dict[str, tuple[Server, ...]] = {}
    document: Layer | None = None

    @property
    def told(self) -> Config:
        """What the operator wrote."""
        return self.source or self.config


def snapshot(config: Config) -> bytes:
    """`config` as msgpack."""
    return msgspec.msgpack.encode(config)


def from_snapshot(data: bytes) -> Config:
    """The configuration in `data`. Raises msgspec.DecodeError (a ValidationError is one)."""
    return msgspec.msgpack.decode(data, type=Config)


def pack(published: Published) -> bytes:
    """The bytes of a published file."""
    return msgspec.msgpack.encode(published)


def unpack(data: bytes) -> Published:
    """What a published file holds. Raises msgspec.DecodeError (a ValidationError is one)."""
    return msgspec.msgpack.decode(data, type=Published)
