"""Take Dense layers out of a model and refit what took their outputs."""

import warnings

from keras_layer_entropy.pruning.blocks import block_of
from keras_layer_entropy.pruning.refit import refit
from keras_layer_entropy.pruning.rewrite import without


def remove_layer(model, name, calibration_data=None):
    """The model without a Dense layer and the activation, normalisation and dropout after it.

    With calibration data, the Dense layers that took what is removed are refitted in closed form:
    kernel and bias become the ridge regression of what they computed before on what they are given
    now. Without, they keep their kernels where the number of features stays the same, and get fresh
    ones, with a warning, where it does not. Everything else stays as it is: names, weights,
    trainable flags, the state of seeds and optimizer, compilation.

    Args:
        model: a built Sequential or functional model, nested as you like; it is not changed.
        name: name or path (`"block/dense_1"`) of a Dense layer; or a list of these, which go in
            one step with one regression.
        calibration_data: `(x, y)` or `x` arrays, a `tf.data.Dataset` or a `PyDataset`; labels are
            not used. Training data do well; they should be some times as many as features.

    Returns:
        A new `keras.Model`.

    Raises:
        ValueError: no such layer; a layer that cannot go, with the reason; a subclassed model.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> dense = keras.layers.Dense
    >>> model = keras.Sequential([keras.Input((4,)), dense(8, name="a"), dense(6, name="b"),
    ...                           dense(2, name="logits")])
    >>> x = np.random.normal(size=(100, 4))
    >>> smaller = remove_layer(model, "b", calibration_data=x)
    >>> [layer.name for layer in smaller.layers]
    ['a', 'logits']
    >>> bool(np.allclose(smaller(x), model(x), atol=1e-4))  # the layers are linear here
    True
    """
    return take_out(model, model, [name] if isinstance(name, str) else name, calibration_data)[0]


def take_out(student, teacher, names, calibration_data, batch_size=256):
    """`remove_layer` with the targets of the regression from another model.

    Args:
        student: the model that loses layers.
        teacher: the model whose pre-activations are the targets: the last one that was trained, so
            that the errors of one regression are not fitted by the next.
        names: names or paths of Dense layers of `student`.
        calibration_data, batch_size: as for `refit`; None for no regression.

    Returns:
        `(model, residuals)`: the new model, and path -> relative residual of its regression.
    """
    smaller, consumers, fresh = student, {}, set()
    for name in names:
        block = block_of(smaller, name)
        smaller, new = without(smaller, block)
        fresh.update(new)
        consumers.update(dict.fromkeys(block.consumers))
        for path in block.members:
            consumers.pop(path, None)
            fresh.discard(path)
    residuals = {}
    if calibration_data is not None:
        residuals = refit(smaller, teacher, list(consumers), calibration_data, batch_size)
    untrained = [path for path in consumers if path in fresh and path not in residuals]
    if untrained:
        warnings.warn(
            f"The kernels of {', '.join(untrained)} start anew, because these layers take another "
            "number of features now: train the model before you use it.",
            stacklevel=3,
        )
    return smaller, residuals
