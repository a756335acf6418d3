"""The configuration tree: every key, its type, its bounds, its default and the sentence that explains it.

Nothing else in Penstock holds a default, and only keys that have an effect are here. The JSON Schema, the
reference page and the checks of a file are all made from these Structs. This file does not read files, the
environment or the machine (`load` and `check` beside it do).

Units are in the names: `_s` seconds. Sizes are bytes; in a file they may be written `10MiB` (`Size`).
`Env` marks the few text fields in which `${NAME}` is replaced from the environment.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from .cache import Cache
from .fields import GIB, HEALTH_PATH, MIB, Duration, Env, EnvName, Port, Size, Wait, Zone
from .model import Model
from .pool import Pools
from .redis import RedisServer
from .store import Store

MAX_BACKENDS = 256
MAX_MODELS = 256
STDERR = "stderr"
"""What `log.access.path` calls standard error."""


class Tls(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The certificate shown to clients."""

    cert: Annotated[
        Env,
        Meta(
            description="PEM file with the certificate and its chain; "
            "a relative path starts at the configuration's folder."
        ),
    ]
    key: Annotated[
        Env,
        Meta(
            description="PEM file with the private key, not encrypted; "
            "a relative path starts at the configuration's folder."
        ),
    ]


class Listen(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where clients connect, and how long Penstock waits for them."""

    host: Annotated[Env, Meta(description="Address the API port is bound to.")] = "0.0.0.0"
    port: Annotated[Port, Meta(description="The API port.")] = 8080
    http: Annotated[
        Literal["1", "auto"],
        Meta(description='`"1"`: HTTP/1.1 alone. `auto`: HTTP/2 as well, to clients that ask for it.'),
    ] = "1"
    tls: Annotated[Tls | None, Meta(description="Absent: clients connect without TLS.")] = None
    uds: Annotated[Env | None, Meta(description="Path of a Unix socket to listen on besides the port.")] = (
        None
    )
    max_connections: Annotated[
        int,
        Meta(
            ge=16,
            le=1_000_000,
            description="Open client connections per worker, a quarter of them on the Unix socket where there "
            "is one; the next one waits until one is closed.",
        ),
    ] = 16_384
    read_timeout_s: Annotated[
        Duration,
        Meta(
            description="A connection on which a request's header does not come, or comes too slowly, is closed "
            "after this long; a long body must have come after it."
        ),
    ] = 120.0
    body_timeout_s: Annotated[
        Duration, Meta(description="A request body that has not arrived whole after this long is given up.")
    ] = 30.0
    write_timeout_s: Annotated[
        Duration, Meta(description="A client that accepts no byte of its stream for this long is dropped.")
    ] = 30.0
    keep_alive_s: Annotated[
        Duration,
        Meta(
            description="An idle client connection is closed after this long. On the Unix socket the longer of "
            "this and `read_timeout_s` counts for both."
        ),
    ] = 300.0


class Admin(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The operator's port: metrics and status."""

    host: Annotated[
        Env, Meta(description="Address the admin port is bound to; any but loopback needs `key_env`.")
    ] = "127.0.0.1"
    port: Annotated[Port, Meta(description="The admin port.")] = 9090
    key_env: Annotated[
        EnvName | None, Meta(description="Name of the environment variable that holds the admin key.")
    ] = None
    on_api_port: Annotated[
        bool, Meta(description="Serve the admin paths on the API port too; needs `key_env`.")
    ] = False


class Workers(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The processes that carry requests: one per core, pinned."""

    count: Annotated[
        Annotated[int, Meta(ge=1, le=256)] | Literal["auto"],
        Meta(
            description="How many. `auto`: from the affinity mask and the cgroup's quota; "
            "from 8 cores up one is left to the controller and one to the system."
        ),
    ] = "auto"
    cores: Annotated[
        tuple[Annotated[int, Meta(ge=0, le=4095)], ...] | None,
        Meta(description="The cores workers are pinned to, in order. Absent: all this process may use."),
    ] = None
    drain_delay_s: Annotated[
        Wait,
        Meta(description="After SIGTERM, how long connections are still accepted while `/ready` says 503."),
    ] = 2.0
    drain_timeout_s: Annotated[
        Duration,
        Meta(
            description="After this long a drain ends; one second before, open streams get their error frame."
        ),
    ] = 30.0


class Limits(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bounds on memory."""

    max_body: Annotated[Size, Meta(description="Largest request body; a larger one gets 413.")] = 10 * MIB
    max_response: Annotated[
        Size, Meta(description="Largest response of unknown length that is gathered before it is sent.")
    ] = 64 * MIB
    max_buffered: Annotated[
        Size,
        Meta(description="Bytes of requests and responses held on this node; over it new bodies get 429."),
    ] = 2 * GIB
    redis: Annotated[
        RedisServer | None,
        Meta(
            description="Where nodes share what their keys have used; an instance with `noeviction`. Absent: limits "
            "hold on each node for itself."
        ),
    ] = None


class Node(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """This node among others."""

    zone: Annotated[
        Zone | None,
        Meta(description="Where it stands: backends of the same zone come first. Absent: all are alike."),
    ] = None


class Keys(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where API keys are kept, as hashes; `penstock keys` makes and revokes them. One of the two."""

    file: Annotated[
        Env | None,
        Meta(description="A YAML file; a relative path starts at the configuration's folder."),
    ] = None
    redis: Annotated[
        RedisServer | None, Meta(description="A Redis that nodes share; an instance with `noeviction`.")
    ] = None


class Breaker(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When a backend that fails is left alone. Failures are broken connections, 5xx and deadlines, never 4xx."""

    failures: Annotated[
        int, Meta(ge=1, le=1000, description="Failures in a row, of all workers, that open it.")
    ] = 5
    open_s: Annotated[
        Duration, Meta(description="How long it stays open before one request may try the backend.")
    ] = 5.0


class Discovery(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How names of backends with `discover` are resolved."""

    refresh_s: Annotated[Duration, Meta(description="Time between two look-ups of a name.")] = 5.0
    nameservers: Annotated[
        tuple[Env, ...], Meta(description="`address` or `address:port` each. Absent: the system's.")
    ] = ()


class Health(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How backends are probed."""

    interval_s: Annotated[Duration, Meta(description="Time between two probes of one backend.")] = 2.0
    timeout_s: Annotated[Duration, Meta(description="A probe that takes longer has failed.")] = 2.0
    rise: Annotated[int, Meta(ge=1, le=100, description="Successes in a row that bring a backend back.")] = 1
    fall: Annotated[int, Meta(ge=1, le=100, description="Failures in a row that take a backend out.")] = 2
    slow_start_s: Annotated[
        Wait,
        Meta(
            description="A backend that is new or has come back gets its full share only after this long; 0: at once."
        ),
    ] = 10.0
    completion: Annotated[
        bool,
        Meta(
            description="Ask for a completion of one token instead of `path`: it proves that the model answers."
        ),
    ] = False
    path: Annotated[
        str, Meta(pattern=HEALTH_PATH, description="Path that is asked; any 2xx answer is a success.")
    ] = "/health"


class Access(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The access log: a line of JSON for each request."""

    path: Annotated[
        Env,
        Meta(
            description="A file, which may be moved away at any time, or `stderr`; a relative path starts at the "
            "configuration's folder."
        ),
    ] = STDERR
    sample: Annotated[
        float,
        Meta(ge=0, le=1, description="The share of requests that is written; those that failed always are."),
    ] = 1.0


class Log(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is written to standard error, and of requests."""

    level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"], Meta(description="The lowest level that is written.")
    ] = "INFO"
    access: Annotated[Access | None, Meta(description="A line for each request. Absent: none.")] = None


class Telemetry(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Traces for OpenTelemetry; needs the extra `otel`."""

    otlp_endpoint: Annotated[
        Env, Meta(description="URL at which a collector takes OTLP over HTTP; `/v1/traces` is added to it.")
    ]
    sample_ratio: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="The share of requests that is traced, of those without a valid `traceparent`; of "
            "the others its flag decides.",
        ),
    ] = 1.0
    headers_env: Annotated[
        EnvName | None,
        Meta(
            description="Name of the environment variable that holds header fields for the collector: "
            "`name=value,name=value`."
        ),
    ] = None


class Connections(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Idle connections kept to each backend, by all workers of the node together."""

    min_idle: Annotated[
        int,
        Meta(ge=0, le=10_000, description="Kept past `idle_s` where the backend is known to keep longer."),
    ] = 5
    max_idle: Annotated[int, Meta(ge=0, le=10_000, description="At most this many are kept.")] = 50
    idle_s: Annotated[
        Duration,
        Meta(description="An idle connection is closed after this long; vLLM closes its own after 5 s."),
    ] = 4.0


class Http2(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Connections to backends with `protocol: http2`, per backend, by all workers of the node together."""

    min_connections: Annotated[
        int, Meta(ge=1, le=1000, description="Streams are spread over so many before one gets a second.")
    ] = 10
    max_connections: Annotated[int, Meta(ge=1, le=1000, description="At most so many.")] = 100
    max_streams: Annotated[
        int,
        Meta(
            ge=1, le=10_000, description="Requests on one connection at a time; the backend may allow fewer."
        ),
    ] = 100


class UpstreamSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The client side: connections to backends."""

    connections: Annotated[Connections, Meta(description="Idle connections, per backend and node.")] = (
        Connections()
    )
    http2: Annotated[Http2, Meta(description="For backends with `protocol: http2`.")] = Http2()
    dns_ttl_s: Annotated[Wait, Meta(description="How long a resolved address is used.")] = 300.0
    tls_session_s: Annotated[Wait, Meta(description="How long a TLS session is offered for resumption.")] = (
        3600.0
    )


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything a Penstock node is told."""

    models: Annotated[dict[str, Model], Meta(min_length=1, description="The models, by name.")]
    listen: Annotated[Listen, Meta(description="The API port.")] = Listen()
    admin: Annotated[Admin, Meta(description="The admin port.")] = Admin()
    workers: Annotated[Workers, Meta(description="Processes and the drain.")] = Workers()
    limits: Annotated[Limits, Meta(description="Bounds on memory.")] = Limits()
    node: Annotated[Node, Meta(description="This node among others.")] = Node()
    cache: Annotated[Cache, Meta(description="Answers that are kept.")] = Cache()
    keys: Annotated[Keys | None, Meta(description="API keys. Absent: every client is served.")] = None
    store: Annotated[Store | None, Meta(description="What nodes share of this. Absent: the file alone.")] = (
        None
    )
    health: Annotated[Health, Meta(description="Probes of backends.")] = Health()
    breaker: Annotated[Breaker, Meta(description="Backends that fail.")] = Breaker()
    discovery: Annotated[Discovery, Meta(description="Backends found by name.")] = Discovery()
    log: Annotated[Log, Meta(description="The log.")] = Log()
    telemetry: Annotated[Telemetry | None, Meta(description="Traces. Absent: none are made.")] = None
    upstream: Annotated[UpstreamSettings, Meta(description="Connections to backends.")] = UpstreamSettings()
    pools: Annotated[Pools, Meta(description="What pools of servers that sleep share.")] = Pools()
