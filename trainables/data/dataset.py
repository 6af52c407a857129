"""The images of one experiment, in normalised batches on the device.

`load_data(DataConfig(name="digits"))` returns an `ImageData`. Images stay uint8 in memory and on the device;
a batch is augmented and normalised when it is made. Test images are read with `test=True` alone, which a
search never passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from trainables.config import Triple
from trainables.data.augment import Augment, EpochPlan, gather_augmented, plan_epoch
from trainables.data.pixels import normalisation_constants, normalise
from trainables.data.split import AnySplit, Batch, Split, StreamedSplit, split_of
from trainables.data.stream import Stream, in_order
from trainables.errors import InputError
from trainables.runtime.runtime import Runtime

Step = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True, eq=False)
class ImageData:
    """The images of one experiment.

    Attributes:
        name: as in `data.name`.
        train: images to train on.
        val: images held out of the training images, for validation.
        test: test images; None unless requested.
        classes: class names; a label is an index into them.
        mean: per channel, of inputs in 0..1.
        std: likewise, the deviation.
        augment: augmentation of training images.
        hash: 16 hex digits, of the training images' content and the config of the splits. The same in every
            process, with and without the test images.
        skipped: number of files that could not be decoded and were left out.
        workers: processes that prepare streamed images.
        memory_limit: as `data.memory_limit`: GiB, or None for the machine's default (`limit_bytes`).

    Example:
        images, labels = next(data.eval_batches("val", resolve(), batch_size=8))
        print(data.name, data.classes, images.shape, labels.tolist())
    """

    name: str
    train: AnySplit
    val: AnySplit
    test: AnySplit | None
    classes: tuple[str, ...]
    mean: Triple
    std: Triple
    augment: Augment
    hash: str
    skipped: int = 0
    workers: int = 2
    memory_limit: float | None = None
    _on_device: dict[tuple[str, torch.device], Split] = field(default_factory=dict, init=False, repr=False)
    _streams: dict[tuple[str, Augment], Stream] = field(default_factory=dict, init=False, repr=False)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(3, height, width)."""
        _, height, width = self.train.image_shape
        return 3, height, width

    def steps_per_epoch(self, batch_size: int) -> int:
        """Return the number of batches in one pass over the training images."""
        return math.ceil(len(self.train) / batch_size)

    def train_batches(self, batch_size: int, seed: int, epoch: int, runtime: Runtime) -> Iterator[Batch]:
        """Yield one epoch of shuffled, augmented training images.

        Args:
            batch_size: most images a batch; sizes differ by at most one.
            seed: order and augmentation depend on `seed` and `epoch` alone.
            epoch: not negative.
            runtime: its device and layout are used.

        Yields:
            Normalised images, float32 (B, 3, H, W), and labels, int64 (B,), as new tensors on the device.
        """
        for images, labels, _ in self.train_steps(batch_size, seed, epoch, runtime):
            yield images, labels

    def train_steps(self, batch_size: int, seed: int, epoch: int, runtime: Runtime) -> Iterator[Step]:
        """As `train_batches`, with each batch's indices into the training images, int64 (B,)."""
        plan = plan_epoch(len(self.train), self.augment, seed, epoch)
        steps = self.steps_per_epoch(batch_size)
        constants = normalisation_constants(self.mean, self.std, runtime.device)
        if isinstance(self.train, StreamedSplit):
            parts = plan.batches(steps)
            for part, images in zip(parts, self._stream("train", self.augment, parts, runtime), strict=True):
                labels, order = (_sent(each, runtime) for each in (self.train.labels[part.order], part.order))
                yield normalise(images, constants, runtime.memory_format), labels, order
            return
        split = self._split_on("train", runtime.device)
        for part in plan.to(runtime.device).batches(steps):
            images = gather_augmented(split.images, part, self.augment)
            labels = split.labels.index_select(0, part.order)
            yield normalise(images, constants, runtime.memory_format), labels, part.order

    def eval_batches(self, split: str, runtime: Runtime, batch_size: int = 512) -> Iterator[Batch]:
        """Yield the images of one split in order, normalised, without augmentation.

        Args:
            split: train, val or test.
            runtime: its device and layout are used.
            batch_size: images a batch; the last one may be smaller.

        Yields:
            Images, float32 (B, 3, H, W), and labels, int64 (B,), on the device.

        Raises:
            InputError: no such split, or the test images were not loaded.
        """
        part = self._split(split)
        chunks: Iterator[Batch]
        if isinstance(part, StreamedSplit):
            plan = in_order(len(part), batch_size)
            labels = (_sent(each, runtime) for each in torch.split(part.labels, batch_size))
            chunks = zip(self._stream(split, Augment(), plan, runtime), labels, strict=True)
        else:
            chunks = self._split_on(split, runtime.device).chunks(batch_size)
        constants = normalisation_constants(self.mean, self.std, runtime.device)
        for images, classes in chunks:
            yield normalise(images, constants, runtime.memory_format), classes

    def to_arrays(self) -> dict[str, Any]:
        """Return the images as NumPy arrays, without copies, for Ray's object store.

        The keys are `<split>.images`, `<split>.labels`, or `<split>.stream` for a streamed split, and `meta`
        with plain values. The object store keeps arrays once per machine; every process maps them read-only.
        """
        splits = {"train": self.train, "val": self.val} | ({"test": self.test} if self.test else {})
        arrays: dict[str, Any] = {}
        for name, split in splits.items():
            if isinstance(split, StreamedSplit):
                arrays[f"{name}.stream"] = split
                continue
            arrays[f"{name}.images"] = split.images.numpy()
            arrays[f"{name}.labels"] = split.labels.numpy()
        kept = ("name", "classes", "mean", "std", "hash", "skipped", "workers", "memory_limit")
        meta = {key: getattr(self, key) for key in kept}
        return arrays | {"meta": meta | {"augment": asdict(self.augment)}}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> ImageData:
        """Restore the data from `to_arrays`; arrays may be read-only and are not copied."""
        train, val, test = (
            split_of(arrays[f"{name}.images"], arrays[f"{name}.labels"])
            if f"{name}.images" in arrays
            else arrays.get(f"{name}.stream")
            for name in ("train", "val", "test")
        )
        assert train and val, "arrays without a train or val split"
        meta = dict(arrays["meta"])
        augment = Augment(**meta.pop("augment"))
        return cls(train=train, val=val, test=test, augment=augment, **meta)

    def _split(self, name: str) -> AnySplit:
        splits: dict[str, AnySplit | None] = {"train": self.train, "val": self.val, "test": self.test}
        if name not in splits:
            raise InputError(f"split: expected {', '.join(splits)}, got {name!r}")
        if (split := splits[name]) is None:
            raise InputError(f"{self.name}: test images were not loaded: load_data(..., test=True)")
        return split

    def _stream(
        self, name: str, augment: Augment, parts: list[EpochPlan], runtime: Runtime
    ) -> Iterator[torch.Tensor]:
        """Yield the planned images of a streamed split on the device, uint8; workers are started once."""
        if (name, augment) not in self._streams:
            split = self._split(name)
            assert isinstance(split, StreamedSplit)
            pin = runtime.device.type == "cuda"
            self._streams[name, augment] = Stream(split, augment, self.workers, pin)
        return (_sent(images, runtime) for images in self._streams[name, augment].batches(parts))

    def _split_on(self, name: str, device: torch.device) -> Split:
        """Return the split on `device`; it is moved once."""
        if (name, device) not in self._on_device:
            split = self._split(name)
            assert isinstance(split, Split)
            # Leave inference mode: the copy is kept, and inference tensors cannot be trained on.
            with torch.inference_mode(False):
                self._on_device[name, device] = Split(
                    split.images.to(device).contiguous(), split.labels.to(device)
                )
        return self._on_device[name, device]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_on_device": {}, "_streams": {}}


def _sent(tensor: torch.Tensor, runtime: Runtime) -> torch.Tensor:
    """Copy to the device, asynchronously from pinned memory."""
    return tensor.to(runtime.device, non_blocking=True)
