"""Metrics of an epoch of distillation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

LOSS = "loss/"  # prefix of the loss's parts in a row


@dataclass(frozen=True)
class EpochMetrics:
    """Metrics of one epoch; training losses are means over the epoch's batches, as trained on.

    Attributes:
        losses: the parts that the method names, weighted; they add up to `train_loss`.
        metrics: further values at the end of the epoch, from the method and from users' metrics.

    Example:
        last = distill(DistillConfig(epochs=1), setup).history[-1]
        print(last.val_accuracy, last.train_loss, last.losses, last.images_per_second)
    """

    epoch: int  # epochs done, from 1
    val_accuracy: float  # 0..1
    val_loss: float  # cross-entropy, nats
    train_loss: float
    lr: float  # of the last step
    seconds: float  # training and validation
    images_per_second: float  # training alone
    data_seconds: float = 0.0  # waiting for batches, augmented and normalised
    step_seconds: float = 0.0  # teacher, student, loss, optimiser
    eval_seconds: float = 0.0  # validation
    host_mib: float = 0.0  # peak resident memory of the process since the trial began, in MiB
    gpu_mib: float = 0.0  # peak of allocated GPU memory since then; 0 without a GPU
    micro_batches: int = 1  # parts that a step's batch is computed in; 2 once a whole one did not fit
    losses: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return a flat dict: fields and metrics by their names, losses as `loss/<part>`."""
        flat = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("losses", "metrics")}
        return flat | {f"{LOSS}{name}": value for name, value in self.losses.items()} | self.metrics

    @property
    def further(self) -> list[str]:
        """Names in `as_dict` of the losses and metrics, which depend on the method."""
        return [*(f"{LOSS}{name}" for name in self.losses), *self.metrics]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EpochMetrics:
        """Restore the metrics from `as_dict` of this or an older version."""
        names = {f.name for f in fields(cls)}
        known = {name: value for name, value in values.items() if name in names}
        losses = {name.removeprefix(LOSS): v for name, v in values.items() if name.startswith(LOSS)}
        metrics = {n: v for n, v in values.items() if n not in names and not n.startswith(LOSS)}
        return cls(**known, losses=losses, metrics=metrics)


class Sums:
    """Sum the parts of the loss over an epoch on the device; reading the sums does not block on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._names: tuple[str, ...] = ()
        self._sums = torch.zeros(0, device=device)
        self._copy: tuple[Tensor, Any, int] | None = None  # asynchronous copy to the host

    def add(self, parts: Mapping[str, Tensor], images: int) -> None:
        """Add the parts of a batch of `images` images; the same names at every call."""
        if not self._names:
            self._names, self._sums = tuple(parts), torch.zeros(len(parts), device=self._device)
        self._sums += torch.stack([parts[name] for name in self._names]) * images

    def look(self, step: int) -> tuple[dict[str, float], int] | None:
        """Return the sums by name and their step: on a CPU `step`, on a GPU the step of the previous call."""
        if self._sums.device.type != "cuda":
            return self._named(self._sums), step
        before, self._copy = self._copy, self._send(step)
        if before is None or not before[1].query():
            return None
        return self._named(before[0]), before[2]

    def wait(self) -> dict[str, float]:
        """Wait for the device and return the sums by name."""
        return self._named(self._sums)

    def _send(self, step: int) -> tuple[Tensor, Any, int]:
        copied = torch.empty_like(self._sums, device="cpu", pin_memory=True)
        copied.copy_(self._sums, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()  # type: ignore[no-untyped-call]
        return copied, event, step

    def _named(self, sums: Tensor) -> dict[str, float]:
        return dict(zip(self._names, sums.tolist(), strict=True))
