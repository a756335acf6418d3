"""An instance for a JSON schema: the arguments of a simulated tool call, the content of a structured answer.

Bounded in depth and breadth; what it does not understand becomes a word. Refuses to know why it is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..model.text import draws

_DEPTH = 6
_BREADTH = 32
_NAMES = ("amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "haven")


def example(schema: Any, seed: int) -> Any:
    """A value that fits the schema's types, enums and required properties; always the same for the same seed."""
    return _value(schema, draws(seed), _DEPTH)


def _value(schema: Any, numbers: Iterator[int], depth: int) -> Any:
    number = next(numbers)
    if not isinstance(schema, dict) or depth == 0:
        return _NAMES[number % len(_NAMES)]
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return schema["enum"][number % len(schema["enum"])]
    if "const" in schema:
        return schema["const"]
    for key in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(key), list) and schema[key]:
            return _value(schema[key][0], numbers, depth - 1)
    kind = schema.get("type")
    if isinstance(kind, list) and kind:
        kind = kind[0]
    if kind == "object" or (kind is None and "properties" in schema):
        properties = schema.get("properties")
        if not isinstance(properties, dict):
            return {}
        return {k: _value(v, numbers, depth - 1) for k, v in list(properties.items())[:_BREADTH]}
    if kind == "array":
        least = schema.get("minItems", 1)
        times = min(max(least, 1), 4) if isinstance(least, int) else 1
        return [_value(schema.get("items"), numbers, depth - 1) for _ in range(times)]
    if kind in ("integer", "number"):
        low = schema.get("minimum", 1)
        low = low if isinstance(low, int) and not isinstance(low, bool) else 1
        high = schema.get("maximum", low + 99)
        high = high if isinstance(high, int) and high >= low else low
        return low + number % (high - low + 1)
    if kind == "boolean":
        return bool(number & 1)
    if kind == "null":
        return None
    return _NAMES[number % len(_NAMES)]
