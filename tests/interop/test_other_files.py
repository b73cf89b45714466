"""The same models in the files of others: Meta's, GGUF, and GPT-2 as TensorFlow saved it."""

import json
import os
import pickle
import shutil

import jax
import numpy as np
import pytest

pytest.importorskip("safetensors")

from safetensors.numpy import save_file

from gptjax.errors import BadInput
from gptjax.interop import load
from gptjax.parallel import MeshConfig, make_mesh
from tests.interop.conftest import REFERENCES, assert_close, computed, same, stored, write
from tests.interop.make_references import HPARAMS, tensorflow_names


def neighbours(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys in the order in which neighbouring components turn together."""
    size = matrix.shape[0] // heads
    halves = matrix.reshape(heads, 2, size // 2, -1)
    return np.stack([halves[:, 0], halves[:, 1]], 2).reshape(matrix.shape)


META = {
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers": "layers",
}
GGUF = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.down_proj": "ffn_down",
    "mlp.up_proj": "ffn_up",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers": "blk",
}


def renamed(tensors: dict, names: dict) -> dict:
    """LLaMA's tensors by other names, queries and keys for neighbours that turn."""
    made = {}
    for key, value in tensors.items():
        if "q_proj" in key or "k_proj" in key:
            value = neighbours(value, 2 if "q_proj" in key else 1)
        for old, new in names.items():
            key = key.replace(old, new)
        made[key] = np.ascontiguousarray(value)
    return made


def test_meta_s_own_files(tmp_path):
    config, tensors, tokens, wanted = stored("llama")
    params = {"dim": 12, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "vocab_size": -1}
    params |= {"norm_eps": config["rms_norm_eps"], "rope_theta": 500.0}
    params |= {"multiple_of": 10, "ffn_dim_multiplier": 0.5}
    save_file(renamed(tensors, META), tmp_path / "consolidated.safetensors")
    (tmp_path / "params.json").write_text(json.dumps(params))
    found = load(f"meta:{tmp_path}")
    assert (found.config.d_ff, found.config.vocab_size) == (20, 37)
    assert_close(computed(found, tokens), wanted)
    for more, line in {
        "yarn": r"yarn is \{'factor': 8\}, which no model here has",
        "use_biases": "use_biases is {'factor': 8}, which no model here has; False is read",
        "rope_tetha": "did you mean 'rope_theta'",
    }.items():
        (tmp_path / "params.json").write_text(json.dumps(params | {more: {"factor": 8}}))
        with pytest.raises(BadInput, match=line):
            load(f"meta:{tmp_path}")
    headless = renamed(tensors, META)
    del headless["output.weight"]
    save_file(headless, tmp_path / "consolidated.safetensors")
    (tmp_path / "params.json").write_text(json.dumps(params | {"max_batch_size": 8, "yarn": None}))
    with pytest.raises(BadInput, match=r"lacks the tensor 'output\.weight'"):
        load(f"meta:{tmp_path}")
    (tmp_path / "params.json").write_text(json.dumps(params | {"tied_embeddings": True}))
    assert load(f"meta:{tmp_path}").config.tied_embeddings
    (tmp_path / "consolidated.safetensors").unlink()
    (tmp_path / "consolidated.00.pth").write_bytes(pickle.dumps(tensors))
    with pytest.raises(BadInput, match=r"00\.pth is a pickle, which may run any code"):
        load(f"meta:{tmp_path}")


def write_gguf(path, tensors: dict, kinds: dict, fields: dict | None = None):
    """A GGUF file of LLaMA's tensors, some of them quantised."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(16)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500.0)
    for name, value in (fields or {}).items():
        kind = {bool: writer.add_bool, int: writer.add_uint32, list: writer.add_array}
        kind.get(type(value), writer.add_string)(name, value)
    for name, value in tensors.items():
        kind = kinds.get(name.split(".")[-2])
        if kind is None:
            writer.add_tensor(name, value)
        else:
            kind = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
    finish(writer)


def finish(writer):
    """Write what was added."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def wide_llama():
    rng = np.random.default_rng(3)
    shapes = {"q_proj": (32, 32), "k_proj": (16, 32), "v_proj": (16, 32), "o_proj": (32, 32)}
    shapes = {f"self_attn.{name}": shape for name, shape in shapes.items()}
    shapes |= {"mlp.gate_proj": (64, 32), "mlp.up_proj": (64, 32), "mlp.down_proj": (32, 64)}
    shapes |= {"input_layernorm": (32,), "post_attention_layernorm": (32,)}
    shapes = {f"model.layers.0.{name}.weight": shape for name, shape in shapes.items()}
    shapes |= {"model.embed_tokens.weight": (37, 32), "model.norm.weight": (32,)}
    return {k: rng.normal(size=shape).astype(np.float32) for k, shape in shapes.items()}


def test_gguf_gives_what_its_own_package_makes_of_the_blocks(tmp_path):
    gguf = pytest.importorskip("gguf")
    tensors = wide_llama()
    kinds = {"attn_q": "Q8_0", "ffn_gate": "Q4_0", "ffn_down": "Q4_1", "attn_v": "F16"}
    write_gguf(tmp_path / "m.gguf", renamed(tensors, GGUF), kinds)
    found = load(f"gguf:{tmp_path / 'm.gguf'}", mesh=make_mesh(MeshConfig(data=1, fsdp=2)))
    c = found.config
    assert (c.vocab_size, c.num_kv_heads, c.rotary.base, c.norm_epsilon) == (37, 1, 500, 1e-5)
    assert c.tied_embeddings and found.tokenizer is None

    def through(name: str, kind: str) -> np.ndarray:
        kind = gguf.GGMLQuantizationType[kind]
        return gguf.dequantize(gguf.quants.quantize(tensors[name], kind), kind)

    layer = "model.layers.0"
    rounded = tensors | {
        f"{layer}.{name}.weight": through(f"{layer}.{name}.weight", kind)
        for name, kind in {
            "self_attn.q_proj": "Q8_0",
            "mlp.gate_proj": "Q4_0",
            "mlp.down_proj": "Q4_1",
            "self_attn.v_proj": "F16",
        }.items()
    }
    config = stored("llama")[0] | {"hidden_size": 32, "head_dim": 16, "intermediate_size": 64}
    config |= {"num_hidden_layers": 1, "tie_word_embeddings": True}
    theirs = load(f"hf:{write(tmp_path / 'hf', config, rounded)}")
    assert same(theirs.params, jax.tree.map(np.asarray, found.params))


def test_gguf_of_gpt2_and_of_mixtral(tmp_path):
    """Named by the map of the package gguf; matrices as [outputs, inputs], experts in one."""
    gguf = pytest.importorskip("gguf")
    _, tensors, tokens, wanted = stored("gpt2")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, 2)
    writer = gguf.GGUFWriter(tmp_path / "gpt2.gguf", "gpt2")
    writer.add_block_count(2)
    writer.add_context_length(13)
    writer.add_embedding_length(12)
    writer.add_feed_forward_length(48)
    writer.add_head_count(3)
    writer.add_layer_norm_eps(1e-5)
    for key, value in tensors.items():
        stem, _, last = key.rpartition(".")
        value = value.T.copy() if value.ndim == 2 and ".h." in key else value
        writer.add_tensor(f"{names.get_name(stem)}.{last}", value)
    finish(writer)
    assert_close(computed(load(f"gguf:{tmp_path / 'gpt2.gguf'}"), tokens), wanted)

    config, tensors, tokens, wanted = stored("mixtral")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    writer = gguf.GGUFWriter(tmp_path / "mixtral.gguf", "llama")
    writer.add_block_count(2)
    writer.add_context_length(13)
    writer.add_embedding_length(12)
    writer.add_feed_forward_length(20)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_expert_count(4)
    writer.add_expert_used_count(2)
    merged: dict[str, list] = {}
    for key, value in renamed(tensors, {}).items():
        parts = key.split(".")
        if "experts" in parts:
            stem = f"layers.{parts[2]}.feed_forward.experts.{parts[-2]}"
            merged.setdefault(stem, [None] * 4)[int(parts[-3])] = value
        else:
            writer.add_tensor(f"{names.get_name(key.removesuffix('.weight'))}.weight", value)
    for stem, values in merged.items():
        writer.add_tensor(f"{names.get_name(stem)}.weight", np.stack(values))
    finish(writer)
    assert_close(computed(load(f"gguf:{tmp_path / 'mixtral.gguf'}"), tokens), wanted)


def test_gguf_that_cannot_be_read_is_one_line(tmp_path):
    pytest.importorskip("gguf")
    path, tensors = tmp_path / "m.gguf", renamed(wide_llama(), GGUF)
    write_gguf(path, tensors, {"ffn_up": "Q5_0"})
    with pytest.raises(BadInput, match=r"'blk.0.ffn_up.weight' is of type Q5_0, which is not"):
        load(f"gguf:{path}")
    write_gguf(path, tensors | {"rope_freqs.weight": np.ones(8, np.float32)}, {})
    with pytest.raises(BadInput, match="frequencies of their own"):
        load(f"gguf:{path}")
    write_gguf(path, tensors, {}, {"llama.rope.scaling.factor": "4.0"})
    with pytest.raises(BadInput, match=r"rope\.scaling\.factor is '4\.0', which no model here"):
        load(f"gguf:{path}")
    for name, value in {"attention.causal": False, "expert_shared_count": 1}.items():
        write_gguf(path, tensors, {}, {f"llama.{name}": value})
        with pytest.raises(BadInput, match=f"{name} is {value}, which no model here"):
            load(f"gguf:{path}")
    words = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": list("abcdefgh" * 5)}
    write_gguf(path, tensors, {}, words)
    with pytest.raises(BadInput, match=r"m\.gguf has no tokenizer\.ggml\.merges"):
        load(f"gguf:{path}")
    assert load(f"gguf:{path}", tokenizer=False).tokenizer is None
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(BadInput, match=r"m\.gguf is damaged or cut short"):
        load(f"gguf:{path}")
    path.write_bytes(b"GGML" + bytes(100))
    with pytest.raises(BadInput, match="does not begin with GGUF"):
        load(f"gguf:{path}")


@pytest.mark.parametrize(
    "old,shift,bit,line",
    [
        (b"blk.0.attn_norm.weight", 38, 2, "'blk.0.attn_norm.weight', at byte .* it begins"),
        (b"tokenizer.ggml.tokens", 45, 7, "its field 'tokenizer.ggml.tokens' is not UTF-8"),
        (b"tokenizer.ggml.token_type", 38, 4, "in its field 'tokenizer.ggml.token_type', at byte"),
        (b"tokenizer.ggml.token_type", -4, 5, r"in its field \d+, .*its name would have"),
        (b"output_norm.weight", 0, 7, r"in its tensor \d+, .*its name is not UTF-8"),
        (b"output_norm.weight", 18, 4, "tensor 'output_norm.weight', at byte .* has 17 axes"),
        (b"llama.block_count", 17, 4, r"'llama.block_count', at byte .* has a value of type 20"),
    ],
)
def test_one_flipped_bit_in_the_header_of_a_gguf(old, shift, bit, line, tmp_path):
    pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    words = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": list("abcdefgh" * 5)}
    words["tokenizer.ggml.token_type"] = [1] * 9
    write_gguf(path, renamed(wide_llama(), GGUF), {}, words)
    raw = bytearray(path.read_bytes())
    raw[raw.index(old) + shift] ^= 1 << bit
    path.write_bytes(raw)
    with pytest.raises(BadInput, match=line):
        load(f"gguf:{path}")
    path.write_bytes(raw[:500])
    with pytest.raises(BadInput, match=r"m\.gguf is damaged or cut short in its field"):
        load(f"gguf:{path}")


@pytest.mark.parametrize("form", ["npz", "safetensors"])
def test_gpt2_by_the_names_of_its_authors(form, tmp_path):
    _, tensors, tokens, wanted = stored("gpt2")
    named = tensorflow_names(tensors)
    assert named["model/h0/attn/c_attn/w"].shape == (1, 12, 36)
    (tmp_path / "hparams.json").write_text(json.dumps(HPARAMS))
    if form == "npz":
        np.savez(tmp_path / "model.npz", **named)
    else:
        save_file(named, tmp_path / "model.safetensors")
    assert_close(computed(load(f"tf:{tmp_path}"), tokens), wanted)


def test_a_checkpoint_that_tensorflow_wrote(tmp_path):
    """references/tensorflow was written by tf.raw_ops.SaveV2 from the reference of GPT-2."""
    _, _, tokens, wanted = stored("gpt2")
    shutil.copytree(REFERENCES / "tensorflow", tmp_path / "124M")
    assert_close(computed(load(f"tf:{tmp_path / '124M'}"), tokens), wanted)
    data = tmp_path / "124M" / "model.ckpt.data-00000-of-00001"
    whole = data.read_bytes()
    data.write_bytes(whole[:-10])
    with pytest.raises(BadInput, match="is cut short: the tensor 'model/"):
        load(f"tf:{tmp_path / '124M'}")
    flipped = bytearray(whole)
    flipped[1000] ^= 1
    data.write_bytes(flipped)
    with pytest.raises(BadInput, match=r"the tensor 'model/.* is damaged: its checksum is another"):
        load(f"tf:{tmp_path / '124M'}")
    data.write_bytes(whole)
    index = tmp_path / "124M" / "model.ckpt.index"
    flipped = bytearray(index.read_bytes())
    flipped[100] ^= 1
    kept = index.read_bytes()
    index.write_bytes(flipped)
    with pytest.raises(BadInput, match="the checksum of its block at byte 0 is another"):
        load(f"tf:{tmp_path / '124M'}")
    index.write_bytes(kept)
    for file in (index, data):
        kept = file.read_bytes()
        file.unlink()
        os.mkfifo(file)
        with pytest.raises(BadInput, match=rf"{file} is no plain file"):
            load(f"tf:{tmp_path / '124M'}")
        file.unlink()
        file.write_bytes(kept)
    index.write_bytes(index.read_bytes()[:-9])
    with pytest.raises(BadInput, match=r"model\.ckpt\.index is damaged, cut short or no index"):
        load(f"tf:{tmp_path / '124M'}")
