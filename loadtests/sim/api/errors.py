"""Errors in vLLM's shapes.

OpenAI dialect: {"error":{"message","type","param","code"}}; Anthropic dialect: {"type":"error","error":{…}}.
"""

from __future__ import annotations

from typing import Any

_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    413: "RequestEntityTooLargeError",
    429: "RateLimitError",
    500: "InternalServerError",
    501: "NotImplementedError",
    503: "ServiceUnavailableError",
}


class ApiError(Exception):
    """Raised by an endpoint before its answer begins; becomes an error response."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, kind: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.kind = kind or _TYPES.get(status, "InternalServerError" if status >= 500 else "BadRequestError")

    def openai(self) -> dict[str, Any]:
        """The body as vLLM's OpenAI endpoints send it."""
        return {
            "error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}
        }

    def anthropic(self) -> dict[str, Any]:
        """The body as vLLM's /v1/messages sends it."""
        return {"type": "error", "error": {"type": self.kind, "message": self.message}}

    def for_path(self, path: str) -> dict[str, Any]:
        """The body in the dialect of the endpoint at `path`."""
        return self.anthropic() if path.startswith("/v1/messages") else self.openai()
