"""The suite on a dict, and on L1 between processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .machine import conforms
from .neighbour import Neighbour
from .plain import Plain
from .shared import ROOMY, TINY, Shared


@pytest.fixture(scope="module")
def neighbour() -> Iterator[Neighbour]:
    with Neighbour() as found:
        yield found


def test_a_dict_conforms() -> None:
    conforms(Plain, 60)


def test_l1_with_room_conforms_and_forgets_nothing(neighbour: Neighbour) -> None:
    conforms(lambda: Shared(ROOMY, neighbour, forgets=False), 120)


def test_l1_without_room_conforms(neighbour: Neighbour) -> None:
    conforms(lambda: Shared(TINY, neighbour, forgets=True), 120)
