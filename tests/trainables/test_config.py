"""Digests: what tells one config's files from another's, over versions of this code."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from trainables.config import DistillConfig, OptimConfig, StudentSpec, TeacherConfig
from trainables.config_base import Config
from trainables.loss_config import LossConfig


class Inner(Config):
    width: float = 1.0


class Before(Config):
    name: str
    lr: float = 0.1
    inner: Inner = Inner()


class InnerLater(Inner):
    kind: str = "plain"


class Later(Config):
    """`Before` with two keys more, one of them in a section."""

    name: str
    lr: float = 0.1
    inner: InnerLater = InnerLater()
    decay: float = 0.5


def test_a_key_added_with_a_default_changes_no_digest() -> None:
    """Fault 15: checkpoints of running studies stay theirs."""
    given = {"name": "a", "lr": 0.2, "inner": {"width": 2.0}}
    assert Before.model_validate(given).digest() == Later.model_validate(given).digest()
    assert Before(name="a").digest() == Later(name="a").digest()


def test_whatever_differs_from_the_default_changes_the_digest() -> None:
    digests = [
        Later.model_validate({"name": "a", **given}).digest()
        for given in ({}, {"lr": 0.2}, {"decay": 0.1}, {"inner": {"kind": "other"}}, {"inner": {"width": 2}})
    ]
    assert len(set(digests)) == len(digests)
    assert Later(name="a").digest() != Later(name="b").digest()


def test_a_default_said_is_a_default_unsaid() -> None:
    assert DistillConfig(loss=LossConfig(alpha=0.5), optim=OptimConfig()).digest() == DistillConfig().digest()
    assert TeacherConfig(epochs=30).digest() == TeacherConfig().digest()


def test_a_config_of_version_0_1_is_read() -> None:
    old = {"student": {"widths": {"a": 0.5}, "fuse": True}, "loss": {"alpha": 0.3, "supervision": "adaptive"}}
    config = DistillConfig.model_validate(old)
    assert config.method == "ama" and config.loss == LossConfig(alpha=0.3, supervision="adaptive")
    assert config.student == StudentSpec(widths={"a": 0.5})
    assert DistillConfig.model_validate_json(config.model_dump_json()) == config


def test_settings_are_those_of_the_method() -> None:
    with pytest.raises(ValidationError, match="peers"):
        DistillConfig.model_validate({"loss": {"peers": 3}})
    with pytest.raises(ValidationError, match=r"unknown method .amma.*nearest: ama"):
        DistillConfig.model_validate({"method": "amma"})
    assert DistillConfig.model_validate({"method": "ama"}).loss == LossConfig()
