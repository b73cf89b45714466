"""What experts are worth at equal FLOPs for a token: the quickstart with and without them.

for name in experts_small experts_small_dense; do python experiments/run.py --exp=$name; done
"""

import dataclasses

from experiments.quickstart import quickstart
from gptjax import Experiment, register
from gptjax.models.config import ExpertsConfig


@register
def experts_small_dense() -> Experiment:
    """The quickstart with half its tokens: what `experts_small` is compared with.

    python experiments/run.py --exp=experts_small_dense
    """
    base = quickstart()
    train = dataclasses.replace(base.train, tokens=1_200_000, eval_every=0)
    return dataclasses.replace(base, name="experts_small_dense", train=train)


@register
def experts_small() -> Experiment:
    """Eight experts a layer of half the feed-forward width, two for each token (arXiv 2401.04088).

    The products of a token are those of the dense model and the router's, 0.4% more; the
    parameters are 2.8 times as many.

    python experiments/run.py --exp=experts_small
    """
    base = experts_small_dense()
    model = dataclasses.replace(
        base.model, d_ff=2 * base.model.d_model, experts=ExpertsConfig(count=8, top_k=2)
    )
    return dataclasses.replace(base, name="experts_small", model=model)
