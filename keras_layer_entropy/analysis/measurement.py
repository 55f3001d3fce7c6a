"""The statistics of all layers of a model together: batches in, an EntropyProfile out."""

import dataclasses
import datetime
import functools
import warnings

import keras
import numpy as np
from keras import ops

from keras_layer_entropy.analysis.profile import EntropyProfile
from keras_layer_entropy.measures.catalogue import ENTROPIES, check_measures
from keras_layer_entropy.measures.entropy import check_pattern, maximum_entropy
from keras_layer_entropy.measures.kept_samples import MOST_STATE
from keras_layer_entropy.measures.sample_measures import SAMPLE_MEASURES, SampleComparison
from keras_layer_entropy.measures.statistics import MEASURES, HeadStatistic
from keras_layer_entropy.recording.labels import LabelStatistic, find_labels
from keras_layer_entropy.version import versions


@dataclasses.dataclass(frozen=True)
class _Layer:
    path: str
    units: int
    is_output: bool
    statistics: dict  # measure -> its statistic, of those that the layer has


class ModelStatistics:
    """The statistics of every chosen layer of a model, and of the labels.

    Args:
        model: the model whose loss and output names tell what its labels are.
        num_classes, measures, pattern, normalization, keep_patterns: as for
            `analyzer.EntropyAnalyzer`.
        layers_chosen: whether somebody chose the layers. Convolutions that come along because
            feature_entropy is asked for have no activation entropies: beside those of Dense layers
            they would say of these that they are flat or rise.
    """

    def __init__(
        self,
        model,
        num_classes=None,
        measures=("activation_entropy",),
        pattern="mean_then_softmax",
        normalization="log",
        keep_patterns=False,
        layers_chosen=True,
    ):
        check_pattern(pattern)
        maximum_entropy(2, normalization)
        self._model = model
        self._num_classes = num_classes
        self._measures = check_measures(measures)
        self._own_options = {
            m: {"pattern": pattern, "normalization": normalization} if m in ENTROPIES else options
            for m, options in self._measures.items()
        }
        self._keep_patterns = keep_patterns
        if keep_patterns and (
            pattern == "per_sample" or "activation_entropy" not in self._measures
        ):
            raise ValueError(
                f"keep_patterns=True with pattern={pattern!r}, measures={tuple(self._measures)}: "
                "patterns of classes come with 'activation_entropy' and the pattern "
                "'mean_then_softmax' or 'softmax_then_mean'."
            )
        self._layers_chosen = layers_chosen
        self._pattern = pattern
        self._normalization = normalization
        self._labels = None
        self._labelled = None
        self._label_statistic = None
        self._comparison = None  # of single samples, where a measure needs it
        self._layers = []

    @property
    def built(self):
        """Whether the layers and classes are known."""
        return self._labels is not None

    @property
    def metrics(self):
        """All statistics, as Keras metrics."""
        return [
            self._label_statistic,
            self._left_out,
            *([self._comparison.metric] if self._comparison else []),
            *(s for row in self._layers for s in row.statistics.values()),
        ]

    def build(self, activations, outputs, y, inputs):
        """Makes the state for layers and classes as seen in a first batch."""
        self._labelled = y is not None
        self._labels = find_labels(
            y,
            outputs,
            self._num_classes,
            loss=self._model.loss if self._model.compiled else None,
            output_names=getattr(self._model, "output_names", None),
        )
        classes = self._labels.num_classes
        of_dense_alone = not self._layers_chosen and not all(a.is_convolution for a in activations)
        fitting = [(a, self._fitting(a, of_dense_alone)) for a in activations]
        numbers = [
            MEASURES[m].numbers(a.units, **self._own_options[m])
            for a, measures in fitting
            for m in measures
        ]
        size = 8 * classes * sum(numbers)  # two float32 for each
        comparing = {m: o for m, o in self._measures.items() if m in SAMPLE_MEASURES}
        if comparing:
            self._comparison = SampleComparison(comparing, activations, inputs, classes)
            size += self._comparison.size
        if size > MOST_STATE:
            raise ValueError(
                f"{classes} classes and {sum(a.units for a in activations)} units "
                f"need {size / 2**30:.1f} GiB: choose fewer layers with layers=, or pass "
                "num_classes=1 to take all samples for one class"
                + (f", or keep fewer samples for {', '.join(comparing)}." if comparing else ".")
            )
        self._label_statistic = LabelStatistic(classes, rows=self._labels.kind == "one_hot")
        self._left_out = keras.metrics.Sum(name="left_out")
        if comparing:
            self._comparison.build()
        self._layers = [
            _Layer(a.path, a.units, a.is_output, self._new(a, measures)) for a, measures in fitting
        ]

    def _fitting(self, activation, of_dense_alone):
        """The measures by sums that there are of a layer."""
        features = activation.features()
        left_out = ENTROPIES if of_dense_alone and activation.is_convolution else ()
        return [
            m
            for m in self._measures
            if m in MEASURES
            and m not in left_out
            and MEASURES[m].dimensions in (None, len(features[MEASURES[m].reads].shape))
        ]

    def _new(self, activation, measures):
        return {m: self._new_statistic(activation, m) for m in measures}

    def _new_statistic(self, activation, measure):
        # Paths make no names of variables: they may hold "#" or "@".
        def make(name):
            classes = self._labels.num_classes
            options = self._own_options[measure]
            return MEASURES[measure](activation.units, classes, name=name, **options)

        undecided = activation.may_be_distribution and MEASURES[measure].reads == "pattern"
        return HeadStatistic(make, name=measure) if undecided else make(measure)

    def update(self, features, inputs, y, sample_weight):
        """Adds a batch: `features` is `Activation.features()` of each layer."""
        if len(features) != len(self._layers):
            raise ValueError(
                f"{len(features)} layer calls were recorded in this batch and {len(self._layers)} "
                "in the first: a model whose layers change from batch to batch cannot be measured."
            )
        if (y is None) == self._labelled:
            raise ValueError(
                f"The data have {'no ' if y is None else ''}labels, unlike those measured first: "
                "make another EntropyAnalyzer for them."
            )
        found = self._labels.membership(y, sample_weight)
        membership = found.weights
        whole = _all_samples(features[0]) if membership is None else membership
        found = found._replace(weights=whole)
        if (counted := _counted(features, whole)) is not None:
            found = found.only(counted)
        self._label_statistic.update_state(*found)
        for tensors, layer in zip(features, self._layers, strict=True):
            samples = _all_samples(tensors) if membership is None else membership
            _check_positions(layer.path, tensors["pattern"].shape, samples.shape)
            for statistic in layer.statistics.values():
                statistic.update_state(tensors[statistic.reads], samples, tensors.get("mask"))
        if self._comparison:
            self._comparison.update(features, inputs, found.weights)

    def agrees(self, features, y, sample_weight):
        """Whether a batch can be added: layers have the samples and positions of the labels.

        A bool where shapes are known, else a bool tensor, so that a step can do without a batch
        that would be an error.
        """
        membership = self._labels.membership(y, sample_weight).weights
        if membership is None and not self._comparison:
            return True
        if membership is None:
            membership = _all_samples(features[0])
        expected = ops.shape(membership)[:-1]
        found = [ops.shape(tensors["pattern"])[:-1][: len(expected)] for tensors in features]
        sizes = [pair for shape in found for pair in zip(shape, expected, strict=False)]
        equal = [ops.equal(*p) for p in sizes if not all(isinstance(n, int) for n in p)]
        return functools.reduce(ops.logical_and, equal) if equal else True

    def leave_out(self):
        """Counts a batch that does not agree; `profile` raises ValueError of it."""
        self._left_out.update_state(1.0)

    def check_labels(self):
        """Raises ValueError where labels that were accumulated are no class."""
        self._label_statistic.check()

    def reset(self):
        """Forgets what was accumulated."""
        for statistic in self.metrics:
            statistic.reset_state()

    def profile(self, metrics=None, epoch=None, again=False):
        """What was accumulated, as an `EntropyProfile`; errors and warnings.

        Where the same data and layers are measured `again`, what is missing in them was said.
        """
        if left_out := int(self._left_out.result()):
            raise ValueError(
                f"In {left_out} batches layers have other samples or positions than the labels: "
                "choose other layers with layers=, or pass num_classes=1 to take all samples for "
                "one class."
            )
        count = self._label_statistic.counts()
        names = ("all",) if self._labels.kind == "none" else tuple(map(str, range(len(count))))
        values, layer_values = self._results()
        profile = EntropyProfile(
            layers=[layer.path for layer in self._layers],
            units=[layer.units for layer in self._layers],
            outputs=[layer.is_output for layer in self._layers],
            classes=names,
            count=count,
            normalizer=[maximum_entropy(x.units, self._normalization) for x in self._layers],
            values=values,
            layer_values=layer_values,
            metrics=dict(metrics or {}),
            epoch=epoch,
            patterns={
                x.path: self._patterns(x) for x in (self._layers if self._keep_patterns else ())
            },
            settings={
                "model": self._model.name,
                "versions": versions(),
                "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "pattern": self._pattern,
                "normalization": self._normalization
                if isinstance(self._normalization, str)
                else getattr(self._normalization, "__name__", type(self._normalization).__name__),
                "measures": {m: options for m, options in self._measures.items() if options},
            },
        )
        if not again:
            self._warn_of_what_is_missing(profile)
        self._warn_of_what_is_not_finite(profile)
        return profile

    def _results(self):
        """The values of each measure, `[layers, classes]`, and what comes with them, `[layers]`."""
        values, layer_values = {}, {}
        for measure in self._measures:
            if measure in SAMPLE_MEASURES:
                found = self._comparison.results(measure)
                values[measure] = found.pop(measure)
                layer_values |= found
            else:
                statistics = [layer.statistics.get(measure) for layer in self._layers]
                values[measure] = [self._none if s is None else s.result() for s in statistics]
                rows = [{} if s is None else s.layer_values() for s in statistics]
                for name in dict.fromkeys(name for row in rows for name in row):
                    layer_values[name] = [row.get(name, np.nan) for row in rows]
        return values, layer_values

    def _patterns(self, layer):
        if (statistic := layer.statistics.get("activation_entropy")) is not None:
            return statistic.patterns()
        return np.full((self._labels.num_classes, max(layer.units, 2)), np.nan)

    @property
    def _none(self):
        return np.full(self._labels.num_classes, np.nan)

    def _warn_of_what_is_missing(self, profile):
        absent = [name for name, n in zip(profile.classes, profile.count, strict=True) if not n]
        if absent:
            warnings.warn(
                f"No sample belongs to {len(absent)} of {len(profile.classes)} classes "
                f"({_some(absent)}): their entropies are NaN.",
                stacklevel=4,
            )
        if unclear := self._labels.doubt(self._label_statistic.several):
            warnings.warn(unclear, stacklevel=4)
        for measure in profile.values:
            if measure in MEASURES and not any(measure in x.statistics for x in self._layers):
                warnings.warn(
                    f"None of the layers {_some(profile.layers)} has a {measure}, which needs maps "
                    "[height, width, units]: choose convolutions with layers=.",
                    stacklevel=4,
                )

    def _warn_of_what_is_not_finite(self, profile):
        for measure in profile.values:
            unknown = (np.isnan(profile.values[measure]) & (profile.count > 0)).any(axis=0)
            if measure in SAMPLE_MEASURES and unknown.any():
                names = [profile.classes[i] for i in np.flatnonzero(unknown)]
                warnings.warn(
                    f"The {measure} of class {_some(names)} is not known: activations are NaN or "
                    "infinite, or none of its samples is among those that are compared.",
                    stacklevel=4,
                )
        for layer in self._layers:
            bad = np.any([s.not_finite() for s in layer.statistics.values()], axis=0)
            if bad.any():
                names = [profile.classes[i] for i in np.flatnonzero(bad)]
                warnings.warn(
                    f"Layer {layer.path!r} has NaN or infinite activations for class "
                    f"{_some(names)}: their entropies are NaN. Look at the weights and inputs of "
                    "this layer and of those before it.",
                    stacklevel=4,
                )


def usual_layers(layers, measures):
    """`layers`, or where they are None the kinds of layers that the measures are of."""
    if layers is None and "feature_entropy" in check_measures(measures):
        return [keras.layers.Dense, keras.layers.Conv2D]
    return layers


def _all_samples(tensors):
    """The membership of samples without labels: one class."""
    return ops.ones((ops.shape(tensors["pattern"])[0], 1))


def _counted(features, membership):
    """Which samples or positions some layer counts, `[batch, ...]` like those of `membership`;
    None where a layer without a mask counts them all."""
    masks = [tensors.get("mask") for tensors in features]
    if any(mask is None for mask in masks):
        return None
    rank = len(membership.shape) - 1
    # Where a label is a whole sample's, one step is enough.
    masks = [ops.any(mask, axis=tuple(range(rank, len(mask.shape)))) for mask in masks]
    return functools.reduce(ops.logical_or, masks)


def _check_positions(path, values, membership):
    """Raises where a layer's samples or positions are not those of the labels."""
    expected, found = tuple(membership[:-1]), tuple(values[: len(membership) - 1])
    if len(found) < len(expected) or len(values) <= len(expected):
        found = tuple(values[:-1])
    pairs = zip(found, expected, strict=False)
    if len(found) != len(expected) or any(None not in p and p[0] != p[1] for p in pairs):
        raise ValueError(
            f"Layer {path!r} has activations of shape {tuple(values)}, but there are labels or "
            f"weights for {expected}: choose other layers with layers=, or pass num_classes=1 to "
            "take all samples for one class."
        )


def _some(names, most=10):
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
