"""Loading: meshes, stacked layers, dtypes, shards, and all refusals."""

import dataclasses
import json
import os
import pickle

import jax
import numpy as np
import pytest

pytest.importorskip("safetensors")

from gptjax.errors import BadInput
from gptjax.interop import FAMILIES, load, read_config
from gptjax.interop.fields import Fields
from gptjax.interop.layouts import finite
from gptjax.models.build import param_axes
from gptjax.models.config import RotaryConfig
from gptjax.parallel import DEFAULT_RULES, MeshConfig, make_mesh
from tests.interop.conftest import NAMES, assert_close, computed, same, stored, write


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


def test_the_ids_that_end_a_text_are_those_told(folder):
    """A list of them, as LLaMA 3's; generation_config.json goes before config.json."""
    path, _, _ = folder("llama")
    assert load(f"hf:{path}").ends == ()
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"eos_token_id": 5}))
    assert load(f"hf:{path}").ends == (5,)
    (path / "generation_config.json").write_text('{"eos_token_id": [7, 3, 10000]}')
    assert load(f"hf:{path}").ends == (7, 3)  # 10000 is no id of the model


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
    ({"is_causal": False}, r"is_causal is False, which no model here has; true is read"),
    ({"is_causal": None}, r"is_causal is None, which no model here has; true is read"),
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
        ("mistral", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, which no"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is"),
        ("llama", {"rope_scaling": {"factor": 2.0}}, "rope_parameters and rope_scaling differ"),
        ("llama", {"rms_norm_eps": 0}, "rms_norm_eps is 0; give a number above 0"),
        ("mixtral", {"num_experts_per_tok": 1}, "num_experts_per_tok is 1, whose weight would"),
        ("gptj", {"rotary_dim": None}, "has no 'rotary_dim'"),
        ("llama", {"hidden_act": "relu"}, "hidden_act is 'relu'.*known: silu"),
        ("cohere", {"use_qk_norm": True}, "use_qk_norm is True, which no model here has; False"),
        ("cohere", {"sliding_window": 3}, "sliding_window is 3, which no model here has; None is"),
        ("gpt2", {"num_attention_heads": 4}, "n_head is 3 and num_attention_heads, .* is 4; give"),
        ("imagegpt", {"hidden_size": 4}, "n_embd is .* and hidden_size, .* is 4; give one"),
        ("gpt_neo", {"num_hidden_layers": 1}, "num_layers is 4 and num_hidden_layers, .* is 1"),
        ("bloom", {"n_embed": 8}, "n_embed is 8 and hidden_size, which means the same, is"),
        ("xlnet", {"n_token": 8}, "vocab_size is .* and n_token, which means the same, is 8"),
        ("mixtral", {"num_experts": 3}, "num_local_experts is 4 and num_experts, .* is 3; give"),
        ("xlnet", {"attn_type": "both"}, "attn_type is 'both', which no model here has"),
        ("opt", {"_remove_final_layer_norm": True}, "_remove_final_layer_norm is True"),
        ("gpt_neo", {"attention_types": [[["global"], 1]]}, "global or local for each of 4 layers"),
    ],
)
def test_what_no_model_here_has_is_refused(name, changes, line):
    config = stored(name)[0] | {"attention_layers": None} | changes
    with pytest.raises(BadInput, match=line):
        FAMILIES[config["model_type"]].read(Fields(config, "config.json"))


def test_missing_fields_are_as_in_transformers():
    def read(name, missing, **changes):
        config = {k: v for k, v in stored(name)[0].items() if k not in missing} | changes
        return FAMILIES[name].read(Fields(config, "config.json"))

    ropes = ("rope_theta", "rope_parameters")
    assert read("cohere", ropes).rotary.base == 500_000
    assert read("llama", ropes).rotary.base == 10_000
    assert read("mistral", ["sliding_window"]).attention.pattern == "window:4096"
    assert read("mistral", [], sliding_window=None).attention.pattern == "causal"
    assert read("mixtral", ["num_key_value_heads"]).num_kv_heads == 8


@pytest.mark.parametrize("size", [8, 30, 64, 96, 100, 128])
def test_the_share_of_a_head_that_turns_is_as_in_transformers(size):
    """There it is int(size * share); what is written is read as the same number there."""
    config = {"vocab_size": 8, "max_position_embeddings": 8, "num_hidden_layers": 1}
    config |= {"hidden_size": 2 * size, "num_attention_heads": 2, "intermediate_size": 8}
    family = FAMILIES["gpt_neox"]
    for share in (*(n / 100 for n in range(1, 101)), *(n / size for n in range(1, size + 1))):
        found = family.read(Fields(config | {"rotary_pct": share}, "config.json"))
        assert found.rotary_size == int(size * share)
    for turned in range(2, size + 1, 2):
        model = dataclasses.replace(found, rotary=RotaryConfig(fraction=turned / size))
        assert model.rotary_size == turned
        tree = family.write(model)
        assert int(size * tree["rotary_pct"]) == turned <= size * tree["rotary_pct"]
        assert family.read(Fields(tree, "config.json")).rotary_size == turned


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
        f"gguf:{tmp_path}": "is a folder; a file is wanted there",
        "hf:": r"the source is 'hf:'; give one of hf:PATH",
        f"hf:{tmp_path}": r"config\.json is missing",
    }.items():
        with pytest.raises(BadInput, match=line):
            load(source)


def test_what_is_there_but_no_plain_file_is_called_what_it_is(folder):
    path, _, _ = folder("gpt2")
    for name in ("model.safetensors", "config.json"):
        file = path / name
        file.unlink()
        for make, line in (
            (file.mkdir, "is a folder; a file is wanted there"),
            (lambda file=file: os.mkfifo(file), "is no plain file; a file is wanted there"),
            (lambda file=file: file.symlink_to("nowhere"), "is a link to what is not there"),
            (lambda file=file: file.symlink_to(file.name), "is a link to .*itself"),
        ):
            make()
            with pytest.raises(BadInput, match=rf"{file} {line}"):
                load(f"hf:{path}")
            file.rmdir() if file.is_dir() else file.unlink()


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


def test_a_tied_matrix_that_stands_there_twice(folder):
    path, _, _ = folder("gpt2")
    config, tensors, _, _ = stored("gpt2")
    both = tensors | {"lm_head.weight": tensors["transformer.wte.weight"].copy()}
    load(f"hf:{write(path, config, both)}")
    both["lm_head.weight"][36, 0] += 1
    with pytest.raises(BadInput, match=r"'lm_head\.weight' differs from 'transformer\.wte"):
        load(f"hf:{write(path, config, both)}")


@pytest.mark.parametrize("kind", ["hf", "meta", "tf", "gguf"])
def test_what_the_file_system_refuses_is_one_line(kind, tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="cannot be read: File name too long"):
        load(f"{kind}:{tmp_path / ('x' * 300)}")

    def refused(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.stat", refused)
    with pytest.raises(BadInput, match="cannot be read: Permission denied"):
        load(f"{kind}:{tmp_path}")


def test_weights_without_permission_are_not_called_damaged(folder, monkeypatch):
    import pathlib

    path, _, _ = folder("gpt2")
    opened = pathlib.Path.open

    def refused(self, *given, **named):
        if self.suffix == ".safetensors":
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *given, **named)

    monkeypatch.setattr("pathlib.Path.open", refused)
    with pytest.raises(BadInput, match=r"model\.safetensors cannot be read: Permission denied"):
        load(f"hf:{path}")


@pytest.mark.parametrize("layers", ["unrolled", "scan"])
def test_numbers_that_are_not_finite_are_refused(layers, tmp_path):
    config, tensors, _, _ = stored("gpt2")
    name = "transformer.h.1.mlp.c_fc.weight"
    for value, dtype, line in (
        (np.nan, "float32", "holds numbers that are not finite"),
        (-np.inf, "float16", "holds numbers that are not finite"),
        (7e4, "float16", "has numbers beyond float16; give --dtype=bfloat16"),
        (3.4e38, "bfloat16", "has numbers beyond bfloat16; give --dtype=float32"),
    ):
        tensors[name] = tensors[name].copy()
        tensors[name][5, 7] = value
        path = write(tmp_path, config, tensors)
        wanted = dataclasses.replace(read_config(f"hf:{path}"), layers=layers)
        with pytest.raises(BadInput, match=rf"{path}: {name} {line}"):
            load(f"hf:{path}", dtype=dtype, config=wanted)


def test_finite_in_parts_and_in_every_order(monkeypatch):
    monkeypatch.setattr("gptjax.interop.layouts.PART", 8)
    block = np.zeros((7, 3, 5), np.float32)
    assert finite(block) and finite(block[:0]) and finite(np.float32(1))
    block[6, 2, 4] = np.inf
    for one in (block, block.transpose(2, 0, 1), block[::-1], block[6, 2, 4], block.reshape(-1)):
        assert not finite(one)
