"""The paired bootstrap against a plain loop, and on differences whose answer is known."""

import math

import numpy as np
import pytest

from trainer.evaluation import bootstrap
from trainer.evaluation.bootstrap import interval, resampled_means


def test_equals_a_plain_loop():
    differences = np.random.default_rng(3).normal(0.4, 2.0, size=37)
    samples = 500
    drawn = np.random.default_rng(11).integers(37, size=(samples, 37))
    plain = [math.fsum(differences[row] for row in rows) / 37 for rows in drawn.tolist()]
    means = resampled_means(differences, samples, 11)
    np.testing.assert_allclose(means, plain, rtol=1e-12, atol=1e-12)
    found = interval(means)
    ordered = sorted(plain)

    def percentile(share):
        place = share * (samples - 1)
        low = math.floor(place)
        return ordered[low] + (place - low) * (ordered[low + 1] - ordered[low])

    assert found.low == pytest.approx(percentile(0.025))
    assert found.high == pytest.approx(percentile(0.975))
    below, above = (sum(mean <= 0 for mean in plain), sum(mean >= 0 for mean in plain))
    assert 0 < below < above
    assert found.p_value == pytest.approx(2 * below / samples)


def test_pieces_change_nothing(monkeypatch):
    differences = np.random.default_rng(0).normal(size=21)
    whole = resampled_means(differences, 300, (7, 1))
    monkeypatch.setattr(bootstrap, "_AT_ONCE", 100)
    np.testing.assert_array_equal(resampled_means(differences, 300, (7, 1)), whole)
    assert not np.array_equal(resampled_means(differences, 300, (7, 2)), whole)


def test_known_answers():
    same = interval(resampled_means(np.zeros(10), 100, 0))
    assert same == (0.0, 0.0, 1.0), "no difference at all"
    sure = interval(resampled_means(np.full(10, 2.5), 100, 0))
    assert sure == (2.5, 2.5, 0.0)
    assert interval(-resampled_means(np.full(10, 2.5), 100, 0)).p_value == 0.0, "two-sided"


def test_p_values_of_no_difference_are_uniform():
    """Of two systems that do not differ, a twentieth is told apart at 5 %."""
    random = np.random.default_rng(5)
    values = [interval(resampled_means(random.normal(size=80), 400, seed)).p_value for seed in range(300)]
    assert np.mean(np.array(values) < 0.05) == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 300))
    assert np.mean(values) == pytest.approx(0.5, abs=4 / math.sqrt(12 * 300))
