"""Which class each sample belongs to: found once from shapes, read batch by batch on the device.

Shapes decide how labels are read. Whether their values are what they are then taken for is looked
at in every batch (`Membership.misfit`) and said at the end of the pass
(`LabelStatistic`).
"""

import dataclasses
import functools
import numbers
import typing
import warnings
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from keras_layer_entropy.measures.class_sums import (
    ClassIds,
    CompensatedSum,
    count_samples,
    positions_of,
)

_REGRESSION = (
    *("mean_squared_error", "mean_absolute_error", "mean_absolute_percentage_error"),
    *("mean_squared_logarithmic_error", "huber", "log_cosh", "cosine_similarity", "poisson"),
    "ctc",  # whose labels are sequences, of another length than the output
)
_BINARY = ("binary_crossentropy", "binary_focal_crossentropy")
_MASKS = ("dice", "tversky")
_SIGNED = ("hinge", "squared_hinge", "categorical_hinge")  # -1 is another way to write 0
_EMBEDDING = ("circle",)  # whose output is as wide as somebody chose
# Shares in bfloat16 are rounded by up to 0.4 %.
_SUM_TOLERANCE = 1e-2
# The number of classes; of one of several outputs, by its name or place; None to find it out.
ClassChoice = int | dict[Any, int | None] | None


class Membership(typing.NamedTuple):
    """What a batch says of the classes of its samples.

    Attributes:
        weights: weight of each sample in each class, float32 `[batch, ..., classes]`, one entry per
            position where labels or weights have one; or the same as `ClassIds`. Without labels one
            column of the weights, or None where there are none either, and the others are None.
        value: what names a label that is no class, `[batch, ...]`.
        misfit: for which labels no class could be told, bool `[batch, ...]`.
        several: which labels name several classes or none, bool `[batch, ...]`, or None for
            class ids.
    """

    weights: typing.Any = None
    value: typing.Any = None
    misfit: typing.Any = None
    several: typing.Any = None

    def only(self, counted):
        """The same of the samples or positions that are counted, bool like `weights[..., 0]`."""
        weights = _times(self.weights, ops.cast(counted, "float32"))
        if self.misfit is None:
            return self._replace(weights=weights)
        return Membership(weights, self.value, *_flags_of(self, counted))


@dataclasses.dataclass(frozen=True)
class Labels:
    """How the samples of a data set are told apart by class.

    Attributes:
        num_classes: number of classes; 1 for data without labels.
        kind: `"none"`, `"sparse"` (class ids) or `"one_hot"` (a row per sample: shares that add up
            to 1, or 0 and 1; a sample belongs to the class of its largest entry, to each of
            them where several are equal).
        key: the output whose labels are used: name or position, a tuple of them where they are
            nested; None when there is only one.
        squeeze: whether class ids carry a last dimension of 1.
        ignored: a class id that the loss leaves out (`ignore_class`), or None.
        signed: whether -1 stands for 0, as hinge losses have it.
        multi_label: whether rows are known to name several classes or none.
        by_id: whether class ids stay what they are (`ClassIds`).
        other_keys: what else the same output may be called among sample weights.
    """

    num_classes: int = 1
    kind: str = "none"
    key: str | int | tuple | None = None
    squeeze: bool = False
    ignored: int | None = None
    signed: bool = False
    multi_label: bool = False
    by_id: bool = False
    other_keys: tuple = dataclasses.field(default=(), compare=False, repr=False)

    def membership(self, y, sample_weight=None):
        """The `Membership` of a batch.

        Args:
            y: the labels of a batch, as the model is given them.
            sample_weight: weights of a batch, as the model is given them, or None.
        """
        weight = self._pick(sample_weight)
        if weight is not None:
            weight = ops.cast(_dense(weight), "float32")
            if len(weight.shape) > 1 and weight.shape[-1] == 1:
                weight = ops.squeeze(weight, axis=-1)
        if self.kind == "none":
            return Membership(None if weight is None else ops.expand_dims(weight, axis=-1))
        y = _dense(self._pick(y))
        if keras.backend.standardize_dtype(y.dtype) == "bool":
            y = ops.cast(y, "int32")
        if self.signed:
            y = ops.where(y == -1, ops.zeros_like(y), y)
        found = self._of_rows(y) if self.kind == "one_hot" else self._of_ids(y)
        return found if weight is None else _weighted(found, weight)

    def doubt(self, several):
        """What is to be said of so many labels that name several classes or none; may be empty."""
        if self.multi_label or not several:
            return ""
        return (
            f"{several} rows of labels hold several ones or none: such a sample counts for each of "
            "its classes, or for no class. Pass num_classes= the number of classes if that is what "
            "they mean, or 1 to take all samples for one class."
        )

    def _of_rows(self, y):
        largest = ops.max(y, axis=-1, keepdims=True)
        inside = ops.cast(ops.logical_and(y == largest, y > 0), "float32")
        rows = ops.cast(y, "float32")
        least, most, total = (f(rows, axis=-1) for f in (ops.min, ops.max, ops.sum))
        shares = ops.logical_and(least >= 0, ops.abs(total - 1) <= _SUM_TOLERANCE)
        binary = ops.all(ops.logical_or(y == 0, y == 1), axis=-1)
        value = ops.where(least < 0, least, ops.where(most > 1, most, total))
        misfit = ops.logical_not(ops.logical_or(shares, binary))
        return Membership(inside, value, misfit, ops.logical_and(binary, total != 1))

    def _of_ids(self, y):
        label = ops.squeeze(y, axis=-1) if self.squeeze else y
        index = ops.cast(label, "int32")
        fits = ops.logical_and(index >= 0, index < self.num_classes)
        misfit = ops.logical_not(ops.logical_and(fits, ops.cast(index, label.dtype) == label))
        counts = fits
        if self.ignored is not None:
            counted = index != self.ignored
            counts, misfit = ops.logical_and(fits, counted), ops.logical_and(misfit, counted)
        inside = ClassIds(ops.where(fits, index, 0), ops.cast(counts, "float32"), self.num_classes)
        return Membership(inside if self.by_id else inside.dense(), label, misfit)

    def _pick(self, structure):
        """The entry of a structure of labels or weights; the structure itself when it is a leaf."""
        if not tree.is_nested(structure):
            return structure
        entries = dict(tree.flatten_with_path(structure))
        for key in (self.key, *self.other_keys):
            if _path(key) in entries:
                return entries[_path(key)]
        if len(entries) == 1:
            return next(iter(entries.values()))
        raise _no_such_key(self.key, entries)


def _weighted(found, weight):
    weight = _with_axes(weight, len(found.value.shape))  # of a sample, perhaps a label per position
    flags = _flags_of(found, weight != 0)
    return Membership(_times(found.weights, weight), found.value, *flags)


def _times(weights, factor):
    """Weights in classes times a factor `[batch, ...]`, which may be one for each position."""
    shape = positions_of(weights)
    rank = max(len(shape), len(factor.shape))
    shape, factor = (*shape, *[1] * (rank - len(shape))), _with_axes(factor, rank)
    if isinstance(weights, ClassIds):
        product = ops.reshape(weights.weights, shape) * factor
        ids = ops.broadcast_to(ops.reshape(weights.ids, shape), ops.shape(product))
        return weights._replace(ids=ids, weights=product)
    return ops.reshape(weights, (*shape, weights.shape[-1])) * factor[..., None]


def _flags_of(found, counted):
    """`misfit` and `several` where something is counted, bool `[batch, ...]`."""
    positions = len(found.value.shape)
    if len(counted.shape) > positions:
        counted = ops.any(counted, axis=tuple(range(positions, len(counted.shape))))
    counted = _with_axes(counted, positions)
    flags = (found.misfit, found.several)
    return [None if flag is None else ops.logical_and(flag, counted) for flag in flags]


def _with_axes(tensor, rank):
    """The tensor with further axes of length 1."""
    return ops.reshape(tensor, (*ops.shape(tensor), *[1] * (rank - len(tensor.shape))))


def find_labels(y, outputs, num_classes=None, loss=None, output_names=None):
    """Finds out from shapes how labels tell the classes apart.

    Args:
        y: labels of a batch, an array or a structure of them, or None. Only shapes and dtypes are
            looked at.
        outputs: what the model returns for that batch, likewise. None and numbers among its tensors
            are passed over.
        num_classes: number of classes; None to take it from the output's last dimension; 1 for
            one class of everything, whatever the labels; `{key: number or None}` to choose one of
            several outputs' labels.
        loss: what the model was compiled with, or None: the targets of a regression or an
            autoencoder are no classes.
        output_names: names of a functional model's outputs. Labels, losses and outputs belong
            together by name, by place in equal structures, or else by order.

    Returns:
        `Labels`.

    Raises:
        ValueError: labels asked for but not there, several outputs and no choice, a number of
            classes that does not fit, or labels that are texts.

    Example:

    >>> import numpy as np
    >>> find_labels(np.zeros((32,), "int64"), np.zeros((32, 10))).num_classes
    10
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
    entries = _entries(y, _heads(outputs, loss, output_names))
    entry = _only_labelled(entries) if key is None else _entry_of(key, entries)
    names = {"key": entry.key, "other_keys": entry.other_keys}
    if num_classes == 1:
        return Labels(**names)
    if num_classes is None and entry.is_target:
        warnings.warn(
            "The loss says that y holds targets of a regression or an autoencoder, not classes, so "
            "that all samples count as one class: pass num_classes= if y holds classes, or 1 if "
            "one class is what you want.",
            stacklevel=2,
        )
        return Labels(**names)
    labels = _from_shapes(entry, num_classes)
    loss, bound = _function_of(entry.loss)
    return dataclasses.replace(
        labels,
        **names,
        ignored=bound.get("ignore_class"),
        signed=_is_one_of(loss, _SIGNED),
        multi_label=labels.kind == "one_hot"
        and (num_classes is not None or _is_one_of(loss, _BINARY + _MASKS + _SIGNED[:2])),
    )


def _from_shapes(entry, num_classes):
    shape, output_shape = tuple(entry.label.shape), tuple(getattr(entry.output, "shape", ()))
    if _is_text(entry.label):
        raise ValueError(
            "The labels are texts; expected integers, 0 for the first class, or one-hot rows: "
            "number them, for example with np.unique(labels, return_inverse=True)[1]."
        )
    last = shape[-1] if len(shape) > 1 else 1
    one_id_per_row = len(shape) == len(output_shape) - 1
    if shape == output_shape and last > 1:
        one_hot = True
    else:
        wide = len(shape) == len(output_shape) == 2
        one_hot = last > 1 and not one_id_per_row and (wide or _is_float(entry.label))
    if one_hot:
        if num_classes not in (None, last):
            raise ValueError(
                f"num_classes={num_classes}, but the labels of shape {shape} are one-hot over "
                f"{last} classes."
            )
        return Labels(last, "one_hot")
    if num_classes is None:
        if not output_shape or _is_one_of(_function_of(entry.loss)[0], _EMBEDDING):
            raise ValueError(
                f"The number of classes cannot be told from labels of shape {shape}"
                + (f" and an output of shape {output_shape}" if output_shape else "")
                + ": pass num_classes=."
            )
        num_classes = max(output_shape[-1], 2) if len(output_shape) > 1 else 2
    if not isinstance(num_classes, numbers.Integral) or num_classes < 1:
        raise ValueError(f"num_classes={num_classes!r}; expected a positive int.")
    num_classes = int(num_classes)
    squeeze = len(shape) > 1 and last == 1 and not one_id_per_row
    return Labels(num_classes, "sparse", squeeze=squeeze)


@dataclasses.dataclass(frozen=True)
class _Head:
    """One output of a model, with its loss."""

    path: tuple
    name: str | None
    output: typing.Any  # None for what is no tensor
    loss: typing.Any = None
    has_loss: bool = True  # False where others have one


@dataclasses.dataclass(frozen=True)
class _Entry:
    """Labels of one output."""

    path: tuple
    label: typing.Any
    head: _Head | None

    @property
    def output(self):
        return None if self.head is None else self.head.output

    @property
    def loss(self):
        return None if self.head is None else self.head.loss

    @property
    def key(self):
        return _key(self.path)

    @property
    def other_keys(self):
        return () if self.head is None else (self.head.name, _key(self.head.path))

    @property
    def is_target(self):
        """Whether the loss says that labels are something to come close to, and no classes."""
        function, _ = _function_of(self.loss)
        if function is None or self.label is None:
            return False
        if _is_one_of(function, _REGRESSION):
            return True
        shape = () if self.output is None else tuple(self.output.shape)
        one_choice = len(shape) < 2 or shape[1:] == (1,)
        if not _is_float(self.label):
            return False
        return (
            not one_choice
            if _is_one_of(function, _BINARY)
            else (one_choice and not _is_one_of(function, dir(keras.losses)))
        )


def _heads(outputs, loss, output_names):
    leaves = tree.flatten_with_path(outputs)
    names = output_names if len(output_names or ()) == len(leaves) else [None] * len(leaves)
    heads = [
        _Head(path, name, leaf if hasattr(leaf, "shape") else None)
        for (path, leaf), name in zip(leaves, names, strict=True)
    ]
    if not tree.is_nested(loss):
        return [dataclasses.replace(head, loss=loss) for head in heads]
    losses = {head: leaf for (_, leaf), head in _matched(tree.flatten_with_path(loss), heads)}
    return [
        dataclasses.replace(head, loss=losses.get(i), has_loss=losses.get(i) is not None)
        for i, head in enumerate(heads)
    ]


def _entries(y, heads):
    leaves = [(path, leaf) for path, leaf in tree.flatten_with_path(y) if leaf is not None]
    return [
        _Entry(path, leaf, None if i is None else heads[i])
        for (path, leaf), i in _matched(leaves, heads)
    ]


def _matched(leaves, heads):
    """Pairs of a leaf `(path, value)` and the index of the output that it belongs to, or None."""

    def by_name(path):
        found = [i for i, head in enumerate(heads) if path and path[-1] == head.name]
        return found or [i for i, head in enumerate(heads) if path == head.path]

    named = [by_name(path) for path, _ in leaves]
    if all(named) and any(isinstance(part, str) for path, _ in leaves for part in path):
        return [(leaf, found[0]) for leaf, found in zip(leaves, named, strict=True)]
    tensors = [i for i, head in enumerate(heads) if head.output is not None]
    for order in (range(len(heads)), [i for i in tensors if heads[i].has_loss], tensors):
        if len(order) == len(leaves):
            return list(zip(leaves, order, strict=True))
    return [(leaf, (found or [None])[0]) for leaf, found in zip(leaves, named, strict=True)]


def _only_labelled(entries):
    """The only labels that are classes."""
    classes = [entry for entry in entries if not entry.is_target]
    for some in (entries, classes, [x for x in classes if x.head is None or x.head.has_loss]):
        if len(some) == 1:
            return some[0]
    keys = [entry.key for entry in entries]
    raise ValueError(
        f"The data have labels for {len(keys)} outputs, {keys}: choose whose classes tell the "
        f"samples apart with num_classes={{{keys[0]!r}: None}} (or the number of classes)."
    )


def _entry_of(key, entries):
    for fits in (
        lambda entry: key == entry.key,
        lambda entry: key in entry.other_keys,
        lambda entry: key in entry.path[-1:],  # of nested ones
    ):
        if len(found := list(filter(fits, entries))) == 1:
            return found[0]
    raise _no_such_key(key, [entry.path for entry in entries])


def _no_such_key(key, paths):
    return ValueError(
        f"There is no {key!r} among the labels or sample weights, only "
        f"{[_key(path) for path in paths]}."
    )


def _key(path):
    """How a path in a structure is written: None, its only part, or the whole tuple."""
    return path if len(path) > 1 else path[0] if path else None


def _path(key):
    return key if isinstance(key, tuple) else () if key is None else (key,)


def _function_of(loss):
    """The function that a loss computes, and the arguments that are bound to it."""
    loss = None if loss is None else keras.losses.get(loss)
    bound = {}
    while True:
        if isinstance(loss, functools.partial):
            bound, loss = {**loss.keywords, **bound}, loss.func
        elif isinstance(loss, keras.losses.Loss) and hasattr(loss, "fn"):
            bound, loss = {**getattr(loss, "_fn_kwargs", {}), **bound}, loss.fn
        else:
            own = getattr(loss, "ignore_class", None)
            return loss, {"ignore_class": own, **bound}


def _is_one_of(function, names):
    """Whether it is one of Keras's own loss functions."""
    return any(function is getattr(keras.losses, name, None) for name in names if name)


def _is_float(label):
    return keras.backend.is_float_dtype(keras.backend.standardize_dtype(label.dtype))


def _is_text(label):
    dtype = str(label.dtype)
    return "string" in dtype or "object" in dtype or dtype[:2] in ("<U", "|S")


def _dense(values):
    return ops.convert_to_tensor(values, sparse=False, ragged=False)


class LabelStatistic(CompensatedSum):
    """Samples per class, labels that are no class, and those that name several classes or none.

    Args:
        num_classes: number of classes.
        rows: whether labels are rows of an entry per class.
    """

    def __init__(self, num_classes, rows=False, name="labels"):
        self._rows = rows
        super().__init__((num_classes + 2,), name)  # the last entries count misfits and several
        # One misfit, to name it: (1, value), or (0, 0) while there is none.
        self._example = self.add_variable(
            (2,), "zeros", "float32", aggregation="only_first_replica", name="example"
        )

    def update_state(self, membership, label=None, misfit=None, several=None):
        """Adds a batch, as `Labels.membership` returns it."""
        count = count_samples(membership)
        if misfit is None:
            self.add(ops.pad(count, [[0, 2]]))
            return
        flags = [misfit, ops.zeros_like(misfit) if several is None else several]
        misfits, unclear = (ops.sum(ops.cast(flag, "float32")) for flag in flags)
        self.add(ops.concatenate([count, ops.stack([misfits, unclear])]))
        value = ops.max(ops.where(misfit, ops.cast(label, "float32"), -np.inf))
        example = ops.stack([ops.ones_like(value), value])
        self._example.assign(ops.where(misfits > 0, example, self._example[:]))

    def result(self):
        """`(count, misfits, example)`: int64 `[classes]`, an int, a misfitting label or None."""
        there, value = ops.convert_to_numpy(self._example)
        counts = np.rint(self.total()).astype(np.int64)
        return counts[:-2], int(counts[-2]), float(value) if there else None

    def arrays(self):
        """As `states` joins them; counts are whole numbers."""
        counts = np.rint(self.total()).astype(np.int64)
        return {"sum/counts": counts, "first/example": ops.convert_to_numpy(self._example)}

    def set_arrays(self, arrays):
        """From `arrays`."""
        super().set_arrays({"sum/total": arrays["sum/counts"].astype(np.float64)})
        self._example.assign(arrays["first/example"])

    @property
    def several(self):
        """How many labels name several classes or none."""
        return int(np.rint(self.total()[-1]))

    def counts(self):
        """Samples per class, int64 `[classes]`.

        Raises ValueError for labels that are no class, and where there are no samples at all.
        """
        self.check()
        count, _, _ = self.result()
        if not count.any():
            raise ValueError("The data hold no samples: nothing was measured.")
        return count

    def check(self):
        """Raises ValueError for labels that are no class."""
        count, misfits, example = self.result()
        if not misfits:
            return
        example = "" if example is None else f", for example {example:g}"
        if self._rows:
            raise ValueError(
                f"{misfits} rows of labels of {len(count)} entries are no classes: these are "
                "neither 0 and 1, nor shares that add up to 1 (there is an entry or a sum of "
                f"another size{example}). If they are targets of a regression or an autoencoder, "
                "or class ids of several things, pass num_classes=1 to take all samples for one "
                "class."
            )
        raise ValueError(
            f"{misfits} labels are no class 0..{len(count) - 1}{example}: pass num_classes= the "
            "number of classes, or num_classes=1 to take all samples for one class (as for targets "
            "of a regression); samples with a sample_weight of 0 may have any label."
        )
