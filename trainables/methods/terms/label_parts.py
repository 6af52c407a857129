"""The two parts of a loss that most methods share: of the labels, and of the teacher's logits."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from trainables.loss_config import LogitTerm
from trainables.methods.terms.logits import LOGIT_TERMS, ramp


def label_parts(
    loss: LogitTerm,
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    label_smoothing: float = 0.0,
    done: float = 1.0,
) -> dict[str, Tensor]:
    """Return ce: (1-α) CE(y, s), and the logit term times α by its name; without those of weight zero.

    Args:
        loss: alpha, tau and the name of the logit term.
        student_logits: (B, classes).
        teacher_logits: (B, classes); not read when alpha is 0.
        labels: (B,) int64.
        label_smoothing: of cross-entropy.
        done: share of the training that is done; the weight of some terms rises at the start.
    """
    logits, parts = student_logits.float(), {}
    if loss.alpha < 1:
        parts["ce"] = (1 - loss.alpha) * F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    if loss.alpha > 0:
        assert teacher_logits is not None
        term = LOGIT_TERMS[loss.logits](logits, teacher_logits, labels, loss.tau)
        parts[loss.logits] = loss.alpha * ramp(loss.logits, done) * term
    return parts
