"""Configuration: the Struct tree, reading and checking a file, its JSON Schema, its travelling form."""

from .cache import L1, L2, Cache, ModelCache, RedisTls
from .check import Machine, is_loopback, tls_fault
from .faults import ConfigError
from .fields import GIB, KIB, MIB, CacheMode
from .load import load, schema
from .snapshot import Published, from_snapshot, pack, snapshot, unpack
from .structs import (
    MAX_BACKENDS,
    MAX_MODELS,
    Admin,
    Backend,
    BackendTls,
    Config,
    Connections,
    Health,
    Limits,
    Listen,
    Log,
    Model,
    Timeouts,
    Tls,
    UpstreamSettings,
    Workers,
)

__all__ = [
    "GIB",
    "KIB",
    "L1",
    "L2",
    "MAX_BACKENDS",
    "MAX_MODELS",
    "MIB",
    "Admin",
    "Backend",
    "BackendTls",
    "Cache",
    "CacheMode",
    "Config",
    "ConfigError",
    "Connections",
    "Health",
    "Limits",
    "Listen",
    "Log",
    "Machine",
    "Model",
    "ModelCache",
    "Published",
    "RedisTls",
    "Timeouts",
    "Tls",
    "UpstreamSettings",
    "Workers",
    "from_snapshot",
    "is_loopback",
    "load",
    "pack",
    "schema",
    "snapshot",
    "tls_fault",
    "unpack",
]
