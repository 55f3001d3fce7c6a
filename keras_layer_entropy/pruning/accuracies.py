"""Which accuracy a model has: its metrics, losses and targets tell, never what they are called.

It is one of the qualities by which a search decides (`qualities.py`).
"""

import dataclasses
import warnings
from typing import Any

import keras
from keras import ops, tree

from keras_layer_entropy.backend import strategy_scope
from keras_layer_entropy.pruning.copying import Copies
from keras_layer_entropy.pruning.optimizer_state import recompile, reset_copies
from keras_layer_entropy.pruning.rewrite import without
from keras_layer_entropy.recording.passes import Source

NAME = "pruning_accuracy"  # nobody else's metric is called so

_SPARSE, _CATEGORICAL, _BINARY, _SIGN = "sparse", "categorical", "binary", "sign"


def _same_sign(y_true, y_pred):
    y_true = ops.cast(ops.convert_to_tensor(y_true), y_pred.dtype)
    if len(y_true.shape) < len(y_pred.shape):
        y_true = ops.expand_dims(y_true, axis=-1)
    return ops.mean(ops.cast((y_true > 0) == (y_pred > 0), "float32"), axis=-1)


_METRICS = {
    _same_sign: _SIGN,
    keras.metrics.sparse_categorical_accuracy: _SPARSE,
    keras.metrics.categorical_accuracy: _CATEGORICAL,
    keras.metrics.binary_accuracy: _BINARY,
}
_LOSSES = {
    keras.losses.sparse_categorical_crossentropy: _SPARSE,
    keras.losses.categorical_generalized_cross_entropy: _SPARSE,
    keras.losses.categorical_crossentropy: _CATEGORICAL,
    keras.losses.categorical_focal_crossentropy: _CATEGORICAL,
    keras.losses.categorical_hinge: _CATEGORICAL,
    keras.losses.kl_divergence: _CATEGORICAL,
    keras.losses.binary_crossentropy: _BINARY,
    keras.losses.binary_focal_crossentropy: _BINARY,
    keras.losses.hinge: _SIGN,
    keras.losses.squared_hinge: _SIGN,
}


class NoAccuracyError(ValueError):
    """A model has no accuracy: other qualities may tell how good it is."""


def accuracy_metrics(model, data, batch_size=256, steps=None):
    """What to compile a model with so that it tells its accuracy, and nothing else, as `NAME`.

    The accuracy of an output is the first of the model's own metrics for it that is one of Keras's
    (`BinaryAccuracy`, `CategoricalAccuracy`, `SparseCategoricalAccuracy`, what is derived from
    them, or what Keras makes of "accuracy") and fits its loss and its targets, on all of the data.
    Else, with a warning where it has any, it is the one that does fit: the share of samples whose
    largest output is their class; where outputs are decisions of their own (binary cross-entropy,
    hinge losses), the share of decisions that are right, with the threshold 0 for logits and 0.5
    for probabilities. Samples of a class that the loss ignores don't count. A metric of the top k
    is no accuracy. Of several outputs, those count that have an accuracy among their metrics.

    Args:
        model: a compiled Sequential or functional model; it is not changed.
        data: as for `analyze_model`, with targets.
        batch_size: batch size for arrays.
        steps: number of batches to look at, None for all.

    Returns:
        Dict of two arguments of `compile`, metrics and weighted_metrics: the model's own, and for
        each output that counts one accuracy. For `evaluation.compiled_with`.

    Raises:
        NoAccuracyError: targets that are no classes (of a regression or an autoencoder), or nothing
            that tells which accuracy is meant.
        ValueError: a model that is not compiled, data without targets, classes out of range.

    Example:

    >>> import numpy as np
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> model.compile(loss=keras.losses.BinaryCrossentropy(from_logits=True))
    >>> data = np.random.normal(size=(60, 4)), np.arange(60) % 2
    >>> (metric,) = accuracy_metrics(model, data)["metrics"]
    >>> type(metric).__name__, metric.threshold
    ('BinaryAccuracy', 0.0)
    """
    check_compiled(model)
    copy, _ = without(model, None)
    outputs = compiled_outputs(copy, Source(data, batch_size, steps).first())
    counted = [output for output in outputs if output.accuracies]
    if not counted and len(outputs) > 1:
        raise NoAccuracyError(
            f"{model.name!r} has {len(outputs)} outputs and no accuracy metric: compile it with "
            "one for each output that has classes."
        )
    facts = _look(copy, outputs, data, batch_size, steps)
    chosen = {o.name: _choose(o, facts[o.name]) for o in counted or outputs}
    metrics, weighted = [], []
    for output in outputs:
        metric, heavy = chosen.get(output.name, (None, False))
        own = [] if metric is None else [_named(metric, model)]
        metrics.append([*output.metrics, *([] if heavy else own)])
        weighted.append([*output.weighted_metrics, *(own if heavy else [])])
    return {
        "metrics": _packed(copy, outputs, metrics),
        "weighted_metrics": _packed(copy, outputs, weighted),
    }


def check_compiled(model):
    """Raises for a model that is not compiled."""
    if not model.compiled:
        raise ValueError(
            f"{model.name!r} is not compiled, so that it cannot be trained again: compile it with "
            'its optimizer and loss and metrics=["accuracy"], and save it so.'
        )


def compiled_metrics(model, data, batch_size=256, steps=None):
    """The metrics that a model was compiled with, by the names that `evaluate` gives them.

    Args:
        model, data, batch_size, steps: as for `accuracy_metrics`.

    Returns:
        Dict of `keras.metrics.Metric`.
    """
    copy, _ = without(model, None)
    outputs = compiled_outputs(copy, Source(data, batch_size, steps).first())
    found = [metric for output in outputs for metric in output.metrics]
    found += [metric for output in outputs for metric in output.weighted_metrics]
    compiled = copy._compile_metrics
    return {} if compiled is None else dict(zip(compiled.result(), found, strict=True))


@dataclasses.dataclass(frozen=True)
class _Output:
    """An output as it was compiled: its losses and metrics as Keras resolves them."""

    name: str
    key: Any  # under which the metrics of this output are given
    losses: list
    loss_weights: list
    metrics: list
    weighted_metrics: list

    @property
    def accuracies(self):
        """`(metric, weighted)` of its metrics that are accuracies."""
        found = [(metric, False) for metric in self.metrics]
        found += [(metric, True) for metric in self.weighted_metrics]
        return [(metric, weighted) for metric, weighted in found if _kind(metric) is not None]

    @property
    def loss_kind(self):
        kinds = [_LOSSES.get(getattr(loss, "fn", None)) for loss in self.losses]
        return next((kind for kind in kinds if kind is not None), None)

    def loss_option(self, name):
        options = [getattr(loss, "_fn_kwargs", {}).get(name) for loss in self.losses]
        return next((value for value in options if value is not None), None)


def compiled_outputs(model, batch):
    """The `_Output`s of a compiled model, in the order in which Keras keeps their metrics."""
    if batch[1] is None:
        raise ValueError("The data hold no targets: expected (x, y).")
    with strategy_scope(model):
        model._symbolic_build(data_batch=batch)
    structure = getattr(model, "_outputs_struct", None)
    paths = [(0,)] if structure is None else [p for p, _ in tree.flatten_with_path(structure)]
    names = [tensor._keras_history.operation.name for tensor in model.outputs]
    compiled = model._compile_metrics
    if isinstance(structure, dict) and compiled and compiled._resolved_output_names:
        paths = [(name,) for name in compiled._resolved_output_names]
    if isinstance(structure, dict):
        names = [path[-1] for path in paths]
    flat = {"_flat_metrics": [None] * len(paths), "_flat_weighted_metrics": [None] * len(paths)}
    if compiled is not None:
        flat = {kind: getattr(compiled, kind) for kind in flat}
    metrics, weighted = (
        [[] if found is None else list(found.metrics) for found in kind] for kind in flat.values()
    )
    found = [] if model._compile_loss is None else model._compile_loss._flat_losses
    outputs = []
    for i, (name, path) in enumerate(zip(names, paths, strict=True)):
        own = [x for x in found if len(paths) == 1 or x.path in (path, (name,))]
        losses, weights = [x.loss for x in own], [x.loss_weights for x in own]
        outputs.append(_Output(name, path, losses, weights, metrics[i], weighted[i]))
    return outputs


def _packed(model, outputs, values):
    """Losses or lists of metrics, one for each output, as `compile` takes them for this model."""
    if len(outputs) == 1:
        return values[0]
    structure = model._outputs_struct
    if isinstance(structure, dict) and all(len(output.key) == 1 for output in outputs):
        return {output.key[0]: value for output, value in zip(outputs, values, strict=True)}
    return tree.pack_sequence_as(structure, values)


def _named(metric, model):
    twin = reset_copies(metric, Copies(model))
    twin.name = NAME
    return twin


def _kind(metric):
    """Which accuracy a metric is; None if none."""
    return _METRICS.get(getattr(metric, "_fn", None))


class _Facts(keras.metrics.Metric):
    """What all targets and outputs have in common: counts of those that are otherwise.

    Targets of weight 0 and of an ignored class are left out.
    """

    QUESTIONS = (
        *("fractional", "out_of_range", "not_0_1", "not_signs", "not_one_hot", "not_one_hot_signs"),
        *("ignored", "beyond_0_1", "no_distribution"),
    )

    def __init__(self, ignored=None, name="facts"):
        super().__init__(name=name)
        self._ignored = ignored
        self.classes, self.dense = None, None
        self._counts = self.add_weight((len(self.QUESTIONS),), "zeros", name="counts")

    def update_state(self, y_true, y_pred, sample_weight=None):
        y, p = (ops.cast(ops.convert_to_tensor(part), "float32") for part in (y_true, y_pred))
        self.classes = p.shape[-1] if len(p.shape) > 1 else 1
        self.dense = len(y.shape) == len(p.shape) and y.shape[-1] == self.classes > 1
        counts = ops.ones_like(y, dtype="bool")
        if sample_weight is not None:
            counts = ops.logical_and(counts, _like(sample_weight, y) != 0)
        mask = getattr(y_pred, "_keras_mask", None)
        if mask is not None:
            counts = ops.logical_and(counts, _like(mask, y) != 0)
        ignored = ops.zeros_like(counts)
        if self._ignored is not None:
            ignored = ops.logical_and(counts, y == self._ignored)
            counts = ops.logical_and(counts, ops.logical_not(ignored))
        no_rows = ops.zeros((1,), dtype="bool")
        total = ops.sum(y, axis=-1) if self.dense else None
        rows = ops.any(counts, axis=-1) if self.dense else no_rows
        found = [
            ops.logical_and(counts, y != ops.round(y)),
            ops.logical_and(counts, ops.logical_or(y < 0, y >= self.classes)),
            ops.logical_and(counts, ops.logical_and(y != 0, y != 1)),
            ops.logical_and(counts, ops.abs(y) != 1),
            ops.logical_and(rows, total != 1) if self.dense else no_rows,
            ops.logical_and(rows, total != 2 - self.classes) if self.dense else no_rows,
            ignored,
            ops.logical_not(ops.logical_and(p >= 0, p <= 1)),
            # Of half precision, whose rows add up to 1 to about three digits.
            ops.logical_not(ops.abs(ops.sum(p, axis=-1) - 1) < 1e-2),
        ]
        self._counts.assign_add(ops.stack([ops.sum(ops.cast(x, "float32")) for x in found]))

    def result(self):
        return ops.sum(self._counts)

    def facts(self):
        """Question -> whether there is one of these."""
        counts = ops.convert_to_numpy(self._counts)
        return {name: bool(n > 0) for name, n in zip(self.QUESTIONS, counts, strict=True)}


def _like(weight, y):
    """Weights with the rank of the targets that they belong to."""
    weight = ops.cast(ops.convert_to_tensor(weight), "float32")
    while len(weight.shape) > len(y.shape) and weight.shape[-1] == 1:
        weight = ops.squeeze(weight, axis=-1)
    missing = len(y.shape) - len(weight.shape)
    return ops.reshape(weight, (*ops.shape(weight), *[1] * missing))


def _look(model, outputs, data, batch_size, steps):
    """Name of each output -> what is true of its targets and of itself, on all of the data."""
    with strategy_scope(model):
        facts = [_Facts(output.loss_option("ignore_class")) for output in outputs]
        recompile(
            model,
            # The model's own might refuse targets, and say less about them.
            loss=_packed(model, outputs, [_no_loss if o.losses else None for o in outputs]),
            weighted_metrics=_packed(model, outputs, [[fact] for fact in facts]),
            run_eagerly=model.run_eagerly,
            steps_per_execution=model.steps_per_execution,
        )
    model.evaluate(verbose=0, steps=steps, **Source(data, batch_size, steps).keywords)
    return {
        output.name: {**fact.facts(), "classes": fact.classes, "dense": fact.dense}
        for output, fact in zip(outputs, facts, strict=True)
    }


def _no_loss(y_true, y_pred):
    return ops.zeros_like(y_pred if len(y_pred.shape) == 1 else y_pred[..., 0])


def _choose(output, facts):
    """`(metric, weighted)`: the accuracy of an output."""
    for metric, weighted in output.accuracies:
        if _fits(metric, output, facts):
            _say_doubt(metric, output, facts)
            return metric, weighted
    for metric in _made_for(output, facts):
        if _fits(metric, output, facts):
            for other, weighted in output.accuracies[:1]:
                warnings.warn(
                    f"The metric {other.name!r} of {output.name!r}, {_words(other)}, does not fit "
                    f"its loss and targets: the search decides by {_words(metric)}.",
                    stacklevel=2,
                )
                return metric, weighted
            return metric, False
    raise _question(output, facts)


def _fits(metric, output, facts):
    """Whether a metric tells the accuracy for these targets, this loss and these outputs."""
    kind = _kind(metric)
    if isinstance(metric, _Ignoring):
        return _are_ids(facts)
    if type(metric).update_state is not keras.metrics.MeanMetricWrapper.update_state:
        return True  # somebody's own: it knows of its targets what nobody else does
    if kind == _SPARSE:
        return _are_ids(facts) and not facts["ignored"]
    if kind == _CATEGORICAL:
        return facts["dense"] and (
            output.loss_kind == _CATEGORICAL or _one_hot(facts) or _one_hot_signs(facts)
        )
    if not facts["dense"] and facts["classes"] > 1:
        return False
    if kind == _SIGN:
        return not facts["not_0_1"] or not facts["not_signs"]
    threshold = metric._fn_kwargs.get("threshold", 0.5)
    if facts["not_0_1"] or facts["ignored"]:
        return False
    if _are_logits(output, facts):
        return threshold != 0.5  # Keras's default, which is for probabilities
    return facts["beyond_0_1"] or 0 < threshold < 1


def _are_ids(facts):
    wrong = facts["dense"] or facts["fractional"] or facts["out_of_range"]
    return not wrong and facts["classes"] > 1


def _one_hot(facts):
    return facts["dense"] and not facts["not_0_1"] and not facts["not_one_hot"]


def _one_hot_signs(facts):
    return facts["dense"] and not facts["not_signs"] and not facts["not_one_hot_signs"]


def _are_logits(output, facts):
    return facts["beyond_0_1"] and (
        bool(output.loss_option("from_logits")) or output.loss_kind == _SIGN
    )


def _made_for(output, facts):
    """Metrics that its loss speaks for, or outputs that are plainly probabilities of classes."""
    kind = output.loss_kind
    distributions = facts["classes"] > 1 and not (facts["beyond_0_1"] or facts["no_distribution"])
    if kind == _SPARSE or (kind is None and distributions):
        ignored = output.loss_option("ignore_class")
        yield keras.metrics.SparseCategoricalAccuracy() if ignored is None else _Ignoring(ignored)
    several = kind in (_BINARY, _SIGN) or (kind is None and not facts["beyond_0_1"])
    if kind == _CATEGORICAL or several:
        yield keras.metrics.CategoricalAccuracy()
    if kind == _SIGN:
        yield keras.metrics.MeanMetricWrapper(_same_sign, name="accuracy")
    elif several:
        yield keras.metrics.BinaryAccuracy(threshold=0.0 if _are_logits(output, facts) else 0.5)


class _Ignoring(keras.metrics.SparseCategoricalAccuracy):
    """Leaves out what the loss leaves out."""

    def __init__(self, ignored, name=NAME, dtype=None):
        super().__init__(name=name, dtype=dtype)
        self._ignored = ignored

    def update_state(self, y_true, y_pred, sample_weight=None):
        y_true = ops.convert_to_tensor(y_true)
        if len(y_true.shape) == len(y_pred.shape):
            y_true = ops.squeeze(y_true, axis=-1)
        counts = ops.cast(y_true != ops.cast(self._ignored, y_true.dtype), self.dtype)
        if sample_weight is not None:
            counts = counts * ops.cast(_like(sample_weight, y_true), self.dtype)
        super().update_state(y_true, y_pred, counts)


def _say_doubt(metric, output, facts):
    unsaid = _kind(metric) == _BINARY and output.loss_kind is None and facts["beyond_0_1"]
    if unsaid and metric._fn_kwargs.get("threshold", 0.5) == 0.5:
        warnings.warn(
            f"The accuracy of {output.name!r} is {_words(metric)}, but some of its outputs are no "
            "probabilities: if they are logits, compile it with BinaryAccuracy(threshold=0.0).",
            stacklevel=2,
        )


def _words(metric):
    """A metric as it would be written."""
    kind = _kind(metric)
    if kind == _BINARY:
        return f"BinaryAccuracy(threshold={metric._fn_kwargs.get('threshold', 0.5):g})"
    if kind == _SIGN:
        return "the share of outputs with the sign of their target"
    if isinstance(metric, _Ignoring):
        return "SparseCategoricalAccuracy without the class that the loss ignores"
    return "SparseCategoricalAccuracy" if kind == _SPARSE else "CategoricalAccuracy"


def _question(output, facts):
    """The error that says why no accuracy is known, and what to do about it."""
    k, kind = facts["classes"], output.loss_kind
    no_classes = (
        "are no classes, but what a regression or an autoencoder comes close to: accuracy says "
        'nothing about them. quality="loss" does, or the name of a compiled metric'
    )
    names = ", ".join(
        getattr(getattr(loss, "fn", None), "__name__", type(loss).__name__)
        for loss in output.losses
    )
    where = f"of the output {output.name!r} (loss: {names or 'none'})"
    if facts["fractional"] or (facts["dense"] and facts["not_0_1"] and facts["not_signs"]):
        return NoAccuracyError(f"The targets {where} {no_classes}.")
    if kind == _SPARSE and not facts["dense"]:
        return ValueError(f"Some labels are no class 0..{k - 1}: those {where} have to be.")
    if not facts["dense"] and facts["not_0_1"] and facts["not_signs"] and k == 1:
        return NoAccuracyError(f"The targets {where} {no_classes}; classes would be 0 and 1.")
    if not facts["dense"] and facts["out_of_range"] and k > 1:
        return ValueError(f"Some labels are no class 0..{k - 1}, {where}. If they {no_classes}.")
    return NoAccuracyError(
        f"Nothing tells which accuracy is meant {where}: compile the model with the metric, "
        "keras.metrics.SparseCategoricalAccuracy() for class ids, CategoricalAccuracy() for "
        "one-hot rows, BinaryAccuracy(threshold=0.5) for probabilities of 0/1 or BinaryAccuracy("
        "threshold=0.0) for logits, or one of your own derived from these. If its targets "
        f"{no_classes}."
    )
