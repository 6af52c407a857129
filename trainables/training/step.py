"""One optimiser step of a distillation, in one piece or, where the memory is short, in two."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainables.methods.ama import DistillationLoss, LossParts
from trainables.methods.teacher_signals import NOTHING, Supervisor, Teach
from trainables.network.taps import Taps
from trainables.runtime.runtime import Runtime
from trainables.student.spans import Span


class TooLarge(RuntimeError):  # noqa: N818 - a result of the trial, not a fault of the code
    """The student and a batch do not fit into the device's memory; the message says what was tried."""


class Stepper:
    """Student, loss and optimiser, a batch at a time.

    A batch that does not fit into the device's memory is computed in two halves whose gradients add up, and
    so is every later one. Batch norms and relative errors are then those of a half.
    """

    def __init__(
        self,
        student: nn.Module,
        loss: DistillationLoss,
        optimizer: torch.optim.Optimizer,
        spans: Sequence[Span],
        targets: Sequence[Sequence[str]],
        runtime: Runtime,
    ) -> None:
        """Take what a distillation assembled.

        Args:
            targets: for every span the paths of the teacher's maps that its loss reads, its own first.
        """
        self.student, self.loss, self.optimizer, self.runtime = student, loss, optimizer, runtime
        self.micro_batches = 1
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision == "fp16")  # type: ignore[attr-defined]
        self._targets = targets if loss.reads_maps else []
        self._shown = [span.first for span in spans] if loss.reads_maps else []
        self._called: Any = student
        if runtime.compiled:
            torch._dynamo.reset()  # the last trial's student fills the same caches
            self._called = torch.compile(student)
        self._teach: Teach = lambda images, order: NOTHING
        self._maps: dict[str, Tensor] = {}

    @contextmanager
    def supervised(self, supervisor: Supervisor, prefix: Sequence[str]) -> Iterator[None]:
        """The body can `step`; afterwards neither network keeps a hook.

        Args:
            prefix: modules whose outputs the student takes from the teacher's pass, if there is one.
        """
        read = sorted({path for paths in self._targets for path in paths})
        needed = bool(read) or self.loss.reads_logits
        teaching = (
            supervisor.leading(self.student, prefix, read, self.loss.reads_logits)
            if prefix and needed
            else supervisor.teaching(read, self.loss.reads_logits)
        )
        with teaching as self._teach, Taps(self.student, self._shown) as taps:
            self._maps = taps.outputs
            yield

    def step(self, images: Tensor, labels: Tensor, order: Tensor) -> LossParts:
        """Train on one batch; the parts of its loss, detached.

        Args:
            images: (B, 3, H, W), normalised.
            labels: (B,).
            order: (B,) indices of the images.

        Raises:
            TooLarge: half of the batch does not fit into the device's memory either.
        """
        while True:
            try:
                parts = self._backward(images, labels, order)
                break
            except torch.OutOfMemoryError as fault:
                if self.micro_batches > 1 or len(images) < 2:
                    raise TooLarge(f"half a batch of {len(images)} images does not fit: {fault}") from None
            self.micro_batches = 2
            self._maps.clear()
            free_memory(self.runtime.device)
        if parts.total.requires_grad:  # `train: modules` of a student that keeps every block trains nothing
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return LossParts(*(part.detach() for part in parts))

    def _backward(self, images: Tensor, labels: Tensor, order: Tensor) -> LossParts:
        self.optimizer.zero_grad(set_to_none=True)
        if self.micro_batches == 1:
            return self._part(images, labels, order)
        pieces = (tensor.tensor_split(self.micro_batches) for tensor in (images, labels, order))
        parts = [self._part(i, y, o, len(y) / len(labels)) for i, y, o in zip(*pieces, strict=True)]
        return LossParts(*(torch.stack(each).sum(0) for each in zip(*parts, strict=True)))

    def _part(self, images: Tensor, labels: Tensor, order: Tensor, share: float = 1.0) -> LossParts:
        """The loss parts of some images, and their gradients; both times their share of the batch."""
        signals = self._teach(images, order)
        with self.runtime.autocast():
            logits = self._called(images)
        parts: LossParts = self.loss(
            logits,
            signals.logits,
            labels,
            [self._maps[path] for path in self._shown],
            [[signals.maps[path] for path in paths] for paths in self._targets],
        )
        del signals, logits
        self._maps.clear()
        if share != 1.0:
            parts = LossParts(*(part * share for part in parts))
        if parts.total.requires_grad:
            self.scaler.scale(parts.total).backward()  # type: ignore[no-untyped-call]
        return parts


def free_memory(device: torch.device) -> None:
    """Give back what a pass that ran out of memory left behind."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
