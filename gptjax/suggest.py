"""The field that a user may have meant, where the name they gave is none.

A name is compared by its last part alone, with the last parts of all fields and with other words
for them that are in use: `--model.widht` is near `width`, which is `model.d_model`.
"""

import difflib
import re

from gptjax.config_tree import field_names, list_lengths
from gptjax.errors import BadInput
from gptjax.experiment import Experiment

ENOUGH = 0.75  # likeness of two words from which one may be a slip of the other
SAME_PART = 0.1  # on top of it where the part before the dot is right
MARGIN = 0.12  # what is less like the name than this below the best is noise

# Words of papers and of other programs, by the field of ours that they stand for.
SYNONYMS = {
    "model.d_model": "width dim hidden hidden_size embed_dim embedding_size n_embd emb_dim",
    "model.num_layers": "layers depth n_layer n_layers num_blocks num_hidden_layers",
    "model.num_heads": "heads n_head n_heads num_attention_heads attention_heads",
    "model.num_kv_heads": "kv_heads n_kv_head num_key_value_heads query_groups",
    "model.d_ff": "ff ffn mlp_size mlp_dim hidden_dim intermediate_size n_inner ff_size",
    "model.context_length": "context context_size block_size n_ctx max_seq_len max_length seq_len",
    "model.vocab_size": "vocab vocabulary n_vocab",
    "model.positions": "position pos_embedding position_embedding",
    "model.attention.head_dim": "head_dim head_size d_head d_kv",
    "model.embedding.position_shape": "position_shape",
    "model.experts.count": "num_experts n_experts num_local_experts moe",
    "model.experts.top_k": "num_experts_per_tok experts_per_token",
    "model.rotary.base": "rope_theta rope_base rotary_base",
    "model.tied_embeddings": "tie tied tie_embeddings tie_word_embeddings weight_tying",
    "model.biases": "bias use_bias",
    "model.compute_dtype": "dtype precision",
    "model.remat": "checkpointing gradient_checkpointing rematerialisation",
    "data.sequence_length": "context context_size block_size seq_len seq_length max_seq_len length",
    "data.batch_size": "batch batchsize bs global_batch_size train_batch_size",
    "data.corpus": "dataset data_set",
    "data.files": "file path paths input",
    "train.steps": "iterations iters max_iters max_steps num_steps total_steps updates",
    "train.flops": "compute compute_budget flop",
    "train.eval_every": "eval_interval eval_steps",
    "train.checkpoint_every": "save_every save_interval save_steps",
    "train.sample_prompt": "prompt",
    "train.sample_temperature": "temperature",
    "train.sample_top_k": "top_k",
    "train.sample_top_p": "top_p",
    "optim.name": "optimizer optimiser",
    "optim.lr": "learning_rate rate max_lr peak_lr",
    "optim.final_lr": "min_lr end_lr",
    "optim.schedule": "lr_schedule scheduler decay_schedule",
    "optim.warmup_fraction": "warmup warmup_ratio",
    "optim.b1": "beta1",
    "optim.b2": "beta2",
    "optim.epsilon": "eps adam_eps",
    "optim.weight_decay": "wd decay",
    "optim.clip_norm": "clip grad_clip max_grad_norm gradient_clip",
    "optim.accumulation": "accumulate grad_accum gradient_accumulation microbatches",
    "mesh.data": "dp data_parallel",
    "mesh.tensor": "tp tensor_parallel model_parallel",
}


def nearest_fields(name: str, count: int = 3, of=Experiment) -> list[str]:
    """The dotted fields most like `name`, best first; empty when none is close.

    Below a part that exists they are that part's, or those of another by the very same name. Of
    parts of a list that have the field alike there is one, the first unless `name` says which.
    of: an experiment, whose model and objective have fields of their own.
    """
    part, _, last = name.lower().rpartition(".")
    likeness: dict[str, float] = {}
    known = field_names(of)
    within = f"{part.partition('.')[0]}."
    inside = [field for field in known if field.startswith(within)]
    for field in inside or known:
        words = [field.rpartition(".")[2], *SYNONYMS.get(field, "").split()]
        best = max(difflib.SequenceMatcher(None, last, word).ratio() for word in words)
        if best >= ENOUGH:
            there = field.rpartition(".")[0]
            same = (there == part) + (_unnumbered(there) == _unnumbered(part))
            likeness[field] = best + SAME_PART * same / 2
    if inside and not likeness:
        likeness = {field: 1.0 for field in known if field.rpartition(".")[2] == last}
    best = max(likeness.values(), default=0.0)
    near = [field for field, how in likeness.items() if best - how < MARGIN]
    first: dict[str, str] = {}
    for field in sorted(near, key=lambda field: -likeness[field]):
        first.setdefault(_unnumbered(field), field)
    return list(first.values())[:count]


def unknown_field(name: str, of=Experiment) -> BadInput:
    """The error for a dotted name that no field of the experiment has."""
    known = field_names(of)
    part = name.rstrip(".")
    inside = [field for field in known if part and field.startswith(f"{part}.")]
    if inside:
        return BadInput(
            f"'{name}' is a part with fields of its own; give one of them, such as "
            f"--{inside[0]}=..., --help lists them all"
        )
    for many, count in list_lengths(known).items():
        number, _, rest = name.removeprefix(f"{many}.").partition(".")
        if name.startswith(f"{many}.") and number.isdecimal() and int(number) >= count:
            last = [field for field in known if field.startswith(f"{many}.{count - 1}.")]
            meant = next((field for field in last if field.endswith(f".{rest}")), last[0])
            return BadInput(
                f"unknown field '{name}'; '{many}' has {count} parts, 0 to {count - 1}: did you "
                f"mean '{meant}'?"
            )
    near = nearest_fields(name, of=of)
    if near:
        meant = f"did you mean {' or '.join(repr(field) for field in near)}?"
        return BadInput(f"unknown field '{name}'; {meant}")
    while part := part.rpartition(".")[0]:
        inside = [field for field in known if field.startswith(f"{part}.")]
        if inside:
            lasts = ", ".join(field.removeprefix(f"{part}.") for field in inside)
            return BadInput(f"unknown field '{name}'; '{part}' has {lasts}")
    return BadInput(f"unknown field '{name}'; --help lists them all")


def _unnumbered(name: str) -> str:
    """A dotted name without the numbers of parts of a list."""
    return re.sub(r"\.\d+(?=\.|$)", "", name)
