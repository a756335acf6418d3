"""Log probabilities, minimal and deterministic: derived from the token's own bytes."""

from __future__ import annotations

from typing import Any

from ..model.text import seed_of_bytes


def logprob(token: str, rank: int = 0) -> float:
    """A value in (-4, 0), lower for each rank."""
    return -(seed_of_bytes(token.encode()) % 1000) / 1000 - rank


def chat_entry(token: str, top: int) -> dict[str, Any]:
    """One token of `logprobs.content` in the chat dialect, with `top` alternatives."""
    return {
        "token": token,
        "logprob": logprob(token),
        "bytes": list(token.encode()),
        "top_logprobs": [
            {"token": token if not rank else f"{token}{rank}", "logprob": logprob(token, rank), "bytes": None}
            for rank in range(top)
        ],
    }


def completion_logprobs(tokens: list[str], top: int, offset: int = 0) -> dict[str, Any]:
    """`logprobs` in the completions dialect; `offset` is where the first token begins in the whole text."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return {
        "text_offset": offsets,
        "token_logprobs": [logprob(t) for t in tokens],
        "tokens": tokens,
        "top_logprobs": [
            {(t if not rank else f"{t}{rank}"): logprob(t, rank) for rank in range(max(top, 1))}
            for t in tokens
        ],
    }
