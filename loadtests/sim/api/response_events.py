"""The event sequence of a streamed response, from response.created to response.completed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec

from ..model.runner import Ticket
from .generation import Choice, Unit
from .response_items import item, item_kind, part


async def events(
    choice: Choice, seed: int, response: Callable[..., dict[str, Any]], ticket: Ticket
) -> AsyncIterator[bytes]:
    """`response(status)` is the object at a stage, `response()` the finished one."""
    teller = _Teller(choice, seed)
    for name in ("response.created", "response.in_progress"):
        yield teller.event(name, {"response": response("in_progress")})
    units = choice.units()
    async for ready in ticket:
        for _ in range(ready.tokens):
            for event in teller.tell(next(units)):
                yield event
    for event in teller.close():
        yield event
    yield teller.event("response.completed", {"response": response()})


class _Teller:
    """Opens and closes items as the kind of unit changes, and numbers the events."""

    def __init__(self, choice: Choice, seed: int) -> None:
        self._choice = choice
        self._seed = seed
        self._number = 0
        self._index = -1
        self._open: tuple[str, int] | None = None
        self._place: dict[str, Any] = {}

    def event(self, name: str, value: dict[str, Any]) -> bytes:
        body = {"type": name, "sequence_number": self._number} | value
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(body))

    def tell(self, unit: Unit) -> Iterator[bytes]:
        kind = item_kind(unit)
        if kind != self._open:
            yield from self.close()
            yield from self._begin(kind)
        if unit.kind == "content":
            value = self._place | {"content_index": 0, "delta": unit.text, "logprobs": []}
            yield self.event("response.output_text.delta", value)
        elif unit.kind == "reasoning":
            value = self._place | {"content_index": 0, "delta": unit.text}
            yield self.event("response.reasoning_text.delta", value)
        elif unit.kind == "arguments":
            yield self.event("response.function_call_arguments.delta", self._place | {"delta": unit.text})

    def close(self) -> Iterator[bytes]:
        if self._open is None:
            return
        whole = item(self._choice, self._seed, self._open, done=True)
        name = self._open[0]
        if name == "content":
            said = self._choice.joined("content")
            value = self._place | {"content_index": 0, "text": said, "logprobs": []}
            yield self.event("response.output_text.done", value)
            yield self.event(
                "response.content_part.done", self._place | {"content_index": 0, "part": part(said)}
            )
        elif name == "reasoning":
            value = self._place | {"content_index": 0, "text": self._choice.joined("reasoning")}
            yield self.event("response.reasoning_text.done", value)
        else:
            value = self._place | {"name": whole["name"], "arguments": whole["arguments"]}
            yield self.event("response.function_call_arguments.done", value)
        yield self.event("response.output_item.done", {"output_index": self._index, "item": whole})
        self._open = None

    def _begin(self, kind: tuple[str, int]) -> Iterator[bytes]:
        self._open = kind
        self._index += 1
        empty = item(self._choice, self._seed, kind, done=False)
        self._place = {"item_id": empty["id"], "output_index": self._index}
        yield self.event("response.output_item.added", {"output_index": self._index, "item": empty})
        if kind[0] == "content":
            yield self.event(
                "response.content_part.added", self._place | {"content_index": 0, "part": part("")}
            )
