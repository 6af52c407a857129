"""Which precision and layout train a model fastest on this device: measured once, kept in a small file.

No rule of thumb holds: on one CPU bf16 trains a ResNet-20 1.8 times as fast as fp32 and a MobileNetV2 half as
fast.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from trainables.config import RuntimeConfig, hash_json
from trainables.runtime import Runtime, device_name, resolve, seeded

DEFAULT_CACHE = Path("~/.cache/ama-search/runtime")
SECONDS = 3.0  # of measuring, warm-up left out; the least is one timed step of each candidate
ROUNDS = 5
MAX_BATCH = 64  # larger batches rank the candidates alike


def tuned(
    config: RuntimeConfig,
    model: nn.Module,
    image_shape: tuple[int, int, int],
    batch_size: int,
    cache: Path | None = None,
) -> RuntimeConfig:
    """`config` with every `auto` of precision and layout replaced by what trains `model` fastest here.

    Candidates are what the config leaves open: bf16 where the device is fast at it, fp32 always; both
    layouts. A step is forward and backward in training mode. What one process has found, later ones read;
    of two that measure at a time the first to finish decides for both.

    Args:
        config: precision or layout given there stay as they are; with both given nothing is measured.
        model: images (B, 3, H, W) to logits; a copy of it is measured.
        image_shape: (3, H, W).
        batch_size: of the training; at least 2.
        cache: folder of the files; None: ~/.cache/ama-search/runtime. One that cannot be written is no fault.

    Raises:
        InputError: as `resolve`.
    """
    runtime = resolve(config)
    candidates = _candidates(config, runtime)
    if len(candidates) == 1:
        return _chosen(config, candidates[0])
    batch = max(2, min(batch_size, MAX_BATCH))
    key = {
        "device": device_name(runtime.device),
        "torch": torch.__version__,
        "threads": runtime.threads,
        "model": hash_json([str(model), [list(p.shape) for p in model.parameters()]]),
        "shape": [batch, *image_shape],
        "candidates": [[each.precision, each.channels_last] for each in candidates],
    }
    path = (cache or DEFAULT_CACHE).expanduser() / f"{hash_json(key)}.json"
    if (known := _read(path, candidates)) is not None:
        return _chosen(config, known)
    seconds = measure_steps(model, candidates, batch, image_shape)
    best = candidates[seconds.index(min(seconds))]
    found = {"precision": best.precision, "channels_last": best.channels_last}
    measured = [round(1e3 * each, 3) for each in seconds]
    text = json.dumps({**found, "milliseconds": measured, "key": key}, indent=1)
    return _chosen(config, _settle(path, text, candidates) or best)


def measure_steps(
    model: nn.Module, runtimes: list[Runtime], batch: int, image_shape: tuple[int, int, int]
) -> list[float]:
    """Seconds of a training step under each runtime: the fastest of a few, taken in turns.

    On a CPU it is the time this process computed, which other processes disturb little.
    """
    with seeded(0):
        images, labels = torch.randn(batch, *image_shape), torch.zeros(batch, dtype=torch.int64)
        steps = [_step(model, runtime, images, labels) for runtime in runtimes]
        for step in steps:
            step()
        best = [float("inf")] * len(steps)
        started = time.perf_counter()
        for _ in range(ROUNDS):
            best = [min(before, step()) for before, step in zip(best, steps, strict=True)]
            if time.perf_counter() - started > SECONDS:
                break
    return best


def _candidates(config: RuntimeConfig, runtime: Runtime) -> list[Runtime]:
    precisions = {runtime.precision, "fp32"} if config.precision == "auto" else {runtime.precision}
    layouts = (False, True) if config.layout == "auto" else (runtime.channels_last,)
    pairs = itertools.product(sorted(precisions), layouts)
    return [Runtime(runtime.device, each, layout, runtime.threads) for each, layout in pairs]


def _chosen(config: RuntimeConfig, runtime: Runtime) -> RuntimeConfig:
    layout = "channels_last" if runtime.channels_last else "contiguous"
    return config.model_copy(update={"precision": runtime.precision, "layout": layout})


def _step(
    model: nn.Module, runtime: Runtime, images: torch.Tensor, labels: torch.Tensor
) -> Callable[[], float]:
    copied = copy.deepcopy(model).to(runtime.device, memory_format=runtime.memory_format).train()  # type: ignore[call-overload]
    copied.requires_grad_(True)
    images = images.to(runtime.device, memory_format=runtime.memory_format)
    labels = labels.to(runtime.device)
    cuda = runtime.device.type == "cuda"
    clock = time.perf_counter if cuda else time.process_time

    def step() -> float:
        start = clock()
        with runtime.autocast():
            logits = copied(images)
        nn.functional.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        copied.zero_grad(set_to_none=True)
        if cuda:
            torch.cuda.synchronize(runtime.device)
        return clock() - start

    return step


def _read(path: Path, candidates: list[Runtime]) -> Runtime | None:
    """The candidate that a file names; None without a file, or with a damaged one."""
    try:
        found = json.loads(path.read_text())
        named = (found["precision"], found["channels_last"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return next((each for each in candidates if (each.precision, each.channels_last) == named), None)


def _settle(path: Path, text: str, candidates: list[Runtime]) -> Runtime | None:
    """Write the file unless another process has written a good one meanwhile; the candidate it now names."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(text)
        try:
            os.link(fresh, path)  # unlike a rename it fails where the file exists: the first one stands
        except FileExistsError:
            if _read(path, candidates) is None:
                fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
    except OSError:
        return None  # a cache that cannot be kept costs the next process a measurement
    return _read(path, candidates)
