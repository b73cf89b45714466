"""Numbers that a plan is made of, refused in one line where they make none."""

import math

from gptjax.errors import BadInput


def check_number(name: str, value: object, above: float = 0.0) -> None:
    """BadInput, which names the field, unless `value` is a finite number above a bound."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadInput(f"{name} is {value!r}, which is no number")
    if not math.isfinite(value):
        raise BadInput(f"{name} is {value}; give a finite number")
    if not value > above:
        raise BadInput(f"{name} is {value}; give a number above {above:g}")


def check_count(name: str, value: object, least: int = 1) -> None:
    """BadInput, which names the field, unless `value` is a whole number of `least` or more."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadInput(f"{name} is {value!r}; give a whole number of {least} or more")
    if value < least:
        raise BadInput(f"{name} is {value}; give {least} or more")
