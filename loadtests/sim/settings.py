"""Everything the simulator can be told at start, with every default in this one place.

Refuses to know: argv syntax (main) and what the values do (everybody else).
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Frozen for the life of the process; units are in the names, 0 means "none" where a limit is meant."""

    host: str = "127.0.0.1"
    port: int = 8000
    uds: str | None = None
    control_port: int | None = None
    """A second TCP port, never closed by a `refuse` fault, for `/sim/*`; None: no such port."""
    tls_cert: str | None = None
    tls_key: str | None = None

    models: tuple[str, ...] = ("sim-model",)
    any_model: bool = True
    """Answer for any model name, echoing it; False: unknown names get vLLM's 404."""
    api_key: str | None = None
    max_model_len: int = 8_388_608
    request_id_headers: bool = False
    """vLLM's --enable-request-id-headers: echo `X-Request-Id` on responses."""

    startup_s: float = 0.0
    dev_mode: bool = True
    """vLLM's VLLM_SERVER_DEV_MODE=1: the routes of sleep mode are there."""
    wake_s: float = 0.0
    """Weights back from main memory, after sleep level 1."""
    reload_s: float = 0.0
    """Weights loaded anew, after sleep level 2."""
    keep_alive_s: float = 5.0
    """uvicorn's timeout_keep_alive as vLLM runs it."""
    max_body_bytes: int = 256 * MIB
    backlog: int = 2048

    prefill_tps: float = 0.0
    decode_ms: float = 0.0
    decode_ms_per_seq: float = 0.0
    max_seqs: int = 256
    kv_blocks: int = 1_048_576
    step_tokens: int = 8192
    """vLLM's --max-num-batched-tokens: the most tokens one step works on."""

    reasoning: bool = False
    """Emit reasoning text before the answer, as a server with a reasoning parser does."""
    embedding_dim: int = 64

    canned: bool = False
    canned_events: int = 33
    canned_pace_ms: float = 0.0
    canned_reply_bytes: int = 640

    created: int = 1_767_225_600
    """Unix time stamped on every object, fixed so that equal requests get equal bytes."""
    record: int = 64
    """How many request heads and body digests `/sim/stats` keeps."""
    seed: int = 0
    """Seeds the faults' `probability` draws."""
