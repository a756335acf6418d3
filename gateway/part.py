"""One caller's part of an answer that several share: whole in memory, with the face of an upstream call."""

from __future__ import annotations

from .buffers import Answer
from .gathered import Gathered, Sink, sliced
from .sent import Sent
from .upstream.call import Call

_WHOLE_BYTES = 64 << 10  # an answer up to this is given at once


class Held:
    """The bytes of a batch's answer: counted until the last who has a part of it is done."""

    __slots__ = ("_users", "account")

    def __init__(self, account: Answer) -> None:
        self.account = account
        self._users = 1

    def share(self) -> None:
        """One more."""
        self._users += 1

    def drop(self) -> None:
        """One less."""
        self._users -= 1
        if not self._users:
            self.account.release()


class Part(Sent):
    """One caller's answer."""

    __slots__ = ("_held",)

    def __init__(self, sent: Sent, body: bytes, held: Held) -> None:
        super().__init__(_Whole(sent.call, body), sent.backend, sent.attempts, sent.fallback)
        self._held: Held | None = held
        held.share()

    def end(self) -> None:
        """Give back what it holds. Idempotent."""
        held, self._held = self._held, None
        if held is not None:
            self.call.abort()
            held.drop()


class _Whole(Call):
    """An answer that is whole in memory, as a call: a short one at once, a long one at the pace of its client."""

    def __init__(self, of: Call, body: bytes) -> None:
        self.status = of.status
        self.headers = of.headers
        self.reused = of.reused
        self.waiter = None
        self.connection = None
        self.between_chunks_s = self.total_deadline = 0.0
        self.content_length = len(body)
        self.complete = len(body) <= _WHOLE_BYTES
        self.body = body if self.complete else b""
        self._ended = True
        self._gathered = Gathered(() if self.complete else sliced(body))

    def attach(self, sink: Sink) -> None:
        """Give the body to ``sink``."""
        if self.complete:
            super().attach(sink)  # type: ignore[arg-type]
        else:
            self._gathered.attach(sink)

    def pause(self) -> None:
        """Give no more until resumed."""
        self._paused = True
        self._gathered.pause()

    def resume(self) -> None:
        """Go on."""
        self._paused = False
        self._gathered.resume()

    def abort(self) -> None:
        """Nobody wants the rest."""
        self._gathered.abort()
