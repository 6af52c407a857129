"""Arms of the table of methods: every term and every method, each beside the logits that it is added to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.paper_arms import ALPHA, ARMS, BETA, TAU, Arm
from trainables.config import method_config

HALF = 0.5  # alpha that gives a term with its published factor the weight of cross-entropy


def _ama(**settings: Any) -> Any:
    given = {"alpha": ALPHA, "tau": TAU, "beta": 0.0, **settings}
    return method_config("ama").model_validate(given)


def _arm(title: str, loss: Mapping[str, Any], start: str = "teacher", **fields: Any) -> Arm:
    return Arm(title, start, _ama(**loss), 0.05, **fields)


METHOD_ARMS = {
    "smooth": Arm(
        *("label smoothing 0.1", "teacher", _ama(alpha=0.0), 0.05),
        optim={"label_smoothing": 0.1},
    ),
    "dkd": _arm("logits: dkd", {"logits": "dkd", "alpha": HALF}),
    "standardised": _arm("logits: standardised", {"logits": "standardised", "tau": 2.0}),
    "dist": _arm("logits: dist", {"logits": "dist", "alpha": HALF}),
    "relative": _arm("logits + maps: relative error", {"beta": BETA}),
    "attention": _arm("logits + maps: attention", {"beta": BETA, "maps": "attention"}),
    "statistics": _arm("logits + maps: statistics", {"beta": BETA, "maps": "statistics"}),
    "rkd": _arm("logits + embeddings: rkd", {"embeddings": "rkd"}),
    "pkt": _arm("logits + embeddings: pkt", {"embeddings": "pkt"}),
}
# What a row adds: an arm, the arm without it, and the name of the step.
METHOD_STEPS = (
    ("smooth", "finetune", "label smoothing"),
    *((arm, "logits", f"{METHOD_ARMS[arm].title}") for arm in METHOD_ARMS if arm != "smooth"),
)
ALL_ARMS = {**ARMS, **METHOD_ARMS}
