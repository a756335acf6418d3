"""The command line: `penstock serve | sim | corpus | loadtest | config … | restart | top | profile | cache … | keys … |
backends … | pools … | wake | stop | switch`, and `--version`.

Strategy: parse, call, print one line when it cannot be done. Exit statuses: 0 done, 1 it broke while running,
2 it was asked for something that cannot be done (the command line, the configuration, a port that is taken, an entry
that is not there).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..gateway.config import ConfigError
from .backends_cli import add_verbs as add_backends_verbs
from .backends_cli import run as run_backends
from .cache_cli import add_verbs as add_cache_verbs
from .cache_cli import run as run_cache
from .config_cli import add_verbs as add_config_verbs
from .config_cli import run as run_config
from .keys_cli import add_verbs as add_keys_verbs
from .keys_cli import run as run_keys
from .pools.economy.cli import add_verb as add_simulate_verb
from .pools.economy.cli import run as run_simulate
from .pools_cli import VERBS as POOL_VERBS
from .pools_cli import add_verbs as add_pools_verbs
from .pools_cli import run as run_pools
from .profile_cli import add_verb as add_profile_verb
from .profile_cli import run as run_profile
from .top.cli import add_verb as add_top_verb
from .top.cli import run as run_top
from .verbs import CANNOT, Failed


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(CANNOT, f"{self.prog}: {message}\n")


_OWN_OPTIONS = {
    "sim": "run a simulated vLLM server",
    "corpus": "write questions to ask under load",
    "loadtest": "start simulators and gateways, load them and judge what came of it",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["sim"]:
        from ..loadtests.sim.main import main as simulate  # its options are its own

        return simulate(words[1:])
    try:
        if words[:1] in (["corpus"], ["loadtest"]):
            from ..loadtests.suite.main import VERBS  # so are theirs

            return VERBS[words[0]](words[1:])
        return _run(_parser().parse_args(words), os.environ)
    except (BrokenPipeError, KeyboardInterrupt):
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="penstock", description="One OpenAI-compatible endpoint in front of vLLM servers.")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", parser_class=_Parser, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the gateway; without -c a demo with two simulated servers")
    serve.add_argument("-c", "--config", type=Path, metavar="FILE", help="the configuration")
    serve.add_argument("--port", type=_port, help="API port, instead of `listen.port`")
    serve.add_argument("--workers", type=_workers, help="number of workers, instead of `workers.count`")
    serve.add_argument(
        "--log-level", choices=("DEBUG", "INFO", "WARNING", "ERROR"), help="instead of `log.level`"
    )
    for verb, told in _OWN_OPTIONS.items():  # told of here, parsed where they are
        commands.add_parser(verb, help=told)
    add_config_verbs(commands, _Parser)
    restart = commands.add_parser("restart", help="replace a running gateway's workers one by one")
    restart.add_argument(
        "-c", "--config", type=Path, metavar="FILE", help="which gateway, by its configuration"
    )
    restart.add_argument("--port", type=_port, help="which gateway, by its API port")
    add_top_verb(commands, _port)
    add_profile_verb(commands, _port)
    add_cache_verbs(commands, _Parser, _port)
    add_keys_verbs(commands, _Parser)
    add_backends_verbs(commands, _Parser, _port)
    add_simulate_verb(add_pools_verbs(commands, _Parser, _port))
    return parser


def _port(text: str) -> int:
    return _number(text, "a port", 65_535)


def _workers(text: str) -> int:
    return _number(text, "a number", 256)


def _number(text: str, what: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):
        raise argparse.ArgumentTypeError(f"{text!r} is not {what} from 1 to {most}")
    return int(text)


def _run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    if args.version:
        from .status import package_version

        print(f"penstock {package_version()}")
        return 0
    if args.command == "serve":
        return _serve(args, dict(environ))
    if args.command == "restart":
        return _restart(args.config, args.port)
    if args.command == "profile":
        return _say(lambda: run_profile(args))
    if args.command == "top":
        return _done(lambda: run_top(args))
    if args.command == "cache":
        return _say(lambda: run_cache(args, environ))
    if args.command == "backends":
        return _say(lambda: run_backends(args))
    if args.command == "pools" and args.verb == "simulate":
        return _say(lambda: run_simulate(args))
    if args.command == "pools" or args.command in POOL_VERBS:
        return _say(lambda: run_pools(args))
    if args.command in ("keys", "config"):
        from .nofile import raise_limit

        raise_limit()
        run = run_keys if args.command == "keys" else run_config
        return _say(lambda: run(args, environ))
    _parser().print_help(sys.stderr)
    return CANNOT


def _serve(args: argparse.Namespace, environ: dict[str, str]) -> int:
    from .nofile import raise_limit

    raise_limit()
    if args.config is not None:
        return _supervise(args.config, args, environ, demo_port=False)
    from .demo import DemoFailed, demo

    try:
        with demo() as file:
            return _supervise(file, args, environ, demo_port=True)
    except DemoFailed as fault:
        return _cannot(fault)
    except ImportError:
        return _cannot(
            "the demo needs the simulator; install penstock[loadtest], or give a configuration with -c"
        )


def _supervise(file: Path, args: argparse.Namespace, environ: Mapping[str, str], *, demo_port: bool) -> int:
    from .foundation import CannotStart
    from .source import Source
    from .supervisor import Supervisor

    source = Source(file, port=args.port, workers=args.workers, log_level=args.log_level)
    try:
        config, document = source.settle(environ)
        told: dict[str, Any] = {"document": document}
        if demo_port:
            told["on_ready"] = lambda: _greet(config.listen.port)
        return Supervisor(source, config, environ, **told).run()
    except (ConfigError, CannotStart) as fault:
        return _cannot(fault)


def _greet(port: int) -> None:
    from .demo import greeting

    print(greeting(port), flush=True)


def _restart(file: Path | None, port: int | None) -> int:
    from .restart import CannotRestart, restart

    try:
        owner = restart(file, port)
    except CannotRestart as fault:
        return _cannot(fault)
    print(f"rolling restart of the gateway on port {owner.port} (supervisor {owner.pid}) begun")
    return 0


def _say(verb: Callable[[], str]) -> int:
    """Print what a verb has to say; its exit status."""
    return _done(lambda: print(verb()))


def _done(verb: Callable[[], None]) -> int:
    """Do what a verb does; its exit status."""
    try:
        verb()
    except Failed as fault:
        _cannot(fault)
        return fault.status
    return 0


def _cannot(why: object) -> int:
    print(f"penstock: {why}", file=sys.stderr)
    return CANNOT


if __name__ == "__main__":
    sys.exit(main())
