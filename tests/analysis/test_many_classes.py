"""Many classes: by their ids, and yet what the formulas say."""

import keras
import numpy as np
import pytest
import reference

from keras_layer_entropy import EntropyMonitor, analyze_model
from keras_layer_entropy.analysis import measurement
from keras_layer_entropy.measures import class_sums

CLASSES = 100
MEASURES = ("activation_entropy", "instability", "state_entropy", "linear_probe", "logdet")
dense = keras.layers.Dense


def network():
    return keras.Sequential([
        keras.Input((5,)), dense(8, "relu", name="a"), dense(6, "tanh", name="b"),
        dense(CLASSES, "softmax", name="c"),
    ])  # fmt: skip


def data(random, samples=400):
    x = random.normal(size=(samples, 5)).astype("float32")
    return x, random.permutation(np.arange(samples) % (CLASSES - 1))  # nothing of the last class


def by_weights(monkeypatch):
    """Goes by the weights in each class from here on, as with few classes."""
    for module in (measurement, class_sums):
        monkeypatch.setattr(module, "MANY", 10**9)


@pytest.mark.filterwarnings("ignore:No sample belongs to")
def test_it_is_the_formula(random):
    model, (x, y) = network(), data(random)
    profile = analyze_model(model, (x, y), measures=MEASURES[:1], batch_size=64, verbose=0)
    for row, layer in enumerate(model.layers[:2]):
        x = keras.ops.convert_to_numpy(layer(x))
        want = [reference.activation_entropy(x[y == c]) for c in range(CLASSES - 1)]
        # float32 activations.
        np.testing.assert_allclose(profile.entropy[row, :-1], want, rtol=0, atol=2e-6)
        assert np.isnan(profile.entropy[row, -1])
    assert profile.count.tolist() == np.bincount(y, minlength=CLASSES).tolist()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:No sample belongs to", "ignore:The .* of class")
@pytest.mark.parametrize("weights", [False, True])
def test_every_measure_says_the_same_by_ids_and_by_weights(weights, random, monkeypatch):
    model, arrays = network(), data(random)
    arrays += (random.integers(0, 3, len(arrays[0])).astype("float32"),) if weights else ()
    found = []
    for _ in range(2):
        found.append(analyze_model(model, arrays, measures=MEASURES, batch_size=64, verbose=0))
        by_weights(monkeypatch)
    ids, wanted = found
    for name in MEASURES:
        close = dict(rtol=1e-4, atol=1e-5)  # float32 Gram matrices, summed in another order
        np.testing.assert_allclose(ids[name].per_class, wanted[name].per_class, **close)
        for key, values in wanted[name].whole.items():
            np.testing.assert_allclose(ids[name].whole[key], values, **close)
    np.testing.assert_array_equal(ids.count, wanted.count)


@pytest.mark.filterwarnings("ignore:No sample belongs to")
def test_labels_of_steps_and_ids_that_do_not_count(random, monkeypatch):
    inputs = keras.Input((4, 5))
    model = keras.Model(
        inputs, dense(CLASSES, name="steps")(dense(6, "relu", name="inside")(inputs))
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=3)
    model.compile(loss=loss)
    x, y = random.normal(size=(60, 4, 5)).astype("float32"), random.integers(0, 9, (60, 4))
    weight = random.integers(0, 2, (60, 4)).astype("float32")
    found = []
    for _ in range(2):
        found.append(analyze_model(model, (x, y, weight), batch_size=32, verbose=0))
        by_weights(monkeypatch)
    assert found[0].count[3] == 0
    np.testing.assert_array_equal(found[0].count, found[1].count)
    np.testing.assert_allclose(found[0].entropy, found[1].entropy, rtol=0, atol=2e-6)  # float32


def test_labels_that_are_no_class(random):
    x, y = data(random)
    y[7] = CLASSES
    with pytest.raises(ValueError, match="1 labels are no class 0..99, for example 100"):
        analyze_model(network(), (x, y), verbose=0)


@pytest.mark.slow
@pytest.mark.tensorflow  # records inside of `fit`
@pytest.mark.filterwarnings("ignore:No sample belongs to")
@pytest.mark.parametrize("jit", [False, True])
def test_inside_of_fit(jit, random):
    model, arrays = network(), data(random)
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=jit)
    monitor = EntropyMonitor()
    model.fit(*arrays, epochs=2, validation_data=arrays, callbacks=[monitor], verbose=0)
    want = analyze_model(model, arrays, verbose=0)
    np.testing.assert_allclose(monitor.profiles[-1].entropy, want.entropy, rtol=0, atol=2e-6)
