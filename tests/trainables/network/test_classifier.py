"""The classifier of networks of several kinds, and those without one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainables.errors import InputError
from trainables.network.architectures import build_model
from trainables.network.classifier import classifier_path

IMAGES = torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize(
    ("arch", "path"),
    [
        ("cifar_resnet8", "fc"),
        ("wrn10_1", "fc"),
        ("torchvision:mobilenet_v2", "classifier.1"),
        ("torchvision:vgg11_bn", "classifier.6"),
        ("torchvision:convnext_tiny", "classifier.2"),
    ],
)
def test_the_last_linear_layer_is_found(arch: str, path: str) -> None:
    model = build_model(arch, 10, (3, 32, 32)).train()
    assert classifier_path(model, IMAGES) == path
    assert model.training, "the mode is restored"
    assert not any(module._forward_hooks for module in model.modules())


class Scaled(nn.Module):
    """Changes the logits after the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 3.0 * self.fc(images.mean((2, 3)))


def test_heads_of_other_kinds_are_refused() -> None:
    conv = nn.Sequential(nn.Conv2d(3, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    soft = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10), nn.Softmax(1))
    for model in (conv, soft, Scaled()):
        with pytest.raises(InputError, match="ends with a linear layer on one vector per image"):
            classifier_path(model, IMAGES)
