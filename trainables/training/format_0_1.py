"""Convert checkpoints of distillations from version 0.1 to the present format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainables.config import DistillConfig
from trainables.config_base import hash_json

FORMAT_0_1 = 1
# The keys of version 0.1's config, with those of its sections.
KEYS: dict[str, tuple[str, ...]] = {
    "student": ("widths", "fuse"),
    "loss": ("alpha", "tau", "beta", "supervision", "entropy_weight"),
    "optim": ("lr", "momentum", "weight_decay", "batch_size", "warmup_epochs", "label_smoothing"),
    "epochs": (),
    "seed": (),
    "train": (),
    "warm_start": (),
}


def from_0_1(state: Mapping[str, Any], config: DistillConfig) -> dict[str, Any]:
    """Convert the state of a distillation with `ama`, the only method of version 0.1.

    Version 0.1 computed a config's digest from all its keys. If that digest belongs to `config`, replace it
    with the present one.
    """
    dumped = config.model_dump(mode="json")
    known = {key: {k: dumped[key][k] for k in inner} if inner else dumped[key] for key, inner in KEYS.items()}
    origin = dict(state["origin"])
    if origin.get("config") == hash_json(known):
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
    """Convert an epoch's metrics; 0.1 recorded the parts of the loss unweighted, so drop them."""
    return {name: value for name, value in metrics.items() if name not in ("ce", "kl", "feature")}
