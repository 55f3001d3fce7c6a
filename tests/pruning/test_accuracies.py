"""The accuracy by which a search decides, against what NumPy counts from predictions."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_layer_entropy.pruning import score
from keras_layer_entropy.pruning.accuracies import NAME, accuracy_metrics
from keras_layer_entropy.pruning.evaluation import accuracy, compiled_with, evaluate

SAMPLES = 90
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(SAMPLES, 6)).astype("float32")
IDS = RANDOM.integers(0, 3, SAMPLES)
ONE_HOT = np.eye(3)[IDS]
BITS = RANDOM.integers(0, 2, SAMPLES)
SEVERAL = RANDOM.integers(0, 2, (SAMPLES, 3))  # some rows hold none, or several
SPARSE, ONE, BINARY = (
    *("sparse_categorical_crossentropy", "categorical_crossentropy", "binary_crossentropy"),
)
SPARSE_LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
BINARY_LOGITS = keras.losses.BinaryCrossentropy(from_logits=True)


def own_loss(y_true, y_pred):
    return ops.mean(ops.square(y_pred), axis=-1)


def balanced(y_true, y_pred):
    return ops.zeros_like(y_pred[..., 0])


class Lenient(keras.metrics.SparseCategoricalAccuracy):
    """Somebody's own, which knows that -1 is right, and needs to be told how lenient it is."""

    def __init__(self, right, **kwargs):
        super().__init__(name="lenient", **kwargs)
        self.right = right

    def update_state(self, y_true, y_pred, sample_weight=None):
        best = ops.cast(ops.argmax(y_pred, axis=-1), "int32")
        y_true = ops.cast(y_true, "int32")
        y_true = ops.where(y_true == self.right, best, y_true)
        super().update_state(y_true, y_pred, sample_weight)


def network(units, activation=None, **compilation):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(units, activation, name="out")])
    model.layers[0].set_weights([3 * RANDOM.normal(size=(6, units)), RANDOM.normal(size=units) / 2])
    model.compile("sgd", **{"loss": None, **compilation})
    return model


def largest(p, y):
    return np.mean(p.argmax(axis=-1) == (y.argmax(axis=-1) if np.ndim(y) == p.ndim else y))


def above(threshold):
    return lambda p, y: np.mean((p > threshold) == (np.reshape(y, p.shape) > 0))


TOP = [
    keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2_acc"),
    keras.metrics.SparseTopKCategoricalAccuracy(2, name="accuracy_of_two"),
]
AUC = [keras.metrics.AUC(multi_label=True)]
# units, activation, targets, how it is compiled, what is counted, whether a metric is replaced
CASES = {
    "by name": (3, "softmax", IDS, dict(loss=SPARSE, metrics=["accuracy"]), largest, False),
    "with the top k": (3, "softmax", IDS, dict(loss=SPARSE, metrics=["acc", *TOP]), largest, False),
    "the top k alone": (3, "softmax", IDS, dict(loss=SPARSE, metrics=TOP), largest, False),
    "by function": (
        *(3, None, IDS),
        dict(loss=SPARSE_LOGITS, metrics=[keras.metrics.sparse_categorical_accuracy]),
        *(largest, False),
    ),
    "by another name": (
        *(3, None, IDS),
        dict(loss=SPARSE_LOGITS, metrics=[keras.metrics.SparseCategoricalAccuracy(name="good")]),
        *(largest, False),
    ),
    "none, logits": (3, None, IDS, dict(loss=SPARSE_LOGITS), largest, False),
    "called accuracy but none": (
        *(3, "softmax", IDS),
        dict(loss=SPARSE, metrics=[keras.metrics.MeanMetricWrapper(balanced, name="accuracy")]),
        *(largest, False),
    ),
    "one-hot": (3, "softmax", ONE_HOT, dict(loss=ONE, metrics=["accuracy"]), largest, False),
    "soft labels": (
        *(3, "softmax", ONE_HOT * 0.8 + 0.05, dict(loss="kl_divergence", metrics=["acc"])),
        *(largest, False),
    ),
    "one-hot rows, sigmoids": (
        *(3, "sigmoid", ONE_HOT, dict(loss=BINARY, metrics=["accuracy"]), largest, False),
    ),
    "sigmoid": (1, "sigmoid", BITS, dict(loss=BINARY, metrics=["accuracy"]), above(0.5), False),
    "booleans": (1, "sigmoid", BITS > 0, dict(loss=BINARY, metrics=["acc"]), above(0.5), False),
    "a threshold": (
        *(1, "sigmoid", BITS),
        dict(loss=BINARY, metrics=[keras.metrics.BinaryAccuracy(threshold=0.3)]),
        *(above(0.3), False),
    ),
    "a threshold for logits": (
        *(1, "sigmoid", BITS),
        dict(loss=BINARY, metrics=[keras.metrics.BinaryAccuracy(threshold=0.0)]),
        *(above(0.5), True),
    ),
    "a threshold above all shares": (
        *(1, "sigmoid", BITS),
        dict(loss=BINARY, metrics=[keras.metrics.BinaryAccuracy(threshold=1.5)]),
        *(above(0.5), True),
    ),
    "a logit": (1, None, BITS, dict(loss=BINARY_LOGITS), above(0), False),
    "a logit, accuracy of probabilities": (
        *(1, None, BITS, dict(loss=BINARY_LOGITS, metrics=["accuracy"]), above(0), True),
    ),
    "a logit, accuracy of probabilities by function": (
        *(1, None, BITS),
        dict(loss=BINARY_LOGITS, metrics=[keras.metrics.binary_accuracy]),
        *(above(0), True),
    ),
    "a logit, the right threshold": (
        *(1, None, BITS[:, None]),
        dict(loss=BINARY_LOGITS, metrics=[keras.metrics.BinaryAccuracy(threshold=0.0)]),
        *(above(0), False),
    ),
    "a sigmoid whose loss wants logits": (  # Keras looks behind the sigmoid
        *(1, "sigmoid", BITS, dict(loss=BINARY_LOGITS, metrics=["accuracy"]), above(0.5), False),
    ),
    "the only class of one output": (
        *(1, "sigmoid", BITS),
        dict(loss=BINARY, metrics=[keras.metrics.CategoricalAccuracy()]),
        *(above(0.5), True),
    ),
    "several labels": (3, "sigmoid", SEVERAL, dict(loss=BINARY, metrics=AUC), above(0.5), False),
    "several labels, as if one": (
        *(3, "sigmoid", SEVERAL, dict(loss=BINARY, metrics=["accuracy"]), above(0.5), True),
    ),
    "several labels, logits": (
        *(3, None, SEVERAL.astype("float32"), dict(loss=BINARY_LOGITS), above(0), False),
    ),
    "hinge": (1, "tanh", 2 * BITS - 1, dict(loss="hinge", metrics=["accuracy"]), above(0), True),
    "hinge of 0 and 1": (1, None, BITS, dict(loss="squared_hinge"), above(0), False),
    "hinge, several": (3, None, 2 * SEVERAL - 1, dict(loss="hinge"), above(0), False),
    "hinge, one-hot": (3, "tanh", 2 * ONE_HOT - 1, dict(loss="hinge"), largest, False),
    "mse of classes": (3, None, ONE_HOT, dict(loss="mse", metrics=["accuracy"]), largest, False),
    "own loss, softmax": (3, "softmax", IDS, dict(loss=own_loss), largest, False),
    "own loss, sigmoid": (1, "sigmoid", BITS, dict(loss=own_loss), above(0.5), False),
    "own loss, logits, a metric": (
        *(3, None, IDS, dict(loss=own_loss, metrics=["accuracy"]), largest, False),
    ),
}


WORDS = {  # of those that are replaced: by what
    "a logit, accuracy of probabilities by function": (
        *("BinaryAccuracy(threshold=0.5)", "BinaryAccuracy(threshold=0)"),
    ),
    "a threshold above all shares": (
        *("BinaryAccuracy(threshold=1.5)", "BinaryAccuracy(threshold=0.5)"),
    ),
    "a threshold for logits": ("BinaryAccuracy(threshold=0)", "BinaryAccuracy(threshold=0.5)"),
    "a logit, accuracy of probabilities": (
        *("BinaryAccuracy(threshold=0.5)", "BinaryAccuracy(threshold=0)"),
    ),
    "the only class of one output": ("CategoricalAccuracy", "BinaryAccuracy(threshold=0.5)"),
    "several labels, as if one": ("CategoricalAccuracy", "BinaryAccuracy(threshold=0.5)"),
    "hinge": (
        *("BinaryAccuracy(threshold=0.5)", "the share of outputs with the sign of their target"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_number_is_what_it_says(case, recwarn):
    units, activation, y, compilation, count, replaced = CASES[case]
    model = network(units, activation, **compilation)
    scores = score(model, (X, y), batch_size=32)
    expected = count(model.predict(X, verbose=0), y)
    assert scores.accuracy == pytest.approx(expected, abs=1e-6)  # a float32 mean
    said = [str(w.message) for w in recwarn if "keras_layer_entropy" in w.filename]
    assert len(said) == replaced, said
    for words in said:
        given, decides = WORDS[case]
        assert f", {given}, does not fit its loss" in words
        assert words.endswith(f"decides by {decides}.")


def test_samples_of_an_ignored_class_do_not_count():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    y = np.where(BITS == 1, IDS, -1)
    model = network(3, loss=loss, metrics=["accuracy"])
    with pytest.warns(UserWarning, match="SparseCategoricalAccuracy without the class"):
        found = score(model, (X, y)).accuracy
    right = model.predict(X, verbose=0).argmax(axis=1) == y
    assert found == pytest.approx(right[y >= 0].mean(), abs=1e-6)


def test_weights_count_where_they_are_asked_for():
    weight = RANDOM.uniform(size=SAMPLES)
    for kind, expected in (("metrics", None), ("weighted_metrics", weight)):
        model = network(3, "softmax", loss=SPARSE, **{kind: ["accuracy"]})
        right = model.predict(X, verbose=0).argmax(axis=1) == IDS
        found = score(model, (X, IDS, weight), batch_size=32).accuracy
        assert found == pytest.approx(np.average(right, weights=expected), abs=1e-6), kind


def test_targets_of_weight_0_may_be_anything():
    y, weight = np.where(BITS == 1, IDS, 77), BITS.astype("float32")
    model = network(3, loss=own_loss, weighted_metrics=["accuracy"])
    right = model.predict(X, verbose=0).argmax(axis=1) == y
    assert score(model, (X, y, weight)).accuracy == pytest.approx(right[BITS == 1].mean(), abs=1e-6)


def test_a_label_for_each_position():
    inputs = keras.Input((5, 4))
    model = keras.Model(inputs, layers.Dense(3, "softmax")(inputs))
    model.compile("sgd", SPARSE, metrics=["accuracy"])
    x, y = RANDOM.normal(size=(20, 5, 4)), RANDOM.integers(0, 3, (20, 5))
    for labels in (y, y[..., None]):
        expected = largest(model.predict(x, verbose=0), y)
        assert score(model, (x, labels)).accuracy == pytest.approx(expected, abs=1e-6)


def test_ones_own_metric_is_taken_at_its_word():
    y = np.where(BITS == 1, IDS, -1)
    model = network(3, loss=own_loss, metrics=[Lenient(-1)])
    right = model.predict(X, verbose=0).argmax(axis=1) == y
    assert score(model, (X, y)).accuracy == pytest.approx(np.mean(right | (y < 0)), abs=1e-6)


def two_heads(structure, metrics):
    inputs = keras.Input((6,))
    heads = {"z": layers.Dense(3, name="ids")(inputs), "a": layers.Dense(1, name="bits")(inputs)}
    model = keras.Model(inputs, structure(heads))
    model.compile("sgd", structure({"z": SPARSE_LOGITS, "a": BINARY_LOGITS}), metrics=metrics)
    return model


def as_list(parts):
    return [parts["z"], parts["a"]]


@pytest.mark.slow
@pytest.mark.parametrize("structure", [as_list, dict], ids=["list", "dict"])
def test_several_outputs_have_one_accuracy_each_and_the_mean_counts(structure):
    given = {"z": ["accuracy", *TOP], "a": [keras.metrics.BinaryAccuracy(threshold=0.0), "AUC"]}
    model = two_heads(structure, structure(given))
    data = X, structure({"z": IDS, "a": BITS})
    outputs = model.predict(X, verbose=0)
    z, a = (outputs["z"], outputs["a"]) if isinstance(outputs, dict) else outputs
    first, second = largest(z, IDS), above(0)(a, BITS)
    assert score(model, data).accuracy == pytest.approx((first + second) / 2, abs=1e-6)
    given["a"] = ["AUC"]  # only what was asked for
    model = two_heads(structure, structure(given))
    outputs = model.predict(X, verbose=0)
    z = outputs["z"] if isinstance(outputs, dict) else outputs[0]
    assert score(model, data).accuracy == pytest.approx(largest(z, IDS), abs=1e-6)
    with pytest.raises(ValueError, match="2 outputs and no accuracy metric"):
        score(two_heads(structure, None), data)


GREY = RANDOM.uniform(size=(SAMPLES, 3))
QUESTIONS = {
    "autoencoder": (3, None, X[:, :3], dict(loss="mse", metrics=["accuracy"]), "an autoencoder"),
    "grey pixels": (3, "sigmoid", GREY, dict(loss=BINARY, metrics=["accuracy"]), "an autoencoder"),
    "own regression": (1, None, X[:, 0], dict(loss=own_loss, metrics=["accuracy"]), "a regression"),
    "own regression of two": (2, None, X[:, 0], dict(loss=own_loss), "a regression"),
    "counts": (1, "relu", 5 * BITS, dict(loss="poisson", metrics=["accuracy"]), "a regression"),
    "counts of own loss": (2, None, 5 * BITS, dict(loss=own_loss), "a regression"),
    "soft decisions": (1, "sigmoid", BITS / 2, dict(loss=BINARY), "a regression"),
    "own loss, logits": (3, None, IDS, dict(loss=own_loss), "Nothing tells which .*CategoricalAcc"),
    "own metric": (3, None, IDS, dict(loss=own_loss, metrics=[balanced]), "Nothing tells which"),
    "equality": (
        *(1, None, BITS[:, None], dict(loss=own_loss, metrics=[keras.metrics.Accuracy()])),
        "Nothing tells which",
    ),
    "out of range": (3, "softmax", IDS + 1, dict(loss=SPARSE), r"labels are no class 0\.\.2"),
    "out of range of own loss": (
        *(3, None, IDS + 1, dict(loss=own_loss)),
        r"no class 0\.\.2, of the output 'out' \(loss: own_loss\). If they are no classes, but",
    ),
    "no targets": (3, "softmax", None, dict(loss=SPARSE), "hold no targets"),
}


@pytest.mark.parametrize("case", QUESTIONS)
def test_where_nothing_tells_the_user_is_asked(case):
    units, activation, y, compilation, words = QUESTIONS[case]
    model = network(units, activation, **compilation)
    with pytest.raises(ValueError, match=words):
        accuracy_metrics(model, X if y is None else (X, y), batch_size=32)


def test_one_bad_label_in_the_last_batch_is_seen():
    y = IDS.astype("float32")
    y[-1] = 0.5
    with pytest.raises(ValueError, match="a regression or an autoencoder"):
        accuracy_metrics(network(3, loss=own_loss, metrics=["accuracy"]), (X, y), batch_size=8)


def test_a_doubtful_threshold_is_said():
    model = network(1, loss=own_loss, metrics=["accuracy"])
    with pytest.warns(UserWarning, match=r"if they are logits.*BinaryAccuracy\(threshold=0.0\)"):
        score(model, (X, BITS))


def test_the_model_is_left_as_it_was():
    model = network(3, "softmax", loss=SPARSE, metrics=[balanced])
    weights = model.get_weights()
    metrics = accuracy_metrics(model, (X, IDS))
    with compiled_with(model, metrics):
        logs = model.evaluate(X, IDS, return_dict=True, verbose=0)
        assert set(logs) == {"loss", "balanced", NAME}
        assert evaluate(model, (X, IDS)).accuracy == accuracy(logs)
    assert set(model.evaluate(X, IDS, return_dict=True, verbose=0)) == {"loss", "balanced"}
    assert np.isnan(evaluate(model, (X, IDS)).accuracy)
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_names_mean_nothing():
    for names in (["accuracy", "top_5_accuracy"], ["acc"], ["weighted_accuracy", "inacc"]):
        assert np.isnan(accuracy(dict.fromkeys(names, 0.5)))
    assert accuracy({f"a_{NAME}": 0.5, f"b_{NAME}": 1.0, "accuracy": 0.1}) == 0.75


@pytest.mark.parametrize(
    ("metric", "doubted"),
    [
        (keras.metrics.BinaryAccuracy(), True),
        (keras.metrics.binary_accuracy, True),
        (keras.metrics.BinaryAccuracy(threshold=0.0), False),
        (keras.metrics.BinaryAccuracy(threshold=0.3), False),
    ],
)
def test_a_threshold_that_nobody_chose_is_doubted_for_logits(metric, doubted):
    """Where the loss does not say what the outputs are, and they are no probabilities."""
    model = network(1, loss=own_loss, metrics=[metric])
    model.layers[-1].kernel.assign(10.0 * model.layers[-1].kernel)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        score(model, (X, BITS))
    assert any("if they are logits" in str(x.message) for x in caught) == doubted
