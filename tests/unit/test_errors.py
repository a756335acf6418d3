"""The table of faults is whole, and every fault it holds can be written down in every dialect."""

import msgspec
import pytest

from penstock.gateway.dialects import WORDS
from penstock.gateway.endpoints import Dialect
from penstock.gateway.errors import TABLE, Fault, Kind, Source
from penstock.gateway.faults import fault_of
from penstock.gateway.upstream.fault import FaultKind, UpstreamFault


def test_every_kind_has_a_row_and_a_status_the_server_host_survives() -> None:
    assert set(TABLE) == set(Kind)
    assert all(400 <= spec.status <= 599 for spec in TABLE.values())


def test_statuses_blame_who_they_should() -> None:
    for kind, spec in TABLE.items():
        if spec.source is Source.CLIENT:
            assert spec.status < 500, kind
        if spec.source is Source.UPSTREAM:
            assert spec.status in (502, 503, 504), kind


def test_codes_are_unique() -> None:
    assert len({kind.value for kind in Kind}) == len(Kind)


@pytest.mark.parametrize("kind", FaultKind)
def test_every_failure_of_a_backend_is_a_502_or_504_without_its_detail(kind: FaultKind) -> None:
    fault = fault_of(UpstreamFault(kind, "10.1.2.3 secret detail"))
    assert fault.status == (504 if "timeout" in kind.value else 502)
    assert fault.spec.source is Source.UPSTREAM
    assert "secret" not in fault.message


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("kind", Kind)
def test_every_fault_is_an_error_object_in_every_dialect(kind: Kind, dialect: Dialect) -> None:
    fault = Fault(kind, 'a "message"\nof two lines', param="messages[2].role")
    body = msgspec.json.decode(WORDS[dialect].error_body(fault))
    if dialect is Dialect.MESSAGES:
        assert body["type"] == "error"
        assert set(body["error"]) == {"type", "message"}
    else:
        assert set(body) == {"error"}
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert body["error"]["code"] == kind.value
        assert body["error"]["param"] == "messages[2].role"
    assert body["error"]["message"] == fault.message
    frame = WORDS[dialect].error_frame(fault)
    assert frame.endswith(b"\n\n")
    assert frame.count(b"\n\n") == 1, "one frame is one event"
