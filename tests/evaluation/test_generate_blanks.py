"""Prompts with blanks: models are asked as they were trained, answers are put into the text."""

import functools
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from gptjax import (
    GLM,
    UL2,
    DecoderConfig,
    Denoising,
    EncoderConfig,
    EncoderDecoderConfig,
    MaskedLM,
    MultiTask,
    PrefixLM,
    SpanCorruption,
    TaskModulesConfig,
)
from gptjax.data.tokenizers import ByteTokenizer
from gptjax.errors import BadInput
from gptjax.evaluation.blanks import Asked, _behind, answers, blank_lines
from gptjax.evaluation.forms import form_of, form_of_checkpoint
from gptjax.evaluation.sampling import Sampling
from gptjax.evaluation.texts import Text
from gptjax.models.build import init_params, model_of
from gptjax.models.stack import logits
from gptjax.objectives import PermutationLM
from gptjax.objectives.blanks import Spans, _row
from gptjax.objectives.corruption import parts_of

LENGTH = 64
SMALL = {"vocab_size": 300, "context_length": 96, "num_layers": 1, "d_model": 16, "num_heads": 2}
SMALL |= {"tied_embeddings": False, "init": "fan_in"}
MODELS = {
    "decoder": DecoderConfig(**SMALL, positions="learned_blocks"),
    "encoder": EncoderConfig(**SMALL),
    "encoder_decoder": EncoderDecoderConfig(**SMALL, positions="rotary"),
}
TEXT = "def length(self):\n    return self.high - self.low  # both of them, as ever, and more of it"
GREEDY = Sampling(temperature=0.0)


def form(objective, family):
    return form_of(MODELS[family], objective, ByteTokenizer(), LENGTH)


def trained_row(objective, family, seed=0):
    """A row of training, and the text of its window."""
    made = form(objective, family)
    raw = objective.lengths(LENGTH, family)
    ids = ByteTokenizer().encode(TEXT)[: raw.raw + raw.overlap]
    transform = objective.transform(LENGTH, family, made.vocabulary)
    rng = np.random.Generator(np.random.Philox(seed))
    return made, transform(ids, rng, lambda rng, n: ids[:n]), TEXT[: raw.raw]


@functools.cache
def params_of(config):
    return jax.jit(lambda: init_params(config, jax.random.key(1)))()


PAIRS = [
    (objective, family)
    for objective in (SpanCorruption(), UL2(), Denoising(), PrefixLM())
    for family in objective.families
]


@pytest.mark.parametrize(("objective", "family"), PAIRS)
def test_a_prompt_is_what_training_shows_and_the_answer_gives_the_text_back(objective, family):
    made, row, text = trained_row(objective, family)
    source, targets = parts_of(row)
    if made.kind == "continuation" and family == "decoder":
        prompt = made.prompt(made.shown(source.tolist()), begin="none")
        assert prompt.given.prefix == len(source) and prompt.given.tokens.tolist() == list(source)
        return
    shown = made.shown(source.tolist())
    modes = {i: name for name, i in (made.modes or {}).items()}
    prompt = made.prompt(modes.get(int(source[0]), "") + shown, begin="none")
    np.testing.assert_array_equal(made.source(prompt), source)
    if family == "encoder_decoder":
        assert prompt.given.tokens.tolist() == [row["tokens"][0]]
    if made.kind == "continuation":
        return
    tokens = targets[:-1] if made.kind == "spans" else targets
    answer = made.read(Text(prompt, 0, made.shown(tokens.tolist()), tokens, "end"))
    assert answer.text == text and len(answer.blanks) >= 1
    rest = shown
    for name, fill in answer.blanks:
        rest = rest.replace(name, fill, 1)
    assert rest == text and answer.record()["blanks"]


def test_an_answer_that_ran_on_is_cut_where_the_prompt_ends():
    made = form(Denoising(), "encoder_decoder")
    prompt = made.prompt("a [MASK] b [MASK] c.")
    answer = made.read(Text(prompt, 0, "a x b y z c. and on", np.zeros(3, np.int32), "length"))
    assert answer.text == "a x b y z c." and answer.blanks == (("[MASK]", "x"), ("[MASK]", "y z"))
    other = made.read(Text(prompt, 0, "something else", np.zeros(3, np.int32), "length"))
    assert other.text == "something else" and other.blanks == ()


def test_blanks_of_glm_stand_as_in_training():
    made = form(GLM(document_share=0.5, sentence_share=0.2), "decoder")
    v, ids = made.vocabulary, ByteTokenizer().encode(TEXT)[:40]
    lengths = GLM(document_share=0.5).lengths(LENGTH, "decoder")._replace(predicted=32)
    spans = Spans(np.array([4, 20]), np.array([6, 3]))
    in_order = SimpleNamespace(permutation=np.arange)
    row = _row(ids, spans, in_order, v.id("mask"), v, lengths)
    prompt = made.prompt(TEXT[:4] + "[MASK]" + TEXT[10:20] + "[MASK]" + TEXT[23:40], begin="none")
    first = made.source(prompt)
    places = np.flatnonzero(first == v.id("mask"))
    fills = [ids[4:10], ids[20:23]]
    given = _behind(first, places, fills[:1], v.id("sop"))
    count = len(given.tokens)
    np.testing.assert_array_equal(given.tokens, row["tokens"][:count])
    np.testing.assert_array_equal(given.positions, row["positions"][:count])
    np.testing.assert_array_equal(given.blocks, row["block_positions"][:count])
    assert given.prefix == row["prefix"].sum() == len(first)
    assert made.shown(made.source(made.prompt("ab"))[-3:].tolist()) == "ab[gMASK]"


def test_glm_fills_one_blank_after_another():
    made = form(GLM(), "decoder")
    asked = Asked(MODELS["decoder"], params_of(MODELS["decoder"]), made)
    prompts = [made.prompt("one [MASK] three [MASK]."), made.prompt("one [MASK]")]
    texts = answers(asked, prompts, 3, GREEDY)
    assert [len(text.blanks) for text in texts] == [2, 1]
    for text, before in zip(texts, ("one {} three {}.", "one {}"), strict=True):
        assert text.text == before.format(*(fill for _, fill in text.blanks))
    alone = answers(asked, prompts[:1], 3, GREEDY)
    assert alone[0].tokens.tolist() == texts[0].tokens.tolist()


def test_an_encoder_fills_masks_with_what_is_likeliest():
    config = MODELS["encoder"]
    made = form(MaskedLM(), "encoder")
    asked = Asked(config, params_of(config), made)
    prompts = [made.prompt("a [MASK] c [MASK]"), made.prompt("[MASK]")]
    texts = answers(asked, prompts, 9, GREEDY)
    for prompt, text in zip(prompts, texts, strict=True):
        out = model_of(config).apply({"params": params_of(config)}, prompt.ids[None])
        places = np.flatnonzero(prompt.ids == made.vocabulary.id("mask"))
        scores = np.asarray(logits(out))[0, places, : asked.tokenizer.vocab_size]
        np.testing.assert_array_equal(text.tokens, scores.argmax(-1))
        assert text.row.top_ids.shape == (len(places), 5)
        lines = blank_lines(asked, text)
        assert len(lines) == len(places) and all(line.startswith("[MASK]  ") for line in lines)
    with pytest.raises(BadInput, match="leave out beams and samples"):
        answers(asked, prompts, 9, GREEDY, num_samples=2)


def test_a_model_of_two_tasks_fills_masks_and_goes_on_otherwise():
    config, tokenizer = TaskModulesConfig(**SMALL, task_layers=1), ByteTokenizer()
    assert form_of(config, MultiTask(), tokenizer, LENGTH, ["ab"]) is None
    made = form_of(config, MultiTask(), tokenizer, LENGTH, ["ab", "a [MASK] c"])
    asked = Asked(config, params_of(config), made)
    prompt = made.prompt("a [MASK] c")
    text = answers(asked, [prompt], 9, GREEDY)[0]
    out = model_of(config).apply({"params": params_of(config)}, source_BS=prompt.ids[None])
    place = np.flatnonzero(prompt.ids == made.vocabulary.id("mask"))
    scores = np.asarray(logits(out))[0, place, : asked.tokenizer.vocab_size]
    np.testing.assert_array_equal(text.tokens, scores.argmax(-1))
    assert text.text.startswith("a ") and text.text.endswith(" c")


@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
def test_models_of_spans_answer(family):
    made = form(SpanCorruption(), family)
    asked = Asked(MODELS[family], params_of(MODELS[family]), made)
    options = {"beams": 3} if family == "decoder" else {}
    text = answers(asked, [made.prompt("a <extra_id_0> b")], 6, GREEDY, **options)[0]
    assert text.text.startswith("a ") and text.text.endswith(" b") and len(text.tokens) <= 6


@pytest.mark.parametrize(
    ("objective", "family", "prompt", "words"),
    [
        (SpanCorruption(), "decoder", "a [MASK] b", r"\[MASK\], and blanks .* <extra_id_0>"),
        (UL2(), "decoder", "a <extra_id_99> b", "<extra_id_99>, and blanks of this model are"),
        (SpanCorruption(), "decoder", "<extra_id_0><extra_id_1>", "touch each other"),
        (PrefixLM(), "decoder", "a [MASK] b", "fills no blanks, it goes on"),
        (MaskedLM(), "encoder", "a b", r"the prompt holds no \[MASK\]"),
        (MaskedLM(), "encoder", "[MASK]" * 99, "of 100 tokens is longer than the context of 96"),
        (GLM(), "decoder", "a [gMASK]", r"blanks of this model are \[MASK\]"),
        (PrefixLM(), "decoder", "a" * 97, "leaves no room in a context of 96"),
    ],
)
def test_what_a_model_cannot_do_is_one_line(objective, family, prompt, words):
    with pytest.raises(BadInput, match=words):
        form(objective, family).prompt(prompt)


def test_an_objective_without_text_is_refused():
    with pytest.raises(BadInput, match="'permutation_lm' neither goes on"):
        form_of(MODELS["encoder"], PermutationLM(), ByteTokenizer(), LENGTH)


NAMES = ["<pad>", "</s>", "<s>", "<mask>", "<extra_id_0>", "<extra_id_1>", "<|endoftext|>"]
PLACES = {name: 256 + i for i, name in enumerate(NAMES)}


@pytest.fixture
def checkpoint(tmp_path):
    """The form of a folder in the layout of transformers, with these ids in its config."""
    pytest.importorskip("tokenizers")
    from gptjax.data.tokenizers import byte_bpe, export_tokenizer, read_tokenizer
    from gptjax.data.tokenizers.huggingface import byte_alphabet

    def make(config, without=(), **ids):
        names = [name for name in NAMES if name not in without]
        export_tokenizer(byte_bpe([*byte_alphabet(), *names], []), tmp_path)
        (tmp_path / "config.json").write_text(json.dumps(ids))
        return form_of_checkpoint(config, read_tokenizer(tmp_path), f"hf:{tmp_path}")

    return make


def test_t5_is_asked_with_sentinels_and_its_ids(checkpoint):
    made = checkpoint(
        MODELS["encoder_decoder"], model_type="t5", decoder_start_token_id=256, eos_token_id=257
    )
    prompt = made.prompt("a<extra_id_0>b")
    assert made.source(prompt).tolist() == [97 - 33, PLACES["<extra_id_0>"], 98 - 33, 257]
    assert prompt.given.tokens.tolist() == [256] and made.end == 257
    plain = made.prompt("ab")
    assert made.source(plain).tolist() == [64, 65, 257]  # a task in words gets no blank
    answer = made.read(Text(plain, 0, "ba", np.array([65, 64]), "end"))
    assert answer.text == "ba" and answer.blanks is None


def test_bart_is_asked_between_its_marks_and_bert_with_its_mask(checkpoint):
    sentinels = [name for name in NAMES if "extra" in name]
    made = checkpoint(
        MODELS["encoder_decoder"], sentinels, model_type="bart", bos_token_id=258,
        decoder_start_token_id=257, eos_token_id=[257],
    )  # fmt: skip
    prompt = made.prompt("a<mask>")
    assert made.kind == "whole" and made.source(prompt).tolist() == [258, 64, 259, 257]
    assert prompt.given.tokens.tolist() == [257]
    config = EncoderConfig(**SMALL, head="transform")
    made = checkpoint(config, sentinels)
    assert made.prompt("a<mask>").ids.tolist() == [64, 259]
    with pytest.raises(BadInput, match="it has no \\[MASK\\] in its vocabulary"):
        checkpoint(config, [*sentinels, "<mask>"])
    with pytest.raises(BadInput, match="no decoder_start_token_id"):
        checkpoint(MODELS["encoder_decoder"])
