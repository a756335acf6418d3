"""`penstock sim`: the command line of the simulator."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import errno
import logging
import os
import resource
import sys
from collections.abc import Sequence
from typing import Any

import uvloop

from .model.tokens import BLOCK_TOKENS
from .server import Server
from .settings import Settings

_HELP = {
    "host": "address to listen on",
    "port": "port to listen on; 0 picks one and prints it",
    "uds": "listen on this Unix socket instead",
    "control_port": "a second port, for /sim/*, that stays open while connections are refused",
    "tls_cert": "serve TLS with this certificate chain (PEM)",
    "tls_key": "the certificate's key (PEM)",
    "any_model": "answer for any model name (--no-any-model: 404 for others, as vLLM)",
    "api_key": "require this key on /v1, as vLLM's --api-key",
    "max_model_len": "context length in tokens; by default as much as --kv-blocks hold",
    "request_id_headers": "echo X-Request-Id, as vLLM's --enable-request-id-headers",
    "startup_s": "seconds before it listens",
    "dev_mode": "have the routes of sleep mode, as vLLM with VLLM_SERVER_DEV_MODE=1 (--no-dev-mode: not)",
    "wake_s": "seconds a wake from sleep level 1 takes",
    "reload_s": "seconds the weights take to load anew, after sleep level 2",
    "keep_alive_s": "close connections idle for this long",
    "max_body_bytes": "largest request body",
    "backlog": "listen backlog",
    "prefill_tps": "prompt tokens a second; 0: no time",
    "decode_ms": "milliseconds a step",
    "decode_ms_per_seq": "milliseconds a step for every running sequence",
    "max_seqs": "most sequences in a batch",
    "kv_blocks": "KV cache size in blocks of 16 tokens",
    "step_tokens": "most tokens a step works on",
    "reasoning": "emit reasoning before the answer",
    "embedding_dim": "length of embedding vectors",
    "canned": "prebuilt answers without parsing, for benches",
    "canned_events": "events of a canned stream",
    "canned_pace_ms": "milliseconds between canned events; 0: one after another, each flushed",
    "canned_reply_bytes": "about the size of a canned chat reply",
    "created": "Unix time stamped on every object",
    "record": "requests remembered for /sim/stats",
    "seed": "seed of the faults' probabilities",
}


def parse(argv: Sequence[str]) -> Settings:
    """Settings from the command line; exits with a message where it does not fit."""
    parser = argparse.ArgumentParser(prog="penstock sim", description="A simulator that speaks vLLM's API.")
    parser.add_argument(
        "--model", action="append", dest="models", metavar="NAME", help="served name; repeatable"
    )
    for field in dataclasses.fields(Settings):
        if field.name == "models":
            continue
        flag = "--" + field.name.replace("_", "-")
        options: dict[str, Any] = {"dest": field.name, "default": field.default, "help": _HELP[field.name]}
        if isinstance(field.default, bool):
            options["action"] = argparse.BooleanOptionalAction
        elif field.name == "control_port":
            options["type"] = int
        elif field.name == "max_model_len":
            options |= {"type": int, "default": None}
        elif field.default is not None:
            options["type"] = type(field.default)
        parser.add_argument(flag, **options)
    given = vars(parser.parse_args(argv))
    given["models"] = tuple(given["models"] or Settings().models)
    if given["max_model_len"] is None:
        given["max_model_len"] = min(Settings().max_model_len, given["kv_blocks"] * BLOCK_TOKENS)
    settings = Settings(**given)
    problem = _problem(settings)
    if problem:
        parser.error(problem)
    return settings


def main(argv: Sequence[str] | None = None) -> int:
    """Runs until SIGTERM or SIGINT; 0 when told to stop, 1 when it breaks, 2 when it cannot listen."""
    settings = parse(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(Server(settings, _say).run())
    except OSError as err:
        if err.filename is None and err.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
            where = settings.uds or f"{settings.host}:{settings.port}"
            if settings.control_port is not None:
                where += f" and control port {settings.control_port}"
            print(f"penstock sim: cannot listen on {where}: {os.strerror(err.errno)}", file=sys.stderr)
            return 2
        print(f"penstock sim: cannot serve: {err}", file=sys.stderr)
        return 1
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def _problem(settings: Settings) -> str | None:
    if (settings.tls_cert is None) != (settings.tls_key is None):
        return "--tls-cert and --tls-key go together"
    if not 0 <= settings.port <= 65_535:
        return "--port must be 0 to 65535"
    for name in ("max_model_len", "max_seqs", "kv_blocks", "step_tokens", "embedding_dim", "max_body_bytes"):
        if getattr(settings, name) < 1:
            return f"--{name.replace('_', '-')} must be at least 1"
    for name in (
        "prefill_tps",
        "decode_ms",
        "decode_ms_per_seq",
        "startup_s",
        "wake_s",
        "reload_s",
        "keep_alive_s",
    ):
        if getattr(settings, name) < 0:
            return f"--{name.replace('_', '-')} must not be negative"
    if settings.max_model_len > settings.kv_blocks * BLOCK_TOKENS:
        return "--max-model-len does not fit into --kv-blocks of 16 tokens"
    return None


if __name__ == "__main__":
    sys.exit(main())
