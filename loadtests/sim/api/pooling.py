"""Endpoints that read text and answer with numbers: embeddings, rerank, score, classify, pooling.

A text's numbers depend on the text alone, so they are the same in any batch and on any server.
"""

from __future__ import annotations

import base64
import struct
from typing import Any

from ..exchange import Exchange
from ..model import text
from ..model.runner import Job
from . import body as fields
from .chat import render
from .context import Context
from .errors import ApiError
from .generation import prompt_tokens

_MAX_TEXTS = 2048
_MAX_NUMBERS = 1 << 20


async def embeddings(context: Context, exchange: Exchange) -> None:
    """POST /v1/embeddings, floats or base64 of little-endian float32."""
    body = fields.decode(exchange.request)
    model, texts = context.model(body), _inputs(body)
    kind = fields.optional(body, "encoding_format", str) or "float"
    if kind not in ("float", "base64"):
        raise ApiError(400, "Input should be 'float' or 'base64'", param="encoding_format")
    dimensions = fields.integer(body, "dimensions", context.settings.embedding_dim, 1, 65_536)
    if len(texts) * dimensions > _MAX_NUMBERS:
        raise ApiError(400, f"at most {_MAX_NUMBERS} numbers in an answer", param="dimensions")
    used = await _read(context, texts)
    data = []
    for index, item in enumerate(texts):
        vector: Any = text.vector(text.seed_of_bytes(item, "embed"), dimensions)
        if kind == "base64":
            vector = base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode()
        data.append({"index": index, "object": "embedding", "embedding": vector})
    await exchange.json(200, _list("embd-", context, body, model, data, used))


async def pooling(context: Context, exchange: Exchange) -> None:
    """POST /pooling: raw pooled vectors."""
    body = fields.decode(exchange.request)
    model, texts = context.model(body), _inputs(body)
    used = await _read(context, texts)
    size = context.settings.embedding_dim
    data = [
        {"index": i, "object": "pooling", "data": text.vector(text.seed_of_bytes(item, "pool"), size)}
        for i, item in enumerate(texts)
    ]
    await exchange.json(200, _list("pool-", context, body, model, data, used))


async def classify(context: Context, exchange: Exchange) -> None:
    """POST /classify: two classes."""
    body = fields.decode(exchange.request)
    model, texts = context.model(body), _inputs(body)
    used = await _read(context, texts)
    data = []
    for index, item in enumerate(texts):
        first = _unit(item, b"class")
        probs = [first, 1.0 - first]
        label = f"LABEL_{probs.index(max(probs))}"
        data.append({"index": index, "label": label, "probs": probs, "num_classes": 2})
    await exchange.json(200, _list("classify-", context, body, model, data, used))


async def score(context: Context, exchange: Exchange) -> None:
    """POST /v1/score: text_1 (one or many) against text_2; also queries/documents, as newer vLLM has it."""
    body = fields.decode(exchange.request)
    model = context.model(body)
    left = _field(body, ("text_1", "queries", "data_1"))
    right = _field(body, ("text_2", "documents", "items", "data_2"))
    if len(left) == 1:
        left *= len(right)
    if len(left) != len(right):
        raise ApiError(400, "Input lengths must be either 1:1, 1:N or N:N", param="text_1")
    used = await _read(context, [a + b for a, b in zip(left, right, strict=True)])
    data = [
        {"index": i, "object": "score", "score": _unit(a, b)}
        for i, (a, b) in enumerate(zip(left, right, strict=True))
    ]
    await exchange.json(200, _list("score-", context, body, model, data, used))


async def rerank(context: Context, exchange: Exchange) -> None:
    """POST /v1/rerank: documents by falling relevance; top_n cuts, 0 means all."""
    body = fields.decode(exchange.request)
    model = context.model(body)
    query = fields.required(body, "query", str).encode("utf-8", "replace")
    documents = _documents(body)
    top = fields.integer(body, "top_n", 0, 0, 1 << 31) or len(documents)
    used = await _read(context, [query + d.encode("utf-8", "replace") for d in documents])
    results = [
        {
            "index": i,
            "document": {"text": d, "multi_modal": None},
            "relevance_score": _unit(query, d.encode("utf-8", "replace")),
        }
        for i, d in enumerate(documents)
    ]
    results.sort(key=lambda r: -float(str(r["relevance_score"])))
    await exchange.json(
        200,
        {
            "id": text.ident("rerank-", text.seed_of(body, "rerank")),
            "model": model,
            "usage": {"prompt_tokens": used, "total_tokens": used},
            "results": results[:top],
        },
    )


async def _read(context: Context, texts: list[bytes]) -> int:
    """Lets the engine prefill the texts; tokens read."""
    if len(texts) > _MAX_TEXTS:
        raise ApiError(400, f"at most {_MAX_TEXTS} inputs")
    counts = [prompt_tokens(t) for t in texts]
    most = context.settings.max_model_len
    if max(counts) > most:
        raise ApiError(400, f"This model's maximum context length is {most} tokens.", param="input")
    with context.runner.start(Job(t) for t in texts) as ticket:
        await ticket.finish()
    return sum(counts)


def _inputs(body: dict[str, Any]) -> list[bytes]:
    if isinstance(body.get("messages"), list) and body.get("input") is None:
        return [render(body["messages"])]
    if body.get("input") is None:
        raise ApiError(400, "Field required: input", param="input")
    return fields.texts(body["input"], "input")


def _field(body: dict[str, Any], names: tuple[str, ...]) -> list[bytes]:
    for name in names:
        if body.get(name) is not None:
            return fields.texts(body[name], name)
    raise ApiError(400, f"Field required: {names[0]}", param=names[0])


def _documents(body: dict[str, Any]) -> list[str]:
    documents = fields.required(body, "documents", list)
    if not documents:
        raise ApiError(400, "documents must not be empty", param="documents")
    return [fields.text_of([d], f"documents[{i}]") for i, d in enumerate(documents)]


def _unit(a: bytes, b: bytes) -> float:
    """A number in [0, 1) for a pair of texts."""
    return text.seed_of_bytes(a + b"\0" + b, "pair") / (1 << 64)


def _list(
    prefix: str, context: Context, body: dict[str, Any], model: str, data: list[dict[str, Any]], used: int
) -> dict[str, Any]:
    return {
        "id": text.ident(prefix, text.seed_of(body, prefix)),
        "object": "list",
        "created": context.settings.created,
        "model": model,
        "data": data,
        "usage": {
            "prompt_tokens": used,
            "total_tokens": used,
            "completion_tokens": 0,
            "prompt_tokens_details": None,
        },
    }
