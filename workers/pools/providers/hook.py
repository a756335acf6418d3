"""A signed POST that is repeated until it is accepted, refused or too late.

What cannot be known is whether a POST without an answer was heard. So each repetition has the same `idempotency-key`,
and a new time and signature, because receivers refuse old ones. Repeated are those that came to nothing: no
connection, no whole head of an answer in time, 429 and 5xx. Any other status is the receiver's word; a redirect is
not followed, for the signature is meant for the URL that the operator wrote. Refuses to know what is said.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import ssl
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from urllib.parse import quote

import httpx
import msgspec

from ..quote import one_line, said
from .base import ProviderFault

log = logging.getLogger(__name__)

SIGNATURE = "x-penstock-signature"
IDEMPOTENCY_KEY = "idempotency-key"
_PLAIN = "!#$&'()*+,/:;=?@[]|"
"""What a header may hold beside letters and digits; the rest of a key, of a model's name, is percent-encoded there."""
_FIRST_DELAY_S = 0.25
_MOST_DELAY_S = 10.0
_MOST_BYTES = 4096


def sign(secret: str, body: bytes, at_s: int) -> str:
    """`t=<Unix seconds>,v1=<hex>`: HMAC-SHA256 over the time, a full stop and the body.

    The time is signed with it, so that what was overheard once cannot be said again later.
    """
    signed = hmac.new(secret.encode(), b"%d." % at_s + body, hashlib.sha256)
    return f"t={at_s},v1={signed.hexdigest()}"


class Hook:
    """One URL.

    timeout_s: for each attempt. now_s: the wall clock. first_delay_s: the first pause; each is twice the one before.
    """

    def __init__(
        self,
        url: str,
        secret: str,
        timeout_s: float,
        now_s: Callable[[], float],
        first_delay_s: float = _FIRST_DELAY_S,
    ) -> None:
        self._url = url
        self._secret = secret
        self._timeout_s = timeout_s
        self._now_s = now_s
        self._first_delay_s = first_delay_s
        self._client: httpx.AsyncClient | None = None

    async def post(self, fields: Mapping[str, object], key: str, deadline_s: float) -> None:
        """Say it until it is accepted. Raises ProviderFault: refused, or not accepted within `deadline_s`."""
        clock = asyncio.get_running_loop().time
        until = clock() + deadline_s
        delay = self._first_delay_s
        attempts = 0
        while True:
            attempts += 1
            trouble, after_s = await self._once(fields, key, min(self._timeout_s, until - clock()))
            if trouble is None:
                log.info("webhook_accepted key=%s attempts=%d", quote(key, safe=_PLAIN), attempts)
                return
            pause = max(delay, after_s)
            if clock() + pause >= until:
                raise ProviderFault(f"webhook: {trouble} ({attempts} attempts)")
            words = (quote(key, safe=_PLAIN), attempts + 1, pause, trouble)
            log.info("webhook_again key=%s attempt=%d in_s=%.2f: %s", *words)
            await asyncio.sleep(pause)
            delay = min(2 * delay, _MOST_DELAY_S)

    async def _once(
        self, fields: Mapping[str, object], key: str, timeout_s: float
    ) -> tuple[str | None, float]:
        """What was wrong with one attempt, None when it was accepted, and how long the receiver wants to be let be."""
        now = int(self._now_s())
        body = msgspec.json.encode({**fields, "sent_at": now})
        headers = {
            "content-type": "application/json",
            "user-agent": "penstock",
            SIGNATURE: sign(self._secret, body, now),
            IDEMPOTENCY_KEY: quote(key, safe=_PLAIN),
        }
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._connected().stream("POST", self._url, content=body, headers=headers) as answer,
            ):
                if answer.is_success:
                    return None, 0.0  # what else it says is nobody's business
                words = said(await _start_of(answer))
                if answer.status_code == 429 or answer.status_code >= 500:
                    return f"answered {answer.status_code}{words}", self._retry_after_s(answer)
        except TimeoutError:
            return f"no answer within {timeout_s:.3g} s", 0.0
        except httpx.InvalidURL as fault:
            raise ProviderFault(f"webhook: {one_line(str(fault))}") from None
        except (httpx.HTTPError, httpx.StreamError, OSError) as fault:
            return one_line(str(fault)) or type(fault).__name__, 0.0
        if answer.is_redirect:
            raise ProviderFault(f"webhook answered {answer.status_code}: redirects are not followed")
        raise ProviderFault(f"webhook answered {answer.status_code}{words}")

    def _retry_after_s(self, answer: httpx.Response) -> float:
        """What `Retry-After` says, in either of its forms; 0 where it says nothing that makes sense."""
        text = answer.headers.get("retry-after", "").strip()
        if text.isascii() and text.isdigit():
            return float(text[:9])
        try:
            return max(parsedate_to_datetime(text).timestamp() - self._now_s(), 0.0)
        except (ValueError, OverflowError, OSError):
            return 0.0

    def _connected(self) -> httpx.AsyncClient:
        if self._client is None:
            # the system's authorities, not those that come with a package: a receiver of one's own is signed by them
            verify: ssl.SSLContext | bool = self._url.startswith("https:") and ssl.create_default_context()
            transport = httpx.AsyncHTTPTransport(
                verify=verify, limits=httpx.Limits(max_keepalive_connections=0)
            )
            self._client = httpx.AsyncClient(
                transport=transport,
                trust_env=False,
                timeout=None,
                headers={"accept-encoding": "identity", "connection": "close"},
            )
        return self._client

    async def close(self) -> None:
        """Close the client."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()


async def _start_of(answer: httpx.Response) -> bytes:
    got = bytearray()
    async for piece in answer.aiter_raw(_MOST_BYTES):
        got += piece
        if len(got) >= _MOST_BYTES:
            break
    return bytes(got)
