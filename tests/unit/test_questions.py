"""The corpus of a load: the same for one seed, of the sizes, shares and hit rate that were asked for."""

import json
from collections import OrderedDict

import pytest

from penstock.loadtests.suite.main import corpus
from penstock.loadtests.suite.questions import LAP, CorpusError, Terms, make, read

from ..support.procs import console_script, run


@pytest.fixture(scope="module")
def full():
    return make(Terms())


def prompt(question):
    return json.loads(question.of(0))["messages"][0]["content"]


def test_one_seed_gives_one_corpus_and_another_seed_another():
    first, again, other = (list(make(Terms(prompts=400, draws=300, seed=seed)).lines()) for seed in (1, 1, 2))
    assert first == again
    assert not {line for line in first if '"body"' in line} & set(other)


def test_all_prompts_differ_and_have_the_sizes_asked_for(full):
    prompts = [prompt(question) for question in full.questions]
    assert len(set(prompts)) == 10_000
    sizes = sorted(len(text.encode()) for text in prompts)
    assert 100 <= sizes[0] < 150
    assert 9_000 < sizes[-1] <= 10_000
    assert 800 < sizes[5_000] < 1_200  # log-uniform: as many below 1 KB as above


def test_models_and_streams_have_their_shares_and_belong_to_the_question(full):
    streams = sum(question.stream for question in full.questions) / 10_000
    large = sum(question.model == "chat-large" for question in full.questions) / 10_000
    assert 0.18 < streams < 0.22
    assert 0.67 < large < 0.73
    for question in full.questions[:500]:
        body = json.loads(question.body)
        assert (body["model"], body.get("stream", False)) == (question.model, question.stream)
        assert body["temperature"] == 0  # or it would not be cached


@pytest.mark.parametrize(
    ("prompts", "draws"), [(10_000, 10_000), (300, 300), (10_000, 3_000), (9_000, 5_000)]
)
def test_a_cache_that_forgets_nothing_hits_as_often_as_was_asked_for_in_every_lap(prompts, draws):
    made = make(Terms(prompts=prompts, draws=draws, hits=0.45))
    kept, hits = OrderedDict(), []
    for lap in (0, 1, 99_999, 100_000):
        hits.append(0)
        for number in made.draws:
            body = made.questions[number].of(lap)
            hits[-1] += body in kept
            kept[body] = True
    shares = [count / draws for count in hits]
    assert shares[:3] == [pytest.approx(made.repeats)] * 3
    assert shares[3] == 1  # the number of the lap has five digits
    assert 0.445 <= made.repeats <= 0.46


def test_some_questions_are_asked_far_more_often_than_others():
    made = make(Terms(prompts=10_000, draws=3_000))
    counts = sorted((made.draws.count(number) for number in set(made.draws)), reverse=True)
    assert counts[0] > 20 * counts[len(counts) // 2]


def test_a_share_that_cannot_be_had_is_refused_with_what_can():
    with pytest.raises(CorpusError, match="cannot come again 45%"):
        make(Terms(prompts=10, draws=1_000))
    for terms in (
        Terms(prompts=0),
        Terms(models=()),
        Terms(streams=2),
        Terms(least_bytes=10),
        Terms(draws=2_000_000),
    ):
        with pytest.raises(CorpusError):
            make(terms)


def test_the_file_gives_the_corpus_back(tmp_path):
    file, bodies = tmp_path / "corpus.jsonl", tmp_path / "corpus.bodies"
    argv = [str(file), "--bodies", str(bodies), "--prompts", "3000", "--draws", "2500", "--model", "a=1"]
    assert corpus([*argv, "--streams", "1", "--seed", "9"]) == 0
    with file.open() as lines:
        again = read(lines)
    made = make(Terms(prompts=3000, draws=2500, models=(("a", 1.0),), streams=1.0, seed=9))
    assert list(again.questions) == made.questions
    assert list(again.draws) == made.draws
    assert {question.model for question in again.questions} == {"a"}
    sent = bodies.read_text().splitlines()
    assert [body.replace(LAP, "00007") for body in sent] == list(made.bodies(7))


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["{}"],
        ["[]"],
        ["nothing"],
        ['{"corpus": 1}'],
        ['{"corpus": 1}', '{"draws": [0]}'],
        ['{"corpus": 1}', "1"],
    ],
)
def test_what_is_no_corpus_is_refused(lines):
    with pytest.raises(CorpusError):
        read(lines)


def test_a_corpus_that_cannot_be_made_or_written_is_one_line_and_status_2(tmp_path, capsys):
    few = ["--prompts", "50", "--draws", "50", "--hits", "0.5"]
    assert corpus([str(tmp_path / "none" / "corpus.jsonl"), *few]) == 2
    assert corpus([str(tmp_path / "corpus.jsonl"), "--hits", "3"]) == 2
    assert corpus([str(tmp_path / "corpus.jsonl"), "--model", "m=inf", *few]) == 2
    assert corpus(["/dev/full", *few]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 4
    assert said.count("penstock corpus: ") == 4
    assert said.endswith("penstock corpus: No space left on device\n")


def test_one_file_cannot_be_both(tmp_path, capsys):
    file = str(tmp_path / "corpus.jsonl")
    with pytest.raises(SystemExit) as end:
        corpus([file, "--bodies", file])
    assert end.value.code == 2
    assert "FILE and --bodies are the same" in capsys.readouterr().err


def test_who_has_read_enough_of_a_corpus_is_told_nothing():
    command = f"{console_script()} corpus - --prompts 2000 --draws 2000 | head -c 1"
    assert run(["sh", "-c", command]) == (0, "{")
