"""Statistics of repeats with different seeds: mean, standard deviation, interval, paired differences.

Intervals and p-values use Student's t: the one-sample form for a mean, the paired two-sided test for
differences (as `scipy.stats.ttest_rel`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special  # type: ignore[import-untyped]  # scipy.stats takes a second to import

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation and 95 % interval of the mean of `n` values (None for n < 2)."""

    n: int
    mean: float
    std: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Paired:
    """Mean difference of `n` pairs, its 95 % interval, and the p-value of the paired t-test.

    `low`, `high` and `p` are None for fewer than two pairs. `p` is also None if all differences are equal and
    not zero, because the test then has no variance.
    """

    n: int
    difference: float
    low: float | None
    high: float | None
    p: float | None


def summarise(values: Sequence[float]) -> Summary:
    """Compute mean and spread of at least one value; NaN if one of them is NaN."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Summary(len(values), mean, None, None, None)
    std = float(np.std(values, ddof=1))  # NaN stays NaN
    half = _half(len(values), std)
    return Summary(len(values), mean, std, mean - half, mean + half)


def paired(ours: Mapping[Any, float], theirs: Mapping[Any, float]) -> Paired | None:
    """Compare `ours` minus `theirs` over their common keys (seeds); None without common keys."""
    differences = [value - theirs[key] for key, value in ours.items() if key in theirs]
    if not differences:
        return None
    found = summarise(differences)
    return Paired(found.n, found.mean, found.low, found.high, _p_value(found))


def _half(n: int, std: float) -> float:
    return float(special.stdtrit(n - 1, 0.5 + CONFIDENCE / 2)) * std / math.sqrt(n)


def _p_value(differences: Summary) -> float | None:
    """As `scipy.stats.ttest_rel` gives it, from the mean and deviation of the differences."""
    if differences.std is None:
        return None
    if differences.std <= 1e-12 * max(1.0, abs(differences.mean)):
        return 1.0 if differences.mean == 0 else None
    t = differences.mean / (differences.std / math.sqrt(differences.n))
    return float(2 * special.stdtr(differences.n - 1, -abs(t)))
