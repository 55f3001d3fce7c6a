"""Which class each sample belongs to: found once from shapes, read batch by batch on the device."""

import dataclasses
import numbers
import warnings

import keras
from keras import ops

_REGRESSION_LOSSES = (
    *("mean_squared_error", "MeanSquaredError", "mean_absolute_error", "MeanAbsoluteError"),
    *("mean_absolute_percentage_error", "MeanAbsolutePercentageError"),
    *("mean_squared_logarithmic_error", "MeanSquaredLogarithmicError"),
    *("huber", "Huber", "log_cosh", "LogCosh", "cosine_similarity", "CosineSimilarity"),
    *("poisson", "Poisson"),
)
_BINARY_LOSSES = (
    *("binary_crossentropy", "BinaryCrossentropy"),
    *("binary_focal_crossentropy", "BinaryFocalCrossentropy"),
)


@dataclasses.dataclass(frozen=True)
class Labels:
    """How the samples of a data set are told apart by class.

    Attributes:
        num_classes: number of classes; 1 for data without labels.
        kind: `"none"`, `"sparse"` (class ids) or `"one_hot"` (a row per sample; a sample belongs
            to the class of its largest entry, to each of them where several are equal).
        key: the output whose labels are used, by name or position; None when there is only one.
        squeeze: whether class ids carry a last dimension of 1.
        ignored: a class id that the loss leaves out (`ignore_class`), or None.
    """

    num_classes: int = 1
    kind: str = "none"
    key: str | int | None = None
    squeeze: bool = False
    ignored: int | None = None

    def membership(self, y, sample_weight=None):
        """Weight of each sample in each class, and which labels are no class.

        Args:
            y: the labels of a batch, as the model is given them.
            sample_weight: weights of a batch, as the model is given them, or None.

        Returns:
            `(weights, label, misfit)`: float32 `[batch, ..., classes]` (one entry per position
            where labels or weights have one), the labels `[batch, ...]`, and for which of them
            no class could be told. For data without labels, `(None, None, None)` without
            weights, else one column of them.
        """
        weight = _pick(sample_weight, self.key)
        if weight is not None:
            weight = ops.cast(ops.convert_to_tensor(weight), "float32")
            if len(weight.shape) > 1 and weight.shape[-1] == 1:
                weight = ops.squeeze(weight, axis=-1)
        if self.kind == "none":
            return (None if weight is None else ops.expand_dims(weight, axis=-1)), None, None
        y = ops.convert_to_tensor(_pick(y, self.key))
        if keras.backend.standardize_dtype(y.dtype) == "bool":
            y = ops.cast(y, "int32")
        if self.kind == "one_hot":
            largest = ops.max(y, axis=-1, keepdims=True)
            inside = ops.cast(ops.logical_and(y == largest, y > 0), "float32")
            label = ops.argmax(y, axis=-1)
            misfit = ops.zeros_like(label, dtype="bool")
        else:
            label = ops.squeeze(y, axis=-1) if self.squeeze else y
            index = ops.cast(label, "int32")
            inside = ops.one_hot(index, self.num_classes, dtype="float32")
            fits = ops.logical_and(index >= 0, index < self.num_classes)
            misfit = ops.logical_not(ops.logical_and(fits, ops.cast(index, label.dtype) == label))
            if self.ignored is not None:
                counts = index != self.ignored
                inside = inside * ops.cast(counts, "float32")[..., None]
                misfit = ops.logical_and(misfit, counts)
        if weight is None:
            return inside, label, misfit
        if len(weight.shape) > len(label.shape):  # a weight per position, a label per sample
            return ops.expand_dims(inside, axis=-2) * weight[..., None], label, misfit
        # A weight per sample, perhaps a label per position.
        weight = ops.reshape(
            weight, (*ops.shape(weight), *[1] * (len(label.shape) - len(weight.shape)))
        )
        return inside * weight[..., None], label, ops.logical_and(misfit, weight != 0)


def find_labels(y, outputs, num_classes=None, loss=None, output_names=None):
    """Finds out from shapes how labels tell the classes apart.

    Args:
        y: labels of a batch, an array or a structure of them, or None. Only shapes and dtypes are
            looked at.
        outputs: what the model returns for that batch, likewise.
        num_classes: number of classes; None to take it from the output's last dimension; 1 for
            one class of everything, whatever the labels; `{key: number or None}` to choose one of
            several outputs' labels.
        loss: what the model was compiled with, or None: the targets of a regression or an
            autoencoder are no classes.
        output_names: names of a functional model's outputs, for labels given by name.

    Returns:
        `Labels`.

    Raises:
        ValueError: labels asked for but not there, several outputs and no choice, or a number of
            classes that does not fit.

    Example:

    >>> import numpy as np
    >>> find_labels(np.zeros((32,), "int64"), np.zeros((32, 10)))
    Labels(num_classes=10, kind='sparse', key=None, squeeze=False, ignored=None)
    """
    key = None
    if isinstance(num_classes, dict):
        if len(num_classes) != 1:
            raise ValueError(
                f"num_classes={num_classes!r} names {len(num_classes)} outputs; expected exactly "
                "one, whose labels tell the samples apart."
            )
        ((key, num_classes),) = num_classes.items()
    if num_classes == 1 and key is None:
        return Labels()
    if y is None:
        if num_classes is not None or key is not None:
            raise ValueError(
                "num_classes is given but the data have no labels: pass data as (x, y), or leave "
                "num_classes out."
            )
        return Labels()
    if key is None:
        key = _only_labelled_output(y, outputs, loss, output_names)
    elif isinstance(key, str) and isinstance(y, list | tuple) and key in (output_names or ()):
        key = list(output_names).index(key)
    label, output = _pick(y, key), _output(outputs, key, output_names)
    if num_classes == 1:
        return Labels(key=key)
    if num_classes is None and _are_targets(_loss_of(loss, key), label, output):
        warnings.warn(
            "The loss says that y holds targets of a regression or an autoencoder, not classes, so "
            "that all samples count as one class: pass num_classes= if y holds classes, or 1 if "
            "one class is what you want.",
            stacklevel=2,
        )
        return Labels(key=key)
    labels = _from_shapes(label, output, num_classes, key)
    ignored = getattr(_loss_of(loss, key), "ignore_class", None)
    return dataclasses.replace(labels, ignored=ignored)


def _from_shapes(label, output, num_classes, key):
    shape, output_shape = tuple(label.shape), () if output is None else tuple(output.shape)
    last = shape[-1] if len(shape) > 1 else 1
    one_id_per_row = len(shape) == len(output_shape) - 1
    if shape == output_shape and last > 1:
        one_hot = True
    else:
        wide = len(shape) == len(output_shape) == 2
        one_hot = last > 1 and not one_id_per_row and (wide or _is_float(label))
    if one_hot:
        if num_classes not in (None, last):
            raise ValueError(
                f"num_classes={num_classes}, but the labels of shape {shape} are one-hot over "
                f"{last} classes."
            )
        return Labels(last, "one_hot", key)
    if num_classes is None:
        if not output_shape:
            raise ValueError(
                f"The number of classes cannot be told from labels of shape {shape}: pass "
                "num_classes=."
            )
        num_classes = max(output_shape[-1], 2) if len(output_shape) > 1 else 2
    if not isinstance(num_classes, numbers.Integral) or num_classes < 1:
        raise ValueError(f"num_classes={num_classes!r}; expected a positive int.")
    num_classes = int(num_classes)
    return Labels(num_classes, "sparse", key, len(shape) > 1 and last == 1 and not one_id_per_row)


def _only_labelled_output(y, outputs, loss, output_names):
    """The key of the only labels that are classes; None when `y` is no structure."""
    if not isinstance(y, dict | list | tuple):
        return None
    keys = list(y) if isinstance(y, dict) else list(range(len(y)))
    classes = [
        key
        for key in keys
        if not _are_targets(_loss_of(loss, key), _pick(y, key), _output(outputs, key, output_names))
    ]
    if len(keys) == 1 or len(classes) == 1:
        return (classes or keys)[0]
    raise ValueError(
        f"The data have labels for {len(keys)} outputs, {keys}: choose whose classes tell the "
        f"samples apart with num_classes={{{keys[0]!r}: None}} (or the number of classes)."
    )


def _pick(structure, key):
    """The entry of a structure of labels or weights; the structure itself when it is a leaf."""
    if not isinstance(structure, dict | list | tuple):
        return structure
    try:
        return structure[key]
    except (KeyError, IndexError, TypeError):
        there = list(structure) if isinstance(structure, dict) else list(range(len(structure)))
        raise ValueError(
            f"There is no {key!r} among the labels or sample weights, only {there}."
        ) from None


def _output(outputs, key, output_names):
    """The model's output that belongs to the labels `key`, or None."""
    if not isinstance(outputs, dict | list | tuple):
        return outputs
    if not isinstance(outputs, dict):
        outputs = dict(enumerate(outputs))
        if isinstance(key, str) and key in (output_names or ()):
            key = list(output_names).index(key)
    # Models may return None or plain numbers beside their tensors.
    outputs = {name: x for name, x in outputs.items() if hasattr(x, "shape")}
    return next(iter(outputs.values())) if len(outputs) == 1 else outputs.get(key)


def _loss_of(loss, key):
    if not isinstance(loss, dict | list | tuple):
        return loss
    return (loss if isinstance(loss, dict) else dict(enumerate(loss))).get(key)


def _are_targets(loss, label, output):
    """Whether a loss says that labels are something to come close to, rather than classes."""
    if loss is None or label is None:
        return False
    loss = keras.losses.get(loss)
    name = getattr(loss, "__name__", type(loss).__name__)
    if name in _REGRESSION_LOSSES:
        return True
    one_choice = output is None or len(output.shape) == 1 or tuple(output.shape[1:]) == (1,)
    known = hasattr(keras.losses, name)
    return _is_float(label) and (
        (name in _BINARY_LOSSES and not one_choice) or (not known and one_choice)
    )


def _is_float(label):
    return keras.backend.is_float_dtype(keras.backend.standardize_dtype(label.dtype))
