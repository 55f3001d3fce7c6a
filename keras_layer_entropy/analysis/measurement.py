"""One measurement of a model: batches in, an EntropyProfile out."""

import dataclasses
import datetime
import functools
import warnings
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from keras_layer_entropy.analysis.profile import EntropyProfile
from keras_layer_entropy.backend import strategy
from keras_layer_entropy.measures.class_sums import MANY, ClassIds, positions_of
from keras_layer_entropy.measures.entropy import Undecided
from keras_layer_entropy.measures.kept_samples import KeptSamples, MadeWhenAsked, width
from keras_layer_entropy.measures.measure import (
    LayerInfo,
    Measure,
    MeasureResult,
    Samples,
    listed,
)
from keras_layer_entropy.measures.pairs import shared_products
from keras_layer_entropy.measures.registry import get_measures
from keras_layer_entropy.recording.labels import LabelStatistic, find_labels
from keras_layer_entropy.version import versions

MOST_STATE = 4 * 2**30  # bytes that the state of a measurement may take
ID_COLUMNS = 2  # id and weight, of a kept sample


class OtherPositionsError(ValueError):
    """A layer has other samples or positions than there are labels for."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be measured of a model.

    Attributes:
        model: the model whose loss and output names tell what its labels are.
        layers: which layers, as for `analyzer.EntropyAnalyzer`.
        num_classes: likewise.
        measures: likewise; a tuple of `Measure` once this is made.
        classes: likewise; a tuple or None.
    """

    model: Any
    layers: Any
    num_classes: Any
    measures: Any
    classes: Any = None

    def __post_init__(self):
        object.__setattr__(self, "measures", tuple(get_measures(self.measures)))
        if self.classes is not None:
            if isinstance(self.classes, str) or not all(isinstance(x, str) for x in self.classes):
                raise ValueError(f"classes={self.classes!r}; expected the names of the classes.")
            object.__setattr__(self, "classes", tuple(self.classes))

    @property
    def recorded(self):
        """The layers to record: where nobody chose some, Dense ones and those of the measures."""
        if self.layers is not None:
            return self.layers
        kinds = {kind: None for measure in self.measures for kind in measure.layers}
        kinds.pop(keras.layers.Dense, None)
        return [keras.layers.Dense, *kinds] if kinds else None

    def rows_of(self, measure, activations, infos):
        """In which rows there are layers that a measure is of.

        Layers that come along because another measure is of them are left out: beside Dense layers
        convolutions would say of these that they are flat or rise.
        """
        fitting = [row for row, info in enumerate(infos) if measure.fits(info)]
        if self.layers is not None:
            return fitting
        kinds = (keras.layers.Dense, *measure.layers)
        usual = [row for row in fitting if issubclass(activations[row].kind, kinds)]
        return usual or fitting


@dataclasses.dataclass(frozen=True)
class _Measuring:
    """One measure, the rows of the layers that it is of, and the state of each of them."""

    measure: Measure
    rows: list
    states: list


class Measurement:
    """The states of all measures in all chosen layers of a model, and of the labels.

    Args:
        request: `Request`.
        activations, outputs, y, inputs: a first batch, which is not counted: `following.Activation`
            of each layer, and what the model gave and was given.

    Raises:
        ValueError: labels that cannot be read, or more state than memory should be taken for.
    """

    def __init__(self, request, activations, outputs, y, inputs):
        self._request = request
        self._labelled = y is not None
        self._labels = find_labels(
            y,
            outputs,
            request.num_classes,
            loss=request.model.loss if request.model.compiled else None,
            output_names=getattr(request.model, "output_names", None),
        )
        # Variables of several replicas have no rows that are written one by one.
        if self._labels.num_classes > MANY and strategy(request.model) is None:
            self._labels = dataclasses.replace(self._labels, by_id=True)
        self._check_labels_are_there()
        names = self._request.classes
        if names is not None and len(names) != self._labels.num_classes:
            raise ValueError(
                f"classes names {len(names)} classes, {listed(names)}; the model and the data have "
                f"{self._labels.num_classes}."
            )
        self._infos = [
            LayerInfo(a.path, a.units, _shapes(a.features()), a.function) for a in activations
        ]
        self._is_output = [activation.is_output for activation in activations]
        rows = [request.rows_of(x, activations, self._infos) for x in request.measures]
        of_class = ID_COLUMNS if self._labels.by_id else self._labels.num_classes
        keeping = _keeping(request.measures, rows, self._infos, inputs, of_class)
        self._check_memory(rows, keeping.size if keeping else 0)
        classes = self._labels.num_classes if self._labels.by_id else None
        self._kept = _Kept(keeping, classes) if keeping else None
        self._counts = LabelStatistic(self._labels.num_classes, rows=self._labels.kind == "one_hot")
        self._left_out = keras.metrics.Sum(name="left_out")
        self._measuring = [
            _Measuring(
                measure, own, [self._new_state(measure, activations[row], row) for row in own]
            )
            for measure, own in zip(request.measures, rows, strict=True)
        ]

    @property
    def metrics(self):
        """All state, as Keras metrics."""
        states = [state for x in self._measuring for state in x.states if state is not None]
        return [self._counts, self._left_out, *([self._kept.metric] if self._kept else []), *states]

    def update(self, features, inputs, y, sample_weight):
        """Adds a batch: `features` is `Activation.features()` of each layer."""
        if len(features) != len(self._infos):
            raise ValueError(
                f"{len(features)} layer calls were recorded in this batch and {len(self._infos)} "
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
        self._counts.update_state(*found)
        of_layers = [_all_samples(x) if membership is None else membership for x in features]
        for info, tensors, weights in zip(self._infos, features, of_layers, strict=True):
            _check_positions(info.path, tensors["pattern"].shape, weights.shape)
        by_id = dense = None
        if isinstance(membership, ClassIds):
            by_id, dense = membership.grouped(), functools.cache(membership.dense)
        for x in self._measuring:
            for row, state in zip(x.rows, x.states, strict=True):
                if state is not None:
                    tensors, weights = features[row], of_layers[row]
                    if by_id is not None:
                        weights = by_id if getattr(state, "takes_ids", False) else dense()
                    state.update_state(x.measure.seen(tensors), weights, tensors.get("mask"))
        if self._kept:
            self._kept.update(features, inputs, found.weights)

    def agrees(self, features, y, sample_weight):
        """Whether a batch can be added: layers have the samples and positions of the labels.

        A bool where shapes are known, else a bool tensor, so that a step can do without a batch
        that would be an error.
        """
        membership = self._labels.membership(y, sample_weight).weights
        if membership is None and not self._kept:
            return True
        if membership is None:
            membership = _all_samples(features[0])
        expected = positions_of(membership)
        found = [ops.shape(tensors["pattern"])[:-1][: len(expected)] for tensors in features]
        sizes = [pair for shape in found for pair in zip(shape, expected, strict=False)]
        equal = [ops.equal(*p) for p in sizes if not all(isinstance(n, int) for n in p)]
        return functools.reduce(ops.logical_and, equal) if equal else True

    def leave_out(self):
        """Counts a batch that does not agree; `profile` raises ValueError of it."""
        self._left_out.update_state(1.0)

    def check_labels(self):
        """Raises ValueError where labels that were accumulated are no class."""
        self._counts.check()

    def reset(self):
        """Forgets what was accumulated."""
        for metric in self.metrics:
            metric.reset_state()

    def start_at(self, number):
        """Says the number, among all samples, of the first one of the passes that follow."""
        if self._kept:
            self._kept.metric.start = number

    def described(self):
        """What is measured, JSON: states of which this is the same join."""
        return {
            "layers": [info.path for info in self._infos],
            "widths": [info.units for info in self._infos],
            "classes": self._labels.num_classes,
            "labels": self._labels.kind,
            "measures": {x.measure.name: repr(x.measure) for x in self._measuring},
            "of layers": {x.measure.name: list(x.rows) for x in self._measuring},
            "kept of a sample": self._kept.widths if self._kept else [],
        }

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
        count = self._counts.counts()
        names = self._request.classes
        if names is None or self._labels.kind == "none":
            one = self._labels.kind == "none"
            names = ("all",) if one else tuple(map(str, range(len(count))))
        samples = self._kept.reading() if self._kept else None
        profile = EntropyProfile(
            layers=[info.path for info in self._infos],
            widths=[info.units for info in self._infos],
            is_output=self._is_output,
            classes=names,
            count=count,
            results={x.measure.name: self._result(x, samples) for x in self._measuring},
            measures={x.measure.name: x.measure for x in self._measuring},
            metrics=dict(metrics or {}),
            epoch=epoch,
            settings={
                "model": self._request.model.name,
                "versions": versions(),
                "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            },
        )
        if not again:
            self._warn_of_what_is_missing(profile)
        self._warn_of_what_is_not_finite(profile)
        return profile

    def _new_state(self, measure, activation, row):
        # Paths make no names of variables: they may hold "#" or "@".
        make = functools.partial(measure.new_state, self._infos[row], self._labels.num_classes)
        state = make()
        undecided = activation.may_be_distribution and measure.reads == "pattern"
        return Undecided(state, make()) if undecided and state is not None else state

    def _result(self, measuring, samples):
        """The `MeasureResult` of a measure, with NaN for the layers that it is not of."""
        measure, rows, layers = measuring.measure, measuring.rows, len(self._infos)
        if not rows:
            nothing = np.full((layers, self._labels.num_classes), np.nan)
            whole = dict.fromkeys(measure.whole, nothing[:, 0])
            return MeasureResult(nothing, whole, unit=measure.unit, normalizer=nothing[:, 0])
        states = [getattr(state, "decided", state) for state in measuring.states]
        infos = [self._infos[row] for row in rows]
        found = measure.result(infos, states, samples(measure) if measure.samples else None)
        return found.of_layers(rows, [info.path for info in infos], count=layers)

    def _check_labels_are_there(self):
        needing = [x.name for x in self._request.measures if x.needs_classes]
        if needing and self._labels.kind == "none":
            raise ValueError(
                f"What {listed(needing)} says of the classes needs labels: pass data as (x, y) "
                "and, where the model's outputs do not say it, num_classes= the number of "
                "classes, above 1."
            )

    def _check_memory(self, rows, size):
        classes = self._labels.num_classes
        for measure, own in zip(self._request.measures, rows, strict=True):
            size += sum(measure.state_size(self._infos[row], classes) for row in own)
        if size > MOST_STATE:
            keeping = [x.name for x in self._request.measures if x.samples]
            raise ValueError(
                f"{classes} classes and {sum(info.units for info in self._infos)} units "
                f"need {size / 2**30:.1f} GiB: choose fewer layers with layers=, or pass "
                "num_classes=1 to take all samples for one class"
                + (f", or keep fewer samples for {', '.join(keeping)}." if keeping else ".")
            )

    def _warn_of_what_is_missing(self, profile):
        absent = [name for name, n in zip(profile.classes, profile.count, strict=True) if not n]
        if absent:
            warnings.warn(
                f"No sample belongs to {len(absent)} of {len(profile.classes)} classes "
                f"({_some(absent)}): what is measured of them is NaN.",
                stacklevel=4,
            )
        if unclear := self._labels.doubt(self._counts.several):
            warnings.warn(unclear, stacklevel=4)
        for x in self._measuring:
            if not x.rows:
                warnings.warn(
                    f"None of the layers {_some(profile.layers)} has a {x.measure.name}, which "
                    f"needs {x.measure.needs}.",
                    stacklevel=4,
                )

    def _warn_of_what_is_not_finite(self, profile):
        for x in self._measuring:
            found = profile[x.measure.name].per_class[x.rows]
            unknown = (np.isnan(found) & (profile.count > 0)).any(axis=0)
            if x.measure.samples and unknown.any():
                names = [profile.classes[i] for i in np.flatnonzero(unknown)]
                warnings.warn(
                    f"The {x.measure.name} of class {_some(names)} is not known: activations are "
                    "NaN or infinite, or none of its samples is among those that are compared.",
                    stacklevel=4,
                )
        for row, info in enumerate(self._infos):
            states = [s for x in self._measuring for r, s in zip(x.rows, x.states, strict=True)
                      if r == row and s is not None]  # fmt: skip
            bad = np.any([state.not_finite() for state in states], axis=0)
            if bad.any():
                names = [profile.classes[i] for i in np.flatnonzero(bad)]
                warnings.warn(
                    f"Layer {info.path!r} has NaN or infinite activations for class "
                    f"{_some(names)}: their entropies are NaN. Look at the weights and inputs of "
                    "this layer and of those before it.",
                    stacklevel=4,
                )


@dataclasses.dataclass(frozen=True)
class _Keeping:
    """What a pass has to keep of samples for the measures that compare them with one another.

    Attributes:
        columns: list of (measure, row) of what is kept of each layer, for measures that keep the
            same the first of them.
        places: measure -> where in `columns` its layers are.
        expected: shape of each of the model's inputs, without samples, where a measure looks at
            them.
        widths: numbers of features of the inputs, of each of `columns`, and of classes.
    """

    columns: list
    places: dict
    expected: list
    widths: list

    @property
    def names(self):
        """The measures, in words."""
        return ", ".join(measure.name for measure in self.places)

    @property
    def most(self):
        """How many samples are kept."""
        return max(measure.samples for measure in self.places)

    @property
    def size(self):
        """Bytes of what is kept."""
        return KeptSamples.size(self.widths, self.most)


def _keeping(measures, rows, infos, inputs, of_class):
    """The `_Keeping` for measures, each of layers in some rows; None where nothing is kept.

    Args:
        measures: of a request.
        rows: of each of them.
        infos: `LayerInfo` of each row.
        inputs: what the model is given in a first batch.
        of_class: how many numbers say what class a sample is of.

    Raises:
        ValueError: samples of no fixed size, or inputs without numbers that a measure looks at.
    """
    columns, places = {}, {}
    for measure, own in zip(measures, rows, strict=True):
        if not measure.samples:
            continue
        alike = Measure if type(measure).row is Measure.row else measure
        for row in own:
            columns.setdefault((alike, row), (measure, row))
        order = list(columns)
        places[measure] = [order.index((alike, row)) for row in own]
    if not places:
        return None
    reading = [x.name for x in places if x.reads_inputs]
    given = _with_numbers(inputs) if reading else []  # they may be large
    if reading and not given:
        raise ValueError(
            f"{listed(reading)} looks at the input of the model, which holds no numbers here: "
            "leave that measure out."
        )
    kept = [measure.row_width(infos[row]) for measure, row in columns.values()]
    expected = [tuple(x.shape)[1:] for x in given]
    if None in kept or any(None in shape for shape in expected):
        shapes = [infos[row].shapes["output"] for _, row in columns.values()]
        names = ", ".join(measure.name for measure in places)
        raise _no_fixed_size(names, [*(tuple(x.shape) for x in given), *shapes])
    widths = [sum(map(width, given)), *kept, of_class]
    return _Keeping(list(columns.values()), places, expected, widths)


class _Kept:
    """The samples that a pass keeps: the state of a `_Keeping`.

    Args:
        keeping: what is kept.
        classes: number of classes where it is their ids that are kept, else None.
    """

    def __init__(self, keeping, classes=None):
        self._keeping, self._classes = keeping, classes
        self.metric = KeptSamples(keeping.widths, keeping.most)

    @property
    def widths(self):
        """Numbers of features of what is kept."""
        return self._keeping.widths

    def update(self, features, inputs, membership):
        """Adds a batch: `Activation.features()` of each layer, and weights `[batch, classes]`."""
        keeping = self._keeping
        if len(membership.shape) != 2:
            labelled = any(measure.needs_classes for measure in keeping.places)
            way = "pass one label for each sample" if labelled else "pass num_classes=1"
            raise ValueError(
                f"There are labels or weights for every position, {tuple(membership.shape[:-1])}, "
                f"but {keeping.names} compares whole samples: {way}, or leave that measure out."
            )
        inputs = _with_numbers(inputs) if keeping.expected else []
        layers = [measure.row(features[row]) for measure, row in keeping.columns]
        shapes = [tuple(x.shape) for x in (*inputs, *layers)]
        same = [shape[1:] for shape in shapes[: len(inputs)]] == keeping.expected
        if (
            any(None in shape[1:] for shape in shapes)
            or not same
            or [width(x) for x in layers] != keeping.widths[1:-1]
        ):
            raise _no_fixed_size(keeping.names, shapes)
        flat = [ops.reshape(ops.cast(x, "float32"), (-1, width(x))) for x in inputs]
        if isinstance(membership, ClassIds):
            counts = membership.weights > 0
            membership = ops.stack(
                [ops.cast(membership.ids, "float32"), membership.weights], axis=-1
            )
        else:
            counts = ops.any(membership > 0, axis=-1)
        flat = ops.concatenate(flat, axis=-1) if flat else ops.zeros_like(membership[:, :0])
        self.metric.update_state([flat, *layers, membership], counts)

    def reading(self):
        """A function that gives the `Samples` of a measure, of what is kept now."""
        kept = self.metric.result()
        products = shared_products()

        def samples(measure):
            most, places = measure.samples, self._keeping.places[measure]
            return Samples(
                kept[0][:most],
                MadeWhenAsked(lambda layer: kept[1 + places[layer]][:most], len(places)),
                self._membership(kept[len(kept) - 1][:most]),
                lambda layer, rows: products((places[layer], most), rows),
            )

        return samples

    def _membership(self, kept):
        if self._classes is None:
            return kept
        ids, weights = kept.T
        membership = np.zeros((len(ids), self._classes), "float32")
        membership[np.arange(len(ids)), ids.astype(int)] = weights
        return membership


def _with_numbers(inputs):
    """The tensors that the model is given, without texts."""
    tensors = [ops.convert_to_tensor(x) for x in tree.flatten(inputs) if x is not None]
    return [x for x in tensors if "string" not in str(x.dtype)]


def _no_fixed_size(names, shapes):
    return ValueError(
        f"{names} compares samples with one another, which have to be of one size; there are "
        f"tensors of shape {shapes}: pad the samples to one length, or leave that measure out."
    )


def _shapes(tensors):
    """Name -> shape."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


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
        raise OtherPositionsError(
            f"Layer {path!r} has activations of shape {tuple(values)}, but there are labels or "
            f"weights for {expected}: choose other layers with layers=, or pass num_classes=1 to "
            "take all samples for one class."
        )


def _some(names, most=10):
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
