"""Configuration: the Struct tree, reading and checking a file, its JSON Schema, its travelling form."""

from .addresses import is_loopback
from .cache import L1, L2, Cache, ModelCache
from .check import Machine, tls_fault
from .check_pools import places_itself
from .faults import ConfigError
from .fields import GIB, KIB, MIB, CacheMode
from .layers import Layer
from .load import load, schema
from .model import Backend, BackendTls, Batching, Model, Policy, Timeouts
from .pool import DockerPool, KubernetesApi, KubernetesPool, Pool, Pools, PoolTerms, ProcessPool, WebhookPool
from .redis import RedisServer, RedisTls
from .snapshot import Published, Server, from_snapshot, pack, snapshot, unpack
from .store import Store
from .structs import (
    MAX_BACKENDS,
    MAX_MODELS,
    Access,
    Admin,
    Breaker,
    Config,
    Connections,
    Discovery,
    Health,
    Http2,
    Keys,
    Limits,
    Listen,
    Log,
    Node,
    Telemetry,
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
    "Access",
    "Admin",
    "Backend",
    "BackendTls",
    "Batching",
    "Breaker",
    "Cache",
    "CacheMode",
    "Config",
    "ConfigError",
    "Connections",
    "Discovery",
    "DockerPool",
    "Health",
    "Http2",
    "Keys",
    "KubernetesApi",
    "KubernetesPool",
    "Layer",
    "Limits",
    "Listen",
    "Log",
    "Machine",
    "Model",
    "ModelCache",
    "Node",
    "Policy",
    "Pool",
    "PoolTerms",
    "Pools",
    "ProcessPool",
    "Published",
    "RedisServer",
    "RedisTls",
    "Server",
    "Store",
    "Telemetry",
    "Timeouts",
    "Tls",
    "UpstreamSettings",
    "WebhookPool",
    "Workers",
    "from_snapshot",
    "is_loopback",
    "load",
    "pack",
    "places_itself",
    "schema",
    "snapshot",
    "tls_fault",
    "unpack",
]
