"""What a configuration comes to once it is known where servers are: those behind names, and the members of pools.

Pure. A server that was found is a backend like any other: its URL has the address and the port, the other keys are
those that were written for the name. Towards an `https` server the name stays what is asked for and verified: of an
SRV record the domain it was asked of, because the target stands in an answer that anybody may have forged.

Weights of SRV records (RFC 2782) are shares within one priority: they are scaled so that their mean is the backend's
own `weight`. Their priorities become tiers, the lowest number that of the backend, the next one above it, and so on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from msgspec.structs import replace

from ..gateway.config import MAX_BACKENDS, Backend, BackendTls, Config, Model, Server, places_itself

_LEAST_WEIGHT, _MOST_WEIGHT = 0.001, 1000.0
_MOST_TIER = 99

Found = Mapping[str, tuple[Server, ...]]
"""By `name_of`: what a look-up gave last; by `member_name`: where a member of a pool answered last."""


def name_of(backend: Backend) -> str | None:
    """What is looked up for a backend, `dns <name>` or `srv <name>`; None for one that says where it is."""
    return f"{backend.discover} {urlsplit(backend.url).hostname}" if backend.discover else None


def names_in(config: Config) -> list[str]:
    """All that is to be looked up, each once."""
    backends = (backend for model in config.models.values() for backend in model.backends)
    return list(dict.fromkeys(name for backend in backends if (name := name_of(backend)) is not None))


def member_name(model: str, member: int) -> str:
    """Under what it is kept where a member of a model's pool answers."""
    return f"pool {member} {model}"


def members_in(config: Config) -> list[str]:
    """All members that pools whose providers place them may have."""
    return [
        member_name(name, member)
        for name, model in config.models.items()
        if model.pool is not None and places_itself(model)
        for member in range(model.pool.max)
    ]


def expand(config: Config, found: Found, columns: Mapping[str, int] | None = None) -> tuple[Config, int]:
    """`config` with each discovering backend replaced by the servers found for it, maybe none, and each pool with the
    members that have been placed; and how many are left out because there is no column for them.

    columns: those of the generation before, by `<model>\\n<url>`. They stay taken for one generation more, so where
    most servers are others than before, some come in with the generation after this one.
    """
    if not names_in(config) and not members_in(config):
        return config, 0
    taken = set(columns or ()) | {
        f"{name}\n{backend.url}"
        for name, model in config.models.items()
        for backend in model.backends
        if backend.discover is None
    }
    left_out = 0
    models = {}
    for name, model in config.models.items():
        seen = {backend.url.rstrip("/") for backend in model.backends if backend.discover is None}
        backends: list[Backend] = []
        for backend in (*model.backends, *_members(name, model, found)):
            known = name_of(backend)
            if known is None and backend in model.backends:
                backends.append(backend)
                continue
            for one in _servers(backend, found.get(known, ())) if known is not None else (backend,):
                if one.url.rstrip("/") in seen:
                    continue
                key = f"{name}\n{one.url}"
                if key not in taken and len(taken) >= MAX_BACKENDS:
                    left_out += 1
                    continue
                seen.add(one.url.rstrip("/"))
                taken.add(key)
                backends.append(one)
        models[name] = replace(model, backends=tuple(backends))
    return replace(config, models=models), left_out


def _members(name: str, model: Model, found: Found) -> list[Backend]:
    """The members of a pool, as far as they have been placed; each takes `max_concurrent` requests."""
    pool = model.pool
    if pool is None or not places_itself(model):
        return []
    made = []
    for member in range(pool.max):
        for server in found.get(member_name(name, member), ()):
            host = f"[{server.address}]" if ":" in server.address else server.address
            url = f"http://{host}:{server.port}"
            limit = model.max_concurrent if pool.max > 1 else None
            made.append(Backend(url=url, api_key_env=pool.api_key_env, max_concurrent=limit))
    return made


def _servers(backend: Backend, found: Sequence[Server]) -> list[Backend]:
    parts = urlsplit(backend.url)
    tls = backend.tls
    if parts.scheme == "https":
        tls = tls or BackendTls()
        if tls.server_name is None:
            tls = replace(tls, server_name=_domain(parts.hostname or ""))
    tiers = {priority: tier for tier, priority in enumerate(sorted({one.priority for one in found}))}
    made = []
    for one in found:
        host = f"[{one.address}]" if ":" in one.address else one.address
        port = one.port or parts.port
        weight = backend.weight
        if one.port is not None:
            beside = [other.weight for other in found if other.priority == one.priority]
            weight *= one.weight * len(beside) / sum(beside) if any(beside) else 1.0
        made.append(
            replace(
                backend,
                url=f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path}",
                weight=round(min(max(weight, _LEAST_WEIGHT), _MOST_WEIGHT), 3),
                priority=min(backend.priority + tiers[one.priority], _MOST_TIER),
                tls=tls,
                discover=None,
            )
        )
    return made


def _domain(name: str) -> str:
    """What a service's records are about: `_http._tcp.vllm.lan` is asked of `vllm.lan`."""
    labels = name.rstrip(".").split(".")
    while len(labels) > 1 and labels[0].startswith("_"):
        labels.pop(0)
    return ".".join(labels)
