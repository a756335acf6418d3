"""One request's leave to be served, and what it has cost in the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...cache.outcome import Outcome
from ..parse import Request
from .estimate import BYTES_PER_TOKEN, FREE, completion_tokens, prompt_tokens
from .purse import Purse
from .usage import StreamUsage, tokens_of

if TYPE_CHECKING:
    from ..life import Life
    from .limits import Limits

#: Who asks a backend pays; who shares an answer, or gets one that is kept, does not.
_PAID = frozenset({Outcome.MISS.value, Outcome.BYPASS.value})


class Grant:
    """Of one request. ``end`` must be called once, when nothing more of its answer will come."""

    # Defaults of the class: a request pays for what it meets alone.
    _reserved = 0
    _prompt = 0
    _body: bytes | None = None
    _stream: StreamUsage | None = None

    def __init__(self, limits: Limits, purse: Purse, running: bool) -> None:
        self._limits = limits
        self._purse = purse
        self._running = running  # counted as such; the key's limits may change meanwhile

    def reserve(self, request: Request) -> None:
        """Set apart what asking a backend may cost; raises :class:`Fault` 429."""
        tpm = self._purse.caller.tpm
        if tpm and not self._reserved and request.endpoint.path not in FREE:
            prompt = prompt_tokens(request)
            # more than a minute's would keep everything else of the key out for longer than anybody meant
            n = min(prompt + completion_tokens(request), tpm)
            self._limits.reserve(self._purse, n)
            self._reserved, self._prompt = n, prompt

    # ---- the answer

    def fields(self, headers: list[tuple[str, str]], body: bytes | None = None) -> list[tuple[str, str]]:
        """An answer's fields, with what it says of the key's limits instead of what its server says of another's.

        ``body``: the answer, where it is whole.
        """
        if self._reserved:
            self._body = body
        for name, _ in headers:
            if "x-ratelimit-" <= name < "x-ratelimit.":  # begins so; half the price of asking
                headers = [field for field in headers if not field[0].startswith("x-ratelimit-")]
                break
        return headers + self._limits.fields(self._purse)

    def streamed(self, life: Life) -> StreamUsage | None:
        """What is to be fed with the answer's body as it goes out; None where nobody wants to know."""
        if self._reserved and life.cache in _PAID:
            self._stream = StreamUsage()
        return self._stream

    def end(self, life: Life) -> None:
        """Settle."""
        purse = self._purse
        purse.told = None
        if self._running:
            own = purse.running
            n = own[0]
            own[0] = n - 1 if n else 0
        if self._reserved:
            self._limits.settle(purse, self._reserved, self._spent(life))
        elif purse.requests < 0:
            self._limits.settle(purse, 0, 0)

    def _spent(self, life: Life) -> int:
        if life.cache not in _PAID:
            return 0
        if life.left:
            return self._reserved  # it went on for others, unseen from here
        if self._stream is not None:
            return self._stream.tokens(self._prompt)
        if life.status == 499:
            return self._prompt if life.upstream_ns else 0
        body = self._body
        if body is None or life.status >= 400:
            return 0
        told = tokens_of(body)
        if told is None:
            told = self._prompt + len(body) // BYTES_PER_TOKEN
        return told
