"""The teacher's logits and maps of a distillation step, computed only as far and as often as needed.

- If the logits are not needed, the pass stops after the last map that is read.
- If training images are not augmented, the outputs for each are computed once and cached (up to
  `KEPT_BYTES`) for all distillations of a process.
- Batch norms are folded into convolutions if a check shows that the folded copy computes the same.
- A student with frozen kept parts (`train: modules`) runs the same first blocks as the teacher. Their outputs
  are taken from the teacher's pass if a check shows that the logits stay equal, bit for bit.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from trainables.blocks.blocks import Block
from trainables.data.augment import Augment
from trainables.data.dataset import ImageData
from trainables.network.classifier import classifier_path
from trainables.network.fold_batchnorm import folded
from trainables.network.taps import Inputs, Taps, overwritten_inputs, overwritten_outputs
from trainables.network.weights import weights_hash
from trainables.runtime.runtime import Runtime
from trainables.student.prefix import same_before
from trainables.student.spans import Span

log = logging.getLogger(__name__)

KEPT_BYTES = 256 * 2**20  # largest cache of the teacher's outputs in a process
TRIED = 16  # images on which a shortcut is checked


@dataclass(frozen=True)
class Signals:
    """The teacher's outputs for one batch.

    Attributes:
        logits: (B, classes), or None.
        maps: by their path in the teacher.
        embedding: (B, D), the input of the teacher's classifier, or None.
        inputs: of modules, by their path in the teacher.
    """

    logits: Tensor | None
    maps: Mapping[str, Tensor]
    embedding: Tensor | None = None
    inputs: Mapping[str, Tensor] = field(default_factory=dict)


NOTHING = Signals(None, {})
Teach = Callable[[Tensor, Tensor], Signals]  # images (B, 3, H, W), their indices (B,)


class Supervisor:
    """A teacher on its device, for many distillations on the same images, one after the other."""

    def __init__(
        self, teacher: nn.Module, blocks: Sequence[Block], data: ImageData, runtime: Runtime
    ) -> None:
        """Move `teacher` to the device and set eval mode; it is never trained."""
        self.teacher: nn.Module = teacher.to(runtime.device, memory_format=runtime.memory_format).eval()  # type: ignore[call-overload]
        self.data, self.runtime = data, runtime
        self._ends = {block.members[-1]: math.prod(block.out_shape) for block in blocks}
        self._starts = [block.members[0] for block in blocks]
        self._kept: Signals | None = None

    @cached_property
    def hash(self) -> str:
        """Hash of the teacher's weights."""
        return weights_hash(self.teacher)

    @cached_property
    def overwritten(self) -> frozenset[str]:
        """Last submodules of blocks whose output later code changes in place: readers must copy it."""
        with self.runtime.autocast():
            return overwritten_outputs(self.teacher, list(self._ends), self.few)

    @cached_property
    def overwritten_inputs(self) -> frozenset[str]:
        """First submodules of blocks whose input is changed in place: readers must copy it."""
        with self.runtime.autocast():
            return overwritten_inputs(self.teacher, self._starts, self.few)

    @cached_property
    def classifier(self) -> str:
        """Path of the teacher's classifier, whose input is the embedding.

        Raises:
            InputError: the teacher does not end with a linear layer on one vector per image.
        """
        return classifier_path(self.teacher, self.few)

    @contextmanager
    def teaching(
        self, paths: Sequence[str], logits: bool, embedding: bool = False, taken: Sequence[str] = ()
    ) -> Iterator[Teach]:
        """Yield a function that computes the signals of a batch.

        Args:
            paths: of the maps to read.
            logits: whether to read the logits.
            embedding: whether to read the input of the classifier.
            taken: first submodules of blocks whose inputs to read.
        """
        kept = self._keep() if paths or logits else NOTHING
        missing = [path for path in paths if path not in kept.maps]
        rest = logits and kept.logits is None, embedding
        if missing or any(rest) or taken:
            # Folding keeps the outputs of blocks, not the inputs of all.
            model = self.teacher if taken else self.quick
            with self._reader(model, missing, *rest, taken) as read:
                yield partial(self._teach, kept, paths, read)
        else:
            yield partial(self._teach, kept, paths, None)

    @contextmanager
    def leading(
        self,
        student: nn.Module,
        prefix: Sequence[str],
        paths: Sequence[str],
        logits: bool,
        embedding: bool = False,
        taken: Sequence[str] = (),
    ) -> Iterator[Teach]:
        """As `teaching`; the student's next pass reuses the teacher's outputs of the `prefix` modules."""
        everything = sorted({*prefix, *paths})
        # Not in inference mode: the student is trained on the outputs of the prefix.
        with self._reader(self.teacher, everything, logits, embedding, taken, torch.no_grad) as read:
            outputs: dict[str, Tensor] = {}

            def teach(images: Tensor, order: Tensor) -> Signals:
                signals = read(images)
                outputs.update({path: signals.maps[path] for path in prefix})
                return signals

            with replayed(student, prefix, outputs):
                yield teach

    def shared_prefix(self, student: nn.Module, spans: Sequence[Span]) -> tuple[str, ...]:
        """Return the modules that a frozen `student` runs before its first span, exactly as the teacher does.

        Their parameters and batch-norm statistics are the teacher's, and reusing the teacher's outputs gives
        the same logits, bit for bit. If it does not, return no modules.
        """
        images = self.few
        paths = same_before(self.teacher, student, spans, images[:1])
        flags = {module: module.training for module in student.modules()}
        student.eval()
        try:
            with torch.no_grad(), self.runtime.autocast():
                expected = student(images)
                # Run to the logits: code after the prefix may change its outputs in place.
                with self.leading(student, paths, (), logits=True) as teach:
                    teach(images, torch.arange(len(images)))
                    found = student(images)
        finally:
            for module, flag in flags.items():
                module.training = flag
        return paths if torch.equal(found, expected) else ()

    @cached_property
    def few(self) -> Tensor:
        """A few validation images, for checks."""
        images, _ = next(self.data.eval_batches("val", self.runtime, TRIED))
        return images

    @cached_property
    def quick(self) -> nn.Module:
        """The teacher's copy with folded batch norms, or the teacher itself if it cannot be folded."""
        return folded(self.teacher, self.few, list(self._ends)) or self.teacher

    def _reader(
        self,
        model: nn.Module,
        paths: Sequence[str],
        logits: bool,
        embedding: bool = False,
        taken: Sequence[str] = (),
        mode: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> _Reader:
        # Autograd cannot save inference tensors, and methods train layers on the embedding and on inputs.
        mode = mode or (torch.no_grad if embedding or taken else torch.inference_mode)
        copied = self.overwritten.intersection(paths) if paths else frozenset()
        classifier = self.classifier if embedding else None
        inputs = Inputs(model, taken, self.overwritten_inputs) if taken else None
        return _Reader(model, paths, logits, classifier, self.runtime, mode, copied, inputs)

    def _teach(
        self, kept: Signals, paths: Sequence[str], read: _Reader | None, images: Tensor, order: Tensor
    ) -> Signals:
        fresh = read(images) if read is not None else NOTHING
        logits = kept.logits.index_select(0, order) if kept.logits is not None else fresh.logits
        maps = {path: kept.maps[path].index_select(0, order) for path in paths if path in kept.maps}
        return Signals(logits, {**maps, **fresh.maps}, fresh.embedding, fresh.inputs)

    def _keep(self) -> Signals:
        """Cache the outputs for all training images: of blocks and logits, logits alone, or none."""
        if self.data.augment != Augment():
            return NOTHING
        if self._kept is None:
            images, classes = len(self.data.train), self.data.num_classes
            size = 4 * images * (sum(self._ends.values()) + classes)  # fp32 at most
            if size <= KEPT_BYTES:
                self._kept = self._outputs(sorted(self._ends))
            elif 4 * images * classes <= KEPT_BYTES:
                self._kept = self._outputs(())
            else:
                self._kept = NOTHING
        return self._kept

    def _outputs(self, paths: Sequence[str]) -> Signals:
        parts: list[Signals] = []
        with self._reader(self.quick, paths, True) as read:
            for images, _ in self.data.eval_batches("train", self.runtime, self.runtime.eval_batch):
                parts.append(read(images))
        logits = [part.logits for part in parts if part.logits is not None]
        return Signals(torch.cat(logits), {path: torch.cat([p.maps[path] for p in parts]) for path in paths})


class _Reached(Exception):  # noqa: N818 - not an error: ends a pass after the last map that is read
    pass


class _Reader:
    """Run a model and return maps and logits; a context manager that removes its hooks on exit."""

    def __init__(
        self,
        model: nn.Module,
        paths: Sequence[str],
        logits: bool,
        classifier: str | None,
        runtime: Runtime,
        mode: Callable[[], AbstractContextManager[Any]],
        copied: frozenset[str],
        inputs: Inputs | None,
    ) -> None:
        self.model, self.paths, self.logits, self.runtime, self.mode = model, paths, logits, runtime, mode
        self.classifier, self.copied, self._inputs = classifier, copied, inputs
        self._embedding: Tensor | None = None

    def __call__(self, images: Tensor) -> Signals:
        logits = None
        try:
            with self.mode(), self.runtime.autocast():
                logits = self.model(images)
        except _Reached:
            pass
        maps, embedding = dict(self._taps.outputs), self._embedding
        self._taps.clear()  # the caller then holds the only references and frees them before backward
        self._embedding = None
        inputs: dict[str, Tensor] = {}
        if self._inputs is not None:
            inputs.update(self._inputs.inputs)
            self._inputs.inputs.clear()
        return Signals(logits, maps, embedding, inputs)

    def _embed(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._embedding = args[0]
        if not self.logits:
            self._stop()

    def _stop(self, *_: Any) -> None:
        embedded = self.classifier is None or self._embedding is not None
        taken = self._inputs is None or len(self._inputs.inputs) == len(self._inputs.paths)
        if embedded and taken and len(self._taps.outputs) == len(self.paths):
            raise _Reached

    def __enter__(self) -> _Reader:
        self._taps = Taps(self.model, self.paths, self.copied)
        self._handles: list[RemovableHandle] = []
        if not self.logits:  # registered after the taps, so called last
            modules = (self.model.get_submodule(path) for path in self.paths)
            self._handles = [module.register_forward_hook(self._stop) for module in modules]
        if self._inputs is not None and not self.logits:
            modules = (self.model.get_submodule(path) for path in self._inputs.paths)
            self._handles += [module.register_forward_pre_hook(self._stop) for module in modules]
        if self.classifier is not None:
            module = self.model.get_submodule(self.classifier)
            self._handles.append(module.register_forward_pre_hook(self._embed))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._taps.close()
        if self._inputs is not None:
            self._inputs.__exit__()


@contextmanager
def replayed(model: nn.Module, paths: Sequence[str], outputs: Mapping[str, Tensor]) -> Iterator[None]:
    """Make the modules at `paths` return the tensors in `outputs` for any input; restore them on exit."""
    modules = {path: model.get_submodule(path) for path in paths}
    try:
        for path, module in modules.items():
            module.forward = lambda *_, path=path, **__: outputs[path]
        yield
    finally:
        for module in modules.values():
            del module.forward  # restores the method of the class
