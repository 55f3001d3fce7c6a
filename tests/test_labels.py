"""How shapes tell classes apart."""

import numpy as np
import pytest
from keras import ops

from keras_layer_entropy.labels import Labels, find_labels


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
    weights, _, misfit = membership(Labels(3, "sparse"), [0, 2, 3, -1])
    np.testing.assert_array_equal(weights, [[1, 0, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]])
    assert misfit.tolist() == [False, False, True, True]
    _, _, misfit = membership(Labels(3, "sparse"), [0.0, 2.0, 0.5, np.nan])
    assert misfit.tolist() == [False, False, True, True]
    weights, _, misfit = membership(Labels(3, "sparse"), [1, 7], [0.5, 0.0])
    np.testing.assert_array_equal(weights, [[0, 0.5, 0], [0, 0, 0]])
    assert misfit.tolist() == [False, False]
    soft = [[0.1, 0.8, 0.1], [1, 0, 1], [0, 0, 0]]
    weights, _, _ = membership(Labels(3, "one_hot"), soft)
    np.testing.assert_array_equal(weights, [[0, 1, 0], [1, 0, 1], [0, 0, 0]])


def test_membership_with_weights_of_other_shapes():
    sparse = Labels(2, "sparse")
    weights, _, _ = membership(sparse, [1, 0], [[2.0], [3.0]])
    np.testing.assert_array_equal(weights, [[0, 2], [3, 0]])
    weights, _, _ = membership(sparse, [[1, 0], [0, 0]], [2.0, 3.0])
    np.testing.assert_array_equal(weights, [[[0, 2], [2, 0]], [[3, 0], [3, 0]]])
    weights, _, _ = membership(sparse, [1, 0], [[1.0, 2.0, 0.0], [3.0, 0.0, 1.0]])
    np.testing.assert_array_equal(weights, [[[0, 1], [0, 2], [0, 0]], [[3, 0], [0, 0], [1, 0]]])
    assert membership(Labels(), [0, 1]) == [None, None, None]
    weights, _, _ = membership(Labels(), [0, 1], [0.5, 1.0])
    np.testing.assert_array_equal(weights, [[0.5], [1.0]])
