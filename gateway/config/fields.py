"""The kinds of fields that the configuration's Structs are made of: sizes, times, texts that may name a variable.

A size is bytes; in a file it may be written `10MiB`. `Env` marks the few text fields in which `${NAME}` is replaced
from the environment.
"""

from typing import Annotated, Literal

from msgspec import Meta

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

HEALTH_PATH = r"^/[!-~]*$"
_ENV = {"env": True}
_SIZE_SCHEMA = {"type": ["integer", "string"], "pattern": r"^[0-9]+(\.[0-9]+)? ?(B|KiB|MiB|GiB)$"}


def sized(least: int, most: int | None = None) -> Meta:
    """Bounds of a size, in bytes."""
    return Meta(ge=least, le=most, extra={"size": True}, extra_json_schema={**_SIZE_SCHEMA, "minimum": least})


Env = Annotated[str, Meta(min_length=1, extra=_ENV)]
Size = Annotated[int, sized(1)]
Port = Annotated[int, Meta(ge=1, le=65_535)]
Duration = Annotated[float, Meta(gt=0, le=86_400)]
Wait = Annotated[float, Meta(ge=0, le=86_400)]
CacheMode = Literal["deterministic", "all", "opt_in", "off"]
EnvName = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Zone = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
