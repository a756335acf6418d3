"""That the gates of `make check` bite: each is shown something it must refuse."""

import sys
from pathlib import Path

from ..support.procs import run

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def test_bare_folder_names_may_not_be_imported(tmp_path):
    for name in ("cache", "gateway", "workers", "loadtests"):
        (tmp_path / "probe.py").write_text(f"import {name}\n")
        command = [str(BIN / "ruff"), "check", "--config", str(ROOT / "pyproject.toml"), "--select", "TID251"]
        status, output = run([*command, str(tmp_path / "probe.py")])
        assert status == 1
        assert "TID251" in output
