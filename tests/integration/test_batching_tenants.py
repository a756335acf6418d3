"""An error to requests of several tenants that went upstream together: nobody reads what it says of the others."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from ..support.gateway import gateway
from ..support.procs import wait_until
from ..support.scripted import Peer, on_uvloop, scripted
from .test_keys import create

EMBED = "/v1/embeddings"


async def quoting(peer: Peer) -> None:
    """A server that has too much to do and says what it was asked."""
    while True:
        head, body = await peer.request()
        answer = b"<p>" + body if head.startswith(b"POST /v1/embeddings") else b"{}"
        status = b"429 Too Many Requests" if answer != b"{}" else b"200 OK"
        await peer.send(
            b"HTTP/1.1 %s\r\ncontent-type: text/html\r\nretry-after: 7\r\ncontent-length: %d\r\n\r\n%s"
            % (status, len(answer), answer)
        )


@pytest.mark.parametrize("tenants", [("a", "b"), ("a", "a")])
def test_an_error_is_passed_on_as_it_is_to_one_tenant_alone(tmp_path: Path, tenants: tuple[str, str]) -> None:
    @on_uvloop
    async def check() -> None:
        async with scripted(quoting) as server:
            batching = {"window_ms": 1000, "max_items": 2, "usage": "shared"}
            config = {
                "keys": {"file": str(tmp_path / "keys.yaml")},
                "models": {"m": {"backends": [{"url": server.url}], "batching": batching}},
            }
            await asyncio.to_thread(converse, config, tenants)

    check()


def converse(config: dict[str, object], tenants: tuple[str, str]) -> None:
    with gateway(config) as gate, ThreadPoolExecutor(2) as threads:
        secrets = [create(gate.file, tenant=tenant)[1] for tenant in tenants]
        headers = [{"authorization": f"Bearer {secret}"} for secret in secrets]

        def known() -> bool:
            return all(
                httpx.get(f"{gate.url}/v1/models", headers=one, trust_env=False).is_success for one in headers
            )

        def embed(text: str, one: dict[str, str]) -> httpx.Response:
            body = {"model": "m", "input": text}
            return httpx.post(f"{gate.url}{EMBED}", json=body, headers=one, timeout=30, trust_env=False)

        wait_until(known, 20, "the keys count")
        texts = ["secret of one", "secret of two"]
        replies = list(threads.map(embed, texts, headers))
    assert [reply.status_code for reply in replies] == [429, 429]
    assert {reply.headers["retry-after"] for reply in replies} == {"7"}
    for reply in replies:
        told = [text for text in texts if text in reply.text]
        if tenants[0] == tenants[1]:
            assert told == texts, "byte for byte"
        else:
            assert told == []
            assert reply.headers["content-type"] == "application/json"
            assert json.loads(reply.text)["error"]["type"] == "rate_limit_error"
