"""Conversations that begin alike at the same backend, so that the server's own prefix cache holds what was said.

The key must stay while a conversation grows, and differ between conversations. So it is made of what comes before the
first answer alone: the system prompt, whole, and of the first user message as many characters as are asked for. Were
the system prompt counted among those, a long one that all conversations share would put all of them at one backend;
left out, two applications that begin with the same words would.

A plain prompt has no turns: its first characters are the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import xxhash

_encode = msgspec.json.encode
SYSTEM_ROLES = ("system", "developer")


def prefix_key(fields: Mapping[str, Any], chars: int) -> bytes | None:
    """Eight bytes that stand for how a conversation begins; None for a body without one."""
    hashed = xxhash.xxh3_64()
    begun = False
    for name in ("system", "instructions"):  # Anthropic's and the responses API's system prompt
        said = fields.get(name)
        if said is not None:
            hashed.update(_text(said, -1))
            hashed.update(b"\0")
    turns = fields.get("messages")
    if turns is None:
        turns = fields.get("input")  # of the responses API
    if isinstance(turns, list) and turns and isinstance(turns[0], dict):
        for turn in turns:
            if not isinstance(turn, dict):
                break
            system = turn.get("role") in SYSTEM_ROLES
            hashed.update(_text(turn.get("content"), -1 if system else chars))
            hashed.update(b"\0")
            begun = True
            if not system:
                break
    else:
        prompt = turns if turns is not None else fields.get("prompt")
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            prompt = prompt[0]
        if isinstance(prompt, str | list) and prompt:
            hashed.update(_text(prompt, chars))
            begun = True
    return hashed.digest() if begun else None


def _text(content: object, chars: int) -> bytes:
    """The first ``chars`` characters of a text, of its parts, or of token ids; -1: all."""
    if isinstance(content, str):
        return (content if chars < 0 else content[:chars]).encode("utf-8", "surrogatepass")
    if isinstance(content, list) and chars >= 0:
        content = content[:chars]  # a part is a character at least
    said = b""
    for part in content if isinstance(content, list) else (content,):
        text = part.get("text") if isinstance(part, dict) else part
        said += text.encode("utf-8", "surrogatepass") if isinstance(text, str) else _encode(part)
        said += b"\0"
        if 0 <= chars <= len(said):
            return said[:chars]
    return said
