"""The corpus: questions made from a seed, and the order they are asked in.

Strategy: a question is a whole request body, so that every generator sends the same bytes and none has to make any.
Model, size and whether it is a stream belong to the question, not to the draw: asked again it is the same request, and
a cache that works has it. The order is Zipf's; its exponent is found by bisection, so that the share of draws that come
again is what was asked for. Refuses to know who sends it.

One pass through the draws is a *lap*. In the next one the same questions are asked with another number in the place of
:data:`LAP`, which makes other questions of them: however long a load is, its hit rate stays what it is in one lap.

The file: JSON lines. First ``{"corpus": 1, …}`` with what made it, then a question a line, ``{"model",
"stream", "body"}``, then ``{"draws": [number of a question, …]}`` of at most a thousand each.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from ..corpus import equal_bytes, zipf

#: Stands in each prompt once, where the number of the lap goes: as many digits.
LAP = "@lap@"
LAPS = 10 ** len(LAP)
MOST = 1_000_000

_LINE = 1000
_PHRASES = 512
_STEPS = 24
_STEEPEST = 6.0
_WORDS = (
    "gateway latency model token cache server request stream answer prompt memory batch queue worker weight layer "
    "vector context window kernel thread socket buffer header byte table index shard replica leader ballot ledger "
    "river valley harbour lantern compass anchor bridge orchard meadow timber copper marble winter summer morning "
    "explain compare describe summarise translate list prove estimate why how when where which between without under"
)


class CorpusError(Exception):
    """A corpus that cannot be had; the text is one line."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a corpus is to be. ``models``: name and weight of each; sizes are of the prompt, log-uniform."""

    prompts: int = 10_000
    draws: int = 10_000
    hits: float = 0.45
    streams: float = 0.2
    models: tuple[tuple[str, float], ...] = (("chat-large", 0.7), ("chat-small", 0.3))
    least_bytes: int = 100
    most_bytes: int = 10_000
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Question:
    """One request: its body has :data:`LAP` in it."""

    model: str
    stream: bool
    body: str

    def of(self, lap: int) -> str:
        """The body as it is sent in a lap."""
        return self.body.replace(LAP, f"{lap % LAPS:0{len(LAP)}}", 1)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Questions, the order they are asked in, and the exponent that order was drawn with."""

    questions: Sequence[Question]
    draws: Sequence[int]
    alpha: float
    seed: int = 1
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def repeats(self) -> float:
        """The share of a lap's draws whose question came before: what a cache that forgets nothing hits."""
        return 1 - len(set(self.draws)) / len(self.draws)

    def bodies(self, lap: int = 0) -> Iterator[str]:
        """One lap's bodies, in their order."""
        return (self.questions[number].of(lap) for number in self.draws)

    def lines(self) -> Iterator[str]:
        """The file, line by line."""
        head = {"corpus": 1, "seed": self.seed, "prompts": len(self.questions), "draws": len(self.draws)}
        yield json.dumps(head | {"alpha": round(self.alpha, 4), "repeats": round(self.repeats, 6)})
        for one in self.questions:
            yield json.dumps({"model": one.model, "stream": one.stream, "body": one.body})
        for start in range(0, len(self.draws), _LINE):
            yield json.dumps({"draws": list(self.draws[start : start + _LINE])})


def make(terms: Terms) -> Corpus:
    """A corpus by these terms, the same for the same terms on every machine. Raises CorpusError."""
    _check(terms)
    keys, alpha = _draws(terms)
    return Corpus(_questions(terms), keys, alpha, terms.seed)


def read(lines: Iterable[str]) -> Corpus:
    """A corpus out of its file. Raises CorpusError."""
    questions: list[Question] = []
    draws: list[int] = []
    try:
        numbered = iter(lines)
        head = json.loads(next(numbered, "{}"))
        if head.get("corpus") != 1:
            raise CorpusError("its first line is not that of a corpus")
        for line in numbered:
            one = json.loads(line)
            if "draws" in one:
                draws += one["draws"]
            else:
                questions.append(Question(one["model"], one["stream"], one["body"]))
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise CorpusError(f"a line of it cannot be read: {fault}") from None
    if not draws or not all(0 <= number < len(questions) for number in draws):
        raise CorpusError("it draws questions that it does not have, or none")
    return Corpus(questions, draws, head.get("alpha", 0.0), head.get("seed", 1))


def _check(terms: Terms) -> None:
    if not 1 <= terms.prompts <= MOST or not 1 <= terms.draws <= MOST:
        raise CorpusError(f"prompts and draws are from 1 to {MOST:,}")
    if not 64 <= terms.least_bytes <= terms.most_bytes <= 1 << 20:
        raise CorpusError("prompts have from 64 bytes to 1 MiB, the least no more than the most")
    if not 0 <= terms.streams <= 1 or not 0 <= terms.hits < 1:
        raise CorpusError("shares are from 0 to 1")
    if not terms.models or any(not name or not 0 < weight <= MOST for name, weight in terms.models):
        raise CorpusError(
            f"a corpus has a model at least, every one a name and a weight above 0, up to {MOST:,}"
        )


def _draws(terms: Terms) -> tuple[list[int], float]:
    """Draws of which the share `hits` come again, by the exponent that does it."""

    def at(alpha: float) -> tuple[list[int], float]:
        trace = zipf(
            "questions",
            objects=terms.prompts,
            requests=terms.draws,
            alpha=alpha,
            sizes=equal_bytes(1),
            seed=terms.seed,
        )
        return list(trace.keys), 1 - trace.objects / terms.draws

    low, high = 0.0, _STEEPEST
    if at(low)[1] > terms.hits or at(high)[1] < terms.hits:
        raise CorpusError(
            f"{terms.draws:,} draws from {terms.prompts:,} prompts cannot come again {terms.hits:.0%} of the time: "
            f"that is from {at(low)[1]:.0%} to {at(high)[1]:.0%}"
        )
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle)[1] < terms.hits else (low, middle)
    return at(high)[0], high


def _questions(terms: Terms) -> list[Question]:
    random = Random(terms.seed ^ 0xC0FFEE)
    words = _WORDS.split()
    phrases = [" ".join(random.choices(words, k=8)) + ". " for _ in range(_PHRASES)]
    least, most = math.log(terms.least_bytes), math.log(terms.most_bytes)
    names, weights = zip(*terms.models, strict=True)
    questions = []
    for number in range(terms.prompts):
        size = min(round(math.exp(random.uniform(least, most))), terms.most_bytes)
        start = f"[{LAP}] Question {number}: "
        pieces = random.choices(phrases, k=size // 40 + 1)
        prompt = (start + "".join(pieces)).ljust(size, ".")[:size]
        model = random.choices(names, weights)[0]
        stream = random.random() < terms.streams
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": 32,
        }
        if stream:
            body["stream"] = True
        questions.append(Question(model, stream, json.dumps(body, separators=(",", ":"))))
    return questions
