"""Further costs, beside params, FLOPs and latency, which every cost table holds.

To add a built-in cost, add a file in this folder, an entry in `COSTS` and a row in `analysis.metrics`.
Importing this module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from trainables.errors import InputError
from trainables.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import nn

    from trainables.runtime.runtime import Runtime


@runtime_checkable
class Cost(Protocol):
    """A cost of a model, known before training, that is a sum over the model's parts.

    Attributes:
        metric: an `analysis.metrics.Metric` of kind cost; its name is the key of the values.
    """

    metric: Any

    def measure(self, module: nn.Module, inputs: torch.Tensor, runtime: Runtime) -> float:
        """Return the cost of `module`, a whole model or an AMA module, in eval mode.

        Args:
            module: on the runtime's device; must not be changed.
            inputs: one image or one activation map, (1, ...), on the same device.
            runtime: device, layout, threads.
        """


COSTS: Registry[Cost] = Registry("cost", "ama_search.cost", {}, expects=Cost)


def load_extra_costs(texts: Sequence[str]) -> dict[str, Cost]:
    """Load the costs that `texts` name, by the names of their metrics.

    Raises:
        InputError: one is unknown or cannot be imported.
    """
    costs = [COSTS.get(text) for text in texts]
    return {cost.metric.name: cost for cost in costs}


def measure_extra(
    costs: Mapping[str, Cost], module: nn.Module, inputs: torch.Tensor, runtime: Runtime
) -> dict[str, float]:
    """Measure every cost of `module`, by name.

    Raises:
        InputError: a cost failed or is not a finite number.
    """
    found = {}
    for name, cost in costs.items():
        try:
            found[name] = float(cost.measure(module, inputs, runtime))
        except Exception as error:  # the user's own code
            raise InputError(f"cost {name}: measure failed: {type(error).__name__}: {error}") from error
        if not math.isfinite(found[name]):
            raise InputError(f"cost {name}: expected a finite number, got {found[name]}")
    return found
