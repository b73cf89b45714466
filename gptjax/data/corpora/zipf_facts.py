"""Facts with a known entropy: drawn, not read. The law and its exact figures are in data/zipf.py.

A document holds many facts, one after the other with their separators, so that a text of symbols
goes the way of every other text: hashed, split, tokenised and cached. Whole documents are drawn
independently, so the validation split is a sample of the same law.
"""

import dataclasses
from collections.abc import Iterator

from gptjax.data.cache import key_of
from gptjax.data.corpora.base import TextCorpus
from gptjax.data.tokenizers import SymbolTokenizer
from gptjax.data.zipf import draws, entropy

FORMAT = 1  # raise it when the same settings give other facts
FACTS_IN_A_DOCUMENT = 4096


class ZipfCorpus(TextCorpus):
    """`data.facts.count` facts under the law in `data.facts`."""

    name = "zipf_facts"

    def fingerprint(self) -> str:
        return key_of([FORMAT, dataclasses.asdict(self.config.facts)])

    def documents(self) -> Iterator[tuple[str, str]]:
        facts = self.config.facts
        tokenizer = SymbolTokenizer(facts.symbols)
        # A small corpus has documents enough for both splits.
        block = max(min(FACTS_IN_A_DOCUMENT, facts.count // 64), 1)
        for number, ids in enumerate(draws(facts, block)):
            # The first separator is written where the documents are joined.
            yield f"facts_{number}", tokenizer.decode(ids.reshape(-1)[1:])

    def expected_bytes(self) -> int:
        return 2 * self.config.facts.count * self.config.facts.length

    def details(self) -> dict:
        facts = self.config.facts
        exact = entropy(facts)
        return {
            **dataclasses.asdict(facts),
            "entropy_by_position": exact.by_position.tolist(),
            "entropy_per_token": exact.per_token,
        }

    def announce(self) -> str:
        facts = self.config.facts
        return f"preparing zipf_facts: {facts.count:,} facts on {facts.keys:,} keys"
