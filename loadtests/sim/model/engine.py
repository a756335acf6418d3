"""Continuous batching in virtual time: who runs, who waits, and when each token is ready.

The model follows vLLM's V1 scheduler: every step decodes one token of each running sequence and prefills as many
prompt tokens as the step's budget has room for; a step lasts

    decode_ms + decode_ms_per_seq * running + prefilled / prefill_tps

A sequence is admitted when there is a place (`max_seqs`) and KV room; when decoding runs out of blocks the sequence
admitted last is preempted and recomputed. Pure: callers pass the time in and carry the results out; no clock, no
I/O, no text.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from .prefix import PrefixCache
from .tokens import BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class TimeModel:
    """Speeds and limits; 0 for a speed means "takes no time"."""

    prefill_tps: float = 0.0
    decode_ms: float = 0.0
    decode_ms_per_seq: float = 0.0
    max_seqs: int = 256
    kv_blocks: int = 1_048_576
    step_tokens: int = 8192


@dataclass(slots=True, eq=False)
class Sequence:
    """One prompt being answered. `goal` tokens are generated; 0 means prefill only (embeddings, scores)."""

    prompt_tokens: int
    goal: int
    hashes: tuple[bytes, ...] = ()
    reason: str = "stop"
    """vLLM's finished_reason once complete: stop or length."""
    made: int = 0
    cached_tokens: int = 0
    prefill_left: int = 0
    blocks: int = 0
    arrived_s: float = 0.0
    admitted_s: float = -1.0
    first_token_s: float = -1.0
    done: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """One sequence got on: `tokens` more are ready (0 for a finished prefill-only sequence)."""

    sequence: Sequence
    tokens: int
    finished: bool
    at_s: float


@dataclass(slots=True)
class Totals:
    """Counters in tokens and sequences, as vLLM's metrics report them."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    steps: int = 0


@dataclass(slots=True)
class _Step:
    ends_s: float
    tokens: int = 1
    """Tokens every decoding sequence makes; more than one only where decoding takes no time."""
    decoding: list[Sequence] = field(default_factory=list)
    prefilling: list[tuple[Sequence, int]] = field(default_factory=list)


class Engine:
    """The scheduler. `submit`, `cancel`, `pause` and `resume` must be given the present time after `advance`."""

    def __init__(self, model: TimeModel) -> None:
        self._model = model
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._step: _Step | None = None
        self._free_blocks = model.kv_blocks
        self.prefix = PrefixCache(min(model.kv_blocks, 65_536))
        self.totals = Totals()
        self.paused = False
        self.closed = False

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences in the queue."""
        return len(self._waiting)

    @property
    def kv_usage(self) -> float:
        """Share of KV blocks in use, 0 to 1."""
        return 1.0 - self._free_blocks / self._model.kv_blocks if self._model.kv_blocks else 0.0

    @property
    def next_at_s(self) -> float | None:
        """When `advance` has something to do next; None while nothing runs."""
        return self._step.ends_s if self._step else None

    def submit(self, sequence: Sequence, now_s: float) -> None:
        """Queues a sequence; it joins the batch at the next step with room for it."""
        sequence.arrived_s = now_s
        self._waiting.append(sequence)
        if self._step is None:
            self._begin(now_s)

    def cancel(self, sequence: Sequence) -> None:
        """Takes a sequence out at once, wherever it is; harmless when it is done."""
        if sequence.done:
            return
        sequence.done = True
        if sequence in self._running:
            self._leave(sequence)
        else:
            self._waiting.remove(sequence)

    def pause(self) -> None:
        """No further step begins (sleep); the step under way ends."""
        self.paused = True

    def close(self) -> None:
        """Nobody is admitted any more (sleep's `wait`); what runs goes on."""
        self.closed = True

    def resume(self, now_s: float) -> None:
        """Goes on after `pause` and `close`."""
        self.paused = self.closed = False
        if self._step is None:
            self._begin(now_s)

    def advance(self, now_s: float) -> list[Progress]:
        """Ends every step due by `now_s` and begins the next ones; what became ready, in order."""
        out: list[Progress] = []
        while self._step is not None and self._step.ends_s <= now_s:
            step, self._step = self._step, None
            self._end(step, out)
            self._begin(step.ends_s)
        return out

    def _begin(self, at_s: float) -> None:
        if self.paused:
            return
        self._make_room()
        self._admit(at_s)
        if not self._running:
            return
        step = _Step(0.0)
        budget = self._model.step_tokens
        prefilled = 0
        for sequence in self._running:
            if not sequence.prefill_left:
                step.decoding.append(sequence)
                budget -= 1
        for sequence in self._running:
            if sequence.prefill_left and budget > 0:
                share = min(sequence.prefill_left, budget)
                step.prefilling.append((sequence, share))
                budget -= share
                prefilled += share
        took_s = (self._model.decode_ms + self._model.decode_ms_per_seq * len(self._running)) / 1000
        if not took_s and not prefilled:
            step.tokens = min(self._burst(sequence) for sequence in step.decoding)
        if self._model.prefill_tps:
            took_s += prefilled / self._model.prefill_tps
        step.ends_s = at_s + took_s
        self._step = step
        self.totals.steps += 1

    def _burst(self, sequence: Sequence) -> int:
        """Tokens until the sequence ends or needs another block."""
        room = sequence.blocks * BLOCK_TOKENS - sequence.prompt_tokens - sequence.made
        return max(1, min(sequence.goal - sequence.made, room))

    def _end(self, step: _Step, out: list[Progress]) -> None:
        for sequence, share in step.prefilling:
            if sequence.done or sequence.admitted_s < 0:
                continue
            sequence.prefill_left -= share
            self.totals.prompt_tokens += share
            if not sequence.prefill_left:
                self.prefix.insert(sequence.hashes)
                self._token(sequence, 1, step.ends_s, out)
        for sequence in step.decoding:
            if not sequence.done and sequence.admitted_s >= 0:
                self._token(sequence, step.tokens, step.ends_s, out)

    def _token(self, sequence: Sequence, tokens: int, at_s: float, out: list[Progress]) -> None:
        if sequence.first_token_s < 0:
            sequence.first_token_s = at_s
        tokens = tokens if sequence.goal else 0
        sequence.made += tokens
        self.totals.generation_tokens += tokens
        if sequence.made >= sequence.goal:
            sequence.done = True
            self._leave(sequence)
        out.append(Progress(sequence, tokens, sequence.done, at_s))

    def _leave(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._free_blocks += sequence.blocks
        sequence.blocks = 0

    def _blocks_for(self, sequence: Sequence) -> int:
        return -(-(sequence.prompt_tokens + sequence.made + 1) // BLOCK_TOKENS)

    def _make_room(self) -> None:
        """Gives every running sequence the block its next token needs, preempting the last admitted for it."""
        index = 0
        while index < len(self._running):
            sequence = self._running[index]
            need = self._blocks_for(sequence) - sequence.blocks
            while need > self._free_blocks and len(self._running) > index + 1:
                self._preempt(self._running[-1])
            if need > self._free_blocks and index:
                self._preempt(sequence)
                return
            # A lone sequence may overdraw: max_model_len keeps that from happening in a sane configuration.
            self._free_blocks -= max(need, 0)
            sequence.blocks += max(need, 0)
            index += 1

    def _preempt(self, sequence: Sequence) -> None:
        self._leave(sequence)
        sequence.admitted_s = -1.0
        self._waiting.appendleft(sequence)
        self.totals.preemptions += 1

    def _admit(self, at_s: float) -> None:
        while self._waiting and not self.closed and len(self._running) < self._model.max_seqs:
            sequence = self._waiting[0]
            need = self._blocks_for(sequence)
            if need > self._free_blocks and self._running:
                return
            self._waiting.popleft()
            self._free_blocks -= need
            sequence.blocks = need
            sequence.admitted_s = at_s
            # vLLM always recomputes at least the last prompt token.
            total = sequence.prompt_tokens + sequence.made
            hit = min(self.prefix.match(sequence.hashes) * BLOCK_TOKENS, max(total - 1, 0))
            sequence.cached_tokens = hit
            sequence.prefill_left = max(total - hit, 1)
            self.totals.prefix_queries += total
            self.totals.prefix_hits += hit
            self._running.append(sequence)
