"""A small teacher whose students leave a line for every epoch they train, whatever becomes of the process.

Every worker imports this module with the teacher. The lines are evidence that neither the study nor Ray
wrote.
"""

from __future__ import annotations

import json
import os
import time

from torch import Tensor, nn

from trainables.network.architectures import build_model
from trainables.training.loop import Distiller
from trainables.training.metrics import EpochMetrics

JOURNAL = "AMA_TEST_JOURNAL"  # environment: the file for the lines
SLOWER = "AMA_TEST_SECONDS"  # environment: seconds by which every epoch takes longer

_run_epoch = Distiller.run_epoch


def _note(what: str, distiller: Distiller, epoch: int) -> None:
    line = {"what": what, "key": distiller.config.digest(), "epoch": epoch, "pid": os.getpid()}
    file = os.open(os.environ[JOURNAL], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, (json.dumps({**line, "time": time.time()}) + "\n").encode())
    os.close(file)


def _noted(self: Distiller) -> EpochMetrics:
    epoch = self.epoch + 1
    _note("began", self, epoch)
    metrics = _run_epoch(self)
    time.sleep(float(os.environ.get(SLOWER, "0")))
    _note("ended", self, epoch)
    return metrics


if JOURNAL in os.environ:
    Distiller.run_epoch = _noted  # type: ignore[method-assign]


class Recorded(nn.Module):
    """cifar_resnet8 in a class of this module, so that unpickling it imports the module."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.net = build_model("cifar_resnet8", num_classes, (3, 8, 8))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits


def make(num_classes: int) -> nn.Module:
    return Recorded(num_classes)
