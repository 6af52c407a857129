"""Search students of a teacher: experiment file, search space, searcher, the `ama` command.

    from search import load_experiment, search

docs/python.md lists these names by task. A name is imported when it is first used: importing the package
loads neither torch nor Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from search.errors import FailedError as FailedError
    from search.experiment.experiment import Experiment as Experiment
    from search.experiment.load import load_experiment as load_experiment
    from search.experiment.samplers import SAMPLERS as SAMPLERS
    from search.experiment.samplers import SamplerKind as SamplerKind
    from search.run.dry_run import plan as plan
    from search.run.finished_models import evaluate_model as evaluate_model
    from search.run.retrain import retrain_picks as retrain_picks
    from search.run.retrain_table import Retrained as Retrained
    from search.run.search import Outcome as Outcome
    from search.run.search import search as search

# Public name -> module of this package that defines it.
_MODULES = {
    "Experiment": "experiment.experiment",
    "FailedError": "errors",
    "Outcome": "run.search",
    "Retrained": "run.retrain_table",
    "SAMPLERS": "experiment.samplers",
    "SamplerKind": "experiment.samplers",
    "evaluate_model": "run.finished_models",
    "load_experiment": "experiment.load",
    "plan": "run.dry_run",
    "retrain_picks": "run.retrain",
    "search": "run.search",
}
__all__ = list(_MODULES)


if not TYPE_CHECKING:  # hidden from type checkers: with `__getattr__` they would accept misspelt names

    def __getattr__(name: str) -> object:
        """Import a public name on first access (PEP 562)."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        return value


def __dir__() -> list[str]:
    """List the module's names and all public names, imported or not."""
    return sorted({*globals(), *_MODULES})
