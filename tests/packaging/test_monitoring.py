"""What is made from the lists of metrics, rules and dashboards is current."""

from pathlib import Path

import pytest

from penstock.workers.monitoring.files import files

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", files())
def test_a_file_made_from_the_lists_is_current(name):
    assert (ROOT / name).read_text() == files()[name], "run `make docs`"


def test_no_other_dashboard_lies_beside_those_that_are_made():
    found = {path.relative_to(ROOT).as_posix() for path in (ROOT / "deploy/grafana/dashboards").iterdir()}
    assert found == {name for name in files() if "grafana" in name}
