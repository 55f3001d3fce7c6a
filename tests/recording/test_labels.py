"""How shapes tell classes apart."""

import functools
import warnings

import keras
import numpy as np
import pytest
from keras import ops

from keras_layer_entropy import analyze_model
from keras_layer_entropy.recording.labels import Labels, find_labels


def zeros(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("y", "output", "want"),
    [
        (zeros(9, dtype="int64"), zeros(9, 4), Labels(4, "sparse")),
        (zeros(9), zeros(9, 4), Labels(4, "sparse")),
        (zeros(9, 1), zeros(9, 4), Labels(4, "sparse", squeeze=True)),
        (zeros(9), zeros(9, 1), Labels(2, "sparse")),
        (zeros(9, 1), zeros(9, 1), Labels(2, "sparse", squeeze=True)),
        (zeros(9, 4), zeros(9, 4), Labels(4, "one_hot")),
        (zeros(9, 5), zeros(9, 5, 4), Labels(4, "sparse")),
        (zeros(9, 1), zeros(9, 1, 4), Labels(4, "sparse")),
        (zeros(9, 5, 1), zeros(9, 5, 4), Labels(4, "sparse", squeeze=True)),
        (zeros(9, 5, 4), zeros(9, 5, 4), Labels(4, "one_hot")),
        (zeros(9, 6), zeros(9, 4), Labels(6, "one_hot")),
        (None, zeros(9, 4), Labels()),
    ],
)
def test_shapes(y, output, want):
    assert find_labels(y, output) == want


def test_outputs_by_key_position_and_name():
    outputs = {"a": zeros(9, 4), "b": zeros(9, 5)}
    y = {"a": zeros(9), "b": zeros(9)}
    assert find_labels(y, outputs, {"b": None}) == Labels(5, "sparse", "b")
    listed = list(outputs.values())
    assert find_labels((zeros(9), zeros(9)), listed, {1: None}) == Labels(5, "sparse", 1)
    assert find_labels(y, listed, {"b": None}, output_names=["a", "b"]).num_classes == 5
    assert find_labels(y, outputs, {"b": 7}).num_classes == 7
    deep = {"labels": {"a": zeros(9), "b": zeros(9)}}  # the last name counts
    assert find_labels(deep, listed, {"a": None}, output_names=["b", "a"]) == (
        Labels(5, "sparse", ("labels", "a"))
    )
    assert find_labels({"a": zeros(9)}, outputs) == Labels(4, "sparse", "a")
    assert find_labels(y, outputs, loss={"a": "mse"}).key == "b"
    with pytest.raises(ValueError, match=r"no 'c' among.*only \['a', 'b'\]"):
        find_labels(y, outputs, {"c": None})


def test_number_of_classes():
    assert find_labels(zeros(9), zeros(9, 4), 6).num_classes == 6
    with pytest.raises(ValueError, match="one-hot over 4 classes"):
        find_labels(zeros(9, 4), zeros(9, 4), 6)
    with pytest.raises(ValueError, match="pass num_classes="):
        find_labels(zeros(9), None)
    with pytest.raises(ValueError, match="no labels"):
        find_labels(None, zeros(9, 4), 6)


@pytest.mark.parametrize("loss", ["mse", "huber", "mean_absolute_error"])
def test_regression(loss):
    with pytest.warns(UserWarning, match="targets of a regression"):
        assert find_labels(zeros(9, 4), zeros(9, 4), loss=loss) == Labels()
    assert find_labels(zeros(9, 4), zeros(9, 4), 4, loss=loss).num_classes == 4


@pytest.mark.parametrize("loss", ["binary_crossentropy", "mse"])
def test_autoencoders(loss):
    with pytest.warns(UserWarning, match="pass num_classes= if y holds classes"):
        assert find_labels(zeros(9, 784), zeros(9, 784), loss=loss) == Labels()
    with pytest.warns(UserWarning, match="autoencoder"):
        assert find_labels(zeros(9, 8, 8, 1), zeros(9, 8, 8, 1), loss=loss) == Labels()
    assert find_labels(zeros(9), zeros(9, 1), loss="binary_crossentropy").num_classes == 2


def test_one_class_of_everything():
    assert find_labels(zeros(9), zeros(9, 4), 1) == Labels()
    assert find_labels({"a": zeros(9), "b": zeros(9)}, {"a": zeros(9, 4)}, 1) == Labels()
    assert find_labels(None, zeros(9, 4), 1) == Labels()


def membership(labels, y, weight=None):
    found = labels.membership(np.asarray(y), None if weight is None else np.asarray(weight))
    return [None if part is None else ops.convert_to_numpy(part) for part in found]


def test_membership():
    weights, _, misfit, _ = membership(Labels(3, "sparse"), [0, 2, 3, -1])
    np.testing.assert_array_equal(weights, [[1, 0, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]])
    assert misfit.tolist() == [False, False, True, True]
    _, _, misfit, _ = membership(Labels(3, "sparse"), [0.0, 2.0, 0.5, np.nan])
    assert misfit.tolist() == [False, False, True, True]
    weights, _, misfit, _ = membership(Labels(3, "sparse"), [1, 7], [0.5, 0.0])
    np.testing.assert_array_equal(weights, [[0, 0.5, 0], [0, 0, 0]])
    assert misfit.tolist() == [False, False]
    weights, _, misfit, _ = membership(Labels(3, "sparse", ignored=1), [0, 1, 3, -1])
    np.testing.assert_array_equal(weights, [[1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]])
    assert misfit.tolist() == [False, False, True, True]
    soft = [[0.1, 0.8, 0.1], [1, 0, 1], [0, 0, 0]]
    weights, *_ = membership(Labels(3, "one_hot"), soft)
    np.testing.assert_array_equal(weights, [[0, 1, 0], [1, 0, 1], [0, 0, 0]])


def test_membership_with_weights_of_other_shapes():
    sparse = Labels(2, "sparse")
    weights, *_ = membership(sparse, [1, 0], [[2.0], [3.0]])
    np.testing.assert_array_equal(weights, [[0, 2], [3, 0]])
    weights, *_ = membership(sparse, [[1, 0], [0, 0]], [2.0, 3.0])
    np.testing.assert_array_equal(weights, [[[0, 2], [2, 0]], [[3, 0], [3, 0]]])
    weights, *_ = membership(sparse, [1, 0], [[1.0, 2.0, 0.0], [3.0, 0.0, 1.0]])
    np.testing.assert_array_equal(weights, [[[0, 1], [0, 2], [0, 0]], [[3, 0], [0, 0], [1, 0]]])
    assert membership(Labels(), [0, 1]) == [None, None, None, None]
    weights, *_ = membership(Labels(), [0, 1], [0.5, 1.0])
    np.testing.assert_array_equal(weights, [[0.5], [1.0]])
    weights, *_ = membership(Labels(), [0, 1], [[0.5], [1.0]])
    np.testing.assert_array_equal(weights, [[0.5], [1.0]])
    steps = [[[1.0], [2.0]], [[0.0], [3.0]]]
    weights, *_ = membership(sparse, [[1, 0], [0, 0]], steps)
    np.testing.assert_array_equal(weights, [[[0, 1], [2, 0]], [[0, 0], [3, 0]]])


FLAGS = {  # rows -> which are no class, which name several classes or none
    "one-hot": ([[0, 1, 0], [1, 0, 0]], [0, 0], [0, 0]),
    "shares": ([[0.1, 0.8, 0.1], [1 / 3, 1 / 3, 1 / 3]], [0, 0], [0, 0]),
    "several and none": ([[1, 1, 0], [0, 0, 0]], [0, 0], [1, 1]),
    "boxes": ([[0.2, 0.3, 0.9], [0.5, 0.1, 0.1]], [1, 1], [0, 0]),
    "negative": ([[-0.5, 1.0, 0.5], [0, -1, 0]], [1, 1], [0, 0]),
    "ids": ([[2, 0, 1], [0, 1, 0]], [1, 0], [0, 0]),
    "not a number": ([[np.nan, 0, 1], [np.inf, 0, 0]], [1, 1], [0, 0]),
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("rows", FLAGS)
def test_values_of_rows(rows, dtype):
    y, misfit, several = FLAGS[rows]
    found = Labels(3, "one_hot").membership(ops.cast(np.asarray(y, "float32"), dtype))
    assert ops.convert_to_numpy(found.misfit).tolist() == list(map(bool, misfit))
    assert ops.convert_to_numpy(found.several).tolist() == list(map(bool, several))


def test_values_of_signed_labels():
    weights, _, misfit, _ = membership(Labels(2, "sparse", signed=True), [-1.0, 1.0, 0.0, -2.0])
    np.testing.assert_array_equal(weights, [[1, 0], [0, 1], [1, 0], [0, 0]])
    assert misfit.tolist() == [False, False, False, True]
    rows = [[-1, 1, -1], [1, 1, -1], [-0.5, 1, 0]]
    weights, _, misfit, several = membership(Labels(3, "one_hot", signed=True), rows)
    np.testing.assert_array_equal(weights[:2], [[0, 1, 0], [1, 1, 0]])
    assert (misfit.tolist(), several.tolist()) == ([False, False, True], [False, True, False])


def test_labels_of_samples_without_weight_may_be_anything():
    rows = [[5.0, -1.0], [0.0, 1.0]]
    assert membership(Labels(2, "one_hot"), rows, [0.0, 1.0])[2].tolist() == [False, False]
    per_step = [[0.0, 0.0], [0.0, 1.0]]
    assert membership(Labels(2, "one_hot"), rows, per_step)[2].tolist() == [False, False]
    assert membership(Labels(2, "one_hot"), rows, per_step[::-1])[2].tolist() == [True, False]


class Wrapped(keras.losses.MeanSquaredError.__base__):
    """A loss of one's own that wraps one of Keras's functions."""


def forms(name):
    """A loss of Keras in every form that `compile` takes."""
    function = getattr(keras.losses, name)
    classes = [
        cls
        for cls in vars(keras.losses).values()
        if isinstance(cls, type) and cls is not keras.losses.Loss
    ]
    (cls,) = [cls for cls in classes if cls().fn is function]
    texts = [name, cls.__name__]
    if name == "categorical_generalized_cross_entropy":  # which Keras knows by no text
        texts = []
    return [
        *texts,
        function,
        cls(),
        cls,
        functools.partial(function),
        Wrapped(function),
    ]


# Name of a function -> what floats [samples, 4] beside an output of that shape mean.
MEANING = {
    **dict.fromkeys(["mean_squared_error", "mean_absolute_error", "huber", "log_cosh"], "targets"),
    **dict.fromkeys(["mean_absolute_percentage_error", "poisson", "ctc"], "targets"),
    **dict.fromkeys(["mean_squared_logarithmic_error", "cosine_similarity"], "targets"),
    **dict.fromkeys(["binary_crossentropy", "binary_focal_crossentropy"], "targets"),
    **dict.fromkeys(["categorical_crossentropy", "categorical_focal_crossentropy"], "classes"),
    **dict.fromkeys(["categorical_generalized_cross_entropy", "kl_divergence"], "classes"),
    **dict.fromkeys(["sparse_categorical_crossentropy", "circle", "dice", "tversky"], "classes"),
    **dict.fromkeys(["hinge", "squared_hinge", "categorical_hinge"], "classes"),
}


def test_every_loss_of_keras_is_looked_at():
    functions = {
        f.__name__
        for f in vars(keras.losses).values()
        if callable(f) and not isinstance(f, type) and f.__name__ not in vars(keras.losses.Loss)
    }
    assert functions - {"get", "serialize", "deserialize"} == set(MEANING)


@pytest.mark.parametrize("name", MEANING)
def test_every_loss_in_every_form(name):
    y, output = zeros(9, 4), zeros(9, 4)
    for loss in forms(name):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = find_labels(y, output, loss=loss)
        targets = MEANING[name] == "targets"
        assert (found.kind == "none") == targets == bool(said), loss
        assert found.signed == ("hinge" in name), loss
        assert find_labels(y, output, 4, loss=loss).num_classes == 4


def test_integer_rows_with_a_binary_loss_name_several_classes():
    rows = zeros(9, 4, dtype="int64")
    assert find_labels(rows, zeros(9, 4), loss="binary_crossentropy").multi_label
    assert not find_labels(rows, zeros(9, 4), loss="categorical_crossentropy").multi_label
    assert find_labels(rows, zeros(9, 4), 4).multi_label


def test_embeddings_say_nothing_of_classes():
    with pytest.raises(ValueError, match=r"output of shape \(9, 16\): pass num_classes="):
        find_labels(zeros(9, dtype="int64"), zeros(9, 16), loss="circle")
    assert find_labels(zeros(9, dtype="int64"), zeros(9, 16), 5, loss="circle").num_classes == 5


SPARSE = functools.partial(
    keras.losses.SparseCategoricalCrossentropy, from_logits=True, ignore_class=-1
)
IGNORING = {
    "object": SPARSE(),
    "partial": functools.partial(keras.losses.sparse_categorical_crossentropy, ignore_class=-1),
    "partial of a partial": functools.partial(
        functools.partial(keras.losses.sparse_categorical_crossentropy, ignore_class=-1),
        from_logits=True,
    ),
    "wrapped": Wrapped(keras.losses.sparse_categorical_crossentropy, ignore_class=-1),
}


@pytest.mark.parametrize("form", IGNORING)
def test_ignored_classes_in_every_form(form):
    assert find_labels(zeros(9, dtype="int64"), zeros(9, 4), loss=IGNORING[form]).ignored == -1


Y_D, Y_C = np.arange(12) % 4, np.arange(12) % 3
STRUCTURES = {  # loss, labels, and what the second output may be called
    "dict, dict": ({"d": SPARSE(), "c": SPARSE()}, {"d": Y_D, "c": Y_C}, ["c"]),
    "dict, tuple": ({"d": SPARSE(), "c": SPARSE()}, (Y_D, Y_C), ["c", 1]),
    "list, dict": ([SPARSE(), SPARSE()], {"d": Y_D, "c": Y_C}, ["c", 1]),
    "list, tuple": ([SPARSE(), SPARSE()], (Y_D, Y_C), ["c", 1]),
    "one, tuple": (SPARSE(), (Y_D, Y_C), ["c", 1]),
    "one, dict": (SPARSE(), {"d": Y_D, "c": Y_C}, ["c", 1]),
    "partial list": ([None, SPARSE()], (Y_C,), ["c", 0, None]),
    "regression in a dict, tuple": ({"d": "mse", "c": SPARSE()}, (zeros(12, 4), Y_C), [1, None]),
    "regression in a list, dict": (["mse", SPARSE()], {"d": zeros(12, 4), "c": Y_C}, [1, None]),
}


def two_outputs(outputs):
    inputs = keras.Input((5,))
    d, c = keras.layers.Dense(4, name="d")(inputs), keras.layers.Dense(3, name="c")(inputs)
    return keras.Model(inputs, {"list": [d, c], "dict": {"d": d, "c": c}}[outputs])


@pytest.mark.slow
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("outputs", ["list", "dict"])
def test_labels_losses_and_outputs_in_every_structure(structure, outputs):
    """Whatever `evaluate` takes is understood in the same way."""
    loss, y, names = STRUCTURES[structure]
    if outputs == "dict":  # whose order is that of the keys
        loss, y = (part[::-1] if isinstance(part, list | tuple) else part for part in (loss, y))
        by_place = isinstance(y, tuple)
        names = [0 if n == 1 else n for n in names if by_place or not isinstance(n, int)]
    model, x = two_outputs(outputs), np.ones((12, 5))
    model.compile("sgd", loss)
    try:
        model.evaluate(x, y, verbose=0)
    except (ValueError, KeyError) as error:
        pytest.skip(f"Keras does not take it: {type(error).__name__}: {str(error)[:80]}")
    for name in names:
        found = find_labels(
            y,
            model(x),
            None if name is None else {name: None},
            loss=loss,
            output_names=model.output_names,
        )
        assert (found.num_classes, found.ignored) == (3, -1), name
        weights, *_ = found.membership(y)
        np.testing.assert_array_equal(ops.convert_to_numpy(weights), np.eye(3)[Y_C])


def test_weights_in_another_structure_than_labels():
    outputs, names = [zeros(12, 4), zeros(12, 3)], ["d", "c"]
    found = find_labels((Y_D, Y_C), outputs, {1: None}, output_names=names)
    weights = {"d": np.zeros(12), "c": np.full(12, 2.0)}
    for given in (weights, list(weights.values()), weights["c"]):
        inside = ops.convert_to_numpy(found.membership((Y_D, Y_C), given).weights)
        np.testing.assert_array_equal(inside, 2 * np.eye(3)[Y_C])


def test_nested_outputs():
    outputs = {"heads": {"a": zeros(9, 4), "b": zeros(9, 5)}, "x": [zeros(9, 2), None]}
    y = {"heads": {"a": zeros(9), "b": np.arange(9) % 5}}
    for key in ("b", ("heads", "b")):
        with_key = find_labels(y, outputs, {key: None})
        assert (with_key.num_classes, with_key.key) == (5, ("heads", "b"))
    assert ops.convert_to_numpy(with_key.membership(y).weights).sum() == 9


@pytest.mark.parametrize(
    "outputs",
    [
        {"attention": None, "logits": zeros(9, 4)},
        {"count": 3, "logits": zeros(9, 4)},
        (None, zeros(9, 4)),
        [zeros(9, 4), None, 2.5],
    ],
)
def test_outputs_beside_none_and_numbers(outputs):
    assert find_labels(zeros(9), outputs).num_classes == 4


@pytest.mark.parametrize("texts", [np.array(["a", "b"]), np.array(["a", "b"], object)])
def test_texts_are_no_labels(texts):
    with pytest.raises(ValueError, match="labels are texts; expected integers"):
        find_labels(texts, zeros(2, 4))
    assert find_labels(texts, zeros(2, 4), 1) == Labels()


@pytest.mark.parametrize(
    ("row", "example"),
    [([-0.5, 1.5, 0.0], "-0.5"), ([1.5, 0.0, 0.0], "1.5"), ([0.25, 0.25, 0.0], "0.5")],
)
def test_a_row_that_is_no_class_is_shown_by_what_is_wrong_with_it(row, example):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    y = np.eye(3)[np.arange(12) % 3]
    y[7] = row
    with pytest.raises(ValueError, match=rf"another size, for example {example}\)"):
        analyze_model(model, (np.ones((12, 4)), y), verbose=0)


def test_a_single_entry_counts_whatever_its_name():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="out")])
    x, y = np.ones((12, 4)), np.arange(12) % 3
    assert analyze_model(model, (x, {"other": y}), verbose=0).count.tolist() == [4, 4, 4]
    both = {"other": y, "another": y}
    with pytest.raises(ValueError, match="another"):
        analyze_model(model, (x, both), verbose=0)


def test_the_weight_of_a_single_sample():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="out")])
    for weight in (np.ones(1), np.ones((1, 1))):
        with pytest.warns(UserWarning, match="No sample belongs to 2 of 3 classes"):
            profile = analyze_model(model, (np.ones((1, 4)), np.array([1]), weight), verbose=0)
        assert profile.count.tolist() == [0, 1, 0]
