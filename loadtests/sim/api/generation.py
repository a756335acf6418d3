"""What will be generated for a request, decided before the first token: pieces, lengths, finish reasons.

Shared by chat, completions, responses and messages. A `Choice` is a lazily drawn row of units, one per token; the
engine only says when each is ready. Refuses to know how the units are dressed for the client.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from ..model import text, tokens
from ..model.runner import Job
from . import body as fields
from . import schema
from .errors import ApiError

_STOP_SCAN = 65_536
_PIECE = 8
_LONGEST = 262_144
"""No answer is longer, whatever was asked for: one request must not hold the loop for seconds."""
_KEPT = 4096
"""Longer answers are drawn anew each time they are read rather than kept."""


class Unit(NamedTuple):
    """One token's worth: kind is reasoning, content, tool (opens call `call` named `text`) or arguments."""

    kind: str
    text: str
    call: int = 0


class Call(NamedTuple):
    """A tool call the answer makes."""

    id: str
    name: str
    arguments: str


@dataclass(slots=True)
class Choice:
    """One answer. `goal` tokens, then `reason` (stop, length or tool_calls)."""

    seed: int
    goal: int
    reason: str
    stop_reason: str | None = None
    calls: list[Call] = field(default_factory=list)
    fixed: list[Unit] | None = None

    def units(self) -> Iterator[Unit]:
        """`goal` units, always the same ones; which ones is decided when the first is taken."""
        if self.fixed is None and self.goal <= _KEPT:
            self.fixed = [Unit("content", word) for word in islice(text.words(self.seed), self.goal)]
        if self.fixed is not None:
            yield from self.fixed[: self.goal]
        else:
            yield from (Unit("content", word) for word in islice(text.words(self.seed), self.goal))

    def job(self, prompt: bytes) -> Job:
        """What the engine is asked for."""
        return Job(
            prompt, self.goal, "length" if self.reason == "length" else "stop", self._aborted, self._garbled
        )

    def _garbled(self) -> None:
        self.fixed = [Unit("content", "!")] * min(self.goal, _LONGEST)
        self.calls = []

    def _aborted(self, tokens: int) -> None:
        self.goal = min(self.goal, tokens)
        self.reason = "abort"

    def joined(self, kind: str) -> str:
        """All the text of one kind."""
        return "".join(u.text for u in self.units() if u.kind == kind)


@dataclass(slots=True)
class Limits:
    """How long answers may get."""

    max_tokens: int | None
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()


def limits(body: dict[str, Any], prompt_tokens: int, max_model_len: int, *names: str) -> Limits:
    """Reads the length fields; the first of `names` present is the token limit. Refuses what cannot fit."""
    room = max_model_len - prompt_tokens
    if room < 1:
        raise ApiError(
            400,
            f"This model's maximum context length is {max_model_len} tokens. However, your request has "
            f"{prompt_tokens} input tokens. Please reduce the length of the input messages.",
            param="input_tokens",
        )
    most: int | None = None
    for name in names:
        if body.get(name) is not None:
            most = fields.integer(body, name, 1, 1, 1 << 31)
            break
    if most is not None and most > room:
        raise ApiError(
            400,
            f"'{names[0]}' is too large: {most}. This model's maximum context length is {max_model_len} tokens "
            f"and your request has {prompt_tokens} input tokens.",
            param=names[0],
        )
    stop = body.get("stop", body.get("stop_sequences"))
    if stop is None:
        stop = []
    elif isinstance(stop, str):
        stop = [stop]
    if not isinstance(stop, list) or not all(isinstance(s, str) for s in stop) or len(stop) > 64:
        raise ApiError(400, "Input should be a string or a list of strings: stop", param="stop")
    return Limits(
        most if most is not None else None,
        fields.integer(body, "min_tokens", 0, 0, room),
        fields.flag(body, "ignore_eos"),
        tuple(s for s in stop if s),
    )


def prose(seed: int, limit: Limits, *, reasoning: bool = False) -> Choice:
    """A plain answer: words until its natural end, the limit, or a stop string."""
    natural = min(max(text.natural_length(seed), limit.min_tokens), _LONGEST)
    if limit.ignore_eos:
        natural = min(limit.max_tokens or natural, _LONGEST)
        goal, reason = natural, "length" if limit.max_tokens else "stop"
    elif limit.max_tokens is not None and limit.max_tokens < natural:
        goal, reason = limit.max_tokens, "length"
    else:
        goal, reason = natural, "stop"
    choice = Choice(seed, goal, reason)
    if reasoning:
        thought = [Unit("reasoning", w) for w in islice(text.words(seed ^ 0x7417), 6)]
        choice.fixed = (thought + list(islice(choice.units(), _STOP_SCAN)))[: max(goal, 1)]
        choice.goal = len(choice.fixed)
    if limit.stop:
        _cut(choice, limit.stop)
    return choice


def calling(seed: int, limit: Limits, functions: list[tuple[str, Any]]) -> Choice:
    """An answer that calls each of the given (name, parameters schema) once."""
    choice = Choice(seed, 0, "tool_calls")
    units: list[Unit] = []
    for index, (name, parameters) in enumerate(functions):
        arguments = msgspec.json.encode(
            schema.example(parameters or {"type": "object"}, seed + index)
        ).decode()
        choice.calls.append(Call(text.ident("chatcmpl-tool-", seed + index), name, arguments))
        units.append(Unit("tool", name, index))
        units.extend(
            Unit("arguments", arguments[i : i + _PIECE], index) for i in range(0, len(arguments), _PIECE)
        )
    choice.fixed = units
    choice.goal = len(units)
    if limit.max_tokens is not None and limit.max_tokens < choice.goal:
        choice.goal, choice.reason = limit.max_tokens, "length"
        choice.calls = [
            call._replace(
                arguments="".join(u.text for u in choice.units() if u.kind == "arguments" and u.call == i)
            )
            for i, call in enumerate(choice.calls)
            if any(u.call == i for u in choice.units())
        ]
    return choice


def structured(seed: int, limit: Limits, wanted: Any) -> Choice:
    """An answer that is a JSON document fitting the schema `wanted`."""
    document = msgspec.json.encode(schema.example(wanted, seed)).decode()
    pieces = [Unit("content", document[i : i + _PIECE]) for i in range(0, len(document), _PIECE)]
    choice = Choice(seed, len(pieces), "stop", fixed=pieces)
    if limit.max_tokens is not None and limit.max_tokens < choice.goal:
        choice.goal, choice.reason = limit.max_tokens, "length"
    return choice


def usage(prompt_tokens: int, completion_tokens: int, cached: int | None = None) -> dict[str, Any]:
    """vLLM's UsageInfo."""
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
        "prompt_tokens_details": None if cached is None else {"cached_tokens": cached},
    }


def prompt_tokens(prompt: bytes) -> int:
    """Tokens in a rendered prompt; at least one."""
    return max(tokens.count(prompt), 1)


def _cut(choice: Choice, stops: tuple[str, ...]) -> None:
    units = list(islice(choice.units(), _STOP_SCAN))
    whole = "".join(u.text for u in units)
    found = min(((whole.find(s), s) for s in stops if s in whole), default=None)
    if found is None:
        return
    left, kept = found[0], []
    for unit in units:
        if left <= 0:
            break
        kept.append(unit._replace(text=unit.text[:left]))
        left -= len(unit.text)
    choice.fixed = kept or [Unit("content", "")]
    choice.goal, choice.reason, choice.stop_reason = len(choice.fixed), "stop", found[1]
