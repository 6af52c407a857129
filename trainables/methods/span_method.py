"""What methods share whose student is the teacher with spans of blocks replaced by AMA modules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

from torch import Tensor

from trainables.config import DistillConfig
from trainables.methods.base import Method, Setup
from trainables.methods.signals.teacher_signals import NOTHING, Teach
from trainables.network.taps import Inputs, Taps
from trainables.student.spans import spans_of
from trainables.student.start import training_mode


class SpanMethod(Method):
    """Build the student, and read what it and the teacher compute while it learns.

    Attributes:
        spans: replaced by AMA modules, in execution order.
        teach: computes the teacher's signals of a batch; inside `watching`.
        maps: the student's maps of the last pass, by path; inside `watching`. Clear it after each batch.
        inputs: the inputs of modules of the student, likewise.
    """

    def __init__(self, setup: Setup, config: DistillConfig) -> None:
        """Build the student on the runtime's device.

        Raises:
            InputError: unknown block names; `warm_start: library` without the modules it needs;
                `train: modules` with a student whose kept parts would be random.
        """
        super().__init__(setup, config)
        self.spans = spans_of(setup.blocks, config.student)
        self.student = setup.start_student(config, self.spans)
        self.teach: Teach = lambda images, index: NOTHING
        self.maps: dict[str, Tensor] = {}
        self.inputs: dict[str, Tensor] = {}

    @contextmanager
    def watching(
        self,
        read: Sequence[str],
        shown: Sequence[str],
        logits: bool,
        embedding: bool = False,
        taken: Sequence[str] = (),
        given: Sequence[str] = (),
    ) -> Iterator[None]:
        """Set the training mode and attach hooks; frozen parts keep their batch-norm statistics.

        Args:
            read: paths of the teacher's maps.
            shown: paths of the student's maps.
            logits: whether to read the teacher's logits.
            embedding: whether to read the teacher's embedding.
            taken: paths of the student's modules whose inputs are read.
            given: paths of the teacher's modules whose inputs are read.
        """
        training_mode(self.student, self.config.train, self.spans)
        supervisor = self.setup.supervisor
        overwritten = supervisor.overwritten if read else frozenset()
        copied = [span.first for span in self.spans if span.last in overwritten]
        if self._prefix and (read or logits or embedding or given):
            teaching = supervisor.leading(self.student, self._prefix, read, logits, embedding, given)
        else:
            teaching = supervisor.teaching(read, logits, embedding, given)
        taps, inputs = Taps(self.student, shown, copied), Inputs(self.student, taken)
        with teaching as self.teach, taps, inputs:
            self.maps, self.inputs = taps.outputs, inputs.inputs
            yield

    @cached_property
    def _prefix(self) -> tuple[str, ...]:
        """Modules of a frozen student that equal the teacher's and run before any trained module."""
        shared = self.config.train == "modules" and self.spans and not self.runtime.compiled
        return self.setup.supervisor.shared_prefix(self.student, self.spans) if shared else ()
