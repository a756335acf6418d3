"""Which of the running gateways `penstock restart` means."""

from pathlib import Path

import pytest

from penstock.workers.restart import CannotRestart, choose
from penstock.workers.rundir import Owner


def _owner(pid: int, file: str, port: int) -> Owner:
    return Owner(pid, 1, file, port, file)


ONE, TWO, THREE = _owner(1, "/a.yaml", 80), _owner(2, "/b.yaml", 81), _owner(3, "/a.yaml", 82)


def _refusal(running: list[Owner], file: Path | None = None, port: int | None = None) -> str:
    with pytest.raises(CannotRestart) as caught:
        choose(running, file, port)
    return str(caught.value)


def test_the_only_one_and_the_one_asked_for_are_chosen() -> None:
    assert choose([ONE], None, None) is ONE
    assert choose([ONE, TWO], Path("/b.yaml"), None) is TWO
    assert choose([ONE, TWO, THREE], Path("/a.yaml"), 82) is THREE


def test_where_none_fits_what_runs_is_listed() -> None:
    assert _refusal([ONE], port=1) == (
        "no gateway of this user runs on port 1; running: port 80 with /a.yaml (supervisor 1)"
    )
    assert _refusal([], Path("/c.yaml")) == "no gateway of this user runs with /c.yaml; running: none"


@pytest.mark.parametrize(
    ("others", "hint"),
    [
        ([TWO], "with --port"),
        ([_owner(2, "/b.yaml", 80)], "with -c"),
        ([_owner(2, "/b.yaml", 80), THREE], "with -c and --port"),
        ([_owner(2, "/a.yaml", 80)], "send SIGUSR2 to the supervisor that is meant"),
    ],
)
def test_where_several_fit_the_hint_tells_them_apart(others: list[Owner], hint: str) -> None:
    assert _refusal([ONE, *others]).endswith(hint)
