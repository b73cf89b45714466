"""Writes tests/interop/references: what transformers computes with tiny random weights.

python -m tests.interop.make_references, where torch and transformers are installed. Each file
holds the tensors of a checkpoint, tokens and logits, and the config.json in its metadata. Names
behind it make those alone, and `tensorflow`, where that is installed, the same GPT-2 as TensorFlow
writes it.
"""

import json
import sys
import tempfile
from pathlib import Path

from safetensors import safe_open
from safetensors.numpy import save_file

from tests.interop import peers

REFERENCES = Path(__file__).parent / "references"
LARGEST = 60_000  # bytes of a file
HPARAMS = {"n_vocab": 37, "n_ctx": 13, "n_embd": 12, "n_head": 3, "n_layer": 2}


def make(name: str) -> Path:
    """The file of one peer."""
    with tempfile.TemporaryDirectory() as folder:
        made = peers.model(name)
        peers.save(made, Path(folder))
        config = json.loads((Path(folder) / "config.json").read_text())
        with safe_open(Path(folder) / "model.safetensors", "np") as file:
            tensors = {f"weights/{key}": file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    tokens = peers.tokens_of(name)
    said = peers.logits_of(made, tokens)
    if isinstance(tokens, dict):
        tensors |= {f"inputs/{key}": value for key, value in tokens.items()}
        tensors |= {f"outputs/{key}": value for key, value in said.items()}
    else:
        tensors |= {"tokens": tokens, "logits": said}
    out = REFERENCES / f"{name}.safetensors"
    save_file(tensors, out, metadata={"config": json.dumps(config)})
    out.chmod(0o644)
    if out.stat().st_size > LARGEST:
        raise SystemExit(f"{out} has {out.stat().st_size} bytes")
    return out


def tensorflow_names(tensors: dict) -> dict:
    """GPT-2's tensors as its authors' code names them."""
    made = {}
    for key, value in tensors.items():
        key = key.removeprefix("transformer.").replace("h.", "h")
        *parts, last = key.split(".")
        norm = parts[-1].startswith("ln_")
        last = {"weight": "g" if norm else "w", "bias": "b"}[last]
        name = "/".join(["model", *parts] + ([] if parts[-1] in ("wte", "wpe") else [last]))
        made[name] = value[None] if last == "w" and value.ndim == 2 and "h" in parts[0] else value
    return made


def make_tensorflow() -> Path:
    """The reference of GPT-2 in the files of TensorFlow."""
    import tensorflow as tf

    with safe_open(REFERENCES / "gpt2.safetensors", "np") as file:
        names = [key for key in file.keys() if key.startswith("weights/")]  # noqa: SIM118
        tensors = {key.removeprefix("weights/"): file.get_tensor(key) for key in names}
    named = dict(sorted(tensorflow_names(tensors).items()))
    out = REFERENCES / "tensorflow"
    out.mkdir(exist_ok=True)
    whole = [""] * len(named)
    tf.raw_ops.SaveV2(
        prefix=str(out / "model.ckpt"),
        tensor_names=list(named),
        shape_and_slices=whole,
        tensors=[tf.constant(value) for value in named.values()],
    )
    (out / "hparams.json").write_text(json.dumps(HPARAMS) + "\n")
    return out


if __name__ == "__main__":
    REFERENCES.mkdir(exist_ok=True)
    if sys.argv[1:] == ["tensorflow"]:
        print(make_tensorflow())
    else:
        for peer in sys.argv[1:] or peers.PEERS:
            print(make(peer))
