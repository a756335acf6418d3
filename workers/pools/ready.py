"""Waiting until a server answers: asked again and again, over a connection of its own each time, until it says 2xx.

A new connection each time tells that new ones are taken. What a server sends is read up to a bound; one that takes
the question and gives no answer is asked anew after a while. It refuses to know how long is too long: that is the
caller's `asyncio.timeout`.
"""

from __future__ import annotations

import asyncio
import ssl

import httpx

ANSWER_S = 5.0
"""Of one question; a server that starts may accept a connection long before it reads from it."""
MOST_BYTES = 64 << 10


async def until_ready(
    url: str,
    *,
    path: str,
    api_key: str | None,
    every_s: float = 0.25,
    verify: ssl.SSLContext | bool = True,
) -> None:
    """Return when GET `url` + `path` is answered with 2xx; for ever if need be.

    api_key: sent as `Authorization: Bearer`. verify: how an `https` server proves who it is.
    """
    async with client_for(url, verify) as client:
        while True:
            if await is_ready(client, url, path=path, api_key=api_key):
                return
            await asyncio.sleep(every_s)


def client_for(url: str, verify: ssl.SSLContext | bool = True) -> httpx.AsyncClient:
    """A client that keeps no connection, and takes nothing from the environment."""
    transport = httpx.AsyncHTTPTransport(
        # authorities are read from disk for those alone that prove who they are
        verify=verify if url.startswith("https:") else False,
        limits=httpx.Limits(max_keepalive_connections=0),
    )
    return httpx.AsyncClient(transport=transport, trust_env=False)


async def is_ready(
    client: httpx.AsyncClient, url: str, *, path: str, api_key: str | None, timeout_s: float = ANSWER_S
) -> bool:
    """Whether the server answers 2xx now."""
    headers = {"accept-encoding": "identity", "connection": "close"}
    if api_key:
        headers["authorization"] = f"Bearer {api_key}"
    try:
        async with (
            asyncio.timeout(timeout_s),
            client.stream("GET", url.rstrip("/") + path, headers=headers, timeout=None) as answer,
        ):
            got = 0
            async for piece in answer.aiter_raw(16_384):
                got += len(piece)
                if got > MOST_BYTES:
                    break
            return answer.is_success
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, TimeoutError, OSError):
        return False
