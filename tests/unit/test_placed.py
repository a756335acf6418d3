"""What the end of an answer says of its backend, and that it gives back each place once."""

from types import SimpleNamespace
from typing import Any

import pytest

from penstock.gateway.lease import Lease
from penstock.gateway.placed import Placed
from penstock.gateway.upstream.fault import FaultKind, UpstreamFault

CLOSED = UpstreamFault(FaultKind.CLOSED)


class Told:
    """Breakers, admission, the lease's row: what each was told."""

    def __init__(self) -> None:
        self.of: list[str] = []
        self.breakers = self.admission = self

    def failed(self, backend: object, token: int, why: str) -> None:
        self.of.append("failed")

    def succeeded(self, backend: object, token: int) -> None:
        self.of.append("succeeded")

    def leave(self, model: object, caller: object) -> None:
        self.of.append("left")

    def add(self, backend: int, n: int) -> None:
        self.of.append(f"{n:+d}")


def end(*, doubted: bool = True, status: int = 200, **call: Any) -> list[str]:
    """What is told at the end of such an answer."""
    told = Told()
    model = SimpleNamespace(name="m", pool=None)
    defaults = {"complete": False, "fault": None, "ended": False, "paused": False}
    answer = SimpleNamespace(status=status, abort=lambda: told.of.append("aborted"), **{**defaults, **call})
    errand: Any = SimpleNamespace(caller=None, model=model)
    dispatch: Any = told
    backend: Any = SimpleNamespace(doubted=doubted)
    lease = Lease(told, 0)
    told.of.clear()
    Placed(dispatch, errand, model, backend, lease, answer, 1).end()  # type: ignore[arg-type]
    return told.of


@pytest.mark.parametrize(
    ("call", "word"),
    [
        ({"complete": True, "ended": True}, ["succeeded"]),
        ({"complete": True, "ended": True, "doubted": False}, []),
        ({"complete": True, "ended": True, "status": 404}, ["succeeded"]),
        ({"complete": True, "ended": True, "status": 500}, []),
        ({"ended": True}, ["succeeded"]),
        ({"ended": True, "status": 503}, []),
        ({"fault": CLOSED}, ["failed"]),
        ({"fault": CLOSED, "doubted": False}, ["failed"]),
        ({"fault": CLOSED, "status": 500}, []),
        ({"fault": CLOSED, "paused": True}, []),
        ({}, []),
    ],
    ids=[
        *("whole", "whole, nothing doubted", "a client's error", "an error, told already", "to its end"),
        *(
            "an error to its end",
            "broken off",
            "broken off, first",
            "an error broken off",
            "while paused",
            "left",
        ),
    ],
)
def test_an_end_speaks_of_the_backend_only_where_it_is_its_doing(
    call: dict[str, Any], word: list[str]
) -> None:
    told = end(**call)
    assert [one for one in told if one in ("failed", "succeeded")] == word
    assert told.count("left") == told.count("-1") == 1
    assert ("aborted" in told) is not call.get("complete", False)
