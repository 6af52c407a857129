"""What to try next and where it runs: experiment file, search space, searcher, the `ama` command.

    from search import load_experiment, search

docs/python.md shows these names by job. A name is imported when it is first used: importing the package
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

# The public names, each with the module below this package that it comes from.
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


if not TYPE_CHECKING:  # a checker that saw `__getattr__` would let every misspelt name pass

    def __getattr__(name: str) -> object:
        """Import a public name when it is first asked for (PEP 562)."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        return value


def __dir__() -> list[str]:
    """The public names, imported or not, beside what is there."""
    return sorted({*globals(), *_MODULES})
