"""EntropyProfile: a finished measurement, immutable; JSON and CSV; flat? monotone?"""

import csv
import dataclasses
import json
from collections.abc import Mapping

import numpy as np

from keras_layer_entropy.files import local_path, replacing
from keras_layer_entropy.measures.catalogue import ENTROPIES
from keras_layer_entropy.measures.entropy import FLAT_TOLERANCE
from keras_layer_entropy.report import write_report

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True, eq=False)
class EntropyProfile:
    """The entropies of the layers of one model on one data set, class by class.

    Every array is float64 and read-only. A class without samples, or with activations that are
    not finite, is NaN and left out of means.

    Attributes:
        layers: path of each layer, in the order of the forward pass. A nested layer reads
            `block/dense`, the second call of a shared one `dense#2`.
        units: number of units of each layer.
        outputs: whether each layer is an output of the model.
        classes: name of each class; `("all",)` for data without labels.
        count: `[classes]`, number of samples of each class.
        values: measure name -> `[layers, classes]`. `activation_entropy` and `instability` are
            normalised (see `normalizer`), `state_entropy` is in bits.
        layer_values: name -> `[layers]`, numbers of a layer as a whole that come with a measure
            (`logdet_input` with `logdet`, say).
        normalizer: `[layers]`, what entropies in nats were divided by: ln(units), unless another
            normalization was asked for.
        metrics: the model's own loss and metrics, measured in the same pass when it is compiled.
        baseline: the profile of the same network freshly initialised, or None.
        epoch: the epoch (counted from 0, as in Keras) that a monitor measured, or None.
        settings: what was asked for (pattern, normalization, seed, ...), as plain JSON values.
        patterns: layer -> `[classes, units]`, the activation pattern of each class (two states for
            a layer of one unit); empty unless it was measured with `keep_patterns=True`.

    Example:

    >>> profile = EntropyProfile(
    ...     layers=("dense", "dense_1", "logits"), units=(64, 64, 2), outputs=(False, False, True),
    ...     classes=("cat", "dog"), count=[10, 12], normalizer=np.log([64, 64, 2]),
    ...     values={"activation_entropy": [[0.9, 0.8], [0.9, 0.799], [0.1, 0.3]]})
    >>> profile.mean.round(4).tolist(), profile.gradient.round(4).tolist()
    ([0.85, 0.8495, 0.2], [nan, 0.0005, 0.6495])
    >>> profile.flat(tolerance=0.01), profile.is_monotone()
    (('dense_1',), True)
    """

    layers: tuple
    units: tuple
    outputs: tuple
    classes: tuple
    count: np.ndarray
    normalizer: np.ndarray
    values: Mapping
    metrics: Mapping = dataclasses.field(default_factory=dict)
    baseline: "EntropyProfile | None" = None
    epoch: int | None = None
    settings: Mapping = dataclasses.field(default_factory=dict)
    patterns: Mapping = dataclasses.field(default_factory=dict)
    layer_values: Mapping = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        shape = (len(self.layers), len(self.classes))
        for name in ("layers", "units", "outputs", "classes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "count", _array("count", self.count, shape[1:], np.int64))
        object.__setattr__(self, "normalizer", _array("normalizer", self.normalizer, shape[:1]))
        object.__setattr__(
            self,
            "values",
            {name: _array(f"values[{name!r}]", v, shape) for name, v in self.values.items()},
        )
        object.__setattr__(
            self,
            "layer_values",
            {
                name: _array(f"layer_values[{name!r}]", v, shape[:1])
                for name, v in self.layer_values.items()
            },
        )
        if self.patterns:
            shapes = {
                x: (shape[1], max(n, 2)) for x, n in zip(self.layers, self.units, strict=True)
            }
            patterns = {
                x: _array(f"patterns[{x!r}]", self.patterns.get(x, ()), shapes[x]) for x in shapes
            }
            object.__setattr__(self, "patterns", patterns)
        for name in ("units", "outputs"):
            if len(getattr(self, name)) != shape[0]:
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} entries for {shape[0]} layers."
                )

    @property
    def entropy(self):
        """Activation entropy `[layers, classes]`, normalised: 0..1 for the `"log"` normalization.

        Raises ValueError when the profile was made without this measure.
        """
        if "activation_entropy" not in self.values:
            raise ValueError(
                "This profile holds no activation_entropy, only "
                f"{sorted(self.values)}: measure again with 'activation_entropy' among measures."
            )
        return self.values["activation_entropy"]

    @property
    def unit(self):
        """The unit of `entropy`, in words."""
        known = {"log": "normalised, 0 to 1", "none": "nats"}
        return known.get(self.settings.get("normalization", "log"), "normalised")

    @property
    def entropy_nats(self):
        """Activation entropy `[layers, classes]`, in nats."""
        return self.entropy * self.normalizer[:, None]

    @property
    def mean(self):
        """Activation entropy `[layers]`: the mean over the classes that have samples."""
        return self.mean_of("activation_entropy")

    def mean_of(self, measure):
        """`[layers]`: the mean of `values[measure]` over the classes that have samples."""
        return mean_of_known(
            self.entropy if measure == "activation_entropy" else self.values[measure]
        )

    @property
    def judged(self):
        """Boolean `[layers]`: False where measures of another kind alone are known.

        So it is with convolutions that come along for their feature entropy: what is said of depth
        is said of the other layers.
        """
        none = np.zeros(len(self.layers), bool)
        known = {name: np.isfinite(v).any(axis=1) for name, v in self.values.items()}
        entropy = sum((known[name] for name in known if name in ENTROPIES), none)
        other = sum((known[name] for name in known if name not in ENTROPIES), none)
        return entropy | ~other

    @property
    def gradient(self):
        """`[layers]`: g = mean of the layer before - mean of this one; NaN for the first layer.

        The layers before and after are those that are `judged`; the others have no gradient.
        """
        gradient, judged = np.full(len(self.layers), np.nan), np.flatnonzero(self.judged)
        mean = self.mean[judged]
        gradient[judged[1:]] = mean[:-1] - mean[1:]
        return gradient

    def flat(self, tolerance=FLAT_TOLERANCE):
        """Paths of the layers over which the entropy falls by less than `tolerance` or rises.

        The first layer has no gradient and an output layer is never dropped: neither is named.
        """
        return tuple(
            layer
            for layer, gradient, output in zip(
                self.layers, self.gradient, self.outputs, strict=True
            )
            if gradient < tolerance and not output
        )

    def is_monotone(self, tolerance=0.0):
        """Whether the mean entropy never rises by more than `tolerance` from layer to layer."""
        return bool(np.all(self.gradient[self.judged][1:] >= -tolerance))

    def of_layers(self, layers):
        """The same profile of some of its layers, in the order of the profile.

        Raises ValueError for a layer that it does not have.
        """
        if unknown := [layer for layer in layers if layer not in self.layers]:
            raise ValueError(f"There are no layers {unknown}; the profile has {self.layers}.")
        rows = [row for row, layer in enumerate(self.layers) if layer in layers]
        return dataclasses.replace(
            self,
            **{
                name: [getattr(self, name)[row] for row in rows]
                for name in ("layers", "units", "outputs", "normalizer")
            },
            values={name: values[rows] for name, values in self.values.items()},
            layer_values={name: values[rows] for name, values in self.layer_values.items()},
            patterns={layer: p for layer, p in self.patterns.items() if layer in layers},
            baseline=self.baseline and self.baseline.of_layers(layers),
        )

    def with_classes(self, classes):
        """The same profile with other names for the classes."""
        baseline = self.baseline and self.baseline.with_classes(classes)
        return dataclasses.replace(self, classes=tuple(classes), baseline=baseline)

    def to_records(self):
        """One dict per layer and class: layer, units, output, class, count, every measure.

        What holds for the layer as a whole (`layer_values`) stands in each of its rows.
        """
        return [
            {
                "layer": layer,
                "units": self.units[row],
                "output": self.outputs[row],
                "class": name,
                "count": int(self.count[column]),
                **{measure: float(v[row, column]) for measure, v in self.values.items()},
                **{name: float(v[row]) for name, v in self.layer_values.items()},
            }
            for row, layer in enumerate(self.layers)
            for column, name in enumerate(self.classes)
        ]

    def to_csv(self, path):
        """Writes `to_records()` as CSV, a header line first; NaN is an empty cell."""
        records = self.to_records()
        with replacing(path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(records[0]))
            writer.writeheader()
            for record in records:
                writer.writerow({k: "" if _plain(v) is None else v for k, v in record.items()})

    def report(self, path, **options):
        """Writes one self-contained HTML page: curve, heat map, layers, patterns, caveats.

        Args:
            path: the file.
            **options: `history`, `pruning`, `tolerance`, `overwrite`, as for
                `report.write_report`.

        Returns:
            The path.

        Raises:
            FileExistsError: it exists and `overwrite` is not given.
        """
        return write_report(path, self, **options)

    def save(self, path):
        """Writes the profile, its baseline included, as JSON (NaN as null)."""
        text = json.dumps(self._to_json(), indent=1, allow_nan=False)
        with replacing(path) as temporary:
            temporary.write_text(text + "\n")

    @classmethod
    def load(cls, path):
        """Reads what `save` wrote.

        Raises ValueError for a file that is no profile or of a newer format.
        """
        try:
            data = json.loads(local_path(path).read_text())
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no profile: not JSON ({error}).") from error
        version = data.get("format_version") if isinstance(data, dict) else None
        if version is None:
            raise ValueError(f"{path} is JSON but no profile: it has no format_version.")
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{path} has format version {version}; this library reads version "
                f"{FORMAT_VERSION}: use the library version that wrote it, or measure again."
            )
        try:
            return cls._from_json(data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} is a damaged profile: {error!r}.") from error

    def _to_json(self):
        data = {"format_version": FORMAT_VERSION}
        data |= {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        data["baseline"] = self.baseline and self.baseline._to_json()
        # Six digits are enough for a picture, and a third of the file.
        data["patterns"] = {
            layer: [[float(f"{p:.6g}") for p in row] for row in pattern.tolist()]
            for layer, pattern in self.patterns.items()
        }
        return _plain(data)

    @classmethod
    def _from_json(cls, data):
        data = {key: value for key, value in data.items() if key != "format_version"}
        data["values"] = {k: np.array(v, np.float64) for k, v in data["values"].items()}
        layer_values = data.get("layer_values", {})
        data["layer_values"] = {k: np.array(v, np.float64) for k, v in layer_values.items()}
        data["metrics"] = {k: np.nan if v is None else v for k, v in data["metrics"].items()}
        data["patterns"] = {k: np.array(v, np.float64) for k, v in data.get("patterns", {}).items()}
        data["baseline"] = data["baseline"] and cls._from_json(data["baseline"])
        return cls(**data)


def mean_of_known(values):
    """Mean over the last axis of `[rows, columns]`; NaN is left out, and stands where all are."""
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(axis=1)
    return np.divide(
        total, known.sum(axis=1), out=np.full(len(values), np.nan), where=known.any(axis=1)
    )


def _array(name, value, shape, dtype=np.float64):
    array = np.array(value, dtype)
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; expected {shape}.")
    array.flags.writeable = False
    return array


def _plain(value):
    """Arrays to lists, tuples to lists, NaN and infinities to None."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
