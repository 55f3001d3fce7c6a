"""The example of single kernels, run for real on small data."""

import importlib
import json

import keras
import numpy as np
import pytest

from keras_layer_entropy import UnitProfile

pytestmark = pytest.mark.tensorflow


def profile(epoch, labels, pairwise=0.0):
    """Three units; `pairwise` is what the first two share of their 2 bits."""
    shared = np.diag([2.0, 2.0, 2.0])
    shared[0, 1] = shared[1, 0] = pairwise
    zeros = np.zeros((3, 1))
    return UnitProfile(
        layer="conv_1", classes=("a",), count=[9], information_labels=labels, pairwise=shared,
        feature_entropy=zeros, epoch=epoch,
    )  # fmt: skip


@pytest.mark.slow
def test_run(tmp_path):
    config = importlib.import_module("configs.kernels").get_config("smoke")
    kernels = importlib.import_module("kernels")
    records = kernels.run(config, tmp_path)
    assert [(r["layer"], r["choice"]) for r in records] == [
        (layer, choice) for layer in ("conv_1", "conv_2") for choice in kernels.CHOICES
    ]
    for record in records:
        units = {"conv_1": 6, "conv_2": 16}[record["layer"]]
        assert len(record["labels"]) == len(record["labels_untrained"]) == units
        if record["choice"] == "least information":
            least = np.argsort(record["labels"])[: units // 4]
            assert sorted(record["kernels"]) == sorted(least)
        assert len(record["without_random"]) == (config.draws if record["kernels"] else 0)
        if not record["kernels"]:
            assert record["without"] == record["accuracy"]
    names = {path.name for path in tmp_path.iterdir()}
    kinds = ("information", "classes", "ranks", "pairs", "ranking")
    assert names == {
        "results.md",
        "results.json",
        *("feature_entropy_depth.png", "feature_entropy_epochs.png"),
        *(f"conv_{i}_{kind}.png" for i in (1, 2) for kind in kinds),
    }
    assert json.loads((tmp_path / "results.json").read_text()) == records
    text = (tmp_path / "results.md").read_text()
    assert f"{np.mean(records[0]['labels']):.3f}" in text
    assert f"{records[0]['accuracy']:.4f}" in text


def test_flags_know_the_epochs_of_training_alone():
    chosen = importlib.import_module("kernels").chosen
    # Unit 2 tells little after both epochs; what it told by chance before does not count.
    history = [
        profile(-1, [0.1, 0.1, 0.9]), profile(0, [0.5, 0.5, 0.0]), profile(1, [1.0, 0.9, 0.05], 1.9)
    ]  # fmt: skip
    found = {choice: kernels.tolist() for choice, kernels in chosen(history).items()}
    assert found["redundant"] == [1]
    assert found["less effective"] == found["least information"] == [2]
    assert found["highest feature entropy"] == [0]  # all are the same: the first


def test_kernels_are_zeroed_for_a_while(random):
    kernels = importlib.import_module("kernels")
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Conv2D(3, 3, activation="relu", name="conv_1"),
         keras.layers.Flatten(), keras.layers.Dense(2)]
    )  # fmt: skip
    model.get_layer("conv_1").bias.assign([1.0, 1.0, 1.0])
    before = model.get_weights()
    x = random.normal(size=(20, 4, 4, 1)).astype("float32")
    layer = model.get_layer("conv_1")
    whole = np.asarray(layer(x))
    with kernels.zeroed(layer, np.array([0, 2])):
        without = np.asarray(layer(x))
        # The model that predicts is the one that was changed.
        y = model.predict(x, verbose=0).argmax(axis=-1)
    assert not without[..., [0, 2]].any()
    np.testing.assert_array_equal(without[..., 1], whole[..., 1])
    for found, want in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, want)
    assert kernels.accuracy_without(model, layer, np.array([0, 2]), (x, y)) == 1.0


def test_as_many_random_kernels_are_compared(random):
    kernels = importlib.import_module("kernels")
    config = importlib.import_module("configs.kernels").get_config("smoke")
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Conv2D(3, 3, name="conv_1"), keras.layers.Flatten(),
         keras.layers.Dense(2)]
    )  # fmt: skip
    test = random.normal(size=(20, 4, 4, 1)).astype("float32"), np.arange(20) % 2
    history = [profile(-1, [0.1] * 3), profile(0, [1.0, 0.9, 0.8], pairwise=1.9)]
    redundant, little, *_ = kernels.check(config, model, test, {"conv_1": history}, seed=0)
    assert redundant["kernels"] == [1]
    layer = model.get_layer("conv_1")
    single = [kernels.accuracy_without(model, layer, [unit], test) for unit in range(3)]
    assert redundant["without"] == single[1]
    assert len(redundant["without_random"]) == config.draws
    assert set(redundant["without_random"]) <= set(single)
    assert little["kernels"] == little["without_random"] == []
    text = kernels.tables(config, [redundant, little])
    assert "| 0 | conv_1 | redundant | 1 of 3 |" in text
