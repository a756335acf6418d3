"""The bytes of a batch: requests put together into one body, and its answer taken apart again.

Each caller gets what it would have got alone: its own entries with indices from 0, its own usage, the known rest as
the server wrote it; numbers are never read and written anew. What cannot be taken apart for certain raises
:class:`Unsplit`: entries missing or double, counts that do not add up to the server's sum. Pure.

Answers: https://platform.openai.com/docs/api-reference/embeddings/create and …/completions/create; ``return_token_ids``
is vLLM's (0.10.2 and later).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Raw

from .portion import Portion

_EMBEDDINGS = "input"
_ASK_IDS = "return_token_ids"
_IDS = ("prompt_token_ids", "token_ids")
_NULL = Raw(b"null")
#: What is everybody's of an answer; what else a server adds may be one caller's alone.
_TOP = frozenset(
    {"id", "object", "created", "model", "system_fingerprint", "service_tier", "data", "choices", "usage"}
)

_Fields = dict[str, Raw]


class Unsplit(Exception):
    """An answer that cannot be taken apart for certain, and why."""


def merge(portions: Sequence[Portion], model: str, ask_ids: bool) -> bytes:
    """One body for all; ``ask_ids``: completions are to say which tokens they read and made."""
    first = portions[0]
    shared: dict[str, Any] = {"model": model, **first.shared}
    if ask_ids:
        shared[_ASK_IDS] = True
    shared[first.field] = Raw(b"[" + b",".join(item for part in portions for item in part.items) + b"]")
    return _encode(shared)


def split(
    body: bytes | bytearray,
    portions: Sequence[Portion],
    idents: Sequence[str],
    *,
    exact: bool,
    counts: Sequence[Sequence[int]] | None = None,
) -> list[bytes]:
    """Each caller's answer; raises :class:`Unsplit`.

    ``idents``: the callers' request ids, the first is the one that went upstream. ``exact``: usage is told from
    ``counts`` (tokens of each input of each caller) or, for completions, from the tokens in the answer; else the
    server's sums are shared out by length.
    """
    name = "data" if portions[0].field == _EMBEDDINGS else "choices"
    try:
        top = _decode_fields(body)
        entries = _in_order(_decode_entries(top[name]))
        if len(entries) != sum(len(part.items) for part in portions):
            raise Unsplit(f"{len(entries)} entries in '{name}'")
        mine: list[list[_Fields]] = []
        for part in portions:
            mine.append(entries[: len(part.items)])
            del entries[: len(part.items)]
        usages = _usages(top.get("usage"), portions, mine, exact, counts)
        ident = _decode(top["id"]) if "id" in top else None
        kept = portions[0].shared.get(_ASK_IDS)
        ask_ids = kept is not None and bytes(kept) == b"true"
        known = {field: raw for field, raw in top.items() if field in _TOP or raw == _NULL}
        out = []
        for number, own in enumerate(mine):
            answer: dict[str, Any] = dict(known)
            if isinstance(ident, str) and number:
                answer["id"] = _ident(ident, idents[0], idents[number], number)
            answer[name] = [_entry(entry, index, ask_ids) for index, entry in enumerate(own)]
            if usages is not None:
                answer["usage"] = usages[number]
            out.append(_encode(answer))
        return out
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Unsplit(f"not the answer that was expected: {error}") from None
    except KeyError as error:
        raise Unsplit(f"no {error} in the answer") from None


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """``total`` in whole numbers as near to the weights as can be, the parts adding up to it (largest remainders)."""
    whole = sum(weights)
    if not whole:
        weights, whole = [1] * len(weights), len(weights)
    parts = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: (-(total * weights[i] % whole), i))
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts


def _in_order(entries: list[_Fields]) -> list[_Fields]:
    placed: dict[int, _Fields] = {_decode_int(entry["index"]): entry for entry in entries}
    if len(placed) != len(entries) or any(index not in placed for index in range(len(entries))):
        raise Unsplit("indices are missing or double")
    return [placed[index] for index in range(len(entries))]


def _entry(entry: _Fields, index: int, keep_ids: bool) -> dict[str, Any]:
    made: dict[str, Any] = {**entry, "index": index}
    if not keep_ids:
        for name in _IDS:
            if name in made:
                made[name] = None
    return made


def _ident(ident: str, sent: str, own: str, number: int) -> str:
    """An id of the caller's own: servers make theirs of the request's id."""
    return ident.replace(sent, own) if sent and sent in ident else f"{ident}-{number}"


def _usages(
    raw: Raw | None,
    portions: Sequence[Portion],
    mine: Sequence[Sequence[_Fields]],
    exact: bool,
    counts: Sequence[Sequence[int]] | None,
) -> list[dict[str, Any]] | None:
    """What each caller's answer has cost; None where the server does not say what all together cost."""
    if raw is None or bytes(raw) == b"null":
        return None
    told = _decode_fields(raw)
    prompt = _decode_int(told["prompt_tokens"])
    total = _decode_int(told["total_tokens"])
    made = total - prompt
    if exact:
        read, written = _counted(portions, mine, counts)
        if sum(read) != prompt or sum(written) != made:
            raise Unsplit(f"{sum(read)} + {sum(written)} tokens counted, {prompt} + {made} in the answer")
    else:
        read = apportion(prompt, [_length(part) for part in portions])
        written = apportion(
            made, [sum(len(bytes(entry.get("text", _NULL))) for entry in own) for own in mine]
        )
    out = []
    for asked, answered in zip(read, written, strict=True):
        # what else is told goes for all together or for the last alone
        usage: dict[str, Any] = dict.fromkeys(told)
        usage["prompt_tokens"], usage["total_tokens"] = asked, asked + answered
        if "completion_tokens" in told:
            usage["completion_tokens"] = answered
        out.append(usage)
    return out


def _counted(
    portions: Sequence[Portion],
    mine: Sequence[Sequence[_Fields]],
    counts: Sequence[Sequence[int]] | None,
) -> tuple[list[int], list[int]]:
    """Each caller's tokens, read and made."""
    if portions[0].field != _EMBEDDINGS:
        read, written = _IDS
        return (
            [sum(len(_decode_ids(entry[read])) for entry in own) for own in mine],
            [sum(len(_decode_ids(entry[written])) for entry in own) for own in mine],
        )
    if counts is None:
        counts = [[len(_decode_ids(item)) for item in part.items] for part in portions]
    return [sum(each) for each in counts], [0] * len(portions)


def _length(part: Portion) -> int:
    """How long its inputs are: bytes of texts, numbers of ids."""
    return part.size if part.texts else sum(item.count(b",") + 1 for item in part.items)


_encode = msgspec.json.encode
_decode = msgspec.json.decode
_decode_fields = msgspec.json.Decoder(_Fields).decode
_decode_entries = msgspec.json.Decoder(list[_Fields]).decode
_decode_int = msgspec.json.Decoder(int).decode
_decode_ids = msgspec.json.Decoder(list[int]).decode
