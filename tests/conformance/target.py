"""What the suite talks to, and how it knocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx
from anthropic import Anthropic, AsyncAnthropic
from openai import AsyncOpenAI, OpenAI

from ..support.gateway import Gateway
from .tap import Exchange, Tap

TIMEOUT_S = 60.0

HOP_BY_HOP = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"),
        *("te", "trailer", "transfer-encoding", "upgrade"),
    }
)
OURS = frozenset({"x-request-id", "date", "server", "content-length"})


@dataclass(frozen=True)
class Answer:
    """A response as the client's socket gave it: header names in lower case, the body undecoded."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """The header's only value; None without one. Fails when there are two."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) < 2, f"{name} stands {len(values)} times: {values}"
        return values[0] if values else None

    def json(self) -> Any:
        return httpx.Response(200, content=self.body).json()

    def end_to_end(self) -> list[tuple[str, str]]:
        """The headers that must be the backend's own."""
        return end_to_end(self.headers)


def end_to_end(headers: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Headers without hop-by-hop ones and those that a gateway may set; sorted, for their order says nothing."""
    return sorted(
        (name, value)
        for name, value in headers
        if name not in HOP_BY_HOP | OURS and not name.startswith("x-penstock-")
    )


@dataclass(frozen=True)
class Target:
    """One server under test before one backend that is tapped.

    `real`: the backend is a vLLM, not the simulator. `gateway` is None when the suite talks to the backend directly.
    `pooling` is the model of embeddings and their kin, None where the backend has none. `backend` is its URL as the
    gateway knows it.
    """

    url: str
    model: str
    alias: str
    pooling: str | None
    key: str
    tap: Tap
    pooling_tap: Tap
    real: bool
    gateway: Gateway | None = None
    backend_key: str = ""
    names: tuple[str, ...] = field(default=())
    backend: str = ""

    def openai(self, **options: Any) -> OpenAI:
        settings: dict[str, Any] = {"max_retries": 0, "timeout": TIMEOUT_S, "api_key": self.key}
        return OpenAI(base_url=f"{self.url}/v1", **(settings | options))

    def async_openai(self, **options: Any) -> AsyncOpenAI:
        settings: dict[str, Any] = {"max_retries": 0, "timeout": TIMEOUT_S, "api_key": self.key}
        return AsyncOpenAI(base_url=f"{self.url}/v1", **(settings | options))

    def anthropic(self, **options: Any) -> Anthropic:
        settings: dict[str, Any] = {"max_retries": 0, "timeout": TIMEOUT_S, "auth_token": self.key}
        return Anthropic(base_url=self.url, **(settings | options))

    def async_anthropic(self, **options: Any) -> AsyncAnthropic:
        settings: dict[str, Any] = {"max_retries": 0, "timeout": TIMEOUT_S, "auth_token": self.key}
        return AsyncAnthropic(base_url=self.url, **(settings | options))

    def ask(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Answer:
        """One request on a connection of its own, nothing decoded on the way."""
        fields = {"authorization": f"Bearer {self.key}", "accept-encoding": "identity", **(headers or {})}
        with (
            httpx.Client(timeout=TIMEOUT_S, trust_env=False) as client,
            client.stream(
                method, self.url + path, json=json, content=content, headers=fields, **options
            ) as response,
        ):
            body = b"".join(response.iter_raw())
            pairs = [
                (key.decode("latin-1").lower(), value.decode("latin-1"))
                for key, value in response.headers.raw
            ]
            return Answer(response.status_code, pairs, body)

    def post(self, path: str, body: Any, **options: Any) -> Answer:
        """POSTs JSON."""
        return self.ask("POST", path, json=body, **options)

    def tapped(self, path: str, body: Any, *, tap: Tap | None = None) -> tuple[Answer, Exchange]:
        """POSTs JSON; the client's answer, and the exchange it caused with the backend."""
        request_id = f"conformance-{uuid4().hex}"
        answer = self.post(path, body, headers={"x-request-id": request_id})
        return answer, (tap or self.tap).of(request_id)


def assert_same(answer: Answer, exchange: Exchange) -> None:
    """The client got what the backend sent: status, every end-to-end header, every byte."""
    assert answer.status == exchange.status
    assert answer.body == exchange.response.body
    theirs = [(name, value.decode("latin-1")) for name, value in exchange.response.headers]
    assert answer.end_to_end() == end_to_end(theirs)
    length = answer.header("content-length")
    assert length is None or int(length) == len(answer.body)
