"""TLS towards backends, with sessions that are used again.

asyncio (and uvloop) open every TLS connection with a full handshake: neither passes a session to
``wrap_bio``, and neither offers a hook. So the context itself does: a subclass whose ``wrap_bio`` adds the
last session it was given. In TLS 1.3 tickets come after the handshake, so a session is taken from a
connection that has served a call.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any


class _ResumingContext(ssl.SSLContext):
    """A client context that offers ``recall()`` as the session of every new connection."""

    recall: Callable[[], ssl.SSLSession | None]

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        return super().wrap_bio(
            incoming,
            outgoing,
            server_side,
            server_hostname,
            session if session is not None else self.recall(),
        )


class TlsClient:
    """How one backend is spoken to over TLS, and its last session.

    ``ca`` is a PEM file of authorities to trust instead of the system's, ``insecure`` turns verification off,
    ``server_name`` is asked for and verified instead of the URL's host, ``alpn`` is the protocol offered. A
    session is offered for ``session_s`` seconds after it was received. Raises OSError or ssl.SSLError when ``ca``
    cannot be read.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        ca: str | None = None,
        insecure: bool = False,
        server_name: str | None = None,
        session_s: float = 3600.0,
        alpn: str = "http/1.1",
    ) -> None:
        self.server_name = server_name
        self._clock = clock
        self._session_s = session_s
        self._session: ssl.SSLSession | None = None
        self._received = 0.0
        context = _ResumingContext(ssl.PROTOCOL_TLS_CLIENT)
        context.recall = self._recall
        context.set_alpn_protocols([alpn])
        if insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif ca is not None:
            context.load_verify_locations(cafile=ca)
        else:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        self.context: ssl.SSLContext = context

    def remember(self, ssl_object: Any) -> None:
        """Keep the session of a connection that has served a call (an ``ssl.SSLObject``), if it can be
        resumed.
        """
        session = getattr(ssl_object, "session", None)
        if session is not None and (session.has_ticket or session.id):
            self._session = session
            self._received = self._clock()

    def _recall(self) -> ssl.SSLSession | None:
        session = self._session
        if session is not None and self._clock() - self._received >= self._session_s:
            session = self._session = None
        return session
