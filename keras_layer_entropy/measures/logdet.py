"""LogDet entropy: how many directions the samples of a layer fill, and how far.

Source: Zhouyin & Liu, *Understanding Neural Networks with Logarithm Determinant Entropy Estimator*,
2021, arXiv 2105.03705.

In this file `x` holds samples in rows, `[..., samples, features]`; columns are centred. Entropies
and mutual informations are in nats. `beta` says how much a variance counts against the 1 that is
added to each direction: all quantities that are compared need the same. Half precision is computed
in float32; every other floating dtype is kept.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.linalg
from keras import ops

from keras_layer_entropy.backend import Tensor, at_least_float32
from keras_layer_entropy.measures.kept_samples import one_hot
from keras_layer_entropy.measures.measure import (
    MOST_SAMPLES,
    LayerInfo,
    Measure,
    MeasureResult,
    Panel,
    Samples,
    Words,
    is_int,
    is_positive,
)
from keras_layer_entropy.measures.one_thread import in_threads, one_thread
from keras_layer_entropy.measures.pairs import centred_products

MODES = ("covariance", "correlation")


def logdet_entropy(x: Tensor, beta: float = 1.0, mode: str = "covariance") -> Tensor:
    """H(X) = 1/2 ln det(I + beta C), C = X'X / n of the centred columns.

    A sum over the principal directions of 1/2 ln(1 + beta variance): never negative, 0 for constant
    samples, and finite where samples are fewer than features. It is no differential entropy: for
    large `beta` and a Gaussian it differs from that by a constant per direction.

    Args:
        x: tensor `[..., samples, features]`.
        beta: positive number; 100 times the number of input features for information planes, 1 to
            compare estimators.
        mode: `"covariance"`, or `"correlation"`, where C is the correlation matrix (columns that
            never change count as 0).

    Returns:
        Tensor `[...]`, nats.

    Raises:
        ValueError: fewer than two dimensions, no samples, `beta` not positive, unknown `mode`.

    Source: Zhouyin & Liu 2021.

    Example:

    >>> import math, numpy as np
    >>> x = np.array([[1.0, 0.0], [-1.0, 0.0]])  # one direction, of variance 1
    >>> round(float(logdet_entropy(x)) / math.log(2), 4)
    0.5
    """
    return _half_logdet(_columns(x, mode), beta)


def logdet_joint_entropy(
    xs: Sequence[Tensor], beta: float = 1.0, mode: str = "covariance"
) -> Tensor:
    """H(X_1, ..., X_k): `logdet_entropy` of the columns side by side.

    Args:
        xs: list of tensors `[..., samples, features_i]` of the same samples.
        beta, mode: as in `logdet_entropy`.

    Returns:
        Tensor `[...]`, nats.

    Raises:
        ValueError: no tensors, or as `logdet_entropy`.

    Example:

    >>> import numpy as np
    >>> x = np.array([[1.0, 0.0], [-1.0, 0.0]])
    >>> bool(logdet_joint_entropy([x[:, :1], x[:, 1:]]) == logdet_entropy(x))
    True
    """
    if not xs:
        raise ValueError("xs is empty; expected a list of tensors [..., samples, features].")
    return logdet_entropy(ops.concatenate([at_least_float32(x) for x in xs], axis=-1), beta, mode)


def logdet_mutual_information(
    x: Tensor, y: Tensor, beta: float = 1.0, mode: str = "covariance"
) -> Tensor:
    """I(X; Y) = H(X) + H(Y) - H(X, Y), with one `beta` in all three.

    For Gaussians it is, per pair of directions with correlation rho and variance 1,
    -1/2 ln(1 - (beta rho / (1 + beta))^2). From few samples it is far too large: with 128 samples
    of 100 independent features it is 7.4 instead of 0. Compare it with that of shuffled rows.

    Args:
        x, y: tensors `[..., samples, features]` of the same samples; labels as one-hot columns.
        beta, mode: as in `logdet_entropy`.

    Returns:
        Tensor `[...]`, nats, not negative.

    Raises:
        ValueError: as `logdet_entropy`.

    Source: Zhouyin & Liu 2021.

    Example:

    >>> import numpy as np
    >>> x = np.array([[1.0], [-1.0], [1.0], [-1.0]])
    >>> y = np.array([[1.0], [1.0], [-1.0], [-1.0]])  # independent of x
    >>> abs(round(float(logdet_mutual_information(x, y)), 6))
    0.0
    >>> round(float(logdet_mutual_information(x, x)), 4)  # -1/2 ln(1 - (1/2)^2)
    0.1438
    """
    joint = logdet_joint_entropy([x, y], beta, mode)
    # Rounding may leave less than nothing.
    return ops.maximum(logdet_entropy(x, beta, mode) + logdet_entropy(y, beta, mode) - joint, 0.0)


def logdet_conditional_entropy(
    x: Tensor, y: Tensor, beta: float = 1.0, mode: str = "covariance"
) -> Tensor:
    """H(X | Y) = H(X, Y) - H(Y).

    Args, errors: as for `logdet_mutual_information`.

    Returns:
        Tensor `[...]`, nats.

    Example:

    >>> import numpy as np
    >>> x = np.array([[1.0], [-1.0], [1.0], [-1.0]])
    >>> y = np.array([[1.0], [1.0], [-1.0], [-1.0]])  # independent of x
    >>> round(float(logdet_conditional_entropy(x, y) - logdet_entropy(x)), 6)
    0.0
    """
    return logdet_joint_entropy([x, y], beta, mode) - logdet_entropy(y, beta, mode)


def logdet_class_entropy(x: Tensor, membership: Tensor, beta: float = 1.0) -> Tensor:
    """H(X | class) = sum_k (m_k / m) 1/2 ln det(I + beta C_k), C_k the covariance inside class k.

    Each class is centred on its own mean; C_k is divided by its number of samples m_k.

    Args:
        x: tensor `[samples, features]`.
        membership: `[samples, classes]`, one-hot labels (or weights).
        beta: as in `logdet_entropy`.

    Returns:
        Scalar tensor, nats.

    Raises:
        ValueError: other shapes, or as `logdet_entropy`.

    Source: Zhouyin & Liu 2021.

    Example:

    >>> import numpy as np
    >>> x = np.array([[5.0], [5.0], [-5.0], [-5.0]])
    >>> float(logdet_class_entropy(x, np.eye(2)[[0, 0, 1, 1]]))  # nothing is left inside
    0.0
    """
    x = _checked(x)
    membership = ops.cast(membership, x.dtype)
    if len(x.shape) != 2 or len(membership.shape) != 2 or x.shape[0] != membership.shape[0]:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and membership {tuple(membership.shape)}; expected "
            "[samples, features] and [samples, classes]."
        )
    count = ops.sum(membership, axis=0)
    some = ops.where(count > 0, count, ops.ones_like(count))  # an empty class weighs nothing
    mean = ops.matmul(ops.transpose(membership), x) / some[:, None]
    weight = ops.sqrt(ops.transpose(membership) / some[:, None])
    within = weight[..., None] * (x[None] - mean[:, None])  # [classes, samples, features]
    entropies = _half_logdet(within, beta)
    return ops.sum(count * entropies) / ops.sum(count)


def logdet_total_correlation(
    xs: Sequence[Tensor], beta: float = 1.0, mode: str = "covariance"
) -> Tensor:
    """sum_i H(X_i) - H(X_1, ..., X_k): how much the parts know of each other.

    Args, errors: as for `logdet_joint_entropy`.

    Returns:
        Tensor `[...]`, nats, not negative; `logdet_mutual_information` for two parts.

    Example:

    >>> import numpy as np
    >>> x = np.array([[1.0], [-1.0]])
    >>> bool(logdet_total_correlation([x, 2 * x]) == logdet_mutual_information(x, 2 * x))
    True
    """
    joint = logdet_joint_entropy(xs, beta, mode)
    return ops.maximum(sum(logdet_entropy(x, beta, mode) for x in xs) - joint, 0.0)


def sample_gram(x: Tensor, mode: str = "covariance") -> Tensor:
    """AA' / n of the centred columns A: how alike the samples are, `[..., samples, samples]`.

    Gram matrices of the same samples add up to that of their columns side by side, so that
    joint entropies of tensors with more features than samples cost one product for each tensor.

    Args:
        x, mode: as in `logdet_entropy`.

    Raises:
        ValueError: as `logdet_entropy`.

    Example:

    >>> import numpy as np
    >>> x, y = np.random.normal(size=(2, 5, 100))
    >>> joint = logdet_entropy_of_gram(sample_gram(x) + sample_gram(y))
    >>> bool(abs(joint - logdet_joint_entropy([x, y])) < 1e-3)
    True
    """
    columns = _columns(x, mode)
    return ops.matmul(columns, ops.swapaxes(columns, -1, -2))


def logdet_entropy_of_gram(gram: Tensor, beta: float = 1.0) -> Tensor:
    """1/2 ln det(I + beta G), `logdet_entropy` from products: of columns (the covariance matrix,
    which sums that stream past give) or of samples (`sample_gram`).

    Args:
        gram: symmetric tensor `[..., k, k]`, not negative definite.
        beta: as in `logdet_entropy`.

    Returns:
        Tensor `[...]`, nats.

    Raises:
        ValueError: no square matrices, or `beta` not positive.

    Example:

    >>> import numpy as np
    >>> x = np.random.normal(size=(1000, 3))
    >>> covariance = np.cov(x, rowvar=False, ddof=0)
    >>> bool(abs(logdet_entropy_of_gram(covariance) - logdet_entropy(x)) < 1e-3)
    True
    """
    gram = at_least_float32(gram)
    if len(gram.shape) < 2 or gram.shape[-1] != gram.shape[-2]:
        raise ValueError(f"gram has shape {tuple(gram.shape)}; expected [..., k, k].")
    if not beta > 0:
        raise ValueError(f"beta={beta}; expected a positive number.")
    return 0.5 * ops.slogdet(ops.eye(gram.shape[-1], dtype=gram.dtype) + beta * gram)[1]


def _half_logdet(columns: Tensor, beta: float) -> Tensor:
    """1/2 ln det(I + beta A'A), from whichever of A'A and AA' is smaller: they have the same."""
    samples, features = columns.shape[-2:]
    turned = ops.swapaxes(columns, -1, -2)
    few = features <= samples
    gram = ops.matmul(turned, columns) if few else ops.matmul(columns, turned)
    return logdet_entropy_of_gram(gram, beta)


def _columns(x: Tensor, mode: str) -> Tensor:
    """The centred columns, divided so that A'A is C."""
    if mode not in MODES:
        raise ValueError(f"Unknown mode {mode!r}; expected one of {MODES}.")
    x = _checked(x)
    largest = ops.max(ops.abs(x), axis=-2, keepdims=True)
    x = x - ops.mean(x, axis=-2, keepdims=True)
    if mode == "correlation":
        deviation = ops.std(x, axis=-2, keepdims=True)
        alive = deviation > 1e-6 * largest  # what rounding leaves of a constant is no variation
        x = ops.where(alive, x / ops.where(alive, deviation, 1.0), 0.0)
    return x / x.shape[-2] ** 0.5


def _checked(x: Tensor) -> Tensor:
    x = at_least_float32(x)
    if len(x.shape) < 2 or 0 in x.shape[-2:]:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected [..., samples, features].")
    return x


_SHUFFLED = (
    "Shuffled is the same for samples that are paired at random: what the estimate shows where "
    "nothing is known. Only what lies above it is information. From few samples of many neurons "
    "both are far too large."
)


class LogDet(Measure):
    """LogDet entropies and informations of layers.

    `per_class` is the entropy within each class, NaN for a class with fewer than two samples;
    `whole` holds `entropy` H(T), `input` I(X; T), `labels` I(T; Y), `previous` I(T_before; T), NaN
    for the first layer, and `total_correlation` of all layers up to this one; the three
    informations are in `shuffled`, too.

    Args:
        beta: how much a variance counts; None for 100 times the number of input features.
        samples: how many samples are compared.
        name: as for every `Measure`.

    Raises:
        ValueError: `beta` not positive, `samples` no int of at least 2.

    Source: Zhouyin & Liu 2021.

    Example:

    >>> LogDet(beta=1.0)
    LogDet(beta=1.0)
    """

    key = "logdet"
    title = "LogDet entropy within a class"
    unit = "nats"
    meaning = (
        "How many directions the samples of a class fill in the layer, and how far: half the "
        "sum over these directions of the logarithm of 1 + beta times the variance. 0 when all "
        "samples of the class give the same."
    )
    caveat = (
        "It grows with the scale of activations, with the number of neurons and, where they "
        "are few, with the number of samples of the class, and depends on beta: compare "
        "networks of one architecture on the same data, measured with one beta, and look at "
        "the untrained one. No differential entropy."
    )
    whole = {
        "entropy": Words("LogDet entropy", "nats", "H(T), of the layer over all samples."),
        "input": Words(
            "I(input; layer)",
            "nats",
            "I(X; T): how much of the input's variation shows in the layer's.",
            _SHUFFLED,
        ),
        "labels": Words(
            "I(layer; labels)",
            "nats",
            "I(T; Y): how much of the labels, taken as one-hot columns, shows in the layer.",
            _SHUFFLED,
        ),
        "previous": Words(
            "I(layer before; layer)",
            "nats",
            "How much of the variation of the layer before, in the order of the forward pass, "
            "shows in this one.",
            _SHUFFLED,
        ),
        "total_correlation": Words(
            "Total correlation",
            "nats",
            "The sum of the LogDet entropies of the layers up to this one, minus their joint "
            "entropy: how much the layers repeat one another.",
            "From few samples of many neurons far too large.",
        ),
    }
    panels = (
        *Measure.panels,
        Panel("whole"),
        Panel("plane", {"title": "Information plane, LogDet"}),
    )
    reads_inputs = True

    def __init__(
        self, beta: float | None = None, samples: int = MOST_SAMPLES, *, name: str | None = None
    ) -> None:
        super().__init__(name, beta=beta, samples=samples)
        self.check(
            beta=("a positive number, or None", beta is None or is_positive(beta)),
            samples=("an int of at least 2", is_int(samples, 2)),
        )
        self.samples = samples

    @one_thread()
    def result(
        self, layers: Sequence[LayerInfo], states: Sequence[Any], samples: Samples
    ) -> MeasureResult:
        beta, membership = self.options["beta"], samples.membership
        beta = 100.0 * samples.inputs.shape[1] if beta is None else beta
        inputs, labels = _View(samples.inputs, beta), _View(one_hot(membership), beta)
        views = [
            _View(rows, beta, functools.partial(samples.products, number, rows))
            for number, rows in enumerate(samples.layers)
        ]
        in_threads(_View.factor, [inputs, labels, *views])
        entropies = [view.entropy for view in views]
        some = list(membership.T > 0)
        per_class = in_threads(lambda view: list(map(view.entropy_within, some)), views)
        whole: dict[str, Any] = {"entropy": entropies}
        shuffled = {}
        others: dict[str, list[Any]] = {
            "input": [inputs] * len(views),
            "labels": [labels] * len(views),
            "previous": [None, *views[:-1]],
        }
        for name, row in others.items():
            # Shuffled: every sample with what another one gave.
            shifts = [0] * len(views) + [1] * len(views)
            found = in_threads(_information, row * 2, views * 2, shifts)
            whole[name], shuffled[name] = found[: len(views)], found[len(views) :]
        joint = _joint_entropies(views)
        whole["total_correlation"] = np.maximum(np.cumsum(entropies) - joint, 0.0)
        return MeasureResult(per_class, whole, shuffled, self.unit)


class _View:
    """One tensor of the samples: centred columns A where these are few, else the products AA'.

    Both are scaled so that its entropy is 1/2 ln det(I + A'A).

    Attributes:
        columns: A, or None where there are more of these than samples.
        root: L with LL' = I + `gram`.
        entropy: of the whole.
    """

    root: np.ndarray
    entropy: float

    def __init__(
        self, rows: np.ndarray, beta: float, products: Callable[[], np.ndarray] | None = None
    ) -> None:
        self.samples, self.width = rows.shape
        self.finite = bool(np.isfinite(rows).all())
        self._scale = beta / self.samples
        self.columns: Any = None
        if self.width <= self.samples:
            self.columns = _centred(rows) * self._scale**0.5
        else:  # shared with other measures, so that it is scaled where it is needed
            self._products = centred_products(rows) if products is None else products()

    def factor(self) -> None:
        """Makes `root` and `entropy`."""
        if self.columns is not None:
            self._squares = self.columns.T @ self.columns
        self.root = _root(self.gram)
        self.entropy = _sum_of_logs(self.root)

    @property
    def gram(self) -> np.ndarray:
        """A'A, or AA' where there is no A; after `factor`."""
        return self._scale * self._products if self.columns is None else self._squares

    def products(self) -> np.ndarray:
        """AA'."""
        return self.gram if self.columns is None else self.columns @ self.columns.T

    def entropy_within(self, some: np.ndarray) -> float:
        """The entropy of some of the samples, which are centred on their own mean."""
        count = some.sum()
        if count < 2:
            return np.nan  # one sample has no variance, whatever its class has
        if self.columns is None:
            gram = self._scale * self._products[np.ix_(some, some)]
            gram = gram - gram.mean(axis=0) - gram.mean(axis=1, keepdims=True) + gram.mean()
        else:
            part = _centred(self.columns[some])
            gram = part.T @ part if self.width <= count else part @ part.T
        return _entropy_of(gram * (self.samples / count))


def _joint_entropies(views: Sequence[_View]) -> np.ndarray:
    """The entropy of the first view, of the first two together, and so on."""
    found = np.full(len(views), np.nan)
    known = int(np.logical_and.accumulate([view.finite for view in views]).sum())
    ends = np.cumsum([view.width for view in views[:known]])
    few = int(np.sum(ends <= views[0].samples))
    if few:  # all in one: what a triangular matrix begins with is that of the first ones
        columns = np.concatenate([view.columns for view in views[:few]], axis=1)
        logarithms = np.log(np.abs(np.diag(_root(columns.T @ columns))))
        found[:few] = np.cumsum(logarithms)[ends[:few] - 1]
    if few < known:
        gram = sum(view.products() for view in views[:few])
        for place in range(few, known):
            gram = gram + views[place].products()
            found[place] = _entropy_of(gram) if place else views[0].entropy
    return found


def _information(one: _View | None, other: _View, shift: int = 0) -> float:
    """How much two views share, the samples of one of them moved on by `shift`.

    With LL' = I + B'B of what has columns, or I + BB', the joint determinant is that of LL' times
    that of what is left of the other one, which is small where its columns are few.
    """
    if one is None:
        return np.nan
    if one.columns is None and other.columns is not None:
        one, other, shift = other, one, -shift
    if one.columns is None:
        gram = np.roll(one.gram, shift, axis=(0, 1))
        gram += other.gram
        return max(one.entropy + other.entropy - _entropy_of(gram), 0.0)
    columns = np.roll(one.columns, shift, axis=0)
    if other.columns is None:
        seen = _solved(other.root, columns)
        return max(one.entropy - _entropy_of(seen.T @ seen), 0.0)
    seen = _solved(one.root, columns.T @ other.columns)
    return max(other.entropy - _entropy_of(other.gram - seen.T @ seen), 0.0)


def _centred(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    return rows - rows.mean(axis=0)


def _entropy_of(gram: np.ndarray) -> float:
    """1/2 ln det(I + gram)."""
    return _sum_of_logs(_root(gram))


def _sum_of_logs(root: np.ndarray) -> float:
    return float(np.sum(np.log(np.abs(np.diag(root)))))


def _root(gram: np.ndarray) -> np.ndarray:
    """The lower triangular L with LL' = I + gram; NaN where that is not finite."""
    whole = gram.copy()
    whole[np.diag_indices(len(gram))] += 1.0
    if not np.isfinite(whole).all():
        return np.full_like(whole, np.nan)
    try:
        # Column by column as LAPACK has it, so that it needs no copy of its own.
        return scipy.linalg.cholesky(whole.T, lower=True, overwrite_a=True, check_finite=False)
    except scipy.linalg.LinAlgError:  # 1 is less than what rounding leaves of the largest
        values, vectors = np.linalg.eigh(gram + np.eye(len(gram)))
        return np.linalg.qr((vectors * np.sqrt(np.maximum(values, 1.0))).T)[1].T


def _solved(root: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return scipy.linalg.solve_triangular(root, columns, lower=True, check_finite=False)
