"""`provider: kubernetes`: which of its two kinds a pool is, and what each is given."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ....gateway.config import Backend, Config, KubernetesPool, Model
from .base import Provider
from .kube_access import IN_POD, KubeAccess
from .kube_api import KubeApi
from .kube_pod import PodPlan
from .kube_pods import PodsProvider
from .kube_scale import ScaleProvider
from .kube_terms import KubeTerms
from .reach import Reach


def kubernetes_provider(
    name: str,
    model: Model,
    config: Config,
    found: Callable[[], Sequence[Backend]],
    environ: Mapping[str, str],
    folder: Path = IN_POD,
) -> Provider:
    """The provider of a model whose pool is a KubernetesPool.

    found: the model's backends now, with those that have been discovered. folder: where a Pod finds its token.
    Raises ProviderFault where nothing says how the Kubernetes API is reached.
    """
    pool = model.pool
    assert isinstance(pool, KubernetesPool)
    access = KubeAccess.of(config.pools.kubernetes, environ, folder)
    api = KubeApi(access, clock=time.monotonic)
    namespace = pool.namespace or access.namespace
    terms = KubeTerms(
        time.monotonic,
        config.health.path,
        environ.get(pool.api_key_env) if pool.api_key_env else None,
        config.pools.lease is not None,
    )
    if pool.vllm_model is not None:
        return PodsProvider(api, PodPlan(name, namespace, pool, config.health.path), pool.vllm_model, terms)
    reach = Reach(model.backends, found, members=pool.max, health_path=config.health.path, environ=environ)
    return ScaleProvider(api, pool, namespace, reach, terms)
