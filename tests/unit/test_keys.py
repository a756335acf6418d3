"""A credential is somebody's whole key, known and not expired, or it is refused; no secret is kept."""

import datetime
import hmac
from typing import Any

import pytest

from penstock.gateway import keys as module
from penstock.gateway.config import Keys
from penstock.gateway.errors import Fault, Kind
from penstock.gateway.keys import Key, Keyring, PublishedKeys, hashed

NOW = 1_800_000_000.0
SECRET = "sk-penstock-one"


def ring(keys: dict[str, Key] | None, **rows: int) -> Keyring:
    return Keyring(PublishedKeys(generation=3, source=Keys(file="k"), keys=keys, rows=rows), lambda: NOW)


def key(secret: str = SECRET, **told: Any) -> Key:
    return Key(hash=hashed(secret), tenant="acme", **told)


def refused(keyring: Keyring, credential: str) -> Fault:
    with pytest.raises(Fault) as caught:
        keyring.who(credential)
    return caught.value


def test_a_caller_is_all_that_its_key_says() -> None:
    at = datetime.datetime.fromtimestamp(NOW + 60, datetime.UTC)
    told = {"rpm": 60, "tpm": 1000, "concurrent": 4, "burst": 9, "priority": -1, "weight": 2.5}
    caller = ring({"key_1": key(models=("a", "b"), expires=at, **told)}, key_1=7).who(SECRET)
    assert {name: getattr(caller, name) for name in told} == told
    assert (caller.id, caller.tenant, caller.row) == ("key_1", "acme", 7)
    assert (caller.models, caller.expires_s) == ({"a", "b"}, NOW + 60)
    assert caller.may_use("a", "x")
    assert caller.may_use("alias", "b")
    assert not caller.may_use("alias", "x")


def test_a_key_without_limits_has_no_row_and_may_use_every_model() -> None:
    caller = ring({"key_1": key()}).who(SECRET)
    assert (caller.row, caller.models, caller.expires_s) == (-1, None, 0.0)
    assert caller.may_use("whatever", "it is")


@pytest.mark.parametrize(
    "credential",
    ["", "x", SECRET + "x", SECRET[:-1], SECRET.upper(), hashed(SECRET), "é" * 40, "a" * 100_000],
)
def test_what_is_no_key_is_refused_alike(credential: str) -> None:
    fault = refused(ring({"key_1": key()}), credential)
    assert (fault.kind, fault.status) == (Kind.UNAUTHORIZED, 401)
    assert ("www-authenticate", "Bearer") in fault.headers
    assert credential not in fault.message or not credential or credential == "x"


def test_a_key_ends_at_its_expiry_and_not_before() -> None:
    def at(seconds: float) -> Keyring:
        when = datetime.datetime.fromtimestamp(NOW + seconds, datetime.UTC)
        return ring({"key_1": key(expires=when)})

    assert at(1).who(SECRET).id == "key_1"
    assert "expired" in refused(at(0), SECRET).message
    assert refused(at(-1), SECRET).status == 401
    assert refused(at(-NOW), SECRET).status == 401, "1970 is not never"


def test_the_whole_digest_is_compared_and_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    genuine = hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return genuine(a, b)

    monkeypatch.setattr(module.hmac, "compare_digest", compare)
    half = key().hash[: len(module.SCHEME) + 32]
    impostor = ring({"key_1": Key(hash=half + "0" * 32, tenant="acme")})
    assert refused(impostor, SECRET).status == 401
    ring({"key_1": key()}).who(SECRET)
    assert [(len(a), len(b)) for a, b in compared] == [(32, 32), (32, 32)]


def test_nobody_is_let_in_before_keys_were_read_and_all_are_told_to_come_back() -> None:
    for credential in ("", SECRET):
        fault = refused(ring(None), credential)
        assert (fault.kind, fault.status) == (Kind.KEYS_UNKNOWN, 503)
        assert fault.retry_after_s


def test_no_secret_stays_in_a_keyring() -> None:
    import gc

    keyring = ring({"key_1": key()})
    keyring.who("sk-" + "penstock-one")
    seen: list[object] = [keyring]
    known = set()
    while seen:
        one = seen.pop()
        if id(one) in known or isinstance(one, type) or callable(one):
            continue
        known.add(id(one))
        assert one not in (SECRET, SECRET.encode()) if isinstance(one, str | bytes) else True
        seen += gc.get_referents(one)
