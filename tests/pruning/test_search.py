"""The search on networks trained on real digits; criteria against what they say they compute."""

import dataclasses
import functools
import json
import warnings

import keras
import numpy as np
import pytest

from keras_layer_entropy import analyze_model, load_model, prune_model, remove_layer, save_model
from keras_layer_entropy.analysis.profile import EntropyProfile
from keras_layer_entropy.datasets import DatasetSpec, load_dataset
from keras_layer_entropy.pruning import Part, Plan, Prediction, PruningOptions, plan
from keras_layer_entropy.pruning.checkpoint import Checkpoint
from keras_layer_entropy.pruning.criteria import CRITERIA, Situation, rank
from keras_layer_entropy.pruning.layer_parts import removable_layers
from keras_layer_entropy.pruning.search import MEASURES
from keras_layer_entropy.pruning.surgery import take_out
from keras_layer_entropy.pruning.training import reseed

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


def prune(model, on_step=None, resume=None, callbacks=(), **options):
    return prune_model(
        model,
        digits("train"),
        digits("validation"),
        PruningOptions(**options),
        on_step=on_step,
        resume=resume,
        callbacks=callbacks,
    )


def without_times(steps):
    return [dataclasses.replace(step, seconds=0) for step in steps]


def assert_same_weights(model, other):
    for mine, its in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(its), err_msg=mine.path)


@pytest.mark.slow
def test_layers_go_and_accuracy_stays(trained):
    weights = trained.get_weights()
    seen = []
    result = prune(
        trained,
        criterion="linearity",
        epochs=2,
        max_drop=0.02,
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
        assert step.quality_before == pytest.approx(before, abs=1e-6)
        assert step.accepted == (step.quality_retrained - step.standard_error >= limit - 1e-9)
        # the best epoch is kept, and none at all is one of them
        assert step.quality_retrained >= step.quality_removed - 1e-9
        if step.accepted:
            before = step.quality_retrained
            assert parameters == step.parameters
    assert accuracy(result.model, digits("validation")) == pytest.approx(before, abs=1e-6)
    assert set(result.reasons) == {"out", *names} - {"input_layer"}
    assert result.reasons["out"] == "it is an output layer"
    assert result.before.layers == tuple(layer.name for layer in trained.layers)
    assert result.after.layers == tuple(names)
    assert result.after.baseline is not None
    result.model.fit(*digits("train"), verbose=0)


@pytest.mark.slow
def test_what_costs_too_much_is_rolled_back(trained):
    with pytest.warns(UserWarning, match="start anew"):
        result = prune(trained, criterion="last", epochs=0, refit=False, max_drop=0.01)
    assert result.removed == ()
    assert [step.part for step in result.steps] == ["h24", "h32", "h40", "h48"]
    assert all(step.residual is None for step in result.steps)
    np.testing.assert_allclose(
        result.model(digits("test")[0]), trained(digits("test")[0]), atol=1e-6
    )
    for number, step in enumerate(result.steps, start=1):
        assert "without it accuracy is" in result.reasons[step.part]
        assert f"(step {number})" in result.reasons[step.part]


@pytest.mark.slow
def test_limits_on_what_may_go(trained):
    result = prune(trained, criterion="last", epochs=0, max_drop=1.0, max_removals=1, keep=["h24"])
    assert result.removed == ("h32",)
    assert result.reasons["h24"] == "it is to be kept"
    assert result.reasons["h48"] == "max_removals=1 is reached"
    result = prune(trained, criterion="last", epochs=0, max_drop=1.0, layers="h40")
    assert result.removed == ("h40",)


@pytest.mark.slow
def test_a_search_goes_on_where_it_was_interrupted(trained):
    options = dict(criterion="linearity", epochs=1, max_drop=1.0, max_removals=2)
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
    assert without_times(resumed.steps) == without_times(whole.steps)
    assert_same_weights(resumed.model, whole.model)


def test_nothing_flat_nothing_done(trained):
    result = prune(trained, criterion="entropy_gradient", tolerance=-1.0, epochs=1)
    assert result.steps == ()
    assert result.reasons["h40"] == "the criterion does not choose it"


def test_a_plan_changes_nothing(trained):
    found = plan(
        trained,
        digits("train"),
        digits("validation"),
        PruningOptions(criterion="linearity", keep=("h40",)),
    )
    assert sorted(part.path for part in found.parts) == ["h24", "h32", "h48"]
    assert "linear in its input but for" in found.predictions[0].words
    assert found.reasons["h40"] == "it is to be kept"
    assert set(found.reasons) == {"h40", "out"}
    losses = [prediction.loss for prediction in found.predictions]
    assert losses == sorted(losses)
    for part in found.parts:  # what it saves is what the model without it does not have
        smaller = remove_layer(trained, part.path, digits("train"))
        assert part.saves.parameters == trained.count_params() - smaller.count_params()


def situation(model, **changes):
    validation = digits("validation")
    return dataclasses.replace(
        Situation(
            student=model,
            teacher=model,
            profile=analyze_model(model, validation, measures=MEASURES, verbose=0),
            train_data=digits("train"),
            validation_data=validation,
        ),
        **changes,
    )


def ranked(criterion, now):
    """Path -> `Prediction`, the first to go first."""
    parts = removable_layers(now.student)[0].values()
    return {part.path: found for part, found in rank(criterion, now, parts).items()}


def test_entropy_gradient_takes_the_flattest_first(trained):
    now = situation(trained, tolerance=0.5)
    gradient = dict(zip(now.profile.layers, now.profile.gradient, strict=True))
    parts = removable_layers(trained)[0]
    expected = sorted((g, p) for p, g in gradient.items() if g < 0.5 and p in parts)
    found = ranked("entropy_gradient", now)
    assert [(prediction.loss, path) for path, prediction in found.items()] == expected
    assert "h48" not in ranked("entropy_gradient", situation(trained))


def test_reasons_say_whether_entropy_rises_or_is_flat(trained):
    names = ("h48", "h40", "h32", "h24", "out")
    made = EntropyProfile(
        layers=names, widths=(48, 40, 32, 24, 10), is_output=(0, 0, 0, 0, 1), classes=("all",),
        count=[5],
        results={"activation_entropy": [[0.75], [0.875], [0.875], [0.75], [0.0]]},
    )  # fmt: skip
    found = ranked("entropy_gradient", situation(trained, profile=made, tolerance=0.1))
    assert [(path, prediction.words) for path, prediction in found.items()] == [
        ("h40", "entropy rises (gradient -0.125, tolerance 0.1)"),
        ("h32", "entropy is flat (gradient +0.000, tolerance 0.1)"),
    ]


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
    found = [(x.loss, path) for path, x in ranked("state_entropy", situation(trained)).items()]
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
    found = {path: x.loss for path, x in ranked("linearity", situation(trained)).items()}
    assert list(found) == sorted(expected, key=expected.get)
    for name, score in found.items():  # float32 activations
        assert score == pytest.approx(expected[name], rel=1e-3, abs=1e-6)


@pytest.mark.slow
def test_loss_gap_is_the_rise_of_the_loss(trained):
    validation = digits("validation")
    now = trained.evaluate(*validation, verbose=0)[0]
    found = ranked("loss_gap", situation(trained))
    assert len(found) == 4
    for path, prediction in found.items():
        smaller = remove_layer(trained, path, digits("train"))
        gap = smaller.evaluate(*validation, verbose=0)[0] - now
        assert prediction.loss == pytest.approx(gap, abs=1e-4)  # two regressions in float


def test_random_is_reproducible_and_last_is_deepest(trained):
    orders = [list(ranked("random", situation(trained, seed=s))) for s in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert list(ranked("last", situation(trained))) == ["h24", "h32", "h40", "h48"]


@pytest.mark.slow
def test_a_search_prints_nothing(trained, capsys):
    prune(trained, criterion="last", epochs=1, max_removals=1, max_drop=1.0)
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_what_loss_gap_has_made_is_not_made_again(trained):
    """Only the first to go is kept, and it is what anybody gets who takes that part out."""
    now = situation(trained)
    first, *others = ranked("loss_gap", now).values()
    assert [x.cut for x in others] == [None] * 3
    (part, _), *_ = rank("loss_gap", now, removable_layers(trained)[0].values()).items()
    model, residuals = first.cut
    again, same = now.without(part)
    assert residuals == same
    assert_same_weights(model, again)
    step = prune(trained, criterion="loss_gap", epochs=0, max_removals=1, max_drop=1.0)
    assert step.removed == (part.path,)
    for mine, its in zip(step.model.weights, model.weights, strict=True):
        # From copies of the same weights: equal to the bit on some processors, to 2e-7 on others.
        np.testing.assert_allclose(np.asarray(mine), np.asarray(its), rtol=1e-4, atol=1e-6)


def test_a_plan_is_carried_out_at_once(trained, tmp_path):
    """Also after a way through a file; it is as if the layers were named."""
    found = plan(trained, digits("train"), digits("validation"), PruningOptions("linearity"))
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(found.to_json()))
    loaded = Plan.from_json(json.loads(path.read_text()))
    assert [part.name for part in loaded.parts] == [part.name for part in found.parts]
    assert loaded.predictions == found.predictions
    assert loaded.reasons == found.reasons
    assert [part.saves for part in loaded.parts] == [part.saves for part in found.parts]
    two = dataclasses.replace(loaded, parts=loaded.parts[:2], predictions=loaded.predictions[:2])
    smaller = remove_layer(trained, two, digits("train"))
    names = [part.path for part in two.parts]
    assert_same_weights(smaller, remove_layer(trained, names, digits("train")))
    assert [x.name for x in smaller.layers] == [
        x.name for x in trained.layers if x.name not in names
    ]


def test_what_is_no_plan_of_layers_is_refused(trained):
    units = Plan((Part(kind="unit", path="h40", indices=(1, 2)),), (Prediction(0.0, ""),))
    with pytest.raises(ValueError, match=r"parts that are no layers: h40\[1, 2\]"):
        remove_layer(trained, units)
    with pytest.raises(ValueError, match="This is no plan: KeyError"):
        Plan.from_json({"parts": []})


def test_no_parts_no_ranking(trained):
    nothing = situation(trained)
    for criterion in CRITERIA:
        assert rank(criterion, nothing, []) == {}, criterion


@pytest.mark.slow
def test_a_model_without_accuracy_gets_one_for_the_search_only(trained):
    model = network(metrics=())
    model.set_weights(trained.get_weights())
    result = prune(model, criterion="last", epochs=1, max_removals=1, max_drop=1.0)
    assert result.steps[0].quality_before == pytest.approx(
        accuracy(trained, digits("validation")), abs=1e-6
    )
    logs = result.model.evaluate(*digits("validation"), verbose=0, return_dict=True)
    assert list(logs) == ["loss"]


@pytest.mark.slow
def test_the_learning_rate_replaces_a_schedule():
    schedule = keras.optimizers.schedules.ExponentialDecay(1e-2, 100, 0.5)
    model = network(optimizer=keras.optimizers.Adam(schedule))
    rates = []

    class Spy(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            rates.append(float(self.model.optimizer.learning_rate))

    options = dict(criterion="last", epochs=1, max_removals=1, max_drop=1.0)
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
    ((path, prediction),) = ranked("linearity", situation(model)).items()
    assert path == "b"
    assert prediction.loss < 1e-6


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
        (network, dict(epochs=1.5), "epochs=1.5; expected"),
        (network, dict(steps_per_epoch=0), "steps_per_epoch=0; expected at least 1"),
        (network, dict(validation_steps=2.5), "validation_steps=2.5; expected at least 1"),
        (network, dict(keep="h99"), "no layer 'h99'"),
        (network, dict(max_drop=2.0), "max_drop=2.0"),
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
    assert PruningOptions().kinds == ("blocks", "layers", "units")
    with pytest.raises(ValueError, match="batch_size=0"):
        PruningOptions(batch_size=0)


@pytest.mark.parametrize(
    ("given", "kinds"),
    [
        (dict(criterion="linearity"), ("layers",)),
        (dict(criterion="random"), ("layers",)),
        (dict(criterion="magnitude"), ("units",)),
        (dict(remove="blocks"), ("blocks",)),
        (dict(remove=["units", "blocks"]), ("blocks", "units")),
        (dict(remove="units", criterion="random"), ("units",)),
        (dict(refit=False), ("layers",)),
    ],
)
def test_what_may_go(given, kinds):
    assert PruningOptions(**given).kinds == kinds


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(remove="neurons"), "remove='neurons'; expected some of"),
        (dict(remove=()), "expected some of"),
        (dict(remove=("layers", "units"), criterion="linearity"), "None where several kinds may"),
        (
            dict(remove=("layers", "units"), refit=False),
            "what is behind layers and units is always",
        ),
        (dict(target={"latency@0": 0.5}), "'latency@1'"),
    ],
)
def test_what_cannot_be_asked_for(given, words):
    with pytest.raises(ValueError, match=words):
        PruningOptions(**given)


@pytest.mark.slow
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
        options = dict(criterion="last", epochs=1, max_removals=1, max_drop=1.0)
        result = prune_model(model, data, data, PruningOptions(**options))
        assert result.removed == ("h2",)


def noisy_network(seed=None):
    """With everything that draws numbers while it is trained, and layers that may go."""
    inputs = keras.Input((64,))
    x = keras.layers.GaussianNoise(0.1)(inputs)
    for name in ("h1", "h2", "h3"):
        x = keras.layers.Dense(24, "relu", name=name)(x)
        x = keras.layers.Dropout(0.2, seed=seed, name=f"{name}_drop")(x)
        x = keras.layers.BatchNormalization(name=f"{name}_norm")(x)
    model = keras.Model(inputs, keras.layers.Dense(10, "softmax", name="out")(x))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(*digits("train"), verbose=0)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("seed", [None, 7])
def test_equal_searches_give_equal_models_with_or_without_a_break(seed, tmp_path):
    """Also over a rejected step, fresh kernels, and a model that comes back from a file."""
    model = noisy_network(seed)
    states = [np.array(v) for v in model.variables]
    options = dict(criterion="random", epochs=2, max_drop=0.05, refit=False)
    checkpoint, left = Checkpoint(tmp_path / "run.partial", {}), []

    def save_first(current, step):
        left.append(step)
        if len(left) == 1:
            checkpoint.save(current, left)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*start anew")
        whole = prune(model, on_step=save_first, **options)
        keras.utils.set_random_seed(99)
        np.random.default_rng().normal()
        again = prune(load_model(save_model(model, tmp_path / "m.keras")), **options)
        resumed = prune(model, resume=checkpoint.load(), **options)
    assert len(whole.steps) > 1
    for other in (again, resumed):
        assert without_times(other.steps) == without_times(whole.steps)
        assert_same_weights(other.model, whole.model)
    for before, after in zip(states, model.variables, strict=True):
        np.testing.assert_array_equal(before, np.array(after), err_msg=after.path)


@pytest.mark.slow
def test_each_seed_generator_draws_numbers_of_its_own():
    model, other = noisy_network(seed=3), noisy_network(seed=3)
    states = []
    for twin, seed in ((model, 5), (other, 5), (other, 6)):
        reseed(twin, seed)
        states.append([tuple(np.array(v)) for v in twin.variables if "seed" in v.path])
    assert states[0] == states[1]
    assert len(set(states[0] + states[2])) == 8


@pytest.mark.slow
def test_what_can_go_only_after_another_is_tried():
    inputs = keras.Input((64,))
    x = keras.layers.Dense(48, "relu", name="a")(inputs)
    x = keras.layers.Add(name="sum")([inputs, keras.layers.Dense(64, name="b")(x)])
    model = keras.Model(inputs, keras.layers.Dense(10, "softmax", name="out")(x))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    parts, reasons = removable_layers(model)
    assert list(parts) == ["a"]
    assert "feeds sum together with another tensor" in reasons["b"]
    options = dict(criterion="last", epochs=0, max_drop=1.0)
    assert prune(model, **options).removed == ("a", "b")
    result = prune(model, layers=["a"], **options)
    assert result.removed == ("a",)
    assert result.reasons["b"] == "it is not among the layers that may go"
    result = prune(model, keep="b", **options)
    assert (result.removed, result.reasons["b"]) == (("a",), "it is to be kept")
    result = prune(model, keep="a", **options)
    assert result.removed == ()
    assert result.reasons["b"] == reasons["b"]


@pytest.mark.slow
def test_the_optimizer_goes_back_with_the_weights(trained):
    """Training that only does harm leaves nothing behind, in whatever order callbacks meddle."""
    options = dict(criterion="last", max_removals=1, max_drop=1.0)
    trained.fit(*digits("train"), epochs=1, verbose=0)
    untouched = prune(trained, epochs=0, **options).model

    class Spoil(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.optimizer.learning_rate = 30.0

        def on_train_end(self, logs=None):
            self.model.get_layer("out").bias.assign(np.arange(10.0))

    model = prune(trained, epochs=2, callbacks=[Spoil()], **options).model
    assert_same_weights(model, untouched)
    slots, expected = (m.optimizer.variables for m in (model, untouched))
    assert len(slots) > 10
    for mine, its in zip(slots, expected, strict=True):
        np.testing.assert_array_equal(np.array(mine), np.array(its), err_msg=mine.path)


def batched(split, size=64):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(digits(split)).batch(size)


class Endless(keras.utils.PyDataset):
    num_batches = None

    def __getitem__(self, index):
        x, y = digits("train")
        rows = np.arange(index * 64, index * 64 + 64) % len(x)
        return x[rows], y[rows]


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda: batched("train").repeat(), Endless])
def test_data_without_an_end(trained, make):
    train, validation = make(), batched("validation").repeat()
    finite = digits("validation")
    for data, name in (
        ((train, finite), "train_data .*give steps_per_epoch="),
        ((digits("train"), validation), "validation_data .*give validation_steps="),
    ):
        with pytest.raises(ValueError, match=name):
            prune_model(trained, *data)
    seen = []

    class Spy(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(self.params["steps"])

    options = dict(criterion="linearity", epochs=2, max_removals=1, max_drop=1.0)
    result = prune_model(
        trained,
        train,
        validation,
        PruningOptions(steps_per_epoch=5, validation_steps=3, **options),
        callbacks=[Spy()],
    )
    assert seen == [5, 5]
    x, y = (part[: 3 * 64] for part in finite)
    assert result.before.count.sum() == 3 * 64
    assert result.steps[0].quality_before == pytest.approx(accuracy(trained, (x, y)), abs=1e-6)
    # The regression, too, is one over five batches.
    x, _ = digits("train")
    smaller, residuals = take_out(trained, trained, list(result.removed), x[: 5 * 64])
    assert result.steps[0].residual == pytest.approx(np.mean(list(residuals.values())), rel=1e-3)


@pytest.mark.slow
def test_training_data_of_a_function_of_the_seed(trained):
    seeds = []

    def shuffled(seed):
        seeds.append(seed)
        return batched("train").shuffle(50, seed=seed)

    options = dict(criterion="last", epochs=1, max_removals=2, max_drop=1.0, seed=4)
    first = prune_model(trained, shuffled, digits("validation"), PruningOptions(**options))
    assert set(seeds) == {4, 5}
    second = prune_model(trained, shuffled, digits("validation"), PruningOptions(**options))
    assert_same_weights(first.model, second.model)


@pytest.mark.slow
def test_an_autoencoder_is_held_to_its_loss_unless_accuracy_is_asked_for():
    x, _ = digits("train")
    model = keras.Sequential([keras.Input((64,))])
    for units in (16, 8, 64):
        model.add(keras.layers.Dense(units))
    model.compile("adam", "mse", metrics=["accuracy"])
    with pytest.raises(ValueError, match=r"autoencoder.*quality=\"loss\""):
        prune_model(model, (x, x), (x, x), quality="accuracy")
    result = prune_model(model, (x, x), (x, x), criterion="last", max_removals=1, epochs=0)
    assert result.quality.name == "loss"
    assert result.steps[0].quality_before == pytest.approx(
        np.mean((model.predict(x, verbose=0) - x) ** 2), rel=1e-5
    )


@pytest.mark.slow
def test_several_labels_for_a_sample(random):
    x = random.normal(size=(200, 64)).astype("float32")
    y = (x[:, :3] > 0).astype("float32")
    hidden = [keras.layers.Dense(8, "relu", name=name) for name in ("a", "b")]
    head = keras.layers.Dense(3, "sigmoid", name="out")
    model = keras.Sequential([keras.Input((64,)), *hidden, head])
    model.compile("adam", "binary_crossentropy", metrics=["binary_accuracy"])
    with warnings.catch_warnings():  # of the measures of entropy, which know one class for a sample
        warnings.simplefilter("ignore")
        result = prune_model(model, (x, y), (x, y), PruningOptions("last", epochs=1, num_classes=1))
    right = (model.predict(x, verbose=0) > 0.5) == (y > 0)
    assert result.steps[0].quality_before == pytest.approx(right.mean(), abs=1e-6)


def test_a_layer_without_which_no_model_can_be_made_stays():
    """What it gives is joined to what else is 16 wide, and it is given 8."""
    inputs = keras.Input((64,))
    steps = keras.layers.Reshape((8, 8))(inputs)
    wide = keras.layers.Dense(16, "relu", name="h")(steps)
    other = keras.layers.Reshape((4, 16))(inputs)
    joined = keras.layers.Concatenate(axis=1)([wide, other])
    pooled = keras.layers.GlobalAveragePooling1D()(joined)
    model = keras.Model(inputs, keras.layers.Dense(10, "softmax", name="out")(pooled))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    options = PruningOptions(criterion="last")
    found = plan(model, digits("train"), digits("validation"), options)
    reasons = found.reasons
    assert found.parts == ()
    assert reasons["h"] == "Exception encountered when calling Concatenate.call()."
