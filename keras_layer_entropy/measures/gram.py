"""Sums of products, and the linear regression from them."""

import dataclasses
from collections.abc import Iterable

import keras
import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from keras_layer_entropy.backend import Tensor


@dataclasses.dataclass(frozen=True)
class LinearFit:
    """`z ~ x @ kernel + bias`.

    Attributes:
        kernel: float64 `[features, targets]`.
        bias: float64 `[targets]`.
        residual: sum of squares that is left, over the sum of squares around the mean; 0 is a
            perfect fit, 1 is no better than the mean.
    """

    kernel: np.ndarray
    bias: np.ndarray
    residual: float


def ridge_regression(
    gram: np.ndarray,
    features: int,
    ridge: float = 1e-8,
    intercept: bool = True,
    start: np.ndarray | None = None,
) -> LinearFit:
    """The ridge regression of z on x from the Gram matrix of the columns `[x, 1, z]`.

    With C and D the centred second moments `X'X` and `X'Z`, and S the diagonal of C, the kernel is
    `S^-1/2 (S^-1/2 C S^-1/2 + ridge I)^-1 S^-1/2 D`: a ridge on standardized features, so that it
    does not depend on their scales. Features that never change (dead neurons) get zeros, and
    the ridge shares out what duplicates and too few samples leave open.

    Args:
        gram: `[features + 1 + targets] * 2`, sums over all samples.
        features: number of columns of x.
        ridge: ridge, relative to standardized features; larger than rounding, small enough not to
            be seen.
        intercept: whether there is a bias; without, nothing is centred and the bias is 0.
        start: kernel `[features, targets]` from which the ridge is counted, None for 0: what the
            samples leave open is as in this.

    Returns:
        `LinearFit`.

    Raises:
        ValueError: sums that are not finite, or no samples.

    Example:

    >>> random = np.random.default_rng(0)
    >>> x, kernel = random.normal(size=(50, 3)), random.normal(size=(3, 2))
    >>> columns = np.hstack([x, np.ones((50, 1)), x @ kernel + 5.0])
    >>> fit = ridge_regression(columns.T @ columns, features=3)
    >>> bool(np.allclose(fit.kernel, kernel)), fit.bias.round(4).tolist()
    (True, [5.0, 5.0])
    """
    moments, targets, raw, _ = _moments(gram, features, intercept)
    scale = _scale(np.diag(moments), raw)
    standardized = moments * np.outer(scale, scale) + ridge * np.eye(features)
    rest = targets if start is None else targets - moments @ start
    kernel = scale[:, None] * np.linalg.solve(standardized, scale[:, None] * rest)
    return fit_of(kernel if start is None else start + kernel, gram, features, intercept)


def ridge_regression_of_few(
    x: np.ndarray,
    z: np.ndarray,
    ridge: float = 1e-8,
    intercept: bool = True,
    start: np.ndarray | None = None,
) -> LinearFit:
    """The `ridge_regression` of z on x where there are more features than samples.

    With X the centred features, each divided by the root of its sum of squares (zero where it never
    changes), the kernel is `S^-1/2 X' (X X' + ridge I)^-1 Z`: the same numbers, from a matrix of
    samples times samples. No copy of x as a whole is made.

    Args:
        x: `[samples, features]`.
        z: `[samples, targets]`.
        ridge, intercept, start: as for `ridge_regression`.

    Returns:
        `LinearFit`.

    Raises:
        ValueError: as `ridge_regression`.

    Example:

    >>> random = np.random.default_rng(0)
    >>> x, z = random.normal(size=(5, 9)), random.normal(size=(5, 2))
    >>> columns = np.hstack([x, np.ones((5, 1)), z])
    >>> one, other = ridge_regression_of_few(x, z), ridge_regression(columns.T @ columns, 9)
    >>> bool(np.allclose(one.kernel, other.kernel, atol=1e-5))
    True
    """
    if not len(x):
        raise ValueError("There are no samples to fit to.")
    blocks = [slice(i, i + _BLOCK) for i in range(0, x.shape[1], _BLOCK)]
    products = ridge * np.eye(len(x))
    for block in blocks:
        standard, _ = _standardized(x[:, block], intercept)
        products += standard @ standard.T
    rest = np.asarray(z, np.float64)
    if start is not None:
        rest = rest - _product(x, start)
    if not (np.isfinite(products).all() and np.isfinite(rest).all()):
        raise ValueError(_NOT_FINITE)
    weights = np.linalg.solve(products, rest - rest.mean(0) if intercept else rest)
    parts = [_standardized(x[:, block], intercept) for block in blocks]
    kernel = np.concatenate([scale[:, None] * (standard.T @ weights) for standard, scale in parts])
    return fit_to(kernel if start is None else start + kernel, x, z, intercept)


def fit_to(kernel: np.ndarray, x: np.ndarray, z: np.ndarray, intercept: bool = True) -> LinearFit:
    """What `fit_of` gives, from the samples themselves.

    Args, errors: as for `ridge_regression_of_few`; `kernel` is `[features, targets]`.

    Example:

    >>> fit = fit_to(np.array([[1.0]]), np.array([[1.0], [3.0]]), np.array([[5.0], [9.0]]))
    >>> fit.bias.tolist(), fit.residual
    ([5.0], 0.25)
    """
    z = np.asarray(z, np.float64)
    around_mean = np.sum((z - z.mean(0) if intercept else z) ** 2)
    rest = z - _product(x, kernel)
    bias = rest.mean(0) if intercept else np.zeros(rest.shape[1])
    left = np.sum((rest - bias) ** 2)
    return LinearFit(kernel, bias, float(left / around_mean) if around_mean > 0 else 0.0)


def generalized_cross_validation(gram: np.ndarray, features: int, ridges: ArrayLike) -> np.ndarray:
    """How large the mean squared error of ridge regressions would be on other samples.

    For the n samples of a Gram matrix and the fitted values `H z` of `ridge_regression` it is
    `|z - H z|^2 / n / (1 - trace(H) / n)^2`: what leaving out one sample after the other gives,
    where all of them count alike. With the eigenvalues d of the correlations of the features,
    `trace(H) = 1 + sum d / (d + ridge)`.

    Args:
        gram, features: as for `ridge_regression`, of samples that each have the weight 1.
        ridges: `[ridges]`, as for `ridge_regression`.

    Returns:
        float64 `[ridges]`, summed over the targets; infinite where nothing is left to judge by.

    Raises:
        ValueError: as `ridge_regression`.

    Source: Golub, Heath & Wahba, *Generalized cross-validation as a method for choosing a good
    ridge parameter*, Technometrics 1979.

    Example:

    >>> random = np.random.default_rng(0)
    >>> x, noise = random.normal(size=(50, 40)), random.normal(size=(50, 1))
    >>> columns = np.hstack([x, np.ones((50, 1)), x[:, :1] + noise])
    >>> few, some, much = generalized_cross_validation(columns.T @ columns, 40, [1e-6, 1.0, 1e6])
    >>> bool(some < few), bool(some < much)
    (True, True)
    """
    moments, targets, raw, around_mean = _moments(gram, features, intercept=True)
    count = float(np.asarray(gram)[features, features])
    scale = _scale(np.diag(moments), raw)
    values, vectors = np.linalg.eigh(moments * np.outer(scale, scale))
    values = np.maximum(values, 0.0)  # but for rounding
    along = np.sum((vectors.T @ (scale[:, None] * targets)) ** 2, axis=1)
    shrunk = values + np.asarray(ridges, np.float64)[:, None]
    residual = around_mean - np.sum(along * (2 * shrunk - values) / shrunk**2, axis=1)
    left = 1.0 - (1.0 + np.sum(values / shrunk, axis=1)) / count
    error = np.maximum(residual, 0.0) / count / np.where(left > 0, left, 1.0) ** 2
    return np.where(left > 0, error, np.inf)


def fit_of(
    kernel: np.ndarray, gram: np.ndarray, features: int, intercept: bool = True
) -> LinearFit:
    """The `LinearFit` of a kernel that is given, with the bias that is best for it.

    Args, errors: as for `ridge_regression`; `kernel` is `[features, targets]`.

    Example:

    >>> columns = np.array([[1.0, 1.0, 5.0], [3.0, 1.0, 9.0]])  # x, 1, z = 2 x + 3
    >>> fit = fit_of(np.array([[1.0]]), columns.T @ columns, features=1)
    >>> fit.bias.tolist(), fit.residual
    ([5.0], 0.25)
    """
    moments, targets, _, around_mean = _moments(gram, features, intercept)
    explained = 2 * np.sum(kernel * targets) - np.sum(kernel * (moments @ kernel))
    residual = max(around_mean - explained, 0.0) / around_mean if around_mean > 0 else 0.0
    bias = np.zeros(targets.shape[1])
    if intercept:
        sums = np.asarray(gram, np.float64)[features]
        bias = (sums[features + 1 :] - sums[:features] @ kernel) / sums[features]
    return LinearFit(kernel, bias, float(residual))


_BLOCK = 2048  # features at a time
_NOT_FINITE = "The activations are not finite (NaN or infinite): look at the data and the weights."


def _product(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """`x @ kernel` in float64."""
    total = np.zeros((len(x), kernel.shape[1]))
    for i in range(0, x.shape[1], _BLOCK):
        total += x[:, i : i + _BLOCK].astype(np.float64) @ kernel[i : i + _BLOCK]
    return total


def _standardized(x: np.ndarray, intercept: bool) -> tuple[np.ndarray, np.ndarray]:
    """Features in float64, centred, times what makes their sum of squares 1; and these numbers."""
    x = np.asarray(x, np.float64)
    raw = np.sum(x**2, axis=0)
    if intercept:
        x = x - x.mean(0)
    scale = _scale(np.sum(x**2, axis=0), raw)
    return x * scale, scale


def _scale(variation: np.ndarray, raw: np.ndarray) -> np.ndarray:
    """What makes the sum of squares of a feature 1, `[features]`; 0 for those that never change."""
    # What rounding leaves of a constant is no variation.
    alive = variation > 1e-10 * np.maximum(raw, np.finfo(np.float64).tiny)
    return np.where(alive, 1.0 / np.sqrt(np.where(alive, variation, 1.0)), 0.0)


def _moments(
    gram: np.ndarray, features: int, intercept: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """`X'X`, `X'Z`, the diagonal of the raw `X'X` and the trace of `Z'Z`, centred with a bias."""
    gram = np.asarray(gram, np.float64)
    count, raw = gram[features, features], np.diag(gram)[:features]
    if not np.isfinite(gram).all():
        raise ValueError(_NOT_FINITE)
    if count <= 0:
        raise ValueError("There are no samples to fit to.")
    if intercept:
        gram = gram - np.outer(gram[features], gram[features]) / count
    around_mean = np.diag(gram)[features + 1 :].sum()
    return gram[:features, :features], gram[:features, features + 1 :], raw, around_mean


class GramStatistic(keras.metrics.Metric):
    """Sums of products of the columns `[x, 1, z]`, for `ridge_regression`.

    In float64, because products square the condition number, except where the backend has none.

    Args:
        features, targets: number of columns of x and z.
    """

    def __init__(self, features: int, targets: int, name: str = "gram") -> None:
        super().__init__(name=name, dtype="float64")
        size = features + 1 + targets
        self.features = features
        self._gram = self.add_variable((size, size), "zeros", "float64", name="gram")

    def update_state(
        self, x: Tensor, z: Tensor, mask: Tensor | None = None, weight: Tensor | None = None
    ) -> None:
        """Adds a batch: `[..., features]`, `[..., targets]`; mask and weight `[...]`, or None."""
        x, z = (ops.reshape(ops.cast(t, "float64"), (-1, t.shape[-1])) for t in (x, z))
        rows = ops.concatenate([x, ops.ones_like(z[:, :1]), z], axis=-1)
        if mask is not None:
            # Zero times NaN is NaN, so that hidden rows are replaced.
            rows = ops.where(ops.reshape(mask, (-1, 1)), rows, ops.zeros_like(rows))
        if weight is not None:
            rows = rows * ops.sqrt(ops.reshape(ops.cast(weight, "float64"), (-1, 1)))
        self._gram.assign_add(ops.matmul(ops.transpose(rows), rows))

    def merge_state(self, statistics: Iterable["GramStatistic"]) -> None:
        """Adds the states of others."""
        for other in statistics:
            self._gram.assign_add(other._gram)

    def result(self) -> np.ndarray:
        """The Gram matrix, float64."""
        return np.asarray(ops.convert_to_numpy(self._gram), np.float64)
