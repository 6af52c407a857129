"""Time a training step, the optimiser's step and the scoring of an image, under several settings.

Runs on random images and a copy of the model. With one CPU thread, times are CPU times of this process,
which other processes disturb little.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from trainables.runtime.runtime import Runtime
from trainables.runtime.seeds import seeded
from trainables.training.optim import make_optimizer

log = logging.getLogger(__name__)

Shape = tuple[int, int, int]
Action = Callable[[], object]

SECONDS = 3.0  # measuring time without warm-up; every candidate gets at least one timed run
ROUNDS = 5


def measure_steps(model: nn.Module, runtimes: Sequence[Runtime], batch: int, shape: Shape) -> list[float]:
    """Return the seconds of forward and backward on `batch` images under each runtime; infinite if it fails.

    Raises:
        RuntimeError: the model trains under none of them; the error is the model's.
    """
    with seeded(0):
        images, labels = torch.randn(batch, *shape), torch.zeros(batch, dtype=torch.int64)
        steps: list[Action | None] = []
        for runtime in runtimes:
            step = _step(model, runtime, images, labels)
            try:
                step()
            except (
                RuntimeError
            ) as fault:  # a layout or precision that the model does not support, or no memory
                if runtime is runtimes[-1] and not any(steps):
                    raise
                log.info("%s does not train with %s (%s)", type(model).__name__, runtime, fault)
                steps.append(None)
            else:
                steps.append(step)
        times = iter(_fastest([step for step in steps if step], runtimes[0]))
        return [next(times) if step else float("inf") for step in steps]


def measure_optimizers(model: nn.Module, runtime: Runtime, ways: Sequence[str]) -> list[float]:
    """Return the seconds of an optimiser step with each implementation; infinite if it fails here."""
    copied = _placed(model, runtime)
    for param in copied.parameters():
        param.grad = torch.zeros_like(param)
    found = dict.fromkeys(ways, float("inf"))
    steps = {}
    for way in ways:
        try:
            optimizer = make_optimizer(copied, 1e-6, 0.9, 0.0, way)
            optimizer.step()
        except RuntimeError:  # this implementation does not support the parameters' type or device
            continue
        steps[way] = optimizer.step
    found |= dict(zip(steps, _fastest(list(steps.values()), runtime), strict=True))
    return [found[way] for way in ways]


def measure_scoring(model: nn.Module, runtime: Runtime, batches: Sequence[int], shape: Shape) -> list[float]:
    """Return the seconds per image of a forward pass without gradients, for each batch size.

    Infinite from the first size that does not fit into the device's memory.
    """
    copied = _placed(model, runtime).eval()
    found = []
    with seeded(0), torch.inference_mode():
        for batch in batches:
            images = torch.randn(batch, *shape).to(runtime.device, memory_format=runtime.memory_format)

            def score(images: Tensor = images) -> Tensor:
                with runtime.autocast():
                    logits: Tensor = copied(images)
                return logits

            try:
                found.append(_fastest([score], runtime, SECONDS / len(batches))[0] / batch)
            except torch.OutOfMemoryError:
                break
    return found + [float("inf")] * (len(batches) - len(found))


def measure_start(model: nn.Module, runtime: Runtime, batch: int, shape: Shape) -> tuple[float, float]:
    """Return the seconds until the first step under `runtime` is done, and of each later step."""
    with seeded(0):
        images, labels = torch.randn(batch, *shape), torch.zeros(batch, dtype=torch.int64)
        started = time.perf_counter()
        step = _step(model, runtime, images, labels)
        step()
        _wait(runtime)
        first = time.perf_counter() - started
        (later,) = _fastest([step], runtime)
    return first, later


def _fastest(actions: Sequence[Action], runtime: Runtime, seconds: float = SECONDS) -> list[float]:
    """Return the shortest time of each action; actions take turns, after a warm-up turn."""
    alone = runtime.device.type == "cpu" and runtime.threads == 1
    clock = time.process_time if alone else time.perf_counter
    best = [float("inf")] * len(actions)
    for action in actions:
        action()
    _wait(runtime)
    started = time.perf_counter()
    for _ in range(ROUNDS):
        for index, action in enumerate(actions):
            start = clock()
            action()
            _wait(runtime)
            best[index] = min(best[index], clock() - start)
        if time.perf_counter() - started > seconds:
            break
    return best


def _wait(runtime: Runtime) -> None:
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)


def _placed(model: nn.Module, runtime: Runtime) -> nn.Module:
    copied: nn.Module = copy.deepcopy(model).to(runtime.device, memory_format=runtime.memory_format)  # type: ignore[call-overload]
    return copied.requires_grad_(True)


def training_step(model: nn.Module, runtime: Runtime, batch: int, shape: Shape) -> Callable[[], None]:
    """Return a step of a copy of `model` on random images: forward without gradients, forward, backward."""
    with seeded(0):
        images, labels = torch.randn(batch, *shape), torch.zeros(batch, dtype=torch.int64)
    images = images.to(runtime.device, memory_format=runtime.memory_format)
    step = _step(model, runtime, images, labels)
    teacher = _placed(model, runtime).eval()

    def whole() -> None:
        with torch.inference_mode(), runtime.autocast():
            teacher(images)
        step()

    return whole


def _step(model: nn.Module, runtime: Runtime, images: Tensor, labels: Tensor) -> Action:
    copied = _placed(model, runtime).train()
    called = torch.compile(copied) if runtime.compiled else copied
    images = images.to(runtime.device, memory_format=runtime.memory_format)
    labels = labels.to(runtime.device)

    def step() -> None:
        with runtime.autocast():
            logits = called(images)
        nn.functional.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        copied.zero_grad(set_to_none=True)

    return step
