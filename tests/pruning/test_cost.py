"""Costs against what the layers' shapes say."""

import keras
import numpy as np
import pytest

from keras_layer_entropy.pruning import compare_costs


def test_parameters_and_flops_are_those_of_the_shapes():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, use_bias=False)(inputs)
    x = keras.layers.Flatten()(x)
    model = keras.Model(inputs, keras.layers.Dense(5, use_bias=False)(x))
    (cost,) = compare_costs([model], np.ones((2, 8, 8, 3)), rounds=3)
    products = 6 * 6 * 4 * 3 * 3 * 3 + 6 * 6 * 4 * 5
    assert cost.parameters == 4 * 3 * 3 * 3 + 6 * 6 * 4 * 5
    # each product is multiplied and added; backends count first additions or not
    assert cost.flops == pytest.approx(2 * products, rel=0.03)
    assert cost.dense_layers == 1
    assert set(cost.latency) == {1, 256}


def test_latency_is_measured_for_every_model_and_size():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    costs = compare_costs([model, model], np.ones((1, 4)), batch_sizes=(1, 7), rounds=3)
    assert [list(cost.latency) for cost in costs] == [[1, 7]] * 2
    assert all(ms > 0 for cost in costs for ms in cost.latency.values())
