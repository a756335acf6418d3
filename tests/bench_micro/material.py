"""What the steps are fed with: requests as clients send them, and a fleet as large as a node may have."""

import json
from types import SimpleNamespace

from penstock.cache.rows import Tally, TallyRow
from penstock.cache.segment import Segment
from penstock.gateway.endpoints import ENDPOINTS, Endpoint
from penstock.gateway.raw import RawRequest

CHAT: Endpoint = ENDPOINTS["/v1/chat/completions"]
MODEL = "qwen3-coder"
SLOTS = 32
BACKENDS = 32


def chat(turns: int, **more: object) -> RawRequest:
    """A chat request; two turns make about 700 bytes, forty about 13 KiB."""
    text = "The wicket gates of unit two opened to forty percent and the pressure fell by a bar; is that expected? "
    messages = [
        {"role": ("user", "assistant")[n % 2], "content": f"{n}: {text}{text}{text}"} for n in range(turns)
    ]
    body = json.dumps(
        {"model": MODEL, "messages": messages, "max_tokens": 96, "temperature": 0, "user": "u-17", **more}
    )
    path = CHAT.path
    return RawRequest("POST", path, "", "accept: */*\r\n", "application/json", "r-1", body.encode())


def scope_of(body: bytes) -> SimpleNamespace:
    """What the server host says of a request with this body."""
    headers = {
        "host": "penstock",
        "content-type": "application/json",
        "content-length": str(len(body)),
        "user-agent": "bench",
        "authorization": "Bearer x",
    }
    return SimpleNamespace(
        proto="http",
        http_version="1.1",
        method="POST",
        scheme="http",
        path=CHAT.path,
        query_string="",
        authority=None,
        headers=headers,
        client="127.0.0.1:9",
        server="127.0.0.1:8",
    )


def rows(segment: Segment) -> tuple[TallyRow, Tally]:
    """This worker's row and the sums, with every slot busy."""
    for slot in range(SLOTS):
        row = TallyRow(segment, slot)
        for backend in range(BACKENDS):
            row.add(backend, 1 + (slot * backend) % 7)
    return TallyRow(segment, 0), Tally(segment)
