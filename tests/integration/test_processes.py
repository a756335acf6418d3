"""The supervisor and its processes: what they are given, how they are replaced, told and ended."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ..support.gateway import Gateway, gateway, one_model
from ..support.procs import (
    Proc,
    children,
    command_line,
    console_script,
    free_port,
    is_running,
    run,
    wait_until,
)
from ..support.scripted import certificate

DEAD = "http://127.0.0.1:9"
"""A backend nobody listens on; what is tested here needs none."""


def _config(**sections: Any) -> dict[str, Any]:
    few = {"workers": {"count": 1, "drain_delay_s": 0, "drain_timeout_s": 5}, "cache": {"mode": "off"}}
    return {**one_model(DEAD), **few, **sections}


TWO = {"workers": {"count": 2, "drain_delay_s": 0, "drain_timeout_s": 5}}


@pytest.fixture
def gate() -> Iterator[Gateway]:
    with gateway(_config(**TWO)) as made:
        yield made


@pytest.fixture(scope="module")
def looked_at() -> Iterator[Gateway]:
    """One for all that only look at it."""
    with gateway(_config(**TWO)) as made:
        yield made


def _status(gate: Gateway) -> dict[str, Any]:
    answer = httpx.get(f"{gate.admin_url}/gateway/status", trust_env=False)
    answer.raise_for_status()
    result: dict[str, Any] = answer.json()
    return result


def _run_directory(gate: Gateway) -> Path:
    for owner in Path("/dev/shm").glob("penstock-*/owner"):
        if json.loads(owner.read_bytes())["pid"] == gate.pid:
            return owner.parent
    raise AssertionError("no run directory")


def _listening_sockets(pid: int) -> set[str]:
    """Inodes of the listening TCP sockets that a process has open."""
    listening = {
        fields[9]
        for fields in map(str.split, Path("/proc/net/tcp").read_text().splitlines()[1:])
        if fields[3] == "0A"
    }
    mine = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            match = re.match(r"socket:\[(\d+)\]", os.readlink(fd))
            if match:
                mine.add(match[1])
    return mine & listening


# ---- what a process is given


def test_every_thread_of_a_worker_runs_on_its_own_core() -> None:
    cores = sorted(os.sched_getaffinity(0))[:2]
    with gateway(_config(workers={"count": len(cores), "cores": cores})) as gate:
        assert gate.is_up()
        seen = []
        for pid in gate.worker_pids():
            allowed = set()
            for task in Path(f"/proc/{pid}/task").iterdir():
                match = re.search(r"^Cpus_allowed_list:\s*(\S+)", (task / "status").read_text(), re.M)
                assert match
                allowed.add(match[1])
            assert len(allowed) == 1
            assert len(list(Path(f"/proc/{pid}/task").iterdir())) > 1
            seen += map(int, allowed)
        assert sorted(seen) == cores


def test_every_thread_of_a_worker_is_scheduled_as_batch_work(looked_at: Gateway) -> None:
    for pid in looked_at.worker_pids():
        policies = {os.sched_getscheduler(int(task.name)) for task in Path(f"/proc/{pid}/task").iterdir()}
        assert policies == {os.SCHED_BATCH}


def test_a_worker_has_its_own_listener_and_nobody_elses(looked_at: Gateway) -> None:
    sockets = [_listening_sockets(pid) for pid in looked_at.worker_pids()]
    assert [len(one) for one in sockets] == [1, 1]
    assert not sockets[0] & sockets[1]
    controller = looked_at.controller_pid()
    assert controller is not None
    assert len(_listening_sockets(controller)) == 1
    assert len(_listening_sockets(looked_at.pid)) == 3


def test_a_successor_serves_the_listener_of_the_dead(gate: Gateway) -> None:
    victim = gate.worker_pids()[0]
    before = _listening_sockets(victim)
    os.kill(victim, signal.SIGKILL)
    wait_until(
        lambda: before in [_listening_sockets(pid) for pid in gate.worker_pids() if pid != victim],
        what="a successor with the same listener",
    )


def test_the_limit_on_open_files_is_raised(looked_at: Gateway) -> None:
    for pid in looked_at.worker_pids():
        match = re.search(r"Max open files\s+(\d+)\s+(\d+)", Path(f"/proc/{pid}/limits").read_text())
        assert match
        assert match[1] == match[2]


def test_a_configuration_that_cannot_fit_the_limit_is_refused(tmp_path: Path) -> None:
    many = {f"m{i}": {"max_concurrent": 1_000_000, "backends": [{"url": DEAD}]} for i in range(200)}
    status, output = _serve(tmp_path, {"models": many})
    assert status == 2
    assert "file descriptors" in output
    assert len(output.splitlines()) == 1


# ---- starting


def _serve(folder: Path, config: object, *args: str) -> tuple[int, str]:
    file = folder / "penstock.yaml"
    file.write_text(config if isinstance(config, str) else json.dumps(config))
    return run([console_script(), "serve", "-c", str(file), *args])


def test_a_second_start_on_the_same_port_is_one_line(looked_at: Gateway, tmp_path: Path) -> None:
    config = {**_config(), "listen": looked_at.config["listen"], "admin": {"port": free_port()}}
    status, output = _serve(tmp_path, config)
    assert status == 2
    assert f"a gateway already runs on 127.0.0.1:{looked_at.port}" in output
    assert len(output.splitlines()) == 1
    assert looked_at.is_up()


def test_a_port_that_somebody_else_has_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        config = {**_config(), "listen": {"host": "127.0.0.1", "port": other.getsockname()[1]}}
        config["admin"] = {"port": free_port()}
        status, output = _serve(tmp_path, config)
    assert status == 2
    assert "cannot listen" in output.splitlines()[-1]
    assert "Traceback" not in output


@pytest.mark.parametrize("text", ["models: [", "model: {}", "", "models: {m: {backends: []}}"])
def test_a_bad_configuration_is_one_line(tmp_path: Path, text: str) -> None:
    status, output = _serve(tmp_path, text)
    assert status == 2
    assert len(output.splitlines()) == 1


def test_a_missing_file_and_a_wrong_option_are_one_line(tmp_path: Path) -> None:
    for args in (["serve", "-c", str(tmp_path / "none.yaml")], ["serve", "--port", "x"], ["nonsense"]):
        status, output = run([console_script(), *args])
        assert status == 2
        assert len(output.splitlines()) == 1, output


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("serve", "--workers", "x"), "'x' is not a number from 1 to 256"),
        (("serve", "--workers", "257"), "'257' is not a number from 1 to 256"),
        (("restart", "--port", "-"), "'-' is not a port from 1 to 65535"),
        (("config", "check", "/nonexist"), "penstock: /nonexist: cannot be read: No such file or directory;"),
    ],
)
def test_a_refusal_speaks_of_what_was_typed(args: tuple[str, ...], line: str) -> None:
    status, output = run([console_script(), *args])
    assert status == 2
    assert line in output
    assert len(output.splitlines()) == 1


@pytest.mark.parametrize("option", ["--port", "--control-port"])
def test_a_simulator_on_a_port_that_is_taken_is_one_line(option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = str(other.getsockname()[1])
        status, output = run([console_script(), "sim", "--host", "127.0.0.1", option, taken])
    assert status == 2
    assert output.startswith("penstock sim: cannot listen on 127.0.0.1:")
    assert taken in output
    assert output.rstrip().endswith("Address already in use")
    assert len(output.splitlines()) == 1


def test_the_other_commands_answer(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(json.dumps(_config()))
    assert run([console_script(), "config", "check", str(file)]) == (0, f"{file}: good\n")
    status, output = run([console_script(), "config", "schema"])
    assert status == 0
    assert json.loads(output)["title"]
    assert re.match(r"penstock \d", run([console_script(), "--version"])[1])
    status, output = run([console_script(), "restart", "-c", str(file)])
    assert status == 2
    assert "no gateway" in output


def test_the_command_line_takes_precedence(tmp_path: Path) -> None:
    port = free_port()
    with gateway(_config(), args=("--port", str(port), "--log-level", "DEBUG"), ready=None) as gate:
        wait_until(lambda: httpx_up(f"http://127.0.0.1:{port}/health"), what="the other port")
        assert not gate.is_up()


def httpx_up(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).is_success
    except httpx.TransportError:
        return False


# ---- reload


def _reloads(gate: Gateway, outcome: str) -> float:
    return gate.metric("penstock_config_reloads_total", outcome=outcome)


def _models(gate: Gateway) -> set[str]:
    answer = httpx.get(f"{gate.url}/v1/models", trust_env=False)
    return {model["id"] for model in answer.json()["data"]}


def test_a_reload_reaches_every_worker(gate: Gateway) -> None:
    gate.write({**gate.config, "models": {**gate.config["models"], "n": {"backends": [{"url": DEAD}]}}})
    gate.reload()
    wait_until(lambda: _status(gate)["generation"] == 2, what="the second generation")
    # a connection each, so that both workers are asked in the course of time
    for _ in range(20):
        wait_until(lambda: _models(gate) == {"m", "n"}, what="both models")
    assert len(list(_run_directory(gate).glob("config-*.msgpack"))) == 2


def test_an_invalid_file_is_refused_whole(gate: Gateway) -> None:
    good = gate.file.read_text()
    gate.file.write_text(good + "\nnonsense: 1\n")
    gate.reload()
    wait_until(lambda: _reloads(gate, "refused") == 1, what="the refusal")
    assert "config_refused" in gate.log()
    assert _status(gate)["generation"] == 1
    gate.file.write_text(good)
    gate.reload()
    wait_until(lambda: _reloads(gate, "unchanged") == 1, what="the reload of the same")


def test_the_log_level_is_live_in_every_process(gate: Gateway) -> None:
    gate.write({**gate.config, "log": {"level": "WARNING"}})
    gate.reload()
    wait_until(lambda: _reloads(gate, "loaded") == 1, what="the reload")
    before = gate.log()
    gate.proc.send(signal.SIGUSR2)
    wait_until(lambda: sum(one["life"] for one in _status(gate)["workers"]) >= 2, what="a roll")
    assert "INFO supervisor" not in gate.log()[len(before) :]


def test_keys_that_need_more_than_a_reload_are_named(gate: Gateway) -> None:
    changed = dict(gate.config)
    changed["admin"] = {**changed["admin"], "port": free_port()}
    changed["listen"] = {**changed["listen"], "keep_alive_s": 9}
    changed["workers"] = {**changed["workers"], "drain_timeout_s": 7}  # applied at once
    gate.write(changed)
    gate.reload()
    wait_until(lambda: "config_needs_roll" in gate.log(), what="the log")
    assert "config_needs_start keys=admin.port:" in gate.log()
    assert "config_needs_roll keys=listen.keep_alive_s:" in gate.log()


def test_what_a_reload_could_not_apply_is_named_again_until_it_agrees_with_what_runs(gate: Gateway) -> None:
    original = gate.config
    moved = {**original["admin"], "port": free_port()}

    def reload(outcome: str, count: int, config: dict[str, Any]) -> None:
        gate.write(config)
        gate.reload()
        wait_until(lambda: _reloads(gate, outcome) == count, what="the reload")

    def named(key: str, log: str) -> bool:
        return f" keys={key}:" in log

    slow = {**original["listen"], "keep_alive_s": 9}
    reload("loaded", 1, {**original, "admin": moved, "listen": slow})
    wait_until(
        lambda: named("admin.port", gate.log()) and named("listen.keep_alive_s", gate.log()), what="both"
    )
    old = set(gate.worker_pids())
    gate.proc.send(signal.SIGUSR2)
    wait_until(lambda: len(gate.worker_pids()) == 2 and not old & set(gate.worker_pids()), what="a roll")

    at = len(gate.log())
    reload("unchanged", 1, gate.config)
    wait_until(lambda: named("admin.port", gate.log()[at:]), what="the key that still needs a start")
    assert not named("listen.keep_alive_s", gate.log()[at:])

    at = len(gate.log())
    reload("loaded", 2, {**original, "listen": slow, "log": {"level": "DEBUG"}})
    reload("loaded", 3, {**original, "listen": slow, "health": {"fall": 7}, "admin": moved})
    wait_until(lambda: named("admin.port", gate.log()[at:]), what="the key set again")
    between = gate.log()[at:].partition("config_published generation=4")[0]
    assert "config_needs" not in between


def test_a_reload_asked_for_while_the_controller_is_replaced_is_not_forgotten(gate: Gateway) -> None:
    controller = gate.controller_pid()
    assert controller is not None
    gate.write({**gate.config, "log": {"level": "DEBUG"}})
    os.kill(controller, signal.SIGKILL)
    wait_until(lambda: not is_running(controller), what="its end")
    gate.reload()
    wait_until(lambda: "config_published generation=2" in gate.log(), what="the second generation")


# ---- restart, leave, crash


def test_penstock_restart_replaces_every_worker(gate: Gateway) -> None:
    old = set(gate.worker_pids())
    status, output = run([console_script(), "restart", "-c", str(gate.file)])
    assert (status, str(gate.pid) in output) == (0, True)
    wait_until(lambda: len(gate.worker_pids()) == 2 and not old & set(gate.worker_pids()), what="new workers")
    assert gate.is_up()


def test_a_certificate_that_broke_stops_a_restart_and_costs_a_worker_one_clear_line(tmp_path: Path) -> None:
    pair = certificate(tmp_path, "127.0.0.1")
    good = pair.read_text()
    listen = {"tls": {"cert": str(pair), "key": str(pair)}}
    with gateway(_config(listen=listen)) as gate:
        (old,) = gate.worker_pids()
        pair.write_text("broken")
        status, output = run([console_script(), "restart", "-c", str(gate.file)])
        assert status == 2
        assert "$.listen.tls: certificate and key do not load" in output
        assert len(output.splitlines()) == 1
        assert gate.is_up()
        assert "roll_asked" not in gate.log()
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: "tls_unusable" in gate.log(), what="the line")
        pair.write_text(good)
        gate.wait_up()
        assert "panicked" not in gate.log()
        assert "Traceback" not in gate.log()


def test_a_restart_is_checked_with_the_gateways_own_environment(tmp_path: Path) -> None:
    backend = {"url": DEAD, "api_key_env": "BACKEND_KEY"}
    config = {**_config(), "models": {"m": {"backends": [backend]}}}
    with gateway(config, env={**os.environ, "BACKEND_KEY": "k"}) as gate:
        assert run([console_script(), "restart", "-c", str(gate.file)])[0] == 0
        wait_until(lambda: "roll_asked" in gate.log(), what="the signal")


def test_a_worker_told_to_leave_by_somebody_else_gets_a_successor_at_once(gate: Gateway) -> None:
    one = gate.worker_pids()[0]
    os.kill(one, signal.SIGTERM)
    wait_until(lambda: one not in gate.worker_pids() and len(gate.worker_pids()) == 2, what="a successor")
    assert "process_died" not in gate.log()


def _made_by(folder: Path, port: int, workers: int, *factory: str) -> tuple[Path, list[str]]:
    """The configuration and command of a gateway whose workers are made by `factory`, the lines of a function."""
    file = folder / "c.yaml"
    ports = {"listen": {"host": "127.0.0.1", "port": port}, "admin": {"port": free_port()}}
    count = {"workers": {"count": workers, "drain_delay_s": 0, "drain_timeout_s": 5}}
    file.write_text(json.dumps({**_config(), **ports, **count}))
    script = folder / "made.py"
    script.write_text(
        "import os, pathlib, signal, sys\n"
        "from penstock.workers import backoff\n"
        "backoff.MAX_DELAY_S = 0.4\n"
        "from penstock.workers.boot import gateway_app\n"
        "from penstock.workers.source import Source\n"
        "from penstock.workers.supervisor import Supervisor\n"
        "def factory(given):\n"
        f"{''.join(f'    {line}{os.linesep}' for line in factory)}"
        f"source = Source(pathlib.Path({str(file)!r}))\n"
        "sys.exit(Supervisor(source, source.read(os.environ), dict(os.environ), app_factory=factory).run())\n"
    )
    return file, [sys.executable, str(script)]


def _broken(folder: Path, port: int, workers: int, condition: str) -> tuple[Path, list[str]]:
    """The same of a gateway whose workers end at their start where `condition` holds."""
    return _made_by(
        folder, port, workers, f"if {condition}:", "    raise SystemExit(3)", "return gateway_app(given)"
    )


def test_a_worker_told_to_leave_before_its_loop_runs_leaves(tmp_path: Path) -> None:
    mark = tmp_path / "told"
    factory = (
        "app, answer = gateway_app(given)",
        "class Told:",
        "    def __getattr__(self, name):",
        "        return getattr(app, name)",
        "    def tick(self, now, late_s):",  # the first one is before the loop runs
        f"        if not os.path.exists({str(mark)!r}):",
        f"            open({str(mark)!r}, 'w').close()",
        "            os.kill(os.getpid(), signal.SIGTERM)",
        "        app.tick(now, late_s)",
        "return Told(), answer",
    )
    with Proc(_made_by(tmp_path, free_port(), 1, *factory)[1], name="told") as proc:
        wait_until(lambda: "worker_left" in proc.log(), what="the worker hears it")
        wait_until(lambda: proc.log().count("worker_ready") == 2, what="a successor")
        assert "process_died" not in proc.log()


def test_a_worker_in_a_crash_loop_costs_the_others_nothing(tmp_path: Path) -> None:
    port, mark = free_port(), tmp_path / "broken"
    mark.touch()
    condition = f"given.slot % given.workers == 1 and os.path.exists({str(mark)!r})"
    _, command = _broken(tmp_path, port, 2, condition)
    with Proc(command, name="looping") as proc:
        wait_until(lambda: "crash_loop name=worker-1" in proc.log(), what="the loop", timeout_s=60)
        # Each on a connection of its own: half of them would go to the listener of the broken one.
        url = f"http://127.0.0.1:{port}/health"

        def all_served() -> bool:
            try:
                return all(httpx.get(url, timeout=2, trust_env=False).is_success for _ in range(20))
            except httpx.TransportError:
                return False  # it was just being tried again

        wait_until(all_served, what="20 answers in a row")
        ended = proc.log().count("name=worker-1")
        wait_until(lambda: proc.log().count("name=worker-1") > ended, what="another try")
        assert "process_died name=worker-0" not in proc.log()
        assert proc.log().count("crash_loop") == 1
        mark.unlink()
        wait_until(lambda: "gateway_ready workers=2" in proc.log(), what="the end of the loop")
        pids = [p for p in children(proc.pid) if "[worker-" in command_line(p)]
        sockets = [_listening_sockets(pid) for pid in pids]
        assert [len(one) for one in sockets] == [1, 1]


def test_a_crash_loop_of_all_stops_the_whole_with_one_clear_message(tmp_path: Path) -> None:
    file, command = _broken(tmp_path, free_port(), 1, "True")
    status, output = run(command, timeout_s=60)
    assert status == 1
    assert output.count("crash_loop") == 1
    assert not [
        owner for owner in Path("/dev/shm").glob("penstock-*/owner") if str(file) in owner.read_text()
    ]


def test_a_run_directory_that_was_removed_is_made_again_for_whoever_needs_it(tmp_path: Path) -> None:
    admin = {"on_api_port": True, "key_env": "ADMIN_KEY", "port": free_port()}
    with gateway(_config(admin=admin), env={**os.environ, "ADMIN_KEY": "k"}) as gate:
        key = {"authorization": "Bearer k"}

        def forwarded() -> bool:
            answer = httpx.get(f"{gate.url}/gateway/status", headers=key, trust_env=False)
            return answer.status_code == 200

        gate.write({**gate.config, **one_model(DEAD, name="other")})
        gate.reload()
        wait_until(lambda: "configuration_loaded" in gate.log(), what="generation 2 in use")
        folder = _run_directory(gate)  # this gateway's, by its supervisor's pid
        shutil.rmtree(folder)
        (worker,) = gate.worker_pids()
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: gate.worker_pids() not in ([], [worker]), what="a successor")
        gate.wait_up()
        models = httpx.get(f"{gate.url}/v1/models", trust_env=False).json()
        assert [one["id"] for one in models["data"]] == ["other"]
        wait_until(forwarded, what="the control socket")

        shutil.rmtree(_run_directory(gate))
        gate.write({**gate.config, **one_model(DEAD, name="third")})
        gate.reload()
        wait_until(lambda: "config_published generation=3" in gate.log(), what="the reload")
        wait_until(forwarded, what="the control socket")

        shutil.rmtree(_run_directory(gate))
        controller = gate.controller_pid()
        assert controller is not None
        os.kill(controller, signal.SIGKILL)
        wait_until(lambda: gate.controller_pid() not in (None, controller), what="a controller")
        wait_until(forwarded, what="the control socket")
        assert "run_directory_restored" in gate.log()
        assert "run_directory_lost" not in gate.log()
        gate.proc.send(signal.SIGTERM)
        assert gate.proc.wait() == 0
        assert not folder.exists()


def test_sigterm_ends_everything_and_leaves_nothing(gate: Gateway) -> None:
    folder = _run_directory(gate)
    family = [gate.pid, *gate.worker_pids(), gate.controller_pid()]
    gate.proc.send(signal.SIGTERM)
    assert gate.proc.wait() == 0
    assert not any(pid and is_running(pid) for pid in family)
    assert not folder.exists()


def test_a_second_signal_ends_a_drain_at_once() -> None:
    config = _config(workers={"count": 1, "drain_delay_s": 60, "drain_timeout_s": 90})
    with gateway(config) as gate:
        gate.proc.send(signal.SIGTERM)
        wait_until(lambda: "worker_leaving" in gate.log(), what="the drain")
        assert not gate.is_up("/ready")
        assert gate.is_up("/health")
        gate.proc.send(signal.SIGINT)
        assert gate.proc.wait(20) == 1


# ---- the admin port


def test_the_admin_port_has_metrics_status_and_nothing_else(looked_at: Gateway) -> None:
    assert looked_at.metric("penstock_worker_up") == 2
    assert looked_at.metric("penstock_worker_starts_total") == 2
    assert looked_at.metric("penstock_process_resident_bytes", process="supervisor") > 0
    status = _status(looked_at)
    assert {one["worker"] for one in status["workers"]} == {"0", "1"}
    assert status["models"]["m"]["backends"][0]["url"] == DEAD
    wait_until(
        lambda: _status(looked_at)["models"]["m"]["backends"][0]["health"] == "down", what="the verdict"
    )
    for path in ("/", "/v1/models", "/sleep"):
        answer = httpx.get(looked_at.admin_url + path, trust_env=False)
        assert answer.status_code == 404
        assert "error" in answer.json()


def test_admin_paths_are_on_the_api_port_only_when_asked_for_and_with_the_key(looked_at: Gateway) -> None:
    assert httpx.get(f"{looked_at.url}/metrics", trust_env=False).status_code == 404
    config = _config(admin={"key_env": "TEST_ADMIN_KEY", "on_api_port": True})
    with (
        gateway(config, env={"TEST_ADMIN_KEY": "s3cret"}) as open_gate,
        httpx.Client(trust_env=False) as client,
    ):
        right = {"authorization": "Bearer s3cret"}
        assert client.get(f"{open_gate.url}/metrics").status_code == 401
        answer = client.get(f"{open_gate.url}/metrics", headers=right)
        assert "penstock_worker_up" in answer.text
        assert client.get(f"{open_gate.url}/gateway/status", headers=right).json()["generation"] == 1
        assert client.get(f"{open_gate.admin_url}/metrics").status_code == 401
        assert client.get(f"{open_gate.url}/sleep", headers=right).status_code == 404


def test_a_unix_socket_is_served_beside_the_port(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with gateway(_config(listen={"uds": str(path), "max_connections": 1000})) as gate:
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport) as client:
            assert client.get("http://t/health").is_success
        gate.proc.send(signal.SIGTERM)
        assert gate.proc.wait() == 0
        assert not path.exists()
