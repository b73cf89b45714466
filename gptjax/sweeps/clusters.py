"""Workers on other machines: tasks of a Ray cluster, jobs of SLURM.

The machines share the sweep's folder and have this package; each worker runs under the
interpreter that Ray or SLURM runs there.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from gptjax.errors import BadInput
from gptjax.sweeps.launchers import STOP_SECONDS, Crashes, worker_command
from gptjax.training.signals import Preempted

QUEUE_SECONDS = 5.0  # between two looks at SLURM's queue, which all its users share
CANCEL_SECONDS = 5.0  # until a task of Ray that has not ended is cancelled again
REFUSED_SECONDS = 60.0  # between two submissions once SLURM refuses more, as limits make it do


def _kept_environment() -> dict[str, str]:
    """What of this process's environment a worker on another machine must have too."""
    ours = ("GPTJAX_", "JAX_", "XLA_")
    return {name: value for name, value in os.environ.items() if name.startswith(ours)}


def _begin(command: list[str], environment: dict[str, str], **more) -> subprocess.Popen:
    """Start a worker under a process of Ray or SLURM, with the interpreter and package of that."""
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return subprocess.Popen(
        [sys.executable, *command[1:], f"--parent={os.getpid()}"],
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.DEVNULL,
        **more,
    )


def _ray_worker(
    command: list[str], environment: dict[str, str], cwd: str, log: Path
) -> tuple[int, float]:
    """A task of Ray: one worker; its exit code and how long it lived.

    Ray cancels by a KeyboardInterrupt, which is raised between two instructions of Python: a
    blocking wait would not hear it.
    """
    begun = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as output:
        process = _begin(
            command,
            environment,
            cwd=cwd if os.path.isdir(cwd) else None,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # what ends Ray's processes as a group leaves it time to save
        )
    try:
        while process.poll() is None:
            time.sleep(0.2)
    except BaseException:
        process.terminate()
        until = time.monotonic() + STOP_SECONDS
        while process.poll() is None and time.monotonic() < until:
            with contextlib.suppress(KeyboardInterrupt):  # it is cancelled once and again
                time.sleep(0.2)
        raise
    return process.returncode, time.monotonic() - begun


class Ray:
    """Tasks of a Ray cluster: the one of RAY_ADDRESS, or a new one on this machine.

    A task is one worker. Ray restarts a task whose process or node died; its point goes on from
    its checkpoint. GPTJAX_RAY_CPUS and GPTJAX_RAY_GPUS say what a worker takes: 1 CPU, and 1 GPU
    where the cluster has any.
    """

    def __init__(self, folder: Path, only: tuple[str, ...], workers: int):
        cpus, gpus = _amount("GPTJAX_RAY_CPUS"), _amount("GPTJAX_RAY_GPUS")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ImportError:
            raise BadInput("--launcher=ray needs Ray: pip install -e '.[ray]'") from None
        self.ray, self.workers = ray, workers
        self.tasks: dict = {}
        self.crashes = Crashes()
        self.begun = 0
        self.ours = not ray.is_initialized()
        if self.ours:
            try:
                ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
            except Exception as error:
                raise BadInput(f"--launcher=ray: {type(error).__name__}: {error}") from None
        if gpus is None:
            gpus = 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0
        cpus = 1.0 if cpus is None else cpus
        held = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(r.get("CPU", 0) >= cpus and r.get("GPU", 0) >= gpus for r in held):
            print(f"no node of Ray has {cpus:g} CPUs and {gpus:g} GPUs: workers wait for one")
        self.folder = folder.resolve()
        self.command = worker_command(folder, only)
        # XLA would start a thread for every core of the machine.
        threads = {"NPROC": str(max(math.ceil(cpus), 1))}
        self.environment = threads | _kept_environment()
        self.task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=-1)(_ray_worker)

    def start(self) -> None:
        self.begun += 1
        log = self.folder / "logs" / f"worker-{os.getpid()}-{self.begun}.log"
        task = self.task.remote(self.command, self.environment, os.getcwd(), log)
        self.tasks[task] = log

    def alive(self) -> int:
        waiting = list(self.tasks)
        ended = self.ray.wait(waiting, num_returns=len(waiting), timeout=0)[0] if waiting else []
        for task in ended:
            log = self.tasks.pop(task)
            try:
                code, seconds = self.ray.get(task)
            except self.ray.exceptions.RayTaskError as error:  # such as no gptjax on that machine
                last = str(error).strip().splitlines()[-1]
                raise BadInput(f"a task of Ray failed: {last}") from None
            except self.ray.exceptions.RayError as error:
                why = " ".join(str(error).split())
                raise Preempted(f"Ray is gone ({why}); the same command goes on") from None
            self.crashes.ended(code, seconds, log)
        return len(self.tasks)

    def stop(self) -> None:
        waiting, until = list(self.tasks), time.monotonic() + STOP_SECONDS
        with contextlib.suppress(self.ray.exceptions.RayError):
            while waiting and time.monotonic() < until:
                for task in waiting:  # Ray forgets it for a task that it is about to retry
                    self.ray.cancel(task)
                count = len(waiting)
                waiting = self.ray.wait(waiting, num_returns=count, timeout=CANCEL_SECONDS)[1]
        if self.ours:
            self.ray.shutdown()

    def kill(self) -> None:
        with contextlib.suppress(self.ray.exceptions.RayError):
            for task in self.tasks:
                self.ray.cancel(task, force=True)
        if self.ours:
            self.ray.shutdown()


def _amount(name: str) -> float | None:
    """A number of CPUs or GPUs from the environment."""
    text = os.environ.get(name)
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < math.inf:
            return float(text)
    raise BadInput(f"{name} is {text!r}, no number of devices; give 1, or 0.5 for a half")


class SlurmJob:
    """What SLURM runs: a worker; preempted or out of time it saves and is queued again.

    SLURM sends its signals to every process of a job. The one that submitit asks for (SIGUSR2)
    is submitit's alone: it would end a worker before it has saved.
    """

    process: subprocess.Popen | None = None

    def __init__(self, command: list[str], environment: dict[str, str]):
        self.command, self.environment = command, environment

    def __call__(self) -> int:
        ignored = (signal.SIGUSR1, signal.SIGUSR2)
        before = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
        cpus = os.environ.get("SLURM_CPUS_PER_TASK", "1")
        self.process = _begin(self.command, {"NPROC": cpus} | self.environment)
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.signal(signal.SIGTERM, lambda *_: self._terminate())
        return self.process.wait()

    def _terminate(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGTERM)

    def checkpoint(self):
        """Called by submitit, in a signal's handler, when SLURM takes the machine away."""
        import submitit

        if self.process is not None:
            self._terminate()
            # `wait` was interrupted with its lock held: a second one would never return.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(SlurmJob(self.command, self.environment))


SLURM_ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
}


class Slurm:
    """Jobs of SLURM through submitit. GPTJAX_SLURM holds its options as JSON.

    Such as {"slurm_partition": "gpu", "timeout_min": 240, "gpus_per_node": 1}; an hour when
    nothing is said, after which a job saves and is queued again. Jobs are known by their name, so
    a runner that is started again counts those of the one before. The state of jobs is asked of
    SLURM, what they did of the ledger: without accounting a killed job never tells.
    """

    def __init__(self, folder: Path, only: tuple[str, ...], workers: int):
        options = _slurm_options()
        try:
            import submitit
        except ImportError:
            raise BadInput("--launcher=slurm needs submitit: pip install -e '.[slurm]'") from None
        if shutil.which("sbatch") is None:
            raise BadInput("--launcher=slurm needs SLURM: there is no sbatch on this machine")
        self.workers, self.clean_env = workers, submitit.helpers.clean_env
        folder = folder.resolve()
        mark = hashlib.sha256("\n".join([str(folder), *only]).encode()).hexdigest()[:8]
        self.name = f"gptjax-{folder.name}-{mark}"
        self.executor = submitit.AutoExecutor(
            folder=folder / "logs", cluster="slurm", slurm_max_num_timeout=1000
        )
        try:
            self.executor.update_parameters(name=self.name, **options)
        except Exception as error:  # NameError, TypeError, ValueError, AssertionError
            raise BadInput(f"GPTJAX_SLURM: {error}") from None
        self.job = SlurmJob(worker_command(folder, only), _kept_environment())
        self.jobs: dict = {}  # those that this runner submitted
        self.running: dict[str, float] = {}  # since when
        self.crashes = Crashes()
        self.queue: set[str] = set()
        self.looked = self.again = -math.inf
        self.accepted = False

    def start(self) -> None:
        if time.monotonic() < self.again:
            return
        inside = "SLURM_JOB_ID" in os.environ  # a job's variables are not for its children
        with self.clean_env() if inside else contextlib.nullcontext():
            try:
                job = self.executor.submit(self.job)
            except Exception as error:
                why = " ".join(str(error).split())
                if not self.accepted:
                    raise BadInput(f"SLURM takes no job: {why}") from None
                self.again = time.monotonic() + REFUSED_SECONDS
                print(f"SLURM takes no further job now: {why}", flush=True)
                return
        self.accepted = True
        self.jobs[job.job_id] = job
        self.queue.add(job.job_id)

    def alive(self) -> int:
        if time.monotonic() - self.looked >= QUEUE_SECONDS:
            self._look()
        return len(self.queue)

    def _look(self) -> None:
        self.looked = time.monotonic()
        states = self._states()
        if states is None:  # SLURM is busy or restarts: what was known holds until it answers
            return
        for number, state in states.items():
            if state == "RUNNING":
                self.running.setdefault(number, self.looked)
        self.queue = {number for number, state in states.items() if state not in SLURM_ENDED}
        for number in self.jobs.keys() - self.queue:
            paths = self.jobs.pop(number).paths
            seconds = self.looked - self.running.get(number, self.looked)
            self.crashes.ended(_slurm_code(paths.result_pickle), seconds, paths.stderr)

    def _states(self) -> dict[str, str] | None:
        """The state of every job of this sweep that SLURM remembers; None when it is silent."""
        command = ["squeue", "--noheader", f"--name={self.name}", f"--user={os.getuid()}"]
        command += ["--states=all", "--format=%i %T"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            return None
        if done.returncode:
            return None
        return dict(line.split(maxsplit=1) for line in done.stdout.splitlines())

    def stop(self) -> None:
        """Those that wait are cancelled; those that run save themselves first."""
        until = time.monotonic() + STOP_SECONDS
        asked: set[str] = set()
        while self.queue and time.monotonic() < until:
            _scancel("--state=PENDING", *self.queue)
            if self.queue - asked:
                _scancel("--signal=TERM", *(self.queue - asked))
                asked |= self.queue
            time.sleep(1.0)
            states = self._states() or {}
            self.queue = {number for number, state in states.items() if state not in SLURM_ENDED}
        self.kill()

    def kill(self) -> None:
        if self.queue:
            _scancel(*self.queue)


def _scancel(*arguments: str) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(["scancel", "--quiet", *arguments], capture_output=True, timeout=60)


def _slurm_options() -> dict:
    """GPTJAX_SLURM, over what a sweep needs."""
    try:
        options = json.loads(os.environ.get("GPTJAX_SLURM") or "{}")
    except ValueError as error:
        raise BadInput(f"GPTJAX_SLURM is no JSON: {error}") from None
    if not isinstance(options, dict):
        raise BadInput('GPTJAX_SLURM is no JSON object, such as {"slurm_partition": "gpu"}')
    more = {"requeue": True} | options.pop("slurm_additional_parameters", {})
    if not {"timeout_min", "slurm_time"} & options.keys():
        options["timeout_min"] = 60  # submitit's own is 5
    return options | {"slurm_additional_parameters": more}


def _slurm_code(pickle: Path) -> int | None:
    """What a job's worker came to; None when the job was killed before it could tell."""
    from submitit.core.utils import pickle_load

    with contextlib.suppress(OSError, EOFError):
        kind, value = pickle_load(pickle)
        return value if kind == "success" else 1
    return None
