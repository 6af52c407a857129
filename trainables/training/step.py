"""One training step: losses, gradients, optimisers. If memory is short, the batch is split in two."""

from __future__ import annotations

import gc
from collections.abc import Mapping

import torch
from torch import Tensor

from trainables.methods.base import Batch, Method, Phase, Progress
from trainables.runtime.runtime import Runtime
from trainables.training.optim import phase_optimizer

TOTAL = "total"  # the name of the sum among the logged parts


class TooLarge(RuntimeError):  # noqa: N818 - a result of the trial, not a fault of the code
    """Student and batch do not fit into the device's memory; the message says what was tried."""


class Stepper:
    """Train a method batch by batch, with one optimiser for each phase.

    If a batch does not fit into the device's memory, it and all later ones are computed in two halves whose
    gradients add up. Batch norms, and loss terms that couple images, then see half a batch.

    Attributes:
        optimizers: by the phase's name.
        micro_batches: parts that a batch is computed in.
        scaler: gradient scaler of fp16.
    """

    def __init__(
        self,
        method: Method,
        runtime: Runtime,
        lr: float,
        momentum: float,
        weight_decay: float,
        walk: str | None = None,
    ) -> None:
        """Create one optimiser per phase of the method; `walk` overrides the runtime's way of walking."""
        self.method, self.runtime = method, runtime
        self.phases = method.phases()
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            phase.name: phase_optimizer(phase, lr, momentum, weight_decay, walk or runtime.optimizer)
            for phase in self.phases
        }
        self.micro_batches = 1
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision == "fp16")  # type: ignore[attr-defined]

    def step(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Train on one batch in every phase; return the loss's parts and their `total`, detached, 0-d.

        Raises:
            TooLarge: half of the batch does not fit into the device's memory either.
        """
        logged: dict[str, Tensor] = {}
        trained = False
        for phase in self.phases:
            parts, trains = self._phase(phase, batch, progress)
            total = _sum(parts)
            logged |= parts
            logged[TOTAL] = logged[TOTAL] + total if TOTAL in logged else total
            trained |= trains
        if trained:
            self.scaler.update()
        self.method.after_step(batch, progress)
        return logged

    def _phase(self, phase: Phase, batch: Batch, progress: Progress) -> tuple[dict[str, Tensor], bool]:
        """Run a phase; return the detached parts of its loss and whether it trained anything."""
        optimizer = self.optimizers[phase.name]
        while True:
            try:
                parts, trains = self._backward(phase, batch, progress)
                break
            except torch.OutOfMemoryError as fault:
                if self.micro_batches > 1 or len(batch) < 2:
                    raise TooLarge(f"half a batch of {len(batch)} images does not fit: {fault}") from None
            self._halve()
        if trains:  # `train: modules` of a student that keeps every block trains nothing
            self._apply(optimizer, len(batch))
        return parts, trains

    def _halve(self) -> None:
        self.micro_batches = 2
        self.method.zero_grad(set_to_none=True)
        free_memory(self.runtime.device)

    def _backward(self, phase: Phase, batch: Batch, progress: Progress) -> tuple[dict[str, Tensor], bool]:
        self.method.zero_grad(set_to_none=True)
        if self.micro_batches == 1:
            parts, trains = self._part(phase, batch, progress)
        else:
            pieces = batch.split(self.micro_batches)
            found = [self._part(phase, piece, progress, len(piece) / len(batch)) for piece in pieces]
            parts = {name: torch.stack([each[name] for each, _ in found]).sum(0) for name in found[0][0]}
            trains = found[0][1]
        if len(self.phases) > 1:  # a loss may depend on parameters that this phase does not train
            ours = {id(p) for group in self.optimizers[phase.name].param_groups for p in group["params"]}
            for parameter in self.method.parameters():
                if id(parameter) not in ours:
                    parameter.grad = None
        return parts, trains

    def _part(
        self, phase: Phase, batch: Batch, progress: Progress, share: float = 1.0
    ) -> tuple[dict[str, Tensor], bool]:
        """Compute the loss's parts on some images and their gradients, both scaled by `share`."""
        parts = self.method.losses(batch, progress, phase.name)
        if share != 1.0:
            parts = {name: part * share for name, part in parts.items()}
        total = _sum(parts)
        trains = total.requires_grad
        if trains:
            self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        return {name: part.detach() for name, part in parts.items()}, trains

    def _apply(self, optimizer: torch.optim.Optimizer, images: int) -> None:
        """Step an optimiser; if it runs out of memory, step once more for parameters not updated yet."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        versions = [p._version for p in parameters]
        try:
            self.scaler.step(optimizer)
            return
        except torch.OutOfMemoryError:
            self.micro_batches = 2
        for parameter, version in zip(parameters, versions, strict=True):
            if parameter._version != version:
                parameter.grad = None
        free_memory(self.runtime.device)
        try:
            self.scaler.step(optimizer)
        except torch.OutOfMemoryError as fault:
            raise TooLarge(
                f"the optimiser's step after a batch of {images} images does not fit: {fault}"
            ) from None


def _sum(parts: Mapping[str, Tensor]) -> Tensor:
    first, *rest = parts.values()
    for part in rest:
        first = first + part
    return first


def free_memory(device: torch.device) -> None:
    """Free the memory that a failed pass left allocated."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
