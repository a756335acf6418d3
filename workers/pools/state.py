"""The state folder: what of this gateway's pools outlives it, such as which servers run and what they take of GPUs.

`<base>/<name>-<16 hex digits>/`, mode 0700, named after the configuration's real path and the API port, as the run
directory is: two gateways of one user have two. Unlike the run directory it is on a disk and stays.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path


def base(configured: str | None, environ: Mapping[str, str]) -> Path:
    """`pools.state`, else systemd's `$STATE_DIRECTORY`, else where this user's programs keep their state."""
    if configured is not None:
        return Path(configured)
    given = environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given)
    home = environ.get("XDG_STATE_HOME", "")
    if home.startswith("/"):
        return Path(home) / "penstock"
    return Path(environ.get("HOME") or os.path.expanduser("~")) / ".local" / "state" / "penstock"


def of_gateway(configured: str | None, environ: Mapping[str, str], config: Path, port: int) -> Path:
    """The folder of the gateway with this configuration file and API port; it need not exist."""
    real = os.path.realpath(config)
    digest = hashlib.sha256(f"{real}\n{port}".encode()).hexdigest()[:16]
    stem = "".join(c if c.isalnum() else "-" for c in Path(real).stem)[:32] or "gateway"
    return base(configured, environ).absolute() / f"{stem}-{digest}"


def make(folder: Path) -> Path:
    """Make the folder, and those above it, for this user alone. Raises OSError."""
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    return folder
