"""`Library`: the distilled modules of a teacher, and their files."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor

from trainables.blocks.blocks import Block
from trainables.config import LibraryConfig, StudentSpec
from trainables.config_base import hash_json
from trainables.errors import InputError
from trainables.student.spans import spans_of

FORMAT = 1
# Keys that are part of every library's name; later ones are where they differ from their defaults.
RECIPE = ("epochs", "student_epochs", "lr", "batch_size")
WEIGHTS, META = "modules.safetensors", "library.json"


@dataclass(frozen=True)
class Library:
    """All candidate modules of one teacher.

    Attributes:
        key: hash of everything that determines the library; the name of its folder.
        modules: state dict by `Span.key`, tensors on the CPU.
        errors: by `Span.key`, |module - block|² / |block|² on validation images, for the block's input.
        solo_loss: by `Span.key`, the rise of the validation loss when this span alone is replaced.
        seconds: time that building took.

    Example:
        library = build_library(setup, [0.25], config=LibraryConfig(epochs=0.1, student_epochs=0))
        folder = library.save(Path("library"))
        print(folder, sorted(Library.load(folder).errors.items(), key=lambda pair: pair[1])[:3])
    """

    key: str
    modules: Mapping[str, Mapping[str, Tensor]]
    errors: Mapping[str, float]
    solo_loss: Mapping[str, float]
    seconds: float

    def save(self, root: Path) -> Path:
        """Write into `root/<key>`, atomically. Returns the folder."""
        folder = root / self.key
        draft = root / f".{self.key}.{time.time_ns()}"
        draft.mkdir(parents=True)
        flat = {f"{key}/{name}": t for key, state in self.modules.items() for name, t in state.items()}
        (draft / WEIGHTS).write_bytes(save(flat))  # `save_file` creates the file with mode 0600
        meta = {k: v for k, v in asdict(self).items() if k != "modules"}
        (draft / META).write_text(json.dumps({"format": FORMAT, **meta}, indent=2) + "\n")
        try:
            draft.rename(folder)
        except OSError:  # another process finished the same library first: use that one
            for file in draft.iterdir():
                file.unlink()
            draft.rmdir()
        return folder

    @classmethod
    def load(cls, folder: Path) -> Library:
        """Read what `save` wrote.

        Raises:
            InputError: a file is missing, damaged or of another format.
        """
        try:
            meta = json.loads((folder / META).read_text())
            flat = load_file(folder / WEIGHTS)
        except Exception as error:  # safetensors raises its own exception types
            raise InputError(f"{folder}: not a readable module library ({error}); remove it") from None
        if meta.pop("format", None) != FORMAT:
            raise InputError(f"{folder}: expected a module library of format {FORMAT}; remove it")
        modules: dict[str, dict[str, Tensor]] = {}
        for name, tensor in flat.items():
            key, _, parameter = name.rpartition("/")
            modules.setdefault(key, {})[parameter] = tensor
        return cls(modules=modules, **meta)

    def proxy(self, blocks: Sequence[Block], spec: StudentSpec) -> float:
        """Estimate a student's loss before fine-tuning by the sum of its modules' solo losses."""
        return sum(self.solo_loss[span.key] for span in spans_of(blocks, spec))


def library_key(
    teacher_hash: str,
    data_hash: str,
    blocks: Sequence[Block],
    widths: Sequence[float],
    fuse: bool,
    config: LibraryConfig,
    seed: int = 0,
) -> str:
    """Return the key of the library that these arguments determine."""
    parts = [block.name for block in blocks], sorted(widths), fuse
    recipe = config.content(always=RECIPE)
    recipe.pop("dir", None)
    return hash_json([FORMAT, teacher_hash, data_hash, *parts, recipe, seed])
