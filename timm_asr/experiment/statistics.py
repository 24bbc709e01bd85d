"""What a difference between two arms is worth: intervals, tests and power, by scipy."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

LEVEL, POWER = 0.05, 0.8


@dataclass(frozen=True)
class Comparison:
    """Arm minus baseline."""

    difference: float  # of the means
    low: float  # BCa bootstrap interval of 95 %; NaN for fewer than five seeds
    high: float
    paired: bool  # whether the interval is over differences seed by seed
    t: float  # Welch's
    welch: float  # its p-value, two-sided
    student: float  # p-value of Student's t-test, which the DIA paper uses
    permutation: float  # p-value of the difference of means under all exchanges of runs between the arms, two-sided
    detectable: float  # smallest difference that a two-sided t-test at 5 % finds in 80 % of such experiments


def compare(arm: Mapping[int, float], baseline: Mapping[int, float]) -> Comparison | None:
    """Compare two arms, given as seed -> value; None unless both have two seeds."""
    if min(len(arm), len(baseline)) < 2:
        return None
    a, b = np.array(list(arm.values())), np.array(list(baseline.values()))
    shared = [seed for seed in arm if seed in baseline]
    paired = len(shared) == len(arm) == len(baseline)
    low, high = _bca(np.array([arm[seed] - baseline[seed] for seed in shared])) if paired else _bca(a, b)
    with warnings.catch_warnings(action='ignore'):  # equal values have no t
        t, welch = stats.ttest_ind(a, b, equal_var=False)
        student = stats.ttest_ind(a, b).pvalue
    # Exact where there are at most that many ways.
    permutation = stats.permutation_test((a, b), _difference, n_resamples=9999, rng=np.random.default_rng(0)).pvalue
    return Comparison(a.mean() - b.mean(), low, high, paired, float(t), float(welch), float(student),
                      float(permutation), detectable(a, b))


def _difference(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
    return (a.mean(axis) - b.mean(axis)).round(9)  # or rounding would tell equal differences apart


def _bca(*samples: np.ndarray) -> tuple[float, float]:
    """95 % interval of a mean, or of a difference of means; NaN for no spread, or fewer than five values: of 100
    simulated experiments it holds the truth in 71 with three, 80 with four, 84 with five and 88 with six.
    """
    if min(map(len, samples)) < 5 or all(np.ptp(sample) == 0 for sample in samples):
        return math.nan, math.nan
    statistic = np.mean if len(samples) == 1 else _difference
    with warnings.catch_warnings(action='ignore'):
        found = stats.bootstrap(samples, statistic, confidence_level=1 - LEVEL, method='BCa', vectorized=True,
                                rng=np.random.default_rng(0))
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def detectable(a: Sequence[float], b: Sequence[float]) -> float:
    """Smallest difference of means that a t-test at 5 % finds in 80 % of such experiments; deviations as in a and b."""
    n, m = len(a), len(b)
    degrees = n + m - 2
    pooled = math.sqrt(((n - 1) * np.var(a, ddof=1) + (m - 1) * np.var(b, ddof=1)) / degrees)
    critical = stats.t.ppf(1 - LEVEL / 2, degrees)
    # In standard errors. The other side of the test adds less than 1e-6 to the power.
    effect = optimize.brentq(lambda x: float(stats.nct.sf(critical, degrees, x)) - POWER, 1, 20)
    return float(effect) * pooled * math.sqrt(1 / n + 1 / m)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values for which the chance of any false finding among them stays below the level (Holm 1979)."""
    order = np.argsort(p_values, kind='stable')
    steps = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.maximum.accumulate(steps).clip(max=1)
    return corrected.tolist()
