"""What an admin path answers, good or bad: status, content type and body, errors in the OpenAI envelope."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. headers: beyond `content-type`, lower-case names."""

    body: bytes
    content_type: str = JSON
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, value: object) -> Answer:
        """200 with `value` as JSON."""
        return cls(msgspec.json.encode(value))

    @property
    def fields(self) -> list[tuple[str, str]]:
        """All header fields."""
        return [("content-type", self.content_type), *self.headers]


class Refused(Exception):
    """A request that gets an error instead; the text is its message. param: the field that is to blame."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        self.answer = Answer(msgspec.json.encode(body), status=status, headers=headers)
