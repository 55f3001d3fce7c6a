"""Training within a search: the same each time, and left at its best epoch."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from keras_layer_entropy.backend import Data
from keras_layer_entropy.pruning.options import PruningOptions
from keras_layer_entropy.pruning.qualities import Quality
from keras_layer_entropy.pruning.shuffling import Shuffled
from keras_layer_entropy.recording.passes import Source


def arguments(data: Data, options: PruningOptions, seed: int) -> dict[str, Any]:
    """Arguments of `fit` for training data: arrays are shuffled anew in every epoch."""
    train = Source(data, options.batch_size, options.steps_per_epoch).keywords
    if "batch_size" not in train:
        ordered = not isinstance(data, keras.utils.PyDataset) or data.num_batches is None
        return {**train, "shuffle": not ordered}  # a data set shuffles itself
    parts = tuple(train[k] for k in ("x", "y", "sample_weight") if train[k] is not None)
    if not all(hasattr(part, "__array__") for part in tree.flatten(parts)):
        return train  # sparse or ragged: Keras shuffles them
    arrays = tree.map_structure(np.asarray, parts)
    return {"x": Shuffled(arrays, train["batch_size"], seed)}


def reseed(model: keras.Model, seed: int) -> None:
    """Gives every seed generator in a model, of its Dropout layers say, a state of this seed."""
    generators = [g for layer in model._flatten_layers() for g in layer._seed_generators]
    for index, generator in enumerate(dict.fromkeys(generators)):
        (own,) = np.random.SeedSequence([seed, index]).generate_state(1)
        generator.state.assign(np.array([own >> 1, 0], generator.state.dtype))


class KeepBest(keras.callbacks.Callback):
    """Leaves model and optimizer as they were after the epoch with the best quality.

    Args:
        model: what is trained.
        quality: `Quality`.
        at_start: its value before the training.
        measure: a function that gives its value, given the logs of the validation.
    """

    def __init__(
        self,
        model: keras.Model,
        quality: Quality,
        at_start: float,
        measure: Callable[[dict[str, Any]], float],
    ) -> None:
        super().__init__()
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        self._trained = model
        self._quality, self._measure = quality, measure
        self._best, self._state = at_start, self._copied()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        value = self._measure({k[4:]: v for k, v in logs.items() if k.startswith("val_")})
        if self._quality.better(value, self._best):
            self._best, self._state = value, self._copied()

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        for variable, value in zip(self._variables(), self._state, strict=True):
            variable.assign(value)

    def _variables(self) -> list[keras.Variable]:
        return [*self._trained.variables, *self._trained.optimizer.variables]

    def _copied(self) -> list[np.ndarray]:
        return [np.array(ops.convert_to_numpy(variable)) for variable in self._variables()]


def check_data(name: str, data: Data, options: PruningOptions, steps: str) -> None:
    """Raises for data that cannot be read again and again, each time to an end."""
    if not Source(data, options.batch_size, steps=1).repeatable:
        raise ValueError(
            f"{name} is a {type(data).__name__}, which can be read only once: pass arrays, "
            "a tf.data.Dataset or a PyDataset."
        )
    try:
        source = Source(data, options.batch_size, getattr(options, steps), must_end=True)
    except ValueError as error:
        if getattr(options, steps) is not None or "steps" not in str(error):
            raise
        raise ValueError(f"{name} has no end that is known: give {steps}=. ({error})") from error
    for leaf in tree.flatten(source.keywords["x"]):
        numbers = isinstance(leaf, np.ndarray) and np.issubdtype(leaf.dtype, np.floating)
        if numbers and not np.isfinite(leaf).all():
            rows = np.flatnonzero(~np.isfinite(leaf.reshape(len(leaf), -1)).all(axis=1))
            raise ValueError(
                f"The inputs of {name} are NaN or infinite in {len(rows)} samples, the first of "
                f"them number {rows[0]}: leave these out, or fill in what is missing."
            )
