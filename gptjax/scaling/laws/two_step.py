"""Accuracy from N and D in two steps: a law of loss, then a curve from loss to accuracy.

arXiv 2412.04403 (a sigmoid) and 2403.08540 (an exponential in error). The second step is fitted
to measured losses, and errors of the first are carried through: intervals draw runs for both.
"""

from dataclasses import dataclass

import numpy as np

from gptjax.errors import BadInput
from gptjax.scaling.laws.checks import check_level, check_resamples, check_seed
from gptjax.scaling.laws.fit import Fit, fit_law
from gptjax.scaling.laws.intervals import Refits, resampler
from gptjax.scaling.laws.law import Law
from gptjax.scaling.table import Runs


@dataclass(frozen=True, eq=False)
class TwoStep:
    """A fitted law of loss and a fitted curve over loss; `predict` goes through both."""

    first: Fit
    second: Fit

    @property
    def flags(self) -> tuple[str, ...]:
        return (*(f"loss: {f}" for f in self.first.flags),
                *(f"{self.second.law.target}: {f}" for f in self.second.flags))  # fmt: skip

    def predict(self, runs: Runs | None = None, **columns) -> np.ndarray:
        """The accuracy (or error) for what `Fit.predict` takes, [rows]."""
        return self.second.predict(loss=self.first.predict(runs, **columns))

    def interval(
        self,
        runs: Runs | None = None,
        *,
        resamples: int = 500,
        seed: int = 0,
        level: float = 0.95,
        **columns,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(low, high) of the prediction, runs drawn for both steps together, each [rows]."""
        check_level(level)
        check_resamples(resamples)
        check_seed(seed)
        x = self.first.inputs(runs, **columns)
        first, second = Refits(self.first), Refits(self.second)
        needed = max(first.free, second.free)
        draw = resampler(self.first.runs, None, np.random.default_rng(seed), needed)
        samples = []
        for _ in range(resamples):
            counts = draw()
            loss = self.first.law.predict(first(counts), x)
            samples.append(self.second.law.predict(second(counts), loss[None]))
        low, high = np.quantile(samples, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        return low, high


def fit_two_step(
    runs: Runs, first: str | Law = "chinchilla", second: str | Law = "loss_to_accuracy", **options
) -> TwoStep:
    """Fit both steps to one table with the column `accuracy` (or `error`); options as `fit_law`."""
    one = fit_law(runs, first, **options)
    if one.law.target != "loss":
        raise BadInput(f"the first step must be a law of loss, not of {one.law.target}")
    options.pop("loss", None)
    two = fit_law(runs, second, **options)
    if two.law.variables != ("loss",):
        raise BadInput(f"the second step must be a curve over loss; {two.law.name!r} reads "
                       f"{', '.join(two.law.variables)}")  # fmt: skip
    return TwoStep(one, two)
