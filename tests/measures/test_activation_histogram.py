"""Counts in bins against NumPy's own histogram."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_layer_entropy import EntropyMonitor, analyze_model, plots
from keras_layer_entropy.measures import ActivationHistogram
from keras_layer_entropy.measures.activation_histogram import BINS, EDGES, HistogramState, bin_of


def test_bins_are_those_of_their_edges(random):
    sizes = 2.0 ** random.uniform(-18, 18, 5000)
    values = (sizes * random.choice([-1, 1], 5000)).astype("float32")
    values[:3] = 0.0, np.inf, -np.inf
    found = np.asarray(ops.convert_to_numpy(bin_of(values)))
    want = np.searchsorted(EDGES, values.astype(np.float64), side="right") - 1
    want[1] = BINS - 1  # infinity is below no edge
    # Float32 may put what lies on an edge on its other side.
    assert np.mean(found != want) < 1e-3
    assert np.abs(found - want).max() <= 1


@pytest.mark.parametrize("rows", [8, 100])
def test_counts_are_those_of_numpy(rows, random):
    """Of the samples that are looked at: every fifth; of a smaller batch all."""
    batch, classes = 40, 3
    values = random.normal(size=(batch, 5)).astype("float32") ** 3
    y = np.arange(batch) % classes
    state = HistogramState(classes, rows)
    state.update_state(values, np.eye(classes, dtype="float32")[y])
    chosen = np.arange(0, batch, 5 if rows == 8 else 1)
    for c in range(classes):
        some = values[chosen][y[chosen] == c].ravel()
        bins = np.asarray(ops.convert_to_numpy(bin_of(some)))
        np.testing.assert_array_equal(state.total()[c], np.bincount(bins, minlength=BINS))


def test_masks_nan_and_labels_of_positions(random):
    values = random.normal(size=(6, 4, 3)).astype("float32")
    values[0, 0, 0] = np.nan
    mask = random.random((6, 4)) > 0.3
    membership = np.eye(2, dtype="float32")[random.integers(0, 2, (6, 4))]
    state = HistogramState(2, 32)
    state.update_state(values, membership, mask)
    for c in range(2):
        some = values[mask & (membership[..., c] > 0)].ravel()
        assert state.total()[c].sum() == np.isfinite(some).sum()


def test_sizes_are_within_half_a_bin(random):
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(64, "relu", name="a"), layers.Dense(3, name="out")]
    )
    x, y = random.normal(size=(500, 6)).astype("float32"), np.arange(500) % 3
    profile = analyze_model(model, (x, y), measures=ActivationHistogram(rows=256), verbose=0)
    found = profile["activation_histogram"]
    given = ops.convert_to_numpy(model.get_layer("a")(x)).astype(np.float64)
    zero = [np.mean(given[y == c] < 2.0**-16) for c in range(3)]
    # Of the second batch of 244 all samples are looked at, of the first all 256.
    np.testing.assert_allclose(found.per_class[0], zero, atol=1e-3)
    sizes = given[given >= 2.0**-16]
    assert found.whole["median"][0] / np.median(sizes) == pytest.approx(1, abs=0.2)
    assert found.whole["extreme"][0] / np.quantile(given, 0.999) == pytest.approx(1, abs=0.2)
    assert found.details["a"]["counts"].sum() == given.size


def test_of_large_maps_some_numbers_are_looked_at(random):
    values = random.normal(size=(4, 20, 20, 16)).astype("float32")
    state = HistogramState(1, 32)
    state.update_state(values, np.ones((4, 1), "float32"))
    assert state.total().sum() == 4 * 4096
    share = state.total()[0, BINS // 2 + 1 :].sum() / (4 * 4096)
    assert share == pytest.approx(0.5, abs=0.02)  # of all units: 4 standard errors


@pytest.mark.parametrize("rows", [0, 1.5, "all"])
def test_what_is_refused(rows):
    with pytest.raises(ValueError, match="rows=.* of activation_histogram; expected a positive"):
        ActivationHistogram(rows)


@pytest.mark.tensorflow
def test_it_is_drawn_and_read_by_tensorboard(random, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, "tanh", name="a"), layers.Dense(3, name="out")]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    x, y = random.normal(size=(60, 6)).astype("float32"), np.arange(60) % 3
    monitor = EntropyMonitor(measures=["activation_histogram"], log_dir=tmp_path)
    model.fit(x, y, verbose=0, validation_data=(x, y), callbacks=[monitor])
    events = EventAccumulator(str(tmp_path)).Reload()
    assert "activation_histogram_counts/a" in events.PluginTagToContent("histograms")
    table = tensor_util.make_ndarray(
        events.Tensors("activation_histogram_counts/a")[0].tensor_proto
    )
    counts = monitor.profiles[0]["activation_histogram"].details["a"]["counts"].sum(axis=0)
    np.testing.assert_array_equal(table[:, 2], counts)
    assert np.isfinite(table).all()
    figure = plots.activation_histograms(monitor.profiles[0])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a (8)", "out (3)"]
