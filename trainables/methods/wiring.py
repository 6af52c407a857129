"""The wirings of `ama`: what a module reads while it learns, and the map that it learns.

Wu et al. 2020 (arXiv:2010.13500) leave open how teacher and modules are connected during training. `grafted`
replaces the parts of the teacher progressively, as Xu et al. 2020, "BERT-of-Theseus" (arXiv:2002.02925).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainables.config_base import hash_json
from trainables.errors import InputError
from trainables.loss_config import LossConfig
from trainables.methods.base import Progress, Setup
from trainables.network.surgery import exchanged, frozen_copy
from trainables.student.build import build_span
from trainables.student.spans import Span


class Wiring:
    """Connect the modules of a student to the teacher for one pass, and say what is compared.

    It holds no trained weights and no state, so a checkpoint and the exported student know nothing of it.

    Attributes:
        taken: paths in the teacher whose inputs are read.
        eager: whether the student's modules are hooked or exchanged, which compiled code would not see.
    """

    def __init__(
        self, settings: LossConfig, seed: int, spans: Sequence[Span], setup: Setup, compares: bool
    ) -> None:
        """Prepare the frozen modules that the wiring reads.

        Args:
            settings: wiring, p0, q, m and r0.
            seed: of the draws for each batch.
            spans: of the student.
            setup: its teacher is frozen; its modules are those of the library.
            compares: whether maps are compared at all.

        Raises:
            InputError: `reachable` without a library module for every span.
        """
        unused = settings.wiring in ("forced", "reachable") and not compares
        self.kind = settings.wiring if spans and not unused else "chained"
        self.settings, self.seed, self.spans, self.runtime = settings, seed, spans, setup.runtime
        reads = self.kind in ("forced", "scheduled", "reachable")
        self.taken = [span.first for span in spans] if reads else []
        self.eager = self.kind in ("scheduled", "grafted")
        self._library = [_library_module(span, setup) for span in spans] if self.kind == "reachable" else []
        grafted = spans if self.kind == "grafted" else ()
        self._blocks = [
            {path: frozen_copy(setup.teacher.get_submodule(path)) for path in span.members}
            for span in grafted
        ]

    def share(self, done: float) -> float:
        """Return the probability that a span is connected to the teacher in a batch.

        scheduled: p0, falling to 0 in the share q of the training; grafted: 1 - r0, likewise.
        """
        if self.kind not in ("scheduled", "grafted"):
            return 0.0
        start = self.settings.p0 if self.kind == "scheduled" else 1 - self.settings.r0
        q = self.settings.q
        return start * max(0.0, 1 - done / q) if q > 0 else 0.0

    def connected(self, progress: Progress) -> list[bool]:
        """Return, for every span, whether it is connected to the teacher in this batch; drawn by its step."""
        share = self.share(progress.done)
        draw = random.Random(hash_json(["wiring", self.seed, progress.step]))
        return [draw.random() < share for _ in self.spans]

    def mixes(self, progress: Progress) -> bool:
        """Return whether batch norms see other maps in this step than those of the student alone."""
        return self.kind == "forced" or self.share(progress.done) > 0

    @contextmanager
    def applied(
        self, student: nn.Module, inputs: Mapping[str, Tensor], progress: Progress
    ) -> Iterator[list[bool]]:
        """Connect the spans for the student's pass; yield, for each, whether its module is in use."""
        connected = self.connected(progress)
        if self.kind == "grafted":
            pairs = zip(self._blocks, connected, strict=True)
            blocks = {path: block for each, graft in pairs if graft for path, block in each.items()}
            with exchanged(student, blocks):
                yield [not each for each in connected]
            return
        handles = [
            student.get_submodule(span.first).register_forward_pre_hook(_reading(inputs[span.first]))
            for span, reads in zip(self.spans, connected, strict=True)
            if reads
        ]
        try:
            yield [True] * len(self.spans)
        finally:
            for handle in handles:
                handle.remove()

    def maps(
        self, student: nn.Module, shown: Mapping[str, Tensor], inputs: Mapping[str, Tensor]
    ) -> list[Tensor | None]:
        """Return the map of every span that is compared; None where the module was not in use.

        Args:
            student: whose modules make the maps of `forced`.
            shown: the student's maps in its own pass.
            inputs: the teacher's maps before the spans.
        """
        if self.kind != "forced":
            return [shown.get(span.first) for span in self.spans]
        with self.runtime.autocast():
            return [student.get_submodule(span.first)(inputs[span.first]) for span in self.spans]

    def target(self, index: int, own: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return what the span learns in place of the teacher's map after it."""
        if self.kind != "reachable":
            return own
        with torch.no_grad(), self.runtime.autocast():
            reached: Tensor = self._library[index](inputs[self.spans[index].first])
        return (1 - self.settings.m) * own + self.settings.m * reached.to(own.dtype)


def _reading(x: Tensor) -> Any:
    """Return a hook that gives a module another input."""
    return lambda module, args: (x, *args[1:])


def _library_module(span: Span, setup: Setup) -> nn.Module:
    if setup.modules is None or span.key not in setup.modules:
        raise InputError(
            f"wiring: reachable needs the library's module for {span.key}, and there is none; set warm_start "
            f"to library, or use another wiring"
        )
    module = build_span(span)
    module.load_state_dict(setup.modules[span.key])
    runtime = setup.runtime
    module.to(runtime.device, memory_format=runtime.memory_format)  # type: ignore[call-overload]
    return module.requires_grad_(False).eval()
