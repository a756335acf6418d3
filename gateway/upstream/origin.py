"""Where a backend lives: its URL, taken apart once when configuration is loaded.

Pure: nothing here resolves a name or opens a socket.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote, urlsplit

_DEFAULT_PORT = {"http": 80, "https": 443}
_FORBIDDEN_IN_PATH = frozenset(chr(code) for code in range(0x21)) | {"\x7f"}


@dataclass(frozen=True, slots=True)
class Origin:
    """A backend's address and what its requests are built from.

    ``host_header`` is ready for the ``Host`` field (the port is left out where it is the scheme's own) and
    ``base_path`` is what every request path is appended to: empty, or ``/something`` without a trailing
    slash. ``uds`` is the path of a Unix socket, and then ``host`` is ``localhost`` and ``port`` 0.
    """

    scheme: Literal["http", "https"]
    host: str
    port: int
    uds: str | None
    host_header: str
    base_path: str

    @property
    def name(self) -> str:
        """What labels and logs call it: ``host:port``, or the socket's path."""
        if self.uds is not None:
            return self.uds
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @classmethod
    def parse(cls, url: str) -> Origin:
        """Read ``http://host[:port][/base]``, ``https://…`` or ``unix:///path/of.sock``.

        Raises ValueError, in words meant for whoever wrote the URL, on anything else: other schemes, user
        names, queries, fragments, ports out of range, and characters that could break out of a request line.
        """
        if any(char in _FORBIDDEN_IN_PATH or ord(char) > 0x7E for char in url):
            raise ValueError("a backend URL is printable ASCII without spaces")
        try:
            parts = urlsplit(url)
        except ValueError:
            raise ValueError("a backend URL closes the brackets around its address") from None
        if parts.query or parts.fragment or url.endswith(("?", "#")):
            raise ValueError("a backend URL has no query and no fragment")
        if parts.scheme == "unix":
            if parts.netloc or not parts.path.startswith("/") or parts.path == "/":
                raise ValueError("a Unix socket is written unix:///path/of.sock")
            path = unquote(parts.path)
            if "\0" in path:
                raise ValueError("a Unix socket's path has no NUL")
            return cls("http", "localhost", 0, path, "localhost", "")
        if parts.scheme not in ("http", "https"):
            raise ValueError("a backend URL starts with http://, https:// or unix:///")
        scheme: Literal["http", "https"] = "https" if parts.scheme == "https" else "http"
        if "@" in parts.netloc:
            raise ValueError("a backend URL carries no user name or password")
        try:
            host, port = parts.hostname, parts.port
        except ValueError:
            raise ValueError("the port of a backend URL is a number from 1 to 65535") from None
        if not host:
            raise ValueError("a backend URL names a host")
        if ":" not in host and not all(0 < len(label) < 64 for label in host.removesuffix(".").split(".")):
            raise ValueError("a backend URL's host is made of labels of 1 to 63 characters")
        if port == 0 or parts.netloc.endswith(":"):
            raise ValueError("the port of a backend URL is a number from 1 to 65535")
        literal = f"[{host}]" if ":" in host else host
        if port is None or port == _DEFAULT_PORT[scheme]:
            return cls(scheme, host, port or _DEFAULT_PORT[scheme], None, literal, parts.path.rstrip("/"))
        return cls(scheme, host, port, None, f"{literal}:{port}", parts.path.rstrip("/"))
