"""What `penstock top` makes of two looks at a gateway, and how it fits a terminal."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from penstock.workers.top.change import Change
from penstock.workers.top.frame import frame
from penstock.workers.top.sample import Sample, read
from penstock.workers.top.screen import View
from penstock.workers.top.section import Section, fitted

MODEL = {"running": 0, "queued": 0, "waiting": 0, "max_concurrent": 4, "max_queue": 9}


def _backend(number: int, **more: Any) -> dict[str, Any]:
    told = {"url": f"http://10.0.0.{number}:8000", "health": "up", "drained": False, "breaker": "closed"}
    return told | {"inflight": 0, "weight": 1.0} | more


def _sample(at_s: float, text: str, pid: int = 7, **status: Any) -> Sample:
    told = {"version": "1", "generation": 3, "supervisor": {"pid": pid}, "pools": {}}
    told |= {"models": {"m": {**MODEL, "backends": [_backend(1)]}}, **status}
    return read(at_s, f"penstock_worker_up 1\n{text}".encode(), json.dumps(told).encode())


def _requests(hits: int, misses: int, bypassed: int = 0) -> str:
    counts = {"HIT-L1": hits, "MISS": misses, "BYPASS": bypassed}
    return "".join(
        f'penstock_requests_total{{model="m",endpoint="e",status="200",cache="{name}"}} {n}\n'
        for name, n in counts.items()
    )


def _shown(change: Change | None, width: int = 100, lines: int | None = None, trouble: str = "") -> list[str]:
    out = StringIO()
    Console(file=out, width=width).print(frame(change, "12:00:00", trouble, lines))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def _line(shown: list[str], begin: str) -> list[str]:
    """The words of the one line that begins so, behind that."""
    (found,) = (line for line in shown if line.startswith(begin))
    return found.removeprefix(begin).split()


def test_rates_are_what_was_added_over_the_time_between() -> None:
    shown = _shown(Change(_sample(14.0, _requests(70, 30, 40)), _sample(10.0, _requests(10, 10, 20))))
    assert _line(shown, "all, to the last byte") == ["25.0", "-", "-", "-", "140"]
    assert _line(shown, "m  ")[0] == "25.0"


def test_hit_rates_are_those_of_requests_that_the_cache_had_to_do_with() -> None:
    shown = _shown(Change(_sample(14.0, _requests(70, 30, 40)), _sample(10.0, _requests(10, 10, 20))))
    assert _line(shown, "share now")[:8] == ["75.0", "%", "75.0", "%", "0.0", "%", "25.0", "%"]
    assert _line(shown, "share since start")[:2] == ["70.0", "%"]
    assert _line(shown, "a second") == ["15.0", "15.0", "0.0", "5.0", "0.0", "5.0"]
    (counts,) = (one for one in shown if one.startswith("since start"))
    assert counts.split()[2:] == ["70", "70", "0", "30", "0", "40"]


def test_quantiles_are_of_what_was_observed_meanwhile_in_all_series_together() -> None:
    # 1000 slow ones of long ago; since then 100 up to 1 ms and 100 up to 2 ms
    then = 'x_bucket{le="0.001"} 0\nx_bucket{le="0.002"} 0\nx_bucket{le="+Inf"} 1000\n'
    now = 'x_bucket{le="0.001"} 100\nx_bucket{le="0.002"} 200\nx_bucket{le="+Inf"} 1200\n'
    then, now = (
        "".join(text.replace("x_bucket{", f'penstock_x_bucket{{endpoint="{name}",') for name in "ab")
        for text in (then, now)
    )
    change = Change(_sample(2.0, now), _sample(1.0, then))
    assert change.quantiles((0.5, 0.75), "penstock_x") == [pytest.approx(0.001), pytest.approx(0.0015)]


def test_a_counter_that_fell_began_anew_and_another_start_is_not_compared_with() -> None:
    fallen = Change(_sample(2.0, _requests(5, 0)), _sample(1.0, _requests(100, 0)))
    assert fallen.rate("penstock_requests_total") == 5.0
    other = Change(_sample(2.0, _requests(105, 0), pid=8), _sample(1.0, _requests(100, 0), pid=7))
    assert other.rate("penstock_requests_total") is None
    assert _line(_shown(other), "all, to the last byte") == ["-", "-", "-", "-", "105"]


def test_what_a_server_says_itself_stands_beside_it() -> None:
    page = (
        'vllm:num_requests_running{backend="10.0.0.1:8000",engine="0"} 3\n'
        'vllm:num_requests_running{backend="10.0.0.1:8000",engine="1"} 4\n'
        'vllm:num_requests_waiting{backend="10.0.0.1:8000"} 2\n'
        'vllm:kv_cache_usage_perc{backend="10.0.0.1:8000"} 0.5\n'
        'vllm:other_family{backend="10.0.0.1:8000"} not a number\n'  # is not even parsed
    )
    shown = _shown(Change(_sample(1.0, page), None))
    assert _line(shown, "10.0.0.1:8000") == ["m", "up", "0", "1", "7", "2", "50.0", "%"]


def test_processes_have_their_cpu_their_memory_and_their_lag() -> None:
    def at(used_s: float, late: int) -> str:
        return (
            f'penstock_process_cpu_seconds_total{{process="worker-0",pid="12"}} {used_s}\n'
            'penstock_process_resident_bytes{process="worker-0",pid="12"} 104857600\n'
            f'penstock_loop_lag_seconds_bucket{{worker="0",le="0.001"}} {late}\n'
            f'penstock_loop_lag_seconds_bucket{{worker="0",le="+Inf"}} {late}\n'
            'penstock_loop_lag_max_seconds{worker="0"} 0.25\n'
            'penstock_worker_inflight_requests{worker="0"} 6\npenstock_client_connections{worker="0"} 5\n'
        )

    shown = _shown(Change(_sample(3.0, at(2.5, 200)), _sample(1.0, at(1.0, 100))))
    assert _line(shown, "worker-0") == [
        *("12", "75.0", "%", "100.0", "MiB", "0.99", "ms", "250", "ms", "6", "5")
    ]


def test_pools_say_their_phase_their_servers_and_why_they_failed() -> None:
    pool = {"model": "m", "provider": "docker", "phase_for_s": 90.0, "max": 3, "reason": "no such image"}
    pool |= {"phase": "failed", "members": [{"phase": "ready"}, {"phase": "asleep"}, {"phase": "off"}]}
    shown = _shown(Change(_sample(1.0, "", pools={"m": pool}), None))
    assert "failed  90.0 s  1 asleep, 1 ready of 3  no such image" in "\n".join(shown)


def test_a_frame_is_as_high_as_its_terminal_and_shows_what_is_down_first() -> None:
    backends = [*(_backend(n) for n in range(1, 40)), _backend(77, health="down")]
    models = {"m": {**MODEL, "backends": backends}, "n": {**MODEL, "backends": [], "queued": 5}}
    shown = _shown(Change(_sample(1.0, _requests(1, 1), models=models), None), 80, 24, "no answer")
    assert len(shown) == 24
    assert shown[1].startswith("no answer")
    (head,) = (at for at, line in enumerate(shown) if line.startswith("BACKENDS"))
    assert shown[head + 1].startswith("10.0.0.77:8000")
    assert any(line.startswith("… ") and line.endswith(" more") for line in shown)
    assert all(len(line) <= 80 for line in shown)
    assert len(_shown(Change(_sample(1.0, "", models=models), None))) > 50  # where there is no end, all of it


def test_rows_are_shared_in_turns_and_the_last_says_how_many_there_are() -> None:
    few, many = Section(("FEW",), [("a",), ("b",)]), Section(("MANY",), [(str(n),) for n in range(100)])
    cut = fitted([few, Section(("NONE",)), many], 12)
    assert [len(one.rows) for one in cut] == [2, 8]
    assert cut[1].rows[-2:] == [("6",), ("… 93 more",)]


def test_a_name_moves_no_cursor() -> None:
    models = {"bad\x1b[2J\n": {**MODEL, "backends": []}}
    assert any(line.startswith("bad?[2J?") for line in _shown(Change(_sample(1.0, "", models=models), None)))


def test_what_is_no_gateways_answer_is_refused() -> None:
    good = json.dumps({"supervisor": {"pid": 1}, "models": {}}).encode()
    for metrics, status in (
        *((b"penstock_x 1\n", b"{}"), (b"penstock_x 1\n", b"<html>")),
        *((b"", good), (b"penstock_x{ 1\n", good)),
    ):
        with pytest.raises(ValueError):  # noqa: PT011 - json's own is one
            read(0.0, metrics, status)


def test_how_long_nothing_was_heard_is_told_and_what_was_known_stays() -> None:
    def lines(now_s: float) -> list[str]:
        out = StringIO()
        Console(file=out, width=100).print(view.draw(now_s))
        return out.getvalue().splitlines()

    view = View(10.0)
    view.take("nobody is there", 11.0)
    assert lines(12.0)[1].rstrip() == "no answer for 2 s, still trying: nobody is there"
    view.take(_sample(20.0, _requests(7, 0)), 20.0)
    assert not any("no answer" in line for line in lines(21.0))
    view.take("it hangs", 25.0)
    view.take("it hangs still", 30.0)
    assert lines(31.0)[1].rstrip() == "no answer for 11 s, still trying: it hangs still"
    assert _line(lines(31.0), "all, to the last byte")[-1] == "7"
