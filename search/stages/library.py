"""What a search starts from: the teacher's module library, kept by its content, and the first proposals."""

from __future__ import annotations

from pathlib import Path

from search.stages.prepare import Prepared
from search.stages.progress import Progress
from trainables.library.build import build_library
from trainables.library.library import Library, library_key
from trainables.methods.base import Setup as Distillation

DEFAULT_FOLDER = Path("~/.cache/ama-search/library")


def library_folder(setup: Prepared) -> Path:
    """Where the library of this teacher, data, blocks and widths is, or will be."""
    experiment = setup.experiment
    root = Path(experiment.library.dir or DEFAULT_FOLDER).expanduser()
    key = library_key(
        setup.teacher.record.hash,
        setup.data.hash,
        setup.blocks,
        experiment.space.widths,
        experiment.space.fuse is not False,
        experiment.library,
        experiment.seed,
    )
    return root / key


def get_library(setup: Prepared, progress: Progress | None = None) -> Library:
    """The module library, read where it was made before, else made now; shared by all runs that it fits."""
    folder = library_folder(setup)
    if folder.exists():
        return Library.load(folder)
    library = make_library(setup, folder.name, setup.experiment.seed, progress)
    library.save(folder.parent)
    return library


def make_library(setup: Prepared, key: str, seed: int, progress: Progress | None = None) -> Library:
    """Distil all modules that the experiment's space can ask for; `key` is the library's name."""
    experiment = setup.experiment
    shared = Distillation.of(setup.teacher.model, setup.blocks, setup.data, setup.runtime)
    fuse = experiment.space.fuse is not False
    return build_library(
        shared, experiment.space.widths, fuse, experiment.library, seed, key=key, progress=progress
    )
