"""vLLM's metric families, by the names, labels and buckets that vLLM V1 uses (vllm/v1/metrics/loggers.py).

Counts what the runner reports and renders Prometheus text. Refuses to know HTTP.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence as Seq

from .engine import Engine, Progress, Sequence

_TTFT_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_TPOT_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
_LATENCY_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0),
    *(480.0, 960.0, 1920.0, 7680.0),
)
_REASONS = ("stop", "length", "abort")


class Histogram:
    """A cumulative histogram over fixed bounds."""

    def __init__(self, bounds: Seq[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Counts one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: str) -> list[str]:
        """The family's samples in Prometheus text."""
        out, total = [], 0
        for bound, n in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += n
            out.append(f'{name}_bucket{{{labels},le="{bound}"}} {float(total)}')
        out.append(f"{name}_count{{{labels}}} {float(total)}")
        out.append(f"{name}_sum{{{labels}}} {self._sum}")
        return out


class Metrics:
    """Counters and histograms of one engine; gauges are read from the engine when rendered."""

    def __init__(self, engine: Engine, model_name: str) -> None:
        self._engine = engine
        escaped = model_name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        self._labels = f'engine="0",model_name="{escaped}"'
        self._success = dict.fromkeys(_REASONS, 0)
        self._ttft = Histogram(_TTFT_S)
        self._tpot = Histogram(_TPOT_S)
        self._e2e = Histogram(_LATENCY_S)
        self._queue = Histogram(_LATENCY_S)
        self._inference = Histogram(_LATENCY_S)

    def progressed(self, progress: Progress) -> None:
        """Notes one step's outcome for one sequence."""
        sequence = progress.sequence
        if sequence.made == progress.tokens:
            self._ttft.observe(progress.at_s - sequence.arrived_s)
        if progress.finished:
            self.finished(sequence.reason, sequence, progress.at_s)

    def finished(self, reason: str, sequence: Sequence, now_s: float) -> None:
        """Notes that a sequence is over, by stop, length or abort."""
        self._success[reason] += 1
        if reason == "abort":
            return
        self._e2e.observe(now_s - sequence.arrived_s)
        self._queue.observe(sequence.admitted_s - sequence.arrived_s)
        self._inference.observe(now_s - sequence.admitted_s)
        if sequence.made > 1:
            self._tpot.observe((now_s - sequence.first_token_s) / (sequence.made - 1))

    def render(self, *, asleep: bool = False) -> bytes:
        """The whole page in Prometheus text format 0.0.4."""
        engine, totals = self._engine, self._engine.totals
        out: list[str] = []

        def family(name: str, kind: str, text: str, samples: list[str]) -> None:
            out.append(f"# HELP {name} {text}")
            out.append(f"# TYPE {name} {kind}")
            out.extend(samples)

        def one(name: str, kind: str, text: str, value: float) -> None:
            family(name, kind, text, [f"{name}{{{self._labels}}} {float(value)}"])

        one(
            "vllm:num_requests_running",
            "gauge",
            "Number of requests in model execution batches.",
            engine.running,
        )
        one(
            "vllm:num_requests_waiting",
            "gauge",
            "Number of requests waiting to be processed.",
            engine.waiting,
        )
        one("vllm:engine_sleep_state", "gauge", "Engine sleep state; 1 means asleep.", asleep)
        one(
            "vllm:kv_cache_usage_perc", "gauge", "KV-cache usage. 1 means 100 percent usage.", engine.kv_usage
        )
        for name, text, value in (
            ("prefix_cache_queries", "Prefix cache queries, in queried tokens.", totals.prefix_queries),
            ("prefix_cache_hits", "Prefix cache hits, in cached tokens.", totals.prefix_hits),
            ("num_preemptions", "Cumulative number of preemption from the engine.", totals.preemptions),
            ("prompt_tokens", "Number of prefill tokens processed.", totals.prompt_tokens),
            ("generation_tokens", "Number of generation tokens processed.", totals.generation_tokens),
        ):
            one(f"vllm:{name}_total", "counter", text, value)
        name = "vllm:request_success_total"
        family(
            name,
            "counter",
            "Count of successfully processed requests.",
            [f'{name}{{{self._labels},finished_reason="{r}"}} {float(n)}' for r, n in self._success.items()],
        )
        for name, text, histogram in (
            ("time_to_first_token_seconds", "Time to first token in seconds.", self._ttft),
            ("time_per_output_token_seconds", "Time per output token in seconds.", self._tpot),
            ("e2e_request_latency_seconds", "E2e request latency in seconds.", self._e2e),
            ("request_queue_time_seconds", "Time spent in WAITING phase.", self._queue),
            ("request_inference_time_seconds", "Time spent in RUNNING phase.", self._inference),
        ):
            full = f"vllm:{name}"
            family(full, "histogram", f"Histogram. {text}", histogram.lines(full, self._labels))
        return ("\n".join(out) + "\n").encode()
