"""The same user at the same backend, as long as that is not overloaded.

The key is the body's ``user`` (for Anthropic's API ``metadata.user_id``) within the tenant, else the tenant where API
keys say one. A request that has neither has no affinity.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def user_key(fields: Mapping[str, Any], tenant: str | None) -> bytes | None:
    """What ties a request to a backend; None: nothing does. ``tenant``: None where no keys tell callers apart."""
    user = fields.get("user")
    if not isinstance(user, str) or not user:
        metadata = fields.get("metadata")
        user = metadata.get("user_id") if isinstance(metadata, dict) else None
    if isinstance(user, str) and user:
        return f"{tenant or ''}\n{user}".encode("utf-8", "surrogatepass")
    return tenant.encode("utf-8", "surrogatepass") if tenant else None
