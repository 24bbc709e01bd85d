"""Planted effects are found, and none where there is none."""

import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from timm_asr.experiment.statistics import compare, detectable, holm


def arm(mean, seeds=8, deviation=0.3, draw=0):
    values = np.random.default_rng(draw).normal(mean, deviation, seeds)
    return dict(enumerate(values.tolist()))


def test_a_planted_effect_is_found():
    found = compare(arm(91.5, draw=1), arm(90))
    assert found.difference == pytest.approx(1.5, abs=0.4)
    assert 0 < found.low < found.difference < found.high
    assert max(found.welch, found.student, found.permutation) < 0.001
    assert found.t > 0
    assert found.paired


def test_no_effect_is_found_where_there_is_none():
    """Of 200 such experiments about five in a hundred find something at 5 %, which is what a level is."""
    false = [compare(arm(90, draw=2 * k), arm(90, draw=2 * k + 1)) for k in range(200)]
    for kind in ('welch', 'permutation'):
        assert 0.01 < np.mean([getattr(found, kind) < 0.05 for found in false]) < 0.1, kind
    covered = np.mean([found.low < 0 < found.high for found in false])
    assert 0.8 < covered < 0.99  # eight seeds: the bootstrap is a little narrow


def test_differences_seed_by_seed_make_the_interval_narrow():
    """What the seeds have in common cancels where they are shared, and only there."""
    common = arm(90, deviation=3)
    better = {seed: value + 0.5 + 0.05 * (seed % 3) for seed, value in common.items()}
    paired = compare(better, common)
    assert paired.paired
    assert 0 < paired.low < paired.high < 1
    other = compare({seed + 100: value for seed, value in better.items()}, common)
    assert not other.paired
    assert other.low < 0 < other.high
    assert other.permutation == paired.permutation  # which is not paired


def test_exact_permutation_of_few_seeds():
    """Five against five that do not overlap: 2 of 252 ways are as extreme."""
    assert compare(arm(95, 5), arm(90, 5, draw=1)).permutation == pytest.approx(2 / 252)
    assert compare(arm(95, 2), arm(90, 2)).permutation == pytest.approx(2 / 6)
    assert math.isnan(compare(arm(95, 2), arm(90, 2)).low)
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
    a, b = list(arm(0, 6).values()), list(arm(0, 6, draw=1).values())
    pooled = math.sqrt((np.var(a, ddof=1) + np.var(b, ddof=1)) / 2)
    draws = np.random.default_rng(0).normal(size=(4000, 2, 6)) * pooled
    draws[:, 0] += detectable(a, b)
    assert np.mean(stats.ttest_ind(draws[:, 0], draws[:, 1], axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.02)


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]
