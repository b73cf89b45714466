"""Vectors of texts from tiny encoders: padding and batches change nothing; refusals."""

import types

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gptjax import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from gptjax.data.tokenizers import ByteTokenizer
from gptjax.errors import BadInput
from gptjax.evaluation.embeddings import sentence_embeddings
from gptjax.models.build import init_params, model_of
from gptjax.models.config import EmbeddingConfig
from gptjax.parallel import MeshConfig, make_mesh

SIZES = {"vocab_size": 257, "context_length": 48, "num_layers": 1, "d_model": 16, "num_heads": 2}
TEXTS = ["one", "a longer text", "été", "one", "x"]


def source(config):
    params = jax.jit(lambda: init_params(config, jax.random.key(0)))()
    return types.SimpleNamespace(config=config, params=params, tokenizer=ByteTokenizer())


@pytest.mark.parametrize("kind", [EncoderConfig, EncoderDecoderConfig])
def test_a_vector_is_the_normed_mean_of_a_text_s_tokens(kind):
    model = source(kind(**SIZES, init="fan_in"))
    found = sentence_embeddings(model, TEXTS, length=10, batch_size=2)
    assert found.shape == (5, 16) and np.allclose(np.linalg.norm(found, axis=-1), 1)
    assert np.allclose(found[0], found[3], atol=1e-6)
    ids = np.array([*model.tokenizer.encode(TEXTS[1])[:9], model.tokenizer.separator_id])[None]
    module = model_of(model.config)
    read = {"source_BS": ids} if kind is EncoderDecoderConfig else {"tokens_BT": ids}
    said = jax.jit(lambda params, read: module.apply({"params": params}, **read))(
        model.params, read
    )
    states = np.asarray(said if kind is EncoderDecoderConfig else said.states_BTD)[0]
    mean = states.mean(0)
    assert np.allclose(found[1], mean / np.linalg.norm(mean), atol=1e-5)


def test_a_mesh_that_does_not_divide_the_texts():
    model = source(EncoderConfig(**SIZES, init="fan_in"))
    found = sentence_embeddings(model, TEXTS, length=16)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2))
    params = jax.device_put(model.params, NamedSharding(mesh, PartitionSpec()))
    spread = types.SimpleNamespace(**{**vars(model), "params": params})
    assert np.allclose(sentence_embeddings(spread, TEXTS, length=16), found, atol=1e-6)


def test_a_model_is_named_by_where_it_is(tmp_path):
    """The context is shorter than the usual length, and so the length is all of it."""
    pytest.importorskip("tokenizers")
    pytest.importorskip("safetensors")
    from gptjax.interop import export

    embedding = EmbeddingConfig(norm=True, types=2, head_bias=True)
    model = source(EncoderConfig(**SIZES, block="post", init="fan_in", embedding=embedding))
    export(model.config, model.params, tmp_path / "out", tokenizer=model.tokenizer)
    found = sentence_embeddings(f"hf:{tmp_path / 'out'}", ["one", "été"])
    assert np.allclose(found, sentence_embeddings(model, ["one", "été"], length=48), atol=1e-6)
    line = r'no experiment.json .* give hf:.*, in Python gptjax.interop.load\("hf:.*out"\)$'
    with pytest.raises(BadInput, match=line):
        sentence_embeddings(tmp_path / "out", TEXTS)


def test_what_gives_no_vectors_is_one_line():
    model = types.SimpleNamespace(
        config=EncoderConfig(**SIZES), params={}, tokenizer=ByteTokenizer()
    )
    decoder = types.SimpleNamespace(config=DecoderConfig(**SIZES), params={}, tokenizer=None)
    with pytest.raises(BadInput, match="by encoders, and this model is a decoder"):
        sentence_embeddings(decoder, TEXTS)
    with pytest.raises(BadInput, match=r"^length is 49; give 3 to 48 tokens$"):
        sentence_embeddings(model, TEXTS, length=49)
    with pytest.raises(BadInput, match=r"^batch_size is 0; give 1 or more texts$"):
        sentence_embeddings(model, TEXTS, batch_size=0)
    with pytest.raises(BadInput, match="texts is one text; give a list"):
        sentence_embeddings(model, "one")
    with pytest.raises(BadInput, match="text 1 is 2; give strings"):
        sentence_embeddings(model, ["one", 2])
    model.tokenizer.special = {}
    with pytest.raises(BadInput, match="text 1 has no token: ''"):
        sentence_embeddings(model, ["a", ""], length=8)
    model.tokenizer = None
    with pytest.raises(BadInput, match="need a tokenizer, and this model has none"):
        sentence_embeddings(model, TEXTS)
