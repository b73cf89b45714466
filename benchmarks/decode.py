"""Times greedy decoding of GPT-2 124M with random weights against transformers' `generate`.

    python benchmarks/decode.py [--batches 1 16] [--prompt 32] [--new 128] [--rounds 5]

A call decodes `new` tokens after a prompt of `prompt` tokens in every row, prefill and whatever a
call prepares with it; compilation and the first two calls are not timed. Every side lives in a
process of its own with two threads; rounds are interleaved, a side's rate is the median over rounds
and a ratio the median of the ratios within a round, given with its quartiles. Trust ratios only
where other processes took next to nothing; CPU seconds bear more, if PyTorch's threads sleep while
they wait (OMP_WAIT_POLICY=passive). PyTorch and transformers must be installed; they are no
dependencies of gptjax. Results stand in RESULTS.md.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
THREADS = 2
SIDES = {
    "gptjax": "gptjax, float32",
    "gptjax-bfloat16": "gptjax, bfloat16",
    "transformers": "transformers generate, float32",
    "transformers-bfloat16": "transformers generate, bfloat16",
}


# ---------------------------------------------------------------- workers


def prompts_of(given):
    """Token ids [batch, prompt], the same on every side."""
    import numpy as np

    return np.random.default_rng(0).integers(0, 50257, (given.batches[0], given.prompt))


def gptjax_call(given, dtype: str):
    """A function that decodes once and returns the number of new tokens."""
    import dataclasses

    import jax

    from gptjax.evaluation.generate import generate
    from gptjax.models.build import init_params
    from gptjax.models.presets import gpt2

    config = dataclasses.replace(gpt2("124m"), compute_dtype=dtype)
    params = jax.jit(lambda: init_params(config, jax.random.key(0)))()
    params = jax.jit(lambda p: jax.tree.map(lambda x: x.astype(dtype), p))(params)
    prompts = prompts_of(given)

    def call() -> int:
        rows = generate(config, params, prompts, given.new, temperature=0.0)
        return sum(len(row) for row in rows)

    return call


def transformers_call(given, dtype: str):
    """A function that decodes once and returns the number of new tokens."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    # Without an end token, so that every row has all its tokens.
    config = GPT2Config(eos_token_id=None, bos_token_id=None, pad_token_id=0)
    model = GPT2LMHeadModel(config).to(getattr(torch, dtype)).eval()
    model.generation_config.eos_token_id = None
    prompts = torch.from_numpy(prompts_of(given))
    mask = torch.ones_like(prompts)

    def call() -> int:
        with torch.inference_mode():
            out = model.generate(
                prompts, attention_mask=mask, do_sample=False, max_new_tokens=given.new,
                use_cache=True,
            )  # fmt: skip
        return out[:, given.prompt :].numel()

    return call


def work(given) -> None:
    """Answers every line on stdin with the seconds of one call, as one JSON line."""
    from gptjax.allocator import tune

    tune()
    side, _, dtype = given.work.partition("-")
    make = gptjax_call if side == "gptjax" else transformers_call
    call = make(given, dtype or "float32")
    tokens = [call(), call()]
    print(json.dumps({"tokens": tokens[-1]}), flush=True)
    for _ in sys.stdin:
        began, cpu = time.perf_counter(), time.process_time()
        call()
        answer = {"seconds": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}
        # ru_maxrss is in KiB on Linux
        answer["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        print(json.dumps(answer), flush=True)


# ---------------------------------------------------------------- rounds


class Worker:
    """One side in a process of its own."""

    def __init__(self, side: str, batch: int, given):
        sizes = [f"--batches={batch}", f"--prompt={given.prompt}", f"--new={given.new}"]
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--work", side, *sizes],
            env={
                **os.environ,
                "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"),
                "OMP_NUM_THREADS": str(THREADS),
                "PYTHONPATH": str(ROOT),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.tokens = self.read()["tokens"]
        self.answers: list[dict] = []

    def read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended with code {self.process.wait()}")
        return json.loads(line)

    def round(self) -> None:
        self.process.stdin.write("1\n")
        self.process.stdin.flush()
        self.answers.append(self.read())

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(batch: int, given) -> None:
    """Runs the rounds of one batch size and prints its rows."""
    workers = {side: Worker(side, batch, given) for side in given.sides}
    try:
        for _ in range(given.rounds):
            for worker in workers.values():
                worker.round()
    finally:
        for worker in workers.values():
            worker.stop()
    ours = workers[given.sides[0]]
    for side, worker in workers.items():
        assert worker.tokens == batch * given.new, f"{side} made {worker.tokens} tokens"
        seconds = [answer["seconds"] for answer in worker.answers]
        pairs = zip(seconds, (answer["seconds"] for answer in ours.answers), strict=True)
        ratios = [theirs / own for theirs, own in pairs]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        took = statistics.median(seconds)
        cpu = statistics.median(answer["cpu_s"] for answer in worker.answers)
        print(
            f"| {batch} | {SIDES[side]} | {batch * given.new / took:.1f} | "
            f"{1e3 * took / given.new:.1f} | {1e3 * min(seconds) / given.new:.1f} | "
            f"{cpu:.2f} | {worker.answers[-1]['peak_gb']:.2f} | "
            f"{middle:.2f} ({low:.2f} to {high:.2f}) |",
            flush=True,
        )
    print(f"# batch {batch}: load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["gptjax", "transformers"])
    parser.add_argument("--work", choices=SIDES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given)
        return
    if given.rounds < 2:
        parser.error("--rounds: give 2 or more")
    print(f"# prompt {given.prompt}, {given.new} new tokens, {given.rounds} rounds")
    print("| batch | side | tokens/s | ms a step | fastest | CPU s a call | peak GB | "
          f"time / {given.sides[0]} (quartiles) |")  # fmt: skip
    print("|---" * 8 + "|")
    for batch in given.batches:
        compare(batch, given)


if __name__ == "__main__":
    main()
