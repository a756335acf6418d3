"""Output items of a response: reasoning, message, function_call. Equal choices give equal items."""

from __future__ import annotations

from typing import Any

from ..model import text
from .generation import Choice, Unit


def item_kind(unit: Unit) -> tuple[str, int]:
    """Which item a unit belongs to."""
    return ("tool" if unit.kind == "arguments" else unit.kind, unit.call)


def item(choice: Choice, seed: int, kind: tuple[str, int], *, done: bool) -> dict[str, Any]:
    """One item, empty as it is added or whole as it is done."""
    status = "completed" if done else "in_progress"
    name, call = kind
    if name == "reasoning":
        thought = [{"type": "reasoning_text", "text": choice.joined("reasoning")}] if done else []
        return {
            "id": text.ident("rs_", seed),
            "summary": [],
            "type": "reasoning",
            "content": thought,
            "encrypted_content": None,
            "status": status,
        }
    if name == "tool":
        chosen = choice.calls[call]
        return {
            "arguments": chosen.arguments if done else "",
            "call_id": chosen.id.replace("chatcmpl-tool-", "call_"),
            "name": chosen.name,
            "type": "function_call",
            "id": chosen.id.replace("chatcmpl-tool-", "fc_"),
            "status": status,
        }
    return {
        "id": text.ident("msg_", seed),
        "content": [part(choice.joined("content"))] if done else [],
        "role": "assistant",
        "status": status,
        "type": "message",
    }


def part(said: str) -> dict[str, Any]:
    """A message's text part."""
    return {"annotations": [], "text": said, "type": "output_text", "logprobs": []}


def items(choice: Choice, seed: int) -> list[dict[str, Any]]:
    """All items of a finished answer, in order."""
    kinds = dict.fromkeys(item_kind(unit) for unit in choice.units())
    return [item(choice, seed, kind, done=True) for kind in kinds]
