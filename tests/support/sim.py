"""A running simulator (`penstock sim`) for tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from .procs import Proc, console_script, free_port


class Simulator:
    """Handle on a simulator process."""

    def __init__(self, proc: Proc, port: int, headers: dict[str, str]) -> None:
        self.proc = proc
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._headers = headers

    @property
    def pid(self) -> int:
        return self.proc.pid

    def stats(self) -> dict[str, Any]:
        """What it counted since its start or the last `reset`."""
        answer = httpx.get(f"{self.url}/sim/stats", headers=self._headers, timeout=10, trust_env=False)
        answer.raise_for_status()
        result: dict[str, Any] = answer.json()
        return result

    def faults(self, faults: dict[str, Any]) -> None:
        """Switch faults; an empty dict switches all off."""
        self._post("/sim/faults", faults)

    def reset(self) -> None:
        """Counts to zero, faults off."""
        self._post("/sim/reset", {})

    def log(self) -> str:
        return self.proc.log()

    def _post(self, path: str, body: dict[str, Any]) -> None:
        httpx.post(
            self.url + path, json=body, headers=self._headers, timeout=10, trust_env=False
        ).raise_for_status()


@contextmanager
def simulator(*args: str, port: int | None = None, **flags: Any) -> Iterator[Simulator]:
    """`penstock sim` on a free port.

    Flags are written as keywords: `max_seqs=8` is `--max-seqs 8`, `canned=True` is `--canned`, a list repeats.
    """
    port = port or free_port()
    argv = [console_script(), "sim", "--host", "127.0.0.1", "--port", str(port), *args]
    for key, value in flags.items():
        option = "--" + key.replace("_", "-")
        for item in value if isinstance(value, list | tuple) else [value]:
            if item is True:
                argv.append(option)
            elif item is not False and item is not None:
                argv += [option, str(item)]
    headers = {"authorization": f"Bearer {flags['api_key']}"} if flags.get("api_key") else {}

    def ready() -> bool:
        try:
            return httpx.get(
                f"http://127.0.0.1:{port}/sim/stats", headers=headers, timeout=2, trust_env=False
            ).is_success
        except httpx.TransportError:
            return False

    with Proc(argv, name="sim", ready=ready, grace_s=10) as proc:
        yield Simulator(proc, port, headers)
