"""The record of a teacher, a JSON file beside its weights: architecture, origin and scores."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from trainables.config import Triple
from trainables.errors import InputError
from trainables.files import code_version, write_text
from trainables.network.architectures import ImageShape

FORMAT = 1


@dataclass(frozen=True)
class TeacherRecord:
    """Architecture, origin and scores of a teacher.

    Attributes:
        arch: as in `teacher.arch`.
        hash: `weights_hash` of the model.
        data_hash: `ImageData.hash` of the data that the scores are for.
        small_stem: whether a torchvision model was built with its stem for small images.
        num_classes: length of the logits.
        image_shape: (3, H, W).
        val_accuracy: in 0..1.
        val_loss: mean cross-entropy in nats.
        test_accuracy: likewise on test data; None if it was not read.
        test_loss: likewise.
        epochs: epochs trained here; 0 for a given teacher.
        seconds: wall time of these epochs, without validation.
        mean: per-channel mean that its inputs (in 0..1) are normalised with.
        std: per-channel standard deviation, likewise.
        source: `trained`, or the file of its weights.
        version: of the code that wrote the record.
    """

    arch: str
    hash: str
    data_hash: str
    small_stem: bool
    num_classes: int
    image_shape: ImageShape
    val_accuracy: float
    val_loss: float
    test_accuracy: float | None
    test_loss: float | None
    epochs: int
    seconds: float
    mean: Triple
    std: Triple
    source: str
    version: str = field(default_factory=code_version)

    def save(self, path: Path) -> None:
        """Write the record as JSON, atomically."""
        write_text(path, json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> TeacherRecord:
        """Read what `save` wrote.

        Raises:
            InputError: no such file, or not a teacher's record.
        """
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot read the teacher's record: {error}") from error
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise InputError(f"{path}: expected a teacher's record of format {FORMAT}")
        names = {f.name for f in fields(cls)}
        if faults := sorted(names ^ content.keys()):
            raise InputError(f"{path}: not a teacher's record: missing or unknown {', '.join(faults)}")
        for name in ("image_shape", "mean", "std"):
            content[name] = tuple(content[name])
        return cls(**content)
