"""The outputs of layers inside any model."""

import contextlib
from typing import Any

import keras

from keras_layer_entropy.backend import Tensor
from keras_layer_entropy.recording.following import Activation
from keras_layer_entropy.recording.layers import LayerChoice
from keras_layer_entropy.recording.recorder import Recorder, build


class ActivationProbe(keras.Model):
    """A model whose outputs are the outputs of layers inside another model.

    It works for any model: Sequential (built or not), functional, nested, with shared layers,
    subclassed. A Dense layer's output is what follows its activation function, also where
    normalisation and activation are layers or operations of their own. (An activation that a
    subclassed model applies as a bare function is not seen: what the layer returns is what is
    recorded.) Further calls of a shared layer are called `name#2`, `name#3`, ... in the order in
    which the model's code calls it.

    Args:
        model: any Keras model. It is left as it is.
        layers: which layers; None for every `Dense`. A name (`"dense_1"`), a path
            (`"block/dense_1"`), a layer class (`keras.layers.Conv2D`), a predicate
            `layer -> bool`, a layer itself, or a list of these.
        patterns: give each sample's activation pattern, the softmax over the layer's units (of the
            logits, where the layer itself ends in softmax), in place of the layer's output.

    Raises:
        ValueError: no such layer.

    Example:

    >>> import numpy as np
    >>> block = keras.Sequential([keras.layers.Dense(8, "relu", name="inner")], name="block")
    >>> model = keras.Sequential([block, keras.layers.Dense(2, name="logits")])
    >>> outputs = ActivationProbe(model).predict(np.ones((5, 3)), verbose=0)
    >>> {path: output.shape for path, output in outputs.items()}
    {'block/inner': (5, 8), 'logits': (5, 2)}
    """

    def __init__(
        self, model: keras.Model, layers: LayerChoice = None, patterns: bool = False
    ) -> None:
        if not isinstance(model, keras.Model):
            raise ValueError(
                f"model is a {type(model).__name__}; expected a keras.Model (load_model opens one)."
            )
        super().__init__(name="activation_probe")
        self.model = model
        self.recorder = Recorder(model, layers)
        self.patterns = patterns

    def call(self, inputs: Any, training: bool = False) -> dict[str, Tensor]:
        _, activations = self.record(inputs, training=training)
        return {a.path: a.sample_pattern() if self.patterns else a.output for a in activations}

    def record(self, inputs: Any, training: bool = False) -> tuple[Any, list[Activation]]:
        """`(outputs of the model, list of Activation in the order of the forward pass)`."""
        kwargs = {"training": training} if self.model._call_has_training_arg else {}
        build(self.model, inputs)
        with self.recorder.recording() as recording:
            outputs = self.model(inputs, **kwargs)
        self.recorder.check(recording)
        return outputs, recording.activations

    def build(self, input_shape: Any) -> None:
        """The model inside builds itself when it is called."""

    def _open_name_scope(self) -> contextlib.AbstractContextManager:
        # Variables that the model makes in here are to be named as in a call of its own.
        return contextlib.nullcontext()
