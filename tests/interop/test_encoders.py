"""Encoders and encoder-decoders of others: which heads there are, older files, both stacks."""

import dataclasses
import math

import jax
import numpy as np
import pytest

pytest.importorskip("safetensors")

from gptjax import DataConfig, DecoderConfig, Experiment, MaskedLM, TrainConfig, get
from gptjax.data.tokenizers import ByteTokenizer
from gptjax.errors import BadInput
from gptjax.interop import FAMILIES, export, load, read_config
from gptjax.interop.__main__ import main
from gptjax.interop.exporting import choose
from gptjax.interop.fields import Fields
from gptjax.interop.start import starting_from
from gptjax.models.build import empty_cache, model_of
from gptjax.models.config import AttentionConfig, EmbeddingConfig
from gptjax.models.kinds import EncoderConfig, EncoderDecoderConfig
from gptjax.models.stack import logits
from gptjax.parallel import MeshConfig, make_mesh
from gptjax.scaling.flops import count_parameters
from gptjax.training.state import abstract_params
from tests.interop.conftest import NAMES, assert_close, computed, same, stored, write

OURS = [name for name in NAMES if FAMILIES[stored(name)[0]["model_type"]].kinds[0] != "decoder"]


@pytest.mark.parametrize("name", OURS)
def test_the_ledger_counts_what_a_checkpoint_holds(name, tmp_path):
    config, tensors, _, _ = stored(name)
    found = read_config(f"hf:{write(tmp_path, config, tensors)}")
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(found))]
    held = sum(tensor.size for tensor in tensors.values())
    assert count_parameters(found).total == sum(sizes) == held


def test_heads_are_told_by_tensors_under_old_names_too(folder, tmp_path):
    """As bert-base-uncased stands on its hub: another class, gamma and beta, buffers, copies."""
    config, tensors, _, _ = stored("bert")
    old = {k.replace("LayerNorm.weight", "LayerNorm.gamma"): v for k, v in tensors.items()}
    old = {k.replace("LayerNorm.bias", "LayerNorm.beta"): v for k, v in old.items()}
    old["bert.embeddings.position_ids"] = np.arange(13)[None]
    old["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].copy()
    old["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].copy()
    path = write(tmp_path / "old", config | {"architectures": ["BertForMaskedLM"]}, old)
    found = load(f"hf:{path}")
    assert (found.config.pooler, found.config.classes) == ("first", 2)
    assert same(found.params, load(f"hf:{folder('bert')[0]}").params)
    old["cls.predictions.decoder.bias"][3] += 1
    with pytest.raises(BadInput, match=r"decoder\.bias' differs from 'cls\.predictions\.bias'"):
        load(f"hf:{write(path, config, old)}")
    pairs = {k: v for k, v in tensors.items() if not k.startswith("cls.predictions")}
    alone = load(f"hf:{write(tmp_path / 'pairs', config, pairs)}")
    assert alone.config.head == "plain" and alone.config.classes == 2
    assert same(alone.params["classes"], tensors["cls.seq_relationship.weight"].T)


def test_an_untied_head_has_the_bias_beside_it(tmp_path):
    config, tensors, _, _ = stored("roberta")
    head = tensors["roberta.embeddings.word_embeddings.weight"].copy()
    more = {"lm_head.decoder.weight": 2 * head, "lm_head.decoder.bias": tensors["lm_head.bias"] + 1}
    path = write(tmp_path / "m", config | {"tie_word_embeddings": False}, tensors | more)
    found = load(f"hf:{path}")
    assert same(found.params["head"], 2 * head)
    assert same(found.params["head_bias"], tensors["lm_head.bias"] + 1)
    export(found.config, found.params, tmp_path / "out", family="roberta")
    assert same(load(f"hf:{tmp_path / 'out'}").params, found.params)


def test_the_head_of_t5_is_told_by_its_tensors(tmp_path):
    config, tensors, _, _ = stored("t5")
    twice = tensors | {"lm_head.weight": tensors["shared.weight"].copy()}
    twice |= {"encoder.embed_tokens.weight": tensors["shared.weight"].copy()}
    assert load(f"hf:{write(tmp_path / 'm', config, twice)}").config.tied_embeddings
    other = twice | {"lm_head.weight": 2 * tensors["shared.weight"]}
    found = load(f"hf:{write(tmp_path / 'm', config, other)}").config
    assert not found.tied_embeddings and found.embedding.logit_scale == 12**-0.5
    twice["encoder.embed_tokens.weight"][0, 0] += 1
    with pytest.raises(BadInput, match=r"'encoder\.embed_tokens\.weight' differs from 'shared"):
        load(f"hf:{write(tmp_path / 'm', config, twice)}")


@pytest.mark.parametrize(
    "name,changes,scaled",
    [
        ("t5", {"scale_decoder_outputs": None}, True),
        ("t5", {"scale_decoder_outputs": None, "tie_word_embeddings": False}, False),
        ("t5", {"scale_decoder_outputs": False, "tie_word_embeddings": True}, False),
        ("mt5", {"transformers_version": "4.40.1"}, True),
        ("mt5", {"transformers_version": "4.40.1", "tie_word_embeddings": False}, False),
        ("mt5", {"tie_word_embeddings": True}, False),
        ("umt5", {"tie_word_embeddings": False}, False),
    ],
)
def test_which_logits_are_scaled(name, changes, scaled):
    config = stored(name)[0] | changes
    found = FAMILIES[name].read(Fields(config, "config.json"))
    assert found.embedding.logit_scale == (12**-0.5 if scaled else 1.0)


def test_stacked_layers_of_both_stacks(folder, tmp_path):
    path, inputs, wanted = folder("umt5")
    config = dataclasses.replace(read_config(f"hf:{path}"), layers="scan")
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2))
    found = load(f"hf:{path}", config=config, mesh=mesh)
    assert "layers" in found.params["encoder"] and "layers" in found.params["decoder"]
    inputs = {key: np.concatenate([value, value]) for key, value in inputs.items()}
    wanted = {key: np.concatenate([value, value]) for key, value in wanted.items()}
    assert_close(computed(found, inputs, mesh), wanted)
    export(config, found.params, tmp_path / "out")
    assert same(load(f"hf:{tmp_path / 'out'}").params, load(f"hf:{path}").params)


def test_decoding_with_biases_in_every_layer(folder):
    """A cache gives the logits of the whole text, where every layer has a table of its own."""
    path, inputs, wanted = folder("umt5")
    found = load(f"hf:{path}")
    model = model_of(found.config)
    read = {"source_BS": inputs["source"], "source_segments_BS": inputs["mask"] - 1}
    with jax.set_mesh(make_mesh(MeshConfig(data=1))):
        cache, parts = empty_cache(found.config.decoder, 2, 9), []
        step = jax.jit(
            lambda cache, t: model.apply({"params": found.params}, t, cache=cache, **read)
        )
        for start in range(0, 9, 3):
            out = step(cache, inputs["tokens"][:, start : start + 3])
            cache = out.cache
            parts.append(np.asarray(logits(out)))
    assert_close(np.concatenate(parts, 1), wanted["logits"])


@pytest.mark.parametrize(
    "name,changes,line",
    [
        ("bert", {"is_decoder": True}, "is_decoder is True, which no model here has"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type is 'rel"),
        ("roberta", {"hidden_act": "relu"}, "hidden_act is 'relu'.*known: gelu$"),
        ("bart", {"decoder_attention_heads": 3}, "heads is 2 and decoder_attention_heads is 3"),
        ("bart", {"normalize_before": True}, "normalize_before is True"),
        ("t5", {"feed_forward_proj": "gated-relu"}, "feed_forward_proj is 'gated-relu', which no"),
        ("t5", {"dense_act_fn": "gelu"}, "dense_act_fn is 'gelu'.*'relu' is read"),
        ("t5", {"num_decoder_layers": 3}, "lacks the tensor 'decoder.block.2.layer.0.layer_norm"),
        ("ernie", {"use_task_id": False}, "task_type_embeddings.weight', which this model has no"),
    ],
)
def test_what_no_model_here_has_is_refused(name, changes, line, folder):
    with pytest.raises(BadInput, match=line) as error:
        load(f"hf:{folder(name, **changes)[0]}")
    assert "\n" not in str(error.value)


BERT = EncoderConfig(
    block="post", pooler="first", embedding=EmbeddingConfig(norm=True, types=2, head_bias=True)
)
T5 = EncoderDecoderConfig(
    positions="relative_bias",
    norm="rmsnorm",
    biases="none",
    attention=AttentionConfig(scale="one"),
    embedding=EmbeddingConfig(logit_scale=128**-0.5),
)


def test_the_family_that_computes_the_same_is_found():
    def bert(**changes):
        return dataclasses.replace(BERT, **changes)

    def t5_scaled(scale):
        return dataclasses.replace(T5, embedding=EmbeddingConfig(logit_scale=scale))

    assert choose(BERT).name == "bert" and choose(bert(classes=2)).name == "bert"
    no_bias = dataclasses.replace(BERT.embedding, head_bias=False)
    assert choose(bert(embedding=no_bias)).name == "bert"
    moved = dataclasses.replace(BERT.embedding, position_offset=2)
    assert choose(bert(embedding=moved, activation="gelu_erf")).name == "roberta"
    bare = dataclasses.replace(BERT.embedding, norm=False)
    assert choose(bert(embedding=bare, block="pre")).name == "megatron-bert"
    tasks = dataclasses.replace(BERT.embedding, tasks=3)
    assert choose(bert(embedding=tasks)).name == "ernie"
    assert choose(T5).name == "t5" and choose(t5_scaled(0.088388348)).name == "t5"
    layer = dataclasses.replace(T5.attention, bias_tables="layer")
    assert choose(dataclasses.replace(T5, attention=layer)).name == "umt5"
    for config, line in {
        bert(classes=3): "no family of checkpoints has",
        bert(positions="rotary"): r"has model\.positions = 'rotary'",
        dataclasses.replace(T5, num_kv_heads=2): r"has model\.num_kv_heads = 2",
        t5_scaled(0.09): r"logit_scale = 0\.09 \(nearest: t5, with .*logit_scale = 0\.0883883",
        t5_scaled(1.1): r"logit_scale = 1\.1 \(nearest: t5, with .*logit_scale = 1\.0\)",
        # What is not even a BERT's kind of parameter, and another reason of another family.
        get(
            "bert_quick"
        ).model: r"bert, nearest, has no model\.positions = 'rotary'; model\.norm = ",
    }.items():
        with pytest.raises(BadInput, match=line):
            choose(config)
    with pytest.raises(BadInput, match=r"gpt2 has no model\.kind = 'encoder'"):
        choose(BERT, "gpt2")


def test_padding_that_is_not_the_tokenizer_s(folder, tmp_path):
    found = load(f"hf:{folder('roberta')[0]}")
    words = ByteTokenizer()
    words.special = {"pad": 5}
    with pytest.raises(BadInput, match=r"from the id of the padding.* 5, .* is 1"):
        export(found.config, found.params, tmp_path / "out", tokenizer=words, family="roberta")


def test_a_run_begins_with_an_encoder_of_others(folder):
    config = dataclasses.replace(BERT, d_model=12, dropout=0.1)
    data = DataConfig(sequence_length=11)
    train = TrainConfig(steps=1)
    given = Experiment(name="x", model=config, data=data, train=train, objective=MaskedLM())
    source = f"hf:{folder('bert_masked')[0]}"
    found = starting_from(given, source, ["model.d_model"]).model
    assert (found.kind, found.activation, found.dropout) == ("encoder", "relu", 0.1)
    other = dataclasses.replace(given, model=DecoderConfig())
    with pytest.raises(BadInput, match=r"model\.kind = 'decoder', there 'encoder'$"):
        starting_from(other, source, ["model.d_model"])


def test_the_command_shows_them(folder, capsys):
    assert main(["show", f"hf:{folder('bart')[0]}"]) == 0
    shown = capsys.readouterr().out
    assert "model.kind = encoder_decoder" in shown and "model.decoder_layers = 2" in shown
