"""Which texts in a configuration are addresses, not names, and whose."""

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

_WITH_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.%]+)\]|([0-9.]+)):([0-9]{1,5})")


def nameserver(text: str) -> tuple[str, int]:
    """Address and port of a name server, written `address` or `address:port`; IPv6 before a port stands in brackets.

    Raises ValueError for anything else, names among it.
    """
    found = _WITH_PORT.fullmatch(text)
    address, port = (found[1] or found[2], int(found[3])) if found else (text, 53)
    ipaddress.ip_address(address)
    if not 1 <= port <= 65_535:
        raise ValueError(f"{port} is no port")
    return address, port


def parts_of(url: str) -> tuple[SplitResult, int | None]:
    """A URL taken apart, and its port. What cannot be taken apart has no host and the port 0: brackets that do not
    close, or a port that is none.
    """
    try:
        parts = urlsplit(url)
        return parts, parts.port
    except ValueError:
        return SplitResult(url.partition("://")[0].lower(), "", "", "", ""), 0


def is_address(url: str) -> bool:
    """Whether a URL names a socket or an IP address instead of a host."""
    if url.startswith("unix:"):
        return True
    try:
        ipaddress.ip_address(urlsplit(url).hostname or "")
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
