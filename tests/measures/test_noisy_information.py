"""How well single units tell samples apart, against integrals and closed forms."""

import itertools

import numpy as np
import pytest
from scipy import integrate, stats

from keras_layer_entropy.measures.unit_information import noisy_information


def integrated(t, weights):
    """h(T + e) - h(e) of standardized samples, the density's integral by adaptive quadrature."""
    share = weights / weights.sum()
    mean = share @ t
    deviation = np.sqrt(share @ (t - mean) ** 2)
    places = (t - mean) / deviation

    def term(x):
        density = share @ stats.norm.pdf(x, places, np.sqrt(0.1))
        return -density * np.log2(density) if density > 0 else 0.0

    edges = np.arange(places.min() - 3, places.max() + 3.1, 0.25)
    whole = sum(integrate.quad(term, *ends)[0] for ends in itertools.pairwise(edges))
    return whole - np.log2(0.2 * np.pi * np.e) / 2


@pytest.mark.parametrize("kind", ["normal", "relu", "rare", "heavy", "two"])
def test_it_is_the_integral(kind):
    random = np.random.default_rng(0)
    t = random.normal(size=60)
    t = {
        "normal": t, "relu": np.maximum(t, 0), "rare": (np.arange(60) == 7) * 1.0,
        "heavy": t**5, "two": np.sign(t),
    }[kind]  # fmt: skip
    for weights in (np.ones(60), random.uniform(0.1, 2.0, size=60)):
        # The grid puts a value at two places 0.025 apart, which adds to the noise at most 0.2 %.
        expected = integrated(t, weights)
        for scaled in (t, -1e-4 * t + 3e-3):  # no matter the scale, the sign and the place
            found = noisy_information(scaled[:, None], weights)
            np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3)


def test_closed_forms():
    """A normal unit; one that is on for a share of the samples, far enough from off."""
    many = stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    rare = np.arange(20_000) < 1000
    found = noisy_information(np.stack([many, rare, np.full(20_000, 0.3)], axis=1))
    normal, entropy = np.log2(11) / 2, stats.entropy([0.05, 0.95], base=2)
    # 5 % lie 4.6 deviations from the rest, 14 of the noise: nothing is lost.
    np.testing.assert_allclose(found, [normal, entropy, 0], rtol=0, atol=2e-3)


def test_what_is_far_away_is_only_known_to_be():
    """One of 100,000 samples, 316 deviations from the rest, is counted as if at 64."""
    t = np.zeros(100_000)
    t[3] = 1.0
    expected = stats.entropy([1e-5, 1 - 1e-5], base=2)
    np.testing.assert_allclose(noisy_information(t[:, None]), expected, rtol=0, atol=1e-6)


def test_samples_that_do_not_count_and_values_that_are_not_finite():
    t = np.array([[0.0, 0.0, 0.0], [1.0, 1.0, np.inf], [np.nan, 5.0, 0.0]])
    found = noisy_information(t, [1.0, 1.0, 0.0])
    np.testing.assert_allclose(found[:2], integrated(np.array([0.0, 1.0]), np.ones(2)), atol=2e-3)
    assert np.isnan(found[2])
    assert np.isnan(noisy_information(t, np.zeros(3))).all()
    with pytest.raises(ValueError, match=r"weight has shape \(2,\)"):
        noisy_information(t, np.ones(2))
    with pytest.raises(ValueError, match="expected .samples, units."):
        noisy_information(np.zeros(3))
