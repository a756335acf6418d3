"""How many tokens an answer has cost, read from its bytes: whole bodies and event streams of all dialects.

Strategy: the object ``usage`` is looked for from the end, as bytes, and nothing is decoded: inside a JSON text its
quotes would be escaped, so what looks like the key is one. Servers write it behind the content. A stream that says
nothing of usage is counted by its events: vLLM sends one for each token. A number that no answer can have cost, of
nine digits and more, or one that is no whole number, is as good as none. Knows nothing of limits.

Objects: https://platform.openai.com/docs/api-reference/chat/object (``prompt_tokens``, ``completion_tokens``,
``total_tokens``), …/responses/object and https://docs.anthropic.com/en/api/messages (``input_tokens``,
``output_tokens``).
"""

from __future__ import annotations

import re

_KEY = b'"usage"'
_OBJECT = re.compile(rb'"usage"\s*:\s*\{')
_PART = re.compile(
    rb'[{}]|"(total_tokens|prompt_tokens|completion_tokens|input_tokens|output_tokens)"'
    rb"\s*:\s*(\d{1,8})(?![\d.eE])"
)
_TOTAL = re.compile(rb'"usage"\s*:\s*\{[^{}]{0,400}"total_tokens"\s*:\s*(\d{1,8})(?![\d.eE])')
#: as vLLM writes it, and as OpenAI does, with the total last
_USUAL = re.compile(
    rb'"usage"\s*:\s*\{\s*"prompt_tokens"\s*:\s*(\d{1,8}),\s*(?:"total_tokens"\s*:\s*\d{1,8},\s*)?'
    rb'"completion_tokens"\s*:\s*(\d{1,8})(?![\d.eE])'
)
_MESSAGE_END = b'"message_delta"'
_OBJECT_BYTES = 2048  # as far as one is read
_EVENT = b"data:"
_TAIL_BYTES = 16 << 10
_HEAD_BYTES = 8 << 10
_TRIES = 64
"""So many last places that look like the key are tried: none but a hostile body has more that are not it."""


def tokens_of(body: bytes) -> int | None:
    """The tokens that a whole answer says it has cost; None when it says nothing of it."""
    usual = _TOTAL.match(body, max(0, body.rfind(_KEY)))
    if usual:
        return int(usual[1])
    found = _last(body)
    return _sum(found) if found else None


def usage_of(body: bytes | bytearray) -> tuple[int, int] | None:
    """The tokens of prompt and completion that a whole answer tells of; None when it says nothing of them."""
    at = body.rfind(_KEY)
    if at < 0:
        return None
    usual = _USUAL.match(body, at)
    if usual:
        return int(usual[1]), int(usual[2])
    found = _last(bytes(body))
    return _parts(found) if found else None


def parts_of(text: bytes) -> tuple[int, int]:
    """The same of a piece of a stream: of the last place in it that tells of usage; zeros where none does."""
    return _parts(_last(text))


def _parts(found: dict[bytes, int]) -> tuple[int, int]:
    """Prompt and completion among counts; what is said of neither is the prompt's, as for embeddings."""
    prompt = found.get(b"prompt_tokens", found.get(b"input_tokens", 0))
    completion = found.get(b"completion_tokens", found.get(b"output_tokens", 0))
    return prompt or max(0, found.get(b"total_tokens", 0) - completion), completion


class StreamUsage:
    """Counts what an event stream has cost while its bytes pass."""

    __slots__ = ("_events", "_head", "_tail")

    def __init__(self) -> None:
        self._events = 0
        self._head = b""
        self._tail = b""

    def feed(self, data: bytes) -> None:
        """The next bytes, cut anywhere."""
        self._events += data.count(_EVENT)
        if len(self._head) < _HEAD_BYTES:
            self._head += data[:_HEAD_BYTES]
        tail = self._tail + data
        self._tail = tail if len(tail) <= _TAIL_BYTES else tail[-_TAIL_BYTES:]

    def tokens(self, prompt: int) -> int:
        """What it has cost so far; ``prompt`` is for a stream that does not say what that was."""
        end = _last(self._tail)
        if b"total_tokens" in end:
            return _sum(end)
        begin = _first(self._head)  # of a message, the prompt may be told here alone
        asked = begin.get(b"input_tokens", 0) or end.get(b"input_tokens", 0) or prompt
        if _MESSAGE_END in self._tail and b"output_tokens" in end:
            return asked + end[b"output_tokens"]
        return asked + self._events


def _last(text: bytes) -> dict[bytes, int]:
    """The counts in the last object ``usage``; none when there is none."""
    at = len(text)
    for _ in range(_TRIES):
        at = text.rfind(_KEY, 0, at)
        if at < 0:
            break
        match = _OBJECT.match(text, at)
        if match:
            return _counts(text, match.end())
    return {}


def _first(text: bytes) -> dict[bytes, int]:
    match = _OBJECT.search(text)
    return _counts(text, match.end()) if match else {}


def _counts(text: bytes, at: int) -> dict[bytes, int]:
    """The counts in the object whose brace has opened before ``at``, not those in objects within it."""
    depth, found = 1, {}
    for match in _PART.finditer(text, at, at + _OBJECT_BYTES):
        part = match[0]
        if part == b"{":
            depth += 1
        elif part == b"}":
            depth -= 1
            if not depth:
                break
        elif depth == 1:
            found[match[1]] = int(match[2])
    return found


def _sum(found: dict[bytes, int]) -> int:
    total = found.get(b"total_tokens")
    return total if total is not None else sum(found.values())
