"""Two promises about faults, tried out: `python benchmarks/faults.py` prints counts, exits 1 on a
broken one.

1. A run that is killed again and again (SIGKILL: in the middle of saves, right at a commit,
   anywhere else) and started anew each time ends with the metrics and the parameters of
   a run that was left alone, bit for bit.
2. Flipped bits, zeroed pages and truncations in a checkpoint's files are found before the first
   step, and the newest good checkpoint is used instead.

Which faults strike is drawn from --seed; when a kill lands depends on the machine's timing, so
where it hit is told from the disk afterwards.
"""

import argparse
import contextlib
import gc
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

UNFINISHED = ".orbax-checkpoint-tmp"
PAGE = 4096
EVERY = 10  # steps between two checkpoints
STEPS_PER_KILL = 100  # so that the run does not end before the last kill
CLOCK = {"seconds"}  # columns of a row that measure time


# ---------------------------------------------------------------- running and killing


def write_corpus(folder: Path, rng: random.Random) -> None:
    words = ["def", "return", "import", "self", "for", "in", "if", "else", "None", "x", "y"]
    folder.mkdir(parents=True)
    for i in range(37):
        lines = [" ".join(rng.choices(words, k=7)) for _ in range(41)]
        (folder / f"{i}.txt").write_text("\n".join(lines))


def command(work: Path, workdir: Path, steps: int) -> list[str]:
    """A run of real code, small enough that a start costs more than its steps."""
    return [
        sys.executable,
        str(ROOT / "experiments" / "run.py"),
        "--exp=quickstart",
        f"--workdir={workdir}",
        "--data.corpus=files",
        f"--data.files={work}/corpus/*.txt",
        "--data.validation_fraction=0.1",
        "--data.batch_size=4",
        "--data.sequence_length=64",
        "--model.context_length=64",
        "--model.num_layers=2",
        "--model.d_model=32",
        f"--train.steps={steps}",
        "--train.tokens=0",
        f"--train.checkpoint_every={EVERY}",
        f"--train.eval_every={3 * EVERY}",
        "--train.eval_batches=1",
        "--train.sample_tokens=0",
    ]


def start(work: Path, workdir: Path, steps: int) -> subprocess.Popen:
    environment = {**os.environ, "GPTJAX_CACHE": str(work / "cache")}
    with open(work / "output.txt", "ab") as output:
        return subprocess.Popen(
            command(work, workdir, steps), stdout=output, stderr=output, env=environment, cwd=work
        )


def run_to_end(work: Path, workdir: Path, steps: int) -> None:
    code = start(work, workdir, steps).wait()
    if code:
        tail = (work / "output.txt").read_text(errors="replace")[-3000:]
        raise SystemExit(f"a run ended with code {code}:\n{tail}")


def unfinished(checkpoints: Path) -> set[str]:
    try:
        return {name for name in os.listdir(checkpoints) if UNFINISHED in name}
    except FileNotFoundError:
        return set()


def incomplete(checkpoints: Path) -> set[str]:
    """Steps that are committed while their saver has not finished with them."""
    try:
        steps = [name for name in os.listdir(checkpoints) if name.isdecimal()]
    except FileNotFoundError:
        return set()
    left = set()
    for name in steps:
        try:
            manifest = json.loads((checkpoints / name / "files.json").read_text())
        except (OSError, ValueError):  # being deleted, or not there
            continue
        if "_CHECKPOINT_METADATA" not in manifest["body"]["files"]:
            left.add(name)
    return left


def kill_once(work: Path, workdir: Path, steps: int, moment: str, rng: random.Random) -> str:
    """One life of the run, ended by SIGKILL; returns where it was hit."""
    checkpoints = workdir / "checkpoints"
    before = unfinished(checkpoints) | incomplete(checkpoints)
    wanted, seen = rng.choice((1, 2, 2, 3)), set()
    delay = rng.uniform(0.2, 9.0)
    lag = rng.uniform(0.0, 0.03)
    process = start(work, workdir, steps)
    begun = time.monotonic()
    try:
        while process.poll() is None:
            if moment == "anywhere":
                if time.monotonic() - begun > delay:
                    break
            else:
                found = unfinished if moment == "in a save" else incomplete
                seen |= found(checkpoints) - before
                if len(seen) >= wanted:
                    if moment == "in a save":
                        time.sleep(lag)
                    break
                before &= unfinished(checkpoints) | incomplete(checkpoints)
            time.sleep(0.0005)
    finally:
        ended = process.poll() is not None
        process.send_signal(signal.SIGKILL)
        process.wait()
    if ended:
        raise SystemExit(f"the run ended by itself (code {process.returncode}): nothing to kill")
    # What is on the disk now is the proof, not what was meant.
    left = unfinished(checkpoints) - before
    if any(not (checkpoints / name.split(".")[0]).exists() for name in left):
        return "in a save"
    return "at a commit" if incomplete(checkpoints) - before else "elsewhere"


def rows_of(workdir: Path) -> list[dict]:
    with open(workdir / "metrics.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]


def try_kills(work: Path, kills: int, in_save: int, rng: random.Random) -> list[str]:
    """Compare a killed run with a quiet one; returns what is wrong."""
    steps = EVERY * (4 + kills * STEPS_PER_KILL // EVERY)
    begun = time.monotonic()
    run_to_end(work, work / "quiet", steps)
    print(f"quiet run: {steps} steps, {time.monotonic() - begun:.0f} s", flush=True)
    others = kills - in_save
    moments = ["in a save"] * in_save + ["at a commit"] * (others // 2)
    moments += ["anywhere"] * (kills - len(moments))
    rng.shuffle(moments)
    hits: list[str] = []
    while moments or hits.count("in a save") < in_save:
        if len(hits) > 2 * kills + 10:
            return [f"only {hits.count('in a save')} of {len(hits)} kills hit a save"]
        moment = moments.pop() if moments else "in a save"
        hits.append(kill_once(work, work / "killed", steps, moment, rng))
        reached = max((row["step"] for row in rows_of_torn(work / "killed")), default=0)
        print(f"kill {len(hits)}: {hits[-1]}, at step {reached} of {steps}", flush=True)
    run_to_end(work, work / "killed", steps)
    counts = ", ".join(f"{hits.count(kind)} {kind}" for kind in sorted(set(hits)))
    print(f"killed run: {len(hits)} kills ({counts}), {time.monotonic() - begun:.0f} s in all")
    return compare(work / "quiet", work / "killed", steps)


def rows_of_torn(workdir: Path) -> list[dict]:
    from gptjax.training.workdir import MetricsLog

    return MetricsLog(workdir / "metrics.jsonl").rows()


def compare(quiet: Path, killed: Path, steps: int) -> list[str]:
    """What differs between two finished runs: metrics, data position, every array bit for bit."""
    wrong = []
    one, other = rows_of(quiet), rows_of(killed)
    differing = sum(a != b for a, b in zip(one, other, strict=False)) + abs(len(one) - len(other))
    if differing:
        wrong.append(f"{differing} of {len(one)} metrics rows differ")
    a, b = load(quiet / "checkpoints", steps), load(killed / "checkpoints", steps)
    if a.data_state != b.data_state:
        wrong.append("the data iterators stand elsewhere")
    leaves, same = equal_leaves(a.state, b.state)
    if same < leaves:
        wrong.append(f"{leaves - same} of {leaves} arrays differ")
    print(f"compared: {len(one)} rows, {leaves} arrays; {differing} rows, {leaves - same} differ")
    return wrong


# ---------------------------------------------------------------- arrays


def like_of(folder: Path) -> dict:
    """The saved state's own shapes and dtypes, as nested dicts."""
    import jax

    from gptjax.training import integrity
    from gptjax.training.restore import RECORD, nested

    leaves = integrity.unseal(folder / RECORD)["leaves"]
    key = jax.eval_shape(lambda: jax.random.key(0)).dtype
    forms = [
        jax.ShapeDtypeStruct(
            tuple(leaf["shape"]), key if leaf["dtype"].startswith("key<") else leaf["dtype"]
        )
        for leaf in leaves.values()
    ]
    return nested(leaves, forms)


def load(checkpoints: Path, step: int):
    from gptjax.training.restore import load_step

    folder = checkpoints / str(step)
    return load_step(folder, like_of(folder), print)


def equal_leaves(one, other) -> tuple[int, int]:
    """How many leaves there are, and how many have the same bits."""
    import jax
    import numpy as np

    from gptjax.training.restore import stored_form

    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    bits = [
        np.asarray(stored_form(a)).tobytes() == np.asarray(stored_form(b)).tobytes()
        for a, b in pairs
    ]
    return len(bits), sum(bits)


# ---------------------------------------------------------------- damage


@dataclass
class Tally:
    found: int = 0  # the damaged step was reported and the older one used
    unchanged: int = 0  # the damage wrote what was there already
    harmless: int = 0  # not reported, and every array is still exact
    wrong: list[str] = field(default_factory=list)


def damaged(content: bytes, kind: str, rng: random.Random) -> bytes:
    out = bytearray(content)
    if kind == "flip":
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    elif kind == "zeroed page":
        at = rng.randrange(len(out)) // PAGE * PAGE
        out[at : at + PAGE] = bytes(len(out[at : at + PAGE]))
    else:
        del out[rng.randrange(len(out)) :]
    return bytes(out)


def try_damage(
    checkpoints: Path, kind: str, times: int, with_manifest: bool, rng: random.Random
) -> Tally:
    """Damage one file of the newest step at a time, restore, put the file back."""
    from gptjax.training.checkpoint import Checkpointer

    older, newest = sorted(int(p.name) for p in checkpoints.iterdir() if p.name.isdecimal())[-2:]
    like = like_of(checkpoints / str(newest))
    exact = load(checkpoints, newest).state
    proof = checkpoints / str(newest) / "files.json"
    tally = Tally()
    for number in range(times):
        files = sorted(p for p in (checkpoints / str(newest)).rglob("*") if p.is_file())
        files = [p for p in files if p.stat().st_size and (with_manifest or p != proof)]
        # By turns every file alike, and every byte alike (then mostly the arrays).
        weights = [p.stat().st_size if number % 2 else 1 for p in files]
        path = rng.choices(files, weights)[0]
        content, manifest = path.read_bytes(), proof.read_bytes()
        after = damaged(content, kind, rng)
        lines: list[str] = []
        try:
            path.write_bytes(after)
            if not with_manifest:
                proof.unlink()
            restored = Checkpointer(checkpoints, report=lines.append).restore(like)
            named = any(f"{newest} is damaged" in line for line in lines)
            leaves, same = equal_leaves(restored.state, exact)
            name = path.relative_to(checkpoints)
            if after == content:
                tally.unchanged += 1
                if with_manifest and (restored.step != newest or same < leaves):
                    tally.wrong.append(f"{name}: refused though nothing had changed")
            elif restored.step == older and named:
                tally.found += 1
            elif not with_manifest and restored.step == newest and same == leaves:
                tally.harmless += 1
            else:
                tally.wrong.append(f"{name}: step {restored.step} was used, said {lines}")
        finally:
            path.write_bytes(content)
            proof.write_bytes(manifest)
    return tally


@contextlib.contextmanager
def quiet_threads():
    """orbax's reading threads print tracebacks long after its error has been caught."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
        gc.collect()


def try_all_damage(checkpoints: Path, counts: dict[str, int], rng: random.Random) -> list[str]:
    wrong = []
    for with_manifest in (True, False):
        print("with its manifest:" if with_manifest else "without it, itself a damage:")
        for kind, times in counts.items():
            with quiet_threads():
                tally = try_damage(checkpoints, kind, times, with_manifest, rng)
            harmless = "" if with_manifest else f", {tally.harmless} outside of what is read"
            print(
                f"  {kind}: {times} tried, {tally.unchanged} changed nothing, {tally.found} found"
                f"{harmless}, {len(tally.wrong)} wrong",
                flush=True,
            )
            wrong += tally.wrong
    return wrong


def try_run_on_damage(work: Path, steps: int, rng: random.Random) -> list[str]:
    """The command itself: it names the damage, goes on from the older step, ends the same."""
    shutil.copytree(work / "quiet", work / "damaged")
    newest = work / "damaged" / "checkpoints" / str(steps)
    path = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    path.write_bytes(damaged(path.read_bytes(), "flip", rng))
    size = (work / "output.txt").stat().st_size
    run_to_end(work, work / "damaged", steps)
    output = (work / "output.txt").read_bytes()[size:].decode(errors="replace")
    said = [line for line in output.splitlines() if "is damaged" in line]
    print(f"the command on a damaged folder said: {' / '.join(said) or 'nothing'}")
    return ([] if said else ["the command did not name the damage"]) + compare(
        work / "quiet", work / "damaged", steps
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--in-save", type=int, default=10, help="so many of them in a save")
    parser.add_argument("--flips", type=int, default=100)
    parser.add_argument("--pages", type=int, default=20)
    parser.add_argument("--truncations", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="keep the folder with the runs")
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    rng = random.Random(options.seed)
    work = Path(tempfile.mkdtemp(prefix="gptjax-faults-"))
    counts = {
        "flip": options.flips,
        "zeroed page": options.pages,
        "truncation": options.truncations,
    }
    try:
        write_corpus(work / "corpus", rng)
        wrong = try_kills(work, options.kills, options.in_save, rng)
        wrong += try_all_damage(work / "quiet" / "checkpoints", counts, rng)
        steps = max(int(p.name) for p in (work / "quiet" / "checkpoints").iterdir())
        wrong += try_run_on_damage(work, steps, rng)
    finally:
        if options.keep:
            print(f"kept: {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)
    for line in wrong:
        print(f"WRONG: {line}")
    print("all promises kept" if not wrong else f"{len(wrong)} promises broken")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
