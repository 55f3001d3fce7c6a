"""What is measured on kept samples, against NumPy written from the formulas."""

import itertools

import numpy as np
import pytest
import threadpoolctl
from sklearn.metrics import mutual_info_score

from keras_layer_entropy.measures import LogDet, MutualInformation
from keras_layer_entropy.measures.leave_one_out import leave_one_out_information
from keras_layer_entropy.measures.measure import LayerInfo, Samples
from keras_layer_entropy.measures.mutual_information import binned_information
from keras_layer_entropy.measures.one_thread import one_thread

CLASSES = 3


@pytest.fixture
def samples(random):
    """A narrow layer, and one with more features than there are samples; class 2 is rare."""
    y = np.array([0, 1] * 25 + [2] * 4)[random.permutation(54)]
    x = random.normal(size=(54, 5)) + np.eye(5)[y]
    narrow = np.tanh(x @ random.normal(size=(5, 4)))
    wide = np.maximum(narrow @ random.normal(size=(4, 80)), 0)
    arrays = [np.float32(t) for t in (x, narrow, wide, np.eye(CLASSES)[y])]
    return Samples(arrays[0], arrays[1:3], arrays[3])


def logdet(samples, **options):
    return LogDet(**options).result(None, None, samples)


def infos(samples):
    shapes = [rows.shape for rows in samples.layers]
    return [LayerInfo(f"layer_{i}", shape[1], {"output": shape}) for i, shape in enumerate(shapes)]


def mutual_information(samples, **options):
    return MutualInformation(**options).result(infos(samples), None, samples)


def entropy(*parts, beta=2.0):
    """LogDet entropy from the eigenvalues of the covariance matrix."""
    c = np.cov(np.hstack([np.float64(p) for p in parts]), rowvar=False, bias=True)
    return 0.5 * np.log1p(beta * np.maximum(np.linalg.eigvalsh(c), 0)).sum()


def information(x, y):
    return entropy(x) + entropy(y) - entropy(x, y)


def close(found, want):
    # float32 samples, and exponentials of their distances.
    np.testing.assert_allclose(found, want, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (1, 2, 0, 3), (3, 0, 1)])
def test_logdet_is_the_formulas(order, samples, random):
    """Of narrow and wide layers in all orders, in float64."""
    wider = np.cos(samples.layers[1] @ random.normal(size=(80, 60)))
    other = np.sin(samples.layers[0] @ random.normal(size=(4, 30)))
    layers = [(*samples.layers, np.float32(wider), np.float32(other))[i] for i in order]
    found = logdet(Samples(samples.inputs, layers, samples.membership), beta=2.0)
    x, y = samples.inputs, samples.membership
    mixed_x, mixed_y = np.roll(x, 1, axis=0), np.roll(y, 1, axis=0)
    before = list(itertools.pairwise(layers))
    alone = [entropy(t) for t in layers]
    joint = [entropy(*layers[: i + 1]) for i in range(len(layers))]
    for values, want in (
        (found.per_class, [[entropy(t[y[:, c] > 0]) for c in range(CLASSES)] for t in layers]),
        (found.whole["entropy"], alone),
        (found.whole["input"], [information(x, t) for t in layers]),
        (found.whole["labels"], [information(y, t) for t in layers]),
        (found.whole["previous"][1:], [information(*pair) for pair in before]),
        (found.whole["total_correlation"], np.cumsum(alone) - joint),
        (found.shuffled["input"], [information(mixed_x, t) for t in layers]),
        (found.shuffled["labels"], [information(mixed_y, t) for t in layers]),
        (found.shuffled["previous"][1:],
         [information(np.roll(a, 1, axis=0), b) for a, b in before]),
    ):  # fmt: skip
        np.testing.assert_allclose(values, want, rtol=1e-9, atol=1e-9)
    assert np.isnan([found.whole["previous"][0], found.shuffled["previous"][0]]).all()


def test_logdet_where_rounding_is_larger_than_the_one(samples):
    """Then nobody knows it to more than that, but it is a number, and the larger one is larger."""
    layers = [np.repeat(t, 2, axis=1) * 1e12 for t in samples.layers]
    found = logdet(Samples(samples.inputs, layers, samples.membership), beta=2.0)
    one = logdet(samples, beta=2.0)
    for name, values in found.whole.items():
        known = ~np.isnan(one.whole[name])
        assert np.isfinite(values[known]).all()
    assert (found.whole["entropy"] > one.whole["entropy"]).all()


def test_beta_is_a_hundred_for_each_input_feature(samples):
    close(logdet(samples).whole["entropy"], logdet(samples, beta=500.0).whole["entropy"])


def test_mutual_information_is_the_formula(samples):
    found = mutual_information(samples, estimator="kernel", variance=0.3)

    def kernel_entropy(t):
        distance = ((np.float64(t)[:, None] - np.float64(t)[None]) ** 2).sum(axis=-1)
        return -np.log2(np.exp(-distance / 0.6).mean(axis=1)).mean()

    def about(t, y):
        parts = [(t[y == c], (y == c).mean()) for c in np.unique(y)]
        return kernel_entropy(t) - sum(share * kernel_entropy(part) for part, share in parts)

    y = samples.membership.argmax(axis=1)
    for row, t in enumerate(samples.layers):
        want = [about(t, y == c) for c in range(CLASSES)]
        # float32 distances.
        np.testing.assert_allclose(found.per_class[row], want, atol=2e-4)
        for values, value in (
            (found.whole["input"], kernel_entropy(t)),
            (found.whole["labels"], about(t, y)),
            (found.shuffled["labels"], about(t, np.roll(y, 1))),
        ):
            np.testing.assert_allclose(values[row], value, atol=2e-4)


@pytest.mark.parametrize("measure", [LogDet, MutualInformation])
def test_contract(measure, samples):
    """Every number is described, has its shape, and a class without samples is NaN."""
    absent = np.pad(samples.membership, ((0, 0), (0, 1)))
    measure = measure()
    absent = Samples(samples.inputs, samples.layers, absent)
    found = measure.result(infos(samples), None, absent)
    assert np.isnan(found.per_class).tolist() == [[False] * CLASSES + [True]] * 2
    assert set(found.whole) == set(measure.whole)
    assert set(found.shuffled) <= set(found.whole)
    for values in found.columns(measure.name).values():
        assert values.shape == (2,)
        assert (np.nan_to_num(values) >= 0).all()


@pytest.mark.parametrize("measure", [LogDet, MutualInformation])
def test_activations_that_are_not_finite_give_nan(measure, samples):
    samples.layers[1][samples.membership[:, 0].argmax(), 3] = np.nan
    found = measure().result(infos(samples), None, samples)
    assert np.isfinite(found.per_class[0]).all()
    assert np.isnan(found.per_class[1][0])
    assert np.isnan(found.whole["labels"][1])


def test_bins_in_place_of_kernels(samples):
    found = mutual_information(samples, estimator="bins", bins=4)
    want = [binned_information(t, samples.membership, bins=4) for t in samples.layers]
    np.testing.assert_allclose(found.whole["labels"], [float(x.labels) for x in want])
    np.testing.assert_allclose(found.per_class, [np.asarray(x.per_class) for x in want])
    y = samples.membership.argmax(axis=1)
    low, high = samples.layers[0].min(), samples.layers[0].max()
    codes = np.clip((samples.layers[0] - low) * 4 // (high - low), 0, 3)
    symbols = np.unique(codes, axis=0, return_inverse=True)[1]
    bits = mutual_info_score(symbols, y) / np.log(2)
    assert found.whole["labels"][0] == pytest.approx(bits, abs=1e-4)


def test_samples_of_several_classes():
    """Far apart samples of the classes {0, 1}, {0} and {1}: each tells all of both questions."""
    membership = np.array([[1, 1], [1, 0], [0, 1]], "float32")
    found = mutual_information(
        Samples(np.zeros((3, 0)), [100 * np.eye(3, dtype="float32")], membership),
        estimator="kernel",
    )
    share = 2 / 3  # of the samples that are of a class
    bits = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    np.testing.assert_allclose(found.per_class, [[bits, bits]], atol=1e-5)
    np.testing.assert_allclose(found.whole["input"], [np.log2(3)], atol=1e-5)


def test_bounds_of_samples_of_several_classes(random):
    """Each class is a question of its own, and the shuffled ones are those of the neighbours."""
    membership = (random.random((80, 3)) < 0.4).astype("float32")
    membership[:, 0] = np.maximum(membership[:, 0], membership.max(axis=1) == 0)
    t = (random.normal(size=(80, 4)) + 2 * membership @ np.eye(3, 4)).astype("float32")
    found = mutual_information(Samples(np.zeros((80, 0)), [t], membership))
    shares = membership / membership.sum(axis=1, keepdims=True)
    for c in range(3):
        two = np.stack([membership[:, c], 1 - membership[:, c]], axis=1)
        want = leave_one_out_information(t, two).labels
        assert found.per_class[0, c] == pytest.approx(want, abs=1e-6)
    whole, other = (leave_one_out_information(t, x) for x in (shares, np.roll(shares, 1, axis=0)))
    assert found.whole["labels"][0] == pytest.approx(whole.labels, abs=1e-6)
    assert found.shuffled["labels"][0] == pytest.approx(other.labels, abs=1e-6)
    assert found.whole["input"][0] == pytest.approx(whole.input, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "kde"}, "estimator='kde' of mutual_information; expected one of"),
        ({"bins": 30}, "bins=30 of mutual_information; expected None with estimator='leave_one"),
        ({"estimator": "bins", "variance": 0.1}, "variance=0.1 .* None with estimator='bins'"),
        ({"estimator": "bins", "bins": 0}, "bins=0 of mutual_information; expected a positive"),
        ({"noise": -1}, "noise=-1 of mutual_information; expected a positive number"),
    ],
)
def test_options_of_estimators(options, message):
    with pytest.raises(ValueError, match=message):
        MutualInformation(**options)


def test_what_was_saved_before_there_were_estimators():
    for old, new in (
        ({"variance": 0.3, "bins": None, "samples": 50}, MutualInformation("kernel", variance=0.3)),
        ({"variance": 0.1, "bins": 8, "samples": 50}, MutualInformation("bins", bins=8)),
    ):
        found = MutualInformation.from_saved("mutual_information", old, None, [])
        assert found.options == {**new.options, "samples": 50}


def test_a_class_of_one_sample_has_no_logdet(samples):
    rows = np.sort(np.concatenate([np.flatnonzero(samples.membership[:, :2].any(axis=1)),
                                   np.flatnonzero(samples.membership[:, 2])[:1]]))  # fmt: skip
    layers = [layer[rows] for layer in samples.layers]
    found = logdet(Samples(samples.inputs[rows], layers, samples.membership[rows])).per_class
    assert np.isnan(found).tolist() == [[False, False, True]] * 2


def test_one_thread_and_as_many_as_before():
    def threads():
        return [lib["num_threads"] for lib in threadpoolctl.threadpool_info()
                if lib["user_api"] == "blas"]  # fmt: skip

    with one_thread():  # what loads the libraries
        pass
    before = threads()
    with one_thread():
        assert set(threads()) == {1}
    assert threads() == before
