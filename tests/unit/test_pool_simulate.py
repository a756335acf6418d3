"""`penstock pools simulate`: replays that were reckoned by hand, and traces that are none."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from penstock.cache.pool_table import PoolPhase
from penstock.workers.cli import main
from penstock.workers.pools.economy.simulate import Plant, simulate
from penstock.workers.pools.economy.trace import Arrival, Service, TraceError, read
from penstock.workers.pools.terms import Terms

HOUR = Path(__file__).parents[3] / "shared" / "data" / "azure_llm_2023_code.csv"
OFF, STARTING, READY = PoolPhase.OFF, PoolPhase.STARTING, PoolPhase.READY
DRAINING, ASLEEP, STOPPING = PoolPhase.DRAINING, PoolPhase.ASLEEP, PoolPhase.STOPPING

# A start takes 10 s, a stop 2 s, a server of 2 GPUs works on 2 requests at a time, and 30 s idle end it. A drain takes
# 0.12 s: quiet is looked for 0.1 s after it was shown, and once more 0.02 s later.
PLANT = Plant(start_s=10.0, stop_s=2.0, per_server=2, gpus=2)
TWENTY = [
    # (arrival, duration)  begins   waits   done
    (0.0, 5.0),  #          10      10      15      the first start: 0 to 10
    (4.0, 5.0),  #          10       6      15
    (12.0, 4.0),  #         15       3      19      both places are taken until 15
    (13.0, 1.0),  #         15       2      16
    (20.0, 5.0),  #         20       0      25
    (54.0, 1.0),  #         54       0      55      a second before the 30 s from 25 are over
    (84.9, 0.1),  #         84.9     0      85      and a tenth before those from 55 are
    (115.05, 1.0),  #      115.05    0     116.05   115 = 85 + 30: draining, and cancelled
    (
        147.0,
        2.0,
    ),  #       158.17   11.17  160.17   146.05 drains, 146.17 stops, 148.17 off and starting, 158.17 ready
    (150.0, 2.0),  #       158.17    8.17  160.17
    (150.0, 3.0),  #       160.17   10.17  163.17
    (161.0, 1.0),  #       161       0     162      beside the one before it
    (200.0, 0.0),  #       210      10     210      163.17 + 30.12 + 2 = 195.29 off; 200 starts
    (205.0, 1.0),  #       210       5     211
    (300.0, 10.0),  #      310      10     320      211 + 30.12 + 2 = 243.12 off; 300 starts
    (300.0, 10.0),  #      310      10     320
    (300.0, 10.0),  #      320      20     330
    (300.0, 10.0),  #      320      20     330
    (301.0, 1.0),  #       330      29     331
    (330.5, 1.0),  #       330.5     0     331.5    and here, if nobody had waited, all would be done
]


def arrivals(*pairs, model=""):
    return [Arrival(at, model, duration) for at, duration in pairs]


def about(values):
    return pytest.approx(values, abs=1e-6)


def test_twenty_requests_come_to_what_was_reckoned_by_hand():
    outcome = simulate(arrivals(*TWENTY), Terms(target=2, idle_timeout_s=30.0), PLANT)
    # on from 0 to 195.29 (off and at once starting at 148.17), from 200 to 243.12, from 300 to 331.5
    assert outcome.gpu_s == about(2 * (195.29 + 43.12 + 31.5))
    assert outcome.always_on_s == about(2 * 331.5)
    assert outcome.saved_s == about(2 * (331.5 - 269.91))
    assert (outcome.cold_starts, outcome.wakes) == (4, 0)
    assert outcome.waits_s == about([0] * 6 + [2, 3, 5, 6, 8.17, 10, 10, 10, 10, 10.17, 11.17, 20, 20, 29])
    # the 10th, the 19th and the 20th of twenty
    assert (outcome.wait_s(0.5), outcome.wait_s(0.95), outcome.wait_s(0.99)) == about((6, 20, 29))
    assert [phase for _, phase in outcome.phases[""]] == [
        *(OFF, STARTING, READY, DRAINING, READY, DRAINING, STOPPING),
        *(OFF, STARTING, READY, DRAINING, STOPPING),
        *(OFF, STARTING, READY, DRAINING, STOPPING),
        *(OFF, STARTING, READY),
    ]
    assert [at for at, _ in outcome.phases[""]] == about(
        [
            *(0, 0, 10, 115, 115.05, 146.05, 146.17),
            *(148.17, 148.17, 158.17, 193.17, 193.29),
            *(195.29, 200, 210, 241, 241.12),
            *(243.12, 300, 310),
        ]
    )


def test_a_server_that_sleeps_takes_no_gpu_and_wakes_sooner():
    terms = Terms(target=2, idle_timeout_s=30.0, sleep_after_s=5.0)
    plant = Plant(start_s=10.0, stop_s=2.0, wake_s=2.0, sleep_s=1.0, per_server=2)
    outcome = simulate(arrivals((0.0, 1.0), (20.0, 1.0)), terms, plant)
    # ready 10, done 11, drains 16, told to sleep 16.12, asleep 17.12, woken 20, ready 22; the end is 21
    assert outcome.gpu_s == about(17.12 + 1)
    assert outcome.waits_s == about([2, 10])
    assert (outcome.cold_starts, outcome.wakes) == (1, 1)
    assert [phase for _, phase in outcome.phases[""]] == [
        OFF,
        STARTING,
        READY,
        DRAINING,
        ASLEEP,
        STARTING,
        READY,
    ]


def test_more_members_follow_the_load():
    terms = Terms(max=2, target=2, idle_timeout_s=30.0)
    outcome = simulate(arrivals(*[(0.0, 100.0)] * 4), terms, Plant(start_s=10.0, per_server=2))
    # ready 10; four on one for ten seconds: the second starts at 20, and is ready at 30
    assert outcome.waits_s == about([10, 10, 30, 30])
    assert outcome.cold_starts == 2
    assert outcome.gpu_s == about(100 + 80)
    assert outcome.always_on_s == about(200)


def test_members_that_always_run_save_nothing():
    outcome = simulate(
        arrivals((0.0, 1.0), (1000.0, 1.0)), Terms(min=1, idle_timeout_s=5.0), Plant(start_s=0.0)
    )
    assert outcome.gpu_s == about(outcome.always_on_s)
    assert outcome.waits_s == [0.0, 0.0]


def test_models_that_share_one_gpu_take_turns_and_nobody_is_forgotten():
    both = sorted(
        arrivals(*[(float(i), 0.2) for i in range(0, 120, 2)], model="a")
        + arrivals(*[(float(i), 0.2) for i in range(1, 120, 2)], model="b")
    )
    plant = Plant(start_s=5.0, stop_s=1.0, per_server=4, all_gpus=1, max_wait_s=30.0)
    outcome = simulate(both, Terms(target=4, idle_timeout_s=300.0), plant)
    assert len(outcome.waits_s) == len(both)
    assert 2 <= outcome.cold_starts <= len(both) / 3
    assert outcome.gpu_s <= outcome.always_on_s
    assert outcome.always_on_s == about(119.2)
    # one of the two is always off
    changes = sorted((at, name, phase) for name, made in outcome.phases.items() for at, phase in made)
    on = dict.fromkeys(("a", "b"), OFF)
    for _, name, phase in changes:
        on[name] = phase
    assert {name for name, made in outcome.phases.items() if READY in [p for _, p in made]} == {"a", "b"}
    free = simulate(both, Terms(target=4, idle_timeout_s=300.0), Plant(start_s=5.0, per_server=4))
    assert free.cold_starts == 2


# ---- the trace


def trace(tmp_path, text, name="trace.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_durations_are_the_traces_or_said_or_reckoned_from_tokens(tmp_path):
    own = trace(tmp_path, "model,duration_s,arrival_s\n# said\n\nb,2,7\na,1,5.5\n")
    assert read(own, Service(fixed_s=9.0)) == [Arrival(0.0, "a", 1.0), Arrival(1.5, "b", 2.0)]
    tokens = trace(
        tmp_path,
        "\ufeffTIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4000,10\n2023-11-16T18:17:05,800,5\n",
    )
    first, second = read(tokens, Service(read_per_s=4000.0, write_per_s=10.0))
    assert (first.at_s, first.duration_s) == (0.0, 2.0)
    assert (second.at_s, second.duration_s) == (pytest.approx(1.02004, abs=1e-5), pytest.approx(0.7))
    assert [one.duration_s for one in read(tokens, Service(fixed_s=9.0))] == [9.0, 9.0]


def test_a_gzipped_trace_is_read(tmp_path):
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress(b"arrival,duration\n1,1\n"))
    assert read(path, Service()) == [Arrival(0.0, "", 1.0)]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no requests in it"),
        ("arrival_s,duration_s\n", "no requests in it"),
        ("when,duration_s\n1,1\n", "line 1: the header names no column arrival_s or timestamp"),
        (
            "arrival_s\n1\n",
            "line 1: the header names no column duration_s and no GeneratedTokens: say --service-s",
        ),
        ("arrival_s,timestamp,duration\n", "line 1: two columns for the arrival"),
        ("arrival_s,duration_s\n1\n", "line 2: 1 columns where the header has more"),
        ("arrival_s,duration_s\n1,-1\n", "line 2: duration '-1' is no number from 0 to 86400"),
        ("arrival_s,duration_s\n1,nan\n", "line 2: duration 'nan' is no number"),
        ("arrival_s,duration_s\n1e13,1\n", "line 2: arrival '1e13' is no number"),
        ("arrival_s,duration_s\n2023-13-01 00:00:00,1\n", "line 2: arrival '2023-13-01 00:00:00' is neither"),
        (
            "arrival_s,duration_s\n2023-11-01 00:00:00.x,1\n",
            "line 2: arrival '2023-11-01 00:00:00.x' is neither",
        ),
        ("arrival_s,duration_s\n1,1\n99999999,1\n", "longer than 400 days"),
        ("arrival_s,duration_s\n1," + "1" * 5000, "line 2: longer than 4096 bytes"),
        (
            "arrival_s,duration_s,model\n1,1," + "m" * 300,
            "line 2: a model's name of more than 256 characters",
        ),
        (
            "arrival_s,duration_s,model\n" + "".join(f"1,1,m{i}\n" for i in range(257)),
            "line 258: more than 256 models",
        ),
    ],
)
def test_what_is_no_trace_ends_in_one_line_that_says_where(tmp_path, capsys, text, why):
    path = trace(tmp_path, text)
    assert main(["pools", "simulate", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"penstock: {path}")
    assert why in said
    assert said.count("\n") == 1


def test_bytes_that_are_no_text_and_a_damaged_gzip_are_said(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_bytes(b"arrival_s,duration_s\n\xff\n")
    with pytest.raises(TraceError, match="line 2: not UTF-8"):
        read(path, Service())
    path.write_bytes(gzip.compress(b"arrival_s,duration_s\n" + b"1,1\n" * 99)[:-9])
    with pytest.raises(TraceError, match="the gzip is damaged"):
        read(path, Service())


def test_a_trace_of_too_many_requests_is_refused(tmp_path):
    path = trace(tmp_path, "arrival_s,duration_s\n1,1\n2,1\n3,1\n")
    with pytest.raises(TraceError, match="line 4: more than 2 requests"):
        read(path, Service(), most=2)


# ---- the command


def test_the_command_prints_a_row_for_each_idle_timeout_and_draws_them(tmp_path, capsys):
    path = trace(tmp_path, "arrival_s,duration_s\n" + "".join(f"{at},{took}\n" for at, took in TWENTY))
    plot = tmp_path / "plot.svg"
    words = [
        "--start-s",
        "10",
        "--stop-s",
        "2",
        "--max-concurrent",
        "2",
        "--gpus",
        "2",
        "--idle-timeouts",
        "30,3600",
    ]
    assert main(["pools", "simulate", str(path), *words, "--plot", str(plot)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "20 requests for 1 model in 0.09 h; always on: 0.184 GPU-hours"
    # 539.82 s and 123.18 s of 663 s; then: one start, on from 0 to the end, and who comes at 300 waits for places:
    # 0, 0, 10, 10, 19 s; the first four 10, 6, 3, 2 s
    assert " ".join(out[3].split()) == "30 s 0.150 0.034 19 % 4 0 6.00 s 20.00 s 29.00 s"
    assert " ".join(out[4].split()) == "3600 s 0.184 0.000 0 % 1 0 0.00 s 10.00 s 19.00 s"
    drawn = plot.read_text()
    assert drawn.startswith("<svg")
    assert drawn.count("<circle") == 2 * 4
    assert "trace.csv" in drawn


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--plot", "plot.png"], "plots are drawn as SVG"),
        (["--plot", "/nowhere/plot.svg"], "No such file"),
        (["--max", "0"], "--max is from 1 to 64"),
        (["--min", "2"], "no less than --min"),
        (["--target", "0"], "1 at least"),
        (["--max-concurrent", "0"], "1 at least"),
        (["--gpus", "3", "--all-gpus", "2"], "a server of 3 GPUs has no room on 2"),
    ],
    ids=["png", "folder", "max", "min", "target", "concurrent", "gpus"],
)
def test_what_cannot_be_simulated_is_said_in_one_line(tmp_path, capsys, words, why):
    path = trace(tmp_path, "arrival_s,duration_s\n1,1\n")
    assert main(["pools", "simulate", str(path), *words]) == 2
    said = capsys.readouterr().err
    assert why in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "words", [["--start-s", "-1"], ["--gpus", "x"], ["--idle-timeouts", "30,0"], ["--wake-s", "nan"]]
)
def test_numbers_out_of_bounds_are_refused(tmp_path, capsys, words):
    path = trace(tmp_path, "arrival_s,duration_s\n1,1\n")
    with pytest.raises(SystemExit) as left:
        main(["pools", "simulate", str(path), *words])
    assert left.value.code == 2
    assert "is no number from" in capsys.readouterr().err


def test_a_real_hour_shows_what_a_longer_idle_timeout_costs_and_saves(capsys):
    if not HOUR.exists():
        pytest.skip(f"{HOUR} is not here")
    hour = read(HOUR, Service())
    assert len(hour) == 8819
    made = [
        simulate(hour, Terms(target=100, idle_timeout_s=idle), Plant(start_s=30.0))
        for idle in (10.0, 60.0, 600.0)
    ]
    assert [len(one.waits_s) for one in made] == [8819] * 3
    starts = [one.cold_starts for one in made]
    assert starts == sorted(starts, reverse=True)
    assert starts[0] > 10
    assert starts[2] == 1
    assert [one.gpu_s for one in made] == sorted(one.gpu_s for one in made)
    assert made[0].saved_s > 0.1 * made[0].always_on_s
    assert made[0].wait_s(0.99) <= 30.0 + 5.0 + 0.2
