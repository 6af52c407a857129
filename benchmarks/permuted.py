"""Controls of the contrastive methods: every image's positive is the memory row of another image.

What the contrast gains must be lost here. Name them as methods: `import:benchmarks.permuted:PermutedCrd`.
"""

from __future__ import annotations

from trainables.config import DistillConfig
from trainables.methods.base import Setup
from trainables.methods.crd import Crd
from trainables.methods.mcl import Mcl


class PermutedCrd(Crd):
    """`crd` with permuted positives."""

    def __init__(self, setup: Setup, config: DistillConfig) -> None:
        super().__init__(setup, config)
        if self.contrast is not None:
            self.contrast.permute(config.seed)


class PermutedMcl(Mcl):
    """`mcl` with permuted positives."""

    def __init__(self, setup: Setup, config: DistillConfig) -> None:
        super().__init__(setup, config)
        if self.contrast is not None:
            self.contrast.permute(config.seed)
