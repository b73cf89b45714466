"""The optimizer's settings, apart from its code: a list of experiments needs no jax."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from gptjax.errors import BadInput, check_types


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer, its schedule and its limits."""

    name: Literal["adamw", "adafactor", "lion", "muon"] = "adamw"
    lr: float = 1e-3
    schedule: Literal["cosine", "linear", "wsd", "inverse_sqrt", "constant"] = "cosine"
    warmup_fraction: float = 0.02  # of all steps, risen linearly from 0
    warmup_steps: int = 0  # above 0 it takes the place of the fraction
    decay_fraction: float = 0.2  # of all steps, the cooldown of "wsd"
    final_lr: float = 0.1  # as a fraction of lr, where the schedule ends
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    no_decay: tuple[str, ...] = ("bias", "scale", "embedding", "positions")  # regexes of paths
    clip_norm: float = 1.0  # global gradient norm; 0: no clipping
    accumulation: int = 1  # microbatches in a step
    vector_lr: float = 0.0  # Muon: rate of what AdamW trains beside it; 0: lr

    def validate(self) -> None:
        check_types("optim", self)
        for name in ("lr", "epsilon"):
            if not getattr(self, name) > 0:
                raise BadInput(f"optim.{name} is {getattr(self, name)}; give a value above 0")
        for name in ("weight_decay", "clip_norm", "vector_lr"):
            if not getattr(self, name) >= 0:
                raise BadInput(f"optim.{name} is {getattr(self, name)}; give 0 or more")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise BadInput(f"optim.{name} is {getattr(self, name)}; give 0 or more, below 1")
        for name in ("warmup_fraction", "decay_fraction", "final_lr"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadInput(f"optim.{name} is {getattr(self, name)}; give between 0 and 1")
        if self.schedule == "wsd" and self.warmup_fraction + self.decay_fraction > 1:
            raise BadInput("optim.warmup_fraction and optim.decay_fraction add up to more than 1")
        if self.warmup_steps < 0:
            raise BadInput(f"optim.warmup_steps is {self.warmup_steps}; give 0 or more")
        if self.accumulation < 1:
            raise BadInput(f"optim.accumulation is {self.accumulation}; give 1 or more")
        for pattern in self.no_decay:
            try:
                re.compile(pattern)
            except re.error as error:
                raise BadInput(f"optim.no_decay: {pattern!r} is no regex: {error}") from None


def warmup_length(config: OptimConfig, steps: int) -> int:
    """Steps of the warm-up in a run of so many."""
    return config.warmup_steps or math.ceil(config.warmup_fraction * steps)


def decay_length(config: OptimConfig, steps: int) -> int:
    """Steps of the fall at the end of a run: all after the warm-up, or the cooldown of "wsd"."""
    rest = max(steps - warmup_length(config, steps), 1)
    if config.schedule != "wsd":
        return rest
    return min(max(math.ceil(config.decay_fraction * steps), 1), rest)


def cooldown_start(config: OptimConfig, steps: int) -> int:
    """The first step whose rate is below that of a longer run of the same kind."""
    return steps - decay_length(config, steps)


def program_config(config: OptimConfig) -> OptimConfig:
    """The part of the settings that is compiled in; the rest stands at one fixed value."""
    return OptimConfig(
        name=config.name,
        schedule=config.schedule,
        no_decay=config.no_decay,
        clip_norm=1.0 if config.clip_norm else 0.0,
        accumulation=config.accumulation,
    )
