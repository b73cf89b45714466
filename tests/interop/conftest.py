"""Checkpoints to read, made of the stored references."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from gptjax.models.decoder import Decoder
from gptjax.models.stack import logits
from gptjax.parallel import MeshConfig, make_mesh
from gptjax.training.state import abstract_params

REFERENCES = Path(__file__).parent / "references"
NAMES = sorted(path.stem for path in REFERENCES.glob("*.safetensors"))


def stored(name: str):
    """config, tensors, tokens and logits of a reference."""
    from safetensors import safe_open

    with safe_open(REFERENCES / f"{name}.safetensors", "np") as file:
        every = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["config"])
    tokens, wanted = every.pop("tokens"), every.pop("logits")
    return config, {k.removeprefix("weights/"): v for k, v in every.items()}, tokens, wanted


def write(folder: Path, config: dict, tensors: dict, file: str = "model.safetensors") -> Path:
    """A folder as transformers writes it."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / file, metadata={"format": "pt"})
    return folder


def computed(pretrained, tokens: np.ndarray, mesh=None) -> np.ndarray:
    """The logits of a loaded model."""
    run = jax.jit(
        lambda params, tokens: logits(Decoder(pretrained.config).apply({"params": params}, tokens))
    )
    with jax.set_mesh(make_mesh(MeshConfig(data=1)) if mesh is None else mesh):
        return np.asarray(run(pretrained.params, tokens))


def random_params(config, seed: int = 0):
    """Parameters without compiling an initialiser: norms around 1, the others around 0."""
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return (centre + 0.2 * rng.normal(size=shape.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, abstract_params(config))


def assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    """Within 1e-4, and within 1e-5 of the largest logit."""
    apart = float(np.abs(found - wanted).max())
    assert apart < 1e-4 and apart < 1e-5 * float(np.abs(wanted).max()), apart


def same(one, other) -> bool:
    """Whether two trees hold the same numbers."""
    return jax.tree.all(jax.tree.map(lambda a, b: bool((np.asarray(a) == b).all()), one, other))


@pytest.fixture
def folder(tmp_path):
    """A function of a reference's name: its checkpoint in a folder, with tokens and logits."""

    def made(name: str, **changes):
        config, tensors, tokens, wanted = stored(name)
        return write(tmp_path / name, config | changes, tensors), tokens, wanted

    return made
