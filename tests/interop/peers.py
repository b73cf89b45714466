"""Tiny random models of transformers: what our own are compared with. Needs torch."""

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
    with torch.no_grad():
        for key, value in made.named_parameters():
            centre = 1.0 if value.ndim == 1 and not key.endswith("bias") else 0.0
            value.copy_(centre + 0.3 * torch.randn_like(value))
    return made.eval()


def save(made, folder: Path) -> Path:
    """The model in a folder, as transformers writes it."""
    made.save_pretrained(folder)
    return folder


def tokens_of(name: str, rows: int = 2, length: int = 11, seed: int = 1) -> np.ndarray:
    """int32 [rows, length]."""
    return np.random.default_rng(seed).integers(0, 37, (rows, length)).astype(np.int32)


def logits_of(made, tokens: np.ndarray) -> np.ndarray:
    """float32 [rows, length, ids]."""
    import torch

    with torch.no_grad():
        return made(torch.tensor(tokens.astype(np.int64)))[0].numpy()
