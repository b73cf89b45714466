"""Times attention patterns against masked dense and the best dense kernel of the backend.

    python benchmarks/attention.py [--lengths 1024 4096 8192] [--patterns strided:256 ...]

Forward, and forward with the gradient of q, k and v; temporary memory as the compiler plans it.
Rounds are interleaved; a ratio is the median over rounds of dense time / pattern's time. The ideal
ratio is that of the visited pairs (of n^2 for masked dense, of the triangle for causal). `{root}`
in a pattern is the power of two nearest to the root of the length. With several lengths the
exponent of time in n is fitted. Results stand in RESULTS.md.
"""

import argparse
import math
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
PATTERNS = ("window:256", "strided:256", "fixed:256,16", "local:256", "column:256",
            "strided:{root}", "fixed:{root},4")  # fmt: skip
ROUND_SECONDS = 0.3
MASKED_LIMIT = 1 << 13  # tokens, beyond which a CPU is not asked for all scores


class Side:
    """One pattern in one kernel at one length: forward, or forward and gradient."""

    def __init__(self, text: str, kernel: str, gradient: bool, arrays, scale: float):
        import jax

        from gptjax.ops.attention import attention
        from gptjax.ops.patterns import parse

        pattern = parse(text)

        def forward(q, k, v, g):
            return attention(q, k, v, pattern=pattern, kernel=kernel, scale=scale)

        def both(q, k, v, g):
            out, pull = jax.vjp(lambda *x: forward(*x, g), q, k, v)
            return out, *pull(g)

        self.arrays = arrays
        self.program = jax.jit(both if gradient else forward).lower(*arrays).compile()
        self.bytes = self.program.memory_analysis().temp_size_in_bytes
        self.seconds: list[float] = []
        self.repeats = 1
        self.time()
        self.repeats = max(1, round(ROUND_SECONDS / max(self.time(), 1e-6)))

    def time(self) -> float:
        import jax

        begun = time.perf_counter()
        for _ in range(self.repeats):
            out = self.program(*self.arrays)
        jax.block_until_ready(out)
        return (time.perf_counter() - begun) / self.repeats


def measure(length: int, given) -> dict[tuple[str, str, bool], Side]:
    """Every side at a length, timed in turn."""
    import jax

    root = 2 ** round(math.log2(math.sqrt(length)))
    keys = jax.random.split(jax.random.key(0), 4)
    counts = (given.heads, given.kv_heads, given.kv_heads, given.heads)
    arrays = [
        jax.random.normal(key, (given.batch, length, count, given.size), given.dtype)
        for key, count in zip(keys, counts, strict=True)
    ]
    masked = length <= MASKED_LIMIT or jax.default_backend() != "cpu"
    best = "cudnn" if jax.default_backend() == "gpu" and given.dtype != "float32" else "blocked"
    wanted = [("causal", "dense")] * masked + [("causal", best)]
    for text in given.patterns:
        text = text.format(root=root)
        wanted += [(text, kernel) for kernel in given.kernels]
    sides = {}
    for text, kernel in dict.fromkeys(wanted):
        for gradient in (False, True):
            side = Side(text, kernel, gradient, arrays, given.size**-0.5)
            sides[text, kernel, gradient] = side
    for _ in range(given.rounds):
        for side in sides.values():
            side.seconds.append(side.time())
    return sides


def ratio(base: Side | None, side: Side) -> str:
    if base is None:
        return "-"
    found = statistics.median(a / b for a, b in zip(base.seconds, side.seconds, strict=True))
    return f"{found:.1f}"


def show(length: int, sides: dict, best: str) -> None:
    """A row for every pattern and kernel."""
    from gptjax.ops.patterns import parse

    for text, kernel in dict.fromkeys(key[:2] for key in sides):
        cells = []
        for gradient in (False, True):
            side = sides[text, kernel, gradient]
            dense = sides.get(("causal", "dense", gradient))
            causal = sides["causal", best, gradient]
            milliseconds = 1e3 * statistics.median(side.seconds)
            memory = "-" if dense is None else f"1/{dense.bytes / max(side.bytes, 1):.1f}"
            cells += [f"{milliseconds:.1f}", ratio(dense, side), ratio(causal, side)]
            cells += [f"{side.bytes / 1e6:.1f}", memory]
        pattern = parse(text)
        pairs = pattern.pairs(length) / len(pattern.members)
        shown = text.replace("|", "\\|")  # a bar ends a cell of the table
        ideal = f"{length**2 / pairs:.1f}, {parse('causal').pairs(length) / pairs:.1f}"
        print(f"| {length} | {shown} | {kernel} | {' | '.join(cells)} | {ideal} |", flush=True)


def exponents(times: dict[str, dict[int, tuple[float, float]]]) -> None:
    """Time as a power of n, by least squares through the logarithms."""
    import numpy as np

    for name, by_length in times.items():
        if len(by_length) < 3:
            continue
        n = np.log(list(by_length))
        found = [np.polyfit(n, np.log([t[i] for t in by_length.values()]), 1)[0] for i in (0, 1)]
        print(f"exponent of {name}: forward {found[0]:.2f}, with gradient {found[1]:.2f} "
              f"over {list(by_length)}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", nargs="+", type=int, default=[1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--patterns", nargs="+", default=list(PATTERNS))
    parser.add_argument("--kernels", nargs="+", default=["blocked"])
    parser.add_argument("--heads", type=int, default=1)
    parser.add_argument("--kv-heads", type=int, default=0, help="0: as many as heads")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    given.kv_heads = given.kv_heads or given.heads
    if given.heads % given.kv_heads:
        parser.error(f"--heads={given.heads} is no multiple of --kv-heads={given.kv_heads}")
    from gptjax.allocator import tune

    print(f"# {tune()}")
    import jax

    device = jax.devices()[0]
    best = "cudnn" if device.platform == "gpu" and given.dtype != "float32" else "blocked"
    print(
        f"# {device.device_kind}, jax {jax.__version__}, {given.dtype}, batch {given.batch}, "
        f"{given.heads} heads of {given.size} over {given.kv_heads}, {given.rounds} rounds"
    )
    heads = ["ms", "x masked dense", f"x {best} causal", "temporary MB", "of masked dense's"]
    columns = ["n", "pattern", "kernel", *(f"forward {h}" for h in heads)]
    columns += [f"gradient {h}" for h in heads]
    print(f"| {' | '.join([*columns, 'ideal against n^2, causal'])} |")
    print("|---" * 14 + "|")
    times: dict[str, dict[int, tuple[float, float]]] = {}
    for length in given.lengths:
        sides = measure(length, given)
        show(length, sides, best)
        root = 2 ** round(math.log2(math.sqrt(length)))
        names = ["causal", *given.patterns]
        for name in names:
            kernel = best if name == "causal" else given.kernels[0]
            text = name.format(root=root)
            pair = [statistics.median(sides[text, kernel, g].seconds) for g in (False, True)]
            times.setdefault(name, {})[length] = tuple(pair)
    exponents(times)


if __name__ == "__main__":
    main()
