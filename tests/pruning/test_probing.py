"""What was found for one call is told of another only where they do the same."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_layer_entropy.pruning import probing
from keras_layer_entropy.recording.graph import flat_graph


def named_alike(turned):
    def function(x):
        return ops.flip(x, axis=-1) if turned else 2 * x

    return layers.Activation(function)


class Own(layers.Reshape):
    """A layer whose configuration does not say all."""

    def __init__(self, turned):
        super().__init__((4, 4))
        self.turned = turned

    def call(self, inputs):
        x = super().call(inputs)
        return ops.flip(x, axis=-1) if self.turned else x


ALIKE_BUT_FOR_ONE_THING = {
    "the configuration": (layers.Permute((1, 2)), layers.Permute((2, 1))),
    "what nobody says": (Own(False), Own(True)),
    "the function": (named_alike(False), named_alike(True)),
    "the shapes": (layers.Flatten(), layers.Flatten()),
}


def place_of_units(layer, width):
    x = keras.Input((4, width))
    graph = flat_graph(keras.Model(x, layer(x)))
    (call,) = graph.calls
    shapes, dtypes = ([kind[n] for n in call.inputs] for kind in (graph.shapes, graph.dtypes))
    asked = call, shapes, dtypes, 0, 2
    return probing.known_sources(*asked)[0], probing.sources(*asked)[0]


@pytest.mark.tensorflow
@pytest.mark.parametrize("case", ALIKE_BUT_FOR_ONE_THING)
def test_calls_that_differ_are_told_apart(case):
    found = []
    widths = (4, 8) if case == "the shapes" else (4, 4)
    for layer, width in zip(ALIKE_BUT_FOR_ONE_THING[case], widths, strict=True):
        known, itself = place_of_units(layer, width)
        assert known.axis == itself.axis
        np.testing.assert_array_equal(known.of, itself.of)
        found.append((itself.axis, itself.of.tolist()))
    assert found[0] != found[1]


@pytest.mark.tensorflow
def test_calls_that_are_alike_are_looked_at_once(monkeypatch):
    monkeypatch.setattr(probing, "_known", {})
    for _ in range(3):
        place_of_units(layers.ReLU(), 4)
    assert len(probing._known) == 1
