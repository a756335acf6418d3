"""Who asks: what a request's API key says of it, or the one caller there is where no keys are configured."""

from __future__ import annotations


class Caller:
    """One API key as requests see it; immutable by convention, one object per key and generation of the keys.

    ``models``: the names it may use, None for all. ``priority``: lower is served first when requests wait.
    ``weight``: the tenant's share beside other tenants that wait. ``rpm``, ``tpm``, ``concurrent``: requests and
    tokens a minute and requests at a time, 0 for no limit; ``burst``: requests that may come at once. ``row``: its
    cells for limits in the shared segment, -1 when it has none.
    """

    __slots__ = (
        *(
            "burst",
            "concurrent",
            "expires_s",
            "id",
            "models",
            "priority",
            "row",
            "rpm",
            "tenant",
            "tpm",
            "weight",
        ),
    )

    def __init__(
        self,
        tenant: str,
        *,
        id: str = "",
        models: frozenset[str] | None = None,
        priority: int = 0,
        weight: float = 1.0,
        rpm: int = 0,
        tpm: int = 0,
        concurrent: int = 0,
        burst: int = 0,
        expires_s: float = 0.0,
        row: int = -1,
    ) -> None:
        self.tenant = tenant
        self.id = id
        self.models = models
        self.priority = priority
        self.weight = weight
        self.rpm = rpm
        self.tpm = tpm
        self.concurrent = concurrent
        self.burst = burst
        #: seconds since the epoch, 0 for never
        self.expires_s = expires_s
        self.row = row

    def may_use(self, name: str, model: str) -> bool:
        """Whether it may use a model, by its own name or by the name (an alias, say) that the request has for it."""
        models = self.models
        return models is None or model in models or name in models


#: Everybody, where no keys are configured.
ANYONE = Caller("default")
