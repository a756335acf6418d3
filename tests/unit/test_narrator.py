"""What the demo's terminal is told."""

from penstock.workers.narrator import Seen, Story, _answered


def told(*seen: Seen, pace_s: float = 1.0) -> list[str]:
    story = Story("s")
    lines = [line for at, one in enumerate(seen) for line in story.hear(at * pace_s, one)]
    return [line.removeprefix("  s: ") for line in lines]


def test_a_pool_that_stays_off_is_no_news() -> None:
    assert told(Seen("off"), Seen("off")) == []


def test_what_happened_before_the_first_look_is_told_too() -> None:
    assert told(Seen("starting")) == ["a request waits, and its server is being started"]


def test_a_whole_day() -> None:
    asked = {"MISS": 1}
    day = [
        *(Seen("off"), Seen("starting"), Seen("starting"), Seen("starting"), Seen("ready", answered=asked)),
        *(Seen("ready", answered={**asked, "HIT-L1": 1}), Seen("draining", answered={**asked, "HIT-L1": 1})),
        Seen("stopping", answered={**asked, "HIT-L1": 1}),
        Seen("off", answered={**asked, "HIT-L1": 1}),
        Seen("off", answered={**asked, "HIT-L1": 3}),
    ]
    assert told(*day) == [
        "a request waits, and its server is being started",
        "its server is ready after 3.0 s; what waited goes on",
        "its server has answered a request",
        "the cache has answered a request; its server was not asked",
        "nobody has asked for a while: its server is being stopped",
        "no server runs",
        "the cache has answered 2 requests; no server runs, and none was started for it",
    ]


def test_a_hit_is_told_before_what_came_after_it() -> None:
    lines = told(Seen("off"), Seen("starting", answered={"HIT-L1": 1}))
    assert lines == [
        "the cache has answered a request; no server runs, and none was started for it",
        "a request waits, and its server is being started",
    ]


def test_a_start_that_fails_is_told_with_its_reason() -> None:
    lines = told(Seen("starting"), Seen("failed", "exit status 3"))
    assert lines[1:] == ["its server could not be started: exit status 3"]


def test_only_good_answers_of_the_model_are_counted() -> None:
    name = "penstock_requests_total"
    text = f"""# HELP {name} x
{name}{{cache="MISS",endpoint="/v1/chat/completions",model="s",status="200"}} 2.0
{name}{{cache="MISS",endpoint="/v1/completions",model="s",status="200"}} 1.0
{name}{{cache="MISS",endpoint="/v1/completions",model="s",status="503"}} 9.0
{name}{{cache="HIT-L1",endpoint="/v1/completions",model="s",status="200"}} 4.0
{name}{{cache="HIT-L1",endpoint="/v1/completions",model="other",status="200"}} 8.0
"""
    assert _answered(text, "s") == {"MISS": 3, "HIT-L1": 4}
