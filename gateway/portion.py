"""What one request would bring into a batch: its inputs as the bytes they came in, and what must be equal for company.

Strategy: everything in a body counts, known or not, but the inputs themselves and the few fields that only say who
asks: a parameter that nobody has heard of keeps requests apart. So do header fields, but those that describe the client
alone. Requests are left out whose answers cannot be taken apart for certain: streams, several choices for one prompt,
log probabilities, echoes, inputs that are neither texts nor token ids. Pure; refuses to know when anything is sent.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from .affinity import affinity
from .caller import ANYONE
from .errand import Errand

_NONE = (None,)
_OFF = (None, False)
_ONE = (None, 1)

#: Per endpoint: the field with the inputs, and what other fields must hold for an answer that can be taken apart.
_ENDPOINTS: dict[str, tuple[str, dict[str, tuple[Any, ...]]]] = {
    "/v1/embeddings": (
        "input",
        {"messages": _NONE, "encoding_format": (None, "float", "base64"), "truncate_prompt_tokens": _NONE},
    ),
    "/v1/completions": (
        "prompt",
        {
            **dict.fromkeys(("stream", "echo", "use_beam_search"), _OFF),
            **dict.fromkeys(("n", "best_of"), _ONE),
            **dict.fromkeys(
                (
                    *("stream_options", "logprobs", "prompt_logprobs", "prompt_embeds"),
                    *("kv_transfer_params", "truncate_prompt_tokens"),
                ),
                _NONE,
            ),
        },
    ),
}

#: Fields that only say who asks; none of them goes upstream for others.
_WHOSE = frozenset({"user", "metadata", "request_id", "session_id", "cache"})

#: Header fields that describe the client and change no answer.
_CLIENT = frozenset(
    {
        *("user-agent", "accept", "accept-language", "accept-charset", "referer", "origin", "via", "dnt"),
        *("traceparent", "tracestate", "baggage", "forwarded", "priority", "pragma", "x-real-ip"),
    }
)
_CLIENTS = ("x-forwarded-", "x-stainless-", "sec-", "x-b3-")

_TIED = frozenset({"consistent_hash", "prefix_affinity"})


class Portion:
    """One request's part in a batch: ``items`` are its inputs, ``shared`` the fields that all parts have alike.

    ``key``: equal for requests that may go together. ``field`` names the inputs; ``texts``: they are texts, not token
    ids. ``forwarded``: header lines that all parts have alike. ``size``: bytes of the items.
    """

    __slots__ = ("field", "forwarded", "items", "key", "shared", "size", "texts")

    def __init__(
        self,
        key: tuple[object, ...],
        field: str,
        items: list[bytes],
        texts: bool,
        shared: dict[str, Raw],
        forwarded: str,
    ) -> None:
        self.key = key
        self.field = field
        self.items = items
        self.texts = texts
        self.shared = shared
        self.forwarded = forwarded
        self.size = sum(map(len, items))


def portion_of(errand: Errand) -> Portion | None:
    """What an errand may bring into a batch; None when it must go alone."""
    found = _ENDPOINTS.get(errand.endpoint.path)
    request, body, model = errand.request, errand.body, errand.model
    if found is None or request is None or request.fields is None or body is None:
        return None
    field, allowed = found
    fields = request.fields
    for name, values in allowed.items():
        if fields.get(name) not in values:
            return None
    texts = _are_texts(fields.get(field))
    if texts is None:
        return None
    apart = {name: value for name, value in fields.items() if name != field and name not in _WHOSE}
    apart["model"] = model.name
    if "priority" in apart and errand.caller is not ANYONE:
        apart["priority"] = errand.caller.priority  # as the body has it
    tie = None
    if model.policy in _TIED:
        tie = affinity(model.policy, model.prefix_chars, errand.caller.tenant, fields, None)
    forwarded = _mattering(errand.raw.forwarded)
    try:
        same = _encode(apart)
        shared = _decode_fields(body)
        value = shared.pop(field)
        items = [value] if isinstance(fields[field], str) or _is_flat(fields[field]) else _decode_items(value)
    except (msgspec.MsgspecError, UnicodeError, OverflowError, RecursionError, KeyError):
        return None
    for name in ("model", *_WHOSE):
        shared.pop(name, None)
    key = (model, errand.target, forwarded, texts, tie, same)
    return Portion(key, field, [bytes(item) for item in items], texts, shared, forwarded)


def _are_texts(value: object) -> bool | None:
    """Whether inputs are texts (True) or token ids (False); None for anything else, or a mixture."""
    if isinstance(value, str):
        return True
    if not isinstance(value, list) or not value:
        return None
    if all(isinstance(item, str) for item in value):
        return True
    ids = _is_flat(value) or all(isinstance(item, list) and item and _is_flat(item) for item in value)
    return False if ids else None


def _is_flat(value: object) -> bool:
    """Whether it is one list of token ids."""
    return isinstance(value, list) and all(type(item) is int for item in value)


def _mattering(lines: str) -> str:
    """Of header lines those that may change an answer, in one order."""
    kept = []
    for line in lines.split("\r\n"):
        name = line.partition(":")[0].lower()
        if name and name not in _CLIENT and not name.startswith(_CLIENTS):
            kept.append(line + "\r\n")
    return "".join(sorted(kept))


_encode = msgspec.json.Encoder(order="deterministic").encode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_items = msgspec.json.Decoder(list[Raw]).decode
