"""Analyse the trials of a run: fronts, importances, picks, plots, reports. Imports neither torch nor Ray.

    from analysis import front, load, pick

docs/python.md lists these names by task. A name is imported when it is first used: importing the package
loads neither pandas nor matplotlib.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.compare.compare import Comparison as Comparison
    from analysis.compare.compare import compare_runs as compare_runs
    from analysis.compare.write import write_comparison as write_comparison
    from analysis.errors import InputError as InputError
    from analysis.metrics import METRICS as METRICS
    from analysis.metrics import Metric as Metric
    from analysis.pareto import hypervolume as hypervolume
    from analysis.picks.pick import Pick as Pick
    from analysis.picks.pick import pick as pick
    from analysis.picks.pick_file import PickFile as PickFile
    from analysis.picks.pick_file import read_pick as read_pick
    from analysis.picks.pick_file import write_pick as write_pick
    from analysis.report.write import Report as Report
    from analysis.report.write import write_report as write_report
    from analysis.runs.load import front as front
    from analysis.runs.load import load as load
    from analysis.runs.run import Run as Run

# Public name -> module of this package that defines it.
_MODULES = {
    "Comparison": "compare.compare",
    "InputError": "errors",
    "METRICS": "metrics",
    "Metric": "metrics",
    "Pick": "picks.pick",
    "PickFile": "picks.pick_file",
    "Report": "report.write",
    "Run": "runs.run",
    "compare_runs": "compare.compare",
    "front": "runs.load",
    "hypervolume": "pareto",
    "load": "runs.load",
    "pick": "picks.pick",
    "read_pick": "picks.pick_file",
    "write_comparison": "compare.write",
    "write_pick": "picks.pick_file",
    "write_report": "report.write",
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
