"""Users' own metrics: what they are given, where their values go, and what a broken one says."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from analysis.metrics import Metric
from trainables.config import DistillConfig, RuntimeConfig
from trainables.errors import InputError
from trainables.network.evaluate import evaluate
from trainables.network.scores import check_scores, load_scores
from trainables.runtime.runtime import resolve
from trainables.training.metrics import EpochMetrics

RUNTIME = resolve(RuntimeConfig(device="cpu", precision="fp32", threads=1))


def score(function, name="own"):
    return {name: SimpleNamespace(metric=Metric(name, name, worst=0.0, best=1.0), score=function)}


def batches(*sizes):
    torch.manual_seed(0)
    return [(torch.randn(n, 3), torch.arange(n) % 3) for n in sizes]


def test_a_score_sees_all_logits_and_labels_at_once():
    seen = []

    def first_share(logits, labels):
        seen.append((logits.dtype, logits.shape, labels.tolist()))
        return (logits.argmax(1) == labels).float().mean()

    found = evaluate(nn.Identity(), batches(4, 2), RUNTIME, score(first_share))
    assert seen == [(torch.float32, (6, 3), [0, 1, 2, 0, 0, 1])]
    assert found.scores == {"own": pytest.approx(found.accuracy)}
    assert evaluate(nn.Identity(), batches(4, 2), RUNTIME).scores == {}


def test_no_images_give_nan():
    assert str(evaluate(nn.Identity(), [], RUNTIME, score(lambda *_: 1.0)).scores) == "{'own': nan}"


@pytest.mark.parametrize(
    ("function", "part"),
    [
        (lambda *_: 1 / 0, "ZeroDivisionError"),
        (lambda *_: torch.zeros(2), "failed"),
        (lambda *_: None, "failed"),
        (lambda *_: float("nan"), "a finite number"),
        (lambda *_: float("inf"), "a finite number"),
    ],
)
def test_a_broken_score_is_found_on_random_logits(function, part):
    with pytest.raises(InputError, match=rf"metric own: .*{part}"):
        check_scores(score(function), 3)


def test_scores_are_loaded_by_the_name_of_their_metric(tmp_path: Path, monkeypatch):
    text = (
        "from types import SimpleNamespace as S\nF1 = S(metric=S(name='f1'), score=lambda x, y: 0.5)\nX = 3\n"
    )
    (tmp_path / "own_scores_for_test.py").write_text(text)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    assert load_scores(["import:own_scores_for_test:F1"])["f1"].score(None, None) == 0.5
    with pytest.raises(InputError, match="expected a metric of predictions"):
        load_scores(["import:own_scores_for_test:X"])


def test_a_config_without_scores_keeps_its_digest():
    bare, own = DistillConfig(), DistillConfig(scores=("import:a:B",))
    written = bare.model_dump(mode="json")
    written.pop("scores", None)  # as before there were any
    assert DistillConfig.model_validate(written).digest() == bare.digest() != own.digest()
    assert DistillConfig.model_validate_json(own.model_dump_json()) == own


def test_an_epoch_with_own_metrics_survives_writing():
    names = ("val_accuracy", "val_loss", "train_loss", "lr", "seconds", "images_per_second")
    epoch = EpochMetrics(epoch=1, **dict.fromkeys(names, 1.0), metrics={"own": 0.25})
    assert epoch.as_dict()["own"] == 0.25
    assert "metrics" not in epoch.as_dict()
    assert EpochMetrics.from_dict(epoch.as_dict()) == epoch
