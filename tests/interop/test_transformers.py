"""Against transformers itself, where it is installed: what it loads of ours, gradients, tricks."""

import dataclasses
import json

import jax
import numpy as np
import pytest

pytest.importorskip("safetensors")
pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers

from gptjax.interop import FAMILIES, export, load
from gptjax.models.build import model_of
from gptjax.models.config import AttentionConfig, DecoderConfig
from gptjax.models.decoder import Decoder
from gptjax.models.stack import logits
from gptjax.parallel import MeshConfig, make_mesh
from tests.interop import peers
from tests.interop.conftest import assert_close, computed, random_params


def loaded(folder, name: str = ""):
    """What transformers makes of a folder."""
    config = json.loads((folder / "config.json").read_text())
    auto = transformers.AutoModelForCausalLM
    if name == "imagegpt" or FAMILIES[config["model_type"]].kinds != ("decoder",):
        auto = getattr(transformers, config["architectures"][0])
    return auto.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.mark.parametrize("name", peers.PEERS)
def test_in_and_out(name, tmp_path):
    """Random weights of another seed than the stored ones."""
    theirs = peers.model(name, seed=5)
    found = load(f"hf:{peers.save(theirs, tmp_path / 'theirs')}")
    shape = {"rows": 3, "length": 13 if name != "mistral" else 12}
    if found.config.kind not in ("decoder", "two_stream"):
        shape = {}  # as of the stored ones, whose programs are compiled already
    tokens = peers.tokens_of(name, seed=6, **shape)
    wanted = peers.logits_of(theirs, tokens)
    assert_close(computed(found, tokens), wanted)
    export(found.config, found.params, tmp_path / "ours")
    again = loaded(tmp_path / "ours", name)
    assert type(again) is type(theirs) or found.config.kind != "encoder"
    assert_close(peers.logits_of(again, tokens), wanted)


SMALL = {"vocab_size": 37, "context_length": 13, "num_layers": 2, "d_model": 12, "num_heads": 3}
LLAMA = {"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu", "biases": "none"}
UNUSUAL = {
    "gpt2": {"attention": AttentionConfig(scale="one"), "activation": "gelu_erf", "d_ff": 20},
    "gpt_neox": {"positions": "rotary", "norm_epsilon": 1e-3},
    "llama": LLAMA | {"activation": "geglu", "num_kv_heads": 1, "layers": "scan"},
    "opt": {
        "block": "post",
        "embedding": dataclasses.replace(DecoderConfig().embedding, position_offset=2),
    },
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_written_of_our_own_is_loaded_by_transformers(name, tmp_path):
    config = DecoderConfig(**(SMALL | UNUSUAL[name]))
    assert export(config, random_params(config), tmp_path / "ours").name == name
    tokens = peers.tokens_of(name)
    found = load(f"hf:{tmp_path / 'ours'}")
    assert_close(peers.logits_of(loaded(tmp_path / "ours"), tokens), computed(found, tokens))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_gradients_of_the_loss(name, tmp_path):
    theirs = peers.model(name)
    found = load(f"hf:{peers.save(theirs, tmp_path / 'theirs')}")
    tokens = peers.tokens_of(name)
    wide = torch.tensor(tokens.astype(np.int64))
    theirs(wide, labels=wide).loss.backward()

    def loss(params):
        scores = logits(Decoder(found.config).apply({"params": params}, tokens))[:, :-1]
        chosen = jax.nn.one_hot(tokens[:, 1:], scores.shape[-1])
        return -(jax.nn.log_softmax(scores) * chosen).sum() / chosen.sum()

    with jax.set_mesh(make_mesh(MeshConfig(data=1))):
        ours = jax.jit(jax.grad(loss))(jax.tree.map(np.asarray, found.params))
    export(found.config, ours, tmp_path / "gradients")
    gradients = dict(loaded(tmp_path / "gradients").named_parameters())
    for key, parameter in theirs.named_parameters():
        scale = float(parameter.grad.abs().max())
        apart = float((gradients[key].detach() - parameter.grad).abs().max())
        assert apart < 1e-5 * max(scale, 0.1), key


def test_alternating_windows_of_gpt3(tmp_path):
    """GPT-2 whose second layer gets the mask of a band, as GPT-3's layers alternate."""
    theirs = peers.model("gpt2")
    found = load(f"hf:{peers.save(theirs, tmp_path / 'theirs')}")
    config = dataclasses.replace(found.config, attention=AttentionConfig(pattern="causal/window:4"))
    tokens = peers.tokens_of("gpt2")
    away = torch.arange(11)[:, None] - torch.arange(11)[None, :]
    seen = (away >= 0) & (away < 4)
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]

    def banded(module, given, named):
        given = list(given)
        if "attention_mask" in named:
            return tuple(given), named | {"attention_mask": mask}
        raise AssertionError("the mask is not passed by name")

    theirs.transformer.h[1].attn.register_forward_pre_hook(banded, with_kwargs=True)
    wanted = peers.logits_of(theirs, tokens)
    assert_close(computed(dataclasses.replace(found, config=config), tokens), wanted)


def test_recurrence_of_transformer_xl(tmp_path):
    """XLNet from left to right, fed segment by segment with the states of the one before."""
    theirs = peers.model("xlnet", mem_len=5, use_mems_eval=True)
    found = load(f"hf:{peers.save(theirs, tmp_path / 'theirs')}")
    assert found.config.attention.memory == 5
    tokens = peers.tokens_of("xlnet", length=15)
    parts, mems = [], None
    with torch.no_grad():
        for start in range(0, 15, 5):
            out = theirs(torch.tensor(tokens[:, start : start + 5].astype(np.int64)), mems=mems)
            mems = out.mems
            parts.append(out.logits.numpy())
    assert_close(computed(found, tokens), np.concatenate(parts, 1))


def test_xlnet_in_a_random_order(tmp_path):
    """Both streams: predicted places by a mask of permutations, types, and content alone."""
    theirs = peers.model("xlnet", attn_type="bi")
    found = load(f"hf:{peers.save(theirs, tmp_path / 'theirs')}")
    assert found.config.kind == "two_stream"
    tokens = peers.tokens_of("xlnet", rows=2, length=13)
    rng = np.random.default_rng(0)
    at = np.sort(np.stack([rng.permutation(13)[:5] for _ in range(2)]), 1).astype(np.int32)
    order = np.zeros((2, 13), np.int32)
    np.put_along_axis(order, at, np.stack([rng.permutation(5) + 1 for _ in range(2)]), 1)
    types = rng.integers(0, 2, (2, 13))
    hidden = (order[:, None, :] > 0) & (order[:, None, :] >= order[:, :, None])
    given = {
        "perm_mask": torch.tensor(hidden).float(),
        "target_mapping": torch.nn.functional.one_hot(torch.tensor(at).long(), 13).float(),
        "token_type_ids": torch.tensor(types),
    }
    wide = torch.tensor(tokens.astype(np.int64))
    with torch.no_grad():
        wanted = theirs(wide, **given).logits.numpy()
        plain = theirs(wide).logits.numpy()
    apply = lambda **more: logits(model_of(found.config).apply({"params": params}, tokens, **more))
    with jax.set_mesh(make_mesh(MeshConfig(data=1))):
        params = jax.tree.map(np.asarray, found.params)
        named = {"order_BT": order, "types_BT": types.astype(np.int32), "at_BP": at}
        assert_close(np.asarray(apply(**named)), wanted)
        assert_close(np.asarray(apply()), plain)
    export(found.config, found.params, tmp_path / "ours")
    again = transformers.XLNetLMHeadModel.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        assert_close(again(wide, **given).logits.numpy(), wanted)
