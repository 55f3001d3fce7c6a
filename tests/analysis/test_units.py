"""Profiles of convolution units against NumPy in float64, from the maps of all samples."""

import functools

import keras
import numpy as np
import pytest
from keras import layers
from sklearn.metrics import mutual_info_score

from keras_layer_entropy import (
    EntropyAnalyzer,
    EntropyProfile,
    UnitProfile,
    analyze_model,
    analyze_units,
)
from keras_layer_entropy.measures import UnitInformation
from keras_layer_entropy.measures.births import birth_index
from keras_layer_entropy.pruning.criteria import rank_units

CLASSES = 3
# Counts are exact; logarithms of float32 shares are off by 1e-7, of which a few dozen add up.
BINNED = dict(rtol=0, atol=1e-5)


def functional():
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, padding="same", name="a")(inputs)
    # What follows the convolution is its unit's map.
    x = layers.ReLU(name="a_end")(layers.BatchNormalization(beta_initializer="ones")(x))
    x = layers.Conv2D(3, 3, activation="tanh", name="b")(x)
    return keras.Model(inputs, layers.Dense(CLASSES)(layers.Flatten()(x)))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.first = layers.Conv2D(4, 3, activation="tanh", name="a")
        self.second = layers.Conv2D(3, 3, activation="relu", bias_initializer="ones", name="b")
        self.head = layers.Dense(CLASSES)

    def call(self, x):
        return self.head(keras.ops.mean(self.second(self.first(x)), axis=(1, 2)))


def data(random, samples=120, shape=(8, 8, 1)):
    """Images in which each class has a brightness of its own, and noise."""
    y = random.permutation(np.arange(samples) % CLASSES)
    x = random.normal(size=(samples, *shape)) + 0.5 * y.reshape(-1, *[1] * len(shape))
    return x.astype("float32"), y


def maps_of(model, x):
    """Layer -> maps of all images."""
    if isinstance(model, Subclassed):
        first = model.first(x)
        found = {"a": first, "b": model.second(first)}
    else:
        ends = {"a": model.get_layer("a_end").output, "b": model.get_layer("b").output}
        found = keras.Model(model.input, ends)(x)
    return {name: np.asarray(maps, np.float64) for name, maps in found.items()}


def binned(values, bins=10):
    edges = np.sort(values)[len(values) * np.arange(1, bins) // bins]
    return np.digitize(values, edges)


def information(a, b):
    """Bits between two lists of symbols, corrected as Miller and Madow do."""
    numbers = [len(set(x)) for x in (a, b, list(zip(a, b, strict=True)))]
    correction = (numbers[0] + numbers[1] - numbers[2] - 1) / (2 * len(a))
    return (mutual_info_score(a, b) + correction) / np.log(2)


def noisy(t):
    """I(T; T + noise of a tenth of the variance), by adding up a fine grid."""
    t = (t - t.mean()) / t.std()
    places = np.linspace(t.min() - 2, t.max() + 2, 20_001)
    density = np.mean(np.exp(-((places - t[:, None]) ** 2) / 0.2), axis=0) / np.sqrt(0.2 * np.pi)
    terms = density * np.log2(np.maximum(density, 1e-300))
    return -np.trapezoid(terms, places) - np.log2(0.2 * np.pi * np.e) / 2


def log2_mean_kernel(t, weights, variance):
    distance = ((t[:, None] - t[None]) ** 2).sum(axis=-1)
    return np.log2(np.exp(-distance / (2 * variance)) @ weights / weights.sum())


def check_feature_entropy(profile, maps, y):
    births = np.asarray(birth_index(np.moveaxis(maps, -1, 1).astype("float32")))
    for unit in range(profile.units):
        for c in range(CLASSES):
            found = births[y == c, unit]
            rate = np.mean(found > 0)
            share = np.bincount(found[found > 0]) / max(1, (found > 0).sum())
            entropy = -sum(p * np.log(p) for p in share if p > 0)
            if rate < 0.1:
                entropy = (1 - rate) * np.log(50)
            assert profile.selective_rate[unit, c] == pytest.approx(rate, abs=1e-6)
            assert profile.feature_entropy[unit, c] == pytest.approx(entropy, abs=1e-5)


@pytest.mark.slow
@pytest.mark.tensorflow  # JAX takes a minute to compile it; test_all_measures.py runs its parts
@pytest.mark.parametrize("make", [functional, Subclassed])
def test_quantile_estimates_are_those_of_numpy(make, random):
    model = make()
    x, y = data(random)

    profiles = analyze_units(model, (x, y), layers=["a", "b"], batch_size=60, verbose=0)

    maps = maps_of(model, x)
    assert [profile.layer for profile in profiles] == ["a", "b"]
    for profile in profiles:
        means = maps[profile.layer].mean(axis=(1, 2))
        symbols = [binned(column) for column in means.T]
        labels = [information(unit, y) for unit in symbols]
        per_class = [[information(unit, y == c) for c in range(CLASSES)] for unit in symbols]
        pairs = [[information(unit, other) for other in symbols] for unit in symbols]
        np.testing.assert_allclose(profile.information_labels, labels, **BINNED)
        np.testing.assert_allclose(profile.information_per_class, per_class, **BINNED)
        np.testing.assert_allclose(profile.pairwise, pairs, **BINNED)
        # An integral over a grid of some hundred places: off by less than a thousandth.
        apart = [noisy(column) for column in means.T]
        np.testing.assert_allclose(profile.information_input, apart, rtol=0, atol=1e-3)
        # What is left of 30 cells of 120 samples has a spread of 0.036 bits.
        assert np.abs(profile.information_labels_shuffled).max() < 0.2
        check_feature_entropy(profile, maps[profile.layer], y)
        assert profile.count.tolist() == [40] * CLASSES
        assert (profile.classes, profile.estimator) == (("0", "1", "2"), "quantile")
    assert max(profile.information_labels.max() for profile in profiles) > 0.3
    assert any((profile.feature_entropy > 0).any() for profile in profiles)


@pytest.mark.tensorflow
@pytest.mark.parametrize("variance", [0.1, 2.0])
def test_kernel_estimates_are_those_of_numpy(variance, random):
    model = functional()
    x, y = data(random)
    one_hot = np.eye(CLASSES)[y]

    options = dict(layers=["a", "b"], estimator="kernel", variance=variance, verbose=0)
    for profile in analyze_units(model, (x, y), **options):
        maps = maps_of(model, x)[profile.layer]
        for unit in range(profile.units):
            t = maps[..., unit].reshape(len(x), -1)
            near = functools.partial(log2_mean_kernel, t, variance=variance)
            everything = near(np.ones(len(x)))
            own = np.stack([near(column) for column in one_hot.T], axis=1)
            rest = np.stack([near(1 - column) for column in one_hot.T], axis=1)
            gains = own - everything[:, None]
            # float32 maps of size 1: the kernels are off by 1e-6.
            close = dict(rtol=0, atol=2e-5)
            np.testing.assert_allclose(profile.information_input[unit], -everything.mean(), **close)
            np.testing.assert_allclose(
                profile.information_labels[unit], (gains * one_hot).sum(axis=1).mean(), **close
            )
            of_class = one_hot * own + (1 - one_hot) * rest - everything[:, None]
            np.testing.assert_allclose(
                profile.information_per_class[unit], of_class.mean(axis=0), **close
            )
            symbols = binned(maps[..., unit].mean(axis=(1, 2)))
            np.testing.assert_allclose(
                profile.pairwise[unit, unit], information(symbols, symbols), **BINNED
            )
        assert profile.estimator == "kernel"


@pytest.mark.tensorflow
def test_units_are_compared_in_blocks(monkeypatch, random):
    model = functional()
    whole = analyze_units(model, data(random), estimator="kernel", verbose=0)
    monkeypatch.setattr("keras_layer_entropy.measures.unit_information._BLOCK", 1)
    parts = analyze_units(model, data(np.random.default_rng(0)), estimator="kernel", verbose=0)
    for one, other in zip(whole, parts, strict=True):
        # float32, added up in another order.
        np.testing.assert_allclose(
            one.information_per_class, other.information_per_class, rtol=0, atol=1e-5
        )


def planted(random, samples=400, activation="relu"):
    """A convolution of which four units are known, its data, and labels 0 and 1.

    Unit 0 is 1 for class 1 and else 0, unit 1 the same times 3, unit 2 dead, unit 3 noise.
    """
    y = np.arange(samples) % 2
    x = np.stack([y, random.normal(size=samples)], axis=1)[:, None, None]
    x = np.broadcast_to(x, (samples, 4, 4, 2)).astype("float32")
    conv = layers.Conv2D(4, 1, activation=activation, name="conv")
    model = keras.Sequential([keras.Input((4, 4, 2)), conv, layers.Flatten(), layers.Dense(2)])
    conv.set_weights([np.array([[[[1, 3, 1, 0], [0, 0, 0, 1]]]]), np.array([0, 0, -9, 5])])
    return model, (x, y)


@pytest.mark.tensorflow
def test_planted_units(random):
    model, arrays = planted(random)

    profile, _ = analyze_units(model, arrays, verbose=0)

    # H(Y) is 1 bit, and the correction for two bins and two classes 1 / (2 N ln 2).
    one = 1 + 1 / (800 * np.log(2))
    np.testing.assert_allclose(profile.information_labels[:3], [one, one, 0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(profile.information_per_class[0], [one, one], rtol=0, atol=1e-5)
    # Two places that lie 2 deviations apart, 6.3 of the noise: of 1 bit little is lost.
    two = noisy(arrays[1])
    assert 0.99 < two < 1.0
    np.testing.assert_allclose(profile.information_input[:3], [two, two, 0], rtol=0, atol=1e-3)
    # Labels of other samples: a spread of 0.005 bits is left.
    assert np.abs(profile.information_labels_shuffled).max() < 0.03
    found = profile.redundant()
    assert found.redundant.tolist() == [False, True, False, False]
    assert found.kept.tolist() == [0, 0, 2, 3]
    # It is the information on the labels that says which of two stays.
    other = UnitProfile(**vars(profile) | {"information_labels": [0.5, 0.9, 0.0, 0.0]})
    assert other.redundant().kept.tolist() == [1, 1, 2, 3]
    assert profile.less_effective().tolist() == [False, False, True, True]
    better = UnitProfile(**vars(profile) | {"information_labels": [1.0, 1.0, 0.0, 0.9]})
    assert profile.less_effective([better]).tolist() == [False, False, True, False]
    # Maps of one value have no loop: the largest entropy, ln 50, and no unit is before another.
    np.testing.assert_allclose(profile.feature_entropy, np.log(50), rtol=1e-6)
    assert profile.by_feature_entropy().tolist() == [0, 1, 2, 3]


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("estimator", ["quantile", "kernel"])
def test_batches_do_not_matter(estimator, random):
    model = functional()
    x, y = data(random)
    measures = [UnitInformation(estimator, samples=50), "feature_entropy"]  # of 120: a subset
    analyzer = EntropyAnalyzer(model, layers=["a", "b"], measures=measures)

    whole = analyzer.analyze((x, y), batch_size=120, verbose=0).units
    parts = analyzer.analyze((x, y), batch_size=7, verbose=0).units

    assert list(whole) == list(parts) == ["a", "b"]
    for one, other in zip(whole.values(), parts.values(), strict=True):
        for name in ("information_labels", "information_labels_shuffled",
                     "information_input", "information_per_class", "pairwise", "feature_entropy",
                     "selective_rate", "count"):  # fmt: skip
            # Convolutions round differently in batches of another size, by 1e-7.
            np.testing.assert_allclose(
                getattr(one, name), getattr(other, name), rtol=0, atol=1e-5, err_msg=name
            )


class ChannelsFirst(layers.Conv2D):
    """A convolution of images with channels first, for which TensorFlow on a CPU needs oneDNN."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, data_format="channels_first", **kwargs)

    def convolution_op(self, inputs, kernel):
        outputs = keras.ops.conv(keras.ops.moveaxis(inputs, 1, -1), kernel, self.strides)
        return keras.ops.moveaxis(outputs, -1, 1)


@pytest.mark.tensorflow
def test_channels_first(random):
    x, y = data(random, shape=(7, 5, 2))
    last, first = (
        keras.Sequential([conv(3, 2, name="conv"), layers.Flatten(), layers.Dense(CLASSES)])
        for conv in (layers.Conv2D, ChannelsFirst)
    )
    moved = np.moveaxis(x, -1, 1)
    last(x), first(moved)
    first.get_layer("conv").set_weights(last.get_layer("conv").get_weights())
    (want,) = analyze_units(last, (x, y), layers="conv", verbose=0)
    (found,) = analyze_units(first, (moved, y), layers="conv", verbose=0)
    np.testing.assert_allclose(found.information_labels, want.information_labels, **BINNED)
    np.testing.assert_allclose(found.feature_entropy, want.feature_entropy, **BINNED)
    assert found.units == 3


@pytest.mark.tensorflow
def test_samples_that_do_not_count(random):
    model = functional()
    x, y = data(random)
    weight = np.arange(120) < 60
    some = analyze_units(model, (x[:60], y[:60]), batch_size=60, verbose=0)
    # Labels of samples that weigh nothing may be anything.
    odd = np.where(weight, y, 17)
    weighted = analyze_units(model, (x, odd, weight.astype("float32")), batch_size=60, verbose=0)
    for one, other in zip(some, weighted, strict=True):
        np.testing.assert_array_equal(one.count, other.count)
        np.testing.assert_allclose(one.information_labels, other.information_labels, **BINNED)
        np.testing.assert_allclose(one.pairwise, other.pairwise, **BINNED)
        np.testing.assert_allclose(one.feature_entropy, other.feature_entropy, **BINNED)


@pytest.mark.tensorflow
def test_layers_and_their_state(random):
    model = functional()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = {id(layer): dict(vars(layer)) for layer in model._flatten_layers()}
    (profile,) = analyze_units(model, data(random), layers="b", verbose=0)
    assert profile.layer == "b"
    for layer in model._flatten_layers():
        assert vars(layer).keys() == before[id(layer)].keys()
    assert not profile.pairwise.flags.writeable
    assert profile.pairwise.dtype == "float64"
    with pytest.raises(AttributeError):
        profile.layer = "a"


@pytest.mark.tensorflow
def test_absent_classes_and_maps_that_are_not_finite(random):
    model, (x, y) = planted(random)
    with pytest.warns(UserWarning, match=r"No sample belongs to 1 of 3 classes \(2\)"):
        profile, _ = analyze_units(model, (x, y), num_classes=3, verbose=0)
    for values in (profile.information_per_class, profile.feature_entropy, profile.selective_rate):
        assert np.isnan(values).tolist() == [[False, False, True]] * 4
    assert not np.isnan(profile.information_labels).any()

    model, (x, y) = planted(random, activation=None)  # some ReLUs turn NaN into 0
    x = x.copy()
    x[0, 0, 0, 1] = np.inf  # of class 0; 0 x inf is NaN in units 0 to 2
    with pytest.warns(UserWarning, match=r"'conv' has NaN or infinite activations for class 0:"):
        (profile,) = analyze_units(model, (x, y), layers="conv", verbose=0)
    assert np.isnan(profile.feature_entropy).tolist() == [[True, False]] * 4
    assert np.isnan(profile.information_labels).tolist() == [True, True, True, False]
    assert not profile.redundant().redundant[[0, 1, 2]].any()


@pytest.mark.tensorflow
def test_units_by_feature_entropy():
    entropy = np.array([[1.0, np.nan, 3.0], [4.0, np.nan, 3.0], [np.nan] * 3])
    zeros = np.zeros(3)
    profile = UnitProfile(
        layer="conv", classes="xyz", count=[1, 0, 1], information_labels=zeros,
        feature_entropy=entropy, selective_rate=entropy / 4,
    )  # fmt: skip
    np.testing.assert_array_equal(profile.mean_feature_entropy, [2.0, 3.5, np.nan])
    assert profile.by_feature_entropy().tolist() == [0, 1, 2]
    ranked = rank_units("feature_entropy", profile)
    assert [part.name for part in ranked] == ["conv[1]", "conv[0]"]
    assert [prediction.loss for prediction in ranked.values()] == [-3.5, -2.0]
    first = next(iter(ranked.values()))
    assert first.words == "feature entropy of 3.500 nats (a loop in 88% of the images)"
    with pytest.raises(ValueError, match=r"criterion='labels'; expected one of \('feature_ent"):
        rank_units("labels", profile)


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(y=None), "needs labels: pass data as"),
        (dict(num_classes=1), "num_classes= the number of classes, above 1"),
        (dict(y=np.full(30, 7)), r"30 labels are no class 0\.\.2, for example 7"),
        (dict(layers=layers.Conv1D), "fits no layer of"),
        (
            dict(estimator="binned"),
            r"estimator='binned' of unit_information; expected one of \('quantile', 'kernel'\)",
        ),
        (dict(variance=0), "variance=0 of unit_information; expected a positive number"),
        (dict(samples=1), "samples=1 of unit_information; expected an int of at least 2"),
        (
            dict(estimator="kernel", samples=10**8),
            "GiB: choose fewer layers .* or keep fewer samples for unit_information",
        ),
        (dict(x=np.zeros((0, 8, 8, 1))), "hold no samples"),
        (dict(weight=np.zeros(30)), "hold no samples"),
        (dict(weight=np.ones((30, 4))), "but there are labels or weights for"),
    ],
)
def test_errors(change, message, random):
    inputs = keras.Input((8, 8, 1))
    conv = layers.Conv2D(2, 3, name="conv")(inputs)
    dense = layers.Dense(CLASSES, name="dense")(layers.GlobalAveragePooling2D()(conv))
    change = dict(change)
    x = change.pop("x", random.normal(size=(30, 8, 8, 1)))
    y = change.pop("y", np.arange(30) % CLASSES)
    weight = change.pop("weight", None)
    with pytest.raises(ValueError, match=message):
        analyze_units(keras.Model(inputs, dense), (x, y, weight), verbose=0, **change)


@pytest.mark.tensorflow
def test_errors_of_labels_and_shapes(random):
    import tensorflow as tf

    segmenter = keras.Sequential([keras.Input((None, None, 1)), layers.Conv2D(CLASSES, 3)])
    x = random.normal(size=(6, 8, 8, 1)).astype("float32")
    y = np.zeros((6, 6, 6), int)
    with pytest.raises(ValueError, match=r"labels or weights of shape \(6, 6, 6\): pass num_cl"):
        analyze_units(segmenter, (x, y), verbose=0)
    measures = UnitInformation()
    with pytest.raises(ValueError, match=r"for every position, \(6, 6, 6\), but unit_inform"):
        analyze_model(segmenter, (x, y), measures=measures, verbose=0)
    sizes = tf.data.Dataset.from_generator(
        lambda: iter([(x, np.arange(6) % CLASSES)]),
        output_signature=(
            tf.TensorSpec((None, None, None, 1)), tf.TensorSpec((None,), "int64"),
        ),
    )  # fmt: skip
    with pytest.raises(ValueError, match="give images of one size"):
        analyze_units(segmenter, sizes, num_classes=CLASSES, verbose=0)
    model = functional()
    analyzer = EntropyAnalyzer(model, measures=["unit_information"])
    analyzer.analyze(data(random), verbose=0)
    with pytest.raises(ValueError, match="no labels, unlike those measured first"):
        analyzer.analyze(data(random)[0], verbose=0)


@pytest.mark.tensorflow
def test_errors_of_profiles(random):
    model, arrays = planted(random)
    profile, _ = analyze_units(model, arrays, verbose=0)
    with pytest.raises(ValueError, match=r"pairwise has shape \(2, 2\); expected \(4, 4\)"):
        UnitProfile(**vars(profile) | {"pairwise": np.eye(2)})
    other = UnitProfile(**vars(profile) | {"layer": "other"})
    with pytest.raises(ValueError, match=r"profiles of \['other'\]; expected those of 'conv'"):
        profile.less_effective([other])


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("shape", "make"),
    [
        ((9,), lambda: layers.Dense(4, "relu", name="a")),
        ((7, 3), lambda: layers.Dense(4, "relu", name="a")),  # of every step of a sequence
        ((9, 2), lambda: layers.Conv1D(4, 3, activation="tanh", name="a")),
        ((4, 5, 6, 1), lambda: layers.Conv3D(4, 2, activation="relu", name="a")),
    ],
)
def test_units_of_every_kind_of_layer(shape, make, random):
    """A unit of a Dense layer is a map of one place; of all others its mean counts."""
    model = keras.Sequential([keras.Input(shape), make(), layers.Flatten(), layers.Dense(CLASSES)])
    x, y = data(random, shape=shape)
    (profile,) = analyze_units(model, (x, y), layers="a", verbose=0)
    maps = np.asarray(model.get_layer("a")(x), np.float64)
    means = maps.reshape(len(x), -1, 4).mean(axis=1)
    symbols = [binned(column) for column in means.T]
    want = [information(unit, y) for unit in symbols]
    np.testing.assert_allclose(profile.information_labels, want, **BINNED)
    want = [[information(unit, other) for other in symbols] for unit in symbols]
    np.testing.assert_allclose(profile.pairwise, want, **BINNED)
    assert np.isnan(profile.feature_entropy).all()  # there are no maps


@pytest.mark.tensorflow
def test_masked_steps_are_no_part_of_a_mean(random):
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Embedding(20, 5, mask_zero=True),
            layers.Dense(4, "tanh", name="a"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(CLASSES),
        ]
    )
    x, y = random.integers(1, 20, (60, 6)), np.arange(60) % CLASSES
    length = random.integers(1, 7, 60)
    x[np.arange(6) >= length[:, None]] = 0
    (profile,) = analyze_units(model, (x, y), layers="a", verbose=0)
    steps = np.asarray(keras.Model(model.inputs, model.get_layer("a").output)(x), np.float64)
    means = np.stack([row[:n].mean(axis=0) for row, n in zip(steps, length, strict=True)])
    want = [information(binned(column), y) for column in means.T]
    np.testing.assert_allclose(profile.information_labels, want, **BINNED)


@pytest.mark.tensorflow
def test_units_are_a_measure_among_others(random, tmp_path):
    """Beside entropies, with the untrained twin, saved, and read again."""
    model, (x, y) = planted(random)
    measures = ["activation_entropy", "unit_information", "feature_entropy"]
    profile = analyze_model(model, (x, y), measures=measures, baseline=True, verbose=0)
    assert list(profile.units) == list(profile.baseline.units) == list(profile.layers)
    conv = profile.units["conv"]
    one = 1 + 1 / (800 * np.log(2))
    np.testing.assert_allclose(conv.information_labels[:3], [one, one, 0], rtol=0, atol=1e-5)
    result = profile["unit_information"]
    assert result.whole["labels"][0] == pytest.approx(conv.information_labels.mean())
    assert result.shuffled["labels"][0] == pytest.approx(conv.information_labels_shuffled.mean())
    np.testing.assert_allclose(result.per_class[0], conv.information_per_class.mean(axis=0))
    assert not np.allclose(
        profile.baseline.units["conv"].information_labels, conv.information_labels
    )
    profile.save(tmp_path / "p.json")
    loaded = EntropyProfile.load(tmp_path / "p.json").units["conv"]
    for name in ("information_labels", "pairwise", "feature_entropy"):
        # Six digits are kept.
        np.testing.assert_allclose(getattr(loaded, name), getattr(conv, name), rtol=1e-5)
    record = profile.to_records()[0]
    assert record["unit_information_labels"] == result.whole["labels"][0]
    assert analyze_model(model, (x, y), verbose=0).units == {}


@pytest.mark.tensorflow
def test_wide_layers_are_not_compared_unit_by_unit(monkeypatch, random):
    monkeypatch.setattr("keras_layer_entropy.measures.unit_information.WIDEST", 3)
    model, arrays = planted(random)
    conv, output = analyze_units(model, arrays, verbose=0)
    assert output.pairwise.shape == (2, 2)
    assert conv.pairwise is None
    with pytest.raises(ValueError, match="The 4 units of 'conv' were not compared .*pairwise=True"):
        conv.redundant()


@pytest.mark.tensorflow
def test_a_mask_that_is_of_other_steps_than_the_output(random):
    model = keras.Sequential(
        [
            keras.Input((10,)),
            layers.Embedding(20, 4, mask_zero=True),
            layers.Conv1D(6, 3, name="a"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(CLASSES),
        ]
    )
    x, y = random.integers(0, 20, (60, 10)), np.arange(60) % CLASSES
    (profile,) = analyze_units(model, (x, y), layers="a", verbose=0)
    maps = np.asarray(keras.Model(model.inputs, model.get_layer("a").output)(x), np.float64)
    want = [information(binned(column), y) for column in maps.mean(axis=1).T]
    np.testing.assert_allclose(profile.information_labels, want, **BINNED)


@pytest.mark.tensorflow
def test_layers_that_a_model_makes_when_it_is_built(random):
    class Late(keras.Model):
        def build(self, input_shape):
            self.conv = layers.Conv2D(2, 3, name="conv")
            self.head = layers.Dense(CLASSES)

        def call(self, x):
            return self.head(keras.ops.mean(self.conv(x), axis=(1, 2)))

    conv, head = analyze_units(Late(), data(random), verbose=0)
    assert np.isfinite(conv.feature_entropy).all()
    assert np.isnan(head.feature_entropy).all()
    with pytest.raises(ValueError, match="model is a str; expected a keras.Model"):
        analyze_units("model", data(random))


@pytest.mark.tensorflow
def test_units_leave_the_metrics_of_a_model_alone(random):
    model, (x, y) = planted(random)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"])
    model.evaluate(x, y, verbose=0)
    before = {name: float(value) for name, value in model.get_metrics_result().items()}
    analyze_units(model, (x[:50], y[:50]), verbose=0)
    after = {name: float(value) for name, value in model.get_metrics_result().items()}
    assert after == before


@pytest.mark.tensorflow
@pytest.mark.parametrize("pairwise", [True, False])
def test_whether_units_are_compared_is_an_option(pairwise, monkeypatch, random):
    monkeypatch.setattr("keras_layer_entropy.measures.unit_information.WIDEST", 1)
    model, arrays = planted(random)
    measures = UnitInformation(pairwise=pairwise)
    units = analyze_model(model, arrays, measures=measures, verbose=0).units
    assert [profile.pairwise is not None for profile in units.values()] == [pairwise] * 2
