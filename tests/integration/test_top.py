"""`penstock top` in a terminal: what it shows is what was sent, and it leaves no trace."""

from __future__ import annotations

import re

import httpx

from ..support.gateway import gateway, one_model
from ..support.procs import console_script, free_port, run
from ..support.sim import simulator
from ..support.terminal import terminal

_SHOWN = (
    "share since start  57.1 %  57.1 %   0.0 %  42.9 %      0.0 %",
    "since start             4       4       0       3          0       2",
    "model_not_found",
)
_COLOURS = re.compile(rb"\x1b\[[0-9;]*3[0-7]m")


def _ask(url: str, word: str, *, model: str = "m", temperature: float = 0.0) -> int:
    body = {"model": model, "messages": [{"role": "user", "content": word}], "max_tokens": 2}
    answer = httpx.post(
        f"{url}/v1/chat/completions",
        json={**body, "temperature": temperature},
        timeout=30,
        trust_env=False,
    )
    return answer.status_code


def test_the_screen_shows_what_was_sent_and_the_terminal_is_left_as_it_was() -> None:
    port = free_port()
    top = [console_script(), "top", "--port", str(port), "--interval", "0.4"]
    with terminal(top) as seen, terminal(top, env={"NO_COLOR": "1"}) as plain:
        seen.wait("no gateway of this user runs")
        with simulator(model="m") as sim:
            config = one_model(sim.url) | {
                "admin": {"key_env": "ADMIN"},
                "cache": {"mode": "deterministic"},
                "listen": {"port": port},
                "health": {"interval_s": 0.2},
            }
            with gateway(config, env={"ADMIN": "secret"}) as g:
                for word in ("a", "b", "c", "a", "b", "a", "a"):
                    assert _ask(g.url, word) == 200  # three are misses
                for word in ("a", "b"):
                    assert _ask(g.url, word, temperature=1.0) == 200
                assert _ask(g.url, "a", model="nobody") == 404
                # what was sent, and what the gateway says of itself
                seen.wait(
                    *_SHOWN, f"127.0.0.1:{sim.port}  m   up              0       1          0       0  0.0 %"
                )
                assert seen.settings() != seen.before  # keys come as they are pressed
                once = run([*top, "--once"])
                plain.wait(*_SHOWN)
                assert (once[0], "\x1b" in once[1]) == (0, False)
                assert all(one in once[1] for one in _SHOWN)
            seen.wait("still trying: no gateway")
            seen.wait(*_SHOWN)  # what was known last stays
        assert run([*top, "--once"])[0] == 2
        seen.press(b"q")
        assert seen.end() == 0
        plain.press(b"\x03")
        assert plain.end() == 0
        for one in (seen, plain):
            assert one.settings() == one.before
            assert one.raw.count(b"\x1b[?1049h") == one.raw.count(b"\x1b[?1049l") == 1
            assert one.raw.endswith(b"\x1b[?25h\x1b[?1049l")  # the cursor, and the first screen
        assert _COLOURS.search(seen.raw) is not None
        assert _COLOURS.search(plain.raw) is None
