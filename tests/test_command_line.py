"""What a user types, and what they are told: one line and exit code 2 for what they can mend."""

import dataclasses
import gzip
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gptjax import UL2, registry
from gptjax.command_line import main, override
from gptjax.run_folder import load_experiment

ROOT = Path(__file__).resolve().parent.parent
SMALL = [
    "--exp=quickstart",
    "--model.num_layers=1",
    "--model.d_model=16",
    "--model.context_length=32",
    "--data.sequence_length=32",
    "--data.batch_size=8",
    "--data.corpus=files",
    "--data.validation_fraction=0.1",
    "--optim.name=adamw",
    "--train.eval_batches=2",
    "--mesh.data=1",
]


@pytest.fixture
def small(corpus, cache_dir):
    """The arguments of a run of seconds."""
    return [*SMALL, f"--data.files={corpus}"]


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch, cache_dir):
    """Runs a command that must be refused: one line, exit code 2, nothing new. The line."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> str:
        before = sorted(tmp_path.rglob("*"))
        assert main(list(arguments)) == 2
        out = capsys.readouterr()
        assert out.err.startswith("error: ") and out.err.count("\n") == 1, out.err
        assert "Traceback" not in out.out + out.err
        assert sorted(tmp_path.rglob("*")) in (before, sorted([*before, tmp_path / "runs"]))
        return out.err.strip()

    return run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--exp=quikstart", "did you mean 'quickstart'"),
        ("--exp=zzzz", "--list shows them all"),
        ("", "--exp=NAME is missing"),
        ("--exp", "--exp needs a value"),
        ("--exp=quickstart --exp=quickstart", "--exp is given twice"),
        ("--exp=quickstart --model.d_modle=3", "did you mean 'model.d_model'"),
        ("--exp=quickstart --lr=3", "did you mean 'optim.lr'"),
        ("--exp=quickstart --model.widht=3", "did you mean 'model.d_model'"),
        ("--exp=quickstart --model=3", "'model' is a part"),
        ("--exp=quickstart --name=mine", "registered; --workdir"),
        ("--exp=quickstart --dryrun", "did you mean --dry-run"),
        ("--exp=quickstart --eps=3", "did you mean 'optim.epsilon'"),
        ("--exp=quickstart --no-list", "leave --list out"),
        ("--exp=quickstart --no-model.tied-embeddings", "give --model.tied_embeddings="),
        ("--exp=quickstart -- --dry-run", "followed by no name"),
        ("quickstart", "did you mean --exp=quickstart"),
        ("-exp=quickstart", "did you mean --exp=quickstart"),
        ("--list quickstart", "'quickstart' is given"),
        ("--exp=quickstart --train.sample_prompt=a\udcff", "sample_prompt.*surrogate"),
        ("--exp=quickstart --dry-run=1", "--dry-run takes no value"),
        ("--exp=quickstart stray", "'stray' is no option and no value"),
        ("--exp=quickstart --model.d_model=abc", "--model.d_model.*'abc'"),
        ("--exp=quickstart --model.d_model=1.5", "--model.d_model.*'1.5'"),
        ("--exp=quickstart --model.d_model", "--model.d_model"),
        ("--exp=quickstart --model.positions=rotery", "'rotery'.*'rotary'"),
        ("--exp=quickstart --optim.lr=nan", "optim.lr"),
        ("--exp=quickstart --model.d_model=10 --model.num_heads=3", "nearest number of heads: 2"),
        (
            "--exp=quickstart --mesh.fsdp=16",
            r"takes 16 devices.*nearest .*\(data=1, fsdp=8",
        ),
        ("--exp=quickstart --mesh.tensor=8", "num_heads = 2 is not divisible.*nearest possible"),
        ("--exp=quickstart --data.sequence_length=999", "longer than model.context_length = 256"),
        ("--exp=quickstart --data.tokenizer=bpe --data.vocab_size=999", "--model.vocab_size=999"),
        ("--exp=quickstart --data.corpus=files", "needs data.files"),
        ("--exp=quickstart --data.corpus=pycoda", "did you mean 'pycode'"),
        ("--exp=quickstart --train.tokens=0", "all 0"),
        ("--exp=quickstart --dry-run --mesh.tensor=16", "takes 16 .*there are 8; .*num_heads = 2"),
        ("--exp=quickstart --workdir=", "--workdir"),
        ("--exp=quickstart --workdir=~nobody-of-that-name/x", "home is not known"),
        ("--exp=quickstart --train.steps=99999999999999999999", "train.steps.*largest"),
        ("--exp=quickstart --train.tokens=99999999999999999999", "train.tokens.*largest"),
        ("--exp=quickstart --model.d_ff=-99999999999999999999", "model.d_ff.*largest"),
    ],
)
def test_bad_arguments_are_one_line(refused, arguments, words):
    assert re.search(words, refused(*arguments.split()))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"", "a.txt.*empty"),
        ("a.txt", b"\x7fELF\x02\x01\0\0\0\0" * 50, "a.txt.*binary"),
        ("a.txt", b"fine \xff not" * 50, "a.txt.*UTF-8.*(offset|byte) 5"),
        ("a.jsonl", b'{"text": "fine"}\n{"text": \n', "a.jsonl:2 is not whole JSON"),
        ("a.jsonl", b'{"txet": "fine"}\n', "a.jsonl.*text"),
        ("a.txt.gz", gzip.compress(bytes(range(65, 91)) * 500)[:-20], "a.txt.gz.*truncated"),
        ("a.txt", b"too little", "fewer|documents"),
        ("a.parquet", b"PAR1", "a.parquet"),
    ],
)
def test_bad_files_are_one_line(refused, tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    line = refused(*SMALL, f"--data.files={path}")
    assert re.search(words, line), line
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--data.files=", "data.files holds an empty name"),
        ("--data.files=nowhere/*.txt", "no file matches"),
        ("--data.files=nowhere.txt", "does not exist"),
        ("--data.files={corpus} --data.cache_dir=/dev/null", "cache.* cannot be written"),
        ("--data.files={corpus} --data.cache_dir=/proc/x", "cache.* cannot be written"),
        ("--data.files={corpus} --data.max_bytes=99", "3 windows.* fewer than data.batch_size=8"),
    ],
)
def test_a_dry_run_refuses_what_the_run_refuses(refused, corpus, arguments, words):
    line = refused(*SMALL, "--dry-run", *arguments.format(corpus=corpus).split())
    assert re.search(words, line), line


def test_a_printed_sample_moves_no_cursor(capsys):
    from gptjax.runs import _report

    figures = {"validation_loss": 1.0, "bits_per_byte": 1.0, "unigram_nats": 1.0}
    _report(figures | {"sample": "a\x1b[2J\b\0\n\tb \ud800"}, Path("run"), 1.0)
    assert "--- sample\na\\x1b[2J\\x08\\x00\n\tb \\ud800\n---\n" in capsys.readouterr().out


def test_missing_files_are_one_line(refused, tmp_path):
    assert "texts" in refused(*SMALL, f"--data.files={tmp_path}/texts/*.txt")
    (tmp_path / "notes.txt").write_text("x")
    line = refused(*SMALL, f"--data.files={tmp_path}/note.txt")
    assert "did you mean 'notes.txt'" in line
    assert "m.model" in refused(
        *SMALL, "--data.tokenizer=bpe", "--data.tokenizer_file=m.model",
        f"--data.files={tmp_path}/notes.txt",
    )  # fmt: skip


def test_a_document_longer_than_the_context_is_refused_where_asked(refused, small):
    line = refused(*small, "--data.long_documents=refuse")
    assert re.search(r"\.txt.*\d+ tokens.*32|long", line), line


def test_a_folder_that_cannot_be_written_is_one_line(refused, small, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for workdir in ("file", "file/run"):
        assert "a file is in the way" in refused(*small, f"--workdir={tmp_path / workdir}")
    assert (tmp_path / "file").read_text() == "in the way"
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for workdir, words in (
        ("/proc/x/y", "no folder can be made there"),
        ("x" * 300, "the name is too long"),
        ("x/" * 3000, "the name is too long"),
        ("a\0b", "the character 0"),
        ("circle/run", "its links lead in a circle"),
    ):
        assert words in refused(*small, f"--workdir={workdir}")
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        assert "permission denied" in refused(*small, f"--workdir={tmp_path}/locked/run")


def test_a_damaged_config_in_the_folder_is_one_line(refused, small, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()
    (tmp_path / "run" / "experiment.json").write_text('{"name": ')
    assert "experiment.json is damaged" in refused(*small, f"--workdir={tmp_path}/run")


def test_list(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    assert main(["--list"]) == 0
    out = capsys.readouterr().out
    for name in registry.names():
        assert re.search(rf"^ *{name} .*\S", out, re.M), name
    assert "853k" in out or "parameters" in out


def test_help(capsys):
    assert main(["--help"]) == 0
    assert "--dry-run" in capsys.readouterr().out
    assert main(["--exp=quickstart", "--help"]) == 0
    out = capsys.readouterr().out
    for field in ("--model.d-model", "--optim.lr", "--mesh.fsdp", "--data.files"):
        assert field in out or field.replace("-", "_").replace("__", "--") in out
    assert "--workdir" in out and "--name" not in out


def test_help_of_a_sweep_says_whose_fields_these_are(capsys):
    assert main(["--exp=sweep_cpu_10min", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "--exp=sweep_cpu_10min [-h]" in out and "its base experiment, byte_run" in out
    assert re.search(r"Its grid sets [\w., ]*model.num_layers, optim.lr, [\w., ]* point by", out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--exp=124m", "--mesh.fsdp=4"],
            ["124,439,808", "data=2 x fsdp=4", "too large", "memory:"],
        ),
        (
            ["--exp=gpt2_1558m", "--mesh.data=2", "--mesh.fsdp=16"],
            ["1,557,611,200", "32 devices", "epochs", "on each device: fits"],
        ),
    ],
)
def test_dry_run_of_large_models(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "--dry-run"]) == 0
    out = capsys.readouterr().out
    for word in [*words, "6ND", "layers/attention/query", "model.d_model"]:
        assert word in out
    assert not list(tmp_path.iterdir())


def test_dry_run_measures_small_models(capsys, tmp_path, monkeypatch, small):
    monkeypatch.chdir(tmp_path)
    assert main([*small, "--dry-run"]) == 0
    assert "measured over 3 steps" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_parts_of_a_list_are_set_by_their_numbers(capsys):
    given = ("--objective.denoisers.0.rate=0.2", "--objective.denoisers.6.share", "2")
    made = override(registry.get("ul2_quick"), given).objective.denoisers
    assert (made[0].rate, made[6].share, made[1:6]) == (0.2, 2.0, UL2().denoisers[1:6])
    for argument, words in {
        "--objective.denoisers.7.rate=0.2": "has 7 parts, 0 to 6",
        "--objective.denoisers.0.mode=Q": "'R', 'S', 'X'",
        "--objective.denoisers.0.rate=1.5": "objective.denoisers.0.rate is 1.5",
    }.items():
        assert main(["--exp=ul2_quick", argument, "--dry-run"]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1


def test_overrides_reach_the_run(small, tmp_path, capsys):
    """Typed as the fields are; the same command again is harmless; another config is refused."""
    run = [*small, f"--workdir={tmp_path}/run", "--train.steps=3", "--optim.lr", "3e-4"]
    for _ in range(2):
        assert main([*run, "--train.sample-tokens=5"]) == 0
    e = load_experiment(tmp_path / "run")
    assert e.optim.lr == 3e-4 and e.train.sample_tokens == 5 and e.steps == 3
    assert e.name == "quickstart" and dataclasses.replace(e, name="x") != e
    capsys.readouterr()
    assert main([*run, "--train.sample_tokens=6"]) == 2
    line = capsys.readouterr().err
    assert "train.sample_tokens: 5 -> 6" in line and line.count("\n") == 1 and "--fork" in line
    assert load_experiment(tmp_path / "run") == e
    assert main([*run, "--train.sample_tokens=6", "--fork"]) == 0
    assert load_experiment(tmp_path / "run").train.sample_tokens == 6


def test_a_process_that_is_stopped_exits_with_75_and_goes_on(small, tmp_path):
    """The script in real processes: 75 for a stop that was saved, then 0; 2 for bad input."""
    script = [sys.executable, str(ROOT / "experiments" / "run.py")]
    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    options = {"text": True, "cwd": tmp_path, "env": {**os.environ, "XLA_FLAGS": quick}}
    run = [*script, *small, "--train.sample_tokens=0", "--train.eval_every=100000000"]
    run += ["--train.checkpoint_every=100000000", "--workdir=run"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*run, "--train.steps=100000000"], **pipes, **options) as process:
        assert process.stdout.readline()  # it prepares or compiles
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=120)
    assert process.returncode == 75 and "nothing had to be saved" in error
    with subprocess.Popen([*run, "--train.steps=100000000"], **pipes, **options) as process:
        while "step 1/" not in process.stdout.readline():
            assert process.poll() is None, process.stderr.read()
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=120)
    assert process.returncode == 75, error
    wrong = subprocess.run([*script, "--exp=quikstart"], capture_output=True, **options)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1
    step = int(re.search(r"stopped at step (\d+) and saved; the same command goes on", error)[1])
    done = subprocess.run(
        [*run, f"--train.steps={step + 2}", "--fork"], capture_output=True, **options
    )
    assert done.returncode == 0, done.stderr
    assert f"run at step {step} of {step + 2}" in done.stdout
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == step + 2
