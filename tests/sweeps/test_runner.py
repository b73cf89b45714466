"""Stopping a runner: its exit code is one of those written down, and no worker is left behind."""

import os
import signal
import subprocess
import sys
import time

import pytest

from gptjax.sweeps import worker

# A sweep whose workers are stand-ins: they say their process and save for as long as they are told.
RUNNER = """
import signal, sys
from gptjax import command_line, registry
from gptjax.sweeps import launchers, runner
from gptjax.sweeps.grid import values
from gptjax.sweeps.sweep import Sweep
from tests.sweeps.synthetic import BASE

registry._functions["stand_in"] = lambda: Sweep("stand_in", BASE, values("train.seed", 0, 1))
worker = f'''
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep({sys.argv[2]}), sys.exit(75)))
open(sys.argv[1] + "/" + str(os.getpid()), "w").close()
time.sleep(60)
'''
launchers.worker_command = lambda *_: [sys.executable, "-c", worker, sys.argv[1]]
runner.backend = lambda: "tpu"
code = command_line.main(["--exp=stand_in", "--workers=2", "--workdir=" + sys.argv[1] + "/sweep"])
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.exit(code)
"""


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(("presses", "saving", "code"), [(2, 1, 75), (3, 60, 130)])
def test_ctrl_c_again_and_again(tmp_path, presses, saving, code):
    command = [sys.executable, "-c", RUNNER, str(tmp_path), str(saving)]
    runner = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until = time.monotonic() + 60
    while len(workers := [p.name for p in tmp_path.iterdir() if p.name.isdigit()]) < 2:
        assert time.monotonic() < until and runner.poll() is None, runner.stderr.read()
        time.sleep(0.05)
    for _ in range(presses):
        os.killpg(runner.pid, signal.SIGINT)
        time.sleep(0.3)
    error = runner.communicate(timeout=30)[1]
    assert runner.returncode == code and "Traceback" not in error, error
    assert not any(alive(int(name)) for name in workers)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{}", "--cpus=abc"], "--cpus=abc is no list of CPUs that this process may use: "),
        (["{}", "--cpus=99999"], "--cpus=99999 is no list"),
        (["{}", "--cpus=0,"], "--cpus=0, is no list"),
        (["{}", "--cups=1"], "unrecognized arguments: --cups=1"),
        (["{}"], "holds no sweep"),
        (["{}/none"], "holds no sweep"),
        ([], "arguments are required: folder"),
    ],
)
def test_a_worker_refuses_in_one_line(tmp_path, capsys, arguments, words):
    assert worker.main([text.format(tmp_path) for text in arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ") and error.count("\n") == 1
