"""Bare Granian: reads the body, answers 640 bytes, or as many as a cached answer of the path's model has.

The ceiling every figure of the gateway is a fraction of.

It runs under Granian's own server (``granian --interface rsgi``) with the settings the gateway's host uses, and
knows nothing of the gateway.
"""

from __future__ import annotations

from typing import Any

from .payload import SIZED, completion, sized_completion

_REPLY = completion()
_SIZED = {f"/{model}": sized_completion(model) for model in SIZED}
_HEADERS = [("content-type", "application/json"), ("x-request-id", "echo")]


async def app(scope: Any, proto: Any) -> None:
    """Answer any request with the fixed completion."""
    if scope.proto != "http":
        return
    await proto()
    proto.response_bytes(200, _HEADERS, _SIZED.get(scope.path, _REPLY))
