"""Costs against what the layers' shapes say."""

import json

import keras
import numpy as np

from keras_layer_entropy.pruning import Cost, Plan, compare_costs


def test_parameters_and_flops_are_those_of_the_shapes():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, use_bias=False)(inputs)
    x = keras.layers.Flatten()(x)
    model = keras.Model(inputs, keras.layers.Dense(5, use_bias=False)(x))
    (cost,) = compare_costs([model], np.ones((2, 8, 8, 3)), rounds=3)
    products = 6 * 6 * 4 * 3 * 3 * 3 + 6 * 6 * 4 * 5
    assert cost.parameters == 4 * 3 * 3 * 3 + 6 * 6 * 4 * 5
    assert (cost.flops, cost.uncounted) == (2 * products, ())  # multiplied and added
    assert cost.dense_layers == 1
    assert set(cost.latency) == {1, 256}


def test_latency_is_measured_for_every_model_and_size():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    costs = compare_costs([model, model], np.ones((1, 4)), batch_sizes=(1, 7), rounds=3)
    assert [list(cost.latency) for cost in costs] == [[1, 7]] * 2
    assert all(ms > 0 for cost in costs for ms in cost.latency.values())


def test_what_is_not_counted_is_named():
    dense, own = keras.layers.Dense, keras.layers.Lambda
    lambdas = [own(lambda x: x + 1, name="own"), dense(3, use_bias=False)]
    model = keras.Sequential([keras.Input((4,)), *lambdas])

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__(name="code")
            self.dense = dense(3)

        def call(self, inputs):
            return self.dense(inputs)

    costs = compare_costs([model, Subclassed()], np.ones((1, 4)), batch_sizes=[1], rounds=1)
    assert [(cost.flops, cost.uncounted) for cost in costs] == [(24, ("own",)), (None, ("code",))]


def test_a_plan_keeps_what_is_not_counted():
    plan = Plan(costs=(Cost(1, 20, 40, {1: 0.5}, ("own",)), Cost(1, 10, 20, {})))
    written = json.loads(json.dumps(plan.to_json()))
    assert Plan.from_json(written) == plan
    del written["costs"][1]["uncounted"]  # as earlier versions wrote them
    assert Plan.from_json(written) == plan
