"""Requests as the modules behind the parser get them, for their tests."""

from typing import Any

import msgspec

from penstock.gateway.endpoints import ENDPOINTS, Endpoint
from penstock.gateway.parse import Parser, Request
from penstock.gateway.raw import RawRequest

CHAT = ENDPOINTS["/v1/chat/completions"]

SMALLEST: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/embeddings": {"input": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/rerank": {"query": "q", "documents": ["a"]},
    "/rerank": {"query": "q", "documents": ["a"]},
    "/v2/rerank": {"query": "q", "documents": ["a"]},
    "/v1/score": {"text_1": "a", "text_2": "b"},
    "/score": {"text_1": "a", "text_2": "b"},
    "/classify": {"input": "hi"},
    "/pooling": {"input": "hi"},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [1]},
}
"""The least body of each endpoint that takes JSON, but for its model."""


def raw(body: bytes, content_type: str = "application/json", query: str = "") -> RawRequest:
    """A request as the adapter hands it over."""
    return RawRequest("POST", "/", query, "", content_type, "id-1", body)


def parsed(fields: dict[str, Any], endpoint: Endpoint = CHAT) -> Request:
    """These fields, encoded and parsed."""
    return Parser().parse(endpoint, raw(msgspec.json.encode(fields)))


def chat(**fields: Any) -> dict[str, Any]:
    """A chat request with further fields."""
    return {"model": "m", **SMALLEST["/v1/chat/completions"], **fields}


def form(*parts: tuple[str, bytes], boundary: bytes = b"XyZ", file: bytes = b"RIFF....") -> tuple[bytes, str]:
    """A multipart body of these fields and one file, and its Content-Type."""
    lines = [
        b'--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (boundary, name.encode(), value)
        for name, value in parts
    ]
    lines.insert(
        len(lines) // 2,
        b'--%b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
        b"Content-Type: audio/wav\r\n\r\n%b\r\n" % (boundary, file),
    )
    return b"".join(lines) + b"--%b--\r\n" % boundary, f"multipart/form-data; boundary={boundary.decode()}"
