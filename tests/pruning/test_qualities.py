"""What a search holds on to, against NumPy from the formulas, on the models that it gives."""

import math
import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_layer_entropy import prune_model
from keras_layer_entropy.pruning import PruningOptions, Quality, choose_quality, plan
from keras_layer_entropy.pruning.fidelity import LOGITS, NUMBERS, PROBABILITIES, Fidelity

SAMPLES, WIDTH = 96, 6
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(SAMPLES, WIDTH)).astype("float32")
TARGETS = np.stack([X[:, 0] * X[:, 1], X[:, 2] - 1], axis=1)
SEVERAL = (X[:, :3] + 0.3 * RANDOM.normal(size=(SAMPLES, 3)) > 1).astype("float32")  # few are 1
IDS = (X[:, :3] + 0.3 * RANDOM.normal(size=(SAMPLES, 3))).argmax(axis=1)
PIXELS = (X[:, :, None] > 0).astype(int)[..., 0]  # a class for each position
SPARSE, BINARY = "sparse_categorical_crossentropy", "binary_crossentropy"
QUICK = dict(criterion="last", epochs=1, max_removals=1, max_drop=1e6)


def network(units, activation=None, loss="mse", metrics=(), penalty=None):
    hidden = [
        layers.Dense(8, "tanh", kernel_regularizer=penalty, name=name) for name in ("a", "b", "c")
    ]
    head = layers.Dense(units, activation, name="out")
    model = keras.Sequential([keras.Input((WIDTH,)), *hidden, head])
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=list(metrics))
    return model


def of_positions():
    """A class for each of six positions, as in a segmentation."""
    inputs = keras.Input((WIDTH, 1))
    x = layers.Conv1D(4, 3, padding="same", activation="relu", name="conv")(inputs)
    for name in ("a", "b"):
        x = layers.Dense(4, "relu", name=name)(x)
    model = keras.Model(inputs, layers.Dense(2, "softmax", name="out")(x))
    model.compile("adam", SPARSE)
    return model


def two_heads():
    inputs = keras.Input((WIDTH,))
    x = inputs
    for name in ("a", "b"):
        x = layers.Dense(8, "relu", name=name)(x)
    ids, numbers = layers.Dense(3, "softmax", name="ids"), layers.Dense(2, name="numbers")
    model = keras.Model(inputs, [ids(x), numbers(x)])
    model.compile("adam", [SPARSE, "mse"], loss_weights=[1.0, 0.5])
    return model


def cross_entropy(p, y):
    return -np.log(np.take_along_axis(p, y[..., None], axis=-1)).mean()


def binary_cross_entropy(p, y):
    return -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()


def recall(p, y):
    return ((p > 0.5) & (y == 1)).sum() / (y == 1).sum()


def squared(p, y):
    return np.mean((p - y) ** 2)


def of_both(p, y):
    return cross_entropy(p[0], y[0]) + 0.5 * squared(p[1], y[1])


# A model, its inputs and targets, options; the name of the quality, and the formula.
SEARCHES = {
    "regression": (lambda: network(2, penalty="l2"), X, TARGETS, {}, "loss", squared),
    "regression by a metric": (
        *(lambda: network(2, metrics=["mae"]), X, TARGETS, dict(quality="mae"), "mae"),
        lambda p, y: np.abs(p - y).mean(),
    ),
    "autoencoder": (  # compiled as many are
        *(lambda: network(WIDTH, metrics=["accuracy"]), X, X, {}, "loss", squared),
    ),
    "several labels": (
        *(lambda: network(3, "sigmoid", BINARY), X, SEVERAL, {}, "accuracy"),
        lambda p, y: np.mean((p > 0.5) == y),
    ),
    "several labels by their loss": (
        *(lambda: network(3, "sigmoid", BINARY), X, SEVERAL, dict(quality="loss"), "loss"),
        binary_cross_entropy,
    ),
    "few that are 1": (
        lambda: network(3, "sigmoid", BINARY, [keras.metrics.Recall(name="found")]),
        *(X, SEVERAL, dict(quality="found"), "found", recall),
    ),
    "segmentation": (
        *(of_positions, X[..., None], PIXELS, {}, "accuracy"),
        lambda p, y: np.mean(p.argmax(axis=-1) == y),
    ),
    "segmentation by its loss": (
        *(of_positions, X[..., None], PIXELS, dict(quality="loss"), "loss", cross_entropy),
    ),
    "two heads": (two_heads, X, [IDS, TARGETS], {}, "loss", of_both),
}


def searched(model, data, **options):
    with warnings.catch_warnings():  # of the entropies, which know one class for a sample
        warnings.filterwarnings("ignore", ".*rows of labels hold several|.*targets of a regression")
        return prune_model(model, data, data, PruningOptions(**{**QUICK, **options}))


@pytest.mark.slow
@pytest.mark.parametrize("case", SEARCHES)
def test_what_a_search_reports_is_what_its_model_gives(case):
    make, x, y, options, name, formula = SEARCHES[case]
    model = make()
    if name == "accuracy":
        options = {**options, "max_drop": 1.0}
    before = model.get_weights()
    result = searched(model, (x, y), num_classes=1, **options)
    (step,) = result.steps
    assert result.quality.name == name
    assert len(result.removed) == 1
    # Means of float32 numbers.
    assert step.quality_before == pytest.approx(formula(predicted(model, x), y), rel=1e-4)
    assert step.quality_retrained == pytest.approx(formula(predicted(result.model, x), y), rel=1e-4)
    assert not result.quality.better(step.quality_removed, step.quality_retrained)
    known = result.quality.standard_error(result.model, model, (x, y))
    assert step.standard_error == (known if known is None else pytest.approx(known, rel=1e-4))
    assert result.quality.of(result.model, (x, y)) == pytest.approx(step.quality_retrained)
    for mine, its in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, its)


def predicted(model, x):
    return keras.tree.map_structure(
        lambda part: part.astype("float64"), model.predict(x, verbose=0)
    )


@pytest.mark.slow
def test_less_loss_is_better():
    """A search that holds on to a loss stops where it rises, and not where it falls."""
    model = network(2)
    model.fit(X, TARGETS, epochs=60, verbose=0)
    result = searched(model, (X, TARGETS), epochs=0, max_removals=None, max_drop=0.01)
    limit = squared(predicted(model, X), TARGETS) + 0.01
    for step in result.steps:
        worse = step.quality_retrained + step.standard_error
        assert step.accepted == (worse <= limit)
        if not step.accepted:
            lost, error = map(result.quality.text, (step.quality_retrained, step.standard_error))
            assert (
                f"without it loss is {lost} ± {error}, which counts against it, where at"
                in result.reasons[step.part]
            )
    assert not result.steps[-1].accepted
    model.layers[-1].set_weights([100 * np.ones((8, 2)), np.full(2, 50.0)])  # any other is better
    result = searched(model, (X, TARGETS), epochs=2, max_drop=0.0)
    (step,) = result.steps
    assert step.quality_retrained < step.quality_before
    assert step.accepted


@pytest.mark.slow
def test_fidelity_needs_no_labels():
    classifier = network(3, "softmax", SPARSE)
    classifier.fit(X, IDS, epochs=10, verbose=0)
    result = searched(classifier, X, epochs=2)
    assert result.quality.words == "agreement with the original"
    assert result.before.classes == ("all",)
    (step,) = result.steps
    same = [predicted(model, X).argmax(axis=1) for model in (classifier, result.model)]
    assert step.quality_before == 1
    assert step.quality_retrained == pytest.approx(np.mean(same[0] == same[1]), abs=1e-6)
    result = searched(network(2), X, epochs=2)
    assert (result.quality.words, result.quality.drop) == ("relative error to the original", 1e6)


def test_the_relative_error_is_of_the_spread():
    model, other = network(2), network(2)
    offset = np.array([7.0, -3.0])
    given = [predicted(each, X) + offset for each in (model, other)]
    for each in (model, other):
        kernel, bias = each.layers[-1].get_weights()
        each.layers[-1].set_weights([kernel, bias + offset])
    target, output = given
    expected = np.sqrt(squared(output, target) / np.mean((target - target.mean(axis=0)) ** 2))
    for size in (96, 10):  # in several batches, the last one smaller
        found = Fidelity.of(model, X).measure(other, X, batch_size=size)
        assert found == pytest.approx(expected, rel=1e-4)  # of float32 numbers
    assert Fidelity.of(model, X).measure(model, X) == 0


def test_fidelity_of_several_outputs():
    model, other = two_heads(), two_heads()
    reference = Fidelity.of(model, X)
    assert reference.kinds == (PROBABILITIES, NUMBERS)
    (ids, target), (others, output) = (predicted(each, X) for each in (model, other))
    error = np.sqrt(squared(output, target) / np.mean((target - target.mean(axis=0)) ** 2))
    differ = np.mean(ids.argmax(axis=1) != others.argmax(axis=1))
    assert reference.measure(other, X) == pytest.approx((error + differ) / 2, rel=1e-4)


def test_logits_are_told_by_the_loss():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    assert Fidelity.of(network(3, None, loss), X).kinds == (LOGITS,)
    assert Fidelity.of(network(3, None, "mse"), X).kinds == (NUMBERS,)


def divergence(p, q):
    return np.mean(np.sum(p * np.log(p / q), axis=-1))


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["softmax", None])
def test_distillation_lowers_the_divergence(activation):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=activation is None)
    model, student = (network(3, activation, loss) for _ in range(2))
    shares = (lambda p: p) if activation else softmax
    target = shares(predicted(model, X))
    first = divergence(target, shares(predicted(student, X)))
    distilled = Fidelity.of(model, X).distilled(student)
    said = distilled.evaluate(X, verbose=0)
    assert said == pytest.approx(first, rel=1e-4)  # float32
    logs = distilled.fit(X, epochs=30, batch_size=32, verbose=0).history
    assert set(logs) == {"loss"}
    assert divergence(target, shares(predicted(student, X))) < 0.2 * first
    # Its own optimizer has gone on, and no weight but its own has moved.
    assert int(student.optimizer.iterations) == 90
    np.testing.assert_allclose(shares(predicted(model, X)), target, rtol=1e-6)


def test_distillation_of_numbers_is_the_mean_squared_error():
    model, student = network(2), network(2)
    said = Fidelity.of(model, X).distilled(student).evaluate(X, verbose=0)
    assert said == pytest.approx(squared(predicted(student, X), predicted(model, X)), rel=1e-4)


@pytest.mark.slow
def test_distillation_does_not_look_at_labels():
    model = network(3, "softmax", SPARSE, ["accuracy"])
    model.fit(X, IDS, epochs=5, verbose=0)
    wrong = np.roll(IDS, 1)
    options = PruningOptions(
        criterion="last", epochs=2, max_removals=1, quality="fidelity", distill=True, max_drop=1.0
    )
    trained = []

    class Spy(keras.callbacks.Callback):  # the best epoch may be none
        def on_epoch_end(self, epoch, logs=None):
            trained.append(np.concatenate([w.ravel() for w in self.model.get_weights()]))

    for data in ((X, IDS), (X, wrong), X):
        prune_model(model, data, (X, IDS), options, callbacks=[Spy()])
    for other in trained[2:4], trained[4:6]:
        np.testing.assert_array_equal(trained[:2], other)
    prune_model(model, (X, wrong), (X, IDS), options, distill=False, callbacks=[Spy()])
    assert not np.array_equal(trained[:2], trained[6:])


@pytest.mark.slow
def test_units_go_without_labels():
    model = network(3, "softmax", SPARSE)
    options = PruningOptions(remove="units", target={"parameters": 0.6}, step_share=0.3, epochs=1)
    result = prune_model(model, X, X, options)
    assert result.target_met
    same = [predicted(each, X).argmax(axis=1) for each in (model, result.model)]
    assert result.steps[-1].quality_retrained == pytest.approx(np.mean(same[0] == same[1]))


def test_labels_to_train_for_and_none_to_validate_with():
    model = network(3, "softmax", SPARSE, ["accuracy"])
    result = prune_model(model, (X, IDS), X, PruningOptions(**QUICK))
    assert result.quality.name == "fidelity"
    assert len(result.removed) == 1
    for criterion, remove, words in (
        ("loss_gap", "layers", "validation"), ("mutual_information", "units", "training"),
    ):  # fmt: skip
        options = PruningOptions(criterion, remove=remove)
        with pytest.raises(ValueError, match=f"'{criterion}' needs labels of the {words} data"):
            prune_model(model, X, X, options)


class Batches(keras.utils.PyDataset):
    """Inputs alone."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return (X[32 * index : 32 * (index + 1)],)


@pytest.mark.slow
def test_inputs_of_a_dataset_alone():
    result = searched(network(2), Batches(), epochs=1)
    assert result.quality.name == "fidelity"
    assert len(result.removed) == 1


PAIRED = {
    "accuracy": (
        *(lambda: network(3, "softmax", SPARSE, ["accuracy"]), IDS, "accuracy"),
        lambda p, y: 1.0 * (p.argmax(axis=1) == y),
    ),
    "several labels": (
        *(lambda: network(3, "sigmoid", BINARY, ["binary_accuracy"]), SEVERAL, "accuracy"),
        lambda p, y: ((p > 0.5) == y).mean(axis=1),
    ),
    "loss": (
        *(lambda: network(2, penalty="l2"), TARGETS, "loss"),
        lambda p, y: ((p - y) ** 2).mean(axis=1),
    ),
    "two heads": (
        *(two_heads, [IDS, TARGETS], "loss"),
        lambda p, y: (
            -np.log(np.take_along_axis(p[0], y[0][:, None], axis=1))[:, 0]
            + 0.5 * ((p[1] - y[1]) ** 2).mean(axis=1)
        ),
    ),
}


@pytest.mark.parametrize("case", PAIRED)
def test_the_standard_error_is_of_what_each_sample_lost(case):
    make, y, name, values = PAIRED[case]
    model, other = make(), make()
    quality = choose_quality(model, (X, y), PruningOptions(quality=name))
    lost = values(predicted(other, X), y) - values(predicted(model, X), y)
    for size in (96, 20):  # in several batches, the last one smaller
        found = quality.standard_error(other, model, (X, y), batch_size=size)
        assert found == pytest.approx(lost.std(ddof=1) / np.sqrt(SAMPLES), rel=1e-4)  # float32


def test_the_standard_error_of_agreement():
    model, other = (network(3, "softmax", SPARSE) for _ in range(2))
    quality = choose_quality(model, X, PruningOptions())
    differ = predicted(model, X).argmax(axis=1) != predicted(other, X).argmax(axis=1)
    found = quality.standard_error(other, model, X, batch_size=20)
    assert found == pytest.approx(differ.std(ddof=1) / np.sqrt(SAMPLES), rel=1e-5)
    assert (
        choose_quality(network(2), X, PruningOptions()).standard_error(network(2), None, X) is None
    )


def summed(y_true, y_pred):
    return ops.sum(ops.square(y_true - y_pred))


@pytest.mark.parametrize(
    "loss", [summed, keras.losses.MeanSquaredError(reduction="sum"), keras.losses.Dice(axis=None)]
)
def test_what_is_no_mean_over_samples_has_no_standard_error(loss):
    model = network(2, loss=loss, metrics=["r2_score"])
    for name in ("loss", "r2_score"):
        quality = chosen(model, quality=name)
        assert quality.standard_error(model, model, (X, TARGETS)) is None, name


def chosen(model, data=(X, TARGETS), **options):
    return choose_quality(model, data, PruningOptions(**options))


TOP = keras.metrics.SparseTopKCategoricalAccuracy(2, name="top")


@pytest.mark.slow
def test_limits():
    classifier = network(3, "softmax", SPARSE, ["accuracy", TOP])
    labels = X, IDS
    accuracy, loss = chosen(classifier, labels), chosen(classifier, labels, quality="loss")
    assert (accuracy.limit(0.9), accuracy.higher) == (pytest.approx(0.89), True)
    assert (loss.limit(0.4), loss.higher) == (pytest.approx(0.42), False)
    assert chosen(classifier, labels, quality="top").limit(0.8) == pytest.approx(0.76)
    assert chosen(classifier, labels, quality="fidelity").limit(1.0) == pytest.approx(0.99)
    assert chosen(network(2), quality="fidelity").limit(0.0) == pytest.approx(0.05)
    assert chosen(network(2)).limit(-2.0) == pytest.approx(-1.9)  # 5 % of what it is
    assert chosen(network(2), max_drop=0.3).limit(2.0) == pytest.approx(2.3)
    assert chosen(network(2), max_relative_drop=0.5).limit(2.0) == pytest.approx(3.0)
    relative = chosen(classifier, labels, max_relative_drop=0.1)
    assert relative.limit(0.9) == pytest.approx(0.81)
    for free in (
        chosen(network(2), target={"flops": 0.5}),
        chosen(classifier, labels, target={"flops": 0.5}),
        chosen(classifier, labels, max_drop=1.0),
    ):
        assert math.isinf(free.drop)
    assert chosen(network(2), target={"flops": 0.5}, max_drop=1.0).limit(2.0) == 3.0
    assert loss.better(0.1, 0.2)
    assert not loss.better(math.nan, 0.2)
    assert not loss.accepts(math.nan, 0.2)
    assert accuracy.accepts(0.5, 0.5)


def own_metric(y_true, y_pred):
    return ops.mean(y_pred, axis=-1)


def test_whether_more_is_better():
    model = network(2, metrics=[own_metric, "mae", "cosine_similarity", keras.metrics.R2Score()])
    for name, higher in (("mae", False), ("cosine_similarity", True), ("r2_score", True)):
        assert chosen(model, quality=name).higher is higher, name
    with pytest.raises(ValueError, match=r"whether more of 'own_metric' is better.*mode=\"max\""):
        chosen(model, quality="own_metric")
    assert chosen(model, quality="own_metric", mode="max").higher
    assert not chosen(model, quality="own_metric", mode="min").higher
    assert not chosen(model, quality="mae", mode="min").higher
    for name, mode, words in (("mae", "max", "less mae"), ("r2_score", "min", "more r2_score")):
        with pytest.raises(ValueError, match=f"mode='{mode}', but {words} is better"):
            chosen(model, quality=name, mode=mode)


def unlossy():
    model = network(2)
    model.compile("sgd")
    return model


@pytest.mark.parametrize(
    ("make", "data", "options", "words"),
    [
        (lambda: network(2), (X, TARGETS), dict(quality="auk"), "quality='auk'; expected accuracy"),
        (lambda: network(2, metrics=["mae"]), (X, TARGETS), dict(quality="auk"), "with, mae"),
        (lambda: network(2), (X, TARGETS), dict(quality="accuracy"), 'quality="loss" does'),
        (lambda: network(2), (X, TARGETS), dict(mode="max"), "mode='max', but less loss is better"),
        (lambda: network(2), (X, TARGETS), dict(mode="up"), "mode='up'; expected one of"),
        (lambda: network(2), (X, TARGETS), dict(max_drop=-1.0), "max_drop=-1.0; expected 0 or"),
        (lambda: network(2), X, dict(quality="loss"), "hold no targets.*fidelity"),
        (lambda: network(2), X, dict(max_relative_drop=0.1), "pass max_drop="),
        (unlossy, (X, TARGETS), {}, "without a loss"),
        (
            *(lambda: network(3, "softmax", SPARSE, ["accuracy"]), (X, IDS), dict(max_drop=2.0)),
            r"max_drop=2.0; expected a number in 0\.\.1",
        ),
        (
            lambda: network(3, "sigmoid", BINARY, [keras.metrics.F1Score(name="f1")]),
            *((X, SEVERAL), dict(quality="f1"), "'f1' is several numbers"),
        ),
        (
            *(lambda: network(2), (X, TARGETS), dict(max_drop=0.1, max_relative_drop=0.1)),
            "give one of them",
        ),
    ],
)
def test_errors(make, data, options, words):
    with pytest.raises(ValueError, match=words):
        chosen(make(), data, **options)


@pytest.mark.parametrize("look", [plan, prune_model])
def test_targets_that_make_the_quality_nan_are_found_at_the_start(look):
    bad = TARGETS.copy()
    bad[5] = np.nan
    with pytest.raises(ValueError, match="The loss of .* is NaN on the validation data"):
        look(network(2), (X, TARGETS), (X, bad), **QUICK)


def test_it_says_what_it_holds_on_to():
    assert Quality().said() == "Quality: validation accuracy, at most 0.01 below the original's."
    words = "Quality: validation loss, at most 5% above the original's."
    assert chosen(network(2)).said() == words
    free = chosen(network(2), target={"flops": 0.5})
    assert free.said() == "Quality: validation loss, without a limit."
    assert [Quality("loss").text(x) for x in (0.0123456, 1.5, 1234.5)] == [
        *("0.01235", "1.5000", "1234"),
    ]
