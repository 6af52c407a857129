"""Settings of the loss: slots that methods share, and those of the method `ama`. Free of torch and Ray."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat

from trainables.config_base import Fraction, MethodConfig, searched


class LossConfig(MethodConfig):
    """Settings of the method `ama`: weights of the named parts of its loss.

    Example:
        loss = LossConfig(alpha=0.3, tau=2.0, beta=2.0, supervision="adaptive")
        print(DistillConfig(loss=loss).content())
    """

    alpha: Fraction = searched(
        0.5, 0.1, 0.9, description="weight of the logit term; 1 - alpha weighs cross-entropy"
    )
    tau: PositiveFloat = searched(
        4.0, 1.0, 8.0, log=True, description="softmax temperature of the logit term"
    )
    beta: float = searched(1.0, 0.1, 10.0, log=True, ge=0.0, description="weight of the feature term")
    supervision: Literal["uniform", "adaptive"] = searched(
        "uniform",
        choices=("uniform", "adaptive"),
        description="span weights of the feature term: equal, or learned during training",
    )
    entropy_weight: float = Field(
        default=1.0, ge=0.0, description="adaptive only: pull of learned weights and mixes towards the prior"
    )

    def unused(self) -> set[str]:
        """`entropy_weight` has an effect with adaptive supervision alone."""
        return {"entropy_weight"} if self.supervision == "uniform" else set()
