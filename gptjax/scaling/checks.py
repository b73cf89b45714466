"""Numbers that a plan is made of, refused in one line where they make none."""

import math
import sys

from gptjax.errors import BadInput


def check_number(name: str, value: object, above: float = 0.0) -> None:
    """BadInput, which names the field, unless `value` is a finite number above a bound."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadInput(f"{name} is {value!r}, which is no number")
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        raise BadInput(f"{name} is a number of more than 308 digits; give a finite number")
    if not math.isfinite(value):
        raise BadInput(f"{name} is {value}; give a finite number")
    if not value > above:
        raise BadInput(f"{name} is {value}; give a number above {above:g}")


def check_count(name: str, value: object, least: int = 1) -> None:
    """BadInput, which names the field, unless `value` is a whole number of `least` or more."""
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        raise BadInput(f"{name} is a number of more than 308 digits; give {least} or more")
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadInput(f"{name} is {value!r}; give a whole number of {least} or more")
    if value < least:
        raise BadInput(f"{name} is {value}; give {least} or more")
    if value >= 1 << 31:
        raise BadInput(f"{name} is {value:.3g}; give less than {1 << 31}")
