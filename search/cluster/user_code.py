"""Find the user's own modules that the workers of a cluster need."""

from __future__ import annotations

import sys
from pathlib import Path

from search.experiment.experiment import Experiment
from trainables.errors import InputError
from trainables.registry import IMPORT, import_module

OURS = {"analysis", "search", "trainables"}


def imports_of(experiment: Experiment) -> tuple[str, ...]:
    """Return every `import:` text of an experiment (teacher, data set, sampler, metrics, costs, method)."""
    found: list[str] = []

    def walk(value: object) -> None:
        if isinstance(value, dict):
            walk(list(value))
            walk(list(value.values()))
        elif isinstance(value, list):
            for item in value:
                walk(item)
        elif isinstance(value, str) and value.startswith(IMPORT):
            found.append(value.split()[0])  # in a constraint the limit follows the metric

    walk(experiment.model_dump(mode="json", exclude={"storage"}))
    return tuple(dict.fromkeys(found))


def modules_of(*texts: str) -> list[str]:
    """Return the files and packages to send to the workers for these `import:` texts.

    They are the modules, and what these import from their own folder. Skipped are texts without `import:`,
    installed modules (workers have them installed too), and modules that cannot be imported (the stages
    report these).

    Args:
        texts: values such as that of `teacher.arch`.
    """
    found: set[Path] = set()
    for text in texts:
        if text.startswith(IMPORT):
            found |= _files_of(text)
    return sorted(map(str, found))


def _files_of(text: str) -> set[Path]:
    try:
        module = import_module(text)
    except InputError:
        return set()
    top = _place(sys.modules[module.__name__.partition(".")[0]])
    if top is None or _installed(top):
        return set()
    places = {_place(module) for key, module in list(sys.modules.items()) if "." not in key}
    beside = {path for path in places if path and path.parent == top.parent and not _installed(path)}
    return {path for path in beside | {top} if path.stem not in OURS}


def _place(module: object) -> Path | None:
    """Return the folder of a package or the file of a module; None if it has neither."""
    if paths := list(getattr(module, "__path__", None) or ()):
        return Path(paths[0]).absolute()
    file = getattr(module, "__file__", None)
    return Path(file).absolute() if file and file.endswith(".py") else None


def _installed(path: Path) -> bool:
    return bool({"site-packages", "dist-packages"} & set(path.parts)) or path.is_relative_to(sys.base_prefix)
