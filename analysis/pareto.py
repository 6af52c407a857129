"""Fronts, hypervolumes, knees and well-spread subsets, based on moocore.

`minimised` negates maximised columns; all other functions take points whose columns are all minimised.
Knee: I. Das, "On characterizing the 'knee' of the Pareto curve based on Normal-Boundary Intersection",
Structural Optimization 18, 107–115 (1999). Spread: T. F. Gonzalez, "Clustering to minimize the maximum
intercluster distance", Theoretical Computer Science 38, 293–306 (1985).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.errors import InputError
from analysis.metrics import METRICS, Direction, Metric, objective_names

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Objective:
    """A metric and its direction."""

    metric: str
    direction: Direction


@dataclass(frozen=True)
class Box:
    """The fixed region in which hypervolume is measured: minimised coordinates, `ideal` < `reference`."""

    ideal: Floats
    reference: Floats


def minimised(values: ArrayLike, objectives: Sequence[Objective]) -> Floats:
    """Negate the maximised columns of objective values (n, d). NaN stays NaN; n may be 0."""
    points = np.array(values, dtype=np.float64).reshape(-1, len(objectives))
    signs = np.array([-1.0 if o.direction == "maximize" else 1.0 for o in objectives])
    flipped: Floats = points * signs
    return flipped


def front_mask(points: Floats) -> NDArray[np.bool_]:
    """Return a mask (n,) of the rows of `points` (n, d) that no other row dominates.

    Rows with NaN or infinities are never on the front. Of exact duplicates only the first is.
    """
    mask: NDArray[np.bool_] = np.isfinite(points).all(axis=1)  # type: ignore[assignment]
    if mask.any():
        mask[mask] = moocore.is_nondominated(points[mask])
    return mask


def box(
    objectives: Sequence[Objective],
    teacher: Mapping[str, Any],
    classes: int,
    known: Mapping[str, Metric] = METRICS,
) -> Box:
    """Return the box of these objectives. It depends only on teacher and data, so that runs can be compared.

    Each objective ranges from its metric's `worst` to its `best`: accuracy from chance (1 / classes) to 1,
    loss from that of a uniform guess (ln classes) to 0, every cost from the teacher's to 0.

    Args:
        objectives: the dimensions of the box.
        teacher: the teacher's values, by metric name.
        classes: number of classes of the data.
        known: the metrics, by name.

    Raises:
        InputError: an objective does not have a worst value, the teacher lacks a cost, or there are fewer
            than two classes.
    """
    if classes < 2:
        raise InputError(f"hypervolume needs at least 2 classes, got {classes}")
    for objective in objectives:
        if objective.metric not in known:
            names = ", ".join(objective_names(known))
            raise InputError(f"objective {objective.metric!r}: expected one of {names}")
    metrics = [known[o.metric] for o in objectives]
    ideal = minimised([[metric.best for metric in metrics]], objectives)[0]
    reference = minimised([[metric.worst_value(teacher, classes) for metric in metrics]], objectives)[0]
    if not (ideal < reference).all():
        wrong = [o.metric for o, bad in zip(objectives, ~(ideal < reference), strict=True) if bad]
        raise InputError(f"objectives {', '.join(wrong)} have the wrong direction: worse values would win")
    return Box(ideal, reference)


def normalise(points: Floats, within: Box) -> Floats:
    """Scale `points` (n, d) to the box: 0 is the ideal, 1 the reference."""
    scaled: Floats = (points - within.ideal) / (within.reference - within.ideal)
    return scaled


def hypervolume(points: Floats, within: Box) -> float:
    """Compute the share of the box (0..1) that `points` (n, d) dominate. Points outside do not count.

    Args:
        points: (n, d), every column minimised, as from `Run.points`; rows with NaN are ignored.
        within: the box, as from `Run.box`: from the ideal to the teacher's costs and chance accuracy.

    Returns:
        0 if no point lies in the box, 1 for a point at its ideal corner.

    Example:
        run = load("runs/digits")
        print(hypervolume(run.points(run.front()), run.box))
    """
    return _unit_hypervolume(normalise(points, within))


def _unit_hypervolume(unit: Floats) -> float:
    inside = unit[(unit < 1.0).all(axis=1)]  # NaN compares false: not inside
    if len(inside) == 0:
        return 0.0
    return float(moocore.hypervolume(np.clip(inside, 0.0, 1.0), np.ones(unit.shape[1])))


def hypervolume_history(points: Floats, within: Box) -> tuple[Floats, NDArray[np.int64]]:
    """Compute hypervolume (n,) and front size (n,) after each row of `points` (n, d), in order.

    Rows with NaN change nothing. It is recomputed only when the front changes: 10,000 rows take a second.
    """
    unit = normalise(points, within)
    front = np.empty((0, points.shape[1]))
    volumes, sizes = np.zeros(len(points)), np.zeros(len(points), dtype=np.int64)
    volume = 0.0
    for i, point in enumerate(unit):
        if np.isfinite(point).all() and not (front <= point).all(axis=1).any():
            front = np.vstack([front[~(point <= front).all(axis=1)], point])
            volume = _unit_hypervolume(front)
        volumes[i], sizes[i] = volume, len(front)
    return volumes, sizes


def scale_to_front(front: Floats) -> Floats:
    """Scale each column of `front` (n, d) to 0..1 between its best and worst value; constant columns to 0."""
    low, high = front.min(axis=0), front.max(axis=0)
    scaled: Floats = (front - low) / np.where(high > low, high - low, 1.0)
    return scaled


def knee(front: Floats) -> int:
    """Return the index of the knee of `front` (n, d), n >= 1.

    The knee is the point farthest below the plane through the ends of the front, with each objective scaled
    to 0..1 over the front (Das 1999). With two objectives this plane is the line between the two end points.
    Of equal points, the first is the knee. So a straight front, or one with one or two points, has its first
    point as knee.
    """
    depth = scale_to_front(front).sum(axis=1)
    return int(np.flatnonzero(depth <= depth.min() + 1e-12)[0])


def spread(front: Floats, n: int) -> list[int]:
    """Return the indices of `n` well-spread points of `front` (m, d), in order of the first objective.

    For n = 1 this is the knee. Otherwise start with the best point of each objective, and repeatedly add the
    point farthest from those chosen (Gonzalez 1985, max-min distance), on the scale of the front. For n >= m,
    return all points.
    """
    if n == 1:
        return [knee(front)]
    unit = scale_to_front(front)
    ends = [int(np.lexsort((unit.sum(axis=1), unit[:, j]))[0]) for j in range(unit.shape[1])]
    chosen = list(dict.fromkeys(ends))[:n]
    while len(chosen) < min(n, len(front)):
        distance = np.linalg.norm(unit[:, None] - unit[None, chosen], axis=2).min(axis=1)
        distance[chosen] = -1.0
        chosen.append(int(distance.argmax()))
    return sorted(chosen, key=lambda i: (front[i, 0], i))
