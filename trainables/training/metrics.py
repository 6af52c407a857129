"""What an epoch of distillation records."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainables.methods.ama import LossParts

LOGGED = ("total", "ce", "kl", "feature", "regulariser", "entropy")


@dataclass(frozen=True)
class EpochMetrics:
    """One epoch of distillation; losses are means over the training images, as they were while training."""

    epoch: int  # epochs done, from 1
    val_accuracy: float  # 0..1
    val_loss: float  # cross-entropy, nats
    train_loss: float
    ce: float
    kl: float
    feature: float
    entropy: float  # of the adaptive span weights, 0..1 of its maximum; 1 for uniform
    lr: float  # of the last step
    seconds: float  # training and validation
    images_per_second: float  # training alone
    data_seconds: float = 0.0  # getting batches, augmented and normalised
    step_seconds: float = 0.0  # teacher, student, loss, optimiser
    eval_seconds: float = 0.0  # validation
    host_mib: float = 0.0  # most resident memory of the process since the trial began, in MiB
    gpu_mib: float = 0.0  # most GPU memory allocated since then; 0 without a GPU
    micro_batches: int = 1  # parts that a step's batch is computed in; 2 once it did not fit in one
    metrics: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Field names to values; `metrics` by their own names."""
        values = dataclasses.asdict(self)
        own: dict[str, float] = values.pop("metrics")
        return {**values, **own}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EpochMetrics:
        """The epoch that `as_dict` wrote."""
        names = {each.name for each in dataclasses.fields(cls)}
        own = {name: value for name, value in values.items() if name not in names}
        return cls(**{name: value for name, value in values.items() if name in names}, metrics=own)


class Sums:
    """Sums of the loss parts over an epoch, on the device; looking at them does not wait for a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(len(LOGGED), device=device)
        self._copy: tuple[Tensor, Any, int] | None = None  # on its way to the host

    def add(self, parts: LossParts, images: int) -> None:
        """Count the parts of a batch of so many images."""
        self._sums += torch.stack([getattr(parts, name) for name in LOGGED]) * images

    def look(self, step: int) -> tuple[dict[str, float], int] | None:
        """The sums by name and the step they are of: this one on a CPU, that of an earlier look on a GPU."""
        if self._sums.device.type != "cuda":
            return _named(self._sums), step
        before, self._copy = self._copy, self._send(step)
        if before is None or not before[1].query():
            return None
        return _named(before[0]), before[2]

    def wait(self) -> dict[str, float]:
        """The sums by name, after the device has finished."""
        return _named(self._sums)

    def _send(self, step: int) -> tuple[Tensor, Any, int]:
        copied = torch.empty_like(self._sums, device="cpu", pin_memory=True)
        copied.copy_(self._sums, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()  # type: ignore[no-untyped-call]
        return copied, event, step


def _named(sums: Tensor) -> dict[str, float]:
    return dict(zip(LOGGED, sums.tolist(), strict=True))
