"""What repeats that differ in the seed alone say: mean, spread, interval, and paired differences.

Intervals and p-values are Student's t: of one sample for a mean, of the differences for pairs (the paired
t-test, two-sided, as `scipy.stats.ttest_rel`).
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
    """Of `n` values: mean, sample standard deviation, 95 % interval of the mean (None below two values)."""

    n: int
    mean: float
    std: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Paired:
    """Of `n` pairs: mean difference, its 95 % interval, and the p-value of the paired t-test.

    `low`, `high` and `p` are None below two pairs; `p` also where all differences are the same number other
    than zero, of which the test knows no spread.
    """

    n: int
    difference: float
    low: float | None
    high: float | None
    p: float | None


def summarise(values: Sequence[float]) -> Summary:
    """Mean and spread of at least one value; a NaN among them gives NaN."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Summary(len(values), mean, None, None, None)
    std = float(np.std(values, ddof=1))  # lets NaN through
    half = _half(len(values), std)
    return Summary(len(values), mean, std, mean - half, mean + half)


def paired(ours: Mapping[Any, float], theirs: Mapping[Any, float]) -> Paired | None:
    """`ours` minus `theirs` over the keys (seeds) that both have; None where they share none."""
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
