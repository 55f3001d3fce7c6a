"""The numbers of activation health against NumPy, and its states against one another."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_layer_entropy import (
    EntropyAnalyzer,
    EntropyProfile,
    PartialAnalysis,
    analyze_model,
    plots,
)
from keras_layer_entropy.measures import ActivationHealth, effective_rank
from keras_layer_entropy.measures.health import FirstNotFinite, HealthState
from keras_layer_entropy.measures.states import joined

FUNCTIONS = ("relu", "sigmoid", "tanh", "softmax", "leaky_relu", None)


def numbers(output, before, y, function, classes):
    """What is said of a layer, in float64 from its activations, `[samples, ..., units]`."""
    flat, pre = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (output, before))
    scale = np.sqrt(np.mean(flat**2))
    silent = [np.abs(output[y == c].reshape(-1, flat.shape[-1]).astype(np.float64).mean(axis=0))
              for c in range(classes)]  # fmt: skip
    whole = {
        "dead": np.mean(np.sqrt(np.mean(flat**2, axis=0)) <= 1e-6 * scale),
        "always_on": np.nan,
        "saturated": np.nan,
        "rms": scale,
        "spread": np.sqrt(np.mean(flat.var(axis=0))),
        "effective_rank": effective_rank(
            [output[y == c].reshape(-1, flat.shape[-1]).mean(axis=0) for c in range(classes)]
        ),
        "not_finite": 0,
    }
    if function in ("relu", "leaky_relu"):
        whole["always_on"] = np.mean((pre > 0).all(axis=0))
    if function in ("sigmoid", "tanh"):
        low, high = (0, 1) if function == "sigmoid" else (-1, 1)
        near = 0.01 * (high - low)
        at_end = (flat < low + near) | (flat > high - near)
        whole["saturated"] = np.mean(at_end.mean(axis=0) >= 0.95)
    if function == "softmax":
        whole["saturated"] = float(np.mean(flat.max(axis=1) > 0.99) >= 0.95)
    return np.mean(np.array(silent) <= 1e-6 * scale, axis=1), whole


def model_of(function, bias=True):
    """A layer with units that are dead, always on and at an end, before one that is an output."""
    keras.utils.set_random_seed(0)
    hidden = layers.Dense(12, function, name="hidden")
    model = keras.Sequential([keras.Input((6,)), hidden, layers.Dense(3, name="out")])
    if bias:
        hidden.bias.assign(np.array([-200.0] * 3 + [200.0] * 2 + [0.0] * 7))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_numbers_are_those_of_numpy(function, bias, random):
    model = model_of(function, bias)
    x, y = random.normal(size=(70, 6)).astype("float32"), np.arange(70) % 3
    profile = analyze_model(model, (x, y), measures="activation_health", batch_size=16, verbose=0)
    found = profile["activation_health"]
    hidden = model.get_layer("hidden")
    before = ops.convert_to_numpy(ops.matmul(x, hidden.kernel) + hidden.bias)
    output = ops.convert_to_numpy(hidden(x))
    per_class, whole = numbers(output, before, y, function, 3)
    np.testing.assert_allclose(found.per_class[0], per_class, atol=1e-12)
    for name, value in whole.items():
        # float32 activations, summed over 70 samples less a reference.
        np.testing.assert_allclose(found.whole[name][0], value, rtol=1e-5, err_msg=name)
    assert found.details["hidden"]["on"].shape == (12,)


def test_effective_rank_has_its_closed_forms(random):
    assert effective_rank(np.eye(6)) == pytest.approx(5)  # a simplex: equal in 5 directions
    assert effective_rank(np.ones((4, 3))) == 0
    a, b = 3.0, 1.0  # two directions, of singular values a and b
    means = np.array([[a, 0], [-a, 0], [0, b], [0, -b]])
    p = np.array([a, b]) / (a + b)
    assert effective_rank(means) == pytest.approx(np.exp(-np.sum(p * np.log(p))))
    line = np.outer(random.normal(size=7), random.normal(size=5)).astype("float32")
    assert effective_rank(line) == pytest.approx(1, abs=1e-4)


def test_spread_that_is_small_beside_the_size(random):
    """Float32 sums of squares would know no spread below 3e-4 of the size."""
    values = (1 + 1e-5 * random.normal(size=(500, 4))).astype("float32")
    state = HealthState(1, 4, "tanh")
    for start in range(0, 500, 50):
        part = values[start : start + 50]
        state.update_state((part, part), np.ones((50, 1), "float32"))
    want = np.sqrt(values.astype(np.float64).var(axis=0).mean())
    assert state.found()[1]["spread"] == pytest.approx(want, rel=1e-3)


def test_masks_weights_and_positions(random):
    """Steps that are masked and samples of weight 0 do not count."""
    output = random.normal(size=(20, 5, 4)).astype("float32")
    mask, weight = random.random((20, 5)) > 0.4, (np.arange(20) % 3 > 0).astype("float32")
    state = HealthState(1, 4, None)
    state.update_state((output, output), weight[:, None], mask)
    rows = output[weight > 0][mask[weight > 0]].astype(np.float64)
    whole = state.found()[1]
    assert whole["rms"] == pytest.approx(np.sqrt(np.mean(rows**2)), rel=1e-5)
    assert whole["spread"] == pytest.approx(np.sqrt(rows.var(axis=0).mean()), rel=1e-5)


def test_parts_make_the_whole(random):
    model = model_of("relu")
    x, y = random.normal(size=(90, 6)).astype("float32") + 1, np.arange(90) % 3
    analyzer = EntropyAnalyzer(model, measures="activation_health")
    want = analyzer.analyze((x, y), verbose=0)["activation_health"]
    cuts = [(0, 40), (40, 70), (70, 90)]
    parts = [analyzer.analyze_part((x[a:b], y[a:b]), start=a, verbose=0) for a, b in cuts]
    found = analyzer.profile_of(PartialAnalysis.joined(parts))["activation_health"]
    for name, values in want.whole.items():
        # Float32 means of classes: the rank is the entropy of their differences.
        np.testing.assert_allclose(found.whole[name], values, rtol=1e-4, err_msg=name)
    np.testing.assert_array_equal(found.per_class, want.per_class)


def test_states_merge(random):
    values = (5 + random.normal(size=(60, 4))).astype("float32")
    one, *two = (HealthState(1, 4, "relu") for _ in range(3))
    ones = np.ones((30, 1), "float32")
    for part in (values[:30], values[30:]):
        one.update_state((part, part), ones)
    for state, part in zip(two, (values[:30], values[30:]), strict=True):
        state.update_state((part, part), ones)
    two[0].merge_state(two[1:])
    first, second = (FirstNotFinite(1) for _ in range(2))
    first.set_result(np.array([4]))
    first.merge_state([second])
    assert first.result().tolist() == [4]
    for name, value in one.found()[1].items():
        np.testing.assert_allclose(two[0].found()[1][name], value, rtol=1e-5, err_msg=name)


def test_the_first_batch_that_is_not_finite(random):
    model = model_of("tanh")
    x, y = random.normal(size=(64, 6)).astype("float32"), np.arange(64) % 3
    x[40, 2] = np.nan  # the third batch
    with pytest.warns(UserWarning, match="'hidden' has NaN or infinite activations for class 1:"):
        profile = analyze_model(
            model, (x, y), measures="activation_health", batch_size=16, verbose=0
        )
    whole = profile["activation_health"].whole
    assert whole["not_finite"].tolist() == [3, 3]
    assert np.isnan(whole["dead"]).all()
    (measure,) = profile.measures.values()
    said = measure.verdict(profile, 0.01)
    assert "'hidden' is the first layer with NaN or infinite activations, in batch 3" in said
    assert "Of out nothing is known" in said
    assert "unhealthy" not in said


def test_of_parts_the_first_that_is_not_finite_says_so():
    states = [FirstNotFinite(1) for _ in range(3)]
    for state, bad in zip(states, (None, 2, 1), strict=True):
        for number in (1, 2, 3):
            state.update_state([np.array([np.inf if number == bad else 0.0], "float32")])
    assert [int(state.result()[0]) for state in states] == [0, 2, 1]
    parts = [{"0/first/not_finite": state.result()} for state in states]
    assert joined(parts)["0/first/not_finite"].tolist() == [2]


def test_many_classes_are_those_of_few(random):
    """By ids, as where there are more than 64 classes, and by weights in each."""
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, "relu", name="hidden"), layers.Dense(80, name="out")]
    )
    x, y = random.normal(size=(400, 6)).astype("float32"), np.arange(400) % 80
    by_id = analyze_model(model, (x, y), measures="activation_health", verbose=0)
    one_hot = np.eye(80, dtype="float32")[y]
    by_weight = analyze_model(model, (x, one_hot), measures="activation_health", verbose=0)
    for name, values in by_weight["activation_health"].whole.items():
        found = by_id["activation_health"].whole[name]
        np.testing.assert_allclose(found, values, rtol=1e-4, err_msg=name)
    np.testing.assert_array_equal(
        by_id["activation_health"].per_class, by_weight["activation_health"].per_class
    )


def test_convolutions_come_along_and_change_no_entropy(random):
    model = keras.Sequential([
        keras.Input((8, 8, 1)), layers.Conv2D(4, 3, activation="relu", name="conv"),
        layers.Flatten(), layers.Dense(6, "relu", name="hidden"), layers.Dense(3, name="out"),
    ])  # fmt: skip
    data = random.normal(size=(40, 8, 8, 1)).astype("float32"), np.arange(40) % 3
    alone = analyze_model(model, data, verbose=0)
    both = analyze_model(
        model, data, measures=["activation_entropy", "activation_health"], verbose=0
    )
    assert both.layers == ("conv", "hidden", "out")
    np.testing.assert_allclose(both.entropy[1:], alone.entropy, atol=1e-6)
    assert np.isnan(both.entropy[0]).all()
    maps = ops.convert_to_numpy(model.get_layer("conv")(data[0])).astype(np.float64)
    assert both["activation_health"].whole["rms"][0] == pytest.approx(
        np.sqrt(np.mean(maps**2)), rel=1e-5
    )


@pytest.mark.tensorflow
def test_a_profile_keeps_it(random, tmp_path):
    data = random.normal(size=(40, 6)).astype("float32"), np.arange(40) % 3
    profile = analyze_model(model_of("relu"), data, measures="activation_health", verbose=0)
    profile.save(tmp_path / "profile.json")
    loaded = EntropyProfile.load(tmp_path / "profile.json")
    assert isinstance(loaded.measures["activation_health"], ActivationHealth)
    for name, values in profile["activation_health"].whole.items():
        np.testing.assert_array_equal(loaded["activation_health"].whole[name], values)
    figure = plots.panel(loaded, "activation_health", ActivationHealth.panels[0])
    bars = [bar.get_height() for bar in figure.axes[0].patches]
    assert max(bars) == pytest.approx(0.25)  # 3 of 12 are dead, 2 always on
