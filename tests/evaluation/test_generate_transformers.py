"""Text of encoder-decoders as transformers generates it, greedily and with beams."""

import numpy as np
import pytest

pytest.importorskip("safetensors")
pytest.importorskip("torch")
pytest.importorskip("transformers")

from gptjax.evaluation.beams import beam_search
from gptjax.evaluation.generate import generate
from gptjax.evaluation.reading import Given
from gptjax.interop import load
from tests.interop import peers

COUNT = 9
STARTS = {"t5_gated": 0, "bart": 2}


def padded(rows):
    """Ids and which of them are there."""
    length = max(map(len, rows))
    mask = np.array([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return np.stack([np.pad(row, (0, length - len(row)), constant_values=1) for row in rows]), mask


@pytest.mark.parametrize("name", STARTS)
def test_greedy_and_beams(name, tmp_path):
    import torch

    theirs = peers.model(name, seed=3, max_position_embeddings=32)
    rng = np.random.default_rng(0)
    sources = [rng.integers(3, 37, n).astype(np.int32) for n in (7, 11, 4, 9)]
    ids, mask = padded(sources)
    found = load(f"hf:{peers.save(theirs, tmp_path)}")
    given = [Given(np.array([STARTS[name]]), source=source) for source in sources]

    rows = generate(found.config, found.params, given, COUNT, temperature=0.0)
    end = int(rows[0][4])  # some ends, and some does not

    def generated(**more):
        out = theirs.generate(
            torch.tensor(ids, dtype=torch.long), attention_mask=torch.tensor(mask),
            max_new_tokens=COUNT, do_sample=False, decoder_start_token_id=STARTS[name],
            eos_token_id=end, pad_token_id=1, forced_eos_token_id=None, **more,
        )  # fmt: skip
        rows = [row[1:].tolist() for row in out]
        return [row[: row.index(end)] if end in row else row[:COUNT] for row in rows]

    rows = generate(found.config, found.params, given, COUNT, temperature=0.0, stop_token=end)
    assert [row.tolist() for row in rows] == generated()
    assert len({len(row) for row in rows}) > 1 and len(set(np.concatenate(rows).tolist())) > 1
    options = {"beams": 4, "length_penalty": 1.5, "stop_token": end, "rule": "transformers"}
    beams = beam_search(found.config, found.params, given, COUNT, **options)
    wanted = generated(num_beams=4, length_penalty=1.5, early_stopping=False)
    assert [one[0].tokens.tolist() for one in beams] == wanted
    assert wanted != [row.tolist() for row in rows]
