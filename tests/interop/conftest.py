"""Checkpoints to read, made of the stored references."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from gptjax.models.build import model_of
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
    parts = {"weights": {}, "inputs": {}, "outputs": {}}
    for key, value in every.items():
        kind, _, name = key.partition("/")
        if name:
            parts[kind][name] = value
    tokens, wanted = parts["inputs"] or every["tokens"], parts["outputs"] or every["logits"]
    return config, parts["weights"], tokens, wanted


def write(folder: Path, config: dict, tensors: dict, file: str = "model.safetensors") -> Path:
    """A folder as transformers writes it."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / file, metadata={"format": "pt"})
    return folder


def computed(pretrained, tokens, mesh=None):
    """The logits of a loaded model; of many inputs all that it says, with zeros at the padding."""
    run = jax.jit(functools.partial(_said, pretrained.config))
    with jax.set_mesh(make_mesh(MeshConfig(data=1)) if mesh is None else mesh):
        return jax.tree.map(np.asarray, run(pretrained.params, tokens))


def _said(config, params, given):
    model, variables = model_of(config), {"params": params}
    if not isinstance(given, dict):
        return logits(model.apply(variables, given))
    mask_BT1, segments_BT = given["mask"][:, :, None], given["mask"] - 1
    if "source" in given:
        read = {"source_BS": given["source"], "source_segments_BS": segments_BT}
        written_BSD = model.apply(variables, **read)
        out = model.apply(variables, given["tokens"], written_BSD=written_BSD, **read)
        return {"logits": logits(out), "written": written_BSD * mask_BT1}
    ids = {f"{name}_BT": given[name] for name in ("types", "tasks") if name in given}
    out = model.apply(variables, given["tokens"], segments_BT=segments_BT, **ids)
    said = {"rows": out.rows_BC, "pooled": out.pooled_BD}
    each = {"logits": logits(out), "states": out.states_BTD, "classes": out.tokens_BTC}
    return said | {name: x * mask_BT1 for name, x in each.items() if x is not None}


def random_params(config, seed: int = 0):
    """Parameters without compiling an initialiser: norms around 1, the others around 0."""
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return (centre + 0.2 * rng.normal(size=shape.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, abstract_params(config))


def assert_close(found, wanted) -> None:
    """Within 1e-4, and within 1e-5 of the largest logit; of many arrays each that is wanted."""
    if isinstance(wanted, dict):
        for name in wanted:
            assert_close(found[name], wanted[name])
        return
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
