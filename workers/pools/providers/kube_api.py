"""The Kubernetes API over plain httpx: one request as often as it takes, and what the server says to it.

A request is repeated after 429 (when the server says), 5xx and connections that break, with a back-off, until its
deadline or until nothing has answered for `patience_s`; after 401 once, with the token as it then is. That is safe for
what is asked here: names are given, not made up by the server, and changes say which version they are of, so that what
was done although its answer was lost shows as 409. Bodies are read up to a bound. It knows nothing of pools.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeAlias

import httpx
import msgspec

from .base import ProviderFault
from .kube_access import KubeAccess
from .kube_place import Place

Json: TypeAlias = dict[str, Any]

MOST_BYTES = 16 << 20
MOST_LINE = 4 << 20
_PAGE = 500
_MOST_PAGES = 40
_MOST_WORDS = 400
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class KubeFault(ProviderFault):
    """The API server refused, or did not answer. status: HTTP's, 0 without an answer. reason: Kubernetes' own word."""

    def __init__(self, text: str, status: int = 0, reason: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason

    @property
    def for_good(self) -> bool:
        """Whether asking again later, the same way, is useless until somebody changes something."""
        return self.status in (400, 401, 403, 404, 405, 415, 422)


class KubeApi:
    """A client. clock: monotonic seconds. patience_s: with no answer for so long it is given up."""

    def __init__(
        self,
        access: KubeAccess,
        *,
        clock: Callable[[], float],
        patience_s: float = 30.0,
        retry_s: float = 0.25,
        most_retry_s: float = 5.0,
    ) -> None:
        self.access = access
        self._clock = clock
        self._patience_s = patience_s
        self._retry_s = retry_s
        self._most_retry_s = most_retry_s
        self._client: httpx.AsyncClient | None = None
        #: why the last try got no use; None after one that did
        self.trouble: KubeFault | None = None

    async def get(self, place: Place, *, timeout_s: float = 30.0) -> Json:
        """One object. Raises KubeFault: 404 when there is none."""
        return await self._ask("GET", "get", place, timeout_s)

    async def list(
        self, place: Place, *, labels: str = "", name: str = "", timeout_s: float = 30.0
    ) -> tuple[list[Json], str]:
        """The objects of a selection, page by page, and the version as of which they are so."""
        params = _selection(labels, name) | {"limit": str(_PAGE)}
        items: list[Json] = []
        for _ in range(_MOST_PAGES):
            page = await self._ask("GET", "list", place, timeout_s, params=params)
            items += [one for one in page.get("items") or () if isinstance(one, dict)]
            meta = page.get("metadata") or {}
            if not meta.get("continue"):
                return items, str(meta.get("resourceVersion", ""))
            params["continue"] = str(meta["continue"])
        raise KubeFault(f"more than {_PAGE * _MOST_PAGES} {place.words}")

    async def create(self, place: Place, body: Json, *, timeout_s: float = 30.0) -> Json:
        """A new object; `place` is where its kind is. Raises KubeFault: 409 when there is one of this name."""
        return await self._ask("POST", "create", place, timeout_s, body)

    async def replace(self, place: Place, body: Json, *, timeout_s: float = 30.0) -> Json:
        """PUT. Raises KubeFault: 409 when `metadata.resourceVersion` is not the object's any more."""
        return await self._ask("PUT", "update", place, timeout_s, body)

    async def merge(self, place: Place, body: Json, *, timeout_s: float = 30.0) -> Json:
        """A JSON merge patch (RFC 7386); with `metadata.resourceVersion` in it only of that version."""
        return await self._ask(
            "PATCH", "patch", place, timeout_s, body, content_type="application/merge-patch+json"
        )

    async def delete(
        self,
        place: Place,
        *,
        uid: str,
        version: str = "",
        grace_s: int | None = None,
        timeout_s: float = 30.0,
    ) -> Json:
        """End this very object, and with `version` only as it was then. Raises KubeFault: 404, 409."""
        terms: Json = {"uid": uid} | ({"resourceVersion": version} if version else {})
        body: Json = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": terms}
        if grace_s is not None:
            body["gracePeriodSeconds"] = grace_s
        return await self._ask("DELETE", "delete", place, timeout_s, body)

    async def watch(
        self, place: Place, version: str, *, labels: str = "", name: str = "", for_s: float = 60.0
    ) -> AsyncGenerator[Json, None]:
        """What changes after `version`, until the server ends it: after `for_s` at the latest. One try: who watches
        knows what to do next. Raises KubeFault."""
        params = _selection(labels, name) | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(max(round(for_s), 1)),
        }
        # bytes may be far between, but the server ends it by itself
        limits = httpx.Timeout(10.0, read=for_s + 10.0)
        try:
            async with self._open().stream(
                "GET", place.path, params=params, headers=self._headers(None), timeout=limits
            ) as answer:
                if answer.status_code != 200:
                    raise _fault("watch", place, answer.status_code, await _read(answer))
                async with aclosing(_lines(answer)) as lines:
                    async for line in lines:
                        yield _object(line)
        except (httpx.HTTPError, httpx.StreamError, TimeoutError, OSError) as fault:
            raise self._unanswered(fault) from None

    async def close(self) -> None:
        """Close its connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def _ask(
        self,
        method: str,
        verb: str,
        place: Place,
        timeout_s: float,
        body: Json | None = None,
        *,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Json:
        began = self._clock()
        pause_s, renewed = self._retry_s, False
        content = msgspec.json.encode(body) if body is not None else None
        while True:
            left_s = timeout_s - (self._clock() - began)
            wait_s = pause_s
            try:
                async with (
                    asyncio.timeout(max(left_s, 0.05)),
                    self._open().stream(
                        method,
                        place.path,
                        params=params,
                        content=content,
                        headers=self._headers(content_type if content is not None else None),
                        timeout=httpx.Timeout(10.0),
                    ) as answer,
                ):
                    got = await _read(answer)
                    if answer.is_success:
                        self.trouble = None
                        return _object(got)
                    fault = _fault(verb, place, answer.status_code, got)
                    wait_s = max(_after(answer.headers.get("retry-after")), pause_s)
            except (httpx.HTTPError, httpx.StreamError, TimeoutError, OSError) as broken:
                fault = self._unanswered(broken)
            self.trouble = fault if not fault.for_good and fault.status not in (409, 410) else None
            spent_s = self._clock() - began
            if fault.status == 401 and not renewed:
                renewed = True
            elif fault.status and fault.status not in _AGAIN:
                raise fault
            if spent_s + wait_s >= min(timeout_s, self._patience_s if fault.status != 429 else timeout_s):
                raise fault
            await asyncio.sleep(wait_s)
            pause_s = min(pause_s * 2, self._most_retry_s)

    def _open(self) -> httpx.AsyncClient:
        if self._client is None:
            # authorities are read from disk for those alone that prove who they are
            verify: ssl.SSLContext | bool = self.access.server.startswith("https:")
            try:
                if verify and self.access.ca is not None:
                    verify = ssl.create_default_context(cafile=str(self.access.ca))
            except (OSError, ssl.SSLError) as fault:
                raise KubeFault(f"the Kubernetes API's authority cannot be read: {fault}") from None
            self._client = httpx.AsyncClient(
                base_url=self.access.server, verify=verify, trust_env=False, follow_redirects=False
            )
        return self._client

    def _headers(self, content_type: str | None) -> dict[str, str]:
        # encodings could make much of a little
        headers = {"accept": "application/json", "accept-encoding": "identity", "user-agent": "penstock"}
        if content_type is not None:
            headers["content-type"] = content_type
        try:
            token = self.access.token()
        except ProviderFault as fault:
            raise KubeFault(str(fault)) from None
        if token:
            headers["authorization"] = f"Bearer {token}"
        return headers

    def _unanswered(self, fault: BaseException) -> KubeFault:
        said = " ".join(str(fault).split())[:_MOST_WORDS] or type(fault).__name__
        return KubeFault(f"the Kubernetes API at {self.access.server} does not answer: {said}")


def _selection(labels: str, name: str) -> dict[str, str]:
    # a rule of RBAC with resourceNames lets those list and watch that ask by this field
    return ({"labelSelector": labels} if labels else {}) | (
        {"fieldSelector": f"metadata.name={name}"} if name else {}
    )


def _fault(verb: str, place: Place, status: int, body: bytes) -> KubeFault:
    try:
        said = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        said = {}
    said = said if isinstance(said, dict) else {}
    message = " ".join(str(said.get("message") or "").split())[:_MOST_WORDS]
    asked = f"the Kubernetes API answers {status} to {verb} {place.words}"
    return KubeFault(f"{asked}: {message}" if message else asked, status, str(said.get("reason") or ""))


def _after(header: str | None) -> float:
    return float(min(int(header), 3600)) if header and header.isdecimal() and len(header) < 9 else 0.0


def _object(body: bytes) -> Json:
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise KubeFault("the Kubernetes API answers with something that is no JSON object")
    return value


async def _read(answer: httpx.Response) -> bytes:
    got = bytearray()
    async for piece in answer.aiter_raw(65_536):
        got += piece
        if len(got) > MOST_BYTES:
            raise KubeFault(f"the Kubernetes API's answer has more than {MOST_BYTES} bytes")
    return bytes(got)


async def _lines(answer: httpx.Response) -> AsyncGenerator[bytes, None]:
    held = bytearray()
    async for piece in answer.aiter_raw():
        held += piece
        while (end := held.find(b"\n")) >= 0:
            line = bytes(held[:end])
            del held[: end + 1]
            if line.strip():
                yield line
        if len(held) > MOST_LINE:
            raise KubeFault(f"a line of the Kubernetes API's watch has more than {MOST_LINE} bytes")
