"""Find the best student by proxy at every price, exactly and before anything trains.

The proxy of a student is a sum over its modules: the increase of the validation loss when only this module
replaces its blocks (`Library.solo_loss`). The price is a sum as well. So the best student at every price is a
shortest path over the blocks, and dynamic programming finds all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from trainables.blocks.blocks import Block
from trainables.config import StudentSpec
from trainables.costs.table import Costs
from trainables.student.spans import Span, candidate_spans, joins

# Resolution of prices, as a share of the teacher's price; a finer grid only costs time.
GRID = 1 / 2000

Widths = tuple[float | None, ...]  # widths of the blocks so far; None for a kept block


@dataclass(frozen=True)
class Candidate:
    """A student with its proxy (0 for the teacher) and its price."""

    spec: StudentSpec
    proxy: float
    price: float


@dataclass(frozen=True)
class _Path:
    """The best partial student found so far for a price."""

    proxy: float
    price: float
    widths: Widths


def best_by_proxy(
    blocks: Sequence[Block],
    widths: Sequence[float],
    fuse: bool,
    proxy: Mapping[str, float],
    price: Callable[[StudentSpec], float],
) -> list[Candidate]:
    """Return the students that are non-dominated in proxy and price, cheapest first, the teacher last.

    Args:
        blocks: the teacher's blocks, in execution order.
        widths: widths of AMA modules.
        fuse: whether adjacent replaced blocks of equal width become one span.
        proxy: proxy of each span, by `Span.key`.
        price: returns the price of a student in one metric; must be a sum over its spans.

    Returns:
        The students; exact up to `GRID` times the teacher's price.
    """
    full = price(StudentSpec())
    ends = _steps(blocks, widths, fuse, proxy, price, full)
    # For each position: (price on the grid, width of the span that ends here) -> best path.
    reached: list[dict[tuple[int, float | None], _Path]] = [{} for _ in range(len(blocks) + 1)]
    reached[0][round(1 / GRID), None] = _Path(0.0, full, ())
    for position in range(len(blocks)):
        for (_, last), path in reached[position].items():
            _offer(reached[position + 1], path, None, 0.0, 0.0, 1, full)
            for span, added, change in ends.get(position, ()):
                # With `fuse`, a neighbour of equal width would belong to the span before.
                joined = position > 0 and joins(blocks[position - 1], blocks[position])
                if fuse and last == span.width and joined:
                    continue
                length = len(span.blocks)
                _offer(reached[position + length], path, span.width, added, change, length, full)
    return _undominated(blocks, fuse, reached[-1].values())


def _steps(
    blocks: Sequence[Block],
    widths: Sequence[float],
    fuse: bool,
    proxy: Mapping[str, float],
    price: Callable[[StudentSpec], float],
    full: float,
) -> dict[int, list[tuple[Span, float, float]]]:
    """Return the spans that start at each block, with their changes of proxy and price."""
    position = {block.name: index for index, block in enumerate(blocks)}
    steps: dict[int, list[tuple[Span, float, float]]] = {}
    for span in candidate_spans(blocks, widths, fuse):
        spec = StudentSpec(widths=dict.fromkeys(span.blocks, span.width), fuse=fuse)
        step = (span, proxy[span.key], price(spec) - full)
        steps.setdefault(position[span.blocks[0]], []).append(step)
    return steps


def _offer(
    reached: dict[tuple[int, float | None], _Path],
    path: _Path,
    width: float | None,
    added: float,
    change: float,
    length: int,
    full: float,
) -> None:
    price = path.price + change
    key = (round(price / full / GRID), width)
    new = _Path(path.proxy + added, price, path.widths + (width,) * length)
    if key not in reached or (new.proxy, new.price) < (reached[key].proxy, reached[key].price):
        reached[key] = new


def _undominated(blocks: Sequence[Block], fuse: bool, paths: Iterable[_Path]) -> list[Candidate]:
    kept: list[Candidate] = []
    best = float("inf")
    for path in sorted(paths, key=lambda p: (p.price, p.proxy)):
        if path.proxy < best:
            best = path.proxy
            names = {
                block.name: width
                for block, width in zip(blocks, path.widths, strict=True)
                if width is not None
            }
            kept.append(Candidate(StudentSpec(widths=names, fuse=fuse), path.proxy, path.price))
    return kept


def spread(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """Choose up to `count` candidates evenly spaced in price, cheapest first, without the teacher."""
    students = [c for c in candidates if c.spec.widths]
    if count <= 0 or not students:
        return []
    low, high = students[0].price, students[-1].price
    wanted = [low + (high - low) * i / max(1, count - 1) for i in range(count)]
    nearest = [min(students, key=lambda c: abs(c.price - price)) for price in wanted]
    return list({id(c): c for c in nearest}.values())


def price_of(price: Callable[[StudentSpec], Costs], metric: str) -> Callable[[StudentSpec], float]:
    """Return a function that gives one metric of a student's price."""
    return lambda spec: float(price(spec).as_dict()[metric])
