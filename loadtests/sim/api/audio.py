"""POST /v1/audio/transcriptions and /translations: multipart in, text out.

The text depends on the file's bytes alone. Durations are invented: 32,000 bytes are one second.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from ..exchange import Exchange
from ..model import text
from ..model.runner import Job, Ticket
from ..wire import Request
from .context import Context
from .errors import ApiError
from .generation import Choice, Limits, prose, usage

_MAX_PARTS = 64
_BYTES_A_SECOND = 32_000


async def transcriptions(context: Context, exchange: Exchange) -> None:
    """POST /v1/audio/transcriptions."""
    await _serve(context, exchange, "transcription", "trsc-")


async def translations(context: Context, exchange: Exchange) -> None:
    """POST /v1/audio/translations."""
    await _serve(context, exchange, "translation", "trsl-")


async def _serve(context: Context, exchange: Exchange, kind: str, prefix: str) -> None:
    form = multipart(exchange.request)
    audio = form.get("file")
    if audio is None:
        raise ApiError(400, "Field required: file", param="file")
    named: dict[str, Any] = {}
    if "model" in form:
        named["model"] = form["model"].decode("utf-8", "replace")
    model = context.model(named)
    wanted = form.get("response_format", b"json").decode("latin-1")
    if wanted not in ("json", "text", "verbose_json"):
        raise ApiError(400, "Currently only support response_format `text`, `json` or `verbose_json`")
    seed = text.seed_of_bytes(audio, kind[:16])
    choice = prose(seed, Limits(None))
    prompt = audio[:_BYTES_A_SECOND]
    envelope = {
        "id": text.ident(prefix, seed),
        "object": f"{kind}.chunk",
        "created": context.settings.created,
        "model": model,
    }
    with context.runner.start([Job(prompt, choice.goal)]) as ticket:
        if form.get("stream", b"").lower() in (b"true", b"1"):
            await exchange.stream(_events(envelope, choice, ticket, len(audio) // 640))
            return
        await ticket.finish()
    said = choice.joined("content")
    seconds = -(-len(audio) // _BYTES_A_SECOND)
    if wanted == "text":
        await exchange.reply(200, said.encode() + b"\n", b"text/plain; charset=utf-8")
    elif wanted == "verbose_json":
        language = form.get("language", b"en").decode("utf-8", "replace")
        segment = {
            "id": 0,
            "seek": 0,
            "start": 0.0,
            "end": float(seconds),
            "text": said,
            "tokens": [],
            "temperature": 0.0,
            "avg_logprob": -0.5,
            "compression_ratio": 1.0,
            "no_speech_prob": 0.0,
        }
        whole = {
            "duration": str(seconds),
            "language": language,
            "text": said,
            "segments": [segment],
            "words": None,
        }
        await exchange.json(200, whole)
    else:
        await exchange.json(200, {"text": said, "usage": {"type": "duration", "seconds": seconds}})


async def _events(
    envelope: dict[str, Any], choice: Choice, ticket: Ticket, prompt_tokens: int
) -> AsyncIterator[bytes]:
    units = choice.units()
    async for ready in ticket:
        for _ in range(ready.tokens):
            last = {"finish_reason": choice.reason, "stop_reason": None} if ready.finished else {}
            delta = {"delta": {"content": next(units).text}, "finish_reason": None}
            yield b"data: " + msgspec.json.encode(envelope | {"choices": [delta | last]}) + b"\n\n"
    spent = {"choices": [], "usage": usage(prompt_tokens, choice.goal)}
    yield b"data: " + msgspec.json.encode(envelope | spent) + b"\n\n"
    yield b"data: [DONE]\n\n"


def multipart(request: Request) -> dict[str, bytes]:
    """The form's fields by name (RFC 7578); the first of each name, at most 64 parts."""
    kind = request.header(b"content-type") or b""
    main, _, rest = kind.partition(b";")
    if main.strip().lower() != b"multipart/form-data":
        raise ApiError(400, "Unsupported Media Type: Only 'multipart/form-data' is allowed")
    boundary = _parameter(rest, b"boundary")
    if not boundary or len(boundary) > 200:
        raise ApiError(400, "multipart boundary is missing")
    parts = (b"\r\n" + request.body).split(b"\r\n--" + boundary, _MAX_PARTS + 1)
    if len(parts) < 2:
        raise ApiError(400, "multipart body has no part")
    form: dict[str, bytes] = {}
    for part in parts[1:]:
        if part.startswith(b"--"):
            return form
        head, split, value = part.partition(b"\r\n\r\n")
        if not split:
            raise ApiError(400, "multipart part without a body")
        for line in head.split(b"\r\n"):
            name, _, fields = line.partition(b":")
            if name.strip().lower() == b"content-disposition":
                form.setdefault(_parameter(fields, b"name").decode("utf-8", "replace"), value)
    raise ApiError(400, "multipart body does not end")


def _parameter(fields: bytes, wanted: bytes) -> bytes:
    for field in fields.split(b";"):
        name, _, value = field.strip().partition(b"=")
        if name.lower() == wanted:
            return value.strip(b'"')
    return b""
