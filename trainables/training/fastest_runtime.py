"""Find the runtime settings that train a model fastest on this device: measured once, cached in a file.

The settings are precision, memory layout, the optimiser's implementation, the batch size of evaluation and,
if trials are long enough, `torch.compile`. They must be measured: on the same CPU, bf16 trains a ResNet-20
1.8 times as fast as fp32, but a MobileNetV2 half as fast.
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

from trainables.config import RuntimeConfig
from trainables.config_base import hash_json
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
MAX_BATCH = {"cpu": 64, "cuda": 1024}  # of the measured steps; on a CPU larger ones give the same ranking
EVAL_BATCHES = {"cpu": (64, 128, 256, 512), "cuda": (512, 1024, 2048)}
OPTIMIZERS = ("single", "foreach", "fused")
START_UP = 20.0  # seconds, the least that compiling a student takes
MOST_GAIN = 0.4  # largest share of a step's time that compiling saves
WORTH = 0.95  # compile only if it brings a trial below this share of its time


def tuned(
    config: RuntimeConfig,
    model: nn.Module,
    image_shape: Shape,
    batch_size: int,
    cache: Path | None = None,
    images: int = 0,
) -> RuntimeConfig:
    """Return `config` with every open setting replaced by the one that trains `model` fastest here.

    A step is forward and backward in training mode. First compare precisions (fp32, and bf16 if it is fast
    on the device) and both layouts. Then, with the fastest of these, compare implementations of the optimiser
    and batch sizes of evaluation. Try compiling if a trial has enough steps to make up for its start-up.
    The result is cached for later processes. If two processes measure at the same time, both use the result
    of the first to finish.

    Args:
        config: settings given there are kept; if all are given, nothing is measured.
        model: images (B, 3, H, W) to logits; a copy of it is measured.
        image_shape: (3, H, W).
        batch_size: of the training; at least 2.
        cache: folder of the files; None: ~/.cache/ama-search/runtime. A folder that cannot be written is not
            an error.
        images: training images of a trial, summed over its epochs; 0: do not try compiling.

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
    """Return whether nothing is left to measure."""
    return all(getattr(config, name) not in ("auto", None) for name in CHOICES)


def _measure(
    config: RuntimeConfig, runtime: Runtime, model: nn.Module, shape: Shape, batch: int, images: int
) -> tuple[RuntimeConfig, dict[str, list[float | None]]]:
    """Return the chosen config and the measurements in milliseconds (of scoring: per image)."""
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
    """Return whether `steps` steps of `step` seconds could save more than compiling takes."""
    return step * steps * MOST_GAIN > START_UP


def wins_back(step: float, start_up: float, compiled: float, steps: float) -> bool:
    """Return whether compiling makes a trial of `steps` steps clearly shorter, start-up included.

    Args:
        step: seconds of a step, not compiled.
        start_up: seconds until the first compiled step is done.
        compiled: seconds of a compiled step.
        steps: number of steps.
    """
    return start_up + compiled * steps < WORTH * step * steps


def _compiled(model: nn.Module, runtime: Runtime, batch: int, shape: Shape) -> tuple[float, float]:
    """Return the seconds of start-up and of a step, compiled; infinite if compiling does not work."""
    try:
        return measure_start(model, replace(runtime, compiled=True), batch, shape)
    except Exception as error:  # backends raise their own types: no C++ compiler, unknown operator, ...
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
    """Return `config` completed from a file; None if the file is missing or damaged."""
    try:
        found = json.loads(path.read_text())["found"]
        # Validate: this version must know the file's values, and none may be left open.
        known = RuntimeConfig.model_validate({**config.model_dump(), **{k: found[k] for k in CHOICES}})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    given = {name for name in CHOICES if getattr(config, name) not in ("auto", None)}
    if any(getattr(known, name) != getattr(config, name) for name in given):
        return None
    return None if any(getattr(known, name) in ("auto", None) for name in CHOICES) else known


def _settle(path: Path, text: str, config: RuntimeConfig) -> RuntimeConfig | None:
    """Write the file unless another process has written a good one; return the config it then holds."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(text)
        try:
            os.link(fresh, path)  # unlike a rename, fails if the file exists: the first writer wins
        except FileExistsError:
            if _read(path, config) is None:
                fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
    except OSError:
        return None  # not cached: the next process measures again
    return _read(path, config)
