"""Writes tests/interop/references: what transformers computes with tiny random weights.

python -m tests.interop.make_references, where torch and transformers are installed. Each file
holds the tensors of a checkpoint, tokens and logits, and the config.json in its metadata.
"""

import json
import tempfile
from pathlib import Path

from safetensors import safe_open
from safetensors.numpy import save_file

from tests.interop import peers

REFERENCES = Path(__file__).parent / "references"
LARGEST = 60_000  # bytes of a file


def make(name: str) -> Path:
    """The file of one peer."""
    with tempfile.TemporaryDirectory() as folder:
        made = peers.model(name)
        peers.save(made, Path(folder))
        config = json.loads((Path(folder) / "config.json").read_text())
        with safe_open(Path(folder) / "model.safetensors", "np") as file:
            tensors = {f"weights/{key}": file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    tokens = peers.tokens_of(name)
    tensors |= {"tokens": tokens, "logits": peers.logits_of(made, tokens)}
    out = REFERENCES / f"{name}.safetensors"
    save_file(tensors, out, metadata={"config": json.dumps(config)})
    out.chmod(0o644)
    if out.stat().st_size > LARGEST:
        raise SystemExit(f"{out} has {out.stat().st_size} bytes")
    return out


if __name__ == "__main__":
    REFERENCES.mkdir(exist_ok=True)
    for peer in peers.PEERS:
        print(make(peer))
