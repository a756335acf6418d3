"""One line for each change of state, whatever the parts do."""

import logging

import pytest

from penstock.cache.remote.state import State, Watch


def test_a_line_is_logged_when_the_sum_changes_and_only_then(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    watch = Watch(logging.getLogger("test"), "single:host:1", "hunter2")
    watch.went_down(ValueError("hunter2 is wrong"))
    watch.went_down(None)
    watch.filled()
    watch.came_up()
    watch.came_up()
    assert watch.state is State.FULL
    watch.filled()
    watch.emptied()
    watch.emptied()
    watch.went_down(None)
    assert [record.getMessage() for record in caplog.records] == [
        "l2_down redis=single:host:1 reason=ValueError: *** is wrong",
        "l2_full redis=single:host:1 reason=answers again, and its memory is full",
        "l2_up redis=single:host:1 reason=stores again",
        "l2_down redis=single:host:1 reason=no answer in time",
    ]
