"""Measures that compare single samples: LogDet entropy and mutual information of layers.

They are computed at the end of a pass from the samples that it kept (`kept_samples`). Every mutual
information comes with that of the same samples paired at random: what is left where nothing is
known, because from few samples all estimates are too large.
"""

import copy
import dataclasses
import functools

import numpy as np
from keras import ops, tree

from keras_layer_entropy.measures.kept_samples import KeptSamples, width
from keras_layer_entropy.measures.logdet import (
    logdet_entropy,
    logdet_entropy_of_gram,
    sample_gram,
)
from keras_layer_entropy.measures.mutual_information import (
    binned_information,
    kernel_information,
)


@dataclasses.dataclass(frozen=True)
class Samples:
    """What was kept of single samples, the same rows everywhere.

    Attributes:
        inputs: `[samples, features]`, what the model was given.
        layers: list of `[samples, features]`, what each layer gave.
        membership: `[samples, classes]`, weight of each sample in each class.
    """

    inputs: np.ndarray
    layers: list
    membership: np.ndarray


def logdet(samples, beta=None):
    """LogDet entropies and informations of layers (`measures.logdet`), nats.

    Args:
        samples: `Samples`.
        beta: how much a variance counts; None for 100 times the number of input features.

    Returns:
        Name -> values. `logdet`: `[layers, classes]`, the entropy within each class, NaN for
        a class with fewer than two samples. The others are `[layers]`: `logdet_entropy` H(T);
        `logdet_input` I(X; T); `logdet_labels` I(T; Y); `logdet_previous` I(T_before; T), NaN
        for the first layer; each of the three also with `_shuffled`; `logdet_total_correlation` of
        all layers up to this one.
    """
    beta = 100.0 * samples.inputs.shape[1] if beta is None else beta
    inputs, labels = _View(samples.inputs, beta), _View(_one_hot(samples.membership), beta)
    layers = [_View(rows, beta) for rows in samples.layers]
    entropies = [view.entropy for view in layers]
    found = {
        "logdet": [
            [view.entropy_within(weight > 0) for weight in samples.membership.T] for view in layers
        ],
        "logdet_entropy": entropies,
    }
    others = {
        "input": [inputs] * len(layers),
        "labels": [labels] * len(layers),
        "previous": [None, *layers[:-1]],
    }
    for name, row in others.items():
        pairs = list(zip(row, layers, strict=True))
        shuffled = [(other and other.shuffled(), view) for other, view in pairs]
        found[f"logdet_{name}"] = [_information(*pair) for pair in pairs]
        found[f"logdet_{name}_shuffled"] = [_information(*pair) for pair in shuffled]
    joint = [_joint_entropy(layers[: i + 1]) for i in range(len(layers))]
    found["logdet_total_correlation"] = np.maximum(np.cumsum(entropies) - joint, 0.0)
    return found


def mutual_information(samples, variance=0.1, bins=None):
    """Mutual information of layers (`measures.mutual_information`), bits.

    Args:
        samples: `Samples`.
        variance: of the noise that is thought to be added to each unit: by kernel density.
        bins: number of bins that values are rounded to instead; None for kernel density.

    Returns:
        Name -> values. `mutual_information`: `[layers, classes]`, between the layer and whether
        a sample is of the class. The others are `[layers]`: `mutual_information_input` I(X; T),
        `mutual_information_labels` I(T; Y), and this with `_shuffled`.
    """
    if bins is None:
        estimate = functools.partial(kernel_information, variance=variance)
    else:
        estimate = functools.partial(binned_information, bins=bins)
    membership = _one_hot(samples.membership)
    # Kept samples come in random order: the label of a neighbour is that of any sample.
    shuffled = np.roll(membership, 1, axis=0)
    found = [estimate(rows, membership) for rows in samples.layers]
    chance = [estimate(rows, shuffled).labels for rows in samples.layers]
    return {
        "mutual_information": [
            _per_class(estimate, rows, samples.membership)
            if (samples.membership > 0).sum(axis=1).max() > 1
            else np.asarray(information.per_class)
            for rows, information in zip(samples.layers, found, strict=True)
        ],
        "mutual_information_input": [float(x.input) for x in found],
        "mutual_information_labels": [float(x.labels) for x in found],
        "mutual_information_labels_shuffled": [float(x) for x in chance],
    }


def _per_class(estimate, rows, membership):
    """I(T; 1[c is among the sample's classes]) where samples have several."""
    inside = (membership > 0).T
    found = [estimate(rows, np.stack([x, ~x], axis=1)) for x in inside]
    return np.where(inside.any(axis=1), [float(x.labels) for x in found], np.nan)


SAMPLE_MEASURES = {"logdet": logdet, "mutual_information": mutual_information}


class SampleComparison:
    """Keeps samples of a pass over a model, and measures them at its end.

    Args:
        measures: name -> options, some of `SAMPLE_MEASURES`, each with the number of `samples`.
        activations: `probe.Activation` of each layer, of a first batch.
        inputs: what the model is given, likewise.
        num_classes: number of classes.

    Raises:
        ValueError: samples of no fixed size.

    Attributes:
        metric: `KeptSamples`.
    """

    def __init__(self, measures, activations, inputs, num_classes):
        self._measures = measures
        # The inputs may be large, and one measure alone looks at them.
        self._reads_inputs = "logdet" in measures
        self._sizes = None
        given, layers = self._inputs(inputs), [a.output for a in activations]
        if self._reads_inputs and not given:
            raise ValueError(
                "logdet looks at the input of the model, which holds no numbers here: leave that "
                "measure out."
            )
        self._check([*given, *layers])
        self._widths = [sum(map(width, given)), *map(width, layers), num_classes]
        self._most = max(options["samples"] for options in measures.values())
        self.metric = None

    @property
    def size(self):
        """Bytes of what is kept."""
        return KeptSamples.size(self._widths, self._most)

    def build(self):
        """Makes the state."""
        self.metric = KeptSamples(self._widths, self._most)

    def update(self, features, inputs, membership):
        """Adds a batch: `Activation.features()` of each layer, and weights `[batch, classes]`."""
        if len(membership.shape) != 2:
            raise ValueError(
                f"There are labels or weights for every position, {tuple(membership.shape[:-1])}, "
                f"but {', '.join(self._measures)} compares whole samples: pass num_classes=1, or "
                "leave that measure out."
            )
        inputs, layers = self._inputs(inputs), [_unmasked(tensors) for tensors in features]
        self._check([*inputs, *layers])
        flat = [ops.reshape(ops.cast(x, "float32"), (-1, width(x))) for x in inputs]
        counts = ops.any(membership > 0, axis=-1)
        flat = ops.concatenate(flat, axis=-1) if flat else ops.zeros_like(membership[:, :0])
        self.metric.update_state([flat, *layers, membership], counts)

    def results(self, measure):
        """Name -> values of a measure."""
        options = dict(self._measures[measure])
        most = options.pop("samples")
        inputs, *layers, membership = (rows[:most] for rows in self.metric.result())
        return SAMPLE_MEASURES[measure](Samples(inputs, layers, membership), **options)

    def _inputs(self, inputs):
        """The tensors that the model is given, without texts."""
        given = tree.flatten(inputs) if self._reads_inputs else []
        tensors = [ops.convert_to_tensor(x) for x in given if x is not None]
        return [x for x in tensors if "string" not in str(x.dtype)]

    def _check(self, tensors):
        shapes = [tuple(tensor.shape) for tensor in tensors]
        sizes = [None if None in tuple(x.shape)[1:] else width(x) for x in tensors]
        if None in sizes or self._sizes not in (None, sizes):
            raise ValueError(
                f"{', '.join(self._measures)} compares samples with one another, which have to be "
                f"of one size; there are tensors of shape {shapes}: pad the samples to one length, "
                "or leave that measure out."
            )
        self._sizes = sizes


class _View:
    """One tensor of the samples: as columns where these are few, else as products of samples."""

    def __init__(self, rows, beta):
        self.beta = beta
        self.samples, self.width = rows.shape
        self.columns = np.asarray(rows, np.float64) if self.width <= self.samples else None
        if self.columns is None:  # the rows themselves may be large
            self.gram = np.asarray(sample_gram(np.asarray(rows, np.float64)))

    @functools.cached_property
    def gram(self):
        return np.asarray(sample_gram(self.columns))

    @functools.cached_property
    def entropy(self):
        return _joint_entropy([self])

    def shuffled(self):
        """The same, every sample with the values of another."""
        other = copy.copy(self)
        if self.columns is not None:
            other.columns = np.roll(self.columns, 1, axis=0)
        if "gram" in vars(self):
            other.gram = np.roll(self.gram, 1, axis=(0, 1))
        return other

    def entropy_within(self, some):
        """The entropy of some of the samples, which are centred on their own mean."""
        if some.sum() < 2:
            return np.nan  # one sample has no variance, whatever its class has
        if self.columns is not None:
            return float(logdet_entropy(self.columns[some], self.beta))
        gram = self.gram[np.ix_(some, some)] * (self.samples / some.sum())
        gram = gram - gram.mean(axis=0) - gram.mean(axis=1, keepdims=True) + gram.mean()
        return float(logdet_entropy_of_gram(gram, self.beta))


def _unmasked(tensors):
    """A layer's output, 0 where it is masked."""
    output, mask = tensors["output"], tensors.get("mask")
    if mask is None:
        return output
    mask = ops.reshape(mask, (*ops.shape(mask), *[1] * (len(output.shape) - len(mask.shape))))
    return ops.where(mask, output, ops.zeros_like(output))


def _joint_entropy(views):
    beta = views[0].beta
    if sum(view.width for view in views) <= views[0].samples:
        columns = np.concatenate([view.columns for view in views], axis=1)
        return float(logdet_entropy(columns, beta))
    return float(logdet_entropy_of_gram(sum(view.gram for view in views), beta))


def _information(one, other):
    if one is None:
        return np.nan
    return max(one.entropy + other.entropy - _joint_entropy([one, other]), 0.0)


def _one_hot(membership):
    """Each sample counts once, shared out where it has several classes."""
    return membership / membership.sum(axis=1, keepdims=True)
