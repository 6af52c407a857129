"""Times by part, and peaks of memory."""

from __future__ import annotations

import time

import pytest
import torch

from trainables.runtime.memory import peaks, private_mib, reset_peaks
from trainables.runtime.stopwatch import Stopwatch

CPU = torch.device("cpu")


def test_time_goes_to_the_part_that_took_it() -> None:
    watch = Stopwatch(CPU)
    for _ in range(2):
        time.sleep(0.02)
        watch.mark("data")
        time.sleep(0.05)
        watch.mark("step")
    time.sleep(0.1)
    watch.start()
    watch.mark("eval")
    seconds = watch.seconds()
    assert set(seconds) == {"data", "step", "eval"}
    assert 0.04 <= seconds["data"] < seconds["step"] and seconds["step"] >= 0.1
    assert seconds["eval"] < 0.1, "what was before the start counts for nothing"


def test_the_peak_is_that_since_it_was_reset() -> None:
    before = private_mib()
    big = torch.ones(50 * 2**20)  # 200 MiB
    assert private_mib() > before + 150
    high, gpu = peaks(CPU)
    assert gpu == 0.0
    del big
    reset_peaks(CPU)
    after, _ = peaks(CPU)
    assert after < high - 150


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_timed_by_events() -> None:
    device = torch.device("cuda")
    watch = Stopwatch(device)
    x = torch.randn(4096, 4096, device=device)
    watch.start()
    for _ in range(20):
        x = x @ x
    watch.mark("step")
    assert watch.seconds()["step"] > 0
    reset_peaks(device)
    assert peaks(device)[1] >= 64
