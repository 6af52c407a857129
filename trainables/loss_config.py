"""Settings of the loss: slots that methods share, and those of the method `ama`. Free of torch and Ray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveFloat

from trainables.config_base import Fraction, MethodConfig, searched
from trainables.errors import InputError

LEAST_CORRELATED = 32  # images from which the correlation of a class over a batch is more than noise


class LogitTerm(MethodConfig):
    """The slot of a term on logits: the loss has (1 - alpha) cross-entropy + alpha term."""

    alpha: Fraction = searched(
        0.5, 0.1, 0.9, description="weight of the logit term; 1 - alpha weighs cross-entropy"
    )
    tau: PositiveFloat = searched(
        4.0, 1.0, 8.0, log=True, description="softmax temperature of the logit term"
    )
    logits: Literal["kl", "dkd", "standardised", "dist"] = Field(
        "kl",
        description="logit term: kl (Hinton et al. 2015), dkd (decoupled, Zhao et al. 2022), standardised "
        "(Sun et al. 2024) or dist (correlations, Huang et al. 2022)",
    )

    def check(self, classes: int, batch_size: int) -> None:
        """Refuse `dkd` with two classes, and `dist` with batches of less than 32 images."""
        super().check(classes, batch_size)
        if self.alpha > 0 and self.logits == "dkd" and classes < 3:
            raise InputError(
                "logits: dkd compares the classes beside the right one, so it needs 3 or more; the data have "
                f"{classes}. Use kl, standardised or dist"
            )
        if self.alpha > 0 and self.logits == "dist" and batch_size < LEAST_CORRELATED:
            raise InputError(
                "logits: dist correlates each class over the images of a batch, so it needs optim.batch_size "
                f">= {LEAST_CORRELATED}, got {batch_size}. Enlarge the batch, or use kl, dkd or standardised"
            )


class MapTerm(MethodConfig):
    """The slot of a term on activation maps, summed over the spans, with the weight beta."""

    for_separate: ClassVar[Mapping[str, Any]] = {"beta": 0.0, "maps": "relative"}

    beta: float = searched(1.0, 0.1, 10.0, log=True, ge=0.0, description="weight of the feature term")
    maps: Literal["relative", "attention", "statistics"] = Field(
        "relative",
        description="feature term: relative squared error, attention (Zagoruyko & Komodakis 2017) or channel "
        "statistics (Yang et al. 2020)",
    )


class EmbeddingTerm(MethodConfig):
    """The slot of a term on embeddings, the inputs of the classifiers, with the weight gamma."""

    embeddings: Literal["none", "rkd", "pkt"] = Field(
        "none",
        description="embedding term with the weight gamma: none, rkd (relations, Park et al. 2019) or pkt "
        "(similarities, Passalis & Tefas 2018)",
    )
    gamma: float = searched(1.0, log=True, ge=0.0, description="weight of the embedding term")

    def unused(self) -> set[str]:
        """`gamma` has an effect with an embedding term alone."""
        return super().unused() | ({"gamma"} if self.embeddings == "none" else set())


class LossConfig(EmbeddingTerm, MapTerm, LogitTerm):
    """Settings of the method `ama`: terms and weights of the named parts of its loss.

    Example:
        loss = LossConfig(alpha=0.3, tau=2.0, beta=2.0, supervision="adaptive")
        print(DistillConfig(loss=loss).content())
    """

    for_separate: ClassVar[Mapping[str, Any]] = {
        **MapTerm.for_separate,
        "supervision": "uniform",
        "wiring": "chained",
    }

    supervision: Literal["uniform", "adaptive", "depth"] = searched(
        "uniform",
        choices=("uniform", "adaptive"),
        description="span weights of the feature term: equal, learned during training, or a power of "
        "`depth_factor`",
    )
    entropy_weight: float = Field(
        default=1.0, ge=0.0, description="adaptive only: pull of learned weights and mixes towards the prior"
    )
    depth_factor: PositiveFloat = searched(
        0.7,
        log=True,
        description="depth only: weight of a span as a multiple of the next one's, e.g. [0.5, 2]",
    )
    wiring: Literal["chained", "forced", "scheduled", "reachable", "grafted"] = Field(
        "chained",
        description="what a module reads and learns. chained: the student's map, the teacher's; forced: the "
        "teacher's map before the span, in a further pass; scheduled: that map in a share of the batches, "
        "which falls from p0 to 0; reachable: as chained, the target mixed with the map of the library's "
        "module; grafted: a span is replaced in a share of the batches that rises from r0 to 1",
    )
    p0: Fraction = searched(1.0, description="scheduled only: share of batches at the start, e.g. [0.5, 1]")
    q: Fraction = searched(
        0.3, description="scheduled and grafted: share of the epochs in which it changes, e.g. [0.1, 0.7]"
    )
    m: Fraction = searched(0.5, description="reachable only: weight of the library's map, e.g. [0, 1]")
    r0: Fraction = searched(0.5, description="grafted only: share of batches at the start, e.g. [0.2, 0.8]")

    def unused(self) -> set[str]:
        """`entropy_weight` and `depth_factor` belong to a supervision, `p0`, `q`, `m` and `r0` to wirings."""
        used = {
            "adaptive": {"entropy_weight"},
            "depth": {"depth_factor"},
            "scheduled": {"p0", "q"},
            "reachable": {"m"},
            "grafted": {"r0", "q"},
        }
        ours = used.get(self.supervision, set()) | used.get(self.wiring, set())
        return super().unused() | (set().union(*used.values()) - ours)
