"""The search on networks trained on real digits; criteria against what they say they compute."""

import dataclasses
import functools
import warnings

import keras
import numpy as np
import pytest

from keras_layer_entropy import analyze_model, prune_model, remove_layer
from keras_layer_entropy.datasets import DatasetSpec, load_dataset
from keras_layer_entropy.pruning import PruningOptions, plan
from keras_layer_entropy.pruning.blocks import removable_blocks
from keras_layer_entropy.pruning.criteria import CRITERIA, Situation, rank
from keras_layer_entropy.pruning.search import MEASURES

# All of it is calls of Keras; on other backends the example of `prune_model` runs it.
pytestmark = pytest.mark.tensorflow


def digits(split):
    return load_dataset(DatasetSpec("digits", split=split, shape=(64,))).arrays


def network(metrics=("accuracy",), optimizer=None):
    hidden = [keras.layers.Dense(n, "relu", name=f"h{n}") for n in (48, 40, 32, 24)]
    model = keras.Sequential([keras.Input((64,)), *hidden])
    model.add(keras.layers.Dense(10, "softmax", name="out"))
    model.compile(
        optimizer or keras.optimizers.Adam(3e-3),
        "sparse_categorical_crossentropy",
        metrics=list(metrics),
    )
    return model


@functools.cache
def trained_weights():
    model = network()
    model.fit(*digits("train"), epochs=8, batch_size=64, verbose=0)
    return model.get_weights()


@pytest.fixture
def trained():
    model = network()
    model.set_weights(trained_weights())
    return model


def accuracy(model, data):
    x, y = data
    return np.mean(np.argmax(keras.ops.convert_to_numpy(model(x)), axis=-1) == y)


def prune(model, **options):
    return prune_model(model, digits("train"), digits("validation"), **options)


def test_layers_go_and_accuracy_stays(trained):
    weights = trained.get_weights()
    seen = []
    result = prune(
        trained,
        criterion="linearity",
        epochs=2,
        max_accuracy_drop=0.02,
        on_step=lambda model, step: seen.append((model.count_params(), step)),
    )
    assert result.removed
    limit = accuracy(trained, digits("validation")) - 0.02
    assert accuracy(result.model, digits("validation")) >= limit
    names = [layer.name for layer in result.model.layers]
    assert names == [n.name for n in trained.layers if n.name not in result.removed]
    for value, after in zip(weights, trained.get_weights(), strict=True):
        np.testing.assert_array_equal(value, after)

    before = accuracy(trained, digits("validation"))
    for (parameters, step), (_, same) in zip(
        seen, [(0, step) for step in result.steps], strict=True
    ):
        assert step is same
        assert step.accuracy_before == pytest.approx(before, abs=1e-6)
        assert step.kept == (step.accuracy_retrained >= limit - 1e-9)
        # the best epoch is kept, and none at all is one of them
        assert step.accuracy_retrained >= step.accuracy_removed - 1e-9
        if step.kept:
            before = step.accuracy_retrained
            assert parameters == step.parameters
    assert accuracy(result.model, digits("validation")) == pytest.approx(before, abs=1e-6)
    assert set(result.reasons) == {"out", *names} - {"input_layer"}
    assert result.reasons["out"] == "it is an output layer"
    assert result.before.layers == tuple(layer.name for layer in trained.layers)
    assert result.after.layers == tuple(names)
    assert result.after.baseline is not None
    result.model.fit(*digits("train"), verbose=0)


def test_what_costs_too_much_is_rolled_back(trained):
    with pytest.warns(UserWarning, match="start anew"):
        result = prune(trained, criterion="last", epochs=0, refit=False, max_accuracy_drop=0.01)
    assert result.removed == ()
    assert [step.layer for step in result.steps] == ["h24", "h32", "h40", "h48"]
    assert all(step.residual is None for step in result.steps)
    np.testing.assert_allclose(
        result.model(digits("test")[0]), trained(digits("test")[0]), atol=1e-6
    )
    for step in result.steps:
        assert "without it accuracy is" in result.reasons[step.layer]


def test_limits_on_what_may_go(trained):
    result = prune(
        trained, criterion="last", epochs=0, max_accuracy_drop=1.0, max_removals=1, keep=["h24"]
    )
    assert result.removed == ("h32",)
    assert result.reasons["h24"] == "it is to be kept"
    assert result.reasons["h48"] == "max_removals=1 is reached"
    result = prune(trained, criterion="last", epochs=0, max_accuracy_drop=1.0, layers="h40")
    assert result.removed == ("h40",)


def test_a_search_goes_on_where_it_was_interrupted(trained):
    options = dict(criterion="linearity", epochs=1, max_accuracy_drop=1.0, max_removals=2)
    whole = prune(trained, **options)
    left = []

    class StopError(Exception):
        pass

    def interrupt(model, step):
        left.append((model, step))
        raise StopError

    with pytest.raises(StopError):
        prune(trained, on_step=interrupt, **options)
    resumed = prune(trained, resume=(left[-1][0], [step for _, step in left]), **options)
    assert resumed.removed == whole.removed
    # the same seeds and optimizer state; sums of several threads in any order
    assert resumed.steps[-1].accuracy_retrained == pytest.approx(
        whole.steps[-1].accuracy_retrained, abs=0.02
    )


def test_nothing_flat_nothing_done(trained):
    result = prune(trained, tolerance=-1.0, epochs=1)
    assert result.steps == ()
    assert result.reasons["h40"] == "the criterion does not choose it"


def test_a_plan_changes_nothing(trained):
    candidates, reasons = plan(
        trained, digits("train"), digits("validation"), criterion="linearity", keep=("h40",)
    )
    assert sorted(c.layer for c in candidates) == ["h24", "h32", "h48"]
    assert "linear in its input but for" in candidates[0].reason
    assert reasons["h40"] == "it is to be kept"


def situation(model, **changes):
    validation = digits("validation")
    return dataclasses.replace(
        Situation(
            student=model,
            teacher=model,
            blocks=removable_blocks(model)[0],
            profile=analyze_model(model, validation, measures=MEASURES, verbose=0),
            train_data=digits("train"),
            validation_data=validation,
        ),
        **changes,
    )


def test_entropy_gradient_takes_the_flattest_first(trained):
    now = situation(trained, tolerance=0.5)
    gradient = dict(zip(now.profile.layers, now.profile.gradient, strict=True))
    expected = sorted((g, p) for p, g in gradient.items() if g < 0.5 and p in now.blocks)
    assert [(c.score, c.layer) for c in rank("entropy_gradient", now)] == expected
    assert "h48" not in [c.layer for c in rank("entropy_gradient", situation(trained))]


def test_state_entropy_takes_the_lowest_first(trained):
    x, y = digits("validation")
    layers = [layer.output for layer in trained.layers]
    outputs = keras.Model(trained.inputs, layers).predict(x, verbose=0)
    expected = []
    for layer, output in zip(trained.layers[:-1], outputs[:-1], strict=True):
        shares = np.array([(output[y == c] > 0).mean(axis=0) for c in range(10)])
        with np.errstate(divide="ignore", invalid="ignore"):
            bits = -shares * np.log2(shares) - (1 - shares) * np.log2(1 - shares)
        expected.append((np.nan_to_num(bits).mean(), layer.name))
    found = [(c.score, c.layer) for c in rank("state_entropy", situation(trained))]
    assert [name for _, name in found] == [name for _, name in sorted(expected)]
    # float32 shares
    np.testing.assert_allclose([s for s, _ in found], [s for s, _ in sorted(expected)], atol=1e-5)


def test_linearity_is_the_residual_of_the_regression(trained):
    x = digits("train")[0]
    outputs = keras.Model(trained.inputs, [layer.output for layer in trained.layers])
    given = [x, *outputs.predict(x, verbose=0)]
    expected = {}
    for i, layer in enumerate(trained.layers[:-1]):
        kernel, bias = trained.layers[i + 1].get_weights()
        z = given[i + 1].astype("float64") @ kernel + bias
        columns = np.hstack([given[i], np.ones((len(x), 1))]).astype("float64")
        rest = z - columns @ np.linalg.lstsq(columns, z, rcond=None)[0]
        expected[layer.name] = (rest**2).sum() / ((z - z.mean(axis=0)) ** 2).sum()
    found = {c.layer: c.score for c in rank("linearity", situation(trained))}
    assert list(found) == sorted(expected, key=expected.get)
    for name, score in found.items():  # float32 activations
        assert score == pytest.approx(expected[name], rel=1e-3, abs=1e-6)


def test_loss_gap_is_the_rise_of_the_loss(trained):
    validation = digits("validation")
    now = trained.evaluate(*validation, verbose=0)[0]
    for candidate in rank("loss_gap", situation(trained)):
        smaller = remove_layer(trained, candidate.layer, digits("train"))
        gap = smaller.evaluate(*validation, verbose=0)[0] - now
        assert candidate.score == pytest.approx(gap, abs=1e-4)  # two regressions in float


def test_random_is_reproducible_and_last_is_deepest(trained):
    orders = [[c.layer for c in rank("random", situation(trained, seed=s))] for s in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert [c.layer for c in rank("last", situation(trained))] == ["h24", "h32", "h40", "h48"]


def test_no_candidates_no_ranking(trained):
    nothing = situation(trained, blocks={})
    for criterion in CRITERIA:
        assert rank(criterion, nothing) == [], criterion


def test_a_model_without_accuracy_gets_one_for_the_search_only(trained):
    model = network(metrics=())
    model.set_weights(trained.get_weights())
    result = prune(model, criterion="last", epochs=1, max_removals=1, max_accuracy_drop=1.0)
    assert result.steps[0].accuracy_before == pytest.approx(
        accuracy(trained, digits("validation")), abs=1e-6
    )
    logs = result.model.evaluate(*digits("validation"), verbose=0, return_dict=True)
    assert list(logs) == ["loss"]


def test_the_learning_rate_replaces_a_schedule():
    schedule = keras.optimizers.schedules.ExponentialDecay(1e-2, 100, 0.5)
    model = network(optimizer=keras.optimizers.Adam(schedule))
    rates = []

    class Spy(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            rates.append(float(self.model.optimizer.learning_rate))

    options = dict(criterion="last", epochs=1, max_removals=1, max_accuracy_drop=1.0)
    result = prune(model, learning_rate=1e-4, callbacks=[Spy()], **options)
    assert rates == [pytest.approx(1e-4)]
    assert (
        result.model.optimizer.get_config()["learning_rate"]
        == (model.optimizer.get_config()["learning_rate"])
    )


def test_linearity_looks_past_what_lies_between():
    """Nothing is lost where a consumer is given the block's input anyway."""
    inputs = keras.Input((64,))
    block = keras.layers.Dense(6, "relu", kernel_initializer="zeros", name="b")(inputs)
    joined = keras.layers.Concatenate()([block, inputs])
    model = keras.Model(inputs, keras.layers.Dense(10, "softmax", name="out")(joined))
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    (candidate,) = rank("linearity", situation(model))
    assert candidate.layer == "b"
    assert candidate.score < 1e-6


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.head = keras.layers.Dense(10, "softmax")

    def call(self, x):
        return self.head(x)


def broken():
    model = network()
    model.get_layer("h40").kernel.assign(np.full((48, 40), np.nan, "float32"))
    return model


def uncompiled():
    return keras.Sequential([keras.Input((64,)), keras.layers.Dense(8), keras.layers.Dense(10)])


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (network, dict(criterion="best"), "criterion='best'; expected one of .*linearity"),
        (network, dict(epochs=-1), "epochs=-1; expected"),
        (network, dict(max_accuracy_drop=2.0), "max_accuracy_drop=2.0"),
        (network, dict(learning_rate=0.0), "learning_rate=0.0; expected a positive"),
        (network, dict(max_removals=0), "max_removals=0"),
        (network, dict(tolerance=float("nan")), "tolerance=nan"),
        (network, dict(layers=["h99"]), "no layer 'h99'"),
        (network, dict(keep=["h99"]), "no layer 'h99'"),
        (broken, {}, "'h40' hold NaN .*cannot be pruned"),
        (uncompiled, {}, "not compiled.*compile it"),
        (Subclassed, {}, "subclassed model .*analyze_model works"),
    ],
)
def test_errors(make, options, words):
    with pytest.raises(ValueError, match=f"(?s){words}"):
        prune(make(), **options)


def test_errors_about_data():
    x, y = digits("validation")
    model = network()
    with (
        pytest.warns(UserWarning, match="No sample belongs to 9 of 10"),
        pytest.raises(ValueError, match="one class only"),
    ):
        prune_model(model, (x, y), (x, np.zeros_like(y)))
    with warnings.catch_warnings():  # TensorFlow's loss refuses such labels, JAX's does not
        warnings.filterwarnings("ignore", ".*loss and metrics are left out")
        with pytest.raises(ValueError, match=r"labels are no class 0\.\.9"):
            prune_model(model, (x, y), (x, y + 5))
    with pytest.raises(ValueError, match="read only once"):
        prune_model(model, iter([(x, y)]), (x, y))
    with pytest.raises(ValueError, match="no samples"):
        prune_model(model, (x, y), (x[:0], y[:0]))


def test_options_are_checked_when_they_are_made():
    assert PruningOptions().criterion == "entropy_gradient"
    with pytest.raises(ValueError, match="batch_size=0"):
        PruningOptions(batch_size=0)


def test_inputs_of_every_structure(random):
    """Arrays are shuffled in batches of their own, whatever they are kept in."""
    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    x = keras.layers.Concatenate()([a, b])
    for name in ("h1", "h2"):
        x = keras.layers.Dense(8, "relu", name=name)(x)
    model = keras.Model([a, b], keras.layers.Dense(2, "softmax", name="out")(x))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    first, second = random.normal(size=(60, 4)), random.normal(size=(60, 3))
    y, weight = np.arange(60) % 2, np.ones(60)
    for data in (
        ([first, second], y),
        ([first, second], y, weight),
        ({"a": first, "b": second}, y),
    ):
        result = prune_model(
            model, data, data, criterion="last", epochs=1, max_removals=1, max_accuracy_drop=1.0
        )
        assert result.removed == ("h2",)
