"""Load a cost table and check that it was measured for this teacher and these blocks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from trainables.blocks.blocks import Block
from trainables.costs.table import CostTable
from trainables.errors import InputError
from trainables.runtime.runtime import device_name


def load_costs(
    path: Path,
    *,
    teacher_hash: str,
    image_shape: Sequence[int],
    blocks: Sequence[Block],
    widths: Sequence[float] = (),
    fuse: bool = False,
    device: str | None = None,
    allow_other_device: bool = False,
    batch_size: int | None = None,
    extra: Sequence[str] = (),
    students: Sequence[str] = (),
) -> CostTable:
    """Read a cost table; raise if it was not measured for this search.

    Args:
        path: a file that `CostTable.save` wrote.
        teacher_hash: of the teacher that students are made from.
        image_shape: (3, H, W).
        blocks: that the search may replace, in execution order.
        widths: that the table must hold.
        fuse: whether the table must hold fused spans.
        device: name of the expected device of the latencies; None: this machine's GPU, else its CPU.
        allow_other_device: do not check the device; for a driver whose workers measured the latencies.
        batch_size: expected batch size of the latencies; None: any.
        extra: names of the costs that the table must hold beside params, flops and latency_ms.
        students: architectures of separate students that the table must hold.

    Raises:
        InputError: the file cannot be read or does not match; all mismatches are listed.
    """
    table = _read(path)
    if device is None:
        device = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    pairs: list[tuple[str, Any, Any]] = [
        ("teacher hash", teacher_hash, table.teacher_hash),
        ("image shape", tuple(image_shape), table.image_shape),
        ("batch size", batch_size or table.batch_size, table.batch_size),
        ("device", table.device if allow_other_device else device, table.device),
        ("fused spans", fuse or table.fuse, table.fuse),
    ]
    faults = [f"{what}: expected {expected}, got {got}" for what, expected, got in pairs if expected != got]
    if missing := sorted(set(widths) - set(table.widths)):
        faults.append(f"widths: expected {sorted(widths)}, got {sorted(table.widths)} (missing {missing})")
    if missing_costs := sorted(set(extra) - set(table.metrics)):
        faults.append(f"costs: expected {', '.join(missing_costs)} too, got {', '.join(table.metrics)}")
    if lacking := sorted(set(students) - set(table.students)):
        faults.append(
            f"students: expected {', '.join(lacking)} too, got {', '.join(table.students) or 'none'}"
        )
    faults += _block_faults(blocks, table.structure)
    if faults:
        raise InputError(f"{path}: the cost table was measured for something else: {'; '.join(faults)}")
    return table


def _block_faults(expected: Sequence[Block], got: Sequence[Block]) -> list[str]:
    if tuple(expected) == tuple(got):
        return []
    names, held = [block.name for block in expected], [block.name for block in got]
    if names != held:
        return [f"blocks: expected {', '.join(names)}, got {', '.join(held)}"]
    return [f"block {a.name}: expected {a}, got {b}" for a, b in zip(expected, got, strict=True) if a != b]


def _read(path: Path) -> CostTable:
    try:
        table = CostTable.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot read the cost table: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(
            f"{path}: not a cost table of format 1, 2 or 3: {where}: {first['msg']}, "
            f"got {str(first['input'])[:60]!r}"
        ) from None
    held = {span.key for span in table.spans}
    if held != set(table.modules) or {block.name for block in table.structure} != set(table.blocks):
        raise InputError(f"{path}: the cost table's entries do not match its own list of blocks and widths")
    return table
