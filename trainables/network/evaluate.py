"""Accuracy and loss of a classifier on one split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import nn
from torch.nn import functional as F

from trainables.config import RuntimeConfig
from trainables.network.scores import Score, score_all
from trainables.runtime.runtime import Runtime, resolve

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


@runtime_checkable
class HasSplits(Protocol):
    """Data with named splits, such as `ImageData`."""

    def eval_batches(self, split: str, runtime: Runtime, /) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield normalised images (B, 3, H, W) and labels (B,) on the runtime's device."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on `n` images: accuracy in 0..1, mean cross-entropy in nats, users' metrics.

    Example:
        found = evaluate(teacher.model, data)
        print(f"{found.accuracy:.1%} of {found.n} images, loss {found.loss:.3f}")
    """

    accuracy: float
    loss: float
    n: int
    scores: Mapping[str, float] = field(default_factory=dict)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    data: HasSplits | Batches,
    runtime: Runtime | None = None,
    scores: Mapping[str, Score] | None = None,
    *,
    split: str = "val",
) -> Evaluation:
    """Score `model` in eval mode, then restore its training mode.

    Args:
        model: images (B, 3, H, W) to logits (B, classes).
        data: an `ImageData`; or pairs of normalised images (B, 3, H, W) and labels (B,), on the runtime's
            device.
        runtime: its autocast precision is used; logits are scored in fp32. None: the model's device, fp32.
        scores: users' metrics by name; they get all logits and labels at once, on the CPU.
        split: of an `ImageData`: train, val or test.

    Returns:
        Scores over all batches. NaN logits give a NaN loss and count as wrong. Without a batch, accuracy and
        loss are NaN and `n` is 0.

    Raises:
        InputError: one of `scores` failed; no such split, or the test images were not loaded.

    Example:
        print(evaluate(teacher.model, data).accuracy)
        print(evaluate(teacher.model, data, split="test").loss)
    """
    if runtime is None:
        weights = next(model.parameters(), torch.empty(0))
        runtime = resolve(RuntimeConfig(device=str(weights.device), precision="fp32"))
    batches = data.eval_batches(split, runtime) if isinstance(data, HasSplits) else data
    was_training = model.training
    model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=runtime.device)
    loss = torch.zeros((), dtype=torch.float64, device=runtime.device)
    n = 0
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    for images, labels in batches:
        with runtime.autocast():
            logits = model(images)
        logits = logits.float()
        loss += F.cross_entropy(logits, labels, reduction="sum")
        correct += ((logits.argmax(1) == labels) & logits.isfinite().all(1)).sum()
        n += len(labels)
        if scores:
            kept.append((logits.cpu(), labels.cpu()))
    model.train(was_training)
    if n == 0:
        return Evaluation(float("nan"), float("nan"), 0, dict.fromkeys(scores or (), float("nan")))
    logits_of, labels_of = zip(*kept, strict=True) if kept else ((), ())
    own = score_all(scores, torch.cat(logits_of), torch.cat(labels_of)) if scores else {}
    return Evaluation(correct.item() / n, loss.item() / n, n, own)
