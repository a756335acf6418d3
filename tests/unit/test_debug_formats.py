"""Profiles and traces as others read them, held against what those formats say of themselves."""

import gzip
import json

from penstock.workers.debug import formats
from penstock.workers.debug.formats import Stacks

SERVE = ("Pipeline.serve", "/p/pipeline.py", 65)
PARSE = ("Parser.parse", "/p/parse.py", 72)
ZERO = Stacks("worker 0 (7)", [((SERVE,), 1_000_000_000, 2), ((SERVE, PARSE), 500_000_000, 1)])
ONE = Stacks("worker 1 (8)", [((SERVE, PARSE), 250_000_000, 3)])
LINES = [{"frames": [SERVE, PARSE]}, {"stack": [[0], 10**9, 2]}, {"stack": [[0, 1], 5 * 10**8, 1]}]


def test_what_a_process_said_is_taken_as_stacks():
    assert Stacks.of("worker 0 (7)", [*LINES, {"samples": 3}]) == ZERO
    assert ZERO.total == 1_500_000_000


def test_profiles_are_merged_with_or_without_a_root_for_each():
    assert {s: (v, n) for s, v, n in formats.merged("all", [ZERO, ONE], rooted=False).found} == {
        (SERVE,): (1_000_000_000, 2),
        (SERVE, PARSE): (750_000_000, 4),
    }
    rooted = formats.merged("all", [ZERO, ONE], rooted=True)
    assert {stack[0][0] for stack, _, _ in rooted.found} == {"worker 0 (7)", "worker 1 (8)"}
    assert rooted.total == ZERO.total + ONE.total


def obeys_speedscope(file):
    """https://www.speedscope.app/file-format-schema.json, as far as a sampled profile goes."""
    assert file["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    assert set(file) <= {"$schema", "shared", "profiles", "name", "activeProfileIndex", "exporter"}
    frames = file["shared"]["frames"]
    for frame in frames:
        assert set(frame) <= {"name", "file", "line", "col"}
        assert isinstance(frame["name"], str)
    assert 0 <= file["activeProfileIndex"] < len(file["profiles"])
    for profile in file["profiles"]:
        assert set(profile) == {"type", "name", "unit", "startValue", "endValue", "samples", "weights"}
        assert (profile["type"], profile["unit"]) == ("sampled", "seconds")
        assert len(profile["samples"]) == len(profile["weights"])
        assert all(0 <= at < len(frames) for sample in profile["samples"] for at in sample)
        assert all(weight >= 0 for weight in profile["weights"])
        assert abs(profile["startValue"] + sum(profile["weights"]) - profile["endValue"]) < 1e-6


def test_speedscope_gets_a_profile_for_each_process():
    file = json.loads(formats.speedscope("n", [ZERO, ONE], "penstock 1"))
    obeys_speedscope(file)
    assert [one["name"] for one in file["profiles"]] == [ZERO.name, ONE.name]
    names = [frame["name"] for frame in file["shared"]["frames"]]
    first = file["profiles"][0]
    assert {tuple(names[at] for at in stack) for stack in first["samples"]} == {
        ("Pipeline.serve",),
        ("Pipeline.serve", "Parser.parse"),
    }
    assert first["endValue"] == 1.5


def test_the_page_has_the_functions_and_where_they_are():
    page = formats.html(ZERO, 2.0, 1_700_000_000.0).decode()
    assert page.lstrip().lower().startswith("<!doctype html>")
    for words in ("Pipeline.serve", "Parser.parse", "/p/parse.py", "worker 0 (7)"):
        assert words in page
    assert 'src="http' not in page


def fields(data):
    """The fields of a protobuf message, in order: number, and an int or bytes."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
        else:
            assert kind == 2
            size = varint()
            yield number, data[at : at + size]
            at += size


def packed(data):
    return [value for _, value in fields(b"".join(b"\0" + one for one in split(data)))]


def split(data):
    out, one = [], b""
    for byte in data:
        one += bytes([byte])
        if byte < 128:
            out.append(one)
            one = b""
    return out


def read_pprof(raw):
    """Types, and stacks from the leaf with values and labels: by profile.proto alone."""
    message = list(fields(gzip.decompress(raw)))
    strings = [value.decode() for number, value in message if number == 6]
    assert strings[0] == ""
    functions = {dict(fields(v))[1]: dict(fields(v)) for n, v in message if n == 5}
    places = {dict(fields(v))[1]: dict(fields(dict(fields(v))[4])) for n, v in message if n == 4}
    types = [tuple(strings[v] for _, v in fields(value)) for number, value in message if number == 1]
    samples = []
    for number, value in message:
        if number == 2:
            sample = dict(fields(value))
            stack = [
                (
                    strings[functions[places[id][1]][2]],
                    strings[functions[places[id][1]][4]],
                    functions[places[id][1]][5],
                )
                for id in packed(sample[1])
            ]
            label = dict(fields(sample[3]))
            samples.append((stack, packed(sample[2]), strings[label[1]], strings[label[2]]))
    return types, samples, {n: v for n, v in message if n in (9, 10, 12)}


def test_pprof_gets_every_stack_with_its_process():
    kinds = (("samples", "count"), ("cpu", "nanoseconds"))
    types, samples, whole = read_pprof(formats.pprof([ZERO, ONE], kinds, 2.0, 99))
    assert types == list(kinds)
    assert samples == [
        ([SERVE], [2, 1_000_000_000], "process", "worker 0 (7)"),
        ([PARSE, SERVE], [1, 500_000_000], "process", "worker 0 (7)"),
        ([PARSE, SERVE], [3, 250_000_000], "process", "worker 1 (8)"),
    ]
    assert whole == {9: 99, 10: 2_000_000_000, 12: 1}


def test_a_trace_nests_stages_in_their_request_and_says_what_was_left_out():
    events = [
        ["X", "step", "callback", 1_000, 500, None],
        ["X", "feed", "upstream", 1_100, 100, None],
        ["R", "/v1/completions", "request", 2_000, 9_000, {"model": "m"}],
        ["S", "queue", "request", 2_000, 4_000, None],
        ["S", "backend", "request", 6_000, 5_000, None],
        ["R", "/v1/completions", "request", 3_000, 1_000, {"model": "m"}],
    ]
    lines = [{"events": events[:4]}, {"events": events[4:]}, {"dropped": 5}]
    file = json.loads(formats.chrome([("worker 0 (7)", 7, lines)]))
    told = file["traceEvents"]
    assert file["otherData"] == {"events left out": 5}
    assert [one["args"]["name"] for one in told if one["ph"] == "M"] == ["worker 0 (7)", "loop"]
    timed = [one for one in told if one["ph"] != "M"]
    assert [one["ts"] for one in timed] == sorted(one["ts"] for one in timed)
    assert [(one["name"], one["ts"], one["dur"]) for one in timed if one["ph"] == "X"] == [
        ("step", 1.0, 0.5),
        ("feed", 1.1, 0.1),
    ]
    open_, ids = {}, []
    for one in timed:
        if one["ph"] == "b":
            open_.setdefault(one["id"], []).append(one["name"])
            ids.append(one["id"])
        elif one["ph"] == "e":  # the innermost ends first
            assert open_[one["id"]].pop() == one["name"]
    assert not any(open_.values())
    assert len(set(ids)) == 2
    assert next(one for one in timed if one["ph"] == "b")["args"] == {"model": "m"}
