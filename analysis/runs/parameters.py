"""Display names of searched parameters and methods.

A study's parameter is named `level/<block>`, `<method>/<key>`, `optim/<key>`, `fuse`, `student` or `method`.
Version 0.1 had one method and no prefixes: `alpha`, `lr`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial

LEVEL, OPTIM, METHOD, STUDENT = "level/", "optim/", "method", "student"
REPLACED = "teacher"  # the student that is the teacher with replaced blocks
DEFAULT_METHOD = "ama"
IMPORT = "import:"


def parameter_labels(names: Sequence[str]) -> dict[str, str]:
    """Return a unique label for each parameter.

    Args:
        names: names of all parameters of a run.

    Returns:
        The key (`alpha`, `lr`), or `<method>: <key>` if several methods were searched or another parameter
        has the same key. Levels keep their names.
    """
    several = METHOD in names or len({_space(name) for name in names if _of_method(name)}) > 1
    found = {name: _full(name) if several and _of_method(name) else _key(name) for name in names}
    counts = Counter(found.values())
    return {name: label if counts[label] == 1 else _full(name) for name, label in found.items()}


def method_labels(experiment: Mapping[str, Any], trials: Iterable[FrozenTrial]) -> dict[str, str]:
    """Return a short unique name for each method of a run, in the order of the experiment.

    Args:
        experiment: the resolved experiment; one of version 0.1 does not name a method and used only `ama`.
        trials: the run's trials; their parameters contain the prefix of an imported method.

    Returns:
        Labels by the name in the experiment file. The label of `import:mine.py:Mine` is the prefix of its
        parameters, or `Mine` if none of them is searched.
    """
    asked = (experiment.get("space") or {}).get("method") or DEFAULT_METHOD
    names = dict.fromkeys([asked] if isinstance(asked, str) else asked)
    spaces: dict[str, str] = {}
    for trial in trials:
        name = method_of(trial)
        names.setdefault(name)
        if name not in spaces and (own := next(filter(_of_method, trial.params), None)):
            spaces[name] = _space(own)
    found = {
        name: spaces.get(name, name.rpartition(":")[2] if name.startswith(IMPORT) else name) for name in names
    }
    counts = Counter(found.values())
    return {name: label if counts[label] == 1 else name for name, label in found.items()}


def method_of(trial: FrozenTrial) -> str:
    """Return the method of a trial as named in the experiment."""
    chosen = trial.params.get(METHOD) or (trial.user_attrs.get("config") or {}).get("method")
    return str(chosen or DEFAULT_METHOD)


def student_of(trial: FrozenTrial) -> str:
    """Return the student of a trial as named in the experiment: `teacher`, or a separate architecture."""
    config = trial.user_attrs.get("config") or {}
    return str((config.get("student") or {}).get("arch") or REPLACED)


def _of_method(name: str) -> bool:
    return "/" in name and not name.startswith((LEVEL, OPTIM))


def _space(name: str) -> str:
    return name.partition("/")[0]


def _key(name: str) -> str:
    return name if name.startswith(LEVEL) else name.rpartition("/")[2]


def _full(name: str) -> str:
    return name if name.startswith(LEVEL) else name.replace("/", ": ", 1)
