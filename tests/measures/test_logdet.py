"""LogDet entropy against NumPy written from the formula, closed forms and published values."""

import math

import numpy as np
import pytest
from keras import ops

from keras_layer_entropy.measures import logdet
from keras_layer_entropy.measures.gram import GramStatistic

# float32 log-determinants of some hundred directions.
FLOAT32 = dict(rtol=1e-4, atol=1e-4)


def reference(x, beta, mode="covariance"):
    """1/2 ln det(I + beta C), from the eigenvalues of C."""
    x = np.asarray(x, np.float64)
    if mode == "correlation":
        alive = x.std(axis=0) > 1e-12
        c = np.zeros((x.shape[1], x.shape[1]))
        c[np.ix_(alive, alive)] = np.corrcoef(x[:, alive], rowvar=False)
    else:
        c = np.atleast_2d(np.cov(x, rowvar=False, bias=True))
    return 0.5 * np.sum(np.log1p(beta * np.maximum(np.linalg.eigvalsh(c), 0)))


def correlated(random, samples, features, rho):
    x = random.normal(size=(samples, features))
    return x, rho * x + math.sqrt(1 - rho**2) * random.normal(size=x.shape)


@pytest.mark.parametrize("mode", logdet.MODES)
@pytest.mark.parametrize(("samples", "features"), [(50, 3), (50, 50), (20, 70)])
@pytest.mark.parametrize("beta", [0.01, 1.0, 7840.0])
def test_equals_numpy(mode, samples, features, beta, random):
    x = random.normal(size=(samples, features)) * np.geomspace(0.1, 10, features) + 5
    x[:, 0] = 3.3  # never changes
    found = ops.convert_to_numpy(logdet.logdet_entropy(x.astype("float32"), beta, mode))
    np.testing.assert_allclose(found, reference(x, beta, mode), **FLOAT32)


def test_leading_axes_are_kept(random):
    x = random.normal(size=(2, 3, 10, 4)).astype("float32")
    found = ops.convert_to_numpy(logdet.logdet_entropy(x))
    want = [[reference(rows, 1.0) for rows in part] for part in x]
    np.testing.assert_allclose(found, want, **FLOAT32)


def test_joint_conditional_and_total_are_those_of_the_definitions(random):
    x, y = correlated(random, 60, 4, 0.5)
    z = random.normal(size=(60, 2))
    h = reference
    joint = h(np.hstack([x, y]), 2.0)
    pairs = [
        (logdet.logdet_joint_entropy([x, y, z], 2.0), h(np.hstack([x, y, z]), 2.0)),
        (logdet.logdet_mutual_information(x, y, 2.0), h(x, 2.0) + h(y, 2.0) - joint),
        (logdet.logdet_conditional_entropy(x, y, 2.0), joint - h(y, 2.0)),
        (
            logdet.logdet_total_correlation([x, y, z], 2.0),
            h(x, 2.0) + h(y, 2.0) + h(z, 2.0) - h(np.hstack([x, y, z]), 2.0),
        ),
    ]
    for found, want in pairs:
        np.testing.assert_allclose(ops.convert_to_numpy(found), want, **FLOAT32)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_population_value_for_correlated_pairs(rho, random):
    beta, features = 3.0, 4
    x, y = correlated(random, 400_000, features, rho)
    found = float(logdet.logdet_mutual_information(x, y, beta)) / features
    want = -0.5 * math.log(1 - (beta * rho / (1 + beta)) ** 2)
    assert found == pytest.approx(want, abs=0.003)  # a few times 1 / sqrt(samples)


@pytest.mark.parametrize(
    ("features", "independent", "correlated_"),
    [(3, 0.01, 0.34), (100, 7.5, 12.4), (1000, 93.7, 95.1)],
)
def test_bias_with_few_samples_is_the_published_one(features, independent, correlated_, random):
    """Correlation mode, beta 1, 128 samples: far from 0 for independent features."""
    for rho, want in ((0.0, independent), (0.9, correlated_)):
        found = [
            float(logdet.logdet_mutual_information(*correlated(random, 128, features, rho),
                                                   mode="correlation"))
            for _ in range(5)
        ]  # fmt: skip
        # Five draws; the published values have two or three digits.
        assert np.mean(found) == pytest.approx(want, rel=0.03, abs=0.02)


@pytest.mark.parametrize(
    ("beta", "published"), [(1.0, (0.59, 2.2, 4.6, 7.3)), (300.0, (4.5, 6.8, 8.2, 9.3))]
)
def test_share_of_noise(beta, published, random):
    """x = t noise + (1 - t) ones, 128 samples of 3 features; 10 is the entropy of noise alone."""
    shares = (0.2, 0.4, 0.6, 0.8, 1.0)
    noise = random.normal(size=(200, 128, 3)).astype("float32")
    curve = [
        float(np.mean(ops.convert_to_numpy(logdet.logdet_entropy(t * noise + (1 - t), beta))))
        for t in shares
    ]
    np.testing.assert_allclose(10 * np.array(curve[:-1]) / curve[-1], published, rtol=0.04)


def test_class_entropy(random):
    x, labels = random.normal(size=(50, 4)) + 3, random.integers(0, 3, 50)
    x[labels == 2] *= 4
    shares = np.bincount(labels) / 50
    want = sum(p * reference(x[labels == k], 2.0) for k, p in enumerate(shares))
    for classes in (3, 4):  # one without samples
        found = float(logdet.logdet_class_entropy(x, np.eye(classes)[labels], 2.0))
        np.testing.assert_allclose(found, want, **FLOAT32)
    assert float(logdet.logdet_class_entropy(x, np.ones((50, 1)))) == pytest.approx(
        reference(x, 1.0), rel=1e-5
    )
    # Knowing the class of what differs by class only leaves nothing.
    assert float(logdet.logdet_class_entropy(np.eye(3)[labels], np.eye(3)[labels])) < 1e-6


def test_what_is_independent_adds_up_and_what_is_equal_does_not(random):
    """Orthogonal columns: H(X, Y) = H(X) + H(Y). I(X; X) = 2 H(X) - H(X, X)."""
    x = np.kron([[1.0], [-1.0]], np.ones((2, 1)))
    y = np.tile([[1.0], [-1.0]], (2, 1))
    assert float(logdet.logdet_mutual_information(x, y)) == pytest.approx(0, abs=1e-6)
    beta = 5.0
    want = math.log(1 + beta) - 0.5 * math.log(1 + 2 * beta)
    assert float(logdet.logdet_mutual_information(x, x, beta)) == pytest.approx(want, abs=1e-6)


def test_half_precision_is_computed_in_float32(random):
    x = random.normal(size=(40, 5)).astype("float16")
    found = float(logdet.logdet_entropy(x, 1000.0))
    np.testing.assert_allclose(found, reference(x, 1000.0), **FLOAT32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: logdet.logdet_entropy(x[0]), r"x has shape \(3,\); expected"),
        (lambda x: logdet.logdet_entropy(x[:0]), r"x has shape \(0, 3\); expected"),
        (lambda x: logdet.logdet_entropy(x, 0.0), "beta=0.0; expected a positive number"),
        (lambda x: logdet.logdet_entropy(x, mode="cosine"), "Unknown mode 'cosine'"),
        (lambda x: logdet.logdet_joint_entropy([]), "xs is empty"),
        (lambda x: logdet.logdet_class_entropy(x, np.eye(2)), r"membership \(2, 2\); expected"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones((4, 3)))


def test_gram_matrices_of_samples_add_up(random):
    x, y = random.normal(size=(12, 40)), random.normal(size=(12, 30)) + 4
    for mode in logdet.MODES:
        both = logdet.sample_gram(x, mode) + logdet.sample_gram(y, mode)
        found = ops.convert_to_numpy(logdet.logdet_entropy_of_gram(both, 3.0))
        np.testing.assert_allclose(found, reference(np.hstack([x, y]), 3.0, mode), **FLOAT32)


def test_products_that_stream_past_give_all_entropies(random):
    """Sums of products of the columns [x, 1, y], of two parts of the data, merged."""
    x, y = correlated(random, 200, 3, 0.6)
    parts = [GramStatistic(3, 3), GramStatistic(3, 3)]
    for start in range(0, 200, 40):
        rows = slice(start, start + 40)
        parts[start % 80 > 0].update_state(x[rows].astype("float32"), y[rows].astype("float32"))
    parts[0].merge_state(parts[1:])
    gram = parts[0].result()
    samples, sums = gram[3, 3], np.delete(gram[3], 3)
    products = np.delete(np.delete(gram, 3, axis=0), 3, axis=1)
    covariance = products / samples - np.outer(sums, sums) / samples**2
    for columns in (slice(0, 3), slice(3, 6), slice(0, 6)):
        found = logdet.logdet_entropy_of_gram(covariance[columns, columns], 2.0)
        want = reference(np.hstack([x, y])[:, columns], 2.0)
        np.testing.assert_allclose(ops.convert_to_numpy(found), want, **FLOAT32)


def test_what_is_no_gram_matrix_is_refused():
    with pytest.raises(ValueError, match=r"gram has shape \(2, 3\); expected \[..., k, k\]"):
        logdet.logdet_entropy_of_gram(np.ones((2, 3)))
    with pytest.raises(ValueError, match="beta=-1; expected a positive number"):
        logdet.logdet_entropy_of_gram(np.eye(2), -1)
