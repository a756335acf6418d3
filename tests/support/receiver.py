"""A receiver of `provider: webhook`, as an operator would write one: it checks the signature, knows repetitions by
their key, and starts and stops simulators. It answers on a thread of its own; what it does wrong is switched on."""

import contextlib
import hashlib
import hmac
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "a shared secret"


def verify(secret: str, header: str, body: bytes, now_s: float) -> bool:
    """The verifier of docs/pools.md, to the letter."""
    fields = dict(part.partition("=")[::2] for part in header.split(","))
    at_s = fields.get("t", "")
    if not at_s.isdigit() or abs(now_s - int(at_s)) > 300:
        return False
    signed = hmac.new(secret.encode(), f"{at_s}.".encode() + body, hashlib.sha256)
    return hmac.compare_digest(signed.hexdigest(), fields.get("v1", ""))


@dataclass
class Answer:
    """What one POST is answered with. wait: for this before; drop: hang up instead."""

    status: int = 202
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    wait: threading.Event | None = None
    drop: bool = False


@dataclass
class Post:
    """One POST as it came."""

    headers: dict[str, str]
    body: bytes
    genuine: bool

    @property
    def fields(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(self.body)
        return said


class Receiver:
    """answers: what the next POSTs are answered with, each used once; then 202. act: called once for each new key
    that is accepted, or heard although the answer is lost."""

    def __init__(self, act: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.posts: list[Post] = []
        self.acted: list[dict[str, Any]] = []
        self.answers: list[Answer] = []
        self._act = act
        self._keys: set[str] = set()
        self._lock = threading.Lock()
        self.url = ""

    def heard(self, post: Post) -> None:
        """Do it, once for each key."""
        with self._lock:
            key = post.headers["idempotency-key"]
            if not post.genuine or key in self._keys:
                return
            self._keys.add(key)
            self.acted.append(post.fields)
        if self._act is not None:
            self._act(post.fields)

    def next(self) -> Answer:
        with self._lock:
            return self.answers.pop(0) if self.answers else Answer()


@contextmanager
def receiver(
    act: Callable[[dict[str, Any]], None] | None = None, tls: tuple[str, str] | None = None
) -> Iterator[Receiver]:
    """A receiver that listens. tls: certificate and key."""
    seen = Receiver(act)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {key.lower(): value for key, value in self.headers.items()}
            genuine = verify(SECRET, headers.get("x-penstock-signature", ""), body, time.time())
            post = Post(headers, body, genuine)
            seen.posts.append(post)
            answer = seen.next()
            if answer.status < 300 or answer.drop:
                seen.heard(post)
            if answer.wait is not None:
                answer.wait.wait(30)
            if answer.drop:
                self.close_connection = True
                return
            self.send_response(answer.status if genuine else 401)
            for key, value in answer.headers.items():
                self.send_header(key, value)
            if "content-length" not in answer.headers:
                self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def handle(self) -> None:
            with contextlib.suppress(OSError):  # the client is gone
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    seen.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}/hook"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
