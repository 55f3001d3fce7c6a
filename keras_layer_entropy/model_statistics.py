"""The statistics of all layers of a model together: batches in, an EntropyProfile out."""

import dataclasses
import datetime
import warnings

import numpy as np
from keras import ops

from keras_layer_entropy.labels import find_labels
from keras_layer_entropy.measures.entropy import check_pattern, maximum_entropy
from keras_layer_entropy.profile import EntropyProfile
from keras_layer_entropy.statistics import MEASURES, LabelStatistic, check_measures
from keras_layer_entropy.version import versions

_MOST_STATE = 4 * 2**30  # bytes


@dataclasses.dataclass(frozen=True)
class _Layer:
    path: str
    units: int
    is_output: bool
    statistics: dict  # measure -> LayerStatistic


class ModelStatistics:
    """The statistics of every chosen layer of a model, and of the labels.

    Args:
        model: the model whose loss and output names tell what its labels are.
        num_classes, measures, pattern, normalization, keep_patterns: as for
            `analyzer.EntropyAnalyzer`.
    """

    def __init__(
        self,
        model,
        num_classes=None,
        measures=("activation_entropy",),
        pattern="mean_then_softmax",
        normalization="log",
        keep_patterns=False,
    ):
        check_pattern(pattern)
        maximum_entropy(2, normalization)
        self._model = model
        self._num_classes = num_classes
        self._measures = check_measures(measures)
        self._keep_patterns = keep_patterns
        if keep_patterns and (
            pattern == "per_sample" or "activation_entropy" not in self._measures
        ):
            raise ValueError(
                f"keep_patterns=True with pattern={pattern!r} and measures={self._measures}: "
                "patterns of classes come with 'activation_entropy' and the pattern "
                "'mean_then_softmax' or 'softmax_then_mean'."
            )
        self._pattern = pattern
        self._normalization = normalization
        self._labels = None
        self._labelled = None
        self._label_statistic = None
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
            *(s for row in self._layers for s in row.statistics.values()),
        ]

    def build(self, activations, outputs, y):
        """Makes the state for layers and classes as seen in a first batch."""
        self._labelled = y is not None
        self._labels = find_labels(
            y,
            outputs,
            self._num_classes,
            loss=self._model.loss if self._model.compiled else None,
            output_names=getattr(self._model, "output_names", None),
        )
        # Two float32 for each class and unit.
        size = 8 * self._labels.num_classes * sum(a.units for a in activations)
        if size > _MOST_STATE:
            raise ValueError(
                f"{self._labels.num_classes} classes and {sum(a.units for a in activations)} units "
                f"need {size / 2**30:.1f} GiB: choose fewer layers with layers=, or pass "
                "num_classes=1 to take all samples for one class."
            )
        self._label_statistic = LabelStatistic(self._labels.num_classes)
        self._layers = [_Layer(a.path, a.units, a.is_output, self._new(a)) for a in activations]

    def _new(self, activation):
        settings = (activation.units, self._labels.num_classes, self._pattern, self._normalization)
        return {
            # Paths make no names of variables: they may hold "#" or "@".
            measure: MEASURES[measure](*settings, name=measure)
            for measure in self._measures
        }

    def update(self, features, y, sample_weight):
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
        membership, label, misfit = self._labels.membership(y, sample_weight)
        self._label_statistic.update_state(
            _all_samples(features[0]) if membership is None else membership, label, misfit
        )
        for tensors, layer in zip(features, self._layers, strict=True):
            samples = _all_samples(tensors) if membership is None else membership
            _check_positions(layer.path, tensors["pattern"].shape, samples.shape)
            for statistic in layer.statistics.values():
                statistic.update_state(tensors[statistic.reads], samples, tensors.get("mask"))

    def reset(self):
        """Forgets what was accumulated."""
        for statistic in self.metrics:
            statistic.reset_state()

    def profile(self, metrics=None, epoch=None):
        """What was accumulated, as an `EntropyProfile`; errors and warnings about the data."""
        count, misfits, example = self._label_statistic.result()
        if misfits:
            raise ValueError(
                f"{misfits} labels are no class 0..{len(count) - 1}"
                + (f", for example {example:g}" if example is not None else "")
                + ": pass num_classes= the number of classes, or num_classes=1 to take all samples "
                "for one class; samples with a sample_weight of 0 may have any label."
            )
        if not count.any():
            raise ValueError("The data hold no samples: nothing was measured.")
        names = ("all",) if self._labels.kind == "none" else tuple(map(str, range(len(count))))
        profile = EntropyProfile(
            layers=[layer.path for layer in self._layers],
            units=[layer.units for layer in self._layers],
            outputs=[layer.is_output for layer in self._layers],
            classes=names,
            count=count,
            normalizer=[maximum_entropy(x.units, self._normalization) for x in self._layers],
            values={m: [x.statistics[m].result() for x in self._layers] for m in self._measures},
            metrics=dict(metrics or {}),
            epoch=epoch,
            patterns={
                x.path: x.statistics["activation_entropy"].patterns()
                for x in (self._layers if self._keep_patterns else ())
            },
            settings={
                "model": self._model.name,
                "versions": versions(),
                "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "pattern": self._pattern,
                "normalization": self._normalization
                if isinstance(self._normalization, str)
                else getattr(self._normalization, "__name__", type(self._normalization).__name__),
            },
        )
        self._warn(profile)
        return profile

    def _warn(self, profile):
        absent = [name for name, n in zip(profile.classes, profile.count, strict=True) if not n]
        if absent:
            warnings.warn(
                f"No sample belongs to {len(absent)} of {len(profile.classes)} classes "
                f"({_some(absent)}): their entropies are NaN.",
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


def _all_samples(tensors):
    """The membership of samples without labels: one class."""
    return ops.ones((ops.shape(tensors["pattern"])[0], 1))


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
