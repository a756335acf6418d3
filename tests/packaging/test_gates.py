"""The gates of `make check` that are no tests, so that `make test` alone shows them too."""

import os
import sys
from pathlib import Path

import pytest

from ..support.procs import run

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
SOURCES = ["cache", "gateway", "workers", "loadtests", "tests"]


@pytest.fixture
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.usefixtures("_at_the_root")
@pytest.mark.parametrize(
    "words",
    [
        ["ruff", "format", "--check", *SOURCES],
        ["ruff", "check", *SOURCES],
        ["mypy"],
        ["lint-imports", "--no-cache"],
    ],
    ids=["format", "lint", "types", "layers"],
)
@pytest.mark.timeout(300)
def test_the_gate_is_passed(words, tmp_path):
    links = tmp_path / "penstock"
    links.mkdir()
    for folder in SOURCES[:-1]:
        (links / folder).symlink_to(ROOT / folder)
    environ = {
        "MYPYPATH": os.fspath(tmp_path),
        "MYPY_CACHE_DIR": os.fspath(tmp_path / "cache"),
        "NO_COLOR": "1",
    }
    status, output = run([str(BIN / words[0]), *words[1:]], env=environ, timeout_s=280)
    assert status == 0, output


def test_bare_folder_names_may_not_be_imported(tmp_path):
    for name in SOURCES[:-1]:
        (tmp_path / "probe.py").write_text(f"import {name}\n")
        command = [str(BIN / "ruff"), "check", "--config", str(ROOT / "pyproject.toml"), "--select", "TID251"]
        status, output = run([*command, str(tmp_path / "probe.py")])
        assert status == 1
        assert "TID251" in output
