"""A measure of one's own, defined here and entered by one line, appears wherever others do."""

import csv

import keras
import numpy as np
import pytest
from command_lines import call
from keras import ops

from keras_layer_entropy import EntropyMonitor, EntropyProfile, analyze_model, plots, save_model
from keras_layer_entropy.datasets import DatasetSpec
from keras_layer_entropy.measures import MEASURES, Measure, MeasureResult
from keras_layer_entropy.measures.class_sums import ClassMeans
from keras_layer_entropy.measures.measure import Panel, Words

pytestmark = pytest.mark.tensorflow  # TensorBoard, and recording inside fit


class Liveliness(Measure):
    """Mean absolute output of the units; and of some samples the largest."""

    key = "liveliness"
    title = "Liveliness"
    meaning = "How far from 0 the outputs are."
    caveat = "It says little."
    unit = "units of output"
    whole = {"peak": Words("Peak", "units of output", "The largest of some samples.")}
    panels = (*Measure.panels, Panel("whole"))

    def __init__(self, power=1.0, samples=10, *, name=None):
        super().__init__(name, power=power, samples=samples)
        self.samples = samples

    def new_state(self, layer, classes):
        return ClassMeans(classes, 1, self._features)

    def _features(self, values, centred):
        return ops.mean(ops.abs(values) ** self.options["power"], axis=-1, keepdims=True)

    def result(self, layers, states, samples):
        rows = [state.of_means(lambda mean: mean[:, 0]) for state in states]
        peaks = [np.abs(layer).max() for layer in samples.layers]
        return MeasureResult(rows, {"peak": peaks}, {"peak": np.zeros(len(layers))}, self.unit)

    def verdict(self, profile, tolerance):
        return f"The liveliest layer is {profile.layers[np.argmax(profile[self.name].mean)]}."


@pytest.fixture(autouse=True)
def entered(monkeypatch):
    monkeypatch.setitem(MEASURES, "liveliness", Liveliness)  # the one line


@pytest.fixture
def model():
    dense = keras.layers.Dense
    model = keras.Sequential(
        [keras.Input((64,)), dense(16, "tanh", name="h"), dense(10, "softmax", name="out")]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def data(random):
    return random.normal(size=(60, 64)).astype("float32"), np.arange(60) % 10


def test_in_profile_csv_and_json(model, random, tmp_path):
    x, y = data(random)
    measures = ["activation_entropy", Liveliness(power=2.0, name="square"), "liveliness"]
    profile = analyze_model(model, (x, y), measures=measures, verbose=0)
    hidden = np.asarray(model.get_layer("h")(x), np.float64)
    want = [np.mean(hidden[y == c] ** 2) for c in range(10)]
    np.testing.assert_allclose(profile["square"].per_class[0], want, rtol=1e-5)
    assert 0 < profile["liveliness"].whole["peak"][0] <= np.abs(hidden).max() + 1e-6

    profile.to_csv(tmp_path / "p.csv")
    with open(tmp_path / "p.csv") as file:
        row = next(csv.DictReader(file))
    assert float(row["square"]) == pytest.approx(want[0], rel=1e-5)
    assert {"liveliness", "liveliness_peak", "liveliness_peak_shuffled", "square_peak"} <= set(row)

    profile.save(tmp_path / "p.json")
    loaded = EntropyProfile.load(tmp_path / "p.json")
    np.testing.assert_array_equal(loaded["square"].per_class, profile["square"].per_class)
    assert repr(loaded.measures["square"]) == "Liveliness(power=2.0, name='square')"


def test_in_figures_and_report(model, random, tmp_path):
    measures = ["activation_entropy", "liveliness"]
    profile = analyze_model(model, data(random), measures=measures, verbose=0)
    titles = [
        plots.panel(profile, "liveliness", each).axes[0].get_title("left")
        for each in Liveliness.panels
    ]
    assert [title.partition(" ")[0].strip(":,") for title in titles] == ["Liveliness"] * 3
    assert plots.entropy_curve(profile, "liveliness").axes[0].get_ylabel() == (
        "liveliness (units of output)"
    )
    page = profile.report(tmp_path / "r.html").read_text()
    for words in ("How far from 0 the outputs are.", "It says little.", "The liveliest layer is h.",
                  "Peak <code>liveliness_peak</code>", "'liveliness'"):  # fmt: skip
        assert words in page.replace("&#39;", "'")


def test_in_the_logs_of_fit_and_in_tensorboard(model, random, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    x, y = data(random)
    monitor = EntropyMonitor(measures="liveliness", log_dir=tmp_path)
    history = model.fit(
        x, y, validation_data=(x, y), epochs=1, verbose=0, callbacks=[monitor]
    ).history
    (profile,) = monitor.profiles
    assert history["val_h_liveliness"] == [profile["liveliness"].mean[0]]
    assert history["val_h_liveliness_peak"] == [profile["liveliness"].whole["peak"][0]]
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    tags = set(events.Tags()["tensors"])
    assert {"liveliness/h", "liveliness_peak/h", "liveliness_by_class/h/3"} <= tags
    assert {f"liveliness/{panel.kind}" for panel in Liveliness.panels} <= tags


def test_on_the_command_line(model, tmp_path):
    spec = DatasetSpec("digits", split="validation", shape=(64,))
    path = save_model(model, tmp_path / "model", dataset=spec)
    code, out, err = call(
        "analyze", "--model", path, "--nobaseline", "--output", tmp_path / "result",
        "--measures=liveliness:power=2.0:samples=50", "--report", tmp_path / "r.html",
    )  # fmt: skip
    assert code == 0, err
    assert "Liveliness (units of output)" in out
    assert "The liveliest layer is h." in out
    profile = EntropyProfile.load(tmp_path / "result" / "profile.json")
    assert list(profile.results) == ["activation_entropy", "liveliness"]
    assert profile.measures["liveliness"].options == {"power": 2.0, "samples": 50}
    code, _, err = call("analyze", "--model", path, "--measures=liveliness:speed=2")
    assert (code, "liveliness has the options ('power', 'samples', 'name')" in err) == (2, True)
