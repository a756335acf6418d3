"""What a request says about caching, and whether the cache has anything to do with it."""

from typing import Any

import pytest

from penstock.cache.outcome import NoCache
from penstock.gateway.caching import MAX_TTL_S, PLAIN, Directives, directives, veto
from penstock.gateway.errors import Fault

from .requests import chat, parsed, raw


def said(fields: dict[str, Any] | None = None, control: str = "", ttl: str = "") -> Directives:
    request = raw(b"{}")
    request.cache_control, request.cache_ttl = control, ttl
    return directives(request, fields if fields is not None else {})


def asked(made: Directives) -> tuple[bool, bool, int | None, int | None]:
    return made.read, made.write, made.ttl_ms, made.max_age_ms


def test_a_request_that_says_nothing_may_be_read_and_written() -> None:
    assert said() is PLAIN
    assert asked(PLAIN) == (True, True, None, None)


@pytest.mark.parametrize(
    ("control", "expected"),
    [
        ("no-cache", (False, True, None, None)),
        ("NO-STORE", (True, False, None, None)),
        ("no-cache, no-store", (False, False, None, None)),
        ("max-age=60", (True, True, None, 60_000)),
        ("max-age=60,no-store", (True, False, None, 60_000)),
        ('max-age="5"', (True, True, None, 5_000)),
        ("max-age=60, max-age=10", (True, True, None, 10_000)),
        ("max-age=-1, only-if-cached, private, x=y, ,=", (True, True, None, None)),
        ("max-age=" + "9" * 500, (True, True, None, 999_999_999_999_000)),
    ],
)
def test_cache_control_is_understood(control: str, expected: object) -> None:
    assert asked(said(control=control)) == expected


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ({}, (True, True, None, None)),
        ({"ttl": 60}, (True, True, 60_000, None)),
        ({"ttl": 0.0015}, (True, True, 2, None)),
        ({"ttl": 0}, (True, False, 0, None)),
        ({"no-cache": True}, (False, True, None, None)),
        ({"no-store": True}, (True, False, None, None)),
        ({"no-cache": False, "no-store": False}, (True, True, None, None)),
        ({"s-maxage": 10}, (True, True, None, 10_000)),
        ({"s-max-age": 1.5}, (True, True, None, 1_500)),
        ({"something": "new"}, (True, True, None, None)),
    ],
)
def test_the_body_object_is_understood(wish: object, expected: object) -> None:
    assert asked(said({"cache": wish})) == expected


def test_a_namespace_is_taken_from_the_body() -> None:
    assert said({"cache": {"namespace": "team-a"}}).namespace == "team-a"
    assert said({"cache": {}}).namespace == ""


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"cache": 1}, "cache"),
        ({"cache": []}, "cache"),
        ({"cache": {"ttl": "60"}}, "cache.ttl"),
        ({"cache": {"ttl": True}}, "cache.ttl"),
        ({"cache": {"ttl": -1}}, "cache.ttl"),
        ({"cache": {"ttl": MAX_TTL_S + 1}}, "cache.ttl"),
        ({"cache": {"s-maxage": None}}, "cache.s-maxage"),
        ({"cache": {"no-cache": 1}}, "cache.no-cache"),
        ({"cache": {"namespace": ""}}, "cache.namespace"),
        ({"cache": {"namespace": "x" * 129}}, "cache.namespace"),
        ({"cache": {"namespace": 5}}, "cache.namespace"),
    ],
)
def test_what_cannot_be_understood_in_the_body_is_a_400(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Fault) as refused:
        said(fields)
    assert (refused.value.status, refused.value.param) == (400, param)


@pytest.mark.parametrize("ttl", ["x", "-1", "1.5", "9" * 9, "\u0661", " "])
def test_a_ttl_that_is_no_number_of_seconds_is_a_400(ttl: str) -> None:
    with pytest.raises(Fault) as refused:
        said(ttl=ttl)
    assert (refused.value.status, refused.value.param) == (400, "x-penstock-cache-ttl")


def test_a_ttl_by_header_is_in_seconds_and_the_body_has_the_last_word() -> None:
    assert said(ttl="60").ttl_ms == 60_000
    assert said({"cache": {"ttl": 5}}, ttl="60").ttl_ms == 5_000
    assert said(ttl="0").write is False


@pytest.mark.parametrize(
    ("made", "opted"),
    [
        (said(), False),
        (said(control="no-cache"), False),
        (said({"cache": {}}), False),
        (said({"cache": {"no-cache": True}}), False),
        (said({"cache": {"use-cache": False}}), False),
        (said({"cache": {"use-cache": True}}), True),
        (said({"cache": {"ttl": 1}}), True),
        (said({"cache": {"s-maxage": 1}}), True),
        (said({"cache": {"namespace": "n"}}), True),
        (said(ttl="1"), True),
    ],
)
def test_opting_in_is_asking_for_something_of_the_cache(made: Directives, opted: bool) -> None:
    request = parsed(chat(seed=1))
    assert veto(request, "opt_in", made) is (None if opted else NoCache.NOT_OPTED_IN)


def test_the_mode_decides_what_is_cached() -> None:
    sampled = parsed(chat(temperature=0.7))
    exact = parsed(chat(temperature=0))
    assert veto(sampled, "deterministic", PLAIN) is NoCache.NONDETERMINISTIC
    assert veto(exact, "deterministic", PLAIN) is None
    assert veto(sampled, "all", PLAIN) is None
    assert veto(exact, "off", PLAIN) is NoCache.OFF


def test_a_request_that_may_neither_be_read_nor_written_has_nothing_to_do_with_the_cache() -> None:
    request = parsed(chat(temperature=0))
    assert veto(request, "all", said(control="no-cache, no-store")) is NoCache.NO_STORE
    assert veto(request, "all", said(control="no-store")) is None
    assert veto(request, "all", said(control="no-cache")) is None
