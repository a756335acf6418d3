"""How a Redis is reached, wherever the configuration names one; `structs` says what goes for all of it."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from .fields import Env, EnvName


class RedisTls(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """For `rediss` URLs: how the server is verified, and what is shown to it."""

    ca: Annotated[
        Env | None,
        Meta(
            description="PEM file of trusted authorities; a relative path starts at the configuration's folder. "
            "Absent: the system's."
        ),
    ] = None
    cert: Annotated[
        Env | None, Meta(description="PEM file of the client's certificate; relative as `ca`.")
    ] = None
    key: Annotated[Env | None, Meta(description="PEM file of its private key; relative as `ca`.")] = None


class RedisServer(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A Redis: one server, a service behind Sentinel, or a cluster."""

    url: Annotated[
        Env,
        Meta(
            description="`redis://host:port/db`, or `rediss://` for TLS; no user or password in it. With Sentinel "
            "the host is the service's name."
        ),
    ]
    topology: Annotated[
        Literal["single", "sentinel", "cluster"], Meta(description="What answers at the URL.")
    ] = "single"
    nodes: Annotated[
        tuple[Env, ...],
        Meta(description="`host:port` of the sentinels, or of further nodes of the cluster."),
    ] = ()
    username: Annotated[Env | None, Meta(description="ACL user. Absent: the default user.")] = None
    password_env: Annotated[
        EnvName | None, Meta(description="Name of the environment variable that holds the password.")
    ] = None
    tls: Annotated[RedisTls | None, Meta(description="For `rediss` URLs.")] = None
    prefix: Annotated[
        Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")],
        Meta(description="What every key begins with; nodes that belong together have the same."),
    ] = "penstock"
