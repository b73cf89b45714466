"""Tiny random models of transformers: what our own are compared with. Needs torch."""

import itertools
import logging
import os
from pathlib import Path

import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

GPT = {"vocab_size": 37, "n_positions": 13, "n_embd": 12, "n_layer": 2, "n_head": 3}
NONE = {"bos_token_id": None, "eos_token_id": None}
LLAMA = NONE | {
    "vocab_size": 37,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 20,
    "max_position_embeddings": 13,
    "pad_token_id": None,
}
NEOX = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"} | {"hidden_size": 16}
OPT = NONE | {
    "vocab_size": 37,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "ffn_dim": 20,
    "max_position_embeddings": 13,
    "word_embed_proj_dim": 12,
    "pad_token_id": 1,
}
BERT = {
    "vocab_size": 37,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 13,
}
ROBERTA = BERT | {"max_position_embeddings": 15}
T5 = {
    "vocab_size": 37,
    "d_model": 12,
    "d_kv": 4,
    "d_ff": 20,
    "num_layers": 2,
    "num_decoder_layers": 1,
    "num_heads": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 6,
}
GATED = T5 | {"feed_forward_proj": "gated-gelu"}
SWITCH = T5 | {
    "num_decoder_layers": 2,
    "num_sparse_encoder_layers": 1,
    "num_sparse_decoder_layers": 1,
    "num_experts": 4,
    "d_ff": 12,
}
BART = {
    "vocab_size": 37,
    "d_model": 12,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 20,
    "max_position_embeddings": 13,
}
PEERS = {
    "gpt1": ("OpenAIGPT", "LMHeadModel", GPT),
    "gpt2": ("GPT2", "LMHeadModel", GPT | NONE),
    "gpt2_untied": (
        "GPT2",
        "LMHeadModel",
        GPT | NONE | {"tie_word_embeddings": False, "n_inner": 20, "activation_function": "relu"},
    ),
    "imagegpt": ("ImageGPT", "ForCausalImageModeling", GPT | NONE),
    "gpt_neo": (
        "GPTNeo",
        "ForCausalLM",
        NONE
        | {
            "vocab_size": 37,
            "max_position_embeddings": 13,
            "hidden_size": 12,
            "num_layers": 4,
            "num_heads": 3,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 3,
        },
    ),
    "gptj": ("GPTJ", "ForCausalLM", GPT | NONE | {"n_embd": 24, "rotary_dim": 4, "n_inner": 20}),
    "gpt_neox": ("GPTNeoX", "ForCausalLM", NEOX | {"rotary_pct": 0.5}),
    "gpt_neox_sequential": ("GPTNeoX", "ForCausalLM", NEOX | {"use_parallel_residual": False}),
    "opt": ("OPT", "ForCausalLM", OPT),
    "opt_350m": (
        "OPT",
        "ForCausalLM",
        OPT | {"word_embed_proj_dim": 8, "do_layer_norm_before": False},
    ),
    "bloom": (
        "Bloom",
        "ForCausalLM",
        NONE | {"vocab_size": 37, "hidden_size": 12, "n_layer": 2, "n_head": 3, "seq_length": 13},
    ),
    "llama": ("Llama", "ForCausalLM", LLAMA | {"rope_theta": 500.0}),
    "llama_biases": (
        "Llama",
        "ForCausalLM",
        LLAMA
        | {"attention_bias": True, "mlp_bias": True, "head_dim": 8, "tie_word_embeddings": True},
    ),
    "mistral": ("Mistral", "ForCausalLM", LLAMA | {"sliding_window": 4}),
    "mixtral": (
        "Mixtral",
        "ForCausalLM",
        LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    ),
    "cohere": ("Cohere", "ForCausalLM", LLAMA | {"hidden_size": 16, "logit_scale": 0.25}),
    "palm": (
        "Cohere",
        "ForCausalLM",
        LLAMA | {"hidden_size": 16, "logit_scale": 1.0, "rope_theta": 10_000.0},
    ),
    "xlnet": (
        "XLNet",
        "LMHeadModel",
        NONE
        | {
            "vocab_size": 37,
            "d_model": 12,
            "n_layer": 2,
            "n_head": 3,
            "d_inner": 20,
            "attn_type": "uni",
            "mem_len": None,
            "use_mems_eval": False,
            "pad_token_id": None,
        },
    ),
    "bert": ("Bert", "ForPreTraining", BERT),
    "bert_masked": ("Bert", "ForMaskedLM", BERT | {"hidden_act": "relu"}),
    "bert_rows": ("Bert", "ForSequenceClassification", BERT | {"num_labels": 3}),
    "bert_tokens": ("Bert", "ForTokenClassification", BERT | {"num_labels": 5}),
    "bert_body": ("Bert", "Model", BERT),
    "roberta": ("Roberta", "ForMaskedLM", ROBERTA | {"type_vocab_size": 1}),
    "roberta_rows": ("Roberta", "ForSequenceClassification", ROBERTA | {"num_labels": 3}),
    "megatron_bert": ("MegatronBert", "ForMaskedLM", BERT),
    "ernie": ("Ernie", "ForMaskedLM", BERT | {"use_task_id": True}),
    "t5": ("T5", "ForConditionalGeneration", T5),
    "t5_gated": ("T5", "ForConditionalGeneration", GATED | {"tie_word_embeddings": False}),
    "mt5": ("MT5", "ForConditionalGeneration", GATED),
    "umt5": ("UMT5", "ForConditionalGeneration", GATED),
    "switch": ("SwitchTransformers", "ForConditionalGeneration", SWITCH),
    "switch_full": (
        "SwitchTransformers",
        "ForConditionalGeneration",
        SWITCH
        | {
            "expert_capacity": 2,
            "num_sparse_encoder_layers": 2,
            "num_sparse_decoder_layers": 2,
            "d_ff": 8,
        },
    ),
    "bart": ("Bart", "ForConditionalGeneration", BART | {"scale_embedding": True}),
}


def model(name: str, seed: int = 0, **changes):
    """The peer of this name with every parameter random, also biases and norms."""
    import torch
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    base, head, fields = PEERS[name]
    config = getattr(transformers, f"{base}Config")(**(fields | changes))
    torch.manual_seed(seed)
    made = getattr(transformers, f"{base}{head}")._from_config(config, attn_implementation="eager")
    if name in UNTIED:  # configs of the T5 family have no word for it any more
        made.lm_head.weight = torch.nn.Parameter(torch.empty_like(made.lm_head.weight))
    with torch.no_grad():
        given = [made.named_parameters()]
        given += [((k, v) for k, v in made.named_buffers() if k == "final_logits_bias")]
        for key, value in itertools.chain(*given):
            centre = 1.0 if value.ndim == 1 and not key.endswith("bias") else 0.0
            value.copy_(centre + 0.3 * torch.randn_like(value))
    return made.eval()


def save(made, folder: Path) -> Path:
    """The model in a folder, as transformers writes it."""
    made.save_pretrained(folder)
    return folder


ENCODERS = ("Bert", "Roberta", "MegatronBert", "Ernie")
BOTH = ("T5", "MT5", "UMT5", "SwitchTransformers", "Bart")
UNTIED = ("t5_gated", "mt5")
PAD = 1  # what RoBERTa counts no position for


def tokens_of(name: str, rows: int = 2, length: int = 11, seed: int = 1):
    """int32 [rows, length]; of encoders and encoder-decoders all inputs, with some padding."""
    rng = np.random.default_rng(seed)
    base, _, fields = PEERS[name]
    if base not in (*ENCODERS, *BOTH):
        return rng.integers(0, 37, (rows, length)).astype(np.int32)
    mask = np.ones((rows, length), np.int32)
    mask[-1, -4:] = 0
    read = np.where(mask, rng.integers(PAD + 1, 37, (rows, length)), PAD).astype(np.int32)
    if base in BOTH:
        tokens = rng.integers(0, 37, (rows, length - 2)).astype(np.int32)
        return {"source": read, "mask": mask, "tokens": tokens}
    types = rng.integers(0, fields.get("type_vocab_size", 2), mask.shape)
    inputs = {"tokens": read, "mask": mask, "types": types.astype(np.int32)}
    if base == "Ernie":
        inputs["tasks"] = rng.integers(0, 3, mask.shape).astype(np.int32)
    return inputs


def logits_of(made, tokens):
    """float32 [rows, length, ids]; of many inputs all that is said, with zeros at the padding."""
    import torch

    with torch.no_grad():
        if not isinstance(tokens, dict):
            return made(torch.tensor(tokens.astype(np.int64)))[0].numpy()
        given = {key: torch.tensor(value.astype(np.int64)) for key, value in tokens.items()}
        if "source" in given:
            read = {"decoder_input_ids": given["tokens"], "input_ids": given["source"]}
            out = made(**read, attention_mask=given["mask"])
            said = {"logits": out.logits, "written": out.encoder_last_hidden_state}
        else:
            names = {"tokens": "input_ids", "mask": "attention_mask", "types": "token_type_ids"}
            names |= {"tasks": "task_type_ids"}
            out = made(**{names[key]: value for key, value in given.items()}).to_tuple()
            said = dict(zip(OUTPUTS[type(made).__name__.partition("For")[2]], out, strict=True))
    mask = tokens["mask"][:, :, None]
    return {
        key: value.numpy() * mask if value.shape[1] == mask.shape[1] else value.numpy()
        for key, value in said.items()
    }


# What a class gives, in order: logits, states, and what is said of rows and of tokens.
OUTPUTS = {
    "PreTraining": ("logits", "rows"),
    "MaskedLM": ("logits",),
    "SequenceClassification": ("rows",),
    "TokenClassification": ("classes",),
    "": ("states", "pooled"),
}
