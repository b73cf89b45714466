"""Launchers without a cluster: what starts, what is counted, what is told; Ray where it is."""

import os
import signal
import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path

import pytest

from gptjax.errors import BadInput
from gptjax.sweeps import clusters, launchers
from gptjax.sweeps.launchers import Local, make_launcher

SAVES = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep(0.5)
    pathlib.Path(sys.argv[1], "saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[1], "begun").touch()
time.sleep(60)
"""


def wait_for(condition, seconds=30.0):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.05)
    return found


def command_of(code, *arguments):
    """In place of `worker_command`: a worker that does something else."""
    return lambda *_: [sys.executable, "-c", code, *map(str, arguments)]


@pytest.fixture
def fake_submitit(monkeypatch):
    """The part of submitit that is used; what is submitted is kept."""
    submitted = []

    class Executor:
        def __init__(self, folder, **options):
            self.folder, self.options = folder, options

        def update_parameters(self, **options):
            self.options |= options

        def submit(self, job):
            submitted.append(job)
            paths = types.SimpleNamespace(result_pickle=Path("none"), stderr=Path("none"))
            return types.SimpleNamespace(job_id=str(len(submitted)), paths=paths)

    helpers = types.SimpleNamespace(clean_env=None, DelayedSubmission=lambda job: ("again", job))
    module = types.SimpleNamespace(AutoExecutor=Executor, helpers=helpers)
    monkeypatch.setitem(sys.modules, "submitit", module)
    monkeypatch.setattr(clusters.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(clusters, "_slurm_code", lambda path: None)
    monkeypatch.setattr(clusters, "QUEUE_SECONDS", 0.0)
    monkeypatch.delenv("GPTJAX_SLURM", raising=False)
    return submitted


@pytest.fixture
def queue(monkeypatch):
    """What squeue prints; None: SLURM does not answer. Calls of scancel are kept."""
    state = types.SimpleNamespace(lines=[], cancelled=[])

    def run(command, **_):
        if command[0] == "scancel":
            state.cancelled.append(command[1:])
            return None
        silent = state.lines is None
        out = "" if silent else "\n".join(state.lines)
        return types.SimpleNamespace(returncode=int(silent), stdout=out)

    monkeypatch.setattr(clusters.subprocess, "run", run)
    return state


@pytest.mark.parametrize(
    ("kind", "missing", "told"),
    [
        ("slrum", None, "did you mean 'slurm'"),
        ("ray", "ray", "needs Ray: pip install"),
        ("slurm", "submitit", "needs submitit: pip install"),
    ],
)
def test_what_is_missing_is_told_in_one_line(kind, missing, told, tmp_path, monkeypatch):
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(BadInput, match=told):
        make_launcher(kind, tmp_path, (), 2)


def test_slurm_needs_sbatch(tmp_path, fake_submitit, monkeypatch):
    monkeypatch.setattr(clusters.shutil, "which", lambda name: None)
    with pytest.raises(BadInput, match="no sbatch"):
        make_launcher("slurm", tmp_path, (), 2)


def test_options_of_slurm(monkeypatch):
    monkeypatch.delenv("GPTJAX_SLURM", raising=False)
    requeue = {"slurm_additional_parameters": {"requeue": True}}
    assert clusters._slurm_options() == {"timeout_min": 60} | requeue
    given = '{"slurm_time": 5, "slurm_additional_parameters": {"requeue": false, "qos": "low"}}'
    monkeypatch.setenv("GPTJAX_SLURM", given)
    more = {"requeue": False, "qos": "low"}
    assert clusters._slurm_options() == {"slurm_time": 5, "slurm_additional_parameters": more}
    for bad, told in (("{gpu", "is no JSON: "), ("[1]", "is no JSON object")):
        monkeypatch.setenv("GPTJAX_SLURM", bad)
        with pytest.raises(BadInput, match=told):
            clusters._slurm_options()


def test_amounts_of_ray(monkeypatch):
    monkeypatch.setenv("GPTJAX_RAY_CPUS", "0.5")
    assert clusters._amount("GPTJAX_RAY_CPUS") == 0.5
    assert clusters._amount("GPTJAX_RAY_NONE") is None
    for bad in ("two", "-1", "nan", "inf"):
        monkeypatch.setenv("GPTJAX_RAY_CPUS", bad)
        with pytest.raises(BadInput, match="GPTJAX_RAY_CPUS is "):
            make_launcher("ray", Path("nowhere"), (), 1)


def test_local_starts_a_killed_worker_again(tmp_path, monkeypatch):
    monkeypatch.setattr(launchers, "worker_command", command_of(SAVES, tmp_path))
    local = Local(tmp_path, (), 2, pin=False)
    local.start()
    wait_for((tmp_path / "begun").exists)
    local.running[0].kill()
    wait_for(lambda: local.alive() == 0)
    (tmp_path / "begun").unlink()
    local.start()
    wait_for((tmp_path / "begun").exists)
    assert local.alive() == 1
    local.stop()
    assert (tmp_path / "saved").exists()


def test_local_gives_up_on_workers_that_crash_at_once(tmp_path, monkeypatch):
    code = "import sys; sys.exit('no device')"
    monkeypatch.setattr(launchers, "worker_command", command_of(code))
    local = Local(tmp_path, (), 1, pin=False)
    for _ in range(launchers.CRASHES - 1):
        local.start()
        wait_for(lambda: local.alive() == 0)
    local.start()
    with pytest.raises(BadInput, match=r"end with code 1 as soon as they start.*no device"):
        wait_for(lambda: local.alive() == 0)


def test_a_worker_that_refuses_its_input_ends_the_runner(tmp_path):
    crashes = launchers.Crashes()
    (tmp_path / "log").write_text("something\nerror: there is no sweep\n")
    with pytest.raises(BadInput, match="refused to start: error: there is no"):
        crashes.ended(2, 0.0, tmp_path / "log")
    for _ in range(10):  # neither a stop nor a long life is a crash
        crashes.ended(1, 0.0, tmp_path)
        crashes.ended(75, 0.0, tmp_path)
        crashes.ended(1, 0.0, tmp_path)
        crashes.ended(None, launchers.QUICK_SECONDS, tmp_path)


def test_a_preempted_job_saves_and_is_queued_again(tmp_path):
    """The signal reaches every process of the job; submitit's handler interrupts the wait."""
    job = f"""
        import os, signal, sys, types
        helpers = types.SimpleNamespace(DelayedSubmission=lambda job: job)
        sys.modules["submitit"] = types.SimpleNamespace(helpers=helpers)
        from gptjax.sweeps.clusters import SlurmJob
        job = SlurmJob([sys.executable, "-c", {SAVES!r}, {str(tmp_path)!r}], {{}})
        def preempted(*_):
            again = job.checkpoint()
            print(again.command == job.command and again.process is None, flush=True)
            os._exit(0)
        signal.signal(signal.SIGUSR2, preempted)
        job()
    """
    root = Path(clusters.__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(job)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        start_new_session=True,
    )
    try:
        wait_for((tmp_path / "begun").exists)
        os.killpg(process.pid, signal.SIGUSR2)
        out, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert out.strip() == "True" and (tmp_path / "saved").exists()


def test_jobs_are_those_that_slurm_knows_by_name(tmp_path, fake_submitit, queue):
    queue.lines = ["7 RUNNING", "8 COMPLETED", "9 REQUEUE_HOLD"]  # of a runner that was killed
    slurm = make_launcher("slurm", tmp_path, (), 4)
    assert slurm.alive() == 2
    slurm.start()
    queue.lines = ["7 CANCELLED", "8 COMPLETED", "9 COMPLETING", "1 PENDING"]
    assert slurm.alive() == 2
    queue.lines = None  # no answer: what was known holds
    assert slurm.alive() == 2
    other = make_launcher("slurm", tmp_path, ("lr=0.1",), 4)
    assert slurm.name != other.name and slurm.name.startswith(f"gptjax-{tmp_path.name}-")
    queue.lines = ["1 COMPLETED"]
    slurm.stop()
    assert queue.cancelled[0][:2] == ["--quiet", "--state=PENDING"]
    assert any("--signal=TERM" in call for call in queue.cancelled) and not slurm.queue


def test_jobs_that_slurm_ends_at_once_end_the_runner(tmp_path, fake_submitit, queue):
    slurm = make_launcher("slurm", tmp_path, (), 1)
    with pytest.raises(BadInput, match="workers are killed as soon as they start"):
        for _ in range(launchers.CRASHES):
            slurm.start()
            assert slurm.alive() == 0
    assert len(fake_submitit) == launchers.CRASHES


def test_a_refused_job_is_an_error_only_at_first(tmp_path, fake_submitit, queue, monkeypatch):
    slurm = make_launcher("slurm", tmp_path, (), 2)
    accept = slurm.executor.submit

    def refuse(job):
        raise RuntimeError("sbatch: error: QOSMaxSubmitJobPerUserLimit")

    monkeypatch.setattr(slurm.executor, "submit", refuse)
    with pytest.raises(BadInput, match="SLURM takes no job: sbatch: error: QOSMax"):
        slurm.start()
    monkeypatch.setattr(slurm.executor, "submit", accept)
    slurm.start()
    queue.lines = ["1 RUNNING"]
    monkeypatch.setattr(slurm.executor, "submit", refuse)
    slurm.start()
    assert slurm.alive() == 1


def test_ray_restarts_and_stops_workers(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("GPTJAX_RAY_CPUS", "0.5")
    code = "from gptjax.sweeps.worker import die_with_parent as f; f()\n" + SAVES
    monkeypatch.setattr(clusters, "worker_command", command_of(code, tmp_path))
    begun, saved = tmp_path / "begun", tmp_path / "saved"
    ray = make_launcher("ray", tmp_path, (), 1)
    try:
        ray.start()
        wait_for(begun.exists)
        begun.unlink()
        os.kill(parent_of_worker(tmp_path), signal.SIGKILL)  # Ray's own process
        wait_for(begun.exists)
        assert ray.alive() == 1
        wait_for(saved.exists)
        saved.unlink()
    finally:
        ray.stop()
    assert saved.exists()
    assert not ray.ray.is_initialized()


def parent_of_worker(folder):
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[1]
        except OSError:
            continue
        if os.fsencode(folder) in words and any(word.endswith(SAVES.encode()) for word in words):
            return int(parent)
    raise AssertionError("there is no worker")
