"""Build the module library: distil every candidate AMA module once per teacher; trials start from it.

There are two phases, both without labels. First, every module learns alone to map the block's input to the
block's output; one teacher forward pass per batch serves all modules, whose losses are independent.
Then students are sampled at random and the modules in them are trained together on the teacher's maps and
logits, so that each module learns to handle the errors of the modules before it.

Sources: blockwise supervision by the teacher's own activations, Li et al. 2020 (DNA, arXiv 1911.13053) and
Moons et al. 2021 (DONNA, arXiv 2012.08859); weight sharing between sampled networks, Cai et al. 2020
(Once-for-All, arXiv 1908.09791).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from trainables.blocks.blocks import Block
from trainables.config import LibraryConfig, StudentSpec
from trainables.data.dataset import ImageData
from trainables.data.split import Batch
from trainables.library.library import Library, library_key
from trainables.methods.base import TEACHER, Setup
from trainables.methods.terms.logits import logit_loss
from trainables.methods.terms.maps import relative_error
from trainables.network.evaluate import evaluate
from trainables.network.surgery import Skip, exchanged
from trainables.network.taps import Inputs, Taps, frozen, overwritten_inputs, overwritten_outputs
from trainables.runtime.runtime import Runtime
from trainables.student.build import build_span
from trainables.student.spans import Span, candidate_spans, merged_widths, spans_of
from trainables.training.optim import lr_at

TRIED = 4  # images of the check for maps that are changed in place
TAU = 4.0  # softmax temperature of the logit term in the second phase
SOLO_IMAGES = 1024  # validation images for a module's solo loss
SOLO_BATCH = 128  # images at a time: larger batches exceed a CPU's caches

Progress = Callable[[str, int, int], None]


def build_library(
    setup: Setup,
    widths: Sequence[float],
    fuse: bool = True,
    config: LibraryConfig | None = None,
    seed: int = 0,
    *,
    key: str | None = None,
    progress: Progress | None = None,
) -> Library:
    """Distil every candidate module of a teacher, first alone, then in randomly sampled students.

    Sources: Li et al. 2020 (DNA, arXiv 1911.13053), Moons et al. 2021 (DONNA, arXiv 2012.08859), Cai et al.
    2020 (Once-for-All, arXiv 1908.09791).

    Args:
        setup: the teacher (not changed), its blocks that may be replaced, training and validation images,
            runtime.
        widths: of the modules.
        fuse: whether fused spans are candidates.
        config: epochs of both phases, learning rate, batch size; None: the defaults.
        seed: of the modules' initial weights and of the sampled students.
        key: the library's name; None: the `library_key` of these arguments.
        progress: called with (task, batches done, batches in all).

    Returns:
        The modules' weights by span key, for `Setup.of(..., modules=library.modules)`, and their errors.

    Example:
        library = build_library(setup, [0.25], config=LibraryConfig(epochs=0.1, student_epochs=0.1))
        start = Setup.of(teacher.model, blocks, data, modules=library.modules)
        spec = StudentSpec(widths={block.name: 0.25 for block in blocks})
        result = distill(DistillConfig(student=spec, warm_start="library", epochs=1), start)
        print(library.proxy(blocks, spec), result.history[-1].val_accuracy)
    """
    started = time.perf_counter()
    config = config or LibraryConfig()
    teacher, blocks, data, runtime = setup.teachers[TEACHER], setup.blocks, setup.data, setup.runtime
    if key is None:
        key = library_key(setup.teacher_hash, data.hash, blocks, widths, fuse, config, seed)
    spans = candidate_spans(blocks, widths, fuse)
    teacher = teacher.to(runtime.device, memory_format=runtime.memory_format).eval()  # type: ignore[call-overload]
    modules = {span.key: _place(build_span(span, seed), runtime) for span in spans}
    train = _Phases(teacher, blocks, spans, modules, data, runtime, config, seed, progress)
    train.alone()
    train.together()
    errors, solo = _score(teacher, spans, modules, data, runtime, train.copied)
    states = {
        k: {n: t.detach().cpu().contiguous() for n, t in m.state_dict().items()} for k, m in modules.items()
    }
    return Library(key, states, errors, solo, time.perf_counter() - started)


def sampled_students(
    blocks: Sequence[Block], widths: Sequence[float], fuses: bool, seed: int
) -> Iterator[StudentSpec]:
    """Yield random students without end, each with 1 to all blocks replaced, every number equally likely.

    Args:
        blocks: blocks that may be replaced.
        widths: widths of the library's modules, sorted.
        fuses: whether half of the students fuse adjacent blocks.
        seed: of the random draws.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        share, fuse = torch.rand(2, generator=generator).tolist()
        draws = torch.rand(len(blocks), generator=generator)
        draws[int(draws.argmin())] = 0.0
        levels = torch.randint(len(widths), (len(blocks),), generator=generator).tolist()
        chosen = {
            block.name: merged_widths(block, widths)[widths[level]]
            for block, level, draw in zip(blocks, levels, draws.tolist(), strict=True)
            if draw <= share
        }
        yield StudentSpec(widths=chosen, fuse=fuses and fuse < 0.5)


def _place(module: nn.Module, runtime: Runtime) -> nn.Module:
    placed: nn.Module = module.to(runtime.device, memory_format=runtime.memory_format)  # type: ignore[call-overload]
    return placed


class _Phases:
    """The two training phases of the same modules."""

    def __init__(
        self,
        teacher: nn.Module,
        blocks: Sequence[Block],
        spans: Sequence[Span],
        modules: Mapping[str, nn.Module],
        data: ImageData,
        runtime: Runtime,
        config: LibraryConfig,
        seed: int,
        progress: Progress | None,
    ) -> None:
        self.teacher, self.blocks, self.spans, self.modules = teacher, blocks, spans, modules
        self.data, self.runtime, self.config, self.seed, self.progress = data, runtime, config, seed, progress
        self.widths = sorted({span.width for span in spans})
        self.fuses = any(len(span.blocks) > 1 for span in spans)
        self.copied = _overwritten(teacher, spans, data, runtime)

    def alone(self) -> None:
        """Train every module alone to reproduce its block on the teacher's activations."""
        outputs = sorted({span.last for span in self.spans})
        with Inputs(self.teacher, sorted({span.first for span in self.spans}), self.copied) as inputs:
            for images in self._batches("distilling modules", self.config.epochs, 0):
                taps = Taps(self.teacher, outputs, self.copied)
                with taps as maps, torch.no_grad(), self.runtime.autocast():
                    self.teacher(images)
                    targets = dict(maps.outputs)
                for span in self.spans:
                    with self.runtime.autocast():
                        shown = self.modules[span.key](inputs.inputs[span.first])
                    # Each graph is freed at once: the peak is the memory of the largest module.
                    relative_error(shown, targets[span.last]).backward()  # type: ignore[no-untyped-call]

    def together(self) -> None:
        """Train the modules of randomly sampled students on the teacher's maps and logits."""
        students = sampled_students(self.blocks, self.widths, self.fuses, self.seed)
        with frozen(self.teacher):
            for images in self._batches("training sampled students", self.config.student_epochs, 10_000):
                spans = spans_of(self.blocks, next(students))
                lasts = [span.last for span in spans]
                with Taps(self.teacher, lasts, self.copied) as maps, torch.no_grad():
                    with self.runtime.autocast():
                        target = self.teacher(images)
                    targets = dict(maps.outputs)
                parts = {span.first: self.modules[span.key] for span in spans}
                skips: dict[str, nn.Module] = {path: Skip() for span in spans for path in span.members[1:]}
                with exchanged(self.teacher, {**parts, **skips}):
                    copied = [span.first for span in spans if span.last in self.copied]
                    with Taps(self.teacher, list(parts), copied) as shown, self.runtime.autocast():
                        logits = self.teacher(images)
                        loss = logit_loss(logits, target, TAU)
                        for span in spans:
                            loss = loss + relative_error(shown.outputs[span.first], targets[span.last])
                    loss.backward()  # type: ignore[no-untyped-call]

    def _batches(self, what: str, epochs: float, first_epoch: int) -> Any:
        """Yield batches of training images; after each, step the optimiser with the caller's gradients."""
        size = self.config.batch_size
        per_epoch = self.data.steps_per_epoch(size)
        total = math.ceil(epochs * per_epoch)
        for module in self.modules.values():
            module.train()
        parameters = [p for module in self.modules.values() for p in module.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=self.config.lr)
        step = 0
        for epoch in range(math.ceil(epochs)):
            batches = self.data.train_batches(size, self.seed, first_epoch + epoch, self.runtime)
            for images, _ in batches:
                if step == total:
                    return
                for group in optimizer.param_groups:
                    group["lr"] = lr_at(step, total, max(1, total // 20), self.config.lr)
                yield images
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                step += 1
                if self.progress is not None:
                    self.progress(what, step, total)


def _score(
    teacher: nn.Module,
    spans: Sequence[Span],
    modules: Mapping[str, nn.Module],
    data: ImageData,
    runtime: Runtime,
    copied: frozenset[str],
) -> tuple[dict[str, float], dict[str, float]]:
    """Compute relative error and solo loss of every module, on up to `SOLO_IMAGES` validation images."""
    batches = _some(data, runtime)
    base = evaluate(teacher, batches, runtime).loss
    errors: dict[str, float] = {}
    solo: dict[str, float] = {}
    with torch.inference_mode():
        for module in modules.values():
            module.eval()
        paths = sorted({span.first for span in spans}), sorted({span.last for span in spans})
        taps = Taps(teacher, paths[1], copied)
        with Inputs(teacher, paths[0], copied) as inputs, taps as maps, runtime.autocast():
            for images, _ in batches:
                teacher(images)
                for span in spans:
                    shown = modules[span.key](inputs.inputs[span.first])
                    error = relative_error(shown, maps.outputs[span.last]).item() / len(batches)
                    errors[span.key] = errors.get(span.key, 0.0) + error
    for span in spans:
        skips: dict[str, nn.Module] = {path: Skip() for path in span.members[1:]}
        with exchanged(teacher, {span.first: modules[span.key], **skips}):
            solo[span.key] = evaluate(teacher, batches, runtime).loss - base
    return errors, solo


def _overwritten(
    teacher: nn.Module, spans: Sequence[Span], data: ImageData, runtime: Runtime
) -> frozenset[str]:
    """Return the paths of spans' inputs and outputs that the teacher changes in place."""
    images, _ = next(data.eval_batches("val", runtime, TRIED))
    with runtime.autocast():
        firsts, lasts = {span.first for span in spans}, {span.last for span in spans}
        inputs = overwritten_inputs(teacher, sorted(firsts), images)
        return inputs | overwritten_outputs(teacher, sorted(lasts), images)


def _some(data: ImageData, runtime: Runtime) -> list[Batch]:
    """Return batches of validation images spread evenly over the split, which may be in class order.

    Only these images are read, sent to the device and normalised: fp32 images (B, 3, H, W), labels (B,).
    """
    chosen = data.val.every(max(1, len(data.val) // SOLO_IMAGES))
    return list(replace(data, val=chosen).eval_batches("val", runtime, SOLO_BATCH))
