"""Every family computes what transformers computed, and is written as it was read."""

import pytest

pytest.importorskip("safetensors")

from safetensors import safe_open

from gptjax.interop import FAMILIES, export, load, read_config
from tests.interop.conftest import NAMES, assert_close, computed, stored

WITHOUT_USE = ("mask_emb", "r_s_bias", "seg_embed")  # of XLNet read from left to right


def test_every_family_has_a_reference():
    assert {stored(name)[0]["model_type"] for name in NAMES} == FAMILIES.keys()


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_the_source_s_and_so_are_the_bytes_written(name, folder, tmp_path):
    path, tokens, wanted = folder(name)
    found = load(f"hf:{path}")
    assert_close(computed(found, tokens), wanted)
    out = tmp_path / "out"
    family = export(found.config, found.params, out, family=stored(name)[0]["model_type"])
    assert family.name == stored(name)[0]["model_type"]
    with (
        safe_open(path / "model.safetensors", "np") as theirs,
        safe_open(out / "model.safetensors", "np") as ours,
    ):
        assert set(theirs.keys()) == set(ours.keys())
        for key in theirs.keys():  # noqa: SIM118
            if not key.endswith(WITHOUT_USE):
                assert theirs.get_tensor(key).tobytes() == ours.get_tensor(key).tobytes(), key
    assert read_config(f"hf:{out}") == found.config
