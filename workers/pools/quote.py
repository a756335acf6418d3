"""What others say, quoted in a line of ours: of one line, printable, and not long. Pure."""

from __future__ import annotations

import msgspec

MOST_CHARS = 200
_LOOKED_AT = 4096


def one_line(text: str, most_chars: int = MOST_CHARS) -> str:
    """`text` as one line of printable characters; what is left out at its end is shown by an ellipsis."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[:_LOOKED_AT]).split())
    return line if len(line) <= most_chars else line[: most_chars - 1] + "…"


def said(body: bytes) -> str:
    """What the body of an answer says, as the end of a sentence: `: no space left`, or nothing.

    Known are the shapes of vLLM and OpenAI (`error.message`), FastAPI (`detail`) and Docker (`message`); anything
    else is quoted as it is.
    """
    text: object = None
    try:
        whole = msgspec.json.decode(body)
        error = whole.get("error", whole)
        text = error if isinstance(error, str) else error.get("message", whole.get("detail"))
    except (msgspec.DecodeError, RecursionError, AttributeError):
        pass
    line = one_line(text if isinstance(text, str) else body[:_LOOKED_AT].decode("utf-8", "replace"))
    return f": {line}" if line else ""
