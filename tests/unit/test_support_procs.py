"""The tests' own tools are tested: a tool that leaks processes would hide what it should show."""

import signal
import sys

import pytest

from ..support.procs import Proc, WaitFailed, children, free_port, is_running, run, wait_until


def test_a_proc_is_gone_after_its_block_and_its_output_was_kept():
    with Proc(
        [sys.executable, "-u", "-c", "print('hello'); import signal; signal.pause()"], name="p"
    ) as proc:
        wait_until(lambda: "hello" in proc.log())
        pid = proc.pid
        assert is_running(pid)
    assert not is_running(pid)
    assert proc.exit_status() == -signal.SIGTERM


def test_a_proc_that_ignores_sigterm_is_killed_and_so_are_its_children():
    program = (
        "import signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()']); print('up'); signal.pause()"
    )
    proc = Proc([sys.executable, "-u", "-c", program], name="p", grace_s=0.2)
    with proc:
        wait_until(lambda: "up" in proc.log() and children(proc.pid))
        child = children(proc.pid)[0]
    assert proc.exit_status() == -signal.SIGKILL
    wait_until(lambda: not is_running(child), what="the child's end")


def test_a_proc_that_ends_before_it_is_ready_shows_its_output():
    proc = Proc([sys.executable, "-c", "raise SystemExit('no luck')"], name="p", ready=lambda: False)
    with pytest.raises(WaitFailed, match="no luck"):
        proc.start()


def test_a_condition_that_stays_false_is_reported_by_name():
    with pytest.raises(WaitFailed, match=r"the moon: not within 0\.1 s"):
        wait_until(lambda: False, 0.1, "the moon")


def test_free_ports_differ():
    assert len({free_port() for _ in range(50)}) == 50


def test_a_command_is_run_to_its_end():
    assert run([sys.executable, "-c", "print('x'); raise SystemExit(3)"]) == (3, "x\n")
