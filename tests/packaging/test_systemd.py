"""deploy/systemd is what systemd takes, and says what the gateway needs."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from penstock.gateway.config import ConfigError, Machine, load

from ..support.procs import run

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "deploy" / "systemd" / "penstock.service"
DROP_IN = UNIT.with_name("penstock.service.d") / "keep.conf"
COMMAND = "/opt/penstock/bin/penstock"
HERE = str(Path(sys.executable).parent / "penstock")

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")


def verify(folder: Path, change: tuple[str, str] = ("", "")) -> tuple[int, str]:
    """What systemd says of the unit and its drop-in, with the command that there is here."""
    text = UNIT.read_text().replace(COMMAND, HERE)
    assert change[0] in text
    (folder / UNIT.name).write_text(text.replace(*change) if change[0] else text)
    shutil.copytree(DROP_IN.parent, folder / DROP_IN.parent.name)
    status, output = run(["systemd-analyze", "verify", "--man=no", str(folder / UNIT.name)])
    # of units of this machine it may say what it likes
    return status, "\n".join(line for line in output.splitlines() if "penstock" in line)


def said(name: str, file: Path = UNIT) -> list[str]:
    """Every value of a setting, in order."""
    return re.findall(rf"(?m)^{name}=(.*)$", file.read_text())


@needs_systemd
def test_systemd_takes_the_unit(tmp_path):
    assert verify(tmp_path) == (0, "")


@needs_systemd
@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("KillMode=mixed", "KillMode=all"),
        ("OOMPolicy=", "OomPolicy="),
        ("TimeoutStopSec=90", "TimeoutStopSec=long"),
        ("ExecStart=", "ExecStart=/nowhere"),
    ],
)
def test_systemd_says_what_it_does_not_take(tmp_path, good, bad):
    """Or the test above would say nothing."""
    status, output = verify(tmp_path, (good, bad))
    assert status or output


def test_a_stop_waits_for_the_drain_and_for_the_pools_servers():
    text = 'models: {m: {pool: {provider: process, command: [serve, "{port}"]}}}'
    config = load(text, {}, machine=Machine(cores=frozenset({0}), max_descriptors=1_000_000))
    pool = config.models["m"].pool
    assert pool is not None
    longest = config.workers.drain_timeout_s + pool.stop_timeout_s

    assert float(said("TimeoutStopSec")[0]) > longest


def test_the_gateway_alone_is_told_to_end_and_with_the_drop_in_its_servers_live_on():
    """As docs/pools.md has it."""
    page = (ROOT / "docs/pools.md").read_text()
    (alone,), (process,) = said("KillMode"), said("KillMode", DROP_IN)
    assert f"`KillMode={alone}` sends SIGTERM to the gateway alone" in page
    assert f"`KillMode={process}` servers live on" in re.sub(r"\s+", " ", page)
    assert said("StateDirectory") == ["penstock"]


@pytest.mark.parametrize(
    ("text", "status"), [("models: {m: {backends: [{url: 'http://a'}]}}", 0), ("models: 1", 2)]
)
def test_a_reload_looks_at_the_file_before_it_tells_the_gateway(tmp_path, text, status):
    check, tell = said("ExecReload")
    (served,) = said("ExecStart")
    file = served.split()[-1]
    (tmp_path / "penstock.yaml").write_text(text)
    argv = check.replace(COMMAND, HERE).replace(file, str(tmp_path / "penstock.yaml")).split()

    assert str(tmp_path / "penstock.yaml") in argv
    assert run(argv)[0] == status
    assert tell == "/bin/kill -HUP $MAINPID"


def test_there_are_more_descriptors_than_a_worker_can_need():
    models = ", ".join(f"m{i}: {{backends: [{{url: 'http://10.0.0.{i}'}}]}}" for i in range(200))
    (limit,) = said("LimitNOFILE")

    def fits(descriptors: int) -> None:
        load(f"models: {{{models}}}", {}, machine=Machine(frozenset({0}), descriptors))

    fits(int(limit))
    with pytest.raises(ConfigError, match="descriptors"):
        fits(16384)
