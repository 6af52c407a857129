"""Registry of samplers. Importing this module does not load Optuna."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainables.registry import Registry

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


def _nothing(sampler: BaseSampler, completed: int) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class SamplerKind:
    """A kind of sampler, and how the search uses it.

    Args:
        make: factory, called with (seed, startup_trials); returns the Optuna sampler.
        patience: number of proposals refused in a row before a random one is used instead. Without it, a
            converged sampler would propose known points for ever. Each refused proposal costs a row of the
            record (about 10 ms) and the sampler's time.
        startup: whether the sampler needs `startup_trials` random trials before it models the space.
        hears_of_stopped: whether the sampler is told the expected final values of early-stopped trials.
        recall: called with the sampler and the number of earlier complete trials; returns the system
            attributes of a complete trial that a resumed search has to restore.

    Example:
        from optuna.samplers import QMCSampler

        # in a file of your own; in the experiment, sampler: "import:<module>:QMC"
        QMC = SamplerKind(lambda seed, startup: QMCSampler(seed=seed), startup=False)
        print(SAMPLERS.names(), QMC.patience)
    """

    make: Callable[[int, int], BaseSampler]
    patience: int = 20
    startup: bool = True
    hears_of_stopped: bool = True
    recall: Callable[[BaseSampler, int], dict[str, Any]] = _nothing


SAMPLERS: Registry[SamplerKind] = Registry(
    "sampler",
    "ama_search.sampler",
    {name: f"search.policy.sampler:{name.upper()}" for name in ("tpe", "nsga2", "gp", "random")},
    expects=SamplerKind,
)
