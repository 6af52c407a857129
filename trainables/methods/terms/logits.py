"""Terms on logits: the student's against the teacher's, both (B, classes), in the batch's mean.

Every term is zero for equal logits, and does not change if a constant is added to an image's logits. The
factors inside the terms put their published weights into the range of alpha: the loss of a trial is
(1 - alpha) cross-entropy + alpha term.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.methods.terms.numerics import at_least_fp32, unit

LogitTerm = Callable[[Tensor, Tensor, Tensor, float], Tensor]  # student, teacher, labels (B,), tau

NON_TARGET = 8.0  # weight of DKD's non-target part; that of its target part is 1
STANDARDISED = 10.0  # published: 0.1 cross-entropy + 9 KL, which is alpha 0.9
CORRELATION = 2.0  # published: cross-entropy + 2 (inter + intra), which is alpha 0.5
WARM_UPS = {
    "dkd": 1 / 12
}  # share of the training in which a term's weight rises; published: 20 of 240 epochs
ROUNDING = 1e-6  # relative size of differences that are rounding errors of fp32


def logit_loss(student_logits: Tensor, teacher_logits: Tensor, tau: float) -> Tensor:
    """τ² KL(softmax(teacher/τ) || softmax(student/τ)) of (B, classes) logits: mean over the batch, nats.

    The factor keeps the gradient's size the same at every temperature (Hinton et al. 2015).
    """
    student = (at_least_fp32(student_logits) / tau).log_softmax(1)
    teacher = (at_least_fp32(teacher_logits) / tau).log_softmax(1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * tau**2


def kl(student: Tensor, teacher: Tensor, labels: Tensor, tau: float) -> Tensor:
    """Return `logit_loss` (Hinton et al. 2015, arXiv:1503.02531). The labels are not read."""
    return logit_loss(student, teacher, tau)


def dkd(student: Tensor, teacher: Tensor, labels: Tensor, tau: float) -> Tensor:
    """Decoupled distillation: target part + 8 x non-target part (Zhao et al. 2022, arXiv:2203.08679).

    The published weights of both are 1 and 8, beside cross-entropy of weight 1. `ramp` raises the term.
    """
    target, others = decoupled(student, teacher, labels, tau)
    return target + NON_TARGET * others


def decoupled(student: Tensor, teacher: Tensor, labels: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Split the divergence of the logits into τ² KL of (p_y, 1 - p_y) and τ² KL of the other classes.

    For an image, `logit_loss` is the first plus (1 - p_y of the teacher) x the second.

    Args:
        student: (B, classes) logits; three classes or more, since with two the second part is always zero.
        teacher: likewise.
        labels: (B,) int64.
        tau: softmax temperature.
    """
    columns = torch.arange(student.shape[1] - 1, device=labels.device)
    others = columns + (columns >= labels[:, None])  # (B, classes - 1): every class but the image's own
    target = logit_loss(_binary(student, labels, others, tau), _binary(teacher, labels, others, tau), tau)
    return target, logit_loss(student.gather(1, others), teacher.gather(1, others), tau)


def _binary(logits: Tensor, labels: Tensor, others: Tensor, tau: float) -> Tensor:
    """Return two logits an image whose softmax at τ is (p_y, 1 - p_y): (B, 2)."""
    logits = at_least_fp32(logits)
    rest = tau * (logits.gather(1, others) / tau).logsumexp(
        1, keepdim=True
    )  # finite where 1 - p_y underflows
    return torch.cat([logits.gather(1, labels[:, None]), rest], 1)


def standardised(student: Tensor, teacher: Tensor, labels: Tensor, tau: float) -> Tensor:
    """10 x `logit_loss` of logits with mean 0 and deviation 1 over the classes (Sun et al. 2024, 2403.01427).

    The scale of the student's logits is left to cross-entropy. With little weight on that (alpha > 0.9),
    accuracy is unharmed and the validation loss is not: do not use it as an objective then.
    """
    return STANDARDISED * logit_loss(_standard(student), _standard(teacher), tau)


def _standard(logits: Tensor) -> Tensor:
    logits = at_least_fp32(logits)
    centred = logits - logits.mean(1, keepdim=True)
    deviation = centred.std(1, keepdim=True)  # unbiased
    # The slope at equal logits, of a classifier that starts at zero, would be 1e7.
    differ = deviation > ROUNDING * logits.abs().amax(1, keepdim=True)
    return centred / (torch.where(differ, deviation, 1.0) + 1e-7)


def dist(student: Tensor, teacher: Tensor, labels: Tensor, tau: float) -> Tensor:
    """2 τ² x (2 - correlation over classes - correlation over images) (Huang et al. 2022, arXiv:2205.10536).

    Pearson correlations of the probabilities at τ: of every image over the classes, and of every class over
    the batch, both averaged. The second is noise below 32 images (`LogitTerm.check`).
    """
    ours = (at_least_fp32(student) / tau).softmax(1)
    theirs = (at_least_fp32(teacher) / tau).softmax(1)
    lost = 2 - _correlation(ours, theirs).mean() - _correlation(ours.T, theirs.T).mean()
    return CORRELATION * tau**2 * lost


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return the Pearson correlation of every row: (rows,); zero, without a slope, for constant rows."""
    return (_direction(a) * _direction(b)).sum(1)


def _direction(x: Tensor) -> Tensor:
    constant = ROUNDING**2 * x.square().sum(1, keepdim=True)
    return unit(x - x.mean(1, keepdim=True), constant)


def ramp(term: str, done: float) -> float:
    """Return the factor 0..1 on a term's weight after this share of the training."""
    return min(1.0, done / WARM_UPS[term]) if term in WARM_UPS else 1.0


LOGIT_TERMS: Mapping[str, LogitTerm] = {"kl": kl, "dkd": dkd, "standardised": standardised, "dist": dist}
