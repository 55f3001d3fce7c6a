"""Linear probes against scikit-learn's ridge classifier, on splits that the test makes itself."""

import dataclasses

import keras
import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from keras_layer_entropy import EntropyProfile, analyze_model, plots, report
from keras_layer_entropy.measures import LinearProbe, MeasureResult
from keras_layer_entropy.measures.kept_samples import KeptSamples
from keras_layer_entropy.measures.linear_probe import fit_probe, projected
from keras_layer_entropy.measures.measure import LayerInfo, Panel


def kept_order(samples, most):
    """The numbers of the samples that a pass keeps, in their order."""
    statistic = KeptSamples([1], most)
    statistic.update_state([np.arange(samples)[:, None]], np.ones(samples, bool))
    return statistic.result()[0][:, 0].astype(int)


def problem(random, samples=600, classes=3, width=8):
    """Classes that lie in part over one another."""
    y = random.integers(0, classes, samples)
    x = random.normal(size=(samples, width)) * np.logspace(0, 1, width)
    x += 0.8 * random.normal(size=(classes, width))[y]
    return x.astype("float32"), y


def mlp(classes=3, **last):
    return keras.Sequential([
        keras.layers.Dense(20, "relu", name="h"), keras.layers.Dense(classes, name="out", **last)
    ])  # fmt: skip


def sklearn_probe(x, y, ridge):
    return make_pipeline(StandardScaler(), RidgeClassifier(alpha=ridge * len(x))).fit(x, y)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(("samples", "left_out"), [(100, 100), (5000, 300)])
def test_it_is_scikit_learns_ridge_classifier(random, classes, samples, left_out):
    """The same split and ridge give the same samples right, all of them: two of 600 features' sums
    that differ in the seventh digit move no sample over a border here."""
    x, y = problem(random, classes=classes)
    model = mlp(classes)
    profile = analyze_model(model, (x, y), measures=LinearProbe(samples), batch_size=64, verbose=0)
    held = kept_order(600, samples)[:left_out]
    fitted = np.setdiff1d(np.arange(600), held)
    features = keras.ops.convert_to_numpy(model.layers[0](x)).astype(np.float64)
    found = profile["linear_probe"]
    ridge = found.details["h"]["ridge"][0]
    expected = sklearn_probe(features[fitted], y[fitted], ridge).predict(features[held])
    right = expected == y[held]
    assert found.whole["accuracy"][0] == pytest.approx(right.mean())
    assert found.whole["accuracy_error"][0] == pytest.approx(right.std() / left_out**0.5)
    recall = [right[y[held] == c].mean() for c in range(classes)]
    np.testing.assert_allclose(found.per_class[0], recall)
    assert 0.35 < right.mean() < 0.95  # the problem is neither trivial nor hopeless


def test_gains_are_those_of_the_same_samples(random):
    """Three layers; the standard error of a paired difference written out in NumPy."""
    x, y = problem(random)
    dense = keras.layers.Dense
    model = keras.Sequential([dense(3, "relu"), dense(30, "relu"), dense(2)])
    profile = analyze_model(model, (x, y), measures=LinearProbe(5000), num_classes=3, verbose=0)
    held = kept_order(600, 5000)[:300]
    fitted = np.setdiff1d(np.arange(600), held)
    found, values, right = profile["linear_probe"], x, []
    for layer, details in zip(model.layers, found.details.values(), strict=True):
        values = keras.ops.convert_to_numpy(layer(values))
        probe = sklearn_probe(values[fitted].astype(float), y[fitted], details["ridge"][0])
        right.append(probe.predict(values[held]) == y[held])
    right = np.array(right, float)
    accuracy = right.mean(axis=1)
    np.testing.assert_allclose(found.whole["accuracy"], accuracy)
    np.testing.assert_allclose(found.whole["gain"], [np.nan, *np.diff(accuracy)], atol=1e-12)
    later = [max(accuracy[1:]), accuracy[2]] - accuracy[:2]
    np.testing.assert_allclose(found.whole["later_gain"], [*later, np.nan], atol=1e-12)
    errors = np.diff(right, axis=0).std(axis=1) / 300**0.5
    np.testing.assert_allclose(found.whole["gain_error"], [np.nan, *errors])
    best = 1 + np.argmax(accuracy[1:])
    error = (right[best] - right[0]).std() / 300**0.5
    assert found.whole["later_gain_error"][0] == pytest.approx(error)


def test_labels_that_say_nothing_are_read_by_chance(random):
    """Of 1,000 samples, a share of 1/4 has a standard error of 0.014: 4 of them allowed."""
    x, y = random.normal(size=(2000, 6)).astype("float32"), random.integers(0, 4, 2000)
    found = analyze_model(mlp(4), (x, y), measures="linear_probe", verbose=0)["linear_probe"]
    np.testing.assert_allclose(found.whole["accuracy"], 0.25, atol=4 * 0.014)
    np.testing.assert_allclose(found.shuffled["accuracy"], 0.25, atol=4 * 0.02)


def test_shuffled_labels_know_how_frequent_classes_are(random):
    """Nine of ten samples are of one class, and a probe that knows no more is right in nine."""
    y = (random.uniform(size=2000) > 0.9).astype(int)
    x = random.normal(size=(2000, 3)).astype("float32") + 3 * y[:, None]
    found = analyze_model(mlp(2), (x, y), measures="linear_probe", verbose=0)["linear_probe"]
    np.testing.assert_allclose(found.shuffled["accuracy"], 0.9, atol=0.04)
    assert found.whole["accuracy"][0] > 0.97


def test_shuffled_labels_are_scored_on_samples_that_were_not_fitted(random):
    """Those left out, in two halves, each sample with the label of the one before."""
    x, y = problem(random)
    model = mlp()
    profile = analyze_model(model, (x, y), measures=LinearProbe(5000), verbose=0)
    held = kept_order(600, 5000)[:300]
    features, labels = keras.ops.convert_to_numpy(model.layers[0](x))[held], np.roll(y[held], 1)
    columns = np.hstack([features, np.ones((300, 1)), np.eye(3)[labels]])[:150]
    right = fit_probe(columns.T @ columns, 20)(features[150:]) == labels[150:]
    found = profile["linear_probe"].shuffled["accuracy"][0]
    assert found == pytest.approx(right.mean())


def test_the_size_of_the_state():
    """A float64 matrix of 1,024 features, a constant and 10 classes."""
    layer = LayerInfo("wide", 3000, {"output": (None, 3000)})
    state = LinearProbe().new_state(layer, 10)
    assert state.variables[0].shape == (1035, 1035)
    assert LinearProbe().state_size(layer, 10) == 8 * 1035**2


@pytest.mark.tensorflow  # training
def test_the_probe_of_the_output_is_as_good_as_the_model(random):
    """On the samples that it was trained on, as it should be where outputs can be read linearly."""
    x, y = problem(random)
    model = mlp(activation="softmax")
    model.compile(
        keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    model.fit(x, y, epochs=30, verbose=0)
    profile = analyze_model(model, (x, y), measures=LinearProbe(5000), verbose=0)
    # 300 of the 600 samples are looked at: their share right may be off by two standard errors.
    found = profile["linear_probe"].whole
    assert found["accuracy"][1] >= (
        profile.metrics["accuracy"] - 0.01 - 2 * found["accuracy_error"][1]
    )


def test_weights_count_but_not_their_scale(random):
    """Weights of 7 are as none; what weighs nothing is not there; the rest as copies would."""
    x, y = problem(random)
    model = mlp()
    plain, same = (
        analyze_model(model, data, measures="linear_probe", verbose=0)["linear_probe"]
        for data in ((x, y), (x, y, np.full(600, 7.0)))
    )
    # Weights are summed in float32.
    np.testing.assert_allclose(same.details["h"]["ridge"], plain.details["h"]["ridge"])
    np.testing.assert_allclose(same.per_class, plain.per_class, atol=1e-6)
    bad = np.vstack([x, np.full((50, 8), 100.0)]).astype("float32")
    weight = np.repeat([1.0, 0.0], [600, 50])
    data = (bad, np.append(y, np.zeros(50, int)), weight)
    without = analyze_model(model, data, measures="linear_probe", verbose=0)["linear_probe"]
    np.testing.assert_allclose(without.per_class, plain.per_class, atol=1e-6)

    weight = np.where(y == 0, 3.0, 1.0)
    held = kept_order(600, 5000)[:300]
    found = analyze_model(model, (x, y, weight), measures=LinearProbe(5000), verbose=0)
    fitted = np.setdiff1d(np.arange(600), held)
    features = keras.ops.convert_to_numpy(model.layers[0](x)).astype(np.float64)
    copies = np.repeat(features[fitted], weight[fitted].astype(int), axis=0)
    labels = np.repeat(y[fitted], weight[fitted].astype(int))
    ridge = found["linear_probe"].details["h"]["ridge"][0]
    right = sklearn_probe(copies, labels, ridge).predict(features[held]) == y[held]
    expected = np.average(right, weights=weight[held])
    assert found["linear_probe"].whole["accuracy"][0] == pytest.approx(expected, abs=1e-6)


def test_samples_of_several_classes(random):
    """Each is right where the probe's class is one of its own."""
    x = random.normal(size=(400, 6)).astype("float32")
    y = (x[:, :3] > 0).astype("float32")
    model = mlp(activation="sigmoid")
    profile = analyze_model(model, (x, y), measures=LinearProbe(5000), num_classes=3, verbose=0)
    held = kept_order(int((y.sum(axis=1) > 0).sum()), 5000)
    found = profile["linear_probe"]
    assert found.whole["accuracy"][0] > 0.85 > found.shuffled["accuracy"][0]
    assert len(held) > 300


def test_wide_layers_are_projected_and_it_is_said(random):
    """A projection to 50 of 20 x 30 values keeps what every third of them tells, in part."""
    y = random.integers(0, 3, 1200)
    x = random.normal(size=(1200, 20)).astype("float32")
    x[:, ::3] += 1.5 * y[:, None]
    model = keras.Sequential([
        keras.layers.Reshape((20, 1)), keras.layers.Dense(30, name="wide"),
        keras.layers.Flatten(), keras.layers.Dense(3, name="out"),
    ])  # fmt: skip
    first, other = (
        analyze_model(
            model, (x, y), measures=["activation_entropy", LinearProbe(features=50, seed=seed)],
            verbose=0,
        )
        for seed in (0, 1)
    )  # fmt: skip
    found = first["linear_probe"]
    assert found.details["wide"]["features"].tolist() == [50, 600]
    assert found.details["out"]["features"].tolist() == [3, 3]
    assert found.whole["accuracy"][0] > 0.65
    assert not np.array_equal(found.per_class[0], other["linear_probe"].per_class[0])
    words = "Of wide (600 values) probes saw a random projection to 50."
    assert words in report.summary(first)


def test_a_projection_keeps_inner_products_on_average(random):
    """Of 400 projections: their mean is off by a 20th of one's deviation, 4 of these allowed."""
    x, y = random.normal(size=(2, 100))
    found = []
    for seed in range(400):
        one, other = np.asarray(projected(np.stack([x, y]).astype("float32"), 30, seed), float)
        found.append(one @ other)
    assert abs(np.mean(found) - x @ y) < 4 * np.std(found) / 20
    # Every feature goes to one place, with one sign, again and again.
    parts = np.asarray(projected(np.eye(100, dtype="float32"), 30))
    np.testing.assert_array_equal(np.abs(parts).sum(axis=1), 1.0)
    assert (parts.sum(axis=1) < 0).sum() in range(30, 71)


def test_values_that_are_not_finite_leave_the_layer_unknown(random):
    x, y = problem(random)
    x[5] = np.nan  # (some processors' relu makes 0 of it)
    model = keras.Sequential([keras.layers.Dense(9, "tanh"), keras.layers.Dense(3)])
    with pytest.warns(UserWarning, match="NaN or infinite activations for class"):
        found = analyze_model(model, (x, y), measures="linear_probe", verbose=0)["linear_probe"]
    assert np.isnan(found.per_class).all()
    assert np.isnan(found.whole["accuracy"]).all()
    assert found.details == {}


def test_too_few_samples_are_unknown(random):
    x, y = problem(random, samples=7)
    with pytest.warns(UserWarning, match="linear_probe of class"):
        found = analyze_model(mlp(), (x, y), measures="linear_probe", verbose=0)["linear_probe"]
    assert np.isnan(found.whole["accuracy"]).all()


def test_sequences_count_where_they_are_not_masked(random):
    """What stands at masked steps is as zeros."""
    y = random.integers(0, 2, 400)
    ids = random.integers(1, 5, (400, 6))
    ids[:, 0] = 1 + y
    ids[:, 4:] = 0
    model = keras.Sequential([
        keras.layers.Embedding(5, 4, mask_zero=True), keras.layers.Dense(5, name="steps"),
        keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(2, name="out"),
    ])  # fmt: skip
    found = analyze_model(model, (ids, y), measures="linear_probe", verbose=0)["linear_probe"]
    assert found.details["steps"]["features"].tolist() == [30, 30]
    assert found.whole["accuracy"][0] == pytest.approx(1.0, abs=1e-12)  # a mean of shares


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 3}, "samples=3 of linear_probe; expected an int of at least 4"),
        ({"features": 0}, "features=0 of linear_probe; expected a positive int"),
        ({"seed": -1}, "seed=-1 of linear_probe; expected an int that is not negative"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        LinearProbe(**options)


def test_labels_are_asked_for(random):
    with pytest.raises(ValueError, match="linear_probe says of the classes needs labels"):
        analyze_model(mlp(), problem(random)[0], measures="linear_probe", verbose=0)


def test_the_ridge_is_where_it_should_be(random):
    """More features than samples: the ridge that is chosen is far better than the smallest."""
    x = np.maximum(random.normal(size=(400, 30)) @ random.normal(size=(30, 190)), 0)
    y = np.argmax(x[:, :4] + 2.0 * random.normal(size=(400, 4)), axis=1)
    columns = np.hstack([x[:200], np.ones((200, 1)), np.eye(4)[y[:200]]])
    gram = columns.T @ columns
    chosen, smallest = (
        np.mean(fit_probe(gram, 190, ridges)(x[200:]) == y[200:])
        for ridges in (10.0 ** np.arange(-6, 3), np.array([1e-6]))
    )
    assert chosen > smallest + 0.05


def profile_of(accuracy, gain, later, error=0.01, entropy=(0.9, 0.8, 0.7, 0.0)):
    """A profile of four layers with such numbers."""
    nan = np.nan
    whole = {
        "accuracy": accuracy, "accuracy_error": [0.01] * 4,
        "gain": [nan, *gain], "gain_error": [nan, *[error] * 3],
        "later_gain": [*later, nan], "later_gain_error": [*[error] * 3, nan],
    }  # fmt: skip
    result = MeasureResult(np.tile(accuracy, (2, 1)).T, whole, {"accuracy": [0.1] * 4})
    return EntropyProfile(
        layers=("a", "b", "c", "out"), widths=(8, 8, 8, 2), is_output=(False,) * 3 + (True,),
        classes=("x", "y"), count=[50, 50],
        results={"activation_entropy": np.tile(entropy, (2, 1)).T, "linear_probe": result},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("profile", "sentence"),
    [
        # It rises up to b; what is less than two standard errors is not said.
        (
            profile_of([0.5, 0.8, 0.81, 0.81], [0.3, 0.01, 0.0], [0.31, 0.01, 0.0]),
            ("A linear probe reads 80.0% of held-out samples right from b, and from no later layer "
            "more, as far as these samples tell. Entropy still falls over c, where a probe gains "
            "nothing."),
        ),
        # It rises to the end.
        (
            profile_of([0.5, 0.6, 0.7, 0.8], [0.1, 0.1, 0.1], [0.3, 0.2, 0.1]),
            ("A linear probe reads 80.0% of held-out samples right from out, the last layer, and "
            "50.0% from a."),
        ),
        # Entropy would let b go, which the probe needs.
        (
            profile_of(
                [0.5, 0.6, 0.6, 0.6], [0.1, 0.0, 0.0], [0.1, 0.0, 0.0], entropy=(0.9, 0.9, 0.9, 0)
            ),
            ("A linear probe reads 60.0% of held-out samples right from b, and from no later layer "
            "more, as far as these samples tell. Entropy does not fall over b (+10.0%), but the "
            "share that a probe has right rises there: look twice before taking that out."),
        ),
        # The gain over c alone is not beyond its error, but the one over b and c is: it is needed.
        (
            profile_of([0.5, 0.8, 0.815, 0.83], [0.3, 0.015, 0.015], [0.33, 0.03, 0.015]),
            (
                "A linear probe reads 81.5% of held-out samples right from c, and from no later "
                "layer more, as far as these samples tell."
            ),
        ),
        # Twice the error is not exceeded.
        (
            profile_of([0.5, 0.6, 0.6, 0.6], [0.1, 0.0, 0.0], [0.1, 0.0, 0.0], error=0.05,
                       entropy=(0.9, 0.9, 0.9, 0)),
            ("A linear probe reads 50.0% of held-out samples right from a, and from no later layer "
            "more, as far as these samples tell."),
        ),
        # Chance is 0.1, with an error of 0.01.
        (
            profile_of([0.1, 0.11, 0.12, 0.12], [0.01, 0.01, 0.0], [0.02, 0.01, 0.0]),
            "A linear probe reads no more of the class from any layer than chance gives.",
        ),
    ],
)  # fmt: skip
def test_the_verdict(profile, sentence):
    assert LinearProbe().verdict(profile, tolerance=0.01) == sentence
    assert report.summary(profile).endswith(sentence)


def test_the_figure_shows_probe_and_entropy():
    profile = profile_of([0.5, 0.6, 0.7, 0.8], [0.1, 0.1, 0.1], [0.3, 0.2, 0.1])
    panel = Panel("beside_entropy", {"name": "accuracy"})
    assert panel == LinearProbe.panels[0]
    above, below = plots.panel(profile, "linear_probe", panel).axes
    np.testing.assert_array_equal(above.lines[0].get_ydata(), [0.5, 0.6, 0.7, 0.8])
    assert [line.get_label() for line in above.lines][1] == "accuracy, shuffled (0.10 to 0.10)"
    np.testing.assert_allclose(below.lines[0].get_ydata(), [0.9, 0.8, 0.7, 0.0])
    band = above.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((0.48, 0.82))
    # Chance is far from values that lie close together: it is left to the legend.
    close = profile_of([0.95, 0.96, 0.97, 0.98], [0.01] * 3, [0.03, 0.02, 0.01])
    above, _ = plots.panel(close, "linear_probe", panel).axes
    assert above.get_ylim()[0] > 0.9
    with pytest.raises(ValueError, match="'linear_probe' brings no 'entropy'"):
        plots.beside_entropy(close, "linear_probe", "entropy")
    results = {"linear_probe": close["linear_probe"]}
    alone = plots.panel(dataclasses.replace(close, results=results), "linear_probe", panel)
    assert len(alone.axes) == 1
