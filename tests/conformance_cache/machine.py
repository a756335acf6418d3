"""The one state machine that every cache must pass.

What it states: a look-up gives what was last put under that very key, bit for bit, with the times it was put with; or
nothing. Never after a flush that came behind the question, never at or behind its expiry, never another key's. Where
nothing may be forgotten, it gives the answer as long as it lives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    precondition,
    rule,
    run_state_machine_as_test,
)

from .subjects import SUBJECTS, meant, taken_along
from .target import Subject, Target

#: The largest value put anywhere.
MOST_BYTES = 3000

START_MS = 1_700_000_000_000
STEPS = 40

# Far above what an example takes: a Redis counts them in real time.
LIVES_MS = (60_000, 600_000, 3_600_000)
PAUSES_MS = (1, 59_999, 60_000, 540_001, 3_600_000)

subjects = st.sampled_from(SUBJECTS)
views = st.integers(0, 7)
sizes = st.sampled_from((0, 1, 55, 56, 57, 700, 1024, 2000, MOST_BYTES))


@dataclass(slots=True)
class Answer:
    """One that was put."""

    value: bytes
    created_ms: int
    expires_ms: int
    sure: bool = True
    """False once something came that may have taken it along."""


@dataclass(slots=True, eq=False)
class Question:
    """One that was asked and not answered yet. Equal to none but itself."""

    subject: Subject
    asked: object
    view: int
    flushed: bool = False
    sure: bool = True


@dataclass(slots=True)
class Known:
    """What the suite knows of one key: the answers not flushed since they were asked for, the last one last.

    None in their place is a point behind which there is nothing: a removal, or an answer that was stored dead.
    """

    answers: list[Answer | None] = field(default_factory=list)


class CacheMachine(RuleBasedStateMachine):
    """`make` gives a fresh cache for each run."""

    make: Callable[[], Target]

    questions: Bundle[Question] = Bundle("questions")

    def __init__(self) -> None:
        super().__init__()
        self.target = type(self).make()
        self.now_ms = START_MS
        self.known = {subject.key: Known() for subject in SUBJECTS}
        self.open: list[Question] = []
        self.count = 0

    def teardown(self) -> None:
        try:
            for subject in SUBJECTS:
                if self.known[subject.key].answers:
                    self.everybody_looks_one_up_twice(subject)
        finally:
            self.target.close()

    @rule(target=questions, subject=subjects, view=views)
    def a_question_is_asked(self, subject: Subject, view: int) -> Question:
        view %= self.target.writers
        question = Question(subject, self.target.ask(view, subject), view)
        self.open.append(question)
        return question

    @rule(question=consumes(questions), ttl_ms=st.sampled_from(LIVES_MS), size=sizes, text=st.booleans())
    def it_is_answered(self, question: Question, ttl_ms: int, size: int, text: bool) -> None:
        self.open.remove(question)
        self.store(question, ttl_ms, size, text)

    @rule(subject=subjects, view=views, ttl_ms=st.sampled_from(LIVES_MS), size=sizes, text=st.booleans())
    def one_is_asked_and_answered(
        self, subject: Subject, view: int, ttl_ms: int, size: int, text: bool
    ) -> None:
        view %= self.target.writers
        self.store(Question(subject, self.target.ask(view, subject), view), ttl_ms, size, text)

    @rule(subject=subjects, view=views)
    def one_is_looked_up(self, subject: Subject, view: int) -> None:
        self.look(view % self.target.views, subject)

    @rule(subject=subjects)
    def everybody_looks_one_up_twice(self, subject: Subject) -> None:
        for view in (*range(self.target.views), *range(self.target.views)):
            self.look(view, subject)  # the second time perhaps at a copy that the first one made

    @rule(subject=subjects, kind=st.sampled_from(("all", "model", "tenant", "key")))
    def there_is_a_flush(self, subject: Subject, kind: str) -> None:
        self.target.flush(kind, subject)
        for one in meant(kind, subject):
            self.known[one.key].answers = [None]
        for one in taken_along(kind, subject):
            for answer in self.known[one.key].answers:
                if answer is not None:
                    answer.sure = False
        for question in self.open:
            question.flushed |= question.subject in meant(kind, subject)
            question.sure &= question.subject not in taken_along(kind, subject)

    @precondition(lambda self: self.target.removes)
    @rule(subject=subjects, view=views)
    def one_is_removed(self, subject: Subject, view: int) -> None:
        self.target.remove(view % self.target.writers, subject)
        self.known[subject.key].answers.append(None)

    @rule(pause_ms=st.sampled_from(PAUSES_MS))
    def time_passes(self, pause_ms: int) -> None:
        self.now_ms += pause_ms

    @rule(view=views)
    def a_process_dies_and_another_takes_its_place(self, view: int) -> None:
        self.target.restart(view % self.target.views)

    def store(self, question: Question, ttl_ms: int, size: int, text: bool) -> None:
        self.count += 1
        mark = b"%d;" % self.count
        fill = mark * (size // len(mark) + 1) if text else Random(self.count).randbytes(size)
        value = (mark + fill)[:size]  # cut short it may equal another one: then it is no worse than that
        stored = self.target.put(question.view, question.subject, question.asked, self.now_ms, ttl_ms, value)
        if stored:
            answers = self.known[question.subject.key].answers
            if not question.flushed:
                answers.append(Answer(value, self.now_ms, self.now_ms + ttl_ms, question.sure))
            elif answers and answers[-1] is not None:
                answers[-1].sure = False  # what is dead may have taken its place, or lie beside it
        else:
            assert self.target.forgets, "an answer was refused"

    def look(self, view: int, subject: Subject) -> None:
        found = self.target.get(view, subject, self.now_ms)
        answers = self.known[subject.key].answers
        last = answers[-1] if answers else None
        living = [a for a in answers if a is not None and a.expires_ms > self.now_ms]
        if view < self.target.latest:
            living = [a for a in living if a is last]
        if found is None:
            assert self.target.forgets or not (last in living and last is not None and last.sure), (
                "a living answer was forgotten"
            )
            return
        assert found.value in [a.value for a in living], "this was not put last under this key, or it is over"
        assert found.expires_ms > self.now_ms
        assert any(
            found.value == a.value and found.created_ms == a.created_ms and found.expires_ms <= a.expires_ms
            for a in living
        ), "the times are not those it was put with"


def conforms(make: Callable[[], Target], default_examples: int) -> None:
    """Run the machine on what `make` makes: so often, or as often as a profile asks that asks for more than usual."""
    wanted = settings().max_examples
    if wanted <= settings.get_profile("default").max_examples:
        wanted = default_examples
    machine: Any = type("Machine", (CacheMachine,), {"make": staticmethod(make)})
    run_state_machine_as_test(machine, settings=settings(max_examples=wanted, stateful_step_count=STEPS))
