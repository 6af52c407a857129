"""Samplers by name: what the search knows of one. Importing this module loads no Optuna."""

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
    """One kind of sampler, and how the search treats it.

    Args:
        make: called with (seed, startup_trials), gives the Optuna sampler.
        patience: proposals refused in a row before a random one is taken instead. A sampler that has
            converged would propose a point that it knows for ever. Each costs a row of the record (about
            10 ms) and the sampler's time.
        startup: whether it needs `startup_trials` random trials before it models the space.
        hears_of_stopped: whether it learns the expected final values of trials that were stopped early.
        recall: system attributes of a complete trial that a resumed search adds again, from the sampler and
            the number of complete trials before.

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
