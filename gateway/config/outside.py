"""What a configuration names that lies outside of it, a variable or a file, and that may not be there."""

from collections.abc import Iterator, Mapping

from .faults import Fault


def unset(path: str, variable: str | None, environ: Mapping[str, str]) -> Iterator[Fault]:
    """A variable that has no value. None: none is named."""
    if variable is not None and not environ.get(variable):
        yield path, f"environment variable {variable} is not set", "set it before starting"


def unreadable(path: str, file: str) -> Iterator[Fault]:
    """A file that this process may not read."""
    try:
        with open(file, "rb") as opened:
            opened.read(1)
    except OSError as fault:
        yield path, f"cannot read {file}: {fault.strerror}", "correct the path or its rights"
