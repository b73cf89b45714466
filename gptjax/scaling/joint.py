"""One law for several architectures: a floor for each corpus, coefficients for each architecture.

L = E_corpus + sum_v A_kv v^-alpha_kv for architecture k, v being parameters and tokens (the form of
arXiv 2203.15556), or any single column. Text has one entropy whatever reads it, so architectures
share the floor; fitted apart, each would get a floor of its own and gains would hang on it.
"""

from collections.abc import Mapping

import numpy as np

from gptjax.errors import BadInput
from gptjax.scaling.laws.fit import Fit, fit_law
from gptjax.scaling.laws.law import Law, Parameter, log_sum
from gptjax.scaling.table import Runs

INDEX = "architecture"  # the column that tells a run's architecture, 0 to K - 1


class JointPower(Law):
    """A power law per architecture above floors that they share; fitted by `fit_law`."""

    name, reference = "joint", "2203.15556"

    def __init__(self, labels, variables, floors, exponents: str = "own"):
        """`floors`: the corpus of each label. `exponents`: "own" or "shared" by all labels."""
        self.labels, self.of, self.exponents = tuple(labels), tuple(variables), exponents
        corpora = sorted(set(floors))
        self.floor_of = np.array([corpora.index(corpus) for corpus in floors])
        self.variables = (*self.of, INDEX)
        self.signed = (INDEX,)
        K, V, F = len(self.labels), len(self.of), len(corpora)
        self.coefficient = F + np.arange(K * V).reshape(K, V)
        own = exponents == "own"
        self.exponent = F + K * V + np.arange(K * V if own else V)
        self.exponent = np.broadcast_to(self.exponent.reshape(-1, V), (K, V))
        self.floor = "E" if F == 1 else None
        names = ["E"] if F == 1 else [f"E[{corpus}]" for corpus in corpora]
        letters = (("A", "alpha"), ("B", "beta"))[:V]
        parameters = [Parameter(name, True) for name in names]
        parameters += [Parameter(f"{a}[{k}]", True) for k in self.labels for a, _ in letters]
        if own:
            parameters += [Parameter(f"{a}[{k}]", False) for k in self.labels for _, a in letters]
        else:
            parameters += [Parameter(a, False) for _, a in letters]
        self.parameters = tuple(parameters)
        self.formula = "L = E + A_k N^-alpha_k + B_k D^-beta_k" if V == 2 else (
            f"L = E + A_k {self.of[0]}^-alpha_k")  # fmt: skip

    def prepare(self, columns):
        logs = [np.log(columns[name]) for name in self.of]
        return np.stack([*logs, np.asarray(columns[INDEX], dtype=float)])

    def evaluate(self, raw, x):
        k, rows = x[-1].astype(int), np.arange(x.shape[1])
        coefficient, exponent = self.coefficient[k].T, self.exponent[k].T  # [V, rows]
        powers = raw[coefficient] - raw[exponent] * x[:-1]
        y, share = log_sum(np.concatenate([raw[self.floor_of[k]][None], powers]))
        slopes = np.zeros((len(self.parameters), x.shape[1]))
        slopes[self.floor_of[k], rows] = share[0]
        slopes[coefficient, rows] = share[1:]
        slopes[exponent, rows] = -share[1:] * x[:-1]
        return y, slopes

    def start(self, x, y, random):
        raw = np.zeros(len(self.parameters))
        exponents = random.uniform(0.05, 0.7, len(self.of))
        portion, split = random.uniform(0.2, 0.98), random.dirichlet(np.full(len(self.of), 2.0))
        for k in range(len(self.labels)):
            mine = x[-1] == k
            same = self.floor_of[x[-1].astype(int)] == self.floor_of[k]
            E = np.exp(y[same].min()) * portion
            above = max(np.exp(np.median(y[mine])) - E, 0.02 * E)
            raw[self.floor_of[k]] = np.log(E)
            raw[self.exponent[k]] = exponents
            raw[self.coefficient[k]] = np.log(split * above) + exponents * x[:-1, mine].mean(axis=1)
        return raw

    def centring(self, x):
        T = np.eye(len(self.parameters))
        for k in range(len(self.labels)):
            T[self.coefficient[k], self.exponent[k]] = x[:-1, x[-1] == k].mean(axis=1)
        return T

    def of_label(self, raw: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(E, A [V], alpha [V]) of one architecture; `raw` may have leading axes."""
        with np.errstate(over="ignore"):
            E, A = np.exp(raw[..., self.floor_of[k]]), np.exp(raw[..., self.coefficient[k]])
        return E, A, raw[..., self.exponent[k]]


def fit_joint(
    runs: Runs, labels: list[str], variables: tuple[str, ...], floors: list[str], exponents: str
) -> Fit:
    """The joint law with these exponents, or for "auto" with those of the lower corrected AIC."""
    kinds = ("shared", "own") if exponents == "auto" else (exponents,)
    fits = []
    for kind in kinds:
        law = JointPower(labels, variables, floors, kind)
        try:
            check_enough(runs, law)
        except BadInput:
            if fits:  # too few for own exponents: the shared ones stand
                break
            raise
        fits.append(fit_law(runs, law))
    return min(fits, key=corrected_aic)


def check_enough(runs: Runs, law: JointPower) -> None:
    """BadInput, with each sweep's number of runs, when they are too few for the joint law."""
    table = np.stack([runs.column(name) for name in law.variables], axis=1)
    free, different = len(law.parameters), len(np.unique(table, axis=0))
    if len(runs) > free and different >= free:
        return
    counts = [
        len(np.unique(table[runs.columns[INDEX] == k], axis=0)) for k in range(len(law.labels))
    ]
    told = ", ".join(f"{label} has {n}" for label, n in zip(law.labels, counts, strict=True))
    ways = ["finish more points"]
    ways += ["give exponents='shared'"] * (law.exponents == "own")
    ways += ["give law='power'"] * (len(law.of) == 2)
    raise BadInput(
        f"too few runs that differ in {' or '.join(law.of)} to compare: {told}, and the joint law "
        f"with {law.exponents} exponents has {free} parameters; {', or '.join(ways)}"
    )


def corrected_aic(fit: Fit) -> float:
    """AIC with the correction for few runs; infinite where there are too few to tell."""
    free = len(fit.raw) + 1  # the scale of the residuals is estimated too
    left = len(fit.runs) - free - 1
    return fit.aic + 2 * free * (free + 1) / left if left > 0 else np.inf


def joint_table(tables: Mapping[str, Runs]) -> Runs:
    """All runs in one table with the column `architecture`."""
    numbered = [
        runs.with_columns(**{INDEX: np.full(len(runs), float(k))})
        for k, runs in enumerate(tables.values())
    ]
    return Runs.concatenate(numbered)
