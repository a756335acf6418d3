"""The source of API keys that the configuration names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...gateway.config import Keys
from ...gateway.memory import redis_settings
from .far import KeysRedis
from .file import KeysFile


def source_of(keys: Keys, environ: Mapping[str, str], random: Callable[[int], bytes]) -> KeysFile | KeysRedis:
    """A file or a Redis; raises KeyError when the variable of its password is not set."""
    if keys.redis is not None:
        return KeysRedis(redis_settings(keys.redis, environ), keys.redis.prefix, random)
    assert keys.file is not None  # one of the two: the configuration is checked
    return KeysFile(keys.file)
