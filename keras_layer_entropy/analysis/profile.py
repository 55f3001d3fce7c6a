"""EntropyProfile: a finished measurement, immutable; JSON and CSV; flat? monotone?"""

import csv
import dataclasses
import json
import pathlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_layer_entropy.analysis.saved import FORMAT_VERSION, from_json, plain, to_json
from keras_layer_entropy.analysis.unit_profile import UnitProfile
from keras_layer_entropy.files import AnyPath, local_path, replacing
from keras_layer_entropy.measures.entropy import FLAT_TOLERANCE, NOISE
from keras_layer_entropy.measures.measure import Measure, MeasureResult, frozen
from keras_layer_entropy.measures.registry import get_measure
from keras_layer_entropy.report import write_report
from keras_layer_entropy.report.model_explorer import write_model_explorer
from keras_layer_entropy.report.notebook import profile_html
from keras_layer_entropy.report.pruning import Pruning

_ENTROPY = "activation_entropy"


@dataclasses.dataclass(frozen=True, eq=False)
class EntropyProfile:
    """What was measured in the layers of one model on one data set, class by class.

    `profile["logdet"]` is the `MeasureResult` of the measure of that name. Every array is float64
    and read-only. A class without samples, or with activations that are not finite, is NaN and
    left out of means.

    Attributes:
        layers: path of each layer, in the order of the forward pass. A nested layer reads
            `block/dense`, the second call of a shared one `dense#2`.
        widths: number of units of each layer.
        is_output: whether each layer is an output of the model.
        classes: name of each class; `("all",)` for data without labels.
        count: `[classes]`, number of samples of each class.
        results: name of a measure -> `MeasureResult`; the array `per_class` alone will do.
        measures: the same names -> `Measure`; those not given are as their names say.
        metrics: the model's own loss and metrics, measured in the same pass when it is compiled.
        baseline: the profile of the same network freshly initialised, or None.
        epoch: the epoch (counted from 0, as in Keras) that a monitor measured, or None.
        settings: what it was measured on and with (versions, seed, ...), as plain JSON values.

    Raises:
        ValueError: shapes that do not fit, or a measure that is not known by its name.

    Example:

    >>> profile = EntropyProfile(
    ...     layers=("dense", "dense_1", "logits"), widths=(64, 64, 2),
    ...     is_output=(False, False, True), classes=("cat", "dog"), count=[10, 12],
    ...     results={"activation_entropy": [[0.9, 0.8], [0.9, 0.799], [0.1, 0.3]]})
    >>> profile.mean.round(4).tolist(), profile.gradient.round(4).tolist()
    ([0.85, 0.8495, 0.2], [nan, 0.0005, 0.6495])
    >>> profile.flat(tolerance=0.01), profile.trend(), profile.is_monotone()
    (('dense_1',), ('', 'flat', 'output'), True)
    """

    layers: tuple[str, ...]
    widths: tuple[int, ...]
    is_output: tuple[bool, ...]
    classes: tuple[str, ...]
    count: np.ndarray
    results: Mapping[str, Any]
    measures: Mapping[str, Measure] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    baseline: "EntropyProfile | None" = None
    epoch: int | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (len(self.layers), len(self.classes))
        for name in ("layers", "widths", "is_output", "classes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("widths", "is_output"):
            if len(getattr(self, name)) != shape[0]:
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} entries for {shape[0]} layers."
                )
        object.__setattr__(self, "count", frozen("count", self.count, shape[1:], np.int64))
        measures = {name: self.measures.get(name) or get_measure(name) for name in self.results}
        object.__setattr__(self, "measures", measures)
        results = {name: self._checked(name, found) for name, found in self.results.items()}
        object.__setattr__(self, "results", results)

    def _checked(self, name: str, result: Any) -> MeasureResult:
        measure, shape = self.measures[name], (len(self.layers), len(self.classes))
        if not isinstance(result, MeasureResult):
            result = MeasureResult(result)
        if result.per_class.shape != shape:
            raise ValueError(
                f"results[{name!r}] has shape {result.per_class.shape}; expected {shape}."
            )
        widths = dict(zip(self.layers, self.widths, strict=True))
        for layer, found in result.details.items():
            wanted = (shape[1], max(widths[layer], 2))
            if "pattern" in found and found["pattern"].shape != wanted:
                raise ValueError(
                    f"The pattern of {layer!r} has shape {found['pattern'].shape}; expected "
                    f"{wanted}."
                )
        normalizer = result.normalizer
        return dataclasses.replace(
            result,
            unit=result.unit or measure.unit,
            normalizer=measure.normalizer(self.widths) if normalizer is None else normalizer,
        )

    def __getitem__(self, name: str) -> MeasureResult:
        """The `MeasureResult` of the measure of that name."""
        if name not in self.results:
            raise ValueError(
                f"This profile holds no {name}, only {sorted(self.results)}: measure again with "
                f"{name!r} among measures."
            )
        return self.results[name]

    @property
    def entropy(self) -> np.ndarray:
        """Activation entropy `[layers, classes]`, normalised: 0..1 for the `"log"` normalization.

        Raises ValueError when the profile was made without this measure.
        """
        return self[_ENTROPY].per_class

    @property
    def entropy_unit(self) -> str:
        """The unit of `entropy`, in words."""
        return self[_ENTROPY].unit

    @property
    def entropy_nats(self) -> np.ndarray:
        """Activation entropy `[layers, classes]`, in nats."""
        return self.entropy * self[_ENTROPY].normalizer[:, None]

    @property
    def mean(self) -> np.ndarray:
        """Activation entropy `[layers]`: the mean over the classes that have samples."""
        return self[_ENTROPY].mean

    @property
    def patterns(self) -> dict[str, np.ndarray]:
        """Layer -> `[classes, units]`, the activation pattern of each class.

        Two states for a layer of one unit; empty unless the entropy was measured with
        `ActivationEntropy(keep_patterns=True)`.
        """
        details = self.results[_ENTROPY].details if _ENTROPY in self.results else {}
        shapes = [(len(self.classes), max(width, 2)) for width in self.widths] if details else []
        return {
            layer: details[layer]["pattern"] if layer in details else np.full(shape, np.nan)
            for layer, shape in zip(self.layers, shapes, strict=False)
        }

    @property
    def units(self) -> dict[str, UnitProfile]:
        """Layer -> `UnitProfile`, of the layers whose units `unit_information` looked at.

        With the feature entropy of each unit where `feature_entropy` was measured, too.
        """
        name = "unit_information"
        if name not in self.results:
            return {}
        other = self.results.get("feature_entropy")
        return {
            layer: UnitProfile(
                layer=layer,
                classes=self.classes,
                count=self.count,
                estimator=self.measures[name].options["estimator"],
                epoch=self.epoch,
                **{f"information_{k}" if k != "pairwise" else k: v for k, v in found.items()},
                **(other.details.get(layer, {}) if other else {}),
            )
            for layer, found in self.results[name].details.items()
        }

    @property
    def judged(self) -> np.ndarray:
        """Boolean `[layers]`: of which layers the activation entropy was measured.

        It was not of convolutions that come along for their feature entropy: what is said of depth
        is said of the other layers.
        """
        return np.isfinite(self[_ENTROPY].normalizer)

    @property
    def gradient(self) -> np.ndarray:
        """`[layers]`: g = mean of the layer before - mean of this one; NaN for the first layer.

        The layers before and after are those that are `judged`; the others have no gradient.
        """
        gradient, judged = np.full(len(self.layers), np.nan), np.flatnonzero(self.judged)
        mean = self.mean[judged]
        gradient[judged[1:]] = mean[:-1] - mean[1:]
        return gradient

    def trend(self, tolerance: float = FLAT_TOLERANCE) -> tuple[str, ...]:
        """What the entropy does over each layer: `"falls"`, `"flat"`, `"rises"` or `"output"`.

        It is flat where it falls by less than `tolerance`, and rises from the third digit on; `""`
        where there is no gradient.
        """

        def word(gradient: float, output: bool) -> str:
            if output or np.isnan(gradient):
                return "output" if output else ""
            if gradient < -NOISE:
                return "rises"
            return "flat" if gradient < tolerance else "falls"

        return tuple(map(word, self.gradient, self.is_output))

    def flat(self, tolerance: float = FLAT_TOLERANCE) -> tuple[str, ...]:
        """Paths of the layers over which the entropy falls by less than `tolerance` or rises.

        The first layer has no gradient and an output layer is never dropped: neither is named.
        """
        return tuple(
            layer
            for layer, gradient, output in zip(
                self.layers, self.gradient, self.is_output, strict=True
            )
            if gradient < tolerance and not output
        )

    def is_monotone(self, tolerance: float = 0.0) -> bool:
        """Whether the mean entropy never rises by more than `tolerance` from layer to layer."""
        return bool(np.all(self.gradient[self.judged][1:] >= -tolerance))

    def of_layers(self, layers: Collection[str]) -> "EntropyProfile":
        """The same profile of some of its layers, in the order of the profile.

        Raises ValueError for a layer that it does not have.
        """
        if unknown := [layer for layer in layers if layer not in self.layers]:
            raise ValueError(f"There are no layers {unknown}; the profile has {self.layers}.")
        rows = [row for row, layer in enumerate(self.layers) if layer in layers]
        some: dict[str, Any] = {
            name: [getattr(self, name)[row] for row in rows]
            for name in ("layers", "widths", "is_output")
        }
        return dataclasses.replace(
            self,
            **some,
            results={
                name: x.of_layers(rows, [self.layers[row] for row in rows])
                for name, x in self.results.items()
            },
            baseline=self.baseline and self.baseline.of_layers(layers),
        )

    def with_classes(self, classes: Sequence[str]) -> "EntropyProfile":
        """The same profile with other names for the classes."""
        baseline = self.baseline and self.baseline.with_classes(classes)
        return dataclasses.replace(self, classes=tuple(classes), baseline=baseline)

    def to_records(self) -> list[dict[str, Any]]:
        """One dict per layer and class: layer, units, output, class, count, every measure.

        What holds for the layer as a whole (`MeasureResult.columns`) stands in each of its rows.
        """
        whole = {k: v for name, x in self.results.items() for k, v in x.columns(name).items()}
        return [
            {
                "layer": layer,
                "units": self.widths[row],
                "output": self.is_output[row],
                "class": name,
                "count": int(self.count[column]),
                **{k: float(x.per_class[row, column]) for k, x in self.results.items()},
                **{k: float(v[row]) for k, v in whole.items()},
            }
            for row, layer in enumerate(self.layers)
            for column, name in enumerate(self.classes)
        ]

    def to_csv(self, path: AnyPath) -> None:
        """Writes `to_records()` as CSV, a header line first; NaN is an empty cell."""
        records = self.to_records()
        with replacing(path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(records[0]))
            writer.writeheader()
            for record in records:
                writer.writerow({k: "" if plain(v) is None else v for k, v in record.items()})

    def report(
        self,
        path: AnyPath,
        *,
        history: Iterable["EntropyProfile"] = (),
        pruning: Pruning | None = None,
        tolerance: float = FLAT_TOLERANCE,
        overwrite: bool = False,
    ) -> AnyPath:
        """Writes one self-contained HTML page: curve, heat map, layers, patterns, caveats.

        Args:
            path: the file.
            history, pruning, tolerance, overwrite: as for `report.write_report`.

        Returns:
            The path.

        Raises:
            FileExistsError: it exists and `overwrite` is not given.
        """
        return write_report(
            path, self, history=history, pruning=pruning, tolerance=tolerance, overwrite=overwrite
        )

    def to_model_explorer(
        self, directory: AnyPath, model: keras.Model, overwrite: bool = False
    ) -> list[pathlib.Path]:
        """Writes the graph of the model, with the numbers of its layers, for Model Explorer.

        Args, returns, errors: as for `report.model_explorer.write_model_explorer`.
        """
        return write_model_explorer(self, directory, model, overwrite)

    def _repr_html_(self) -> str:
        return profile_html(self)

    def save(self, path: AnyPath) -> None:
        """Writes the profile, its baseline included, as JSON (NaN as null)."""
        text = json.dumps(to_json(self), indent=1, allow_nan=False)
        with replacing(path) as temporary:
            temporary.write_text(text + "\n")

    @classmethod
    def load(cls, path: AnyPath) -> "EntropyProfile":
        """Reads what `save` wrote, in this version of the format or an earlier one.

        Raises ValueError for a file that is no profile or of a newer format.
        """
        try:
            data = json.loads(local_path(path).read_text())
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no profile: not JSON ({error}).") from error
        version = data.get("format_version") if isinstance(data, dict) else None
        if version is None:
            raise ValueError(f"{path} is JSON but no profile: it has no format_version.")
        if version not in range(1, FORMAT_VERSION + 1):
            raise ValueError(
                f"{path} has format version {version}; this library reads versions up to "
                f"{FORMAT_VERSION}: use the library version that wrote it, or measure again."
            )
        try:
            return from_json(cls, data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} is a damaged profile: {error!r}.") from error
