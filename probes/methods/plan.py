"""What decides the masks of a step-specific pruning, beside the model and the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

from models.errors import require


@dataclass(frozen=True)
class Plan:
    """The loop of appendix G of the paper."""

    rounds: Annotated[int, arg(name="steps")] = 8
    """Pruning rounds (P)."""
    epochs: float = 5.0
    """Passes over the data for the whole model in each round (E)."""
    graft_epochs: float = 2.0
    """Passes for the grafts in each round (G)."""
    rate: float = 0.2
    """Share of a step's remaining weights that goes each round (r)."""
    scope: Literal["global", "matrix"] = "global"
    """The smallest weights over the whole block (global), or in each matrix."""
    replicates: int = 3
    """Grafts of the first and of the middle step with other data orders (their own among them): the second null."""
    batch_size: int = 64
    """Images per update over all processes."""
    optimizer: str = "muon"
    """Of the whole model, by timm's name; grafts are trained with AdamW."""
    lr: float = 4e-3
    """Peak learning rate of the whole model."""
    graft_lr: float = 2e-3
    """Peak learning rate of the grafts."""
    seed: int = 0
    """Of initialisation and data order."""
    grafts_at_once: int | None = None
    """Train the grafts in groups of this many, to bound memory."""

    def __post_init__(self) -> None:
        at_once = self.grafts_at_once
        require(
            (self.rounds >= 1, f"--steps (pruning rounds) is {self.rounds}, it must be at least 1"),
            (are_positive(self.epochs, self.graft_epochs), "--epochs and --graft-epochs must be numbers above 0"),
            (0 < self.rate < 1, f"--rate is {self.rate}, it must lie between 0 and 1"),
            (self.replicates >= 1, f"--replicates is {self.replicates}, it must be at least 1 (1 = no replicate null)"),
            (self.batch_size >= 1, f"--batch-size is {self.batch_size}, it must be at least 1"),
            (are_positive(self.lr, self.graft_lr), "--lr and --graft-lr must be numbers above 0"),
            (at_once is None or at_once >= 1, f"--grafts-at-once is {at_once}, it must be at least 1"),
        )


def are_positive(*numbers: float) -> bool:
    return all(0 < number < math.inf for number in numbers)
