"""How the Kubernetes API is reached: as the configuration says, else as a Pod finds it.

A Pod has the server in two environment variables and token, authority and namespace in files (Kubernetes, "Accessing
the API from within a Pod"). What is read here is bounded; the token is read again for each request, since the kubelet
puts a new one in its place well before the old one expires.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ....gateway.config import KubernetesApi
from .base import ProviderFault

IN_POD = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_MOST_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class KubeAccess:
    """server: without a slash at its end. token_file, ca: None where there is none. namespace: the gateway's own."""

    server: str
    token_file: Path | None = None
    ca: Path | None = None
    namespace: str = "default"

    @classmethod
    def of(cls, terms: KubernetesApi, environ: Mapping[str, str], folder: Path = IN_POD) -> KubeAccess:
        """What holds here. Raises ProviderFault where nothing says how the API is reached."""
        server = terms.server
        if server is None:
            host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT", "443")
            if not host:
                raise ProviderFault(
                    "the Kubernetes API is not known: this is no Pod, and `pools.kubernetes.server` is absent"
                )
            server = f"https://{f'[{host}]' if ':' in host else host}:{port}"
        token = Path(terms.token_file) if terms.token_file else _if_there(folder / "token", terms.server)
        ca = Path(terms.ca) if terms.ca else _if_there(folder / "ca.crt", terms.server)
        try:
            namespace = read_file(folder / "namespace") or "default"
        except OSError:
            namespace = "default"
        return cls(server.rstrip("/"), token, ca, namespace)

    def token(self) -> str | None:
        """The bearer token as it is now. Raises ProviderFault when it cannot be read."""
        if self.token_file is None:
            return None
        try:
            token = read_file(self.token_file)
        except OSError as fault:
            raise ProviderFault(f"the Kubernetes token cannot be read: {fault.strerror}") from None
        if not token.isascii() or not token.isprintable():
            raise ProviderFault("the Kubernetes token is not printable ASCII")
        return token


def _if_there(path: Path, server: str | None) -> Path | None:
    """A Pod's own file; never sent to, nor trusted of, a server that the configuration names."""
    return path if server is None and path.exists() else None


def read_file(path: Path) -> str:
    """A short text file, stripped. Raises OSError."""
    with path.open("rb") as file:
        return file.read(_MOST_BYTES).decode(errors="replace").strip()
