"""`make test-vllm`: the conformance suite with a real vLLM behind the gateway, and a pool of real vLLM servers.

    python -m tests.vllm.run [pytest arguments]

Builds the environment (`.venv-vllm`, minutes the first time), starts the servers, runs `tests/conformance` and
`tests/vllm` with their URLs in its environment, and ends with pytest's exit status. Where vLLM cannot be installed it
says why and ends with 0: skipped is not failed. `PENSTOCK_TEST_VLLM_URL` names a server that runs
already; then none is started.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from .server import servers
from .setup import CannotInstall, build

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("tests/conformance", "tests/vllm")


def _pytest(arguments: list[str], environment: dict[str, str]) -> int:
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "-o",
        "timeout=600",
        "-rs",
        "-m",
        "not (soak or slow)",
        *FOLDERS,
        *arguments,
    ]
    return subprocess.run(argv, cwd=ROOT, env={**os.environ, **environment}, check=False).returncode


def main(arguments: list[str]) -> int:
    if os.environ.get("PENSTOCK_TEST_VLLM_URL"):
        return _pytest(arguments, {})
    try:
        python = build(ROOT / ".venv-vllm")
    except (CannotInstall, OSError) as error:
        print(f"SKIPPED: a real vLLM cannot be installed here: {error}")
        return 0
    with (
        tempfile.TemporaryDirectory(prefix="penstock-test-vllm-") as folder,
        servers(python, Path(folder)) as running,
    ):
        return _pytest(
            arguments,
            {
                "PENSTOCK_TEST_VLLM_URL": running.generating,
                "PENSTOCK_TEST_VLLM_POOLING_URL": running.pooling,
                "PENSTOCK_TEST_VLLM_KEY": running.key,
                "PENSTOCK_TEST_VLLM_COMMAND": json.dumps(running.command),
                "PENSTOCK_TEST_VLLM_ENVIRONMENT": json.dumps(running.environment),
            },
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
