"""Laws by name: `chinchilla`, `power_floor:tokens`, `broken_power:flops:2`."""

from collections.abc import Callable

from gptjax.errors import BadInput, did_you_mean
from gptjax.scaling.laws.law import Law
from gptjax.scaling.laws.powers import (
    OverTraining,
    chinchilla,
    kaplan,
    kaplan_nd,
    power_floor,
    power_sum,
    q_norm,
)
from gptjax.scaling.laws.special import (
    BrokenPower,
    DataConstrained,
    LossToAccuracy,
    LossToError,
    Routed,
)
from gptjax.scaling.table import LETTERS

# name -> a function of the texts after the colons
LAWS: dict[str, Callable[..., Law]] = {
    "power_floor": lambda variable="flops": power_floor(_column(variable)),
    "power_sum": lambda variables="parameters,tokens": power_sum(
        *(_column(v) for v in variables.split(","))
    ),
    "kaplan_n": lambda: kaplan("parameters"),
    "kaplan_d": lambda: kaplan("tokens"),
    "kaplan_c": lambda: kaplan("flops"),
    "kaplan_nd": kaplan_nd,
    "chinchilla": chinchilla,
    "q_norm": q_norm,
    "over_training": OverTraining,
    "data_constrained": DataConstrained,
    "routed": Routed,
    "broken_power": lambda variable="flops", breaks="1": BrokenPower(
        _column(variable), _count(breaks)
    ),
    "loss_to_accuracy": LossToAccuracy,
    "loss_to_error": LossToError,
}


def get_law(law: str | Law) -> Law:
    """The law of that name, with its options after colons; BadInput for one that is not there."""
    if isinstance(law, Law):
        return law
    name, *options = str(law).split(":")
    if name not in LAWS:
        near = did_you_mean(name, LAWS)
        raise BadInput(f"law is {name!r}, not one of {', '.join(LAWS)}{near}")
    try:
        return LAWS[name](*options)
    except TypeError:
        raise BadInput(f"law {law!r} has more options than {name!r} takes") from None


def formulas() -> dict[str, str]:
    """Each law's name with its formula, without options."""
    return {name: get_law(name).formula for name in LAWS}


def _column(name: str) -> str:
    return LETTERS.get(name, name)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 5:
        raise BadInput(f"broken_power has {text!r} breaks; give 1 to 5")
    return int(text)
