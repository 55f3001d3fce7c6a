"""What a measure is: words, options, the state that streams past, and a result."""

import dataclasses
import inspect
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import keras
import numpy as np
from numpy.typing import ArrayLike

from keras_layer_entropy.backend import Tensor
from keras_layer_entropy.measures.pairs import shared_products

# How many samples are kept for measures that compare them with one another.
MOST_SAMPLES = 2000
# An `EntropyProfile`, which stands on a higher floor.
Profile = Any


@dataclasses.dataclass(frozen=True)
class Words:
    """A number of a layer as a whole, in words: its title, unit, meaning and caveat."""

    title: str
    unit: str
    meaning: str
    caveat: str = ""


@dataclasses.dataclass(frozen=True)
class Panel:
    """A figure of a measure, in words.

    Attributes:
        kind: what is drawn, a name in `plots.PANELS`.
        options: keyword arguments for it.
    """

    kind: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class LayerInfo:
    """What measures may ask of a layer before anything is measured.

    Attributes:
        path: the layer's path in the model.
        units: its number of units.
        shapes: name of a tensor (`"output"`, `"pattern"`, `"pre_activation"`) -> its shape, the
            samples first, the units last, None where a size is not known.
        function: name of its activation function, None where there is none.
    """

    path: str
    units: int
    shapes: Mapping[str, tuple]
    function: str | None = None


@dataclasses.dataclass(frozen=True)
class Samples:
    """What a pass kept of single samples, the same rows everywhere.

    Attributes:
        inputs: `[samples, features]`, what the model was given; no columns where no measure asks.
        layers: sequence of `[samples, features]`, what each layer gave: of a pass they are large,
            and each is made when it is asked for.
        membership: `[samples, classes]`, weight of each sample in each class.
        products: number and rows of a layer -> its `pairs.centred_products`, made once for all
            measures.
    """

    inputs: np.ndarray
    layers: Sequence[np.ndarray]
    membership: np.ndarray
    products: Any = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.products is None:
            object.__setattr__(self, "products", shared_products())


@dataclasses.dataclass(frozen=True, eq=False)
class MeasureResult:
    """What a measure found in the layers of a model.

    Every array is float64 and read-only, NaN where nothing is known.

    Attributes:
        per_class: `[layers, classes]`.
        whole: name -> `[layers]`, numbers of a layer as a whole: `whole["input"]` of LogDet is
            what the layer tells of the input.
        shuffled: the same of samples that are paired at random: what an estimate shows where
            nothing is known.
        unit: of `per_class`, in words.
        normalizer: `[layers]`, what `per_class` in nats was divided by, or None.
        details: path of a layer -> name -> array, what else is known of it.

    Example:

    >>> result = MeasureResult([[0.2, 0.4], [np.nan, 0.3]], unit="bits")
    >>> result.mean.round(3).tolist()
    [0.3, 0.3]
    """

    per_class: Any
    whole: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shuffled: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unit: str = ""
    normalizer: Any = None
    details: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        per_class = frozen("per_class", self.per_class)
        layers = per_class.shape[:1]
        if per_class.ndim != 2:
            raise ValueError(f"per_class has shape {per_class.shape}; expected [layers, classes].")
        object.__setattr__(self, "per_class", per_class)
        for field in ("whole", "shuffled"):
            values = {k: frozen(k, v, layers) for k, v in getattr(self, field).items()}
            object.__setattr__(self, field, values)
        if self.normalizer is not None:
            object.__setattr__(self, "normalizer", frozen("normalizer", self.normalizer, layers))
        details = {
            path: {name: frozen(name, value) for name, value in found.items()}
            for path, found in self.details.items()
        }
        object.__setattr__(self, "details", details)

    @property
    def mean(self) -> np.ndarray:
        """`[layers]`: the mean over the classes that are known."""
        return mean_of_known(self.per_class)

    def columns(self, name: str) -> dict[str, np.ndarray]:
        """Key -> `[layers]` of `whole` and `shuffled`, as CSV, logs and TensorBoard name them.

        Args:
            name: of the measure.

        Example:

        >>> list(MeasureResult([[0.1]], {"input": [2.0]}, {"input": [0.5]}).columns("logdet"))
        ['logdet_input', 'logdet_input_shuffled']
        """
        found = {}
        for key, values in self.whole.items():
            found[f"{name}_{key}"] = values
            if key in self.shuffled:
                found[f"{name}_{key}_shuffled"] = self.shuffled[key]
        return found

    def of_layers(
        self, rows: Sequence[int], paths: Iterable[str], count: int | None = None
    ) -> "MeasureResult":
        """The result of some layers, or where `count` is given one of so many, NaN for the others.

        Args:
            rows: which rows are wanted; with `count`, in which rows these layers stand.
            paths: of these layers.
            count: number of layers in all.
        """

        def move(array: np.ndarray) -> np.ndarray:
            if count is None:
                return array[rows]
            wide = np.full((count, *array.shape[1:]), np.nan)
            wide[rows] = array
            return wide

        return dataclasses.replace(
            self,
            per_class=move(self.per_class),
            whole={k: move(v) for k, v in self.whole.items()},
            shuffled={k: move(v) for k, v in self.shuffled.items()},
            normalizer=None if self.normalizer is None else move(self.normalizer),
            details={path: self.details[path] for path in paths if path in self.details},
        )


class Measure:
    """Base class of measures; a new one says what follows in a file of its own.

    Class attributes:
        key: what it is called as a string, `measures=["logdet"]`.
        title, meaning, caveat: its name as a heading, how to read it, how far to trust it.
        unit: the unit of `MeasureResult.per_class`.
        largest: the largest value that it can have; None where there is none.
        whole: name -> `Words` of each number of a layer as a whole.
        reference: the one of `whole` that stands beside the curve of the means, if any.
        panels: its figures, as `Panel`s.
        layers: the kinds of layers that it is of, where nobody chose some.
        needs: what has to be chosen, in words, where it `fits` none of the layers.
        reads: which tensor its state is given, a key of `LayerInfo.shapes`.
        samples: how many single samples a pass is to keep for it; 0 for none.
        reads_inputs: whether of these the model's input is to be kept, too.
        needs_classes: whether it says nothing of samples without labels.

    Args:
        name: what the measurement is called in a profile, in columns and keys; None for `key`.
        **options: what was chosen for it, as given to the subclass.
    """

    key = ""
    title = ""
    meaning = ""
    caveat = ""
    unit = ""
    largest: float | None = None
    whole: Mapping[str, Words] = {}
    reference: str | None = None
    panels: tuple[Panel, ...] = (Panel("curve"), Panel("heatmap"))
    layers: tuple[type, ...] = (keras.layers.Dense,)
    needs = "other layers"
    reads = "output"
    samples = 0
    reads_inputs = False
    needs_classes = False

    def __init__(self, name: str | None = None, **options: Any) -> None:
        if name is not None and (not isinstance(name, str) or not name):
            raise ValueError(f"name={name!r} of {self.key}; expected a word, or None.")
        self.name = name or self.key
        self.options = options

    def __repr__(self) -> str:
        words = {**self.chosen, **({} if self.name == self.key else {"name": self.name})}
        options = ", ".join(f"{option}={value!r}" for option, value in words.items())
        return f"{type(self).__name__}({options})"

    @property
    def chosen(self) -> dict[str, Any]:
        """The options that are not as usual, name -> value."""
        usual = inspect.signature(type(self)).parameters
        options = [k for k in usual if k in self.options]
        return {k: self.options[k] for k in options if self.options[k] != usual[k].default}

    @property
    def log_name(self) -> str:
        """What it is called in the logs of `fit`, after the name of the layer."""
        return self.name

    def fits(self, layer: LayerInfo) -> bool:
        """Whether there is such a number of a layer, a `LayerInfo`."""
        return True

    def new_state(self, layer: LayerInfo, classes: int) -> keras.metrics.Metric | None:
        """A `keras.metrics.Metric` for what streams past in a layer, or None.

        Its `update_state(values, membership, mask)` is given what the measure has `seen`, the
        weight of each sample in each class, and a mask or None; `not_finite()` says for which
        classes, bool `[classes]`, there was NaN or infinity. A state whose attribute `takes_ids` is
        True is given `class_sums.ClassIds` where there are many classes, not weights in each.
        """
        return None

    def state_size(self, layer: LayerInfo, classes: int) -> int:
        """Bytes that such a state takes."""
        return 0

    def seen(self, tensors: Mapping[str, Tensor]) -> Any:
        """What its state is given of a layer's tensors by name."""
        return tensors[self.reads]

    def row(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """What is kept of each sample, `[batch, ...]`, of a layer's tensors by name."""
        return unmasked(tensors)

    def row_width(self, layer: LayerInfo) -> int | None:
        """How many numbers that are, None where it is not known."""
        shape = layer.shapes["output"][1:]
        return None if None in shape else math.prod(shape)

    def result(
        self, layers: Sequence[LayerInfo], states: Sequence[Any], samples: Samples | None
    ) -> MeasureResult:
        """The `MeasureResult` of the layers that it fits.

        Args:
            layers: list of `LayerInfo`.
            states: the state of each.
            samples: `Samples`, or None where it asks for none.
        """
        raise NotImplementedError

    def normalizer(self, widths: Sequence[int]) -> list[float] | None:
        """What values in nats are divided by, one number for each layer, or None.

        Args:
            widths: number of units of each layer.
        """
        return None

    def verdict(self, profile: Profile, tolerance: float) -> str | None:
        """A sentence on what it says of a model, or None.

        Args:
            profile: `EntropyProfile` with this measure.
            tolerance: below this gradient of the entropy a layer is flat.
        """
        return None

    @classmethod
    def from_saved(
        cls, name: str, options: Mapping[str, Any], result: MeasureResult, widths: Sequence[int]
    ) -> Self:
        """The measure as a profile that was saved knows it.

        Args:
            name, options: as it was made.
            result: `MeasureResult`.
            widths: number of units of each layer.
        """
        return cls(name=name, **options)

    def words(self, name: str) -> Words:
        """The `Words` of a number of a layer as a whole."""
        return self.whole.get(name) or Words(name.replace("_", " "), "", "")

    def check(self, **expected: tuple[str, bool]) -> None:
        """Raises ValueError for an option that is not what was expected.

        Args:
            **expected: option -> (what it may be in words, whether it is that).
        """
        for option, (words, good) in expected.items():
            if not good:
                value = self.options[option]
                raise ValueError(f"{option}={value!r} of {self.key}; expected {words}.")


def unmasked(tensors: Mapping[str, Tensor]) -> Tensor:
    """A layer's output, 0 where it is masked."""
    output, mask = tensors["output"], tensors.get("mask")
    if mask is None:
        return output
    missing = len(output.shape) - len(mask.shape)
    mask = keras.ops.reshape(mask, (*keras.ops.shape(mask), *[1] * missing))
    return keras.ops.where(mask, output, keras.ops.zeros_like(output))


def mean_of_known(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of `[rows, columns]`; NaN is left out, and stands where all are."""
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(axis=1)
    return np.divide(
        total, known.sum(axis=1), out=np.full(len(values), np.nan), where=known.any(axis=1)
    )


def frozen(
    name: str, value: ArrayLike, shape: tuple[int, ...] | None = None, dtype: type = np.float64
) -> np.ndarray:
    """A copy of an array that nobody can write to; ValueError where it has another shape."""
    array: np.ndarray = np.array(value, dtype)
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; expected {shape}.")
    array.flags.writeable = False
    return array


def is_int(value: Any, least: int = 1) -> bool:
    """Whether an option is an int, of at least so much."""
    return (
        isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= least
    )


def is_positive(value: float | None) -> bool:
    """Whether an option is a positive number."""
    return isinstance(value, numbers.Real) and 0 < value < float("inf")


def listed(names: Sequence[str], most: int = 6) -> str:
    """Names as text: `a, b and c`; of many the first ones."""
    rest = [f"{len(names) - most} more"] if len(names) > most else []
    names = [*names[:most], *rest]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
