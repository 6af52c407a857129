"""Accuracy and loss of a classifier on one split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

from trainables.network.scores import Score, score_all
from trainables.runtime.runtime import Runtime


@dataclass(frozen=True)
class Evaluation:
    """What a model scores on `n` images: accuracy in 0..1, mean cross-entropy in nats, users' own scores."""

    accuracy: float
    loss: float
    n: int
    scores: Mapping[str, float] = field(default_factory=dict)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    runtime: Runtime,
    scores: Mapping[str, Score] | None = None,
) -> Evaluation:
    """Score `model` in eval mode; its training mode is restored.

    Args:
        model: images (B, 3, H, W) to logits (B, classes).
        batches: pairs of normalised images (B, 3, H, W) and labels (B,), on the runtime's device.
        runtime: its autocast precision is used; logits are scored in fp32.
        scores: users' own metrics by name; they get all logits and labels at once, on the CPU.

    Returns:
        Sums over all batches; NaN logits give a NaN loss and count as wrong. No batch gives NaN, NaN, 0.

    Raises:
        InputError: one of `scores` failed.
    """
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
