"""The command that writes text: what it prints, and one line with exit code 2 for bad input."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gptjax
from experiments.generate import load_source, main
from tests.conftest import changed

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    experiment = changed(tiny, train={"steps": 3, "checkpoint_every": 3}, model={"num_layers": 1})
    return gptjax.fit(experiment, tmp_path_factory.mktemp("generate") / "run").workdir


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch, cache_dir):
    """Runs a command that must be refused: one line, exit code 2, no file. The line."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> str:
        before = sorted(tmp_path.rglob("*"))
        assert main(list(arguments)) == 2
        out = capsys.readouterr()
        assert out.err.startswith("error: ") and out.err.count("\n") == 1, out.err
        assert out.out == "" and sorted(tmp_path.rglob("*")) == before
        return out.err.strip()

    return run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "--from is missing"),
        ("--from=a:b", "'a:' is no source; give a run's folder, hf:PATH or gguf:PATH or"),
        ("--from=runs", "holds no run"),
        ("--from=gguf:x --step=3", "--step is of a run"),
        ("--from=runs --top_p=0", "--top_p=0.0: give a number above 0"),
        ("--from=runs --top_p=1.5", "--top_p=1.5"),
        ("--from=runs --top_k=-1", "--top_k=-1"),
        ("--from=runs --top_k=a", "top_k"),
        ("--from=runs --temperature=nan", "--temperature=nan"),
        ("--from=runs --temperature=-1", "--temperature=-1"),
        ("--from=runs --repetition_penalty=0", "--repetition_penalty=0.0"),
        ("--from=runs --max_tokens=0", "--max_tokens=0: give 1 or more"),
        ("--from=runs --num-samples=0", "--num_samples=0"),
        ("--from=runs --beams=2 --num_samples=3", "more than the 2 beams"),
        ("--from=runs --beams=2 --explain=next", "--explain does not go with --beams"),
        ("--from=runs --beams=2 --stop=a", "--stop does not go with --beams"),
        ("--from=runs --beams=2 --length_penalty=inf", "--length_penalty=inf"),
        ("--from=runs --beams=-1", "--beams=-1"),
        ("--from=runs --seed=-1", "--seed=-1"),
        ("--from=runs --stop=", "--stop is empty"),
        ("--from=runs --begin=none", "nothing to begin with"),
        ("--from=runs --prompt=a --prompts=b", "both given"),
        ("--from=runs --prompts=none.txt", "No such file"),
        ("--from=runs --output=no/such/file", "--output=no/such/file cannot be written"),
        ("--from=runs --prompt=a\udcff", "--prompt is .* give UTF-8"),
        ("--from=runs --explain=all", "explain"),
        ("--from=runs --max_tokens=2000000000", "give at most 1048576"),
        ("--from=runs --beams=2 --length_penalty=1e30", "from -10 to 10"),
        ("--from=runs --output=/dev/full", "the name of a plain file"),
        ("--from=runs --tempreature=1", "did you mean --temperature"),
        ("--from=runs extra", "extra"),
    ],
)
def test_bad_arguments_are_one_line(refused, arguments, words):
    line = refused(*arguments.split())
    assert re.search(words, line), line


def test_prompts_are_checked_before_anything_is_computed(refused, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("gptjax.evaluation.generate.run", None)
    assert "leaves no room" in refused(f"--from={folder}", f"--prompt={'a' * 40}")
    (tmp_path / "empty.txt").write_text("\n")
    assert "holds no prompt" in refused(f"--from={folder}", "--prompts=empty.txt")
    (tmp_path / "ids.jsonl").write_text('{"ids": [999]}\n')
    assert "token 999" in refused(f"--from={folder}", "--prompts=ids.jsonl")
    assert "holds no step 7" in refused(f"--from={folder}", "--step=7")


def test_one_prompt_is_told_as_it_grows(folder, capsys):
    arguments = [f"--from={folder}", "--prompt=def ", "--max_tokens=12", "--temperature=0"]
    assert main(arguments) == 0
    out = capsys.readouterr()
    assert out.out.startswith("def ") and out.out.endswith("\n")
    run = load_source(str(folder))
    assert out.out.rstrip("\n") == run.generate("def ", 12, temperature=0).rstrip("\n")
    assert "12 tokens: the first after" in out.err and "tokens/s" in out.err


def test_a_file_of_prompts_gives_a_file_of_texts(folder, capsys, tmp_path):
    (tmp_path / "prompts.txt").write_text("def \nx in self\n")
    arguments = [f"--from={folder}", f"--prompts={tmp_path / 'prompts.txt'}", "--max_tokens=6"]
    more = ["--num_samples=2", f"--output={tmp_path / 'out.jsonl'}", "--explain=steps"]
    assert main([*arguments, *more, "--repetition_penalty=1.3", "--stop=q", "--stop=zz"]) == 0
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(r["prompt"], r["sample"]) for r in records] == [
        ("def ", 0), ("def ", 1), ("x in self", 0), ("x in self", 1),
    ]  # fmt: skip
    out = capsys.readouterr().out
    assert all(r["prompt"] + r["text"] in out for r in records) and "likeliest" in out
    assert main([*arguments, "--beams=2", "--num_samples=2"]) == 0
    assert capsys.readouterr().out.count("score -") == 4
    assert main([*arguments, "--explain", "--dtype=bfloat16"]) == 0
    assert capsys.readouterr().out.count("probability") == 2


def test_the_script_itself(folder, tmp_path):
    command = [sys.executable, str(ROOT / "experiments" / "generate.py"), f"--from={folder}"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [*command, "--prompt=é", "--max_tokens=4"], cwd=tmp_path, env=environment,
        capture_output=True, encoding="utf-8", timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith("é"), done.stderr
    assert done.stderr.startswith("4 tokens") or "tokens: the first" in done.stderr


def test_weights_of_others(tmp_path, capsys):
    """A folder in Hugging Face's format, without a tokenizer: ids in, ids out."""
    pytest.importorskip("safetensors")
    import jax

    from gptjax.evaluation.generate import generate
    from gptjax.interop import export
    from gptjax.models.build import init_params

    config = gptjax.DecoderConfig(
        vocab_size=31, context_length=16, num_layers=1, d_model=16, num_heads=2
    )
    params = jax.jit(lambda: init_params(config, jax.random.key(0)))()
    export(config, params, tmp_path / "hf")
    (tmp_path / "ids.jsonl").write_text('{"ids": [1, 2, 3]}\n')
    source, out = f"--from=hf:{tmp_path / 'hf'}", tmp_path / "out.jsonl"
    arguments = [source, f"--prompts={tmp_path / 'ids.jsonl'}", "--temperature=0"]
    assert main([*arguments, "--max_tokens=5", f"--output={out}"]) == 0
    expected = generate(config, params, [[1, 2, 3]], 5, temperature=0.0)[0]
    assert json.loads(out.read_text())["tokens"] == expected.tolist()
    capsys.readouterr()
    assert main([source, "--prompt=a"]) == 2
    assert "without a tokenizer" in capsys.readouterr().err
