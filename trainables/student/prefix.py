"""The modules that run before the first replaced block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainables.network.trace import trace
from trainables.student.spans import Span


def same_before(
    teacher: nn.Module, student: nn.Module, spans: Sequence[Span], image: Tensor
) -> tuple[str, ...]:
    """Return the largest submodules that end before the first span begins and are equal in both networks.

    Args:
        teacher: traced once; it may be the student itself.
        student: its submodules have the same paths.
        spans: that the student replaces; without any, no modules are returned.
        image: (1, 3, H, W) on the networks' device.
    """
    record = trace(teacher, image)
    begins = [call.begin for span in spans if (call := record.single(span.first))]
    found: list[str] = []
    covered = 0
    for call in record.order[1:] if spans and len(begins) == len(spans) else ():
        if call.begin < covered or call.end > min(begins) or len(record.calls[call.path]) != 1:
            continue
        if isinstance(call.output, Tensor) and _same(call.module, student.get_submodule(call.path)):
            found.append(call.path)
            covered = call.end
        elif call.end == call.begin + 1:  # inputs of all later layers differ, too
            break
    return tuple(found)


def _same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    same_names = type(a) is type(b) and ours.keys() == theirs.keys()
    return same_names and all(torch.equal(value, theirs[name]) for name, value in ours.items())
