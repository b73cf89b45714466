"""What a law is: named parameters, the columns it reads, and its value with its derivatives.

A law works in `raw` coordinates: the logarithm of each parameter that must be positive, the
parameter itself otherwise. Raw coordinates of a power law are badly conditioned (the coefficient
is the value at N = 1, decades from the runs), so `centring` gives a linear map to coordinates
whose coefficients are values at the middle of the runs; the solver works in those.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gptjax.errors import BadInput, did_you_mean

SAFE = 300.0  # logarithms beyond this are clipped before exp: a wild step gives a large number


@dataclass(frozen=True)
class Parameter:
    """A parameter of a law; `log` ones are positive and fitted as their logarithm.

    A law that goes flat beyond `limits` (in raw coordinates) is evaluated at the limit there.
    """

    name: str
    log: bool
    limits: tuple[float, float] = (-SAFE, SAFE)

    def value(self, raw: float) -> float:
        """The parameter at a raw coordinate."""
        return float(np.exp(np.clip(raw, *self.limits)) if self.log else raw)


class Law(ABC):
    """Base of all laws; a subclass sets the attributes, `evaluate` and `start`.

    `x` is what `prepare` made of the columns.
    """

    name: str
    reference: str  # arXiv id
    formula: str
    parameters: tuple[Parameter, ...]
    variables: tuple[str, ...]  # the columns it reads
    target: str = "loss"
    log_target: bool = True
    default_loss: str = "huber_log"
    floor: str | None = None  # the name of the irreducible term
    signed: tuple[str, ...] = ()  # variables that may be zero or negative

    def prepare(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """[variables, rows]: the logarithm of every variable; laws override what differs."""
        return np.log(np.stack([columns[name] for name in self.variables]))

    @abstractmethod
    def evaluate(self, raw: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The prediction [rows] and its derivatives [P, rows] at raw coordinates [P].

        Of log L where `log_target`, else of the target itself.
        """

    @abstractmethod
    def start(self, x: np.ndarray, y: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """A plausible raw starting point for targets y [rows] (log L where `log_target`)."""

    def centring(self, x: np.ndarray) -> np.ndarray:
        """[P, P], raw = centring @ coordinates, up to a shift."""
        return np.eye(len(self.parameters))

    def derived(self, values: Mapping[str, float]) -> dict[str, float]:
        """Figures that follow from the parameters and deserve intervals of their own."""
        return {}

    @property
    def has_shape(self) -> bool:
        """Whether it is a law of N and D, so that a budget has an optimal shape."""
        return {"parameters", "tokens"} <= set(self.variables)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.parameters)

    def index(self, name: str) -> int:
        """The position of a parameter; BadInput when the law has none of that name."""
        if name not in self.names:
            near = did_you_mean(name, self.names)
            raise BadInput(
                f"law {self.name!r} has no parameter {name!r}, only {', '.join(self.names)}{near}"
            )
        return self.names.index(name)

    def to_values(self, raw: np.ndarray) -> dict[str, float]:
        """Raw coordinates as named parameters."""
        return {p.name: p.value(v) for p, v in zip(self.parameters, raw, strict=True)}

    def to_raw(self, values: Mapping[str, float]) -> np.ndarray:
        """Named parameters (all of them) as raw coordinates; BadInput for a value out of range."""
        unknown = [name for name in values if name not in self.names]
        if unknown:
            self.index(unknown[0])
        missing = [name for name in self.names if name not in values]
        if missing:
            raise BadInput(f"law {self.name!r}: no value for {', '.join(missing)}")
        return np.array([self.raw_value(name, values[name]) for name in self.names])

    def raw_value(self, name: str, value: float) -> float:
        """One parameter's value as its raw coordinate."""
        log = self.parameters[self.index(name)].log
        if not log and abs(value) <= SAFE:
            return float(value)
        if log and 0 < value < np.inf:
            return float(np.log(value))
        needed = "positive and finite" if log else f"from {-SAFE:g} to {SAFE:g}"
        raise BadInput(f"law {self.name!r}: {name} is {value}; it must be {needed}")

    def predict(self, raw: np.ndarray, x: np.ndarray) -> np.ndarray:
        """The target in its own unit, [rows]."""
        y, _ = self.evaluate(raw, x)
        return np.exp(np.clip(y, -SAFE, SAFE)) if self.log_target else y


def log_sum(terms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log of the sum of exp over the first axis of [terms, rows], and each term's share of it."""
    top = terms.max(axis=0)
    share = np.exp(terms - top)
    total = share.sum(axis=0)
    share /= total
    return top + np.log(total), share
