"""What follows from a tensor inside a model, against a model of Keras that takes that tensor."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_layer_entropy.pruning import stretches
from keras_layer_entropy.pruning.stretches import Stretches
from keras_layer_entropy.recording.graph import flat_graph


@pytest.fixture
def random():
    return np.random.default_rng(0)


def branching():
    """Branches, a sum, two outputs, an input that goes in twice."""
    x = inputs = keras.Input((6,))
    for number in range(3):
        branch = layers.Dense(6, "tanh", name=f"in_{number}")(x)
        x = layers.Add(name=f"sum_{number}")([layers.Dense(6, name=f"out_{number}")(branch), x])
    both = layers.Concatenate(name="both")([x, inputs])
    other = layers.Dense(2, name="other")(layers.ReLU(name="relu")(x))
    return keras.Model(inputs, [layers.Dense(3, name="last")(both), other])


def tensors(model):
    """Number of each tensor inside a model of plain layers -> Keras's."""
    found = {}
    for call in flat_graph(model).calls:
        found.update(zip(call.outputs, call.node.output_tensors, strict=True))
    return found


@pytest.mark.parametrize("often", [1, 100], ids=["traced", "one by one"])
def test_what_follows_is_what_a_model_gives_that_takes_the_tensor(often, random, monkeypatch):
    monkeypatch.setattr(stretches, "_OFTEN", often)
    model, x = branching(), random.normal(size=(7, 6)).astype("float32")
    graph, inside = flat_graph(model), tensors(model)
    found = Stretches(graph, set(inside))
    values = found.values([x])
    for number, tensor in inside.items():
        value = ops.convert_to_numpy(values[number][0])
        alone = keras.Model(model.inputs, tensor)
        # Sums of float32 in another order.
        np.testing.assert_allclose(value, ops.convert_to_numpy(alone(x)), atol=1e-5)
        instead = random.normal(size=value.shape).astype("float32")
        changed = found.changed(values, {number: instead})
        np.testing.assert_array_equal(ops.convert_to_numpy(changed[number][0]), instead)
        ends = [y for y in graph.outputs if y != number]
        behind = keras.Model([*model.inputs, tensor], [inside[end] for end in ends])
        for end, expected in zip(ends, keras.tree.flatten(behind([x, instead])), strict=True):
            given, expected = changed.get(end, values[end])[0], ops.convert_to_numpy(expected)
            np.testing.assert_allclose(ops.convert_to_numpy(given), expected, atol=1e-5)
            apart = not np.allclose(expected, ops.convert_to_numpy(values[end][0]), atol=1e-5)
            assert apart == (end in changed)


def test_only_what_changes_is_made_again(monkeypatch):
    inputs, made = keras.Input((6,)), []
    one, other = (
        layers.ReLU(name=f"relu_{name}")(layers.Dense(6, name=name)(inputs))
        for name in ("one", "other")
    )
    both = layers.Dense(2, name="last")(layers.Add(name="both")([one, other]))
    graph = flat_graph(keras.Model(inputs, both))
    number, beside = (graph.calls_of(path)[0].outputs[0] for path in ("one", "other"))
    found = Stretches(graph, {number, beside})
    values = found.values([np.ones((2, 6))])
    run = stretches.run
    monkeypatch.setattr(stretches, "run", lambda call, x: made.append(call.path) or run(call, x))
    found.changed(values, {number: np.zeros((2, 6))})
    assert made == ["relu_one", "both", "last"]


def test_what_is_replaced_stays_so_behind_another(random):
    model, x = branching(), random.normal(size=(7, 6)).astype("float32")
    graph = flat_graph(model)
    numbers = [graph.calls_of(path)[0].outputs[0] for path in ("sum_0", "sum_1", "sum_2")]
    found = Stretches(graph, set(numbers))
    values = found.values([x])
    instead = {number: random.normal(size=(7, 6)).astype("float32") for number in numbers}
    both, last = (
        found.changed(values, given) for given in (instead, {numbers[2]: instead[numbers[2]]})
    )
    for number in graph.outputs:
        np.testing.assert_array_equal(*(ops.convert_to_numpy(x[number][0]) for x in (both, last)))


def test_a_stretch_is_as_long_as_nothing_inside_is_asked_for():
    graph = flat_graph(branching())
    (relu,) = graph.calls_of("relu")
    values = Stretches(graph, {relu.outputs[0]}).values([np.ones((2, 6))])
    branches = {x for c in graph.calls if c.path.startswith("in_") for x in c.outputs}
    assert relu.outputs[0] in values
    assert not branches.intersection(values)


@pytest.mark.parametrize("often", [1, 100], ids=["traced", "one by one"])
def test_masks_go_along(often, random, monkeypatch):
    """Padding is no key of attention, which takes the mask from the tensor."""
    monkeypatch.setattr(stretches, "_OFTEN", often)
    words, query = keras.Input((5,), dtype="int32"), keras.Input((3, 4))
    memory = layers.Embedding(9, 4, mask_zero=True, name="memory")(words)
    model = keras.Model([words, query], layers.MultiHeadAttention(2, 3)(query, memory))
    x = [np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 7]]), random.normal(size=(2, 3, 4))]
    x[1] = x[1].astype("float32")
    graph = flat_graph(model)
    (number,) = graph.calls_of("memory")[0].outputs
    (last,) = graph.outputs
    found = Stretches(graph, {number})
    values, expected = found.values(x), ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(ops.convert_to_numpy(values[last][0]), expected, atol=1e-6)
    # What is masked in the first sample is looked at by nobody.
    instead = ops.convert_to_numpy(values[number][0]).copy()
    instead[0, 2:] = 100.0
    changed, _ = found.changed(values, {number: instead})[last]
    np.testing.assert_allclose(ops.convert_to_numpy(changed), expected, atol=1e-6)


def test_what_no_graph_does_is_made_one_by_one(monkeypatch):
    class Looks(layers.Layer):
        def call(self, x):
            return x * float(np.max(ops.convert_to_numpy(x)))  # numbers, not a graph's tensors

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape, x.dtype)

    monkeypatch.setattr(stretches, "_OFTEN", 1)
    model = keras.Sequential([keras.Input((2,)), Looks()])
    graph = flat_graph(model)
    for _ in range(2):
        values = Stretches(graph, set()).values([np.array([[1.0, 3.0]], "float32")])
        ((value, _),) = (values[number] for number in graph.outputs)
        assert ops.convert_to_numpy(value).tolist() == [[3.0, 9.0]]
