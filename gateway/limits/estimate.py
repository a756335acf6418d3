"""How many tokens a request will cost, guessed before it is sent: what is reserved until its usage is known.

A guess that is too high costs others a wait until it is corrected, one that is too low is carried over as a debt;
neither is forgotten. Pure.
"""

from __future__ import annotations

from ..parse import Request

#: A token is about four bytes of a prompt (https://platform.openai.com/tokenizer); its JSON is counted along.
BYTES_PER_TOKEN = 4

#: What a completion is taken for that names no bound of its own.
COMPLETION_TOKENS = 256

#: What is heard instead of read is not guessed by its bytes.
_FORM_TOKENS = 256

_BOUNDS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_WRITING = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"})

#: These make no use of the model, only of its tokenizer.
FREE = frozenset({"/tokenize", "/detokenize", "/v1/messages/count_tokens"})


def prompt_tokens(request: Request) -> int:
    """Of what is sent."""
    if request.endpoint.multipart:
        return _FORM_TOKENS
    return len(request.body) // BYTES_PER_TOKEN + 1


def completion_tokens(request: Request) -> int:
    """Of what comes back, at most or usually."""
    if request.endpoint.path not in _WRITING:
        return 0
    fields = request.fields
    if fields is None:
        return COMPLETION_TOKENS
    most = COMPLETION_TOKENS
    for name in _BOUNDS:
        said = fields.get(name)
        if type(said) is int and said > 0:
            most = said
            break
    choices = fields.get("n")
    return most * choices if type(choices) is int and 1 < choices <= 128 else most
