"""Configuration: the Struct tree, reading and checking a file, its JSON Schema, its travelling form."""

from .check import Machine, is_loopback
from .faults import ConfigError
from .load import load, schema
from .snapshot import Published, from_snapshot, pack, snapshot, unpack
from .structs import (
    GIB,
    KIB,
    MAX_BACKENDS,
    MAX_MODELS,
    MIB,
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
    "MAX_BACKENDS",
    "MAX_MODELS",
    "MIB",
    "Admin",
    "Backend",
    "BackendTls",
    "Config",
    "ConfigError",
    "Connections",
    "Health",
    "Limits",
    "Listen",
    "Log",
    "Machine",
    "Model",
    "Published",
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
    "unpack",
]
