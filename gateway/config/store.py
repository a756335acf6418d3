"""Where nodes find the part of their configuration that they share."""

from typing import Annotated

from msgspec import Meta

from .fields import Duration
from .redis import RedisServer


class Store(RedisServer, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A Redis with the document that is laid over this file; `penstock config push` puts it there."""

    refresh_s: Annotated[
        Duration,
        Meta(
            description="How often its version is looked at where no message came; a message is heard at once."
        ),
    ] = 60.0
