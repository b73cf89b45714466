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


def test_what_gives_no_vectors_is_one_line():
    model = types.SimpleNamespace(
        config=EncoderConfig(**SIZES), params={}, tokenizer=ByteTokenizer()
    )
    decoder = types.SimpleNamespace(config=DecoderConfig(**SIZES), params={}, tokenizer=None)
    with pytest.raises(BadInput, match="by encoders, and this model is a decoder"):
        sentence_embeddings(decoder, TEXTS)
    with pytest.raises(BadInput, match="length is 49 and batch_size 32; give 3 to 48 tokens"):
        sentence_embeddings(model, TEXTS, length=49)
    model.tokenizer.special = {}
    with pytest.raises(BadInput, match="text 1 has no token: ''"):
        sentence_embeddings(model, ["a", ""], length=8)
    model.tokenizer = None
    with pytest.raises(BadInput, match="need a tokenizer, and this model has none"):
        sentence_embeddings(model, TEXTS)
