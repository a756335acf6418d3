"""What types cannot say of a model's backends and fallbacks: URLs nobody could be asked at, and requests in a circle.

Pure, apart from the certificates that the configuration names. Each function yields (path, fault, likely fix).
"""

import os
import ssl
from collections.abc import Iterator, Mapping
from urllib.parse import unquote, urlsplit

from .addresses import is_address, is_loopback, parts_of
from .faults import Fault
from .model import Backend
from .outside import unreadable, unset
from .structs import Config, Listen

_WILDCARDS = ("0.0.0.0", "::")
_LOCAL = {"localhost": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


def backend_faults(config: Config, environ: Mapping[str, str]) -> Iterator[Fault]:
    """Everything that is wrong with the backends and fallbacks of a configuration, in its order."""
    for name, model in config.models.items():
        path = f"$.models.{name}"
        if not model.backends and model.pool is None:
            yield path, "`backends` is missing", "add `backends:` here, or a `pool`"
        seen: set[str] = set()
        for index, backend in enumerate(model.backends):
            place, plain = f"{path}.backends[{index}]", backend.url.rstrip("/")
            yield from _of_one(place, backend, config.listen, environ)
            if plain in seen:
                yield f"{place}.url", f"{plain} is given twice", "remove one, or give it more `weight`"
            seen.add(plain)
        yield from _of_fallbacks(f"{path}.fallbacks", name, model.fallbacks, config)


def _of_one(place: str, backend: Backend, listen: Listen, environ: Mapping[str, str]) -> Iterator[Fault]:
    wrong = _of_url(backend.url)
    if wrong is not None:
        yield f"{place}.url", *wrong
        return
    if backend.discover is not None and is_address(backend.url):
        yield f"{place}.discover", "an address or a path is no name", "remove it"
    if backend.discover == "srv" and urlsplit(backend.url).port is not None:
        yield f"{place}.url", "SRV records say the port", "remove it from the URL"
    if _is_own(backend.url, listen):
        yield (
            f"{place}.url",
            "this is where Penstock itself listens, so a request would go round for ever",
            "name the server's address, or change `listen.port`",
        )
    yield from unset(f"{place}.api_key_env", backend.api_key_env, environ)
    yield from _of_tls(f"{place}.tls", backend)


def _of_url(url: str) -> tuple[str, str] | None:
    """What is wrong with a backend's URL, and the likely fix."""
    if any(c <= " " or c > "~" for c in url):
        return "a space or a character that is not ASCII", "percent-encode it or remove it"
    if url.startswith("unix:"):
        if not url.startswith("unix:///") or len(url) < len("unix:///x"):
            return "not a socket's path", "write unix:///run/vllm.sock"
        return None
    parts, port = parts_of(url)
    if parts.scheme not in ("http", "https"):
        return "not http, https or unix", f"write http://{url.partition('://')[2] or url}"
    if not parts.hostname or port == 0:
        return "no host, or no such port", "write http://host:8000"
    if "@" in parts.netloc:
        return "a user or password in a URL", "put the key in a variable and name it in `api_key_env`"
    if parts.query or parts.fragment:
        return "a query in a backend's URL", "end it after the path"
    if parts.path.rstrip("/").endswith("/v1"):
        return "ends in /v1, which every request's path has already", "remove /v1"
    return None


def _is_own(url: str, listen: Listen) -> bool:
    """Whether this backend is the gateway's own listener, as far as can be told without resolving names."""
    if url.startswith("unix:"):
        return listen.uds is not None and unquote(urlsplit(url).path) == os.path.abspath(listen.uds)
    parts = urlsplit(url)
    if (parts.port or {"http": 80, "https": 443}[parts.scheme]) != listen.port:
        return False
    # to connect to the wildcard is to connect to this machine
    host, own = (_LOCAL.get(name, name) for name in (parts.hostname or "", listen.host.lower()))
    return host == own or (listen.host in _WILDCARDS and is_loopback(host))


def _of_tls(path: str, backend: Backend) -> Iterator[Fault]:
    if backend.tls is None:
        return
    if not backend.url.startswith("https:"):
        yield path, "the URL is not https", "write https:// in the URL, or remove `tls`"
    if backend.tls.ca is None:
        return
    missing = list(unreadable(f"{path}.ca", backend.tls.ca))
    yield from missing
    try:
        if not missing:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(backend.tls.ca)
    except (ssl.SSLError, OSError):
        yield f"{path}.ca", "not a PEM file of certificates", "name another file"


def _of_fallbacks(path: str, name: str, fallbacks: tuple[str, ...], config: Config) -> Iterator[Fault]:
    for index, fallback in enumerate(fallbacks):
        place = f"{path}[{index}]"
        if fallback not in config.models:
            yield place, f"there is no model {fallback}", "name a model, no alias"
        if fallback == name:
            yield place, f"{fallback} is the model itself", "remove it"
        if fallback in fallbacks[:index]:
            yield place, f"{fallback} is named twice", "remove it"
