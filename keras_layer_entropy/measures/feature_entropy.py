"""Topological feature entropy: how much the births of loops differ from image to image.

Source: Zhao & Zhang, *Quantitative Performance Assessment of CNN Units via Topological Entropy
Calculation*, ICLR 2022, arXiv 2103.09716. What a birth is: `births`.

In this file `counts` holds, for each unit, how many images have which birth index:
`[..., max_rank + 1]`, the images without a birth first.
"""

import functools
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_layer_entropy.backend import Tensor, at_least_float32
from keras_layer_entropy.measures.births import MAX_DENSITY, MAX_RANK, birth_index
from keras_layer_entropy.measures.class_sums import CompensatedSum
from keras_layer_entropy.measures.entropy import shannon_entropy
from keras_layer_entropy.measures.measure import (
    LayerInfo,
    Measure,
    MeasureResult,
    Panel,
    Samples,
    Words,
    is_int,
    mean_of_known,
)

PENALTIES = ("unselective", "printed")
# Fewer than four vertices have no loop.
_SMALLEST_MAP = 4


def selective_rate(counts: Tensor) -> Tensor:
    """Share of images in which the unit has a birth.

    Args:
        counts: nonnegative tensor `[..., max_rank + 1]`.

    Returns:
        Tensor `[...]`, in 0..1, NaN where there are no images.

    Raises:
        ValueError: a last axis without birth indices.

    Source: Zhao & Zhang 2022.

    Example:

    >>> import numpy as np
    >>> float(selective_rate(np.array([1, 0, 2, 1])))  # four images, three births
    0.75
    """
    counts = _counts(counts)
    return ops.sum(counts[..., 1:], axis=-1) / ops.sum(counts, axis=-1)


def birth_entropy(counts: Tensor) -> Tensor:
    """Entropy of the birth index among the images that have one: -sum_k P_k ln P_k.

    Args, errors: as for `selective_rate`.

    Returns:
        Tensor `[...]`, nats, in 0..ln(max_rank), NaN where no image has a birth.

    Source: Zhao & Zhang 2022.

    Example:

    >>> import numpy as np
    >>> round(float(birth_entropy(np.array([7, 0, 2, 2]))), 4)  # ln 2
    0.6931
    """
    births = _counts(counts)[..., 1:]
    total = ops.sum(births, axis=-1, keepdims=True)
    nats = 0.0 + shannon_entropy(births / total)  # no "-0.0" for a birth that never changes
    return ops.where(total[..., 0] > 0, nats, math.nan)


def feature_entropy(counts: Tensor, min_rate: float = 0.1, penalty: str = "unselective") -> Tensor:
    """Topological feature entropy: `birth_entropy` H, or a penalty where births are rare.

    With eps the `selective_rate` and |Omega| the number of birth indices there can be, max_rank:

        H                        if eps >= min_rate
        (1 - eps) ln |Omega|     otherwise, penalty="unselective"
        eps ln |Omega|           otherwise, penalty="printed"

    A low entropy is to mean a good unit. The paper prints the last line, which gives its best
    value, 0, to a unit that never has a loop and so tells nothing; the default gives it the worst,
    ln |Omega|, the largest that H can be. |Omega| does not depend on m, so that units of different
    layers have one scale.

    Args:
        counts: as in `selective_rate`.
        min_rate: selective rate from which on H is trusted, above 0 and at most 1.
        penalty: `"unselective"` or `"printed"`.

    Returns:
        Tensor `[...]`, nats, in 0..ln(max_rank), NaN where there are no images.

    Raises:
        ValueError: `min_rate` out of range, unknown `penalty`, or as `selective_rate`.

    Source: Zhao & Zhang 2022.

    Example:

    >>> import numpy as np
    >>> counts = np.array([[10, 45, 45], [95, 5, 0]])  # births in 90 and in 5 of 100 images
    >>> [round(float(h), 4) for h in feature_entropy(counts)]  # ln 2, and 0.95 ln 2
    [0.6931, 0.6585]
    >>> [round(float(h), 4) for h in feature_entropy(counts, penalty="printed")]
    [0.6931, 0.0347]
    """
    if not 0 < min_rate <= 1:
        raise ValueError(
            f"min_rate={min_rate}; expected a share, above 0 and at most 1. For the entropy "
            "alone, call birth_entropy."
        )
    if penalty not in PENALTIES:
        raise ValueError(f"Unknown penalty {penalty!r}; expected one of {PENALTIES}.")
    rate = selective_rate(counts)
    share = 1.0 - rate if penalty == "unselective" else rate
    largest = math.log(_counts(counts).shape[-1] - 1)
    return ops.where(rate >= min_rate, birth_entropy(counts), share * largest)


@functools.cache
def noise_entropy(
    m: int, max_density: float = MAX_DENSITY, max_rank: int = MAX_RANK, images: int = 100
) -> float:
    """`feature_entropy` of a unit whose maps are noise: what a map of this size has by itself.

    Args:
        m: side of the maps.
        max_density, max_rank: as in `birth_index`.
        images: number of maps.

    Returns:
        Float, nats, always the same for the same arguments. (Other noise differs by about a tenth.)

    Source: Zhao & Zhang 2022, who compare units with it.

    Example:

    >>> 2.0 < noise_entropy(14) < noise_entropy(28) < 2.9
    True
    """
    maps = np.random.default_rng(0).normal(size=(images, m, m)).astype("float32")
    births = ops.convert_to_numpy(birth_index(maps, max_density, max_rank))
    return float(feature_entropy(np.bincount(births, minlength=max_rank + 1)))


class BirthCounts(CompensatedSum):
    """Images by class, unit and birth of a layer.

    Args:
        classes, units: of the data, and of the layer.
        max_density, max_rank: as in `births.birth_index`.

    Attributes:
        side: of the maps, square ones, as they are looked at; None before the first batch.
    """

    def __init__(
        self,
        classes: int,
        units: int,
        max_density: float = MAX_DENSITY,
        max_rank: int = MAX_RANK,
        name: str | None = None,
    ) -> None:
        self.limits: dict[str, Any] = {"max_density": max_density, "max_rank": max_rank}
        self.side: int | None = None
        # One more for maps that are not finite.
        super().__init__((classes, units, max_rank + 2), name)

    def update_state(self, values: Tensor, membership: Tensor, mask: Tensor | None = None) -> None:
        """Adds a batch: `[batch, height, width, units]` and `[batch, classes]`.

        Maps that are not square are resized to the longer side, bilinearly. Convolutions have no
        masks: `mask` is not looked at.
        """
        if len(membership.shape) != 2 or None in tuple(values.shape)[1:]:
            raise ValueError(
                f"feature_entropy compares whole maps of one size; there are maps of shape "
                f"{tuple(values.shape)} and labels or weights of shape "
                f"{tuple(membership.shape[:-1])}: pass num_classes=1 for labels per position, give "
                "images of one size, or leave that measure out."
            )
        self.side = max(values.shape[1:3])
        if values.shape[1] != values.shape[2]:
            size = (self.side, self.side)
            values = ops.image.resize(values, size, data_format="channels_last")
        births = birth_index(ops.moveaxis(values, -1, 1), **self.limits)
        last = self.limits["max_rank"] + 1
        places = ops.one_hot(ops.where(births < 0, last, births), last + 1, dtype="float32")
        self.add(ops.einsum("bk,bur->kur", membership, places))

    def counts(self) -> np.ndarray:
        """`counts` of each class and unit, float64 `[classes, units, max_rank + 1]`."""
        return self.total()[:, :, :-1]

    def not_finite(self) -> np.ndarray:
        """Boolean `[classes]`: where maps held NaN or infinities."""
        return self._not_finite().any(axis=1)

    def _not_finite(self) -> Any:
        return self.total()[:, :, -1] > 0

    def per_unit(self, formula: Callable[[Tensor], Tensor]) -> np.ndarray:
        """A formula of `counts`, `[units, classes]`, NaN where maps are not finite."""
        values = ops.convert_to_numpy(formula(self.counts()))
        return np.where(self._not_finite(), np.nan, values).T

    @property
    def too_small(self) -> bool:
        """Whether the maps cannot hold a loop."""
        return self.side is not None and self.side < _SMALLEST_MAP


class FeatureEntropy(Measure):
    """Feature entropy of convolution units (`feature_entropy`), averaged over them.

    Args:
        max_density, max_rank: as for `births.birth_index`.
        name: as for every `Measure`.

    Raises:
        ValueError: limits out of range.

    Example:

    >>> FeatureEntropy(max_rank=20)
    FeatureEntropy(max_rank=20)
    """

    key = "feature_entropy"
    title = "Feature entropy of convolution units"
    unit = "nats"
    meaning = (
        "How regularly the units of a convolution answer to a class: for each image the rank "
        "of brightness at which the first loop appears in a unit's map, and the entropy of "
        "this rank over the images of the class, averaged over units. Low when a unit answers "
        "to the images of the class with one structure. A unit that finds a loop in fewer than "
        "a tenth of the images counts as nearly as high as possible."
    )
    caveat = (
        "It depends on the size of the map: pooling alone changes it. Compare it with noise of "
        "the same size and with the untrained network. Layers without maps have none. Kernels of "
        "high entropy are not dispensable: chosen by it, they could be taken out no better than at "
        "random."
    )
    whole = {
        "selective_rate": Words(
            "Selective rate",
            "share",
            "Share of the images in which a unit's map has a loop, averaged over units and "
            "classes.",
        ),
        "noise": Words(
            "Feature entropy of noise",
            "nats",
            "Feature entropy of maps of the same size that are pure noise.",
        ),
    }
    reference = "noise"
    panels = (*Measure.panels, Panel("whole"))
    layers = (keras.layers.Conv2D,)
    needs = "maps [height, width, units]: choose convolutions with layers="

    def __init__(
        self, max_density: float = MAX_DENSITY, max_rank: int = MAX_RANK, *, name: str | None = None
    ) -> None:
        super().__init__(name, max_density=max_density, max_rank=max_rank)
        share = isinstance(max_density, numbers.Real) and 0 <= max_density <= 1
        self.check(
            max_density=("a share, in 0..1", share),
            max_rank=("a positive int", is_int(max_rank)),
        )

    def fits(self, layer: LayerInfo) -> bool:
        return len(layer.shapes["output"]) == 4

    def new_state(self, layer: LayerInfo, classes: int) -> BirthCounts:
        return BirthCounts(classes, layer.units, **self.options)

    def state_size(self, layer: LayerInfo, classes: int) -> int:
        return BirthCounts.size(classes, layer.units, self.options["max_rank"] + 2)

    def result(
        self, layers: Sequence[LayerInfo], states: Sequence[Any], samples: Samples | None
    ) -> MeasureResult:
        rows, details = [], {}
        whole: dict[str, list[float]] = {"selective_rate": [], "noise": []}
        for layer, state in zip(layers, states, strict=True):
            entropy, rate = state.per_unit(feature_entropy), state.per_unit(selective_rate)
            bad = state.not_finite() | state.too_small
            rows.append(np.where(bad, np.nan, entropy.mean(axis=0)))
            known = np.where(state.not_finite(), np.nan, rate.mean(axis=0))
            whole["selective_rate"].append(mean_of_known(known[None])[0])
            small = state.side is None or state.too_small
            whole["noise"].append(np.nan if small else noise_entropy(state.side, **state.limits))
            details[layer.path] = {"feature_entropy": entropy, "selective_rate": rate}
        return MeasureResult(rows, whole, unit=self.unit, details=details)


def _counts(counts: Tensor) -> Tensor:
    counts = at_least_float32(counts)
    if len(counts.shape) == 0 or not counts.shape[-1] or counts.shape[-1] < 2:
        raise ValueError(
            f"counts has shape {tuple(counts.shape)}; expected [..., max_rank + 1], the images "
            "without a birth first, then those with birth index 1, 2, ..."
        )
    return counts
