"""Windows, order, resume and splits of a small prepared corpus."""

import json
from dataclasses import replace

import numpy as np
import pytest

from gptjax.data import DataConfig, prepare
from gptjax.data.loader import RowReader, plain_rows
from gptjax.data.splits import split_documents
from gptjax.errors import BadInput

SEPARATOR = 256


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    with open(folder / "texts.jsonl", "w") as file:
        for number in range(113):
            words = " ".join(str(n) for n in rng.integers(0, 10**6, rng.integers(1, 40)))
            file.write(json.dumps({"text": f"{number}: {words}\n"}) + "\n")
    return DataConfig(
        corpus="files",
        files=(str(folder / "*.jsonl"),),
        batch_size=6,
        sequence_length=31,
        validation_fraction=0.2,
        cache_dir=str(folder / "cache"),
    )


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def assert_same(a, b):
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_an_epoch_predicts_every_token_once(base):
    dataset = prepare(replace(base, batch_size=1, epochs=1))
    ids = np.asarray(dataset._ids["train"], np.int32)
    batches = list(dataset.train_iterator())
    assert len(batches) == (len(ids) - 1) // 31 == dataset.windows()
    flat = {}
    for batch in batches:
        np.testing.assert_array_equal(batch["tokens"][0, 1:], batch["targets"][0, :-1])
        flat[batch["tokens"].tobytes()] = batch
    starts = range(0, 31 * len(batches), 31)
    for start in starts:
        batch = flat.pop(ids[start : start + 31].tobytes())
        np.testing.assert_array_equal(batch["targets"][0], ids[start + 1 : start + 32])
    assert not flat
    assert ids[0] == SEPARATOR and batches[0]["tokens"].dtype == np.int32


def test_epochs_differ_and_end(base):
    dataset = prepare(replace(base, epochs=2, batch_size=1))
    rows = [batch["tokens"].tobytes() for batch in dataset.train_iterator()]
    first, second = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    assert first != second and sorted(first) == sorted(second)
    other_seed = prepare(replace(base, epochs=1, batch_size=1, seed=1))
    assert [b["tokens"].tobytes() for b in other_seed.train_iterator()] not in (first, second)


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_is_exact_in_and_across_epochs(base, workers):
    config = replace(base, epochs=3, workers=workers)
    dataset = prepare(config)
    whole = list(dataset.train_iterator())
    assert len(whole) == 3 * dataset.windows() // 6
    for done in (0, 2, dataset.windows() // 6, dataset.windows() // 6 + 1, len(whole)):
        iterator = dataset.train_iterator()
        take(iterator, done)
        state = json.loads(json.dumps(iterator.get_state()))
        assert len(json.dumps(state)) < 1000
        assert_same(list(iterator), whole[done:])
        again = prepare(replace(config, workers=2 - workers)).train_iterator()
        again.set_state(state)
        assert_same(list(again), whole[done:])
        iterator.set_state(state)
        assert_same(list(iterator), whole[done:])


def test_order_does_not_depend_on_the_number_of_processes(base):
    dataset = prepare(base)
    whole = take(dataset.train_iterator(), 9)
    validation = list(dataset.validation_batches(3))
    for processes in (2, 3, 6):
        parts = [take(dataset.train_iterator(p, processes), 9) for p in range(processes)]
        for step, batch in enumerate(whole):
            rows = np.concatenate([part[step]["tokens"] for part in parts])
            np.testing.assert_array_equal(rows, batch["tokens"])
        parts = [list(dataset.validation_batches(3, p, processes)) for p in range(processes)]
        rows = np.concatenate([part[0]["targets"] for part in parts])
        np.testing.assert_array_equal(rows, validation[0]["targets"])
    with pytest.raises(BadInput, match=r"batch_size=6 is not divisible by 4 processes.* 4 and 8"):
        dataset.train_iterator(0, 4)


def test_state_of_other_data_is_refused(base):
    state = prepare(base).train_iterator().get_state()
    for changed in (replace(base, seed=1), replace(base, batch_size=3)):
        with pytest.raises(BadInput, match="belongs to another corpus"):
            prepare(changed).train_iterator().set_state(state)
    with pytest.raises(BadInput, match="not one that this loader wrote"):
        prepare(base).train_iterator().set_state({})


def test_validation_is_fixed_and_fewer_batches_are_a_prefix(base):
    dataset = prepare(base)
    several = list(dataset.validation_batches(4))
    assert len(several) == 4
    assert_same(list(dataset.validation_batches(2)), several[:2])
    assert_same(list(prepare(replace(base, seed=5)).validation_batches(4)), several)
    every = list(dataset.validation_batches(10**6))
    rows = {row.tobytes() for batch in every for row in batch["tokens"]}
    assert len(rows) == 6 * len(every)


def test_a_small_validation_split_gives_one_batch(base):
    dataset = prepare(replace(base, batch_size=256))
    (batch,) = dataset.validation_batches(3)
    assert batch["tokens"].shape == (256, 31)
    with pytest.raises(BadInput, match="fewer than one window"):
        prepare(replace(base, sequence_length=10**6)).validation_batches(1)


def test_too_little_text_for_a_batch_is_refused(base):
    with pytest.raises(BadInput, match=r"windows of 31 tokens, fewer than data\.batch_size=5000"):
        prepare(replace(base, batch_size=5000)).train_iterator()


def test_segments_and_positions_by_hand():
    ids = np.array([9, 1, 2, 9, 3, 4, 5, 9, 9, 6, 7, 8, 1], np.uint16)
    both = {"segments": True, "positions": True}
    reader = RowReader(ids, plain_rows(6), separator=9, part=slice(0, 2), seed=0, **both)
    batch = reader([(0, 0), (1, 1)])
    expected = {
        "tokens": [[9, 1, 2, 9, 3, 4], [5, 9, 9, 6, 7, 8]],
        "targets": [[1, 2, 9, 3, 4, 5], [9, 9, 6, 7, 8, 1]],
        "segments": [[0, 0, 0, 1, 1, 1], [0, 1, 2, 2, 2, 2]],
        "positions": [[0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 2, 3]],
    }
    assert batch.keys() == expected.keys()
    for name, value in expected.items():
        assert batch[name].dtype == np.int32
        np.testing.assert_array_equal(batch[name], value, name)


def test_segments_and_positions_come_only_when_asked_for(base):
    assert next(prepare(base).train_iterator()).keys() == {"tokens", "targets"}
    config = replace(base, document_attention="within", positions="document")
    batch = next(prepare(config).train_iterator())
    assert batch.keys() == {"tokens", "targets", "segments", "positions"}


def test_splits_share_no_text_and_max_bytes_leaves_validation_alone(base):
    whole = prepare(base)

    def texts(dataset, split):
        joined = dataset._ids[split].astype(np.int64)
        cuts = np.flatnonzero(joined == SEPARATOR)[1:]
        return [dataset.tokenizer.decode(part) for part in np.split(joined, cuts)]

    train, validation = texts(whole, "train"), texts(whole, "validation")
    assert len(train) + len(validation) == 113 and not set(train) & set(validation)
    some = prepare(replace(base, max_bytes=3000))
    assert some.manifest["train"]["bytes"] == 3000
    assert texts(some, "validation") == validation
    part = texts(some, "train")
    assert part[:-1] == train[: len(part) - 1] and train[len(part) - 1].startswith(part[-1])


def test_equal_documents_fall_into_one_split():
    rng = np.random.default_rng(1)
    hashes = rng.integers(0, 256, (50, 32), np.uint8).repeat(3, axis=0)
    split = split_documents(hashes, np.full(150, 10), 0.3)
    held, kept = ({hashes[i].tobytes() for i in part} for part in (split.validation, split.train))
    assert held and kept and not held & kept
    for fraction in (1e-9, 1 - 1e-9):
        split = split_documents(hashes, np.full(150, 10), fraction)
        assert len(split.train) >= 3 and len(split.validation) >= 3
    with pytest.raises(BadInput, match="fall into one split"):
        split_documents(hashes[:3], np.full(3, 10), 0.1)


def test_manifest_counts_and_unigram_entropy(base):
    dataset = prepare(base)
    manifest = json.loads(json.dumps(dataset.manifest))
    assert manifest["corpus"] == "files" and manifest["dtype"] == "uint16"
    assert manifest["train"]["documents"] + manifest["validation"]["documents"] == 113
    for name in ("train", "validation"):
        counts = manifest[name]
        ids = dataset._ids[name]
        assert counts["tokens"] == len(ids) == counts["bytes"] + counts["documents"]
        assert dataset.token_bytes[ids].sum() == counts["bytes"]
    train = np.bincount(dataset._ids["train"], minlength=257) + 1.0
    expected = -np.log(train / train.sum())[dataset._ids["validation"]].mean()
    assert dataset.unigram_entropy == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_trained_tokenizer_is_cached_and_used(base, kind):
    lines = []
    config = replace(base, tokenizer=kind, vocab_size=400)
    dataset = prepare(config, lines.append)
    assert any("training" in line for line in lines)
    assert dataset.vocab_size == 400
    for name in ("train", "validation"):
        ids = dataset._ids[name]
        assert dataset.token_bytes[ids].sum() == dataset.manifest[name]["bytes"]
    lines.clear()
    assert prepare(config, lines.append).manifest == dataset.manifest and not lines
    brought = replace(config, tokenizer_file=str(next_model(base, dataset)))
    assert prepare(brought).manifest["tokenizer_sha256"] == dataset.tokenizer.sha256


def next_model(base, dataset):
    from pathlib import Path

    for model in Path(base.cache_dir).glob("tokenizers/*/tokenizer.model"):
        if dataset.tokenizer.kind in model.parent.name:
            return model
    raise AssertionError("no model in the cache")


def test_long_documents(base):
    with pytest.raises(BadInput, match=r"jsonl:\d+ has \d+ tokens.*'split'.*'truncate'"):
        prepare(replace(base, long_documents="refuse"))
    prepare(replace(base, long_documents="refuse", sequence_length=400))
    cut = prepare(replace(base, long_documents="truncate"))
    ids = np.asarray(cut._ids["train"])
    assert np.diff(np.flatnonzero(ids == SEPARATOR)).max() == 32
