"""What a search starts from: the teacher's module library, kept by its content, and the first proposals."""

from __future__ import annotations

from pathlib import Path

from search.goals import COSTS
from search.pipeline import Progress, Setup
from search.proposals import Candidate, best_by_proxy, price_of, spread
from trainables.library import Library, build_library, library_key

DEFAULT_FOLDER = Path("~/.cache/ama-search/library")


def library_folder(setup: Setup) -> Path:
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


def get_library(setup: Setup, progress: Progress | None = None) -> Library:
    """The module library, read where it was made before, else made now; shared by all runs that it fits."""
    folder = library_folder(setup)
    if folder.exists():
        return Library.load(folder)
    experiment = setup.experiment
    library = build_library(
        folder.name,
        setup.teacher.model,
        setup.blocks,
        experiment.space.widths,
        experiment.space.fuse is not False,
        setup.data,
        setup.runtime,
        experiment.library,
        experiment.seed,
        progress,
    )
    library.save(folder.parent)
    return library


def first_candidates(setup: Setup, library: Library) -> list[Candidate]:
    """The students to try first: best by proxy, spread along the price axis; the budget says how many."""
    experiment = setup.experiment
    count = round(experiment.budget.first_share * experiment.budget.trials)
    cost = next((o.metric for o in experiment.objectives if o.metric in COSTS), "flops")
    found = best_by_proxy(
        setup.blocks,
        experiment.space.widths,
        experiment.space.fuse is not False,
        library.solo_loss,
        price_of(setup.costs.price, cost),
    )
    return spread(found, count)
