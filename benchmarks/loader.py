"""Tokens per second of the data loader on one core: `python benchmarks/loader.py`.

Every variant reads the same corpus; rounds are interleaved and medians printed, so that a busy
machine slows all variants alike. The process pins itself to one core where the system lets it.
Tokens are those of windows of T; an objective's rows may take a few more or fewer of the text.
"""

import argparse
import os
import statistics
import time
from dataclasses import replace

from gptjax.data import DataConfig, prepare
from gptjax.data.loader import Rows
from gptjax.data.vocabulary import vocabulary_of
from gptjax.objectives import objective_of

VARIANTS = {
    "plain": {},
    "documents kept apart": {"document_attention": "within", "positions": "document"},
    "2 reading threads": {"workers": 2},
}
OBJECTIVES = {
    "masked_lm": "encoder",
    "span_corruption": "encoder_decoder",
    "ul2": "encoder_decoder",
    "glm": "decoder",
    "permutation_lm": "two_stream",
}


def main() -> None:
    """Prepare the corpus, time the variants, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", default="pycode")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--sequence_length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--cache_dir", default="")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    base = DataConfig(
        corpus=arguments.corpus,
        batch_size=arguments.batch_size,
        sequence_length=arguments.sequence_length,
        cache_dir=arguments.cache_dir,
    )
    iterators = {}
    for name, changes in VARIANTS.items():
        start = time.perf_counter()
        iterators[name] = prepare(replace(base, **changes), print).train_iterator()
        next(iterators[name])
        print(f"{name}: first batch after {time.perf_counter() - start:.2f} s")
    dataset = prepare(base, print)
    for name, family in OBJECTIVES.items():
        objective, length = objective_of(name)(), base.sequence_length
        vocabulary = vocabulary_of(dataset.tokenizer, objective.roles(length))
        sizes = objective.lengths(length, family)
        make = objective.transform(length, family, vocabulary)
        rows = Rows(sizes.raw, sizes.overlap, make, name=name)
        iterators[name] = dataset.train_iterator(rows=rows)
    tokens = arguments.batches * arguments.batch_size * arguments.sequence_length
    wall, busy = ({name: [] for name in iterators} for _ in range(2))
    for _ in range(arguments.rounds):
        for name, iterator in iterators.items():
            start, start_busy = time.perf_counter(), time.process_time()
            for _ in range(arguments.batches):
                next(iterator)
            wall[name].append(tokens / (time.perf_counter() - start))
            busy[name].append(tokens / (time.process_time() - start_busy))
    print(f"{'T':>5} {'B':>4}  {'M tokens/s':>10} {'per CPU s':>10}  variant")
    for name in iterators:
        print(
            f"{base.sequence_length:5} {base.batch_size:4}  "
            f"{statistics.median(wall[name]) / 1e6:10.1f} "
            f"{statistics.median(busy[name]) / 1e6:10.1f}  {name}"
        )


if __name__ == "__main__":
    main()
