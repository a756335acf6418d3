"""wrk, told what to send and read back exactly.

Strategy: the request is fixed in Lua's global part, so wrk builds it once and its own loop stays in C; only the
``done`` hook runs Lua, after the last reply. Checking replies needs the ``response`` hook, which costs wrk half its
rate: that is a separate, short pass (``verify``) whose figures are thrown away.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .process import RigError

#: Stands in a body where the number of a key goes.
KEY = "@key@"

#: Requests made before the clock runs, for each second of load; made while it runs they cost wrk its rate.
_MADE_PER_S = 45_000

_REQUEST = """\
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.body = [==[{body}]==]
"""
_OF_KEYS = """\
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
local requests = {{}}
function init(args)
  math.randomseed({seed})
  for i = 1, {keys} do
    requests[i] = wrk.format(nil, nil, nil, [==[{before}]==] .. (i - 1) .. [==[{after}]==])
  end
end
function request() return requests[math.random({keys})] end
"""
_OF_NEW_KEYS = """\
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
local requests, number, mine = {{}}, 0, ""
local threads = 0
function setup(thread) thread:set("id", threads); threads = threads + 1 end
function init(args)
  mine = "{seed}-" .. id .. "-"
  for i = 1, {made} do requests[i] = make(i) end
end
function make(i) return wrk.format(nil, nil, nil, [==[{before}]==] .. mine .. i .. [==[{after}]==]) end
function request()
  number = number + 1
  return requests[number] or make(number)
end
"""
_OF_CORPUS = """\
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
local before, after, at, lap = {{}}, {{}}, 0, {lap}
function init(args)
  for body in io.lines("{file}") do
    local whole = wrk.format(nil, nil, nil, body)
    local from, to = whole:find("@lap@", 1, true)
    before[#before + 1] = whole:sub(1, from - 1)
    after[#after + 1] = whole:sub(to + 1)
  end
end
function request()
  at = at + 1
  if at > #before then at, lap = 1, (lap + 1) % 100000 end
  return before[at] .. string.format("%05d", lap) .. after[at]
end
"""
_DONE = """\
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\n@@{"requests":%d,"duration_us":%d,"bytes":%d,"socket_errors":%d,"status_errors":%d,' ..
    '"p50_us":%d,"p90_us":%d,"p95_us":%d,"p99_us":%d,"max_us":%d}\\n',
    summary.requests, summary.duration, summary.bytes, e.connect + e.read + e.write + e.timeout, e.status,
    latency:percentile(50), latency:percentile(90), latency:percentile(95), latency:percentile(99), latency.max))
end
"""
_VERIFY = """\
local threads = {}
function setup(thread) table.insert(threads, thread) end
function init(args) missing = 0; checked = 0 end
function response(status, headers, body)
  checked = checked + 1
  local found = false
  for name, value in pairs(headers) do
    if string.lower(name) == "x-request-id" and #value > 0 then found = true end
  end
  if not found then missing = missing + 1 end
end
done = function(summary, latency, requests)
  local missing, checked = 0, 0
  for _, thread in ipairs(threads) do
    missing = missing + thread:get("missing"); checked = checked + thread:get("checked")
  end
  io.write(string.format('\\n@@{"checked":%d,"missing":%d}\\n', checked, missing))
end
"""


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of wrk saw. Latencies in microseconds, as wrk counts them."""

    requests: int
    duration_us: int
    bytes: int
    socket_errors: int
    status_errors: int
    p50_us: int
    p90_us: int
    p95_us: int
    p99_us: int
    max_us: int

    @property
    def per_s(self) -> float:
        """Whole replies a second."""
        return self.requests * 1e6 / self.duration_us

    def as_dict(self) -> dict[str, float]:
        """Return the figures with the rate among them."""
        return {**asdict(self), "per_s": round(self.per_s, 1)}


class Wrk:
    """wrk on ``cores``, one thread for each of them, scripts kept in ``folder``."""

    def __init__(self, folder: Path, cores: Sequence[int]) -> None:
        if shutil.which("wrk") is None:
            raise RigError("wrk is not installed: apt-get install wrk")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._cores = list(cores)

    def run(self, url: str, body: bytes, *, connections: int = 64, seconds: float = 2.0) -> Load:
        """Load ``url`` for ``seconds`` and return what came back."""
        found = self._wrk(url, body, _DONE, connections, seconds)
        return Load(**found)

    def of_keys(
        self,
        url: str,
        body: bytes,
        keys: int,
        seed: int,
        *,
        connections: int = 64,
        seconds: float = 2.0,
        bearer: str = "",
    ) -> Load:
        """Load ``url`` with bodies in which :data:`KEY` is one of ``keys`` numbers, drawn at random; 0: a new one
        each time. ``bearer`` is the API key sent along, if any.
        """
        before, after = body.decode().split(KEY)
        kind = _OF_KEYS if keys else _OF_NEW_KEYS
        made = round(seconds * _MADE_PER_S)
        script = kind.format(seed=seed, keys=keys, made=made, before=before, after=after) + _DONE
        return Load(**self._script(url, _bearing(bearer) + script, connections, seconds))

    def of_corpus(
        self,
        url: str,
        bodies: Path,
        lap: int,
        *,
        connections: int = 64,
        seconds: float = 2.0,
        bearer: str = "",
    ) -> Load:
        """Load ``url`` with a file of bodies in their order, one a line, the number of the lap in each."""
        script = _bearing(bearer) + _OF_CORPUS.format(file=bodies, lap=lap) + _DONE
        return Load(**self._script(url, script, connections, seconds))

    def verify(
        self, url: str, body: bytes, *, connections: int = 64, seconds: float = 1.0
    ) -> tuple[int, int]:
        """Return how many replies were looked at, and how many of them lack x-request-id."""
        found = self._wrk(url, body, _VERIFY, connections, seconds)
        return found["checked"], found["missing"]

    def _wrk(self, url: str, body: bytes, hooks: str, connections: int, seconds: float) -> dict[str, int]:
        return self._script(url, _REQUEST.replace("{body}", body.decode()) + hooks, connections, seconds)

    def _script(self, url: str, text: str, connections: int, seconds: float) -> dict[str, int]:
        script = self._folder / "wrk.lua"
        script.write_text(text)
        threads = max(1, min(len(self._cores), connections))
        # wrk takes whole seconds; it is asked for at least one.
        argv = ["taskset", "-c", ",".join(map(str, self._cores)), "wrk", f"-t{threads}", f"-c{connections}"]
        argv += [f"-d{max(1, round(seconds))}s", "--timeout", "30s", "-s", str(script), url]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + 60, check=False)
        marked = [line for line in done.stdout.splitlines() if line.startswith("@@")]
        if not marked:
            raise RigError(f"wrk said nothing: {done.stdout[-300:]} {done.stderr[-300:]}")
        found: dict[str, int] = json.loads(marked[-1][2:])
        return found


def _bearing(key: str) -> str:
    return f'wrk.headers["authorization"] = "Bearer {key}"\n' if key else ""
