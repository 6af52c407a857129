"""How this device trains a model fastest: measured once, kept in a small file.

Precision, memory layout, the optimiser's way through the parameters, the batch size of evaluation, and, where
trials are long enough, `torch.compile`. No rule of thumb holds: on one CPU bf16 trains a ResNet-20 1.8 times
as fast as fp32 and a MobileNetV2 half as fast.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainables.config import RuntimeConfig, hash_json
from trainables.runtime.runtime import Runtime, device_name, resolve
from trainables.training.step_times import (
    Shape,
    measure_optimizers,
    measure_scoring,
    measure_start,
    measure_steps,
)

log = logging.getLogger(__name__)

DEFAULT_CACHE = Path("~/.cache/ama-search/runtime")
FORMAT = 2
CHOICES = ("precision", "layout", "optimizer", "compile", "eval_batch")
MAX_BATCH = {"cpu": 64, "cuda": 1024}  # of the measured steps; on a CPU larger ones rank the candidates alike
EVAL_BATCHES = {"cpu": (64, 128, 256, 512), "cuda": (512, 1024, 2048)}
OPTIMIZERS = ("single", "foreach", "fused")
START_UP = 20.0  # seconds that compiling a student takes at least: less is not worth trying to win
MOST_GAIN = 0.4  # of a step's time, by compiling
WORTH = 0.95  # compiling must bring a trial below this share of its time


def tuned(
    config: RuntimeConfig,
    model: nn.Module,
    image_shape: Shape,
    batch_size: int,
    cache: Path | None = None,
    images: int = 0,
) -> RuntimeConfig:
    """`config` with all that it leaves open replaced by what trains `model` fastest here.

    A step is forward and backward in training mode. Candidates are bf16 where the device is fast at it, fp32
    always; both layouts; then, with the best of these, the optimiser's ways and batch sizes of evaluation.
    Compiling is tried where a trial's steps are so many that they may win its start-up back. What one process
    has found, later ones read; of two that measure at a time the first to finish decides for both.

    Args:
        config: what is given there stays as it is; with everything given nothing is measured.
        model: images (B, 3, H, W) to logits; a copy of it is measured.
        image_shape: (3, H, W).
        batch_size: of the training; at least 2.
        cache: folder of the files; None: ~/.cache/ama-search/runtime. One that cannot be written is no fault.
        images: that a trial trains on, all its epochs together; 0: nothing is compiled.

    Raises:
        InputError: as `resolve`.
    """
    runtime = resolve(config)
    if config.compile == "auto" and not images:
        config = config.model_copy(update={"compile": "off"})
    if is_settled(config):
        return config
    batch = max(2, min(batch_size, MAX_BATCH[runtime.device.type]))
    key = {
        "format": FORMAT,
        "device": device_name(runtime.device),
        "torch": torch.__version__,
        "threads": runtime.threads,
        "model": hash_json([str(model), [list(p.shape) for p in model.parameters()]]),
        "shape": [batch, *image_shape],
        "images": images if config.compile == "auto" else None,
        "config": config.model_dump(mode="json", include={*CHOICES, "device"}),
    }
    path = (cache or DEFAULT_CACHE).expanduser() / f"{hash_json(key)}.json"
    if (known := _read(path, config)) is not None:
        return known
    chosen, milliseconds = _measure(config, runtime, model, image_shape, batch, images)
    found = {name: getattr(chosen, name) for name in CHOICES}
    text = json.dumps({"found": found, "milliseconds": milliseconds, "key": key}, indent=1)
    return _settle(path, text, config) or chosen


def is_settled(config: RuntimeConfig) -> bool:
    """Whether nothing is left to be measured."""
    return all(getattr(config, name) not in ("auto", None) for name in CHOICES)


def _measure(
    config: RuntimeConfig, runtime: Runtime, model: nn.Module, shape: Shape, batch: int, images: int
) -> tuple[RuntimeConfig, dict[str, list[float | None]]]:
    """The config chosen, and what was measured in milliseconds (of scoring: an image)."""
    found: dict[str, list[float]] = {}
    runtime = replace(runtime, compiled=False)
    candidates = _candidates(config, runtime)
    if len(candidates) > 1:
        found["step"] = measure_steps(model, candidates, batch, shape)
        runtime = candidates[found["step"].index(min(found["step"]))]
    update: dict[str, Any] = {
        "precision": runtime.precision,
        "layout": "channels_last" if runtime.channels_last else "contiguous",
    }
    if config.optimizer == "auto":
        found["optimizer"] = measure_optimizers(model, runtime, OPTIMIZERS)
        update["optimizer"] = OPTIMIZERS[found["optimizer"].index(min(found["optimizer"]))]
    if config.eval_batch is None:
        sizes = EVAL_BATCHES[runtime.device.type]
        found["scoring"] = measure_scoring(model, runtime, sizes, shape)
        update["eval_batch"] = sizes[found["scoring"].index(min(found["scoring"]))]
    if config.compile == "auto":
        step = min(found["step"]) if "step" in found else measure_steps(model, [runtime], batch, shape)[0]
        update["compile"] = "off"
        if worth_trying(step, images / batch):
            start_up, later = _compiled(model, runtime, batch, shape)
            found["compiled"] = [start_up, later]
            update["compile"] = "on" if wins_back(step, start_up, later, images / batch) else "off"
    milliseconds = {what: [_milliseconds(s) for s in each] for what, each in found.items()}
    return config.model_copy(update=update), milliseconds


def worth_trying(step: float, steps: float) -> bool:
    """Whether so many steps of so many seconds are long enough that compiling them could pay."""
    return step * steps * MOST_GAIN > START_UP


def wins_back(step: float, start_up: float, compiled: float, steps: float) -> bool:
    """Whether a trial of `steps` steps is clearly shorter compiled, its start-up included. All in seconds."""
    return start_up + compiled * steps < WORTH * step * steps


def _compiled(model: nn.Module, runtime: Runtime, batch: int, shape: Shape) -> tuple[float, float]:
    """Seconds of start-up and of a step, compiled; infinite where there is no compiler or it fails."""
    try:
        return measure_start(model, replace(runtime, compiled=True), batch, shape)
    except Exception as error:  # a backend's own kinds: no C++ compiler, an operator it does not know, ...
        log.info("torch.compile does not work here: %s", error)
        return math.inf, math.inf
    finally:
        torch._dynamo.reset()


def _candidates(config: RuntimeConfig, runtime: Runtime) -> list[Runtime]:
    precisions = {runtime.precision, "fp32"} if config.precision == "auto" else {runtime.precision}
    layouts = (False, True) if config.layout == "auto" else (runtime.channels_last,)
    pairs = itertools.product(sorted(precisions), layouts)
    return [replace(runtime, precision=each, channels_last=layout) for each, layout in pairs]


def _milliseconds(seconds: float) -> float | None:  # JSON knows no infinity
    return round(1e3 * seconds, 4) if math.isfinite(seconds) else None


def _read(path: Path, config: RuntimeConfig) -> RuntimeConfig | None:
    """`config` as a file completes it; None without a file, or with a damaged one."""
    try:
        found = json.loads(path.read_text())["found"]
        # Validated: what the file says must be a choice that this version knows, and one that was made.
        known = RuntimeConfig.model_validate({**config.model_dump(), **{k: found[k] for k in CHOICES}})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    given = {name for name in CHOICES if getattr(config, name) not in ("auto", None)}
    if any(getattr(known, name) != getattr(config, name) for name in given):
        return None
    return None if any(getattr(known, name) in ("auto", None) for name in CHOICES) else known


def _settle(path: Path, text: str, config: RuntimeConfig) -> RuntimeConfig | None:
    """Write the file unless another process has written a good one meanwhile; the config it now means."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(text)
        try:
            os.link(fresh, path)  # unlike a rename it fails where the file exists: the first one stands
        except FileExistsError:
            if _read(path, config) is None:
                fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
    except OSError:
        return None  # a cache that cannot be kept costs the next process a measurement
    return _read(path, config)
