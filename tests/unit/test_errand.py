"""What of a request's body its backends see: nothing that is meant for the gateway, nothing a key does not allow."""

import msgspec
import pytest

from penstock.gateway.caller import ANYONE, Caller
from penstock.gateway.errand import Errand, body_for
from penstock.gateway.fleet import Route
from penstock.gateway.parse import Parser, Request
from penstock.gateway.portion import portion_of
from penstock.gateway.raw import RawRequest

from .test_batch_text import COMPLETE, ENDPOINTS, MODEL

LATE = Caller("t", id="k", priority=5)


def _parsed(body: bytes) -> Request:
    raw = RawRequest("POST", COMPLETE, "", "", "application/json", "r", body)
    return Parser().parse(ENDPOINTS[COMPLETE], raw)


@pytest.mark.parametrize("filling", [1, 2 << 20])  # a long body is not decoded whole
@pytest.mark.parametrize("name", ['"priority"', '"priorit\\u0079"'])
def test_with_keys_the_priority_in_a_body_is_the_keys(name: str, filling: int) -> None:
    request = _parsed(f'{{"model":"m","prompt":"{"x" * filling}",{name}:-9}}'.encode())
    route = Route(MODEL, None)
    assert msgspec.json.decode(body_for(request, route, LATE))["priority"] == 5
    assert body_for(request, route, ANYONE) is request.body


def test_with_keys_a_body_without_priority_stays_as_it_is() -> None:
    request = _parsed(b'{"model":"m","prompt":"x"}')
    assert body_for(request, Route(MODEL, None), LATE) is request.body


def test_requests_of_keys_with_other_priorities_do_not_share_a_batch() -> None:
    request = _parsed(b'{"model":"m","prompt":"x","priority":-9}')
    raw = RawRequest("POST", COMPLETE, "", "", "application/json", "r", request.body)
    keys = []
    for caller in (LATE, Caller("t", id="l", priority=1)):
        body = body_for(request, Route(MODEL, None), caller)
        errand = Errand(ENDPOINTS[COMPLETE], MODEL, "POST", COMPLETE, raw, body, caller, request)
        portion = portion_of(errand)
        assert portion is not None
        keys.append(portion.key)
    assert keys[0] != keys[1]
