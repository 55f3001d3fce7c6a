"""UnitProfile: what every single unit of a layer tells, immutable."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_layer_entropy.measures.measure import frozen, mean_of_known
from keras_layer_entropy.measures.unit_information import (
    Redundancy,
    less_effective_units,
    redundant_units,
)
from keras_layer_entropy.report.notebook import units_html


@dataclasses.dataclass(frozen=True, eq=False)
class UnitProfile:
    """What the units (neurons, kernels, channels) of one layer tell, each by itself.

    Every array is float64 and read-only, but for `count`; what was not measured is NaN.

    Attributes:
        layer: path of the layer.
        classes: name of each class.
        count: int64 `[classes]`, number of samples of each class.
        information_labels: `[units]`, I(T_k; Y), about the class, bits.
        information_labels_shuffled: `[units]`, the same with the labels of other samples, bits:
            what the estimate shows where nothing is known.
        information_input: `[units]`, I(X; T_k), about which sample it was, bits. For the estimator
            `"quantile"` that of the mean of the unit's map, with noise of a tenth of its variance
            (`measures.unit_information.noisy_information`): at most 1.73.
        information_per_class: `[units, classes]`, I(T_k; 1[Y = c]), about one class against all
            others, bits; NaN for a class without samples. A sample of several classes counts as a
            part of each.
        pairwise: `[units, units]`, I(T_k; T_l) of the binned means of the units' maps, bits; on
            the diagonal their entropies. None where they were not compared, as in a layer
            of more than 1,024 units (`UnitInformation(pairwise=True)` compares those, too).
        feature_entropy: `[units, classes]`, topological feature entropy
            (`measures.feature_entropy`), nats; NaN for a class without samples, and for layers
            without maps.
        selective_rate: `[units, classes]`, share of the images in which the unit's map has a loop.
        estimator: `"quantile"` or `"kernel"`, as in `measures.UnitInformation`.
        epoch: the epoch, counted from 0 as in Keras, after which this was measured; -1 for before
            the first, None where it is not known.

    Raises:
        ValueError: arrays whose shapes do not fit one another.

    Source: Fang et al. 2018; Zhao & Zhang 2022.

    Example:

    >>> profile = UnitProfile(
    ...     layer="conv", classes=("a", "b"), count=[5, 5], information_labels=[0.9, 0.8, 0.01],
    ...     pairwise=[[3.0, 1.9, 0.1], [1.9, 2.0, 0.1], [0.1, 0.1, 2.0]],
    ...     feature_entropy=[[1.0, 1.4], [3.0, 3.2], [2.0, 2.0]])
    >>> profile.redundant().redundant.tolist(), profile.less_effective().tolist()
    ([False, True, False], [False, False, True])
    >>> profile.by_feature_entropy().tolist()  # the best first
    [0, 2, 1]
    """

    layer: str
    classes: tuple[str, ...]
    count: np.ndarray
    information_labels: Any
    information_labels_shuffled: Any = None
    information_input: Any = None
    information_per_class: Any = None
    pairwise: Any = None
    feature_entropy: Any = None
    selective_rate: Any = None
    estimator: str = "quantile"
    epoch: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        units, classes = np.size(self.information_labels), len(self.classes)
        names = ("information_labels", "information_labels_shuffled", "information_input")
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(names, (units,))
        names = ("information_per_class", "feature_entropy", "selective_rate")
        shapes |= dict.fromkeys(names, (units, classes))
        if self.pairwise is not None:
            shapes["pairwise"] = (units, units)
        for name, shape in shapes.items():
            value = getattr(self, name)
            value = np.full(shape, np.nan) if value is None else value
            object.__setattr__(self, name, frozen(name, value, shape))
        object.__setattr__(self, "count", frozen("count", self.count, (classes,), np.int64))

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self.information_labels)

    @property
    def mean_feature_entropy(self) -> np.ndarray:
        """Feature entropy `[units]`, nats: the mean over the classes that have samples."""
        return mean_of_known(self.feature_entropy)

    @property
    def mean_selective_rate(self) -> np.ndarray:
        """Selective rate `[units]`: the mean over the classes that have samples."""
        return mean_of_known(self.selective_rate)

    def _repr_html_(self) -> str:
        return units_html(self)

    def redundant(self, threshold: float = 0.6) -> Redundancy:
        """Which units only repeat a more informative one.

        Args, returns: `threshold` and result of `measures.unit_information.redundant_units`,
        where the information on the labels says which one of several stays.

        Raises:
            ValueError: units of this layer were not compared with one another.
        """
        if self.pairwise is None:
            raise ValueError(
                f"The {self.units} units of {self.layer!r} were not compared with one another: "
                "measure again with UnitInformation(pairwise=True)."
            )
        return redundant_units(self.pairwise, self.information_labels, threshold)

    def less_effective(
        self, earlier: Sequence["UnitProfile"] = (), threshold: float = 0.1, flatness: float = 0.1
    ) -> np.ndarray:
        """Which units tell little of the class and have never told anything else.

        Args:
            earlier: `UnitProfile`s of the same layer after earlier epochs.
            threshold, flatness: as in `measures.unit_information.less_effective_units`.

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
        epochs = [*(profile.information_labels for profile in earlier), self.information_labels]
        return less_effective_units(np.stack(epochs), threshold, flatness)

    def by_feature_entropy(self) -> np.ndarray:
        """The units, int `[units]`, from the lowest mean feature entropy (the best) to the highest.

        Of equal ones the earlier first; units for which it is not known come last.
        """
        return np.argsort(self.mean_feature_entropy, kind="stable")
