"""Take Dense layers out of a model and refit what took their outputs."""

import warnings
from collections.abc import Collection, Iterable

import keras

from keras_layer_entropy.backend import Data
from keras_layer_entropy.pruning.layer_parts import LayerPart, layer_part
from keras_layer_entropy.pruning.optimizer_state import restart_averages
from keras_layer_entropy.pruning.parts import Plan
from keras_layer_entropy.pruning.refit import refit
from keras_layer_entropy.pruning.rewrite import without
from keras_layer_entropy.recording.layers import choose_layers


def remove_layer(
    model: keras.Model,
    name: str | Collection[str] | Plan,
    calibration_data: Data | None = None,
    steps: int | None = None,
) -> keras.Model:
    """The model without a Dense layer and the activation, normalisation and dropout after it.

    With calibration data, the layers that took what is removed are refitted in closed form: kernel
    and bias become the ridge regression of what they computed before on what they are given now, in
    all their calls where they are shared. That can be done to `Dense`, and to `EinsumDense` and
    convolutions of single points that compute the same. Before other layers with weights, a layer
    is removed only without data.

    Without data, the layers behind keep their kernels where the number of features stays the same,
    and get fresh ones, with a warning, where it does not. Everything else stays as it is: names,
    weights, trainable flags, the state of seeds and optimizer, compilation.

    Args:
        model: a built Sequential or functional model, nested as you like; it is not changed.
        name: name or path (`"block/dense_1"`) of a Dense layer; or several of these, or a `Plan`
            of some, which go in one step with one regression.
        calibration_data: `(x, y)` or `x` arrays, a `tf.data.Dataset` or a `PyDataset`; labels are
            not used. Training data do well; they should be some times as many as features.
        steps: number of batches of the calibration data to read, None for all; for data without an
            end it has to be given.

    Returns:
        A new `keras.Model`.

    Raises:
        ValueError: no such layer; a layer that cannot go, with the reason; a subclassed model; data
            that do not fit, have no end, or lead to values that are not finite.

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
    >>> before, after = (m.predict(x, verbose=0) for m in (model, smaller))
    >>> bool(np.allclose(before, after, atol=1e-4))  # the layers are linear here
    True
    """
    return take_out(model, model, name, calibration_data, steps=steps)[0]


def take_out(
    student: keras.Model,
    teacher: keras.Model,
    names: str | Collection[str] | Plan,
    calibration_data: Data | None,
    batch_size: int = 256,
    *,
    steps: int | None = None,
) -> tuple[keras.Model, dict[str, float]]:
    """`remove_layer` with the targets of the regression from another model.

    Args:
        student: the model that loses layers.
        teacher: the model whose pre-activations are the targets: the last one that was trained, so
            that the errors of one regression are not fitted by the next.
        names: name or path of a Dense layer of `student`, or several.
        calibration_data, batch_size, steps: as for `refit`; None for no regression.

    Returns:
        `(model, residuals)`: the new model, and path -> relative residual of its regression.
    """
    smaller, consumers, fresh = student, {}, set()
    left = _paths(student, names)
    while left:
        part = _next_part(smaller, left, refit=calibration_data is not None)
        left.remove(part.path)
        smaller, new = without(smaller, part)
        fresh.update(new)
        consumers.update(dict.fromkeys(part.consumers))
        for path in part.members:
            consumers.pop(path, None)
            fresh.discard(path)
    if smaller is student:
        smaller, _ = without(student, None)
    residuals = {}
    if calibration_data is not None:
        residuals = refit(smaller, teacher, list(consumers), calibration_data, batch_size, steps)
    if consumers:
        changed = choose_layers(smaller, list(consumers)).values()
        restart_averages(smaller, [variable for layer in changed for variable in layer.variables])
    untrained = [path for path in consumers if path in fresh and path not in residuals]
    if untrained:
        warnings.warn(
            f"The kernels of {', '.join(untrained)} start anew, because these layers take another "
            "number of features now: train the model before you use it.",
            stacklevel=3,
        )
    return smaller, residuals


def _paths(model: keras.Model, names: str | Collection[str] | Plan) -> list[str]:
    """The paths of the layers that are meant, each once."""
    if isinstance(names, Plan):
        if other := [part.name for part in names.parts if part.kind != "layer"]:
            raise ValueError(f"The plan has parts that are no layers: {', '.join(other)}.")
        names = [part.path for part in names.parts]
    given = [names] if isinstance(names, str) else names
    if not isinstance(given, list | tuple | set | frozenset) or not all(
        isinstance(name, str) for name in given
    ):
        raise ValueError(
            f"name={names!r}; expected the name or path of a Dense layer, or a list of these."
        )
    paths = []
    for name in given:
        found = list(choose_layers(model, name))
        if len(found) > 1:
            raise ValueError(f"{name!r} fits {found}: give the path of one of them.")
        if found[0] in paths:
            raise ValueError(f"name={names!r} means {found[0]!r} twice.")
        paths += found
    return paths


def _next_part(model: keras.Model, paths: Iterable[str], refit: bool) -> LayerPart:
    """The first of some parts that can go: some can only after others."""
    errors = []
    for path in paths:
        try:
            return layer_part(model, path, refit=refit)
        except ValueError as error:
            errors.append(error)
    raise errors[0]
