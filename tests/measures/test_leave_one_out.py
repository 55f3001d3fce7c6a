"""Bounds on mutual information against NumPy from the formulas, and where the truth is known."""

import math

import keras
import numpy as np
import pytest
from keras import layers, ops
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from keras_layer_entropy.measures import leave_one_out, pairs
from keras_layer_entropy.measures.leave_one_out import bounds_of, leave_one_out_information
from keras_layer_entropy.measures.mutual_information import kernel_information


def one_hot(labels, classes):
    return np.eye(classes)[labels]


def entropy(labels):
    share = np.bincount(labels) / len(labels)
    return -np.sum(share[share > 0] * np.log2(share[share > 0]))


def by_definition(t, y, noise):
    """(labels, per class) and (at least, at most) of the input, sample by sample, in float64."""
    t = np.asarray(t, np.float64)
    count, classes = len(t), y.max() + 1
    prior = np.bincount(y) / count
    square = ((t[:, None] - t) ** 2).sum(axis=-1)
    spread = t.var(axis=0).sum()
    best = (-np.inf, None)
    for width in 4.0 ** np.arange(1, -6, -1):
        for power in 4.0 ** np.arange(-2, 6):
            answers = np.empty((count, classes))
            for i in range(count):
                others = np.arange(count) != i
                k = np.exp(-(square[i] - square[i][others].min()) / (2 * width * 2 * spread))
                # Rounding of float32 where no sample of a class is near: 1e-30 in its place.
                near = [max(k[others & (y == c)].sum(), 1e-30) for c in range(classes)]
                n = [(others & (y == c)).sum() for c in range(classes)]
                logits = np.log(prior) + power * np.log(np.array(near) / n)
                q = np.exp(logits - logits.max())
                answers[i] = 0.99 * q / q.sum() + 0.01 * prior
            bits = np.mean(np.log2(answers[np.arange(count), y] / prior[y]))
            best = max(best, (bits, answers), key=lambda found: found[0])
    bits, answers = best
    per_class = [
        np.mean(np.where(y == c, np.log2(answers[:, c] / prior[c]),
                         np.log2((1 - answers[:, c]) / (1 - prior[c]))))
        for c in range(classes)
    ]  # fmt: skip
    draws = min(count, max(64, 2**22 // t.shape[1]))
    error = np.random.default_rng(leave_one_out.SEED).normal(
        0, math.sqrt(noise * spread), (draws, t.shape[1])
    )
    low, high = [], []
    for i in range(count):
        moved = t[i] + error[i % draws]
        density = np.exp(-((moved - t) ** 2).sum(axis=1) / (2 * noise * spread))
        low.append(np.log2(density[i] / density.mean()))
        high.append(np.log2(density[i] / np.delete(density, i).mean()))
    return bits, per_class, np.mean(low), np.mean(high)


@pytest.mark.parametrize("noise", [0.1, 0.5])
def test_is_the_formula(noise, random):
    y = random.integers(0, 3, 60)
    t = (random.normal(size=(60, 4)) + 1.5 * one_hot(y, 4) + 7).astype("float32")
    found = leave_one_out_information(t, one_hot(y, 3), noise)
    bits, per_class, low, high = by_definition(t, y, noise)
    # Kernels are squared 12 times in float32: 2^12 roundings of 6e-8, in the exponent.
    assert found.labels == pytest.approx(bits, abs=1e-3)
    np.testing.assert_allclose(found.per_class, np.maximum(per_class, 0), atol=1e-3)
    assert found.input == pytest.approx(low, abs=1e-4)
    assert found.input_at_most == pytest.approx(high, abs=1e-4)


@pytest.mark.parametrize("features", [2, 16, 128, 512])
def test_input_of_gaussians_is_between_the_bounds(features):
    """d / 2 log2(1 + 1 / (noise d)); within 2.6 standard errors, which one in a hundred is not."""
    truth = 0.5 * features * math.log2(1 + 10 / features)
    for seed in range(3):
        t = np.random.default_rng(seed).normal(size=(1000, features)).astype("float32")
        found = leave_one_out_information(t, np.ones((1000, 1)))
        # A tenth of a bit for the draws of noise, which wide samples share.
        slack = 2.6 * found.input_error + 0.1
        assert found.input - slack <= truth <= found.input_at_most + slack
        assert found.input <= found.input_at_most


@pytest.mark.parametrize("features", [2, 16, 128])
def test_labels_of_gaussian_classes(features, random):
    """Four classes, whose information is an integral: its mean over 20,000 draws."""
    centres = random.normal(size=(4, features))
    centres *= 2.5 / np.linalg.norm(centres, axis=1)[:, None]

    def draw(count):
        y = np.arange(count) % 4
        return y, centres[y] + random.normal(size=(count, features))

    y, t = draw(20_000)
    logits = t @ centres.T - 0.5 * (centres**2).sum(axis=1)
    chance = np.exp(logits - logits.max(axis=1, keepdims=True))
    truth = np.log2(4 * chance[np.arange(len(y)), y] / chance.sum(axis=1)).mean()
    y, t = draw(1000)
    found = leave_one_out_information(t.astype("float32"), one_hot(y, 4))
    # Sampling: 2.6 standard errors. Of wide layers with noise in all directions some is missed.
    assert 0.8 * truth < found.labels + 2.6 * found.labels_error
    assert found.labels - 2.6 * found.labels_error < truth
    assert found.labels_error < 0.06


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e9])
@pytest.mark.parametrize("features", [1, 30, 2000])
def test_shuffled_labels_say_nothing(scale, features, random):
    t = (scale * random.normal(size=(500, features)) ** 3).astype("float32")
    found = leave_one_out_information(t, one_hot(np.arange(500) % 10, 10))
    assert found.labels <= 0.05 * math.log2(10)
    assert np.max(found.per_class) <= 0.05 * 0.469


def test_scale_and_rotation_change_nothing(random):
    y = np.arange(200) % 4
    t = random.normal(size=(200, 6)) + 2 * one_hot(y, 6)
    rotation = np.linalg.qr(random.normal(size=(6, 6)))[0]
    found = [
        leave_one_out_information(x.astype("float32"), one_hot(y, 4))
        for x in (t, 1e3 * t, t @ rotation)
    ]
    # float32, and for the rotated ones other noise.
    assert found[1].labels == pytest.approx(found[0].labels, abs=1e-3)
    assert found[1].input == pytest.approx(found[0].input, abs=1e-3)
    assert found[2].labels == pytest.approx(found[0].labels, abs=1e-3)
    assert found[2].input == pytest.approx(found[0].input, abs=4 * found[0].input_error)


def certified(t, y):
    """Bits that a linear classifier proves, by Fano's inequality, of held-out samples."""
    t = (t - t.mean(axis=0)) / (t.std(axis=0) + 1e-6)
    classes = y.max() + 1
    wrong = np.mean(cross_val_predict(LogisticRegression(C=0.1, max_iter=100), t, y, cv=3) != y)
    doubt = entropy(np.array([0, 1]).repeat([round(1e6 * (1 - wrong)), round(1e6 * wrong)]))
    return max(0.0, entropy(y) - doubt - wrong * math.log2(classes - 1))


def trained(activation, seed):
    """Activations of a narrow network for the digits, and of one that is not trained."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    keras.utils.set_random_seed(seed)
    dense = [layers.Dense(n, activation) for n in (64, 16, 16)]
    model = keras.Sequential([keras.Input((64,)), *dense, layers.Dense(10, "softmax")])
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    model.fit(x[:1200], y[:1200], epochs=12, batch_size=64, verbose=0)
    inside = keras.Model(model.inputs, [layer.output for layer in model.layers])
    return inside.predict(x[1200:], verbose=0), y[1200:]


@pytest.fixture(scope="module")
def networks():
    return {(kind, seed): trained(kind, seed) for kind in ("relu", "tanh") for seed in (0, 1)}


def test_layers_of_networks(networks):
    """Every layer, with its labels and with shuffled ones; what a linear classifier proves."""
    values = {}
    for key, (tensors, y) in networks.items():
        others = np.random.default_rng(0).permutation(y)
        for number, t in enumerate(tensors):
            found, chance = bounds_of(t, [one_hot(y, 10), one_hot(others, 10)])
            assert chance.labels <= 0.05 * entropy(y)
            if key[1] == 0:
                assert found.labels >= 0.5 * certified(t, y)
            assert found.labels <= entropy(y)
            values[(*key, number)] = float(found.labels), float(found.input)
    for kind in ("relu", "tanh"):
        of_input = np.array([[values[kind, seed, n][1] for n in range(4)] for seed in (0, 1)])
        # Layers are told apart: each forgets samples, from the widest to the output.
        assert (of_input[:, 0] > of_input[:, 3] + 0.5).all()
        of_labels = np.array([[values[kind, seed, n][0] for n in range(4)] for seed in (0, 1)])
        # From seed to seed: less than a tenth of what there is to be known.
        assert np.abs(of_labels[0] - of_labels[1]).max() < 0.1 * math.log2(10)
        assert np.abs(of_input[0] - of_input[1]).max() < 0.6


def test_the_kernel_density_does_say_that_shuffled_labels_are_known(networks):
    """The control: what the bounds are for."""
    tensors, y = networks["relu", 0]
    others = np.random.default_rng(0).permutation(y)
    chance = kernel_information(tensors[0], one_hot(others, 10).astype("float32"))
    assert float(ops.convert_to_numpy(chance.labels)) > 0.5 * entropy(y)


def test_blocks_make_no_difference(random, monkeypatch):
    y = random.integers(0, 3, 90)
    t = (random.normal(size=(90, 4)) + one_hot(y, 4)).astype("float32")
    whole = leave_one_out_information(t, one_hot(y, 3))
    monkeypatch.setattr(pairs, "BLOCK", 7 * 90)  # blocks of 7, which do not divide 90
    for part, same in zip(leave_one_out_information(t, one_hot(y, 3)), whole, strict=True):
        np.testing.assert_allclose(part, same, atol=1e-5)  # order of sums in float32


def test_samples_of_weight_0_are_as_if_not_there(random):
    y = random.integers(0, 3, 60)
    t = (random.normal(size=(60, 3)) + one_hot(y, 3)).astype("float32")
    membership = one_hot(y, 3)
    out = random.random(60) < 0.3
    membership[out] = 0
    t[out] = np.nan
    found = leave_one_out_information(t, membership)
    want = leave_one_out_information(t[~out], membership[~out])
    for part, expected in zip(found, want, strict=True):
        np.testing.assert_allclose(part, expected, atol=1e-6)


def test_a_weight_is_a_share(random):
    """Twice all weights is the same; a sample of two classes is a half in each."""
    y = random.integers(0, 3, 60)
    t = (random.normal(size=(60, 3)) + one_hot(y, 3)).astype("float32")
    membership = one_hot(y, 3)
    membership[:5] = [0.5, 0.5, 0]
    found, twice = (leave_one_out_information(t, k * membership) for k in (1, 2))
    for part, expected in zip(twice, found, strict=True):
        np.testing.assert_allclose(part, expected, atol=1e-5)  # float32
    assert 0 < found.labels < entropy(y)


def test_what_is_constant_tells_nothing():
    labels = one_hot(np.arange(30) % 3, 4)
    found = leave_one_out_information(np.full((30, 5), 3.3, "float32"), labels)
    assert found[:5] == (0, 0, 0, 0, 0)
    np.testing.assert_array_equal(found.per_class, [0, 0, 0, np.nan])
    # One class: there is nothing to be known of it.
    found = leave_one_out_information(np.eye(30, dtype="float32"), np.ones((30, 1)))
    assert found.labels == 0
    assert found.per_class.tolist() == [0]
    assert found.input > 0


def test_not_finite_or_too_few_is_not_known(random):
    t, labels = random.normal(size=(20, 3)).astype("float32"), one_hot(np.arange(20) % 2, 2)
    t[3, 1] = np.nan
    for found in (
        leave_one_out_information(t, labels),
        leave_one_out_information(t[:1], labels[:1]),
    ):
        assert np.isnan(np.concatenate([np.array(found[:5]), found.per_class[:1]])).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t, y: leave_one_out_information(t, y, 0.0), "noise=0.0; expected a positive"),
        (lambda t, y: leave_one_out_information(t, y, math.nan), "noise=nan; expected a posit"),
        (lambda t, y: leave_one_out_information(t, y[:2]), r"membership \(2, 2\); expected"),
        (lambda t, y: leave_one_out_information(t[None], y), r"t has shape \(1, 4, 3\); expect"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones((4, 3)), np.eye(2)[[0, 1, 0, 1]])


@pytest.mark.parametrize("given", [True, False])
def test_products_of_all_samples_are_the_formula_of_those_that_count(given, random):
    """Far from 0, of more features than are looked at in one go; tolerances as above."""
    y = random.integers(0, 3, 60)
    t = random.normal(size=(60, 2 * pairs.FEATURES + 9)) * 3 + 100
    t[:, :4] += 20 * one_hot(y, 4)
    t, membership = t.astype("float32"), one_hot(y, 3)
    membership[:5] = 0
    products = pairs.centred_products(t) if given else None
    (found,) = bounds_of(t, [membership], products=products)
    bits, per_class, low, high = by_definition(t[5:], y[5:], leave_one_out.NOISE)
    assert found.labels == pytest.approx(bits, abs=1e-3)
    np.testing.assert_allclose(found.per_class, np.maximum(per_class, 0), atol=1e-3)
    assert found.input == pytest.approx(low, abs=1e-4)
    assert found.input_at_most == pytest.approx(high, abs=1e-4)
