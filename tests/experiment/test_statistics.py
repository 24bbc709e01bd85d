"""Differences between arms: each figure by its formula, and how often something is found."""

import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from timm_asr.experiment.statistics import compare, detectable, holm


def arm(mean, seeds=8, deviation=0.3, draw=0):
    values = np.random.default_rng(draw).normal(mean, deviation, seeds)
    return dict(enumerate(values.tolist()))


def test_figures_by_formula():
    """Of arms that differ in size and spread, the first one worse; then seed by seed, as they have the same seeds."""
    a, b = {0: 3.0, 1: 9.0, 2: 4.0, 5: 5.0, 9: 6.5}, {9: 8.2, 5: 8.0, 2: 7.5, 1: 9.5, 0: 8.1, 7: 8.4, 8: 7.9}
    x, y = np.array(list(a.values())), np.array(list(b.values()))
    found, n, m, u, w = compare(a, b), 5, 7, x.var(ddof=1), y.var(ddof=1)
    t = (x.mean() - y.mean()) / math.sqrt(u / n + w / m)
    freedom = (u / n + w / m) ** 2 / ((u / n) ** 2 / (n - 1) + (w / m) ** 2 / (m - 1))
    error = math.sqrt((4 * u + 6 * w) / 10 * (1 / n + 1 / m))
    assert (found.t, found.welch) == pytest.approx((t, 2 * stats.t.cdf(t, freedom)))
    assert found.student == pytest.approx(2 * stats.t.cdf((x.mean() - y.mean()) / error, 10))
    pairs = compare(a, same := {seed: b[seed] for seed in (9, 5, 2, 1, 0)})
    differences = np.array([a[seed] - same[seed] for seed in a])
    assert (found.paired, pairs.paired, pairs.difference) == (False, True, pytest.approx(differences.mean()))
    for one, samples, statistic in ((pairs, (differences,), np.mean), (
            found, (x, y), lambda x, y, axis: (x.mean(axis) - y.mean(axis)).round(9))):
        interval = stats.bootstrap(samples, statistic, method='BCa', rng=np.random.default_rng(0)).confidence_interval
        assert (one.low, one.high) == pytest.approx(tuple(interval))
    other = compare(a, {seed + 10: value for seed, value in same.items()})
    assert other.permutation == pairs.permutation  # which is not paired
    few = compare({seed: a[seed] for seed in (0, 1, 2, 5)}, same)
    assert math.isnan(few.low)
    assert math.isnan(few.high)


def test_no_effect_is_found_where_there_is_none():
    """Of 200 such experiments about five in a hundred find something at 5 %, which is what a level is."""
    false = [compare(arm(90, draw=2 * k), arm(90, draw=2 * k + 1)) for k in range(200)]
    for kind in ('welch', 'permutation'):
        assert 0.01 < np.mean([getattr(found, kind) < 0.05 for found in false]) < 0.1, kind
    covered = np.mean([found.low < 0 < found.high for found in false])
    assert 0.8 < covered < 0.99  # eight seeds: the bootstrap is a little narrow


def test_exact_permutation_of_few_seeds():
    """Five against five that do not overlap: 2 of 252 ways are as extreme."""
    assert compare(arm(95, 5), arm(90, 5, draw=1)).permutation == pytest.approx(2 / 252)
    assert compare(arm(95, 2), arm(90, 2)).permutation == pytest.approx(2 / 6)
    assert math.isnan(compare(arm(95, 2), arm(90, 2, draw=1)).low)
    assert compare(arm(95, 1), arm(90, 5)) is None


def test_differences_that_tie_count_as_equal():
    """Top-1 is a share of so many images, so that many exchanges give the very same difference."""
    for draw in range(10):
        right = np.random.default_rng(draw).integers(320, 330, 12).tolist()
        sums = [sum(chosen) for chosen in combinations(right, 6)]
        exact = np.mean([abs(2 * one - sum(right)) >= abs(2 * sum(right[:6]) - sum(right)) for one in sums])
        a, b = (dict(enumerate(100 * n / 359 for n in part)) for part in (right[:6], right[6:]))
        assert compare(a, b).permutation == pytest.approx(exact)


def test_the_detectable_difference_is_detected_in_eighty_of_a_hundred():
    a, b = list(arm(0, 4, deviation=1).values()), list(arm(0, 9, draw=1).values())
    pooled = math.sqrt((3 * np.var(a, ddof=1) + 8 * np.var(b, ddof=1)) / 11)
    draws = np.random.default_rng(0).normal(size=(4000, 13)) * pooled
    draws[:, :4] += detectable(a, b)
    assert np.mean(stats.ttest_ind(draws[:, :4], draws[:, 4:], axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.02)


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]
