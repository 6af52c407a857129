"""Checkpoints of distillations that version 0.1 wrote, in today's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainables.config import DistillConfig, hash_json

FORMAT_0_1 = 1
KEYS = ("student", "loss", "optim", "epochs", "seed", "train", "warm_start")  # of its config


def from_0_1(state: Mapping[str, Any], config: DistillConfig) -> dict[str, Any]:
    """The state of a distillation by `ama`, the one method of 0.1.

    That version's digest of a config was of all its keys; where it is the digest of `config`, today's takes
    its place.
    """
    dumped = config.model_dump(mode="json")
    origin = dict(state["origin"])
    if origin.get("config") == hash_json({key: dumped[key] for key in KEYS}):
        origin["config"] = config.digest()
    student = {f"student.{name}": tensor for name, tensor in state["student"].items()}
    loss = {f"loss.{name}": tensor for name, tensor in state["loss"].items()}
    return {
        **state,
        "origin": origin,
        "method": student | loss,
        "optimizers": {"student": state["optimizer"]},
        "history": [_losses(metrics) for metrics in state["history"]],
    }


def _losses(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """An epoch's metrics; 0.1 recorded the loss's parts without their weights, which do not add up."""
    return {name: value for name, value in metrics.items() if name not in ("ce", "kl", "feature")}
