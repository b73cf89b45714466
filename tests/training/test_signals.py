"""Signals in real processes: what is said and the exit code, also inside compiled code."""

import signal
import subprocess
import sys
import time

import pytest

from gptjax.training.signals import LeaveAtOnce, StopSignal

# A step that holds the main thread in C with the interpreter's lock released, as XLA does.
PROCESS = """
import hashlib, sys, time
from gptjax.training.signals import LeaveAtOnce, StopSignal
def compiled(seconds):
    begun = time.monotonic()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000)
    rounds = int(100_000 * seconds / (time.monotonic() - begun))
    hashlib.pbkdf2_hmac("sha256", b"", b"", rounds)
ours, saves, seconds = sys.argv[1] == "ours", sys.argv[2] == "saves", float(sys.argv[3])
outer = LeaveAtOnce if ours else __import__("contextlib").nullcontext
with outer():
    if not saves:
        print("ready", flush=True)
        compiled(seconds)
        print("done", flush=True)
    with StopSignal() as stop:
        print("ready", flush=True)
        compiled(seconds) if seconds else time.sleep(20)
        print("saved", stop.asked, flush=True)
"""


def tell(arguments, *numbers):
    """Exit code, output and error of a process that got these signals, and how soon it ended."""
    command = [sys.executable, "-c", PROCESS, *arguments.split()]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        begun, told = time.monotonic(), ""
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.1)
        out, error = process.communicate(timeout=60)
    return process.returncode, out, told + error, time.monotonic() - begun


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_where_nothing_is_to_be_saved_the_process_ends_at_once(number):
    code, out, error, seconds = tell("ours nothing 20", number)
    assert code == 75 and out == "" and seconds < 5
    assert "nothing had to be saved" in error and error.count("\n") == 1


@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGTERM] * 3, [signal.SIGINT] * 2])
def test_a_step_under_way_is_saved(numbers):
    code, out, error, _ = tell("ours saves 0.6", *numbers)
    assert code == 0 and out == "saved True\n"
    first, *more = error.splitlines()
    assert "stopping after one last save" in first
    assert len(more) == (numbers == [signal.SIGINT] * 2)
    assert all("once more leaves at once" in line for line in more)


def test_the_third_interrupt_leaves_at_once():
    code, out, error, seconds = tell("ours saves 20", *[signal.SIGINT] * 3)
    assert code == 130 and out == "" and seconds < 5
    assert error.count("\n") == 3 and "left at once" in error.splitlines()[2]


def test_among_several_hosts_the_loop_is_told(capsys):
    with LeaveAtOnce() as outer:
        assert not StopSignal().asked
        LeaveAtOnce.others_wait = True
        try:
            outer.arrived(signal.SIGTERM)
            outer.arrived(signal.SIGTERM)
            assert StopSignal().asked
        finally:
            LeaveAtOnce.others_wait = False
    with LeaveAtOnce():
        assert not StopSignal().asked
    assert capsys.readouterr().err.count("together with the other hosts") == 1


def test_a_handler_put_above_answers_alone():
    code = """
import os, signal
from gptjax.training.signals import LeaveAtOnce
with LeaveAtOnce():
    signal.signal(signal.SIGTERM, lambda *_: print("mine", flush=True))
    os.kill(os.getpid(), signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "mine\n", "")


def test_the_third_interrupt_in_a_process_of_others_raises():
    code, out, error, _ = tell("theirs saves 0", *[signal.SIGINT] * 3)
    assert code == -signal.SIGINT and out == "" and "KeyboardInterrupt" in error
    assert "stopping after one last save" in error and "left at once" not in error
