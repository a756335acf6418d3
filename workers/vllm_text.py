"""What vLLM says at `/metrics`, read and joined. Pure functions on text from a server that may say anything.

https://docs.vllm.ai/en/latest/usage/metrics.html names the families, the Prometheus text format 0.0.4 the lines
(https://prometheus.io/docs/instrumenting/exposition_formats/). A page has thousands of lines and comes from every
server every few seconds, so a look at three families must not cost a parse of all, which would be 30 times slower.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from .board import Load

_MOST = 1 << 40
_WORD = r"[a-zA-Z_][a-zA-Z0-9_]*"
_NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+|Inf|NaN)"
_HEAD = re.compile(r"# (HELP|TYPE) (vllm:[a-zA-Z0-9_:]+) ([^\r]*)")
_LABELS = rf'(?:{_WORD}="(?:[^"\\]|\\.)*"(?:,|(?=\}})))*'
_SAMPLE = re.compile(
    rf"(vllm:[a-zA-Z0-9_:]+)(?:\{{({_LABELS})\}})?[ \t]+({_NUMBER})(?:[ \t]+-?[0-9]+)?[ \t\r]*"
)
_OWN_LABEL = re.compile(r'(?:^|,)backend="')
_VALUES = {
    name: re.compile(rb"^vllm:" + name.encode() + rb"(?:\{[^\n]*\})?[ \t]+([^\s]+)", re.MULTILINE)
    for name in (
        "num_requests_waiting",
        "num_requests_running",
        "kv_cache_usage_perc",
        "gpu_cache_usage_perc",
    )
}


def load_in(page: bytes) -> Load | None:
    """What a page says of the server's load, all its engines together; None when it says nothing of it."""
    waiting, running = _values(page, "num_requests_waiting"), _values(page, "num_requests_running")
    if not waiting and not running:
        return None
    used = _values(page, "kv_cache_usage_perc") or _values(page, "gpu_cache_usage_perc")
    return Load(
        waiting=round(min(sum(waiting), _MOST)),
        running=round(min(sum(running), _MOST)),
        kv_permille=round(1000 * min(max(used, default=0.0), 1.0)),
    )


def _values(page: bytes, name: str) -> list[float]:
    found = []
    for text in _VALUES[name].findall(page):
        try:
            value = float(text)
        except ValueError:
            continue
        if math.isfinite(value) and value >= 0:
            found.append(value)
    return found


def merged(pages: Mapping[str, bytes]) -> bytes:
    """The `vllm:*` families of several servers as one text, each sample with its server's name as `backend`.

    Help and type of a family are those that the first server gives. Lines that are no samples, and samples that have a
    label `backend` already, are left out.
    """
    heads: dict[str, dict[str, str]] = {}
    samples: dict[str, list[str]] = {}
    for name, page in pages.items():
        label = 'backend="' + name.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") + '"'
        _add(page.decode("utf-8", "replace").split("\n"), label, heads, samples)
    return "".join(_lines(heads, samples)).encode()


def _add(
    lines: Iterable[str], label: str, heads: dict[str, dict[str, str]], samples: dict[str, list[str]]
) -> None:
    family = ""
    for line in lines:
        head = _HEAD.fullmatch(line)
        if head is not None:
            family = head[2]
            heads.setdefault(family, {}).setdefault(head[1], head[3])
            continue
        sample = _SAMPLE.fullmatch(line)
        if sample is None or (sample[2] and _OWN_LABEL.search(sample[2])):
            continue
        name = sample[1]
        if name != family and not name.startswith(f"{family}_"):
            family = name
        more = f",{sample[2].rstrip(',')}" if sample[2] else ""
        samples.setdefault(family, []).append(f"{name}{{{label}{more}}} {sample[3]}\n")


def _lines(heads: Mapping[str, Mapping[str, str]], samples: Mapping[str, list[str]]) -> Iterable[str]:
    for family, found in samples.items():
        for word, text in heads.get(family, {}).items():
            yield f"# {word} {family} {text}\n"
        yield from found
