"""What stands around a text in an exported folder, by the family and by what the run has."""

import json

import pytest

pytest.importorskip("safetensors")
pytest.importorskip("tokenizers")

import tokenizers

from gptjax import (
    DataConfig,
    Denoising,
    EncoderConfig,
    EncoderDecoderConfig,
    Experiment,
    MaskedLM,
    SpanCorruption,
    TrainConfig,
    TwoStreamConfig,
)
from gptjax.data.tokenizers import ByteTokenizer, byte_bpe, read_tokenizer
from gptjax.data.tokenizers.export import export_tokenizer
from gptjax.data.vocabulary import vocabulary_of
from gptjax.evaluation.blanks import Asked, answers
from gptjax.evaluation.forms import form_of, form_of_checkpoint
from gptjax.evaluation.sampling import Sampling
from gptjax.interop import export, load
from gptjax.models.config import AttentionConfig, EmbeddingConfig
from tests.interop.conftest import random_params

SMALL = {"vocab_size": 300, "context_length": 32, "num_layers": 1, "d_model": 12, "num_heads": 2}
BERT = EncoderConfig(
    **SMALL,
    block="post",
    activation="gelu_erf",
    pooler="first",
    classes=2,
    embedding=EmbeddingConfig(norm=True, types=2, head_bias=True),
)
ROBERTA = EncoderConfig(
    **SMALL,
    block="post",
    activation="gelu_erf",
    embedding=EmbeddingConfig(norm=True, types=1, head_bias=True, position_offset=2),
)
XLNET = TwoStreamConfig(
    **SMALL,
    activation="gelu_erf",
    biases="mlp",
    embedding=EmbeddingConfig(types=2, head_bias=True),
)
T5 = EncoderDecoderConfig(
    **SMALL,
    norm="rmsnorm",
    activation="geglu",
    biases="none",
    positions="relative_bias",
    attention=AttentionConfig(scale="one"),
    tied_embeddings=False,
)
BART = EncoderDecoderConfig(
    **SMALL,
    block="post",
    activation="gelu_erf",
    embedding=EmbeddingConfig(norm=True, head_bias=True, position_offset=2),
)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two", "##s"]


def read_back(folder, *texts):
    """Tokens and types that the library `tokenizers` gives one or two texts."""
    made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(*texts)
    return made.tokens, made.type_ids


def exported(config, out, **words):
    return export(config, random_params(config), out, **words).name


def word_piece(folder):
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return read_tokenizer(folder)


def test_bert_s_words_stand_between_cls_and_sep(tmp_path):
    assert exported(BERT, tmp_path / "out", tokenizer=word_piece(tmp_path / "in")) == "bert"
    assert read_back(tmp_path / "out", "one twos")[0] == ["[CLS]", "one", "two", "##s", "[SEP]"]
    tokens, types = read_back(tmp_path / "out", "one", "two")
    assert tokens == ["[CLS]", "one", "[SEP]", "two", "[SEP]"] and types == [0, 0, 0, 1, 1]
    named = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert (named["cls_token"], named["sep_token"], named["mask_token"]) == (*WORDS[2:5],)
    assert "token_type_ids" in named["model_input_names"]


@pytest.mark.parametrize(
    ("config", "names", "one", "two", "types"),
    [
        (
            ROBERTA,
            {"cls": "<s>", "pad": "<pad>", "sep": "</s>"},
            ["<s>", "a", "</s>"],
            ["<s>", "a", "</s>", "</s>", "b", "</s>"],
            [0] * 6,
        ),
        (
            XLNET,
            {"sep": "<sep>", "cls": "<cls>"},
            ["a", "<sep>", "<cls>"],
            ["a", "<sep>", "b", "<sep>", "<cls>"],
            [0, 0, 1, 1, 2],
        ),
    ],
    ids=["roberta", "xlnet"],
)
def test_others_have_ends_of_their_own(config, names, one, two, types, tmp_path):
    special = {role: number for number, role in enumerate(names)}
    words = byte_bpe([*names.values(), "a", "b"], [], special)
    exported(config, tmp_path / "out", tokenizer=words)
    assert read_back(tmp_path / "out", "a") == (one, types[: len(one) - 1] + types[-1:])
    assert read_back(tmp_path / "out", "a", "b") == (two, types)


@pytest.mark.parametrize("sentences", ["none", "next"])
def test_special_tokens_of_a_run_are_part_of_its_words(sentences, tmp_path):
    """Bytes have none of their own: the run's stand behind them, cls and sep if it has them."""
    run = Experiment(
        name="e",
        model=BERT,
        data=DataConfig(sequence_length=32),
        objective=MaskedLM(sentences=sentences),
        train=TrainConfig(steps=1),
    )
    words = ByteTokenizer()
    vocabulary = run.vocabulary(words)
    exported(BERT, tmp_path / "out", tokenizer=words, vocabulary=vocabulary)
    tokens = read_back(tmp_path / "out", "a[MASK]")[0]
    inside = ["a", "[MASK]"]
    assert tokens == (["[CLS]", *inside, "[SEP]"] if sentences == "next" else inside)
    written = read_tokenizer(tmp_path / "out")
    ids = written.encode("a[MASK]", special=True).tolist()
    assert ids == [*words.encode("a").tolist(), vocabulary.id("mask")]
    assert written.vocab_size == vocabulary.total
    assert written.special["mask"] == vocabulary.id("mask")
    assert written.special["pad"] == written.separator_id == words.separator_id


@pytest.mark.parametrize(
    ("config", "words", "name", "number"),
    [
        (BERT, ByteTokenizer(), "<|separator|>", 256),
        (BERT, byte_bpe([*"ab", "</s>", "[PAD]"], [], {"eos": 2}), "[PAD]", 3),
        (ROBERTA, ByteTokenizer(), None, 1),  # of which the positions are derived
    ],
    ids=["separator", "own", "roberta"],
)
def test_texts_of_a_run_can_be_padded(config, words, name, number, tmp_path):
    vocabulary = vocabulary_of(words, MaskedLM().roles(24))
    exported(config, tmp_path / "out", tokenizer=words, vocabulary=vocabulary)
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        assert json.loads((tmp_path / "out" / file).read_text()).get("pad_token") == name
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pad_token_id"] == number


def test_the_ends_of_a_tokenizer_json_stay(tmp_path):
    export_tokenizer(word_piece(tmp_path / "in"), tmp_path / "json", around="bert")
    path = tmp_path / "json" / "tokenizer.json"
    whole = json.loads(path.read_text())
    whole["post_processor"]["single"].pop()
    path.write_text(json.dumps(whole))
    exported(BERT, tmp_path / "out", tokenizer=read_tokenizer(tmp_path / "json"))
    assert read_back(tmp_path / "out", "one")[0] == ["[CLS]", "one"]


@pytest.mark.parametrize(
    ("config", "objective", "name"),
    [(T5, SpanCorruption(), "t5"), (BART, Denoising(), "bart")],
    ids=["t5", "bart"],
)
def test_an_exported_run_answers_as_before(config, objective, name, tmp_path):
    """Bytes have no padding: the decoder began with the separator, and begins with it there."""
    words, params = ByteTokenizer(), random_params(config)
    form, out = form_of(config, objective, words, 24), tmp_path / "out"
    ends = {"tokenizer": words, "vocabulary": form.vocabulary, "form": form}
    assert exported(config, out, **ends) == name
    settings = json.loads((out / "config.json").read_text())
    generation = json.loads((out / "generation_config.json").read_text())
    for role in ("pad", "eos", "decoder_start"):
        assert settings[f"{role}_token_id"] == words.separator_id
        assert role == "pad" or generation[f"{role}_token_id"] == words.separator_id
    assert json.loads((out / "tokenizer_config.json").read_text())["pad_token"] == "<|separator|>"
    again = load(f"hf:{out}")
    theirs = form_of_checkpoint(again.config, again.tokenizer, f"hf:{out}")
    blank, other = next(iter(form.blanks)), next(iter(theirs.blanks))
    one = form.prompt(f"ab{blank}c", begin="none")
    two = theirs.prompt(f"ab{other}c", begin="none")
    assert form.source(one).tolist() == theirs.source(two).tolist()
    greedy = Sampling(temperature=0.0)
    one = answers(Asked(config, params, form), [one], 6, greedy)[0]
    two = answers(Asked(again.config, again.params, theirs), [two], 6, greedy)[0]
    assert one.tokens.tolist() == two.tokens.tolist()
