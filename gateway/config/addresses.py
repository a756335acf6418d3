"""Which texts in a configuration are addresses, not names."""

import ipaddress
import re
from urllib.parse import urlsplit

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


def is_address(url: str) -> bool:
    """Whether a URL names a socket or an IP address instead of a host."""
    if url.startswith("unix:"):
        return True
    try:
        ipaddress.ip_address(urlsplit(url).hostname or "")
    except ValueError:
        return False
    return True
