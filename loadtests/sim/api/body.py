"""Request bodies: decoded once, fields read with their type and range checked.

Every reader raises ApiError 400 naming the field, as vLLM's validation does. Refuses to know endpoints.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from ..wire import Request
from .errors import ApiError

T = TypeVar("T")


def decode(request: Request) -> dict[str, Any]:
    """The body as a JSON object."""
    kind = (request.header(b"content-type") or b"application/json").split(b";")[0].strip().lower()
    if kind != b"application/json":
        raise ApiError(400, "Unsupported Media Type: Only 'application/json' is allowed")
    try:
        body = msgspec.json.decode(request.body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as err:
        raise ApiError(400, f"JSON decode error: {err}") from None
    if not isinstance(body, dict):
        raise ApiError(400, "Input should be a valid dictionary")
    return body


def optional(body: dict[str, Any], name: str, kind: type[T]) -> T | None:
    """A field of one type, or None where absent or null; bool never passes for a number, int passes for float."""
    value = body.get(name)
    if value is None:
        return None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return value  # type: ignore[return-value]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ApiError(400, f"Input should be a valid {kind.__name__}: {name}", param=name)
    return value


def required(body: dict[str, Any], name: str, kind: type[T]) -> T:
    """A field that must be there."""
    value = optional(body, name, kind)
    if value is None:
        raise ApiError(400, f"Field required: {name}", param=name)
    return value


def integer(body: dict[str, Any], name: str, default: int, least: int, most: int) -> int:
    """An integer field within [least, most]."""
    value = optional(body, name, int)
    if value is None:
        return default
    if not least <= value <= most:
        raise ApiError(400, f"{name} must be between {least} and {most}, got {value}.", param=name)
    return value


def number(body: dict[str, Any], name: str, default: float, least: float, most: float) -> float:
    """A float field within [least, most]."""
    value = optional(body, name, float)
    if value is None:
        return default
    if not least <= value <= most:
        raise ApiError(400, f"{name} must be in [{least}, {most}], got {value}.", param=name)
    return value


def flag(body: dict[str, Any], name: str) -> bool:
    """A boolean field, False where absent."""
    return optional(body, name, bool) or False


def text_of(content: Any, param: str) -> str:
    """The text in a message's content: a string, a list of parts, or nothing; other parts leave a mark."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ApiError(400, f"Input should be a valid string or list: {param}", param=param)
    pieces: list[str] = []
    for index, part in enumerate(content):
        if isinstance(part, str):
            pieces.append(part)
        elif isinstance(part, dict):
            text = part.get("text")
            inner = part.get("content")
            if isinstance(text, str):
                pieces.append(text)
            elif isinstance(inner, (str, list)):
                pieces.append(text_of(inner, f"{param}[{index}].content"))
            else:
                pieces.append(f"<{str(part.get('type', 'part'))[:32]}>")
        else:
            raise ApiError(
                400, f"Input should be a valid object: {param}[{index}]", param=f"{param}[{index}]"
            )
    return "".join(pieces)


def texts(value: Any, param: str) -> list[bytes]:
    """A string, a list of strings, token ids, or a list of lists of token ids, each as bytes to count and hash."""
    if isinstance(value, str):
        return [value.encode("utf-8", "replace")]
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return [item.encode("utf-8", "replace") for item in value]
        if all(isinstance(item, int) and not isinstance(item, bool) for item in value):
            return [_ids(value, param)]
        if all(isinstance(item, list) and item for item in value):
            return [_ids(item, param) for item in value]
    raise ApiError(400, f"Input should be a string, strings, or token ids: {param}", param=param)


def _ids(ids: list[Any], param: str) -> bytes:
    try:
        return b"".join(int(i).to_bytes(2, "big") if 0 <= i < 65_536 else b"\xff\xff" for i in ids)
    except (TypeError, ValueError):
        raise ApiError(400, f"token ids must be integers: {param}", param=param) from None
