"""nghttpx, a server of HTTP/2 that was not written here, before a server of HTTP/1.1."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from .procs import Proc, free_port

NGHTTPX = shutil.which("nghttpx") or shutil.which("nghttpx", path="/usr/sbin")

needs_nghttpx = pytest.mark.skipif(NGHTTPX is None, reason="nghttpx is not installed (make test-tools)")


@contextmanager
def nghttpx(backend: str, pem: Path | None = None) -> Iterator[str]:
    """The URL of an nghttpx that speaks HTTP/2, in the clear or over TLS, and HTTP/1.1 to the server at `backend`.

    Fields of both sides pass it as they are.
    """
    if NGHTTPX is None:
        pytest.skip("nghttpx is not installed (make test-tools)")
    port = free_port()
    host, _, behind = backend.removeprefix("http://").rstrip("/").partition(":")
    argv = [
        NGHTTPX,
        f"-b{host},{behind}",
        f"-f127.0.0.1,{port}" + (";no-tls" if pem is None else ""),
        *("--conf=/dev/null", "--no-via", "--no-server-rewrite", "--no-add-x-forwarded-proto"),
        *("--workers=1", "--errorlog-file=/dev/stderr"),
        *([str(pem), str(pem)] if pem is not None else []),
    ]
    url = f"{'http' if pem is None else 'https'}://127.0.0.1:{port}"

    def ready() -> bool:
        try:
            return httpx.get(url + "/health", verify=False, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    with Proc(argv, name="nghttpx", ready=ready, grace_s=1):
        yield url
