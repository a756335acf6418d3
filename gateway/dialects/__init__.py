"""One file per API dialect; :data:`WORDS` is the table from a dialect to its words."""

from __future__ import annotations

from ..endpoints import Dialect
from .base import DialectWords, StreamEnd
from .messages import Messages
from .openai import OpenAI
from .responses import Responses

WORDS: dict[Dialect, DialectWords] = {
    Dialect.OPENAI: OpenAI(),
    Dialect.MESSAGES: Messages(),
    Dialect.RESPONSES: Responses(),
}

__all__ = ["WORDS", "DialectWords", "StreamEnd"]
