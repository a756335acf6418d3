"""A `webhook` pool that several real gateways share: a receiver that runs a simulator, a Redis, and the gateways."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from .gateway import Gateway, gateway
from .procs import console_script, free_port
from .receiver import SECRET, Receiver, receiver
from .redis import RedisServer, redis_server


@dataclass
class Machines:
    """What the receiver starts and stops, by the rules of docs/pools.md. launched: starts that found nothing running;
    refused: stops with a fence that is over."""

    port: int = field(default_factory=free_port)
    fence: int = 0
    started: list[str] = field(default_factory=list)
    launched: int = 0
    stopped: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    running: subprocess.Popen[bytes] | None = None
    options: tuple[str, ...] = ()
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def act(self, said: dict[str, Any]) -> None:
        with self._lock:
            if said["action"] == "start":
                self.fence = max(self.fence, said["fence"])
                self.started.append(said["key"])
                if self.running is None or self.running.poll() is not None:
                    self.launched += 1
                    argv = [console_script(), "sim", "--host", "127.0.0.1", "--port", str(self.port)]
                    self.running = subprocess.Popen([*argv, "--model", "m", *self.options])
            elif said["fence"] < self.fence:
                self.refused.append(said["fence"])
            else:
                self.fence = said["fence"]
                self.stopped.append(said["fence"])
                self.end()

    def end(self) -> None:
        if self.running is not None:
            self.running.terminate()
            self.running.wait(10)
            self.running = None


@dataclass
class SharedPool:
    """`gateways` share the model `m`."""

    machines: Machines
    hook: Receiver
    redis: RedisServer
    gateways: list[Gateway]

    def owner(self) -> Gateway | None:
        """The one gateway that says it may stop the servers; None while there is none. Raises for two."""
        found = [one for one in self.gateways if one.metric("penstock_pool_owner", model="m") == 1]
        assert len(found) < 2, "two own it"
        return found[0] if found else None

    def other(self, one: Gateway) -> Gateway:
        return next(each for each in self.gateways if each is not one)


@contextmanager
def shared_pool(*, count: int = 2, options: tuple[str, ...] = (), **terms: Any) -> Iterator[SharedPool]:
    """So many gateways. terms: of the pool; options: of the simulator."""
    machines = Machines(options=options)
    with ExitStack() as stack:
        stack.callback(machines.end)
        hook = stack.enter_context(receiver(machines.act))
        redis = stack.enter_context(redis_server())
        pool = {
            "provider": "webhook",
            "url": hook.url,
            "secret_env": "HOOK_SECRET",
            "gpus": 0,
            "ready_timeout_s": 30,
            "stop_timeout_s": 5,
            "idle_timeout_s": 100,
            **terms,
        }
        model = {"backends": [{"url": f"http://127.0.0.1:{machines.port}"}], "pool": pool}
        config = {"models": {"m": model}, "pools": {"lease": "redis", "redis": {"url": redis.url}}}
        made = [stack.enter_context(gateway(config, env={"HOOK_SECRET": SECRET})) for _ in range(count)]
        yield SharedPool(machines, hook, redis, made)
