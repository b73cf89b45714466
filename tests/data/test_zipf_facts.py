"""Facts under a Zipf law: exact figures against brute force, draws against the law, the cache."""

import math
from dataclasses import replace

import numpy as np
import pytest

from gptjax.data import DataConfig, load_tokenizer, prepare
from gptjax.data.tokenizers import SymbolTokenizer
from gptjax.data.zipf import (
    ZipfFacts,
    draws,
    encoder_decoder,
    entropy,
    probabilities,
    sequences,
    value_table,
)
from gptjax.errors import BadInput

SMALL = {
    "plain": ZipfFacts(alpha=0.7, keys=97, values=5, noise=0.2, count=60_000),
    "gap": ZipfFacts(keys=23, values=3, noise=0.3, count=60_000, variant="gap", gap=3),
    "split": ZipfFacts(alpha=0.3, keys=61, values=7, noise=0.0, count=60_000, variant="split"),
}


def config_of(facts, cache_dir, **fields):
    return DataConfig(
        corpus="zipf_facts",
        facts=facts,
        tokenizer="symbols",
        batch_size=3,
        sequence_length=5 * facts.length,
        document_attention="within",
        positions="document",
        validation_fraction=0.2,
        cache_dir=str(cache_dir),
        **fields,
    )


def entropy_of_next(ids, weight, place):
    """H(token after `place` | tokens up to it) over listed sequences, by grouping prefixes."""

    def entropy_of(width):
        _, group = np.unique(ids[:, :width], axis=0, return_inverse=True)
        p = np.bincount(group.reshape(-1), weight)
        p = p[p > 0]
        return -(p * np.log(p)).sum()

    return entropy_of(place + 2) - entropy_of(place + 1)


@pytest.mark.parametrize("variant", SMALL)
def test_entropy_is_that_of_the_listed_facts(variant):
    facts = SMALL[variant]
    ids, weight = (np.concatenate(parts) for parts in zip(*sequences(facts, 1000), strict=True))
    assert len(ids) == facts.sequences == len(np.unique(ids, axis=0))
    assert weight.sum() == pytest.approx(1)
    assert ids.shape[1] == facts.length and ids.max() == facts.separator == facts.vocab_size - 1
    exact = entropy(facts)
    brute = [entropy_of_next(ids, weight, place) for place in range(facts.length - 1)]
    assert exact.by_position == pytest.approx([*brute, 0.0], abs=1e-12)
    assert exact.per_token == pytest.approx(sum(brute) / facts.length)
    assert exact.value == pytest.approx(brute[-1], abs=1e-12)


def test_entropy_by_hand():
    """Two keys at 2/3 and 1/3 (alpha is tiny), each with a value out of two that is half noise."""
    facts = ZipfFacts(alpha=1e-9, keys=2, values=2, noise=0.5)
    third = math.log(3) - 2 / 3 * math.log(2)
    value = 2 * math.log(2) - 0.75 * math.log(3)
    # Both keys have the same first digit: two digits to the square root of two, rounded up.
    assert entropy(facts).by_position == pytest.approx([0, third, value, 0], abs=1e-8)


@pytest.mark.parametrize("variant", SMALL)
def test_draws_follow_the_law(variant):
    facts = SMALL[variant]
    drawn = np.concatenate(list(draws(facts, 997)))
    assert drawn.shape == (facts.count, facts.length) and drawn.dtype == np.int32
    ids, weight = (np.concatenate(parts) for parts in zip(*sequences(facts, 1000), strict=True))
    base = facts.vocab_size ** np.arange(facts.length, dtype=np.int64)
    order = np.argsort(ids @ base)
    found = np.searchsorted((ids @ base)[order], drawn @ base)
    assert np.array_equal(ids[order][found], drawn)
    counts = np.bincount(order[found], minlength=len(ids))
    expected = weight * facts.count
    often = expected > 8
    squares = ((counts - expected) ** 2 / np.maximum(expected, 1e-300))[often]
    assert abs(squares.sum() - often.sum()) < 5 * math.sqrt(2 * often.sum())
    assert counts[weight == 0].sum() == 0


def test_draws_are_the_same_everywhere():
    """Fixed bits: the first facts of a seed are written down here."""
    facts = ZipfFacts(count=1000)
    first = next(draws(facts, 4))
    assert first.tolist() == FIRST
    assert np.array_equal(np.concatenate(list(draws(facts, 300))), next(draws(facts, 1000)))
    other = next(draws(replace(facts, seed=1), 1000))
    assert not np.array_equal(other, next(draws(facts, 1000)))
    longer = next(draws(replace(facts, count=5000), 1000))
    assert np.array_equal(longer, next(draws(facts, 1000)))


FIRST = [[80, 0, 2, 69], [80, 0, 3, 71], [80, 0, 3, 65], [80, 0, 22, 77]]


def test_the_table_and_the_law():
    facts = SMALL["plain"]
    p = probabilities(facts)
    assert p.sum() == pytest.approx(1) and p[0] / p[7] == pytest.approx(8**1.7)
    table = value_table(facts)
    assert table.shape == (97,) and set(table) == set(range(5))


def test_encoder_and_decoder_parts():
    facts = SMALL["split"]
    ids = next(draws(facts, 11))
    parts = encoder_decoder(facts, ids)
    key = parts["encoder_tokens"] @ [facts.digits, 1]
    value = value_table(facts)[key] + facts.digits
    assert np.array_equal(parts["tokens"], np.stack([np.full(11, facts.ask), value], axis=1))
    separators = np.full(11, facts.separator)
    assert np.array_equal(parts["targets"], np.stack([value, separators], axis=1))
    with pytest.raises(BadInput, match="needs 'split'"):
        encoder_decoder(SMALL["plain"], ids)


@pytest.mark.parametrize("variant", SMALL)
def test_the_corpus_goes_through_cache_and_loader(variant, tmp_path):
    facts = replace(SMALL[variant], count=2003)
    config = config_of(facts, tmp_path)
    config.validate()
    dataset = prepare(config)
    manifest = dataset.manifest
    assert manifest["corpus_details"]["entropy_per_token"] == entropy(facts).per_token
    total = manifest["train"]["tokens"] + manifest["validation"]["tokens"]
    assert total == facts.count * facts.length
    assert manifest["validation"]["tokens"] > 0 and dataset.vocab_size == facts.vocab_size
    batch = next(dataset.train_iterator())
    whole = {tuple(fact) for fact in next(draws(facts, facts.count))}
    assert {tuple(fact) for fact in batch["tokens"].reshape(-1, facts.length)} <= whole
    places = np.tile(np.arange(facts.length), 5)
    assert (batch["positions"] == places).all()
    assert (batch["segments"] == np.repeat(np.arange(5), facts.length)).all()
    assert np.array_equal(batch["targets"][:, :-1], batch["tokens"][:, 1:])
    assert (batch["targets"][:, -1] == facts.separator).all()
    lines = []
    assert prepare(config, lines.append).manifest == manifest and not lines
    other = prepare(replace(config, facts=replace(facts, seed=1)))
    assert other.manifest["corpus_sha256"] != manifest["corpus_sha256"]


def test_settings_that_would_not_be_exact_are_refused(tmp_path):
    facts = SMALL["plain"]
    good = config_of(facts, tmp_path)
    for changes, message in [
        ({"sequence_length": 18}, "cuts facts of 4 tokens; the nearest that does not is 16"),
        ({"sequence_length": 1}, "the nearest that does not is 4"),
        ({"document_attention": "across"}, "document_attention to 'within'"),
        ({"positions": "window"}, "positions to 'document'"),
        ({"long_documents": "truncate"}, "would drop facts"),
        ({"tokenizer": "bytes"}, "belong together"),
        ({"corpus": "pycode"}, "belong together"),
        ({"corpus": "pycode", "tokenizer": "bytes"}, "set data.corpus to 'zipf_facts'"),
        ({"tokenizer_file": "m.model"}, "data.tokenizer is 'symbols'"),
        ({"facts": replace(facts, keys=0)}, "data.facts.keys=0 .* the nearest is 1"),
        ({"facts": replace(facts, alpha=0.0)}, "data.facts.alpha=0.0"),
        ({"facts": replace(facts, noise=1.5)}, "data.facts.noise=1.5"),
        ({"facts": replace(facts, variant="gapp")}, "did you mean 'gap'"),
    ]:
        with pytest.raises(BadInput, match=message):
            replace(good, **changes).validate()


def test_symbols_survive_text_and_folder(tmp_path):
    tokenizer = SymbolTokenizer(2500)
    ids = np.random.default_rng(0).integers(0, 2501, 997)
    text = tokenizer.decode(ids)
    assert np.array_equal(tokenizer.encode(text), ids)
    size = int(tokenizer.token_bytes[ids].sum())
    assert size + text.count("\n") == len(text.encode("utf-8"))
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path, tokenizer.sha256)
    assert (again.kind, again.vocab_size, again.separator_id) == ("symbols", 2501, 2500)
    for wrong in ("a", "\ud800", chr(0x100 + 2500)):
        with pytest.raises(BadInput, match="none of the 2500 symbols"):
            tokenizer.encode(wrong)
    assert tokenizer.encode("").shape == (0,)
    with pytest.raises(BadInput):
        SymbolTokenizer(10**6)
