"""Regression from sums of products, against least squares and in corner cases."""

import numpy as np
import pytest

from keras_layer_entropy.measures.gram import (
    GramStatistic,
    fit_of,
    generalized_cross_validation,
    ridge_regression,
)

pytestmark = pytest.mark.tensorflow  # no backend in it


def gram_of(x, z):
    columns = np.hstack([x, np.ones((len(x), 1)), z])
    return columns.T @ columns


@pytest.mark.parametrize("intercept", [True, False])
def test_ridge_regression_is_lstsq(random, intercept):
    """Features of very different scales and offsets; float64 throughout."""
    x = random.normal(size=(300, 12)) * np.logspace(-3, 3, 12)
    if intercept:
        x += np.linspace(0, 50, 12)
    z = np.tanh(x @ random.normal(size=(12, 4))) + random.normal(size=(300, 4))
    fit = ridge_regression(gram_of(x, z), 12, intercept=intercept)
    columns = np.hstack([x, np.ones((300, 1))]) if intercept else x
    best = columns @ np.linalg.lstsq(columns, z, rcond=None)[0]
    np.testing.assert_allclose(x @ fit.kernel + fit.bias, best, atol=1e-5)
    around = z - z.mean(0) if intercept else z
    assert fit.residual == pytest.approx(((z - best) ** 2).sum() / (around**2).sum(), abs=1e-6)


def test_dead_and_duplicate_features_are_handled(random):
    good = random.normal(size=(300, 5))
    x = np.hstack([good, good[:, :2], np.zeros((300, 2)), np.full((300, 1), 3.0)])
    z = good @ random.normal(size=(5, 2)) + 1.0
    fit = ridge_regression(gram_of(x, z), 10)
    np.testing.assert_allclose(x @ fit.kernel + fit.bias, z, atol=1e-6)
    np.testing.assert_array_equal(fit.kernel[7:], 0.0)
    # duplicates share what one of them would have
    np.testing.assert_allclose(fit.kernel[:2], fit.kernel[5:7], rtol=1e-5)


def test_fewer_samples_than_features_are_handled(random):
    x, z = random.normal(size=(20, 50)), random.normal(size=(20, 3))
    fit = ridge_regression(gram_of(x, z), 50)
    np.testing.assert_allclose(x @ fit.kernel + fit.bias, z, atol=1e-4)
    assert np.abs(fit.kernel).max() < 10


def test_values_that_are_not_finite_are_an_error(random):
    x = random.normal(size=(20, 3))
    x[3, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        ridge_regression(gram_of(x, x), 3)


@pytest.mark.parametrize("regression", [ridge_regression, lambda *a: fit_of(np.eye(3), *a)])
def test_no_samples_are_an_error(regression):
    empty = np.empty((0, 3))
    with pytest.raises(ValueError, match="no samples"):
        regression(gram_of(empty, empty), 3)


def test_one_sample_is_its_own_mean():
    x, z = np.array([[1.0, 2.0]]), np.array([[3.0]])
    fit = ridge_regression(gram_of(x, z), 2)
    assert (fit.kernel.tolist(), fit.bias.tolist(), fit.residual) == ([[0], [0]], [3], 0)


def test_the_ridge_shrinks_standardized_features(random):
    """One feature: the kernel of least squares over 1 + ridge, whatever the scale."""
    for scale in (1e-4, 1.0, 1e4):
        x = scale * random.normal(size=(50, 1)) + scale
        fit = ridge_regression(gram_of(x, 2 * x + 1), 1, ridge=0.25)
        assert fit.kernel.item() == pytest.approx(2 / 1.25)
        assert fit.bias.item() == pytest.approx((2 * x + 1).mean() - fit.kernel.item() * x.mean())
        assert fit.residual == pytest.approx(0.2**2)  # (1 - 1 / 1.25)^2


def test_generalized_cross_validation_is_its_formula(random):
    """With the matrix that gives the fitted values, written out for every ridge."""
    x = random.normal(size=(60, 20)) * np.logspace(-2, 2, 20) + 3.0
    x[:, 7] = 5.0  # a dead feature
    z = random.normal(size=(60, 3)) + x[:, :3]
    ridges = 10.0 ** np.arange(-6.0, 3.0)
    found = generalized_cross_validation(gram_of(x, z), 20, ridges)
    centred = x - x.mean(0)
    lengths = np.sqrt((centred**2).sum(0))
    scaled = np.divide(centred, lengths, out=np.zeros_like(x), where=lengths > 0)
    for ridge, error in zip(ridges, found, strict=True):
        hat = scaled @ np.linalg.solve(scaled.T @ scaled + ridge * np.eye(20), scaled.T) + 1 / 60
        expected = ((z - hat @ z) ** 2).sum() / 60 / (1 - np.trace(hat) / 60) ** 2
        # Centring sums of products costs four digits where means are far above deviations.
        assert error == pytest.approx(expected, rel=1e-8)
        fit = ridge_regression(gram_of(x, z), 20, ridge)
        np.testing.assert_allclose(x @ fit.kernel + fit.bias, hat @ z, atol=1e-6)


def test_nothing_is_left_to_judge_by():
    """One sample: a constant takes it all."""
    one = gram_of(np.ones((1, 2)), np.ones((1, 1)))
    assert generalized_cross_validation(one, 2, [1.0]).tolist() == [np.inf]


def test_weights_of_sums_of_products_are_copies(random):
    x, z = random.normal(size=(9, 3)), random.normal(size=(9, 2))
    weight = np.arange(9)
    statistic = GramStatistic(3, 2)
    statistic.update_state(x, z, weight=weight)
    expected = gram_of(np.repeat(x, weight, axis=0), np.repeat(z, weight, axis=0))
    np.testing.assert_allclose(statistic.result(), expected, rtol=1e-10, atol=1e-12)
