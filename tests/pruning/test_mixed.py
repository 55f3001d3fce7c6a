"""Searches in which blocks, layers and units may go, where each costs least for what it saves."""

import dataclasses

import keras
import numpy as np
import pytest

from keras_layer_entropy import PruningOptions, prune_model
from keras_layer_entropy.pruning.cost import cost_of, shares
from keras_layer_entropy.pruning.search import plan

WIDTH = 12
layers = keras.layers


def data(samples=200, seed=0):
    x = np.random.default_rng(seed).normal(size=(samples, 6)).astype("float32")
    return x, (x[:, 0] * x[:, 1] > 0).astype(int)


def network(seed=0):
    """A branch beside an identity, then two Dense layers: something of every kind may go."""
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((6,))
    x = layers.Dense(WIDTH, "relu", name="first")(x)
    branch = layers.Dense(WIDTH, "tanh", name="inside")(x)
    x = layers.Add(name="sum")([x, layers.Dense(WIDTH, name="back")(branch)])
    x = layers.Dense(WIDTH, "relu", name="second")(x)
    model = keras.Model(inputs, layers.Dense(2, "softmax", name="out")(x))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def searched(model, **options):
    options = {"epochs": 0, "max_drop": 1.0, "max_removals": 1, **options}
    return prune_model(model, data(), data(100, 1), **options)


def without_branch(model):
    """The branch gives nothing."""
    back = model.get_layer("back")
    back.set_weights([np.zeros_like(w) for w in back.get_weights()])


def with_linear_layer(model):
    """What comes out of `second` is what comes in: relu is given what is never negative."""
    for name in ("first", "inside", "back"):
        layer = model.get_layer(name)
        layer.set_weights([np.abs(w) for w in layer.get_weights()])
    model.get_layer("inside").activation = keras.activations.sigmoid
    model.get_layer("second").set_weights([np.eye(WIDTH), np.zeros(WIDTH)])
    out = model.get_layer("out")
    out.set_weights([w / 10 for w in out.get_weights()])


def with_dead_units(model):
    """Half of the units behind the branch say nothing."""
    kernel, bias = model.get_layer("second").get_weights()
    kernel[:, ::2], bias[::2] = 0.0, 0.0
    model.get_layer("second").set_weights([kernel, bias])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plant", "kind", "part"),
    [
        (without_branch, "block", "sum"),
        (with_linear_layer, "layer", "second"),
        (with_dead_units, "unit", None),
    ],
)
def test_what_costs_nothing_goes_first(plant, kind, part):
    """In each network a part of one kind can go without a change of the outputs."""
    model = network()
    plant(model)
    result = searched(model, stand_in=None, step_share=0.1)
    (step,) = result.steps
    assert step.kind == kind
    assert part in (None, step.part)
    x, _ = data(50, 2)
    before, after = (each.predict(x, verbose=0) for each in (model, result.model))
    # The ridge of the regressions, 1e-8 to 1e-6 of the features, and float32.
    np.testing.assert_allclose(after, before, atol=1e-3)
    assert np.ptp(before[:, 0]) > 0.03  # it is no comparison of constants


@pytest.mark.slow
def test_units_wait_for_whole_parts_while_quality_has_a_limit():
    model = network()
    with_dead_units(model)
    result = searched(model, max_drop=0.9)  # without one they would go first
    assert [step.kind for step in result.steps] != ["unit"]


@pytest.mark.slow
def test_all_kinds_go_and_what_went_is_said():
    model = network()
    result = searched(model, max_removals=None, step_share=0.5)
    kinds = {step.kind for step in result.steps if step.accepted}
    assert kinds == {"block", "layer", "unit"}
    assert result.removed == tuple(
        step.part for step in result.steps if step.accepted and step.kind != "unit"
    )
    # The units that went, as the original counts them: what is left has its biases.
    for path, gone in result.units.items():
        if path in ("first", "inside") and path in [x.name for x in result.model.layers]:
            left = np.delete(np.arange(WIDTH), gone)
            assert result.model.get_layer(path).units == len(left)


@pytest.mark.slow
def test_units_are_counted_as_the_original_does_after_layers_went():
    """Dead units of `first`, which is tied to nothing once the branch has gone."""
    model = network()
    without_branch(model)
    kernel, bias = model.get_layer("first").get_weights()
    dead = [1, 4, 5, 9]
    kernel[:, dead], bias[dead] = 0.0, 0.0
    model.get_layer("first").set_weights([kernel, bias])
    result = searched(
        model, max_removals=None, stand_in=None, step_share=0.1, layers=["sum", "first"],
        target={"flops": 0.325}
    )  # fmt: skip
    assert "sum" in result.removed
    assert set(dead) <= set(result.units["first"])
    left = np.delete(np.arange(WIDTH), result.units["first"])
    np.testing.assert_array_equal(
        np.asarray(result.model.get_layer("first").kernel), kernel[:, left]
    )


@pytest.mark.slow
def test_with_a_target_it_ends_there():
    model = network()
    result = searched(model, max_drop=None, max_removals=None, target={"flops": 0.5})
    x, _ = data()
    left = shares(cost_of(model, x[:1]), cost_of(result.model, x[:1]))
    assert left["flops"] <= 0.5
    assert result.target_met
    before = [step.flops for step in result.steps[:-1]]
    assert all(flops > 0.5 * cost_of(model, x[:1]).flops for flops in before)


@pytest.mark.slow
def test_names_of_parts_of_every_kind():
    options = PruningOptions(layers=["sum", "second"], keep=["first"])
    found = plan(network(), data(), data(100, 1), options)
    assert {part.path for part in found.parts} == {"sum", "second"}
    assert "kept" in found.reasons["first"]
    found = plan(network(), data(), data(100, 1), keep=["inside", "second"])
    # The branch holds what is kept; what it gives is tied to `first`, and is not.
    assert {part.path for part in found.parts} <= {"first", "back"}
    with pytest.raises(ValueError, match="There is no layer 'summ'"):
        plan(network(), data(), data(100, 1), keep=["summ"])


@pytest.mark.slow
def test_a_search_that_goes_on_ends_where_it_would_have():
    options = dict(max_removals=3, epochs=1, step_share=0.3)
    states = []
    whole = prune_model(
        network(), data(), data(100, 1), max_drop=1.0,
        on_step=lambda model, step: states.append((model, step)), **options,
    )  # fmt: skip
    first, step = states[0]
    again = prune_model(
        network(), data(), data(100, 1), max_drop=1.0, resume=(first, [step]), **options
    )
    for mine, its in zip(whole.model.weights, again.model.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(its), err_msg=mine.path)
    for one, other in zip(whole.steps, again.steps, strict=True):
        assert dataclasses.replace(one, seconds=0) == dataclasses.replace(other, seconds=0)


@pytest.mark.slow
def test_a_network_without_dense_layers():
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 3))
    for name in ("one", "two"):
        x = layers.Conv2D(6, 3, padding="same", activation="relu", name=name)(x)
    x = layers.Conv2D(2, 1, name="out")(x)
    model = keras.Model(inputs, layers.Softmax()(layers.GlobalAveragePooling2D()(x)))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    images = np.random.default_rng(0).normal(size=(60, 8, 8, 3)).astype("float32")
    both = (images, np.arange(60) % 2)
    result = prune_model(model, both, both, epochs=0, max_drop=1.0, max_removals=1)
    assert len(result.steps) == 1


@pytest.mark.slow
def test_latency_is_measured_and_decides():
    """What it is depends on the machine; that it is what ends the search does not."""
    target = {"latency@1": 0.9, "parameters": 0.6}
    options = dict(max_removals=None, max_drop=None, target=target, step_share=0.5)
    result = searched(network(), **options)
    kept = [step for step in result.steps if step.accepted]
    assert all(set(step.latency) == {1} and min(step.latency[1]) > 0 for step in kept)
    before, after = kept[-1].latency[1]
    whole = cost_of(network(), data()[0][:1]).parameters
    met = [step.latency[1][1] / step.latency[1][0] <= 0.9 for step in kept]
    fewer = [step.parameters <= 0.6 * whole for step in kept]
    assert result.target_met == (met[-1] and fewer[-1])
    assert not any(a and b for a, b in zip(met[:-1], fewer[:-1], strict=True))
    # A search that goes on reads what was decided: it measures nothing that is known.
    again = prune_model(
        network(), data(), data(100, 1), epochs=0, resume=(result.model, result.steps), **options
    )
    if result.target_met:
        assert again.steps == result.steps


@keras.saving.register_keras_serializable("mixed")
def own(x):
    return x * keras.ops.sigmoid(x)


def test_operations_that_are_not_known_are_not_saved():
    dense = [layers.Dense(WIDTH, own, name=name) for name in "ab"]
    model = keras.Sequential([keras.Input((6,)), *dense, layers.Dense(2, "softmax", name="c")])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    found = plan(model, data(), data(100, 1), remove="layers", criterion="last")
    saves = {part.path: part.saves for part in found.parts}
    assert saves["b"].flops is None
    assert saves["b"].parameters == WIDTH * (WIDTH + 1)
