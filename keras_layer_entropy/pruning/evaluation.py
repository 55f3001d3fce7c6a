"""Loss and accuracy of a model on data: what every decision of the search is made from."""

import dataclasses
import math

from keras_layer_entropy.streaming import Source


@dataclasses.dataclass(frozen=True)
class Scores:
    """`loss`, and `accuracy`: the mean over the outputs that have one."""

    loss: float
    accuracy: float


def evaluate(model, data, batch_size=256):
    """The `Scores` of a model that is compiled with an accuracy metric.

    Args:
        model: a compiled model.
        data: as for `analyze_model`.
        batch_size: batch size for arrays.

    Raises:
        ValueError: the model has no accuracy metric.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> model.compile("sgd", loss, metrics=["accuracy"])
    >>> 0 <= evaluate(model, (np.ones((6, 4)), np.arange(6) % 3)).accuracy <= 1
    True
    """
    logs = model.evaluate(return_dict=True, verbose=0, **Source(data, batch_size).keywords)
    return Scores(float(logs["loss"]), accuracy(logs))


def accuracy(logs):
    """The mean of the accuracies in a dict of metrics; NaN where there is none."""
    found = [
        float(value)
        for name, value in logs.items()
        if name.endswith(("accuracy", "acc")) and "top_k" not in name
    ]
    return sum(found) / len(found) if found else math.nan


def ensure_accuracy(model, data, batch_size=256):
    """Adds an accuracy metric to a compiled model that has none.

    Raises:
        ValueError: the model is not compiled; Keras's accuracy does not fit its outputs or labels.
    """
    if not model.compiled:
        raise ValueError(
            f"{model.name!r} is not compiled, so that it cannot be trained again: compile it with "
            'its optimizer and loss and metrics=["accuracy"], and save it so.'
        )
    first = evaluate(model, data, batch_size)
    if math.isnan(first.loss):
        raise ValueError(
            f"The loss of {model.name!r} is NaN on the validation data: look for labels that are "
            "no class of its, for inputs that are not finite, and at its weights."
        )
    if not math.isnan(first.accuracy):
        return
    if len(model.outputs) > 1:
        raise ValueError(
            f"{model.name!r} has {len(model.outputs)} outputs and no accuracy metric: compile it "
            "with one for each output that has classes."
        )
    settings = dict(model._compile_config.config)
    settings["metrics"] = ["accuracy"]
    model.compile(**{**settings, "optimizer": model.optimizer})
    if math.isnan(evaluate(model, data, batch_size).accuracy):
        raise ValueError(
            f"{model.name!r} has no accuracy: compile it with an accuracy metric for its outputs."
        )
