"""Mutual information against NumPy written from the formulas, closed forms and scikit-learn.

Each measure is held against its formula on every backend; what follows from the formula (bounds,
biases, weights, flags), and how far rounding goes, on TensorFlow alone.
"""

import inspect
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from backends import compiled, some_on_each
from keras import ops
from sklearn.metrics import mutual_info_score

from keras_layer_entropy.measures import mutual_information as mutual
from keras_layer_entropy.measures import pairs
from keras_layer_entropy.measures import unit_information as units

# Sums of some hundred float32 terms of a few bits.
FLOAT32 = dict(rtol=1e-5, atol=1e-5)


def numbers(found):
    return type(found)(*(np.asarray(ops.convert_to_numpy(part)) for part in found))


def one_hot(labels, classes):
    return np.eye(classes, dtype="float32")[labels]


def both_ways(membership):
    """Of each class, what is inside and what is outside."""
    return [np.stack([m, membership.sum(1) - m], axis=1) for m in membership.T]


def by_kernel(t, membership, variance):
    """The entropies H(T), then H(T) - sum_c p_c H(T|c), from all distances, in float64."""
    t, membership = np.asarray(t, np.float64), np.asarray(membership, np.float64)
    rows = membership.sum(1) > 0
    t, membership = t[rows], membership[rows]
    k = np.exp(-((t[:, None] - t) ** 2).sum(-1) / (2 * variance))

    def entropy(weight):
        p = weight / weight.sum()
        return -np.sum(p[p > 0] * np.log2((k @ p)[p > 0]))

    def information(membership):
        share = membership.sum(0) / membership.sum()
        within = sum(p * entropy(m) for p, m in zip(share, membership.T, strict=True) if p > 0)
        return entropy(membership.sum(1)) - within

    return mutual.Information(
        entropy(membership.sum(1)),
        information(membership),
        [information(two) if two[:, 0].any() else np.nan for two in both_ways(membership)],
    )


def quantiles(values, bins):
    """The bin of each value: how many of the samples are smaller, in parts of all; no ties."""
    rank = np.argsort(np.argsort(values, axis=0), axis=0)
    edges = np.floor(np.arange(1, bins) * len(values) / bins)
    return (rank[..., None] >= edges).sum(-1)


def corrected(a, b):
    """scikit-learn's information of two codes in bits, and Miller and Madow's correction."""
    cells = len(set(a)) + len(set(b)) - len(set(zip(a, b, strict=True))) - 1
    return (mutual_info_score(a, b) + cells / (2 * len(a))) / math.log(2)


@pytest.mark.parametrize("variance", some_on_each([0.1, 2.0], [0.1]))
def test_kernel_equals_numpy(variance, random):
    labels = random.integers(0, 3, 90)
    t = random.normal(size=(90, 4)) + labels[:, None] + 7
    for classes in (3, 4):  # one without samples
        membership = one_hot(labels, classes)
        found = numbers(mutual.kernel_information(t.astype("float32"), membership, variance))
        want = by_kernel(t, membership, variance)
        for part, expected in zip(found, want, strict=True):
            np.testing.assert_allclose(part, expected, **FLOAT32)
        assert np.isnan(found.per_class).tolist() == [False] * 3 + [True] * (classes - 3)


def test_kernel_in_many_blocks(random, monkeypatch):
    """Blocks of 7, which do not divide 90, and leading axes."""
    t = random.normal(size=(2, 3, 90, 4)).astype("float32")
    membership = one_hot(random.integers(0, 3, 90), 3)
    whole = numbers(mutual.kernel_information(t, membership))
    monkeypatch.setattr(pairs, "BLOCK", 7 * t[..., 0].size)
    found = numbers(mutual.kernel_information(t, membership))
    assert [part.shape for part in found] == [(2, 3), (2, 3), (2, 3, 3)]
    for part, same in zip(found, whole, strict=True):
        np.testing.assert_allclose(part, same, **FLOAT32)
    want = [[by_kernel(rows, membership, 0.1).labels for rows in part] for part in t]
    np.testing.assert_allclose(found.labels, want, **FLOAT32)


@pytest.mark.tensorflow
def test_kernel_in_many_blocks_of_a_graph(random, monkeypatch):
    tf = pytest.importorskip("tensorflow")
    t, membership = random.normal(size=(90, 4)).astype("float32"), one_hot(np.arange(90) % 3, 3)
    monkeypatch.setattr(pairs, "BLOCK", 7 * 90)
    found = numbers(tf.function(mutual.kernel_information)(tf.constant(t), membership))
    for part, want in zip(found, by_kernel(t, membership, 0.1), strict=True):
        np.testing.assert_allclose(part, want, **FLOAT32)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("features", [1, pairs.FEATURES, 3 * pairs.FEATURES + 7])
@pytest.mark.parametrize("samples", [20, pairs._TILE, 2 * pairs._TILE + 3])
def test_centred_products_are_numpys(samples, features, dtype, random):
    """In shares side by side, half turned tile by tile; what they are made of stays as it is."""
    rows = (random.normal(size=(samples, features)) + 100).astype(dtype)
    before = rows.copy()
    centred = rows.astype("float64") - rows.astype("float64").mean(axis=0)
    found = pairs.centred_products(rows)
    np.testing.assert_allclose(found, centred @ centred.T, rtol=1e-10, atol=1e-8)  # float64
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(rows, before)


@pytest.mark.tensorflow
@pytest.mark.parametrize("measure", [mutual.kernel_information, mutual.binned_information])
def test_places_far_apart_tell_the_class_and_nothing_else(measure):
    """T = 100 one-hot(Y), ten classes: I = H(Y) = log2 10, and h(1/10) for one class."""
    membership = one_hot(np.arange(200) % 10, 10)
    found = numbers(measure(100 * membership, membership))
    ceiling = -0.1 * math.log2(0.1) - 0.9 * math.log2(0.9)
    # Equal rows are 2e-10 100^2 sqrt(10) apart at most, which counts 7 times.
    assert found.input == pytest.approx(math.log2(10), abs=1e-4)
    assert found.labels == pytest.approx(math.log2(10), abs=1e-4)
    np.testing.assert_allclose(found.per_class, ceiling, atol=1e-4)
    assert ceiling == pytest.approx(0.469, abs=1e-3)


@pytest.mark.tensorflow
@pytest.mark.parametrize("measure", [mutual.kernel_information, mutual.binned_information])
def test_samples_far_apart_reach_the_number_of_samples(measure, random):
    """And the labels' entropy, whatever the labels."""
    membership = one_hot(np.arange(64) % 4, 4)
    t = np.stack([100.0 * np.arange(64), random.normal(size=64)], axis=1).astype("float32")
    found = numbers(measure(t, membership, **{"bins": 64} if "binned" in measure.__name__ else {}))
    assert found.input == pytest.approx(6, abs=1e-5)
    assert found.labels == pytest.approx(2, abs=1e-5)


@pytest.mark.tensorflow
@pytest.mark.parametrize("measure", [mutual.kernel_information, mutual.binned_information])
def test_constant_activations_tell_nothing(measure):
    membership = one_hot(np.arange(30) % 3, 3)
    for found in numbers(measure(np.full((30, 5), 3.3, "float32"), membership)):
        np.testing.assert_allclose(found, 0, atol=1e-6)  # rounding of log2(1)
    # One class: there is nothing to be known.
    found = numbers(measure(np.eye(30, dtype="float32"), np.ones((30, 1))))
    np.testing.assert_allclose(found.labels, 0, atol=1e-6)
    np.testing.assert_allclose(found.per_class, 0, atol=1e-6)


@pytest.mark.tensorflow
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_kernel_stays_within_its_bounds(scale, random):
    labels = random.integers(0, 5, 120) ** 2 // 4
    membership = one_hot(labels, 5)
    t = (scale * (random.normal(size=(120, 3)) + labels[:, None])).astype("float32")
    found = numbers(mutual.kernel_information(t, membership))
    share = membership.mean(0)[membership.any(0)]
    slack = 1e-5  # float32
    assert 0 <= found.labels <= min(found.input, -share @ np.log2(share)) + slack
    assert found.input <= math.log2(120) + slack
    assert np.nanmax(found.per_class) <= found.labels + slack


@pytest.mark.tensorflow
def test_kernel_bias_of_shuffled_labels_is_the_stated_one(random):
    """2^I(X; T) (classes - 1) / (samples ln 2), to a factor of two, as long as it is small."""
    for features, classes, samples in ((1, 2, 500), (2, 4, 1000)):
        t = random.normal(size=(samples, features)).astype("float32")
        found = []
        for _ in range(5):
            labels = random.permutation(np.arange(samples) % classes)
            found.append(numbers(mutual.kernel_information(t, one_hot(labels, classes))))
        stated = 2 ** found[0].input * (classes - 1) / (samples * math.log(2))
        assert 0.01 < stated < 0.15
        assert 0.5 < np.mean([each.labels for each in found]) / stated < 2


def clusters(random, length, features):
    """Samples 0.2 from five centres that are `length` from a mean that is `length` from 0."""
    centres = random.normal(size=(5, features))
    centres *= length / np.linalg.norm(centres, axis=1)[:, None]
    noise = random.normal(size=(200, features)) * 0.2 / math.sqrt(features)
    return (centres[np.arange(200) % 5] + noise + length).astype("float32")


def distances(t):
    """Squared, from the kernel itself with variance 1/2, and in float64; those below 10."""
    eye = ops.eye(len(t))
    k = mutual._kernel_sums(mutual._centred(ops.convert_to_tensor(t), eye), eye, 0.5)
    want = ((t[:, None].astype("float64") - t) ** 2).sum(-1)
    found = -np.log(np.asarray(ops.convert_to_numpy(k), np.float64)[want < 10])
    return found, want[want < 10]


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("length", "features"), [(1.0, 3), (100.0, 10), (1000.0, 10), (1000.0, 500)]
)
def test_precision_of_large_activations_is_the_stated_one(length, features, random):
    t = clusters(random, length, features)
    longest = np.linalg.norm(t - t.mean(0), axis=1).max()
    found, want = distances(t)
    allowed = 2e-10 * float(longest) ** 2 * math.sqrt(features)
    np.testing.assert_allclose(found, want, atol=allowed + 2e-6)  # 2e-6: exp and its logarithm
    membership = one_hot(random.integers(0, 2, 200), 2)
    bits = numbers(mutual.kernel_information(t, membership))
    expected = by_kernel(t, membership, 0.1)
    # The exponent is off by half of that over the variance 0.1, most of it at random.
    assert bits.input == pytest.approx(expected.input, abs=allowed + 1e-5)
    assert bits.labels == pytest.approx(expected.labels, abs=allowed + 1e-5)


@pytest.mark.tensorflow
@pytest.mark.parametrize("length", [100.0, 1000.0])
def test_precision_where_products_have_11_bits(length, random, monkeypatch):
    """TF32, imitated: factors are rounded to 11 bits, sums are float32."""

    def rounded(x):
        mantissa, exponent = np.frexp(np.asarray(ops.convert_to_numpy(x), np.float32))
        return ops.convert_to_tensor(np.ldexp(np.round(mantissa * 2**11), exponent - 11))

    t = ops.convert_to_tensor(clusters(random, length, 10))
    centred = mutual._centred(t, ops.eye(200))
    longest = np.linalg.norm(ops.convert_to_numpy(centred), axis=1).max()
    for name in ("_products", "row_products"):
        exact = getattr(pairs, name)
        monkeypatch.setattr(pairs, name, lambda a, b, f=exact: f(rounded(a), rounded(b)))
    found, want = distances(np.asarray(ops.convert_to_numpy(t)))
    np.testing.assert_allclose(found, want, atol=1e-6 * longest**2)


@pytest.mark.tensorflow  # JAX has float64 only where it is switched on
def test_float64_is_kept(random):
    t = clusters(random, 1000.0, 10).astype("float64")
    membership = one_hot(random.integers(0, 2, 200), 2)
    found = numbers(mutual.kernel_information(t, membership))
    want = by_kernel(t, membership, 0.1)
    for part, expected in zip(found, want, strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-9, atol=1e-9)  # float32 is at 1e-5
        assert part.dtype == "float64"


@pytest.mark.tensorflow
def test_half_precision_is_computed_in_float32(random):
    t = random.normal(size=(40, 5)).astype("float16")
    membership = one_hot(np.arange(40) % 2, 2)
    want = by_kernel(t, membership, 0.5)
    found = numbers(mutual.kernel_information(t, membership, 0.5))
    for part, expected in zip(found, want, strict=True):
        np.testing.assert_allclose(part, expected, **FLOAT32)


def three(t, membership):
    """All of what each measure with labels returns, for a layer of units."""
    return [
        *numbers(mutual.kernel_information(t, membership)),
        *numbers(mutual.binned_information(t, membership, bins=4)),
        *numbers(units.quantile_information(t, membership, bins=4)),
    ]


@pytest.mark.tensorflow
def test_samples_of_weight_0_are_as_if_not_there(random):
    """Even if they are far away or NaN."""
    t = random.normal(size=(60, 2)).astype("float32")
    membership = one_hot(random.integers(0, 3, 60), 3)
    out = random.random(60) < 0.3
    membership[out] = 0
    t[out] = random.choice([np.nan, np.inf, 1e6], size=(out.sum(), 1))
    want = three(t[~out], membership[~out])
    for found, expected in zip(three(t, membership), want, strict=True):
        np.testing.assert_allclose(found, expected, **FLOAT32)


@pytest.mark.tensorflow
def test_precision_is_that_of_the_samples_that_count(random):
    """Those that do not are 10^6 away from the others: a grid over them all has steps of 500."""
    t = np.concatenate([clusters(random, 1000.0, 10) + 3e5, np.zeros((9, 10))]).astype("float32")
    membership = np.concatenate([one_hot(np.arange(200) % 3, 3), np.zeros((9, 3))])
    found = numbers(mutual.kernel_information(t, membership))
    longest = 3000.0  # from the mean, at most
    allowed = 2e-10 * longest**2 * math.sqrt(10)
    for part, expected in zip(found, by_kernel(t, membership, 0.1), strict=True):
        np.testing.assert_allclose(part, expected, atol=allowed)


@pytest.mark.tensorflow
def test_a_sample_of_two_classes_is_one_half_in_each(random):
    """As if it were there twice, once in each class, where all other samples are there twice."""
    t = random.normal(size=(40, 2)).astype("float32")
    membership = one_hot(random.integers(0, 3, 40), 3)
    membership[:10] = [0.5, 0.5, 0]
    twice = 2 * membership
    twice[:10] = [1, 0, 0]
    want = three(np.concatenate([t, t[:10]]), np.concatenate([twice, [[0, 1, 0]] * 10]))
    # Quantiles are corrected by the number of samples, which is not the same here.
    for found, expected in zip(three(t, membership)[:6], want[:6], strict=True):
        np.testing.assert_allclose(found, expected, **FLOAT32)
    halves = three(t, 0.5 * membership)
    for found, expected in zip(three(t, membership), halves, strict=True):
        np.testing.assert_allclose(found, expected, **FLOAT32)


@pytest.mark.tensorflow
@pytest.mark.parametrize("limits", [None, (-1.0, 1.0)])
def test_binned_is_scikit_learns_of_the_symbols(limits, random):
    labels = random.integers(0, 3, 300)
    t = random.normal(size=(2, 300, 2)) + 0.5 * labels[:, None]
    found = numbers(mutual.binned_information(t, one_hot(labels, 3), bins=6, limits=limits))
    for index, rows in enumerate(t):
        low, high = limits or (rows.min(), rows.max())
        codes = np.clip(np.digitize(rows, np.linspace(low, high, 7)) - 1, 0, 5) @ [6, 1]
        want = mutual.Information(
            mutual_info_score(codes, codes),
            mutual_info_score(codes, labels),
            [mutual_info_score(codes, labels == c) for c in range(3)],
        )
        for part, expected in zip(found, want, strict=True):
            np.testing.assert_allclose(part[index], np.array(expected) / math.log(2), **FLOAT32)


@pytest.mark.tensorflow
def test_binned_bias_of_shuffled_labels_is_the_stated_one(random):
    """(symbols - 1)(classes - 1) / (2 samples ln 2): of that, +- 4 / sqrt(20 * 63 / 2)."""
    t = random.uniform(size=(2000, 2))
    found = [
        float(mutual.binned_information(t, one_hot(random.integers(0, 4, 2000), 4), bins=8).labels)
        for _ in range(20)
    ]
    assert np.mean(found) == pytest.approx(63 * 3 / (2 * 2000 * math.log(2)), rel=0.16)


@pytest.mark.parametrize("bins", some_on_each([1, 4, 10], [4]))
def test_quantile_is_scikit_learns_with_the_correction(bins, random):
    labels = random.integers(0, 4, 333)
    values = random.normal(size=(333, 5)) + labels[:, None] * np.array([0, 0.3, 1, 3, -10])
    found = numbers(units.quantile_information(values, one_hot(labels, 5), bins))
    codes = quantiles(values, bins).T
    np.testing.assert_allclose(found.entropy, [corrected(c, c) for c in codes], **FLOAT32)
    np.testing.assert_allclose(found.labels, [corrected(c, labels) for c in codes], **FLOAT32)
    want = [[corrected(c, labels == k) for k in range(4)] for c in codes]
    np.testing.assert_allclose(found.per_class[:, :4], want, **FLOAT32)
    assert np.isnan(found.per_class[:, 4]).all()  # no samples


@pytest.mark.tensorflow
def test_quantile_bins_keep_equal_values_together(random):
    """A rectifier's zeros, two values only, a constant; unchanged by an increasing function."""
    labels = random.integers(0, 2, 200)
    zeros = np.maximum(np.arange(200) - 130, 0)  # up to 130: bins begin after 140, 160, 180
    values = np.stack([zeros, labels, np.full(200, 0.1), -zeros], axis=1)[random.permutation(200)]
    found = numbers(units.quantile_information(values, one_hot(labels, 2), bins=10))
    for unit, edges in ((0, [10, 30, 50]), (1, [1]), (3, [-49, -29, -9, 0])):
        codes = np.digitize(values[:, unit], edges)
        assert found.labels[unit] == pytest.approx(corrected(codes, labels), abs=1e-5)
        assert found.entropy[unit] == pytest.approx(corrected(codes, codes), abs=1e-5)
    assert found.entropy[2] == found.labels[2] == 0
    # One class: there is nothing to be known, nothing to be corrected either.
    alone = numbers(units.quantile_information(values, np.ones((200, 1)), bins=10))
    np.testing.assert_allclose(alone.labels, 0, atol=1e-6)  # rounding of log2(1)
    np.testing.assert_allclose(alone.per_class, 0, atol=1e-6)
    again = numbers(units.quantile_information(np.arctan(values / 50), one_hot(labels, 2), bins=10))
    np.testing.assert_allclose(again.labels, found.labels, **FLOAT32)


@pytest.mark.tensorflow
def test_quantile_of_shuffled_labels_is_0_on_average(random):
    """1000 independent units: +- 4 times the stated spread / sqrt(1000)."""
    values = random.normal(size=(500, 1000)).astype("float32")
    found = numbers(units.quantile_information(values, one_hot(np.arange(500) % 5, 5), bins=6))
    spread = math.sqrt(5 * 4 / 2) / (500 * math.log(2))
    assert abs(found.labels.mean()) < 4 * spread / math.sqrt(1000)
    assert found.labels.std() == pytest.approx(spread, rel=0.15)


@pytest.mark.tensorflow
def test_quantile_counts_weights(random):
    """A sample of weight 3 is three samples; N is then smaller, as the docstring has it."""
    values, labels = random.normal(size=(100, 3)), random.integers(0, 2, 100)
    weight = random.integers(0, 4, 100)
    found = numbers(units.quantile_information(values, weight[:, None] * one_hot(labels, 2), 5))
    many, of_many = np.repeat(values, weight, axis=0), np.repeat(labels, weight)
    copied = numbers(units.quantile_information(many, one_hot(of_many, 2), 5))
    samples = weight.sum() ** 2 / (weight**2).sum()
    cells = 4 / (2 * math.log(2)) * (1 / len(many) - 1 / samples)
    # Five bins, two classes, all ten pairs occupied: 5 + 2 - 10 - 1 = -4.
    np.testing.assert_allclose(found.labels - copied.labels, cells, atol=1e-5)


def test_pairwise_is_scikit_learns_with_the_correction(random, monkeypatch):
    monkeypatch.setattr(pairs, "BLOCK", 2 * 5 * 36)  # two units at a time
    x = random.normal(size=(300, 5))
    x[:, 1] = -x[:, 0]
    x[:, 2] += x[:, 0]
    x[:, 3] = 1.0
    codes = quantiles(x, 6).T
    codes[3] = 0
    found = np.asarray(ops.convert_to_numpy(units.pairwise_information(x, bins=6)))
    want = [[corrected(a, b) for b in codes] for a in codes]
    np.testing.assert_allclose(found, want, **FLOAT32)
    entropy = numbers(units.quantile_information(x, np.ones((300, 1)), 6)).entropy
    np.testing.assert_allclose(np.diag(found), entropy, **FLOAT32)


@pytest.mark.tensorflow
def test_of_units_that_say_the_same_the_most_informative_stays():
    entropy = [2.0, 3.0, 2.5, 0.0, 1.0]
    pairwise = np.diag(entropy)
    pairs = {(0, 1): 1.7, (1, 2): 1.0, (1, 4): 0.85, (0, 4): 0.9, (0, 2): 1.8}
    for (a, b), shared in pairs.items():
        pairwise[a, b] = pairwise[b, a] = shared
    found = units.redundant_units(pairwise, threshold=0.8)
    # 1 stays; 2 (1.0 of 2.5) stays; 0 says most of what it says with 2 (1.8 of 2.0) and 1 (1.7).
    assert found.kept.tolist() == [2, 1, 2, 3, 1]
    assert found.redundant.tolist() == [True, False, False, False, True]
    # Another order: 0 comes first; 1 shares 1.7 of its 3.0, 2 shares 1.8 of its 2.5 with it.
    found = units.redundant_units(pairwise, information=[9, 1, 2, 0, 0], threshold=0.7)
    assert found.kept.tolist() == [0, 1, 0, 3, 0]
    assert not units.redundant_units(np.full((2, 2), np.nan)).redundant.any()


@pytest.mark.tensorflow
@pytest.mark.parametrize(("rho", "share"), [(0.9, 0.3), (0.99, 0.6)])
def test_share_that_correlated_units_reach(rho, share, random):
    x = random.normal(size=(5000, 2))
    pair = np.stack([x[:, 0], rho * x[:, 0] + math.sqrt(1 - rho**2) * x[:, 1]], axis=1)
    pairwise = units.pairwise_information(pair)
    assert units.redundant_units(pairwise, threshold=share).redundant.tolist() == [False, True]
    assert not units.redundant_units(pairwise, threshold=share + 0.1).redundant.any()


@pytest.mark.tensorflow
def test_copies_are_redundant_at_the_highest_threshold(random):
    x = random.normal(size=(500, 3))
    pairwise = units.pairwise_information(np.hstack([x, np.exp(x), -x]))
    found = units.redundant_units(pairwise, threshold=1.0)
    assert len(set(found.kept)) == 3
    assert found.redundant.sum() == 6


@pytest.mark.tensorflow
def test_less_effective_units_are_low_and_flat():
    past = np.array([[0.1, 0.5, 0.02, np.nan, 0.9], [0.1, 0.3, 0.09, 0.0, 1.2]])
    last = [0.1, 0.1, 0.11, 0.0, 1.0]
    flags = units.less_effective_units
    assert flags(last).tolist() == [True, True, False, True, False]
    assert flags([*past, last]).tolist() == [True, False, False, False, False]
    assert flags([*past, last], threshold=0.2).tolist() == [True, False, True, False, False]
    assert flags([*past, last], flatness=0.5).tolist() == [True, True, False, False, False]
    assert flags([0.0, -0.01]).tolist() == [True, True]
    assert flags([np.nan, 0.5, 0.01]).tolist() == [False, False, True]
    assert not flags([np.nan, np.nan]).any()


def test_nan_gives_nan(random):
    membership = one_hot(np.arange(20) % 2, 2)
    t = random.normal(size=(2, 20, 3)).astype("float32")
    t[1, 4, 2] = np.nan
    for measure in (mutual.kernel_information, mutual.binned_information):
        for found in numbers(measure(t, membership)):
            assert np.isfinite(found[0]).all()
            assert np.isnan(found[1]).all()
        assert all(np.isnan(part).all() for part in numbers(measure(t[1, 4:5], membership[:1])))
    for found in numbers(units.quantile_information(t[1], membership)):
        assert np.isfinite(found[:2]).all()
        assert np.isnan(found[2]).all()
    pairs = np.asarray(ops.convert_to_numpy(units.pairwise_information(t[1])))
    assert np.isnan(pairs).tolist() == [[False, False, True]] * 2 + [[True] * 3]
    for measure in (mutual.kernel_information, units.quantile_information):
        for found in numbers(measure(t[0], 0 * membership)):  # no sample counts
            assert np.isnan(found).all()
    t[1, 4, 2] = np.inf
    assert all(np.isnan(f[1]).all() for f in numbers(mutual.kernel_information(t, membership)))


@pytest.mark.slow
@pytest.mark.parametrize("jit", [pytest.param(False, marks=pytest.mark.tensorflow), True])
def test_compiled_is_the_same(jit, random, monkeypatch):
    monkeypatch.setattr(pairs, "BLOCK", 4000)
    t = ops.convert_to_tensor(random.normal(size=(100, 4)).astype("float32"))
    membership = ops.convert_to_tensor(one_hot(random.integers(0, 3, 100), 3))
    measures = [
        mutual.kernel_information,
        lambda t, membership: units.quantile_information(t, membership, bins=4),
        lambda t, _: [units.pairwise_information(t, bins=4)],
    ]

    def everything(t, membership):
        return [part for measure in measures for part in measure(t, membership)]

    graph = compiled(everything, jit)
    found = graph(t, membership)
    for part, expected in zip(found, everything(t, membership), strict=True):
        np.testing.assert_allclose(
            ops.convert_to_numpy(part), ops.convert_to_numpy(expected), **FLOAT32
        )
    t = ops.where(ops.arange(100)[:, None] == 50, np.nan, t)
    found = graph(t, membership)
    found += compiled(mutual.kernel_information, jit)(t[50:51], membership[:1])
    assert all(np.isnan(ops.convert_to_numpy(part)).all() for part in found)


@pytest.mark.tensorflow  # static shapes are all that JAX compiles
def test_number_of_samples_that_is_not_static():
    import tensorflow as tf

    spec = [tf.TensorSpec([None, 4]), tf.TensorSpec([None, 3])]
    with pytest.raises(ValueError, match="expected a static number of samples"):
        tf.function(mutual.kernel_information, spec).get_concrete_function()
    t, membership = np.random.default_rng(0).normal(size=(50, 4)), one_hot(np.arange(50) % 3, 3)
    found = tf.function(units.quantile_information, spec)(t.astype("float32"), membership)
    want = units.quantile_information(t.astype("float32"), membership)
    np.testing.assert_allclose(found.labels, want.labels, **FLOAT32)


MEMORY = """
import resource
import numpy as np
from keras import ops
from keras_layer_entropy.measures.mutual_information import kernel_information

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

membership = np.eye(10)[np.arange(5000) % 10]
kernel_information(np.zeros((50, 5), "float32"), membership[:50])
before = peak()
t = np.random.default_rng(0).standard_normal((5000, 2000), dtype="float32")
ops.convert_to_numpy(kernel_information(t, membership, variance=2000.0).labels)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.tensorflow  # of the arrays that are alive, which are the same ones on each backend
def test_memory_is_that_of_four_copies():
    """5000 samples of 10,000 float32 are 191 MiB: so less than 1 GiB."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr
    # The array itself, four copies and 120 MiB for some blocks of 8 MiB and what threads keep; the
    # distances alone would be 95 MiB, in several copies.
    assert float(run.stdout) < 5 * 5000 * 2000 * 4 / 2**20 + 120


LABELS = np.eye(2)[[0, 0, 1, 1]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: mutual.kernel_information(t[0], LABELS), r"t has shape \(3,\).*; expected"),
        (lambda t: mutual.kernel_information(t, LABELS[:2]), r"membership \(2, 2\); expected"),
        (lambda t: mutual.kernel_information(t, LABELS[:, 0]), r"membership \(4,\); expected"),
        (lambda t: mutual.kernel_information(t[:0], LABELS[:0]), r"t has shape \(0, 3\)"),
        (lambda t: mutual.kernel_information(t, LABELS, 0.0), "variance=0.0; expected a positive"),
        (lambda t: mutual.kernel_information(t, LABELS, np.nan), "variance=nan; expected"),
        (lambda t: mutual.binned_information(t, LABELS[:2]), r"membership \(2, 2\); expected"),
        (lambda t: mutual.binned_information(t, LABELS, bins=0), "bins=0; expected a positive int"),
        (lambda t: mutual.binned_information(t, LABELS, bins=2.5), "bins=2.5; expected"),
        (lambda t: mutual.binned_information(t, LABELS, limits=(1, 1)), r"limits=\(1, 1\); expect"),
        (lambda t: mutual.binned_information(t, 0 * LABELS), "All of membership is 0; expected"),
        (lambda t: units.quantile_information(t, LABELS[:2]), r"membership \(2, 2\); expected"),
        (lambda t: units.quantile_information(t[None], LABELS), r"values have shape \(1, 4, 3\)"),
        (lambda t: units.quantile_information(t, LABELS, bins=0), "bins=0; expected a positive"),
        (lambda t: units.pairwise_information(t[0]), r"values have shape \(3,\); expected"),
        (lambda t: units.pairwise_information(t[:0]), r"values have shape \(0, 3\); expected"),
        (lambda t: units.pairwise_information(t, bins=-1), "bins=-1; expected a positive int"),
        (lambda t: units.redundant_units(t), r"pairwise has shape \(4, 3\); expected"),
        (lambda t: units.redundant_units(t[:3], [1]), r"information has shape \(1,\)"),
        (lambda t: units.redundant_units(t[:3], threshold=0), "threshold=0; expected"),
        (lambda t: units.less_effective_units(t[None]), r"information has shape \(1, 4, 3\)"),
        (lambda t: units.less_effective_units(t[:0]), r"information has shape \(0, 3\)"),
        (lambda t: units.less_effective_units(t, threshold=2), "threshold=2; expected"),
        (lambda t: units.less_effective_units(t, flatness=-1), "flatness=-1; expected"),
    ],
)
@pytest.mark.tensorflow  # no backend in it
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones((4, 3)))


def test_samples_that_are_all_the_same_tell_nothing():
    for value in (0.0, 3.0):
        same, membership = np.full((8, 2), value), np.eye(2)[np.arange(8) % 2]
        found = numbers(mutual.kernel_information(same, membership))
        np.testing.assert_allclose([found.input, found.labels], 0.0, atol=1e-6)


@pytest.mark.tensorflow
@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.001, 2.0, math.nan])
def test_thresholds_are_shares_of_an_entropy(threshold):
    with pytest.raises(ValueError, match="expected a number over 0 and at most 1"):
        units.redundant_units(np.eye(3), threshold=threshold)
    assert units.redundant_units(np.eye(3), threshold=1).kept.tolist() == [0, 1, 2]


@pytest.mark.tensorflow  # no backend in it
def test_numbers_of_bins_that_may_be_left_out():
    for function, bins in (
        (mutual.binned_information, 30),
        (units.quantile_information, 10),
        (units.pairwise_information, 10),
    ):
        assert inspect.signature(function).parameters["bins"].default == bins


@pytest.mark.tensorflow  # no backend in it
@pytest.mark.parametrize("variance", [0.0, -1.0, float("inf"), math.nan])
def test_noise_has_a_positive_variance(variance):
    with pytest.raises(ValueError, match="expected a positive number"):
        mutual.kernel_information(np.eye(3), np.eye(3), variance)
