"""Loss and accuracy of a model on data: what every decision of the search is made from."""

import contextlib
import dataclasses
import math

from keras import ops

from keras_layer_entropy.backend import strategy_scope
from keras_layer_entropy.pruning.accuracies import NAME
from keras_layer_entropy.pruning.copying import Copies
from keras_layer_entropy.pruning.optimizer_state import fresh_metrics, recompile, reset_copies
from keras_layer_entropy.recording.passes import Source


@dataclasses.dataclass(frozen=True)
class Scores:
    """`loss`, without penalties on weights, and `accuracy`: the mean over outputs that have one."""

    loss: float
    accuracy: float


@contextlib.contextmanager
def compiled_with(model, metrics):
    """While the block runs, a model is compiled with other metrics; its optimizer goes on.

    Args:
        model: a compiled model.
        metrics: arguments of `compile`, of `accuracy_metrics` say.
    """
    before = fresh_metrics(model)
    copies = Copies(model)
    metrics = {kind: reset_copies(structure, copies) for kind, structure in metrics.items()}
    with strategy_scope(model):
        recompile(model, **{**before, **metrics, "optimizer": model.optimizer})
    try:
        yield model
    finally:
        with strategy_scope(model):
            recompile(model, **{**before, "optimizer": model.optimizer})


def evaluate(model, data, batch_size=256, steps=None):
    """The `Scores` of a compiled model.

    Args:
        model: a compiled model; within `compiled_with`, where accuracy is asked for.
        data: as for `analyze_model`.
        batch_size: batch size for arrays.
        steps: number of batches, None for all.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from keras_layer_entropy.pruning.accuracies import accuracy_metrics
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> model.compile("sgd", loss, metrics=["accuracy"])
    >>> data = np.ones((6, 4)), np.arange(6) % 3
    >>> with compiled_with(model, accuracy_metrics(model, data)):
    ...     scores = evaluate(model, data)
    >>> round(scores.accuracy, 4)
    0.3333
    """
    logs = logs_of(model, data, batch_size, steps)
    return Scores(loss_on_data(logs, model), accuracy(logs))


def loss_on_data(logs, model):
    """The loss in the logs of a model, without the penalties on its weights.

    A smaller model has fewer of these, and would look better than it is.
    """
    weights = [v for v in model.trainable_variables if v.regularizer is not None]
    penalties = (float(ops.stop_gradient(v.regularizer(v))) for v in weights)
    return float(logs["loss"]) - sum(penalties)


def logs_of(model, data, batch_size=256, steps=None):
    """What `model.evaluate` tells of these data, by name. Args: as for `evaluate`."""
    return model.evaluate(
        return_dict=True, verbose=0, steps=steps, **Source(data, batch_size, steps).keywords
    )


def accuracy(logs):
    """The accuracy in the logs of a model within `compiled_with`: the mean over its outputs.

    NaN for any other: what is called accuracy need not be one.
    """
    found = [float(v) for name, v in logs.items() if name == NAME or name.endswith(f"_{NAME}")]
    return sum(found) / len(found) if found else math.nan
