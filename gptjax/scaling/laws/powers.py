"""Laws that are a floor plus powers of parameters, tokens or compute.

power_floor     L = E + A x^-alpha                            one variable
power_sum       L = E + sum_v A_v v^-alpha_v                  any columns, arXiv 2502.06857
kaplan_n/d/c    L = (N_c / N)^alpha                           arXiv 2001.08361, no floor
kaplan_nd       L = [(N_c / N)^(alpha/beta) + D_c / D]^beta   arXiv 2001.08361, no floor
chinchilla      L = E + A N^-alpha + B D^-beta                arXiv 2203.15556, approach 3
q_norm          L = E + [(A N^-alpha)^q + (B D^-beta)^q]^(1/q)
over_training   L = E + (A M^eta + B M^-eta) C^-eta, M = D/N  arXiv 2403.08540

`q_norm` holds several: q = 1 is `chinchilla`, a large q lets only the scarcer of the two count
(Kaplan's form, with a floor), and q = 1 / beta without a floor is `kaplan_nd` itself.
"""

import numpy as np

from gptjax.scaling.laws.law import Law, Parameter, log_sum

NORMS = (np.log(0.1), np.log(1e3))  # q beyond these changes nothing that could be seen
TIED_BETAS = (np.log(1e-3), np.log(10.0))
SYMBOLS = {"parameters": "N", "tokens": "D", "flops": "C"}


class PowerTerms(Law):
    """A floor, if any, plus one power of each variable: log L by log-sum-exp of the terms."""

    def __init__(self, name, variables, terms, *, floor: bool, formula: str, reference: str):
        """`terms`: (coefficient, exponent) names, one pair per variable."""
        self.name, self.variables, self.formula, self.reference = (
            name,
            variables,
            formula,
            reference,
        )
        self.floor = "E" if floor else None
        self.terms = terms
        names = [Parameter("E", True)] if floor else []
        names += [Parameter(coefficient, True) for coefficient, _ in terms]
        names += [Parameter(exponent, False) for _, exponent in terms]
        self.parameters = tuple(names)

    def evaluate(self, raw, x):
        K, has_floor = len(self.terms), self.floor is not None
        powers = raw[-2 * K : -K, None] - raw[-K:, None] * x
        if has_floor:
            powers = np.concatenate([np.broadcast_to(raw[0], (1, x.shape[1])), powers])
        elif K == 1:
            return powers[0], np.stack([np.ones_like(x[0]), -x[0]])
        y, share = log_sum(powers)
        return y, np.concatenate([share, -share[-K:] * x])

    def start(self, x, y, random):
        middle = x.mean(axis=1)
        low, level = np.exp(y.min()), np.exp(np.median(y))
        exponents = random.uniform(0.05, 0.7, len(self.terms))
        E = low * random.uniform(0.2, 0.98) if self.floor else 0.0
        shares = random.dirichlet(np.full(len(self.terms), 2.0)) * max(level - E, 0.02 * level)
        raw = [*(np.log(shares) + exponents * middle), *exponents]
        return np.array([np.log(E), *raw] if self.floor else raw)

    def centring(self, x):
        T, K = np.eye(len(self.parameters)), len(self.terms)
        for k in range(K):
            T[len(T) - 2 * K + k, len(T) - K + k] = x[k].mean()
        return T

    def derived(self, values):
        if self.name.startswith("kaplan") and len(self.terms) == 1:
            (coefficient, exponent), symbol = self.terms[0], SYMBOLS[self.variables[0]]
            return {f"{symbol}_c": _scale(values[coefficient], values[exponent])}
        if self.name == "chinchilla":
            return _allocation(values)
        return {}


class QNorm(PowerTerms):
    """The powers of N and D joined by a q-norm; without a floor, q is tied to 1 / beta."""

    def __init__(self, name="q_norm", *, floor: bool = True, formula: str, reference: str):
        super().__init__(
            name,
            ("parameters", "tokens"),
            (("A", "alpha"), ("B", "beta")),
            floor=floor,
            formula=formula,
            reference=reference,
        )
        self.tied = not floor
        if self.tied:  # beta is positive, as 1 / beta is a norm
            self.parameters = (*self.parameters[:3], Parameter("beta", True, TIED_BETAS))
        else:
            self.parameters = (*self.parameters, Parameter("q", True, NORMS))

    def evaluate(self, raw, x):
        if self.tied:
            beta = np.exp(np.clip(raw[3], *TIED_BETAS))
            q, exponents, first = 1 / beta, np.array([raw[2], beta]), 0
        else:
            q, exponents, first = np.exp(np.clip(raw[5], *NORMS)), raw[3:5], 1
        powers = raw[first : first + 2, None] - exponents[:, None] * x
        joined, share = log_sum(q * powers)
        joined = joined / q
        by_log_q = (share * powers).sum(axis=0) - joined
        if self.tied:
            free = float(TIED_BETAS[0] < raw[3] < TIED_BETAS[1])
            by_log_beta = (-by_log_q - beta * share[1] * x[1]) * free
            return joined, np.stack([share[0], share[1], -share[0] * x[0], by_log_beta])
        y, of = log_sum(np.stack([np.broadcast_to(raw[0], joined.shape), joined]))
        share = share * of[1]
        free = float(NORMS[0] < raw[5] < NORMS[1])
        return y, np.concatenate([of[:1], share, -share * x, (of[1] * by_log_q * free)[None]])

    def start(self, x, y, random):
        if not self.tied:
            return np.append(super().start(x, y, random), np.log(random.uniform(0.6, 6.0)))
        raw = super().start(x, y, random)
        beta = max(raw[3], 0.05)
        raw[1] += (beta - raw[3]) * x[1].mean()
        return np.append(raw[:3], np.log(beta))

    def centring(self, x):
        T = np.eye(len(self.parameters))
        first = 0 if self.tied else 1
        T[first, first + 2] = x[0].mean()
        # log beta is no linear coordinate; its slope at a usual exponent does well enough
        T[first + 1, first + 3] = x[1].mean() * (0.2 if self.tied else 1.0)
        return T

    def derived(self, values):
        out = _allocation(values)
        if self.tied:
            out["N_c"] = _scale(values["A"], values["alpha"])
            out["D_c"] = _scale(values["B"], values["beta"])
        return out


class OverTraining(Law):
    """Chinchilla's form with one exponent, in compute and tokens per parameter."""

    name, reference = "over_training", "2403.08540"
    formula = "L = E + (A M^eta + B M^-eta) C^-eta, M = D / N"
    parameters = (
        Parameter("E", True),
        Parameter("A", True),
        Parameter("B", True),
        Parameter("eta", False),
    )
    variables = ("parameters", "tokens", "flops")
    floor = "E"

    def evaluate(self, raw, x):
        M, C = x[1] - x[0], x[2]
        z = np.stack([C - M, C + M])  # A M^eta C^-eta falls with C / M, the other with C M
        powers = raw[1:3, None] - raw[3] * z
        y, share = log_sum(np.concatenate([np.full((1, len(M)), raw[0]), powers]))
        return y, np.concatenate([share, -(share[1:] * z).sum(axis=0)[None]])

    def start(self, x, y, random):
        M, C = (x[1] - x[0]).mean(), x[2].mean()
        E = np.exp(y.min()) * random.uniform(0.2, 0.98)
        eta = random.uniform(0.03, 0.35)
        shares = random.dirichlet([2.0, 2.0]) * max(np.exp(np.median(y)) - E, 0.02 * E)
        return np.array([np.log(E), *(np.log(shares) + eta * np.array([C - M, C + M])), eta])

    def centring(self, x):
        T, M, C = np.eye(4), (x[1] - x[0]).mean(), x[2].mean()
        T[1, 3], T[2, 3] = C - M, C + M
        return T


def _scale(coefficient: float, exponent: float) -> float:
    """x_c of (x_c / x)^exponent = coefficient x^-exponent; NaN for a flat law."""
    if exponent == 0:
        return float("nan")
    return float(np.exp(np.clip(np.log(coefficient) / exponent, -700, 700)))


def _allocation(values) -> dict[str, float]:
    """How the optimal N and D grow with compute at C proportional to N D: C^a and C^b."""
    total = values["alpha"] + values["beta"]
    if total == 0:
        return {"a": float("nan"), "b": float("nan")}
    return {"a": values["beta"] / total, "b": values["alpha"] / total}


def power_floor(variable: str = "flops") -> PowerTerms:
    """L = E + A x^-alpha in any one column."""
    return PowerTerms(
        f"power_floor:{variable}",
        (variable,),
        (("A", "alpha"),),
        floor=True,
        formula="L = E + A x^-alpha",
        reference="2010.14701",
    )


def power_sum(*variables: str) -> PowerTerms:
    """L = E + a term for each of several columns, as width, depth and tokens (2502.06857)."""
    return PowerTerms(
        f"power_sum:{','.join(variables)}",
        tuple(variables),
        tuple((f"A_{v}", f"alpha_{v}") for v in variables),
        floor=True,
        formula="L = E + " + " + ".join(f"A_{v} {v}^-alpha_{v}" for v in variables),
        reference="2502.06857",
    )


def kaplan(variable: str) -> PowerTerms:
    """L = (x_c / x)^alpha, as A x^-alpha with x_c derived."""
    symbol = SYMBOLS[variable]
    return PowerTerms(
        f"kaplan_{symbol.lower()}",
        (variable,),
        (("A", "alpha"),),
        floor=False,
        formula=f"L = ({symbol}_c / {symbol})^alpha",
        reference="2001.08361",
    )


def chinchilla() -> PowerTerms:
    """L = E + A N^-alpha + B D^-beta."""
    return PowerTerms(
        "chinchilla",
        ("parameters", "tokens"),
        (("A", "alpha"), ("B", "beta")),
        floor=True,
        formula="L = E + A N^-alpha + B D^-beta",
        reference="2203.15556",
    )


def q_norm() -> QNorm:
    """L = E + [(A N^-alpha)^q + (B D^-beta)^q]^(1/q)."""
    formula = "L = E + [(A N^-alpha)^q + (B D^-beta)^q]^(1/q)"
    return QNorm(floor=True, formula=formula, reference="2001.08361, 2203.15556 between them")


def kaplan_nd() -> QNorm:
    """L = [(N_c / N)^(alpha/beta) + D_c / D]^beta."""
    formula = "L = [(N_c / N)^(alpha/beta) + D_c / D]^beta"
    return QNorm("kaplan_nd", floor=False, formula=formula, reference="2001.08361")
