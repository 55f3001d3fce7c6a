"""What every layer of a model gives in one forward pass, in the order in which they are done."""

import contextlib
import dataclasses
import functools

import keras
from keras import ops, tree

from keras_layer_entropy.backend import graph_of
from keras_layer_entropy.recording.following import call_of
from keras_layer_entropy.recording.layers import every_layer
from keras_layer_entropy.recording.watching import watched


@dataclasses.dataclass(frozen=True)
class Output:
    """What one call of one layer gave: its path, and the floating tensors."""

    path: str
    tensors: tuple

    def features(self):
        """As those of `following.Activation`, where nothing is asked but the tensors."""
        return self.tensors


class Outputs:
    """What was recorded of one forward pass: `Output`s, in the order in which they were done."""

    def __init__(self):
        self.activations = []
        self.outputs = None  # those of the model, which nobody asks for


class OutputsRecorder:
    """Watches every layer of a model while `recording`, for `fit_steps.RecordingFunction`.

    Layers that others hold are done before these are: the first to give something is the innermost.
    Last is the model itself, with the path "", where it is called as a whole.

    Args:
        model: any Keras model.
    """

    def __init__(self, model):
        self._model = model

    @contextlib.contextmanager
    def recording(self):
        """Records what the model does inside the block; yields the `Outputs` that fill up."""
        found = Outputs()
        layers, out_of_reach = every_layer(self._model)
        calls = [
            (layer, call_of(layer), functools.partial(_noted, found, path))
            for path, layer in layers.items()
            if path not in out_of_reach
        ]
        calls.append((self._model, call_of(self._model), functools.partial(_noted, found, "")))
        with watched(calls):
            yield found
        # Of the graph of the step, not of a loop inside.
        here = {id(graph_of(x)) for one in found.activations[-1:] for x in one.tensors}
        found.activations = [
            one for one in found.activations if {id(graph_of(x)) for x in one.tensors} <= here
        ]

    def check(self, recording):
        """There is nothing that has to be among them."""


def _noted(found, path, original, *args, **kwargs):
    """Notes what a layer returns."""
    returned = original(*args, **kwargs)
    tensors = tuple(
        x
        for x in tree.flatten(returned)
        if ops.is_tensor(x)
        and keras.backend.is_float_dtype(keras.backend.standardize_dtype(x.dtype))
    )
    if tensors:
        found.activations.append(Output(path, tensors))
    return returned
