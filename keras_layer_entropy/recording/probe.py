"""The outputs of layers inside any model."""

import contextlib
import pathlib
from typing import Any

import keras

from keras_layer_entropy.backend import Data, Tensor
from keras_layer_entropy.files import AnyPath
from keras_layer_entropy.recording.following import Activation
from keras_layer_entropy.recording.layers import LayerChoice
from keras_layer_entropy.recording.recorder import Recorder, build
from keras_layer_entropy.recording.to_disk import predict_to


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

    def predict_to(
        self,
        path: AnyPath,
        data: Data,
        *,
        batch_size: int = 256,
        steps: int | None = None,
        overwrite: bool = False,
    ) -> dict[str, pathlib.Path]:
        """Writes the outputs to a folder, a `.npy` file for each layer, batch by batch.

        Memory does not grow with the data. What is interrupted goes on where it was when it is
        called again with the same data in the same order; `numpy.load(file, mmap_mode="r")` reads a
        file without loading it.

        Args:
            path: the folder; it is made where there is none.
            data, batch_size, steps: as for `analyze_model`; labels are not looked at.
            overwrite: begin anew where there are outputs already.

        Returns:
            Path of each layer -> that of its file, `block__dense.npy` for `block/dense`.

        Raises:
            FileExistsError: the folder holds other files, or outputs that are complete.
            ValueError: samples of several sizes, data without an end and without `steps`, data or
                weights that are not those of the part that is there.

        Example:

        >>> import numpy as np, tempfile
        >>> layers = [keras.layers.Dense(8, "relu", name="a"), keras.layers.Dense(3, name="b")]
        >>> probe = ActivationProbe(keras.Sequential(layers))
        >>> files = probe.predict_to(tempfile.mkdtemp(), np.ones((600, 4)))
        >>> {layer: np.load(file, mmap_mode="r").shape for layer, file in files.items()}
        {'a': (600, 8), 'b': (600, 3)}
        """
        return predict_to(self, path, data, batch_size=batch_size, steps=steps, overwrite=overwrite)

    def build(self, input_shape: Any) -> None:
        """The model inside builds itself when it is called."""

    def _open_name_scope(self) -> contextlib.AbstractContextManager:
        # Variables that the model makes in here are to be named as in a call of its own.
        return contextlib.nullcontext()
