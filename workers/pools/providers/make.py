"""Which provider a pool has, and what each is given."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ....gateway.config import Backend, Config, Model, Published
from ....gateway.config.pool import DockerPool, KubernetesPool, ProcessPool, WebhookPool
from ..processes.ports import Ports
from .base import Provider
from .docker import DockerProvider
from .kubernetes import kubernetes_provider
from .process import ProcessProvider
from .webhook import WebhookProvider


@dataclass(frozen=True, slots=True)
class Site:
    """What a provider is made from. name: of the model, which the pool is called by too.

    state: this gateway's state folder. published: the current generation, for who needs to know the backends of now.
    """

    name: str
    model: Model
    config: Config
    environ: Mapping[str, str]
    state: Path
    ports: Ports
    published: Callable[[], Published]

    def backends(self) -> tuple[Backend, ...]:
        """The backends of now, with those that have been found."""
        model = self.published().config.models.get(self.name)
        return model.backends if model is not None else ()


def provider_of(site: Site) -> Provider:
    """The provider of a model's pool."""
    pool, environ = site.model.pool, site.environ
    health = site.config.health.path
    key = environ.get(pool.api_key_env) if pool is not None and pool.api_key_env else None
    match pool:
        case ProcessPool():
            return ProcessProvider(
                site.name, pool, site.config, environ=environ, state=site.state, ports=site.ports
            )
        case DockerPool():
            return DockerProvider(site.state, site.name, pool, health_path=health, api_key=key)
        case KubernetesPool():
            return kubernetes_provider(site.name, site.model, site.config, site.backends, environ)
        case WebhookPool():
            return WebhookProvider(
                site.name, site.model, site.backends, health_path=health, environ=environ, now_s=time.time
            )
        case _:
            raise TypeError(f"no provider for {pool!r}")
