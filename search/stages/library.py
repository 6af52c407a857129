"""The stage that makes the teacher's module library, or reads it from the cache."""

from __future__ import annotations

from pathlib import Path

from search.stages.prepare import Prepared
from search.stages.progress import Progress
from trainables.library.build import build_library
from trainables.library.library import Library, library_key
from trainables.methods.base import Setup as Distillation

DEFAULT_FOLDER = Path("~/.cache/ama-search/library")


def library_folder(setup: Prepared) -> Path:
    """Return the cache folder of the library for this teacher, data, blocks and widths."""
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
    """Read the module library, or make it; all runs with equal inputs share it."""
    folder = library_folder(setup)
    if folder.exists():
        return Library.load(folder)
    library = make_library(setup, folder.name, setup.experiment.seed, progress)
    library.save(folder.parent)
    return library


def make_library(setup: Prepared, key: str, seed: int, progress: Progress | None = None) -> Library:
    """Distil every module of the experiment's space; `key` is the library's name."""
    experiment = setup.experiment
    shared = Distillation.of(setup.teacher.model, setup.blocks, setup.data, setup.runtime)
    fuse = experiment.space.fuse is not False
    return build_library(
        shared, experiment.space.widths, fuse, experiment.library, seed, key=key, progress=progress
    )
