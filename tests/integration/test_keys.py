"""API keys over the whole gateway: who is let in, who is not, and that a revoked key is refused everywhere."""

import contextlib
import io
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from penstock.workers.cli import main
from tests.support.gateway import Gateway, gateway, one_model
from tests.support.procs import console_script, wait_until
from tests.support.redis import RedisServer, redis_server
from tests.support.sim import Simulator, simulator

BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


@pytest.fixture(scope="module")
def server() -> Iterator[Simulator]:
    with simulator(model="m") as one:
        yield one


def keys_cli(file: Path, *words: str, ok: bool = True) -> str:
    """What `penstock keys` printed; its one line of error with ok=False. Run in this process: it is quicker."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["keys", *words, "-c", str(file)])
    assert status == (0 if ok else 2), err.getvalue()
    return (out if ok else err).getvalue()


def create(file: Path, *words: str, tenant: str = "acme") -> tuple[str, str]:
    """Id and secret of a new key."""
    made = json.loads(keys_cli(file, "create", "--tenant", tenant, "--json", *words))
    return made["id"], made["key"]


def ask(gate: Gateway, secret: str | None, **told: Any) -> httpx.Response:
    """One chat completion on a connection of its own, so that any worker may get it."""
    headers = {"authorization": f"Bearer {secret}"} if secret is not None else {}
    return httpx.post(
        f"{gate.url}/v1/chat/completions",
        json={**BODY, **told},
        headers=headers,
        timeout=30,
        trust_env=False,
        verify=False,  # no authorities to load: it is quicker
    )


def answers(gate: Gateway, secret: str | None, times: int = 1) -> set[int]:
    """The statuses of so many requests."""
    return {ask(gate, secret).status_code for _ in range(times)}


def keys_of(gate: Gateway) -> dict[str, Any]:
    told: dict[str, Any] = httpx.get(f"{gate.admin_url}/gateway/status", timeout=10, trust_env=False).json()
    return dict(told["keys"])


def refused_everywhere(gates: list[Gateway], secret: str) -> float:
    """Until many fresh connections to each gateway in a row are refused; seconds after which one was still let in."""
    began = time.monotonic()
    served = 0.0

    def refused() -> bool:
        nonlocal served
        for gate in gates:
            for _ in range(12):
                at = time.monotonic()
                if ask(gate, secret).status_code != 401:
                    served = at - began
                    return False
        return True

    wait_until(refused, 20, "refused everywhere")
    return served


# ---- who is let in


def test_the_sdks_see_their_own_errors_for_wrong_expired_and_forbidden_keys(server: Simulator) -> None:
    config = {**one_model(server.url), "keys": {"file": "keys.yaml"}}
    config["models"]["other"] = {"backends": [{"url": server.url}], "aliases": ["nick"]}
    with gateway(config) as gate:
        _, good = create(gate.file, "--models", "m")
        _, late = create(gate.file, "--expires", "1", tenant="late")
        keys = gate.file.parent / "keys.yaml"
        text = keys.read_text()
        day = text[text.index("expires:") :].splitlines()[0]
        keys.write_text(text.replace(day, "expires: 2020-01-01"))
        wait_until(lambda: answers(gate, good) == {200}, 20, "the key counts")
        wait_until(lambda: "expired" in ask(gate, late).text, 20, "the other one is over")

        def sdk(key: str) -> openai.OpenAI:
            return openai.OpenAI(base_url=f"{gate.url}/v1", api_key=key, max_retries=0)

        def claude(key: str) -> anthropic.Anthropic:
            return anthropic.Anthropic(base_url=gate.url, api_key=key, max_retries=0)

        before = server.stats()["requests"]
        assert sdk(good).chat.completions.create(**BODY).choices
        assert claude(good).messages.create(**BODY).content
        assert [model.id for model in sdk(good).models.list()] == ["m"]
        with pytest.raises(openai.AuthenticationError) as wrong:
            sdk("sk-penstock-wrong").chat.completions.create(**BODY)
        assert wrong.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError, match="expired"):
            sdk(late).chat.completions.create(**BODY)
        with pytest.raises(openai.AuthenticationError):
            sdk("sk-penstock-wrong").models.list()
        for name in ("other", "nick"):
            with pytest.raises(openai.PermissionDeniedError, match="does not have access"):
                sdk(good).chat.completions.create(**{**BODY, "model": name})
            with pytest.raises(anthropic.PermissionDeniedError) as denied:
                claude(good).messages.create(**{**BODY, "model": name})
            assert denied.value.body["error"]["type"] == "permission_error"
            with pytest.raises(openai.PermissionDeniedError) as forbidden:
                sdk(good).models.retrieve(name)
            assert forbidden.value.code == "model_not_allowed"
        with pytest.raises(openai.NotFoundError) as missing:
            sdk(good).models.retrieve("none")
        assert "other" not in missing.value.message
        with pytest.raises(openai.NotFoundError):
            sdk(good).chat.completions.create(**{**BODY, "model": "none"})
        with pytest.raises(anthropic.AuthenticationError) as other:
            claude("sk-penstock-wrong").messages.create(**BODY)
        assert other.value.body == {
            "type": "error",
            "error": {"type": "authentication_error", "message": "the API key is not valid"},
        }
        assert server.stats()["requests"] != before
        # what needs no key, and what a key does not open
        for path, status in (("/health", 200), ("/ready", 200), ("/v1/models", 401), ("/none", 404)):
            assert httpx.get(gate.url + path, timeout=10, trust_env=False).status_code == status, path
        assert httpx.get(f"{gate.url}/v1/responses/resp_1", timeout=10, trust_env=False).status_code == 401
        for name in ("x-api-key", "api-key", "X-API-Key"):
            answer = httpx.get(f"{gate.url}/v1/models", headers={name: good}, timeout=10, trust_env=False)
            assert answer.status_code == 200, name
        both = {"authorization": "Bearer wrong", "x-api-key": good}
        assert (
            httpx.get(f"{gate.url}/v1/models", headers=both, timeout=10, trust_env=False).status_code == 401
        )
        basic = {"authorization": f"Basic {good}"}
        assert (
            httpx.get(f"{gate.url}/v1/models", headers=basic, timeout=10, trust_env=False).status_code == 401
        )
        nobody = ask(gate, None)
        assert (nobody.status_code, nobody.headers["www-authenticate"]) == (401, "Bearer")


def test_a_refused_request_reaches_no_backend_and_its_body_is_not_read(server: Simulator) -> None:
    with gateway({**one_model(server.url), "keys": {"file": "keys.yaml"}}) as gate:
        create(gate.file)
        wait_until(lambda: keys_of(gate)["known"], 20, "known")
        wait_until(lambda: answers(gate, "x") == {401}, 20, "refused")
        before = server.stats()["requests"]
        answer = httpx.post(
            f"{gate.url}/v1/chat/completions", content=b"no JSON", headers={"authorization": "Bearer x"}
        )
        assert answer.status_code == 401
        assert server.stats()["requests"] == before
        assert gate.metric("penstock_requests_total", status="401") >= 2


def test_two_tenants_have_caches_of_their_own(server: Simulator) -> None:
    config = {**one_model(server.url), "keys": {"file": "keys.yaml"}, "cache": {"mode": "all"}}
    with gateway(config) as gate:
        secrets = [create(gate.file, tenant=name)[1] for name in ("a", "a", "b")]
        wait_until(lambda: answers(gate, secrets[2]) == {200}, 20, "the last key counts")
        told = [
            ask(gate, secret, seed=n).headers["x-penstock-cache"]
            for n, secret in ((1, secrets[0]), (1, secrets[1]), (1, secrets[2]), (1, secrets[2]))
        ]
        assert told == ["MISS", "HIT-L1", "MISS", "HIT-L1"]


def test_a_stored_response_is_its_tenants_alone(server: Simulator) -> None:
    config = {**one_model(server.url), "keys": {"file": "keys.yaml"}}
    config["models"]["other"] = {"backends": [{"url": server.url}]}
    with gateway(config) as gate:
        (_, mine), (_, also), (_, theirs) = (create(gate.file, tenant=name) for name in ("a", "a", "b"))
        _, narrow = create(gate.file, "--models", "other")
        wait_until(lambda: answers(gate, theirs) == {200}, 20, "the keys count")

        def client(key: str) -> openai.OpenAI:
            return openai.OpenAI(base_url=f"{gate.url}/v1", api_key=key, max_retries=0)

        made = client(mine).responses.create(model="m", input="hello", store=True)
        assert client(also).responses.retrieve(made.id).id == made.id
        before = server.stats()["requests"]
        with pytest.raises(openai.NotFoundError):
            client(theirs).responses.retrieve(made.id)
        with pytest.raises(openai.NotFoundError):
            client(theirs).responses.delete(made.id)
        with pytest.raises(openai.NotFoundError):
            client(theirs).responses.create(model="m", input="more", previous_response_id=made.id)
        with pytest.raises(openai.NotFoundError):
            client(narrow).responses.retrieve(made.id)
        assert server.stats()["requests"] == before
        assert client(also).responses.create(model="m", input="more", previous_response_id=made.id).output


# ---- changes


def test_a_revoked_key_is_refused_on_every_worker(server: Simulator) -> None:
    config = {**one_model(server.url), "keys": {"file": "keys.yaml"}, "workers": {"count": 2}}
    with gateway(config) as gate:
        id, secret = create(gate.file)
        _, stays = create(gate.file)
        wait_until(lambda: answers(gate, stays, 12) == {200}, 20, "the keys count")
        assert answers(gate, secret, 12) == {200}
        assert gate.metric("penstock_api_keys") == 2
        assert keys_cli(gate.file, "revoke", id) == f"revoked {id}\n"
        print(f"last let in by a worker after {refused_everywhere([gate], secret):.3f} s")
        assert answers(gate, stays, 12) == {200}
        assert (gate.metric("penstock_api_keys"), gate.metric("penstock_api_keys_readable")) == (1, 1)


def test_a_broken_file_changes_nothing_and_is_told_of_once(server: Simulator) -> None:
    with gateway({**one_model(server.url), "keys": {"file": "keys.yaml"}}) as gate:
        _, secret = create(gate.file)
        keys = gate.file.parent / "keys.yaml"
        wait_until(lambda: answers(gate, secret) == {200}, 20, "the key counts")
        good = keys.read_text()
        for broken in ("keys: {", good.replace("tenant:", "tennant:"), ""):
            seen = gate.log().count("keys_kept")
            keys.write_text(broken)
            wait_until(lambda n=seen: gate.log().count("keys_kept") == n + 1, 20, "told")
            assert answers(gate, secret) == {200}
            assert keys_of(gate)["readable"] is False
        assert "did you mean `tenant`" in gate.log()
        keys.unlink()
        wait_until(lambda: gate.log().count("keys_kept") == 4, 20, "told that it is gone")
        assert answers(gate, secret) == {200}
        keys.write_text(good)
        wait_until(lambda: keys_of(gate)["readable"], 20, "readable again")
        keys.write_text("keys: {}")
        wait_until(lambda: answers(gate, secret) == {401}, 20, "no key is left")
        assert gate.log().count("keys_kept") == 4


def test_a_controller_killed_while_keys_change_is_followed_by_one_that_has_them(server: Simulator) -> None:
    config = {**one_model(server.url), "keys": {"file": "keys.yaml"}, "workers": {"count": 2}}
    with gateway(config) as gate:
        id, secret = create(gate.file)
        _, limited = create(gate.file, "--rpm", "6000")
        wait_until(lambda: answers(gate, limited, 12) == {200}, 20, "the keys count")
        for _ in range(2):
            pid = gate.controller_pid()
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)  # it sees nothing of the change
            keys_cli(gate.file, "revoke", id)
            assert answers(gate, secret, 4) == {200}
            os.kill(pid, signal.SIGKILL)
            refused_everywhere([gate], secret)
            assert answers(gate, limited, 6) == {200}
            id, secret = create(gate.file)
            wait_until(lambda s=secret: answers(gate, s, 12) == {200}, 20, "the next key counts")
        assert keys_of(gate)["limited"] == 1


def test_keys_that_nobody_made_yet_are_waited_for_and_nobody_is_let_in(server: Simulator) -> None:
    with gateway({**one_model(server.url), "keys": {"file": "keys.yaml"}}) as gate:
        answer = ask(gate, "sk-penstock-anything")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "keys_unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        assert answers(gate, None) == {503}
        _, secret = create(gate.file)
        wait_until(lambda: answers(gate, secret) == {200}, 20, "the first key counts")
        assert answers(gate, None) == {401}


def test_a_broken_file_at_the_start_is_one_line_and_no_gateway(server: Simulator, tmp_path: Path) -> None:
    file = tmp_path / "penstock.yaml"
    file.write_text(
        json.dumps({**one_model(server.url), "keys": {"file": "keys.yaml"}, "admin": {"port": 1}})
    )
    (tmp_path / "keys.yaml").write_text("keys: {k: {hash: 5}}")
    done = subprocess.run(
        [console_script(), "serve", "-c", str(file), "--port", "18099"], capture_output=True, timeout=60
    )
    lines = [line for line in done.stderr.decode().splitlines() if line.startswith("penstock:")]
    assert done.returncode == 2
    assert len(lines) == 1
    assert "keys.k" in lines[0]


# ---- several nodes


def far(redis: RedisServer, *urls: str, **more: Any) -> dict[str, Any]:
    return {**one_model(*urls), "keys": {"redis": {"url": redis.url}}, **more}


def test_a_revoked_key_is_refused_on_every_node(server: Simulator) -> None:
    with (
        redis_server() as redis,
        gateway(far(redis, server.url, workers={"count": 2})) as one,
        gateway(far(redis, server.url)) as other,
    ):
        assert answers(one, "x") == answers(other, "x") == {503}
        id, secret = create(one.file)
        for gate in (one, other):
            wait_until(lambda g=gate: answers(g, secret, 8) == {200}, 20, "the key counts")
        keys_cli(other.file, "revoke", id)
        print(f"last let in by a node after {refused_everywhere([one, other], secret):.3f} s")
        assert redis.command("HKEYS", "penstock:keys") == [b"version"]
        assert "there is no key" in keys_cli(other.file, "revoke", id, ok=False)


def test_keys_outlive_a_redis_that_goes_and_one_that_comes_back_empty(server: Simulator) -> None:
    with redis_server() as redis:
        redis.stop()
        with gateway(far(redis, server.url)) as gate:
            answer = ask(gate, "sk-penstock-anything")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "keys_unavailable")
            redis.start()
            id, secret = create(gate.file)
            wait_until(lambda: answers(gate, secret) == {200}, 20, "the first key counts")
            redis.stop()
            wait_until(lambda: keys_of(gate)["readable"] is False, 20, "its absence is noticed")
            assert answers(gate, secret) == {200}
            assert answers(gate, "x") == {401}
            redis.start()  # empty
            wait_until(lambda: "there are no keys yet" in gate.log(), 20, "its emptiness is noticed")
            assert answers(gate, secret) == {200}
            create(gate.file)
            refused_everywhere([gate], secret)
            assert gate.log().count(id) == 0


# ---- what is nowhere


def test_no_secret_is_logged_kept_or_told(server: Simulator) -> None:
    config = {**one_model(server.url), "keys": {"file": "keys.yaml"}, "log": {"level": "DEBUG"}}
    with gateway(config) as gate:
        id, secret = create(gate.file, "--rpm", "6000")
        wait_until(lambda: answers(gate, secret) == {200}, 20, "the key counts")
        wrong = "sk-penstock-somebody-elses"
        assert answers(gate, wrong) == {401}
        httpx.get(f"{gate.url}/v1/messages", headers={"x-api-key": wrong}, timeout=10, trust_env=False)
        folders = list(Path("/dev/shm").glob(f"penstock-{os.getuid()}-*"))
        ours = [f for f in folders if json.loads((f / "owner").read_bytes())["port"] == gate.port]
        assert len(ours) == 1
        files = [path for path in ours[0].iterdir() if path.is_file()]
        assert any(path.name.startswith("keys-") for path in files)
        assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o600"}
        told = [gate.log().encode(), gate.metrics().encode(), (gate.file.parent / "keys.yaml").read_bytes()]
        told += [httpx.get(f"{gate.admin_url}/gateway/status", trust_env=False).content]
        told += [keys_cli(gate.file, "list").encode(), *(path.read_bytes() for path in files)]
        for secret_ in (secret, wrong):
            assert not any(secret_.encode() in text for text in told)
        digest = (gate.file.parent / "keys.yaml").read_text().split("sha256:")[1][:64]
        assert not any(digest.encode() in text for text in (*told[:2], told[3], told[4]))
        assert id in keys_cli(gate.file, "list")
