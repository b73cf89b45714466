"""Where workers live: processes of this machine, tasks of a Ray cluster, jobs of SLURM.

Every launcher only starts workers and counts the living: the ledger in the sweep's folder decides
who does what, so launchers can be mixed, killed and started anew. The folder must be visible
under the same path wherever a worker runs.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

from gptjax.errors import EXIT_BAD_INPUT, EXIT_PREEMPTED, BadInput, did_you_mean

STOP_SECONDS = 120.0  # what a worker gets to save itself
CRASHES = 5  # of workers in a row within QUICK_SECONDS, until the runner gives up
QUICK_SECONDS = 15.0


class Launcher(Protocol):
    """Starts workers on a sweep's folder."""

    workers: int

    def start(self) -> None:
        """One more worker."""

    def alive(self) -> int:
        """How many workers live, or wait in a queue; BadInput when they cannot be started."""

    def stop(self) -> None:
        """Ask all workers to save and leave, and wait for them."""


def worker_command(folder: Path, only: tuple[str, ...]) -> list[str]:
    """What starts a worker on any machine."""
    patterns = [f"--only={pattern}" for pattern in only]
    return [sys.executable, "-m", "gptjax.sweeps.worker", str(folder.resolve()), *patterns]


def make_launcher(
    kind: str, folder: Path, only: tuple[str, ...], workers: int, pin: bool = True
) -> Launcher:
    """A launcher by name: local, ray or slurm."""
    kinds = {"local": Local, "ray": Ray, "slurm": Slurm}
    if kind not in kinds:
        near = did_you_mean(kind, kinds)
        raise BadInput(f"--launcher={kind} is not one of here, {', '.join(kinds)}{near}")
    if kind == "local":
        return Local(folder, only, workers, pin)
    return kinds[kind](folder, only, workers)


class Local:
    """Processes of this machine, on a CPU each pinned to its share of the cores."""

    def __init__(self, folder: Path, only: tuple[str, ...], workers: int, pin: bool = True):
        self.folder, self.only, self.workers = folder, only, workers
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        share = len(cores) // workers if pin else 0
        self.shares = [cores[i * share : (i + 1) * share] for i in range(workers)]
        self.running: list[subprocess.Popen | None] = [None] * workers
        self.begun = [0.0] * workers
        self.crashes = 0

    def log(self, slot: int) -> Path:
        """What the worker of a slot prints."""
        return self.folder / "logs" / f"worker-{os.getpid()}-{slot}.log"

    def start(self) -> None:
        slot = self.running.index(None)
        command = worker_command(self.folder, self.only)
        command.append(f"--parent={os.getpid()}")
        if self.shares[slot]:
            command.append(f"--cpus={','.join(str(cpu) for cpu in self.shares[slot])}")
        self.log(slot).parent.mkdir(parents=True, exist_ok=True)
        self.begun[slot] = time.monotonic()
        with open(self.log(slot), "ab") as log:
            self.running[slot] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the runner, which stops its workers
            )

    def alive(self) -> int:
        for slot, process in enumerate(self.running):
            if process is None or process.poll() is None:
                continue
            self.running[slot] = None
            if process.returncode == EXIT_BAD_INPUT:
                raise BadInput(f"a worker refused to start: {_last_line(self.log(slot))}")
            quick = time.monotonic() - self.begun[slot] < QUICK_SECONDS
            if process.returncode in (0, EXIT_PREEMPTED) or not quick:
                self.crashes = 0
                continue
            self.crashes += 1
            if self.crashes >= CRASHES:
                raise BadInput(
                    f"workers end with code {process.returncode} as soon as they start; see "
                    f"{self.log(slot)}: {_last_line(self.log(slot))}"
                )
        return sum(process is not None for process in self.running)

    def stop(self) -> None:
        living = [process for process in self.running if process is not None]
        for process in living:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        until = time.monotonic() + STOP_SECONDS
        for process in living:
            try:
                process.wait(max(until - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _last_line(log: Path) -> str:
    with contextlib.suppress(OSError):
        lines = log.read_text(errors="replace").strip().splitlines()
        if lines:
            return lines[-1]
    return "nothing was printed"


def _subprocess_worker(command: list[str], environment: dict[str, str]) -> int:
    """Run a worker under a process of Ray or SLURM, passing SIGTERM on; its exit code."""
    process = subprocess.Popen(
        [*command, f"--parent={os.getpid()}"], env={**os.environ, **environment}
    )
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise


class Ray:
    """Tasks of a Ray cluster: the one of RAY_ADDRESS, or a new one on this machine.

    A task is one worker. Ray restarts a task whose process or node died; its point goes on from
    its checkpoint. GPTJAX_RAY_CPUS and GPTJAX_RAY_GPUS say what a worker takes (1 and 0).
    """

    def __init__(self, folder: Path, only: tuple[str, ...], workers: int):
        try:
            import ray
        except ImportError:
            raise BadInput("--launcher=ray needs Ray: pip install -e '.[ray]'") from None
        self.ray, self.workers = ray, workers
        self.tasks: list = []
        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
        self.command = worker_command(folder, only)
        keep = ("GPTJAX_CACHE", "JAX_PLATFORMS", "XLA_FLAGS", "PYTHONPATH")
        self.environment = {name: os.environ[name] for name in keep if name in os.environ}
        self.task = ray.remote(
            num_cpus=float(os.environ.get("GPTJAX_RAY_CPUS", 1)),
            num_gpus=float(os.environ.get("GPTJAX_RAY_GPUS", 0)),
            max_retries=-1,
            retry_exceptions=False,
        )(_subprocess_worker)

    def start(self) -> None:
        self.tasks.append(self.task.remote(self.command, self.environment))

    def alive(self) -> int:
        ended, self.tasks = (
            self.ray.wait(self.tasks, num_returns=len(self.tasks), timeout=0)
            if self.tasks
            else ([], [])
        )
        for code in self.ray.get(ended):
            if code == EXIT_BAD_INPUT:
                raise BadInput("a worker refused to start; see Ray's logs")
        return len(self.tasks)

    def stop(self) -> None:
        for task in self.tasks:
            self.ray.cancel(task, force=False)
        if self.tasks:
            self.ray.wait(self.tasks, num_returns=len(self.tasks), timeout=STOP_SECONDS)
        self.ray.shutdown()


class SlurmJob:
    """What SLURM runs: a worker; preempted or out of time it saves and is queued again."""

    def __init__(self, command: list[str]):
        self.command = command

    def __call__(self) -> int:
        self.process = subprocess.Popen([*self.command, f"--parent={os.getpid()}"])
        return self.process.wait()

    def checkpoint(self):
        """Called by submitit when SLURM takes the machine away."""
        import submitit

        self.process.terminate()
        self.process.wait()
        return submitit.helpers.DelayedSubmission(SlurmJob(self.command))


class Slurm:
    """Jobs of SLURM through submitit. GPTJAX_SLURM holds its options as JSON.

    Such as {"slurm_partition": "gpu", "timeout_min": 240, "gpus_per_node": 1}. The state of jobs
    is asked of SLURM, what they did of the ledger: without accounting a killed job never tells.
    """

    def __init__(self, folder: Path, only: tuple[str, ...], workers: int):
        import json
        import shutil

        try:
            import submitit
        except ImportError:
            raise BadInput("--launcher=slurm needs submitit: pip install -e '.[slurm]'") from None
        if shutil.which("sbatch") is None:
            raise BadInput("--launcher=slurm needs SLURM: there is no sbatch on this machine")
        try:
            options = json.loads(os.environ.get("GPTJAX_SLURM", "{}"))
        except ValueError as error:
            raise BadInput(f"GPTJAX_SLURM is no JSON: {error}") from None
        self.workers = workers
        self.executor = submitit.AutoExecutor(folder=folder / "logs", slurm_max_num_timeout=1000)
        self.executor.update_parameters(name=f"gptjax-{folder.name}", **options)
        self.job = SlurmJob(worker_command(folder, only))
        self.jobs: list = []

    def start(self) -> None:
        self.jobs.append(self.executor.submit(self.job))

    def alive(self) -> int:
        queue = self._queue()
        self.jobs = [job for job in self.jobs if job.job_id in queue]
        return len(self.jobs)

    def _queue(self) -> set[str]:
        ids = ",".join(job.job_id for job in self.jobs)
        if not ids:
            return set()
        command = ["squeue", "--noheader", "--format=%i", f"--jobs={ids}", "--states=PD,R,CG,S,RQ"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return set(done.stdout.split())

    def stop(self) -> None:
        for job in self.jobs:
            job.cancel()
