"""Questions whose answer is known beforehand, and clients that ask them over raw connections.

The simulator draws every answer from the question, so what comes back can be checked word by word, whoever kept it.
"""

import asyncio
import itertools
import json
import math
import random
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from penstock.loadtests.sim.model import text as sim_text

from .scripted import until

WORDS = 8
"""Of every answer; the simulator's shortest own end."""
THINKING_S = 0.005
STAYING = 7
"""A client comes on a new connection after as many answers to all."""
_PATH = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Question:
    """One that may be kept. more: further fields of the body."""

    text: str
    stream: bool = False
    model: str = "m"
    more: tuple[tuple[str, Any], ...] = ()

    @property
    def body(self) -> dict[str, Any]:
        said = {
            "model": self.model,
            "temperature": 0,
            "max_tokens": WORDS,
            "messages": [{"role": "user", "content": self.text}],
            **dict(self.more),
        }
        return {**said, "stream": True} if self.stream else said

    @property
    def words(self) -> str:
        """What the simulator says to it."""
        seed = sim_text.seed_of(self.body, "chat 0")
        return "".join(itertools.islice(sim_text.words(seed), WORDS))


@dataclass(slots=True)
class Reply:
    """An answer. pieces: the chunks of its body as they came."""

    status: int
    headers: dict[str, str]
    pieces: list[bytes]
    seconds: float = 0.0

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def cache(self) -> str:
        """HIT-L1, HIT-L2, MISS, COALESCED or BYPASS; empty where the header is missing."""
        return self.headers.get("x-penstock-cache", "")

    @property
    def age_s(self) -> int:
        return int(self.headers["age"])

    def answers(self, question: Question) -> bool:
        """Whether this is the whole and right answer."""
        if self.status != 200:
            return False
        if not question.stream:
            said = json.loads(self.body)["choices"][0]["message"]["content"]
            return bool(said == question.words)
        events = [line.removeprefix("data: ") for line in self.body.decode().split("\n\n") if line]
        if events[-1] != "[DONE]":
            return False
        deltas = [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
        return "".join(delta.get("content") or "" for delta in deltas) == question.words


class Asker:
    """One client with a connection that is kept. Whatever goes wrong is raised."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._ends: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, question: Question, **headers: str) -> Reply:
        """The whole answer; ``_`` in a header's name is ``-``."""
        began = time.perf_counter()
        reader = await self._send(question, headers)
        status, fields = await _head(reader)
        reply = Reply(status, fields, [])
        if "content-length" in fields:
            reply.pieces.append(await reader.readexactly(int(fields["content-length"])))
        else:
            while size := int(await reader.readline(), 16):
                reply.pieces.append(await reader.readexactly(size))
                await reader.readexactly(2)
            await reader.readexactly(2)
        reply.seconds = time.perf_counter() - began
        if fields.get("connection") == "close":
            self.leave()
        return reply

    async def begin(self, question: Question) -> Reply:
        """The head of an answer; the client may then leave."""
        return Reply(*await _head(await self._send(question, {})), [])

    async def _send(self, question: Question, headers: dict[str, str]) -> asyncio.StreamReader:
        if self._ends is None:
            self._ends = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
        body = json.dumps(question.body).encode()
        fields = {"host": "test", "content-type": "application/json", "content-length": str(len(body))}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self._ends[1].write(f"POST {_PATH} HTTP/1.1\r\n{lines}\r\n".encode() + body)
        return self._ends[0]

    def leave(self) -> None:
        """Close the connection, whatever is under way."""
        if self._ends is not None:
            self._ends[1].transport.abort()
            self._ends = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.leave()


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    line = await reader.readline()
    if not line:
        raise ConnectionError("closed without an answer")
    fields = {}
    while (field_line := await reader.readline()).strip():
        name, _, value = field_line.decode().partition(":")
        fields[name.lower()] = value.strip()
    return int(line.split()[1]), fields


async def ask(port: int, question: Question, **headers: str) -> Reply:
    """Ask on a connection of its own."""
    async with Asker(port) as asker:
        return await asker.ask(question, **headers)


@dataclass
class Phase:
    """What was answered to the questions that were asked in it."""

    name: str
    seconds: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def count(self) -> int:
        return len(self.seconds)

    def quantile_ms(self, part: float) -> float:
        """Milliseconds that this part of the answers took at most."""
        ordered = sorted(self.seconds)
        return 1000 * ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else math.nan


class Traffic:
    """Clients that ask gateways all the time: old questions and new ones, plain and streamed.

    wrong: every answer that was not a 200 with the right words, and every request without one. most: further
    questions are not asked.
    """

    def __init__(
        self, ports: Sequence[int], *, known: int = 40, fresh: float = 0.3, most: int = 20_000, seed: int = 1
    ) -> None:
        self.phase = Phase("start")
        self.phases = [self.phase]
        self.wrong: list[str] = []
        self.done = 0
        self._ports = ports
        self._random = random.Random(seed)
        self._known = [Question(f"known {seed} {n}", stream=n % 3 == 0) for n in range(known)]
        self._fresh = fresh
        self._new = 0
        self._again: deque[Question] = deque()  # to be asked once more, perhaps at another gateway
        self._seed = seed
        self._left = most
        self._going = True

    def begin(self, name: str) -> None:
        """What is asked from now on belongs to another phase."""
        self.phase = Phase(name)
        self.phases.append(self.phase)

    async def more(self, count: int) -> None:
        """Go on until so many more were answered."""
        goal = self.done + count
        await until(lambda: self.done >= goal or not self._left, 60)
        assert self._left, "more questions than were meant to be asked"

    async def sees(self, outcome: str, count: int = 20) -> None:
        """Go on until so many of this phase met the cache in one way."""
        await until(lambda: self.phase.outcomes[outcome] >= count or not self._left, 60)
        assert self._left, "more questions than were meant to be asked"

    def _next(self) -> Question:
        chance = self._random
        if chance.random() >= self._fresh:
            return chance.choice(self._known)
        if len(self._again) > 8 and chance.random() < 0.5:
            return self._again.popleft()
        self._new += 1
        question = Question(f"new {self._seed} {self._new}", stream=self._new % 3 == 0)
        self._again.append(question)
        return question

    async def _client(self, number: int) -> None:
        async with Asker(self._ports[number % len(self._ports)]) as asker:
            while self._going and self._left:
                self._left -= 1
                phase, question = self.phase, self._next()
                try:
                    reply = await asker.ask(question)
                    if not reply.answers(question):
                        self.wrong.append(f"{phase.name}: {question}: {reply.status} {reply.body[:300]!r}")
                    phase.outcomes[reply.cache] += 1
                    phase.seconds.append(reply.seconds)
                except (OSError, asyncio.IncompleteReadError, ValueError, LookupError) as fault:
                    self.wrong.append(f"{phase.name}: {question}: {fault!r}")
                    asker.leave()
                self.done += 1
                if self.done % STAYING == 0:
                    asker.leave()  # the next connection may be another worker's
                await asyncio.sleep(THINKING_S)

    @asynccontextmanager
    async def running(self, clients: int = 4) -> AsyncIterator[Self]:
        """Until the block's end, when all have their answer."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(clients):
                tasks.create_task(self._client(number))
            try:
                yield self
            finally:
                self._going = False


def table(columns: dict[str, Sequence[Phase]]) -> str:
    """For people: p50 and p95 of each phase in each column, and how its answers met the cache in the first."""
    first = next(iter(columns.values()))
    lines = [f"{'phase':24}" + "".join(f"{name + ' n/p50/p95 ms':>30}" for name in columns)]
    for at, phase in enumerate(first):
        cells = "".join(
            f"{of[at].count:>14} {of[at].quantile_ms(0.5):>7.1f} {of[at].quantile_ms(0.95):>7.1f}"
            for of in columns.values()
        )
        met = ", ".join(f"{name} {count}" for name, count in sorted(phase.outcomes.items()))
        lines.append(f"{phase.name:24}{cells}  {met}")
    return "\n".join(lines)
