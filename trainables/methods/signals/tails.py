"""The answer of a fixed teacher to a changed activation map: its part behind a block, with gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from trainables.blocks.blocks import Block
from trainables.methods.signals.teacher_signals import Supervisor, replayed
from trainables.network.surgery import frozen_copy


class Tails:
    """Run the teacher of a supervisor from the end of a block on.

    The blocks before it are not computed: their outputs are given, as `Supervisor.teaching` read them. No
    parameter of the teacher gets a gradient, and the graph of the answer begins at the changed map.

    Example:
        tails = Tails(setup.supervisor, setup.blocks)
        point = setup.blocks[0].members[-1]
        images, _, index = next(data.train_steps(8, seed=0, epoch=0, runtime=setup.runtime))
        with setup.supervisor.teaching(tails.reads([point]), logits=False) as teach:
            maps = teach(images, index).maps
        print(tails.answer(images, maps, point, 2 * maps[point]).shape)
    """

    def __init__(self, supervisor: Supervisor, blocks: Sequence[Block]) -> None:
        """Take the blocks of the supervisor's teacher, in execution order."""
        # A copy that shares the weights: hooks that read the supervisor's network do not see these passes.
        self._model = frozen_copy(supervisor.quick)
        self._overwritten = supervisor.overwritten
        self._members = {block.members[-1]: block.members for block in blocks}

    def reads(self, points: Sequence[str]) -> list[str]:
        """Return the paths of the maps that `answer` needs for these points: block ends up to the last."""
        ends = list(self._members)
        return ends[: max((ends.index(point) + 1 for point in points), default=0)]

    def answer(self, images: Tensor, maps: Mapping[str, Tensor], point: str, changed: Tensor) -> Tensor:
        """Return the teacher's logits (B, classes) if a block had given another map.

        Args:
            images: (B, 3, H, W).
            maps: the teacher's own, at `reads([point])`.
            point: path of the last submodule of a block.
            changed: the map in place of `maps[point]`, of the same shape.
        """
        outputs: dict[str, Tensor] = {}
        for end in self.reads([point]):
            given = changed if end == point else maps[end]
            # Autograd does not take inference tensors; and a map that later code writes into is read again.
            if end in self._overwritten or given.is_inference():
                given = given.clone()
            outputs |= dict.fromkeys(self._members[end], given)
        with replayed(self._model, tuple(outputs), outputs):
            logits: Tensor = self._model(images)
        return logits
