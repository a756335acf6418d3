"""A backend as the controller asks it: over a connection of its own each time, with the backend's key and TLS.

A new connection each time also tells whether new ones are taken. Answers are read up to a bound; what they mean is
the caller's to say.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from ..gateway.config import Backend, BackendTls
from ..gateway.upstream.origin import Origin


class Unanswered(Exception):
    """No whole answer came; the text says why."""


@dataclass(frozen=True, slots=True)
class TargetKey:
    """Backends that are alike in this are one target. model: only where the model itself is asked."""

    url: str
    api_key_env: str | None
    tls: BackendTls | None
    model: str | None
    protocol: str = "http1"


class Target:
    """One server. `indices`: the rows of the backend table that are about it."""

    __slots__ = ("_base", "_client", "_extensions", "_headers", "indices", "key", "name")

    def __init__(self, key: TargetKey, backend: Backend, environ: Mapping[str, str]) -> None:
        self.key = key
        self.name = Origin.parse(backend.url).name
        self.indices: set[int] = set()
        on_socket = backend.url.startswith("unix:")
        self._base = "http://localhost" if on_socket else backend.url.rstrip("/")
        tls = backend.tls or BackendTls()
        verify: ssl.SSLContext | bool = not tls.insecure
        if verify and tls.ca is not None:
            verify = ssl.create_default_context(cafile=tls.ca)
        transport = httpx.AsyncHTTPTransport(
            uds=backend.url.removeprefix("unix://") if on_socket else None,
            verify=verify,
            limits=httpx.Limits(max_keepalive_connections=0),
            # without HTTP/1.1 a server in the clear is taken to know HTTP/2
            http1=key.protocol == "http1",
            http2=key.protocol == "http2",
        )
        self._client = httpx.AsyncClient(transport=transport, trust_env=False)
        # encodings could make much of a little
        self._headers = {"accept-encoding": "identity"}
        if key.protocol == "http1":
            self._headers["connection"] = "close"
        api_key = environ.get(backend.api_key_env) if backend.api_key_env else None
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._extensions = {"sni_hostname": tls.server_name} if tls.server_name is not None else {}

    async def ask(
        self, path: str, *, timeout_s: float, most_bytes: int, body: bytes | None = None
    ) -> tuple[int, bytes]:
        """Status and body of the answer to GET, or to POST of a JSON `body`. Raises Unanswered."""
        headers = self._headers if body is None else {**self._headers, "content-type": "application/json"}
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._client.stream(
                    "GET" if body is None else "POST",
                    self._base + path,
                    headers=headers,
                    content=body,
                    extensions=self._extensions,
                    timeout=None,
                ) as answer,
            ):
                got = bytearray()
                async for piece in answer.aiter_raw(65_536):
                    got += piece
                    if len(got) > most_bytes:
                        raise Unanswered(f"more than {most_bytes} bytes")
                return answer.status_code, bytes(got)
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, TimeoutError, OSError) as fault:
            raise Unanswered(str(fault) or type(fault).__name__) from None

    async def close(self) -> None:
        """Close the client."""
        await self._client.aclose()
