"""Loading: meshes, stacked layers, dtypes, other files of the same models, and all refusals."""

import dataclasses
import json
import pickle
import shutil

import jax
import numpy as np
import pytest

pytest.importorskip("safetensors")

from safetensors.numpy import save_file

from gptjax.errors import BadInput
from gptjax.interop import FAMILIES, load, read_config
from gptjax.interop.fields import Fields
from gptjax.models.decoder import param_axes
from gptjax.parallel import DEFAULT_RULES, MeshConfig, make_mesh
from tests.interop.conftest import NAMES, REFERENCES, assert_close, computed, stored, write
from tests.interop.make_references import HPARAMS, tensorflow_names


def same(one, other) -> bool:
    return jax.tree.all(jax.tree.map(lambda a, b: bool((np.asarray(a) == b).all()), one, other))


def test_every_device_gets_its_part_and_logits_stay(folder):
    path, tokens, wanted = folder("gptj")
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=1))
    found = load(f"hf:{path}", mesh=mesh)
    key = found.params["layer_0"]["attention"]["key"]
    names = param_axes(found.config)["layer_0"]["attention"]["key"]
    assert key.sharding.spec == DEFAULT_RULES.spec(names, key.shape, mesh)
    assert key.addressable_shards[0].data.shape == (12, 3, 8)
    whole = load(f"hf:{path}")
    assert same(whole.params, jax.tree.map(np.asarray, found.params))
    path, tokens, wanted = folder("llama")
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2))
    assert_close(computed(load(f"hf:{path}", mesh=mesh), tokens, mesh), wanted)


@pytest.mark.parametrize("name", ["gpt_neo", "mixtral"])
def test_stacked_layers(name, folder):
    """Two kinds of layers in turn, and experts under layers."""
    path, tokens, wanted = folder(name)
    config = dataclasses.replace(read_config(f"hf:{path}"), layers="scan")
    found = load(f"hf:{path}", config=config)
    assert "layers" in found.params
    assert_close(computed(found, tokens), wanted)


def test_another_dtype_is_that_of_parameters_and_computation(folder):
    path, _, _ = folder("llama")
    found, plain = load(f"hf:{path}", dtype="bfloat16"), load(f"hf:{path}")
    assert found.config.compute_dtype == "bfloat16"
    assert found.params["head"].dtype == jax.numpy.bfloat16
    assert same(plain.params["head"].astype("bfloat16"), np.asarray(found.params["head"]))
    with pytest.raises(BadInput, match="dtype is 'float8'; give float32"):
        load(f"hf:{path}", dtype="float8")


def test_a_body_alone_masks_and_shards(tmp_path):
    """Names as in OpenAI's own upload: no prefix, masks among the tensors; here in two files."""
    config, tensors, tokens, wanted = stored("gpt2")
    bare = {k.removeprefix("transformer."): v for k, v in tensors.items()}
    bare |= {"h.0.attn.bias": np.ones((1, 1, 13, 13), np.float32)}
    first = {k: v for k, v in bare.items() if k.startswith("h.")}
    second = {k: v for k, v in bare.items() if k not in first}
    write(tmp_path, config, first, "model-00001-of-00002.safetensors")
    write(tmp_path, config, second, "model-00002-of-00002.safetensors")
    index = dict.fromkeys(first, "model-00001-of-00002.safetensors")
    index |= dict.fromkeys(second, "model-00002-of-00002.safetensors")
    where = tmp_path / "model.safetensors.index.json"
    where.write_text(json.dumps({"weight_map": index}))
    assert_close(computed(load(f"hf:{tmp_path}"), tokens), wanted)
    where.write_text(json.dumps({"weight_map": index | {"h.9": next(iter(index.values()))}}))
    with pytest.raises(BadInput, match=r"lacks the tensor 'h\.9', which its index names"):
        load(f"hf:{tmp_path}")
    where.write_text(json.dumps({"weight_map": index | {"x": "../other.safetensors"}}))
    with pytest.raises(BadInput, match="no weight_map of tensors to files beside it"):
        load(f"hf:{tmp_path}")
    where.write_text(json.dumps({"weight_map": index}))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(BadInput, match=r"model-00002-of-00002.safetensors is missing; did you"):
        load(f"hf:{tmp_path}")


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
        writer.add_array(name, value) if isinstance(value, list) else writer.add_string(name, value)
    for name, value in tensors.items():
        kind = kinds.get(name.split(".")[-2])
        if kind is None:
            writer.add_tensor(name, value)
        else:
            kind = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
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


def test_gguf_that_cannot_be_read_is_one_line(tmp_path):
    pytest.importorskip("gguf")
    path, tensors = tmp_path / "m.gguf", renamed(wide_llama(), GGUF)
    write_gguf(path, tensors, {"ffn_up": "Q5_0"})
    with pytest.raises(BadInput, match=r"'blk.0.ffn_up.weight' is of type Q5_0, which is not"):
        load(f"gguf:{path}")
    write_gguf(path, tensors | {"rope_freqs.weight": np.ones(8, np.float32)}, {})
    with pytest.raises(BadInput, match="frequencies of their own"):
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
    data.write_bytes(whole)
    index = tmp_path / "124M" / "model.ckpt.index"
    index.write_bytes(index.read_bytes()[:-9])
    with pytest.raises(BadInput, match=r"model\.ckpt\.index is damaged, cut short or no index"):
        load(f"tf:{tmp_path / '124M'}")


CHANGES = [
    ({"n_embd": 0}, r"n_embd is 0; give a whole number above 0"),
    ({"n_embd": "12"}, r"n_embd is '12'; give a whole number"),
    ({"n_head": 5}, r"makes no model: model.d_model = 12 is not divisible"),
    ({"n_head": None}, r"config.json has no 'n_head'"),
    ({"model_type": "gpt3"}, r"model_type is 'gpt3', which no model here has; did you mean 'gpt"),
    ({"activation_function": "mish"}, r"activation_function is 'mish', which no model here has"),
    ({"scale_attn_by_inverse_layer_idx": True}, r"scale_attn_by_inverse_layer_idx is True"),
    ({"n_positions": 17}, r"wpe.weight' has the shape \[13, 12\].*asks for \[17, 12\]"),
    ({"n_layer": 4096}, r"lacks the tensor 'transformer.h.4095.ln_1.weight'; did you mean"),
    ({"n_layer": 1}, r"holds the tensor 'transformer.h.1.*no parameter for \(nearest: '"),
    ({"tie_word_embeddings": False}, r"lacks the tensor 'lm_head.weight'"),
]  # fmt: skip


@pytest.mark.parametrize("changes,line", CHANGES)
def test_a_config_that_does_not_fit_is_one_line(changes, line, folder):
    path, _, _ = folder("gpt2", **changes)
    with pytest.raises(BadInput, match=line) as error:
        load(f"hf:{path}")
    assert "\n" not in str(error.value)


STRANGE = ([], {}, "x", -1, 0, 1.5, True, [[1]], 10**400, float("nan"))


def test_strange_values_are_refused_in_one_line():
    """In whatever field: a config is read or refused, nothing else."""
    for name in NAMES:
        config = stored(name)[0]
        family = FAMILIES[config["model_type"]]
        for key in config:
            for value in STRANGE:
                try:
                    family.read(Fields(config | {key: value}, "config.json")).validate()
                except BadInput as error:
                    assert "\n" not in str(error)


@pytest.mark.parametrize(
    "name,changes,line",
    [
        ("llama", {"rope_parameters": {"rope_type": "llama3"}}, "rope_type is 'llama3', which no"),
        ("llama", {"attention_bias": True}, "attention_bias is True and mlp_bias is False"),
        ("llama", {"hidden_act": "relu"}, "hidden_act is 'relu'.*known: silu"),
        ("cohere", {"use_qk_norm": True}, "use_qk_norm is True, which no model here has; False"),
        ("xlnet", {"attn_type": "bi"}, "attn_type is 'bi', which no model here has; 'uni'"),
        ("opt", {"_remove_final_layer_norm": True}, "_remove_final_layer_norm is True"),
        ("gpt_neo", {"attention_types": [[["global"], 1]]}, "global or local for each of 4 layers"),
    ],
)
def test_what_no_model_here_has_is_refused(name, changes, line):
    config = stored(name)[0] | {"attention_layers": None} | changes
    with pytest.raises(BadInput, match=line):
        FAMILIES[config["model_type"]].read(Fields(config, "config.json"))


def test_damage_pickles_and_types(tmp_path):
    config, tensors, _, _ = stored("gpt2")
    path = write(tmp_path / "m", config, tensors)
    file = path / "model.safetensors"
    whole = file.read_bytes()
    for cut in (len(whole) - 4, 100, 0):
        file.write_bytes(whole[:cut])
        with pytest.raises(BadInput, match=r"model\.safetensors is damaged or cut short"):
            load(f"hf:{path}")
    write(path, config, tensors | {"transformer.wte.weight": np.zeros((37, 12), np.int8)})
    with pytest.raises(BadInput, match=r"'transformer\.wte\.weight' is of type I8, which is not"):
        load(f"hf:{path}")
    file.unlink()
    (path / "pytorch_model.bin").write_bytes(pickle.dumps(tensors))
    for source in (f"hf:{path}", f"hf:{path / 'pytorch_model.bin'}"):
        with pytest.raises(BadInput, match=r"pytorch_model\.bin is a pickle.*safetensors"):
            load(source)
    (path / "pytorch_model.bin").unlink()
    with pytest.raises(BadInput, match=r"holds no weights: it has no model\.safetensors"):
        load(f"hf:{path}")
    (path / "config.json").write_text("{")
    with pytest.raises(BadInput, match=r"config\.json is no JSON"):
        load(f"hf:{path}")


def test_sources_that_are_none(tmp_path):
    for source, line in {
        str(tmp_path): "give one of hf:PATH",
        f"gguff:{tmp_path}": "did you mean 'gguf'",
        f"hf:{tmp_path / 'x'}": "does not exist; hf: takes a folder with config.json",
        f"gguf:{tmp_path}": "is missing",
        f"hf:{tmp_path}": r"config\.json is missing",
    }.items():
        with pytest.raises(BadInput, match=line):
            load(source)


def test_a_tokenizer_that_does_not_fit_and_one_that_does(folder):
    from gptjax.data.tokenizers import byte_bpe, export_tokenizer

    path, _, _ = folder("llama")
    words = [*(chr(n) for n in range(97, 123)), "<s>"]
    export_tokenizer(byte_bpe(words, []), path)
    found = load(f"hf:{path}")
    assert found.tokenizer.vocab_size == 27 and found.tokenizer.separator_id == 26
    export_tokenizer(byte_bpe([*words, *(str(n) for n in range(20))], []), path)
    with pytest.raises(BadInput, match="has 47 ids, and vocab_size is 37"):
        load(f"hf:{path}")
