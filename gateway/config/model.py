"""The part of the configuration tree that is about models and their servers; `structs` says what goes for all of it."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from .cache import ModelCache
from .fields import Duration, Env, EnvName, Wait, Zone
from .pool import Pool

Policy = Literal[
    "least_connections",
    "weighted_round_robin",
    "power_of_two",
    "peak_ewma",
    "consistent_hash",
    "prefix_affinity",
]


class BackendTls(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a backend's certificate is verified."""

    ca: Annotated[
        Env | None,
        Meta(
            description="PEM file of trusted authorities; a relative path starts at the configuration's folder. "
            "Absent: the system's."
        ),
    ] = None
    insecure: Annotated[bool, Meta(description="Accept any certificate.")] = False
    server_name: Annotated[
        Annotated[str, Meta(min_length=1, max_length=253)] | None,
        Meta(description="Name asked for and verified. Absent: the URL's host."),
    ] = None


class Backend(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One server that answers for a model."""

    url: Annotated[
        Env, Meta(description="`http://host:port`, `https://host` or `unix:///path`, without `/v1`.")
    ]
    weight: Annotated[
        float,
        Meta(ge=0.001, le=1000, description="Share of the load relative to the model's other backends."),
    ] = 1.0
    zone: Annotated[
        Zone | None,
        Meta(description="Where it stands; `node.zone` says which is preferred. Absent: anywhere."),
    ] = None
    priority: Annotated[
        int,
        Meta(
            ge=0,
            le=99,
            description="Its tier: a higher number is asked only when all lower ones are down or full.",
        ),
    ] = 0
    max_concurrent: Annotated[
        Annotated[int, Meta(ge=1, le=1_000_000)] | None,
        Meta(
            description="Requests at it at one time, from this node. Absent: the model's `max_concurrent` alone counts."
        ),
    ] = None
    protocol: Annotated[
        Literal["http1", "http2"],
        Meta(description="`http2`: by ALPN over TLS, by prior knowledge without (h2c)."),
    ] = "http1"
    discover: Annotated[
        Literal["dns", "srv"] | None,
        Meta(
            description="`dns`: each address that the URL's host has is a backend of its own (a headless Kubernetes "
            "Service). `srv`: the host is the name of SRV records, which say ports and weights. Absent: one backend."
        ),
    ] = None
    api_key_env: Annotated[
        EnvName | None,
        Meta(description="Name of the environment variable that holds the key sent to this backend."),
    ] = None
    tls: Annotated[BackendTls | None, Meta(description="For `https` URLs.")] = None


class Timeouts(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Deadlines of one upstream call."""

    connect_s: Annotated[Duration, Meta(description="Until a connection is open.")] = 5.0
    first_byte_s: Annotated[Duration, Meta(description="Until the response begins.")] = 120.0
    between_chunks_s: Annotated[Duration, Meta(description="Between two reads of a response.")] = 120.0
    total_s: Annotated[Wait, Meta(description="For the whole call; 0: no such deadline.")] = 0.0


class Batching(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Requests that arrive together become one upstream request: embeddings, and completions with equal parameters."""

    window_ms: Annotated[
        int, Meta(ge=0, le=1000, description="How long the first waits for others, 10 to 50; 0: off.")
    ] = 0
    max_items: Annotated[
        int, Meta(ge=2, le=2048, description="Inputs or prompts in one upstream request at most.")
    ] = 64
    usage: Annotated[
        Literal["exact", "shared"],
        Meta(
            description="What each caller is told of its tokens. `exact`: what they were; those of texts to embed are "
            "asked of the server's `/tokenize`. `shared`: its part of the sum by length, nothing is asked."
        ),
    ] = "exact"


class Model(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One model that clients may name."""

    # in what travels it may be empty: when all are discovered and none is found yet, or the pool has never run
    backends: Annotated[
        tuple[Backend, ...],
        Meta(description="The servers that answer for it; absent where a `pool` starts them."),
    ] = ()
    pool: Annotated[
        Pool | None, Meta(description="Servers that run while they are needed. Absent: they always do.")
    ] = None
    aliases: Annotated[
        tuple[str, ...], Meta(description="Other names for it; a request by alias is rewritten.")
    ] = ()
    version: Annotated[
        Annotated[str, Meta(min_length=1, max_length=64)],
        Meta(description="Tag of the weights behind the name; change it when they change."),
    ] = "1"
    policy: Annotated[
        Policy,
        Meta(
            description="How a backend is chosen. `least_connections`: fewest requests in flight for its weight, all "
            "workers together. `weighted_round_robin`: in turn, by weight. `power_of_two`: the less loaded of two. "
            "`peak_ewma`: lowest latency times load. `consistent_hash`: the same user at the same backend. "
            "`prefix_affinity`: conversations that begin alike at the same backend, for its prefix cache."
        ),
    ] = "least_connections"
    prefix_chars: Annotated[
        int,
        Meta(
            ge=1,
            le=65_536,
            description="How many characters `prefix_affinity` looks at of what follows a system prompt.",
        ),
    ] = 1024
    fallbacks: Annotated[
        tuple[str, ...],
        Meta(description="Models that answer, in this order, when none of its backends can be had."),
    ] = ()
    max_concurrent: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="Requests at its backends at one time, on this node; at each server of a `pool`.",
        ),
    ] = 100
    max_queue: Annotated[
        int,
        Meta(
            ge=0,
            le=1_000_000,
            description="Requests that may wait for a place, or for a `pool` to wake; the next gets 429.",
        ),
    ] = 1000
    queue_timeout_s: Annotated[Duration, Meta(description="A request that waited this long gets 504.")] = 60.0
    timeouts: Annotated[Timeouts, Meta(description="Deadlines towards its backends.")] = Timeouts()
    cache: Annotated[ModelCache | None, Meta(description="What differs from `cache` for this model.")] = None
    batching: Annotated[Batching, Meta(description="Small requests sent upstream together.")] = Batching()
    max_model_len: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="Context length in tokens, told to clients in `/v1/models`."),
    ] = None
