"""Users' metrics of a student's predictions. Accuracy and loss are built in (`evaluate`).

Importing this module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from trainables.errors import InputError
from trainables.registry import Registry

if TYPE_CHECKING:
    import torch


@runtime_checkable
class Score(Protocol):
    """A metric of predictions.

    Attributes:
        metric: an `analysis.metrics.Metric` of kind quality; its name is the key of the values.
    """

    metric: Any

    def score(self, logits: torch.Tensor, labels: torch.Tensor) -> float:
        """Return the value over all validation images.

        Args:
            logits: (N, classes), fp32, on the CPU.
            labels: (N,), int64, on the CPU.
        """


SCORES: Registry[Score] = Registry("metric of predictions", "ama_search.metric", {}, expects=Score)


def load_scores(texts: Sequence[str]) -> dict[str, Score]:
    """Load the scores that `texts` name, by the names of their metrics.

    Raises:
        InputError: one is unknown or cannot be imported.
    """
    scores = [SCORES.get(text) for text in texts]
    return {score.metric.name: score for score in scores}


def score_all(scores: Mapping[str, Score], logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Compute every score, by name; NaN without images.

    Raises:
        InputError: a score failed or did not return a number.
    """
    return {name: _value(name, score, logits, labels) for name, score in scores.items()}


def check_scores(scores: Mapping[str, Score], classes: int) -> None:
    """Try every score on random logits, to find a broken one before training starts.

    Raises:
        InputError: a score failed or did not return a finite number.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(8 * classes) % classes
    logits = torch.randn(len(labels), classes, generator=generator)
    for name, value in score_all(scores, logits, labels).items():
        if not math.isfinite(value):
            raise InputError(f"metric {name}: expected a finite number for random logits, got {value}")


def _value(name: str, score: Score, logits: torch.Tensor, labels: torch.Tensor) -> float:
    if not len(labels):
        return float("nan")
    try:
        return float(score.score(logits, labels))
    except Exception as error:  # the user's own code
        raise InputError(f"metric {name}: its score failed: {type(error).__name__}: {error}") from error
