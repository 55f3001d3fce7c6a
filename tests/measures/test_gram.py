"""Regression from sums of products, against least squares and in corner cases."""

import numpy as np
import pytest

from keras_layer_entropy.measures.gram import fit_of, ridge_regression

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
