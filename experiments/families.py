"""Causal decoder, prefix decoder, encoder-decoder: who spends compute best on the same tokens?

    for name in causal prefix encoder_decoder; do python experiments/run.py --exp=family_$name; done
    cd runs
    python -m gptjax.sweeps.compare --law=power family_causal family_prefix family_encoder_decoder

The question of arXiv 1910.10683 (table 2), at the size of a laptop. All three read the first 64
bytes of the same windows of 128 and predict the 65 that follow; rows of one seed are the same in
all. The place of the cut is fixed, so that neither side of an encoder-decoder is filled up: there
every row would be as long as the longest.

What is equal: budgets in FLOPs of the ledger, which counts all that is multiplied; widths; layers
in sum, 4 in the decoders and 2 on either side of the encoder-decoder; the places that meet the
head; parameters, to 0.3%: the encoder-decoder pays for the attention of one side to the other with
feed-forward layers of 3 times the width in place of 4. What is not: a row costs it little more than
half the FLOPs, since a byte passes one of its sides, so it sees nearly twice the text.

Measured (docs/objectives.md): causal 2.524, 2.143, 1.860 and 1.718 nats per predicted byte at the
four budgets; prefix 2.542, 2.168, 1.871, 1.735; encoder-decoder 2.412, 2.175, 1.911, 1.769.
"""

import dataclasses

from experiments.scaling import BYTES, byte_run
from gptjax import (
    Analysis,
    EncoderDecoderConfig,
    Experiment,
    NextToken,
    PrefixLM,
    Sweep,
    register,
)
from gptjax.models.config import TransformerConfig
from gptjax.objectives import Objective
from gptjax.scaling.planner import Rates
from gptjax.sweeps.grid import Grid, override, rows, values

LENGTH = 128
BUDGETS = {
    6e10: (16, 24, 32),
    2.4e11: (16, 24, 32, 48),
    9.6e11: (24, 32, 48),
    1.92e12: (32, 48, 64),
}
HALVES = {"low": 0.5, "high": 0.5}
DECODER = dataclasses.replace(BYTES, num_layers=4)
SIDES = EncoderDecoderConfig(
    **{f.name: getattr(DECODER, f.name) for f in dataclasses.fields(DECODER)} | {"num_layers": 2}
)


def family_run(name: str, model: TransformerConfig, objective: Objective) -> Experiment:
    """The byte runs of the other comparisons, with 8 windows in a batch."""
    base = byte_run(length=LENGTH, lr=0.01)
    data = dataclasses.replace(base.data, batch_size=8)
    return dataclasses.replace(base, name=name, model=model, data=data, objective=objective)


def shape(base: Experiment, width: int) -> dict[str, object]:
    """The fields of a width: heads of 8, and as many parameters in either kind of model."""
    found = {"model.d_model": width, "model.num_heads": width // 8}
    return found | ({"model.d_ff": 3 * width} if base.model.kind == "encoder_decoder" else {})


def at_budget(base: Experiment, width: int, flops: float) -> dict[str, object]:
    """The fields of a run of so many FLOPs, by the ledger."""
    fields = shape(base, width)
    per_step = override(base, fields).step_flops.training
    return fields | {"train.steps": round(flops / per_step)}


def budgets(base: Experiment) -> Grid:
    """Thirteen runs over four budgets; the rate falls with the width."""
    rates = Rates(lr=base.optim.lr, reference_width=32, lr_exponent=-1.0)
    found = []
    for flops, widths in BUDGETS.items():
        for width in widths:
            fields = at_budget(base, width, flops)
            rate = rates.rate(override(base, fields).model)
            label = f"C{flops:.2g}_d{width}".replace("+", "")
            found.append({"name": label, "group": f"{flops:.3g}", **fields, "optim.lr": rate})
    return rows(*found)


def _compared(name: str, model: TransformerConfig, objective: Objective) -> Sweep:
    base = family_run(name, model, objective)
    return Sweep(name, base, budgets(base), Analysis(laws=("chinchilla",)), share_trunks=True)


def _rates(name: str, model: TransformerConfig, objective: Objective) -> Sweep:
    """Five rates at width 32 and 6e11 FLOPs, between the two larger budgets."""
    base = family_run(name, model, objective)
    grid = rows(at_budget(base, 32, 6e11)) * values("optim.lr", 0.005, 0.01, 0.02, 0.04, 0.08)
    return Sweep(name, base, grid, Analysis(laws=()))


CAUSAL, BOTH = PrefixLM(**HALVES, reading="causal"), PrefixLM(**HALVES)


@register
def family_causal() -> Sweep:
    """A decoder that reads the prefix causally, as a language model does.

    python experiments/run.py --exp=family_causal
    """
    return _compared("family_causal", DECODER, CAUSAL)


@register
def family_prefix() -> Sweep:
    """A decoder that reads the prefix both ways.

    python experiments/run.py --exp=family_prefix
    """
    return _compared("family_prefix", DECODER, BOTH)


@register
def family_encoder_decoder() -> Sweep:
    """An encoder that reads the prefix, and a decoder that goes on.

    python experiments/run.py --exp=family_encoder_decoder
    """
    return _compared("family_encoder_decoder", SIDES, BOTH)


@register
def family_next_token() -> Sweep:
    """The causal decoder trained to predict the first half of a window too.

    A row costs 3 to 9% more, for the head. Its loss is that of whole windows, another task; on what
    follows the prefix:

    run = gptjax.load("runs/family_next_token/points/POINT")
    experiment = dataclasses.replace(run.experiment, objective=CAUSAL)
    dataclasses.replace(run, experiment=experiment).evaluate()

    python experiments/run.py --exp=family_next_token
    """
    return _compared("family_next_token", DECODER, NextToken())


@register
def family_causal_rates() -> Sweep:
    """Learning rates of `family_causal` at one size.

    python experiments/run.py --exp=family_causal_rates
    """
    return _rates("family_causal_rates", DECODER, CAUSAL)


@register
def family_prefix_rates() -> Sweep:
    """Learning rates of `family_prefix` at one size.

    python experiments/run.py --exp=family_prefix_rates
    """
    return _rates("family_prefix_rates", DECODER, BOTH)


@register
def family_encoder_decoder_rates() -> Sweep:
    """Learning rates of `family_encoder_decoder` at one size.

    python experiments/run.py --exp=family_encoder_decoder_rates
    """
    return _rates("family_encoder_decoder_rates", SIDES, BOTH)
