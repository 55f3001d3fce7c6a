"""Model + data -> UnitProfile: what every single kernel of a convolution tells of the classes.

Sources: Fang, Wang & Yamaguchi, *Dissecting Deep Learning Networks - Visualizing Mutual
Information*, Entropy 2018, 20(11), 823, doi 10.3390/e20110823; Zhao & Zhang, *Quantitative
Performance Assessment of CNN Units via Topological Entropy Calculation*, ICLR 2022, arXiv
2103.09716.
"""

import dataclasses
import math
import numbers
import warnings

import keras
import numpy as np
from keras import ops

from keras_layer_entropy.analysis.profile import mean_of_known
from keras_layer_entropy.backend import strategy, strategy_scope
from keras_layer_entropy.measures import topology
from keras_layer_entropy.measures.catalogue import MOST_SAMPLES
from keras_layer_entropy.measures.kept_samples import MOST_STATE, KeptSamples
from keras_layer_entropy.measures.mutual_information import (
    Information,
    kernel_information,
    less_effective_units,
    pairwise_information,
    quantile_information,
    redundant_units,
)
from keras_layer_entropy.measures.statistics import FeatureEntropy
from keras_layer_entropy.recording.labels import LabelStatistic, find_labels
from keras_layer_entropy.recording.passes import (
    Source,
    StreamingPass,
    rehearsal,
)
from keras_layer_entropy.recording.probe import ActivationProbe

ESTIMATORS = ("quantile", "kernel")
_BLOCK = 2**24  # numbers of maps that are compared at a time: 64 MiB, a few times over


@dataclasses.dataclass(frozen=True, eq=False)
class UnitProfile:
    """What the units (kernels, channels) of one convolution tell, each by itself.

    Every array is float64 and read-only, but for `count`.

    Attributes:
        layer: path of the layer.
        classes: name of each class.
        count: int64 `[classes]`, number of samples of each class.
        labels: `[units]`, I(T_k; Y), about the class, bits.
        labels_shuffled: `[units]`, the same with the labels of other samples, bits: what the
            estimate shows where nothing is known.
        input: `[units]`, I(X; T_k), about which sample it was, bits. For the estimator
            `"quantile"` the entropy of the binned unit, which is a function of the sample: the
            logarithm of the number of bins, 3.3, but for units that often give the same.
        per_class: `[units, classes]`, I(T_k; 1[Y = c]), about one class against all others, bits;
            NaN for a class without samples. A sample of several classes counts as a part of each.
        pairwise: `[units, units]`, I(T_k; T_l) of the binned means of the units' maps, bits; on
            the diagonal their entropies.
        feature_entropy: `[units, classes]`, topological feature entropy
            (`measures.topology.feature_entropy`), nats; NaN for a class without samples.
        selective_rate: `[units, classes]`, share of the images in which the unit's map has a loop.
        estimator: `"quantile"` or `"kernel"`, as in `UnitAnalyzer`.
        epoch: the epoch, counted from 0 as in Keras, after which this was measured; -1 for before
            the first, None where it is not known.

    Raises:
        ValueError: arrays whose shapes do not fit one another.

    Source: Fang et al. 2018; Zhao & Zhang 2022.

    Example:

    >>> profile = UnitProfile(
    ...     layer="conv", classes=("a", "b"), count=[5, 5], labels=[0.9, 0.8, 0.01],
    ...     labels_shuffled=[0.0, 0.0, 0.0], input=[3.0, 2.0, 2.0],
    ...     per_class=[[0.9, 0.9], [0.8, 0.8], [0.0, 0.0]],
    ...     pairwise=[[3.0, 1.9, 0.1], [1.9, 2.0, 0.1], [0.1, 0.1, 2.0]],
    ...     feature_entropy=[[1.0, 1.4], [3.0, 3.2], [2.0, 2.0]], selective_rate=np.ones((3, 2)))
    >>> profile.redundant().redundant.tolist(), profile.less_effective().tolist()
    ([False, True, False], [False, False, True])
    >>> profile.by_feature_entropy().tolist()  # the best first
    [0, 2, 1]
    """

    layer: str
    classes: tuple
    count: np.ndarray
    labels: np.ndarray
    labels_shuffled: np.ndarray
    input: np.ndarray
    per_class: np.ndarray
    pairwise: np.ndarray
    feature_entropy: np.ndarray
    selective_rate: np.ndarray
    estimator: str = "quantile"
    epoch: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "classes", tuple(self.classes))
        units, classes = np.size(self.labels), len(self.classes)
        shapes = {"count": (classes,), "pairwise": (units, units)}
        shapes |= dict.fromkeys(("labels", "labels_shuffled", "input"), (units,))
        shapes |= dict.fromkeys(
            ("per_class", "feature_entropy", "selective_rate"), (units, classes)
        )
        for name, shape in shapes.items():
            array = ops.convert_to_numpy(getattr(self, name))
            array = np.array(array, np.int64 if name == "count" else np.float64)
            if array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}; expected {shape}.")
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    @property
    def units(self):
        """Number of units."""
        return len(self.labels)

    @property
    def mean_feature_entropy(self):
        """Feature entropy `[units]`, nats: the mean over the classes that have samples."""
        return mean_of_known(self.feature_entropy)

    @property
    def mean_selective_rate(self):
        """Selective rate `[units]`: the mean over the classes that have samples."""
        return mean_of_known(self.selective_rate)

    def redundant(self, threshold=0.6):
        """Which units only repeat a more informative one.

        Args, returns: `threshold` and result of `measures.mutual_information.redundant_units`,
        where the information on the labels says which one of several stays.
        """
        return redundant_units(self.pairwise, self.labels, threshold)

    def less_effective(self, earlier=(), threshold=0.1, flatness=0.1):
        """Which units tell little of the class and have never told anything else.

        Args:
            earlier: `UnitProfile`s of the same layer after earlier epochs.
            threshold, flatness: as in `measures.mutual_information.less_effective_units`.

        Returns:
            bool `[units]`.

        Raises:
            ValueError: profiles of another layer.
        """
        if others := [p.layer for p in earlier if (p.layer, p.units) != (self.layer, self.units)]:
            raise ValueError(
                f"earlier holds profiles of {others}; expected those of {self.layer!r} with "
                f"{self.units} units."
            )
        epochs = [*(profile.labels for profile in earlier), self.labels]
        return less_effective_units(np.stack(epochs), threshold, flatness)

    def by_feature_entropy(self):
        """The units, int `[units]`, from the lowest mean feature entropy (the best) to the highest.

        Of equal ones the earlier first; units for which it is not known come last.
        """
        return np.argsort(self.mean_feature_entropy, kind="stable")


def analyze_units(model, data, *, batch_size=256, steps=None, verbose="auto", **options):
    """Measures every kernel of the convolutions of a model on data, in one forward pass.

    Args:
        model: any Keras model. Its weights are as before afterwards.
        data: `(x, y)` or `(x, y, sample_weight)` arrays, a `tf.data.Dataset`, a
            `keras.utils.PyDataset` or a generator of batches, as for `model.evaluate`.
        batch_size: batch size for arrays.
        steps: number of batches, None for all.
        verbose: as in `model.evaluate`.
        **options: `layers`, `num_classes`, `estimator`, `samples`, `variance`, as for
            `UnitAnalyzer`.

    Returns:
        Tuple of `UnitProfile`, one per layer in the order of the forward pass.

    Raises:
        ValueError: as `UnitAnalyzer` and `UnitAnalyzer.analyze`.

    Source: Fang et al. 2018; Zhao & Zhang 2022.

    Example:

    >>> model = keras.Sequential([
    ...     keras.layers.Conv2D(4, 3, activation="relu", name="conv"),
    ...     keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)])
    >>> x, y = np.random.normal(size=(90, 8, 8, 1)), np.arange(90) % 3
    >>> (profile,) = analyze_units(model, (x, y), verbose=0)
    >>> profile.layer, profile.labels.shape, profile.per_class.shape
    ('conv', (4,), (4, 3))
    """
    analyzer = UnitAnalyzer(model, **options)
    return analyzer.analyze(data, batch_size=batch_size, steps=steps, verbose=verbose)


class UnitAnalyzer:
    """Measures the kernels of a model again and again without building and compiling again.

    Information is estimated from a random subset of the samples. The estimator `"quantile"`, the
    fast one, looks at the mean of a unit's map, in bins that hold about equally many samples
    (`measures.mutual_information.quantile_information`); `"kernel"` at whole maps, with a Gaussian
    kernel around every sample (`kernel_information`). `"kernel"` depends on the scale of
    activations, and says that everything is known, whatever the labels, where no two maps lie near
    one another: look at `labels_shuffled`. Feature entropy is of all samples.

    Args:
        model: any Keras model.
        layers: as for `ActivationProbe`; None for every `Conv2D`.
        num_classes: as for `EntropyAnalyzer`.
        estimator: `"quantile"` or `"kernel"`.
        samples: how many samples are kept for informations. `"kernel"` keeps height x width x units
            numbers of each.
        variance: of the noise of `"kernel"`, as for `kernel_information`; it counts against the
            squared distance of whole maps.

    Raises:
        ValueError: no such layer or estimator, `samples` no int of at least 2, `variance` not
            positive.

    Source: Fang et al. 2018; Zhao & Zhang 2022.

    Example:

    >>> model = keras.Sequential([
    ...     keras.layers.Conv2D(4, 3, activation="relu", name="conv"),
    ...     keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)])
    >>> analyzer = UnitAnalyzer(model, estimator="kernel", samples=50)
    >>> x, y = np.random.normal(size=(90, 8, 8, 1)), np.arange(90) % 3
    >>> before, after = (analyzer.analyze((scale * x, y), verbose=0)[0] for scale in (0.01, 100.0))
    >>> bool((before.input < 1).all()), bool((after.input > 5).all())  # at most log2(50) = 5.6
    (True, True)
    """

    def __init__(
        self,
        model,
        layers=None,
        num_classes=None,
        estimator="quantile",
        samples=MOST_SAMPLES,
        variance=0.1,
    ):
        if estimator not in ESTIMATORS:
            raise ValueError(f"estimator={estimator!r}; expected one of {ESTIMATORS}.")
        if not isinstance(samples, numbers.Integral) or samples < 2:
            raise ValueError(f"samples={samples!r}; expected an int of at least 2.")
        self.model = model
        self._num_classes = num_classes
        self._estimator = estimator
        if not variance > 0:
            raise ValueError(f"variance={variance}; expected a positive number.")
        self._samples = int(samples)
        self._variance = variance
        with strategy_scope(model):
            self._probe = ActivationProbe(model, keras.layers.Conv2D if layers is None else layers)
        self._pass = None

    def analyze(self, data, *, batch_size=256, steps=None, verbose="auto"):
        """Measures the model on data; arguments and result as for `analyze_units`.

        Raises:
            ValueError: empty data, no labels, labels that are no class or stand for positions,
                layers without maps, or more maps than memory should be taken for.
        """
        source = Source(data, batch_size, steps)
        if self._pass is None:
            self._pass = self._prepare(*source.first())
        self._pass.run(source, verbose=verbose)  # which forgets what was accumulated before
        return self._pass.unit_statistics.profiles()

    def _prepare(self, x, y, sample_weight):
        """Builds everything on a batch, so that the pass itself only compiles and runs."""
        with rehearsal(self.model):
            outputs, activations = self._probe.record(x)
        labels = find_labels(
            y,
            outputs,
            self._num_classes,
            loss=self.model.loss if self.model.compiled else None,
            output_names=getattr(self.model, "output_names", None),
        )
        if labels.kind == "none":
            raise ValueError(
                "What a unit tells of the classes needs labels: pass data as (x, y) and, where "
                "the model's outputs do not say it, num_classes= the number of classes, above 1."
            )
        maps = [activation.features()["output"] for activation in activations]
        paths = [activation.path for activation in activations]
        with strategy_scope(self.model):
            statistics = _UnitStatistics(
                paths, maps, labels, self._estimator, self._samples, self._variance
            )
            runner = _UnitPass(self._probe, statistics)
        if strategy(self.model) is None:  # a first try, whose errors are easier to read
            statistics.update(maps, y, sample_weight)
            statistics.check_labels()
        return runner


class _UnitPass(StreamingPass):
    """One forward pass for the statistics of the units."""

    def __init__(self, probe, statistics):
        super().__init__(probe.model, statistics.metrics, name="unit_analyzer")
        self.probe = probe
        self.unit_statistics = statistics

    def call(self, inputs, training=False):
        _, activations = self.probe.record(inputs)
        return [activation.features()["output"] for activation in activations]

    def update(self, seen, y, sample_weight):
        self.unit_statistics.update(seen, y, sample_weight)


class _UnitStatistics:
    """What is kept of the maps of every chosen layer, and of the labels.

    Args:
        paths: path of each layer.
        maps: what each layer gives for a batch, `[batch, height, width, units]`.
        labels: `labels.Labels`.
        estimator, samples, variance: as for `UnitAnalyzer`.
    """

    def __init__(self, paths, maps, labels, estimator, samples, variance):
        for path, tensor in zip(paths, maps, strict=True):
            _check_maps(path, tensor)
        self._paths = paths
        self._shapes = [tuple(tensor.shape[1:]) for tensor in maps]
        self._labels = labels
        self._estimator = estimator
        self._variance = variance
        rows = [self._row(tensor) for tensor in maps]
        widths = [*(row.shape[1] for row in rows), labels.num_classes]
        self._check_memory(widths, samples)
        self._counted = LabelStatistic(labels.num_classes, rows=labels.kind == "one_hot")
        self._kept = KeptSamples(widths, samples)
        self._births = [_Births(shape[-1], labels.num_classes) for shape in self._shapes]

    @property
    def metrics(self):
        """All statistics, as Keras metrics."""
        return [self._counted, self._kept, *self._births]

    def update(self, maps, y, sample_weight):
        """Adds a batch."""
        if y is None:
            raise ValueError("The data have no labels, unlike those measured first.")
        found = self._labels.membership(y, sample_weight)
        membership = found.weights
        if len(membership.shape) != 2:
            raise ValueError(
                f"There are labels or weights for every position, {tuple(membership.shape[:-1])}; "
                "expected one for each sample, because the maps of a unit are compared as a whole."
            )
        for path, tensor, births in zip(self._paths, maps, self._births, strict=True):
            _check_maps(path, tensor)
            births.update_state(tensor, membership)
        self._counted.update_state(*found)
        rows = [*(self._row(tensor) for tensor in maps), membership]
        self._kept.update_state(rows, ops.any(membership > 0, axis=-1))

    def check_labels(self):
        """Raises ValueError where labels that were accumulated are no class."""
        self._counted.check()

    def profiles(self):
        """What was accumulated, as `UnitProfile`s; errors and warnings about the data."""
        count = self._counted.counts()
        if not count.all():
            warnings.warn(
                f"No sample belongs to the classes {np.flatnonzero(count == 0).tolist()}: what "
                "units tell of them is NaN.",
                stacklevel=4,
            )
        if unclear := self._labels.doubt(self._counted.several):
            warnings.warn(unclear, stacklevel=4)
        *kept, membership = self._kept.result()
        return tuple(
            self._profile(*row, membership, count)
            for row in zip(self._paths, self._shapes, self._births, kept, strict=True)
        )

    def _profile(self, path, shape, births, rows, membership, count):
        counts = births.counts()
        if np.isnan(counts).any():
            bad = np.flatnonzero(np.isnan(counts).any(axis=(1, 2))).tolist()
            warnings.warn(
                f"The maps of {len(bad)} units of {path!r} hold NaN or infinities ({bad[:10]}): "
                "look at the weights and inputs of this layer and of those before it.",
                stacklevel=6,
            )
        # Kept samples come in random order: the label of a neighbour is that of any sample.
        others = np.roll(membership, 1, axis=0)
        if self._estimator == "kernel":
            maps = rows.reshape(len(rows), -1, shape[-1])
            means = maps.mean(axis=1)
            found, shuffled = (
                _by_kernels(maps, weights, self._variance) for weights in (membership, others)
            )
        else:
            means = rows
            found, shuffled = (quantile_information(rows, w) for w in (membership, others))
        return UnitProfile(
            layer=path,
            classes=tuple(map(str, range(len(count)))),
            count=count,
            labels=found.labels,
            labels_shuffled=shuffled.labels,
            input=found[0],  # of either estimator
            per_class=found.per_class,
            pairwise=pairwise_information(means),
            feature_entropy=topology.feature_entropy(counts),
            selective_rate=topology.selective_rate(counts),
            estimator=self._estimator,
        )

    def _row(self, maps):
        """What is kept of each sample, `[batch, width]`."""
        maps = ops.cast(maps, "float32")
        if self._estimator == "quantile":
            return ops.mean(maps, axis=(1, 2))
        return ops.reshape(maps, (-1, math.prod(maps.shape[1:])))

    def _check_memory(self, widths, samples):
        classes, units = self._labels.num_classes, sum(shape[-1] for shape in self._shapes)
        # Two float32 for each number of a birth.
        size = KeptSamples.size(widths, samples) + 8 * classes * FeatureEntropy.numbers(units)
        if size > MOST_STATE:
            raise ValueError(
                f"{classes} classes, {units} units and {samples} samples of {sum(widths)} numbers "
                f"need {size / 2**30:.1f} GiB: choose fewer layers with layers=, fewer samples=, "
                'or estimator="quantile", which keeps one number of each map.'
            )


class _Births(FeatureEntropy):
    """Feature entropy, unit by unit."""

    def counts(self):
        """Images by birth, `[units, classes, max_rank + 1]`; NaN where maps are not finite."""
        counts = np.swapaxes(self.total(), 0, 1)
        return np.where(counts[..., -1:] > 0, np.nan, counts[..., :-1])


def _by_kernels(maps, membership, variance):
    """`Information` of each unit, from `[samples, places, units]`."""
    maps = np.moveaxis(maps, -1, 0)
    parts = np.array_split(maps, min(len(maps), -(-maps.size // _BLOCK)))
    found = [
        map(ops.convert_to_numpy, kernel_information(part, membership, variance)) for part in parts
    ]
    return Information(*map(np.concatenate, zip(*found, strict=True)))


def _check_maps(path, tensor):
    if len(tensor.shape) != 4 or None in tuple(tensor.shape)[1:]:
        raise ValueError(
            f"Layer {path!r} gives {tuple(tensor.shape)}; expected maps of one size, [batch, "
            "height, width, units]: choose convolutions of images with layers=."
        )
