"""Laws beyond plain powers: repeated data, routing, breaks, and accuracy from loss.

data_constrained   arXiv 2305.16264: Chinchilla's form in effective N and D, where repeats of data
                   and parameters beyond what the unique data is worth decay exponentially
routed             arXiv 2202.01169: log L bilinear in log N and a saturating log of the experts
broken_power       arXiv 2210.14891: a power law whose exponent changes n times; exponents may
                   turn negative, so it takes U-shapes and inverse scaling
loss_to_accuracy   arXiv 2412.04403: a sigmoid from loss to accuracy, the second of two steps
loss_to_error      arXiv 2403.08540: error = top - k exp(-gamma L)
"""

import numpy as np

from gptjax.scaling.laws.law import Law, Parameter, log_sum

WIDTHS = (np.log(0.02), np.log(20.0))  # a break is at least this sharp and this wide, in log x


class DataConstrained(Law):
    """E + A N'^-alpha + B D'^-beta, where N' and D' are worth of N and D on U unique tokens.

    D' = U (1 + R_D (1 - exp(-(D / U - 1) / R_D))), and likewise N' from the parameters that are
    compute-optimal for U unique tokens; a run below those loses nothing.
    """

    name, reference = "data_constrained", "2305.16264"
    formula = "L = E + A N'^-alpha + B D'^-beta"
    parameters = (
        Parameter("E", True),
        Parameter("A", True),
        Parameter("B", True),
        Parameter("alpha", True),
        Parameter("beta", True),
        Parameter("R_D", True),
        Parameter("R_N", True),
    )
    variables = ("parameters", "tokens", "unique_tokens")
    floor = "E"

    def evaluate(self, raw, x):
        e, a, b = raw[:3]
        alpha, beta, r_D, r_N = np.exp(np.clip(raw[3:], -20, 20))
        n, d, u = x
        # the size that is compute-optimal for u: alpha A N^-alpha = beta B U^-beta
        best = (np.log(alpha / beta) + a - b + beta * u) / alpha
        over = n > best
        log_D, _, D_by_r = _worth(u, d, r_D)
        log_N, N_by_base, N_by_r = _worth(np.where(over, best, n), n, r_N)
        y, share = log_sum(np.stack([np.full_like(n, e), a - alpha * log_N, b - beta * log_D]))
        by_N = -alpha * share[1]
        by_best = by_N * np.where(over, N_by_base, 0.0) / alpha  # best moves by 1 / alpha of these
        return y, np.stack(
            [
                share[0],
                share[1] + by_best,
                share[2] - by_best,
                by_N * log_N + by_best * (1 - alpha * best),
                -beta * share[2] * log_D + by_best * (beta * u - 1),
                -beta * share[2] * D_by_r,
                by_N * N_by_r,
            ]
        )

    def start(self, x, y, random):
        low, level = np.exp(y.min()), np.exp(np.median(y))
        E = low * random.uniform(0.2, 0.98)
        alpha, beta = random.uniform(0.15, 0.6, 2)
        shares = random.dirichlet([2.0, 2.0]) * max(level - E, 0.02 * level)
        a, b = np.log(shares) + np.array([alpha, beta]) * x[:2].mean(axis=1)
        repeats = np.log(random.uniform(1, 30, 2))
        return np.array([np.log(E), a, b, np.log(alpha), np.log(beta), *repeats])

    def centring(self, x):
        T = np.eye(7)
        T[1, 3], T[2, 4] = 0.35 * x[0].mean(), 0.35 * x[1].mean()  # at a usual exponent
        return T

    def derived(self, values):
        total = values["alpha"] + values["beta"]
        return {"a": values["beta"] / total, "b": values["alpha"] / total}


def _worth(base, log_x, r):
    """log x' for log x >= base, and its slopes by base and by log r."""
    repeats = np.expm1(np.clip(log_x - base, 0.0, 60.0))
    decay = np.exp(-repeats / r)
    gained = -r * np.expm1(-repeats / r)
    factor = 1 + gained
    by_base = 1 - (repeats + 1) * decay / factor
    return base + np.log(factor), by_base, (gained - repeats * decay) / factor


class Routed(Law):
    """log L = d + a log N + b log F + c log N log F, with F the saturating count of experts.

    1 / F = 1 / (experts - 1 + 1 / (1 / E_start - 1 / E_max)) + 1 / E_max: F goes from E_start at
    one expert to E_max = E_start (1 + saturation). `parameters` is the dense size.
    """

    name, reference = "routed", "2202.01169"
    formula = "log L = d + a log N + b log F + c log N log F"
    parameters = (
        Parameter("d", False),
        Parameter("a", False),
        Parameter("b", False),
        Parameter("c", False),
        Parameter("E_start", True),
        Parameter("saturation", True),
    )
    variables = ("parameters", "experts")

    def _saturated(self, s, m, experts):
        """log F and its slopes by log E_start and log saturation."""
        start, rho = np.exp(np.clip([s, m], -20, 25))
        top = start * (1 + rho)
        inner = start * (1 + rho) / rho
        inverse = 1 / (experts - 1 + inner) + 1 / top
        by_s = -inner / (experts - 1 + inner) ** 2 - 1 / top
        by_m = (start / rho) / (experts - 1 + inner) ** 2 - start * rho / top**2
        return -np.log(inverse), -by_s / inverse, -by_m / inverse

    def evaluate(self, raw, x):
        d, a, b, c, s, m = raw
        n = x[0]
        f, f_s, f_m = self._saturated(s, m, np.exp(x[1]))
        slope = b + c * n
        y = d + a * n + slope * f
        return y, np.stack([np.ones_like(n), n, f, n * f, slope * f_s, slope * f_m])

    def start(self, x, y, random):
        s, m = np.log(random.uniform(1.0, 4.0)), np.log(random.uniform(20, 500))
        f, _, _ = self._saturated(s, m, np.exp(x[1]))
        design = np.stack([np.ones_like(f), x[0], f, x[0] * f], axis=1)
        linear = np.linalg.lstsq(design, y, rcond=None)[0]
        return np.array([*linear, s, m])

    def centring(self, x):
        T, n = np.eye(6), x[0].mean()
        T[0, 1] = T[2, 3] = -n
        return T

    def derived(self, values):
        out = {"E_max": values["E_start"] * (1 + values["saturation"])}
        if values["c"]:  # the size from which routing no longer helps
            out["N_cutoff"] = float(np.exp(np.clip(-values["b"] / values["c"], -700, 700)))
        return out


class BrokenPower(Law):
    """L = E + A x^-c0 prod_i (1 + (x / d_i)^(1 / f_i))^(-c_i f_i): n breaks at d_i of width f_i."""

    reference, floor = "2210.14891", "E"
    formula = "L = E + A x^-c0 prod_i (1 + (x / d_i)^(1 / f_i))^(-c_i f_i)"

    def __init__(self, variable: str = "flops", breaks: int = 1):
        self.name = f"broken_power:{variable}:{breaks}"
        self.variables, self.breaks = (variable,), breaks
        self.parameters = (
            Parameter("E", True),
            Parameter("A", True),
            Parameter("c0", False),
        )
        for i in range(1, breaks + 1):
            self.parameters += (
                Parameter(f"c{i}", False),
                Parameter(f"d{i}", True),
                Parameter(f"f{i}", True, WIDTHS),
            )

    def evaluate(self, raw, x):
        x = x[0]
        power, rows = raw[1] - raw[2] * x, []
        for c, d, f in raw[3:].reshape(-1, 3):
            width = np.exp(np.clip(f, *WIDTHS))
            z = (x - d) / width
            soft, gate = np.logaddexp(0, z), 0.5 * (1 + np.tanh(0.5 * z))
            power = power - c * width * soft
            free = float(WIDTHS[0] < f < WIDTHS[1])
            rows += [-width * soft, c * gate, -c * width * (soft - z * gate) * free]
        y, share = log_sum(np.stack([np.full_like(x, raw[0]), power]))
        slopes = [np.ones_like(x), -x, *rows]
        return y, np.concatenate([share[:1], share[1] * np.stack(slopes)])

    def start(self, x, y, random):
        x = x[0]
        E = np.exp(y.min()) * random.uniform(0.2, 0.98)
        at = np.sort(random.uniform(x.min(), x.max(), self.breaks))
        edges = np.array([x.min(), *at, x.max()])
        order = np.argsort(x)
        above = np.log(np.maximum(np.exp(y) - E, 1e-3 * E))
        knots = np.interp(edges, x[order], above[order])
        slopes = -np.diff(knots) / np.maximum(np.diff(edges), 0.1)
        raw = [np.log(E), knots[0] + slopes[0] * edges[0], slopes[0]]
        for i, d in enumerate(at):
            raw += [slopes[i + 1] - slopes[i], d, np.log(random.uniform(0.1, 1.0))]
        return np.array(raw)

    def centring(self, x):
        T = np.eye(len(self.parameters))
        T[1, 2] = x[0].mean()
        return T


class LossToAccuracy(Law):
    """accuracy = chance + span / (1 + exp(k (L - L0)))."""

    name, reference, target = "loss_to_accuracy", "2412.04403", "accuracy"
    formula = "accuracy = chance + span / (1 + exp(k (L - L0)))"
    parameters = (
        Parameter("chance", False),
        Parameter("span", True),
        Parameter("k", True),
        Parameter("L0", False),
    )
    variables = ("loss",)
    log_target, default_loss = False, "huber"

    def prepare(self, columns):
        return np.stack([columns["loss"]])

    def evaluate(self, raw, x):
        chance, m, kappa, middle = raw
        span, k = np.exp(np.clip([m, kappa], -20, 20))
        z = k * (x[0] - middle)
        gate = 0.5 * (1 - np.tanh(0.5 * z))
        slope = -span * gate * (1 - gate)  # by z
        one = np.ones_like(gate)
        return chance + span * gate, np.stack([one, span * gate, slope * z, -slope * k])

    def start(self, x, y, random):
        low, high = y.min(), y.max()
        width = max(x[0].max() - x[0].min(), 1e-6)
        middle = x[0].min() + width * random.uniform(0, 1)
        span = max(high - low, 1e-3) * random.uniform(1.0, 1.6)
        chance = low - random.uniform(0, 0.2) * (high - low)
        return np.array([chance, np.log(span), np.log(random.uniform(1, 8) / width), middle])


class LossToError(Law):
    """error = top - k exp(-gamma L), for the column `error`."""

    name, reference, target = "loss_to_error", "2403.08540", "error"
    formula = "error = top - k exp(-gamma L)"
    parameters = (Parameter("top", False), Parameter("k", True), Parameter("gamma", False))
    variables = ("loss",)
    log_target, default_loss = False, "huber"

    def prepare(self, columns):
        return np.stack([columns["loss"]])

    def evaluate(self, raw, x):
        fall = np.exp(np.clip(raw[1] - raw[2] * x[0], -300, 300))
        return raw[0] - fall, np.stack([np.ones_like(fall), -fall, fall * x[0]])

    def start(self, x, y, random):
        gamma = random.uniform(0.3, 3.0)
        top = y.max() + random.uniform(0.02, 1.0) * max(np.ptp(y), 1e-3)
        return np.array([top, np.log(max(top - np.median(y), 1e-4)) + gamma * x[0].mean(), gamma])

    def centring(self, x):
        T = np.eye(3)
        T[1, 2] = x[0].mean()
        return T
