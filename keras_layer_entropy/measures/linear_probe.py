"""Linear probes: how much of the class a linear classifier reads from a layer, in closed form."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from keras_layer_entropy.backend import Tensor
from keras_layer_entropy.measures.class_sums import any_per_class
from keras_layer_entropy.measures.gram import (
    GramStatistic,
    generalized_cross_validation,
    ridge_regression,
)
from keras_layer_entropy.measures.kept_samples import one_hot, width
from keras_layer_entropy.measures.measure import (
    MOST_SAMPLES,
    LayerInfo,
    Measure,
    MeasureResult,
    Panel,
    Profile,
    Samples,
    Words,
    is_int,
    listed,
    unmasked,
)

# Ridges to choose from, relative to standardised features (so is `ridge_regression`).
RIDGES = 10.0 ** np.arange(-6.0, 2.5, 0.5)
_FEWEST = 4  # samples to score on
_ERROR = "How far it may be off because so few samples were left out."
_PAIRED = "Of the differences between two probes, sample by sample."


@dataclasses.dataclass(frozen=True)
class Probe:
    """A linear classifier: the class with the highest `x @ kernel + bias`.

    Attributes:
        kernel: float64 `[features, classes]`.
        bias: float64 `[classes]`.
        ridge: the ridge that was chosen.
    """

    kernel: np.ndarray
    bias: np.ndarray
    ridge: float

    def __call__(self, x: ArrayLike) -> np.ndarray:
        """The class of every sample, int `[samples]`."""
        return np.argmax(np.asarray(x, np.float64) @ self.kernel + self.bias, axis=1)


def fit_probe(gram: np.ndarray, features: int, ridges: np.ndarray = RIDGES) -> Probe:
    """The ridge regression of one-hot labels on standardised features, as a classifier.

    The ridge is the one of lowest `gram.generalized_cross_validation`. With n samples the
    classifier is that of scikit-learn's `RidgeClassifier(alpha=n * ridge)` behind a
    `StandardScaler`.

    Args:
        gram: Gram matrix of the columns `[x, 1, one-hot labels]` of samples of weight 1.
        features: number of columns of x.
        ridges: to choose from, relative to standardised features.

    Returns:
        `Probe`.

    Raises:
        ValueError: sums that are not finite, or no samples.

    Source: Alain & Bengio, *Understanding intermediate layers using linear classifier probes*,
    2016, arXiv 1610.01644.

    Example:

    >>> x = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> columns = np.hstack([x, np.ones((4, 1)), np.eye(2)[[0, 0, 1, 1]]])
    >>> fit_probe(columns.T @ columns, features=1)(x).tolist()
    [0, 0, 1, 1]
    """
    errors = generalized_cross_validation(gram, features, ridges)
    ridge = float(ridges[np.argmin(errors)])
    fit = ridge_regression(gram, features, ridge)
    return Probe(fit.kernel, fit.bias, ridge)


def projected(x: Tensor, features: int, seed: int = 0) -> Tensor:
    """Samples with at most so many features: `x` itself, or a seeded random projection of it.

    Every feature is added to one of the new ones, drawn at random, with a random sign. Inner
    products stay as they are on average.

    Args:
        x: tensor `[batch, ...]`, all but the samples of fixed size.
        features: most features.
        seed: other projections for another number.

    Returns:
        Tensor `[batch, min(width, features)]`, float32 at least where projected.

    Source: Weinberger et al., *Feature hashing for large scale multitask learning*, ICML 2009.

    Example:

    >>> [tuple(projected(np.ones((2, 3, 4)), most).shape) for most in (12, 5)]
    [(2, 12), (2, 5)]
    """
    wide = width(x)
    x = ops.reshape(x, (-1, wide))
    if wide <= features:
        return x
    random = np.random.default_rng(seed)
    places = random.integers(features, size=wide).astype("int32")
    signs = random.choice(np.array([-1.0, 1.0], "float32"), size=wide)
    rows = ops.transpose(ops.multiply(ops.cast(x, "float32"), signs))
    return ops.transpose(ops.segment_sum(rows, places, num_segments=features))


class _ClassProducts(GramStatistic):
    """The Gram matrix of a layer's features and the classes, and in which classes there is NaN."""

    def __init__(
        self, features: int, classes: int, prepare: Callable[[Mapping[str, Tensor]], Tensor]
    ) -> None:
        super().__init__(features, classes)
        self._prepare = prepare
        self._bad = self.add_variable((classes,), "zeros", "float32", name="bad")

    def update_state(self, values: Tensor, membership: Tensor, mask: Tensor | None = None) -> None:
        """Adds a batch, as for every state of a `Measure`."""
        x = self._prepare({"output": values, "mask": mask})
        finite = ops.all(ops.isfinite(x), axis=-1, keepdims=True)
        bad = any_per_class(ops.logical_not(finite), membership)[:, 0]
        self._bad.assign_add(ops.cast(bad, "float32"))
        weight = ops.sum(membership, axis=-1)
        share = membership / ops.where(weight > 0, weight, 1.0)[:, None]
        super().update_state(x, share, weight=weight)

    def not_finite(self) -> np.ndarray:
        """Boolean `[classes]`: where activations were NaN or infinite."""
        return ops.convert_to_numpy(self._bad) > 0


class LinearProbe(Measure):
    """How much of the class a linear classifier reads from the output of a layer.

    A ridge regression of one-hot labels on the layer's standardised outputs, in closed form from
    sums that stream past in the one pass. Some samples that the pass keeps at random are taken out
    of these sums again, and the probe is scored on them: `samples`, or half of all where that is
    less. (With `samples` of at least half of the data it is the plain split into halves.)

    `per_class` is the share of the samples of a class that the probe has right (recall), `mean`
    hence the balanced accuracy. `whole` holds

    * `accuracy`, with that of shuffled labels in `shuffled` (fitted to one half of the samples left
      out and scored on the other),
    * `gain`, the accuracy minus that of the layer before, NaN for the first,
    * `later_gain`, what the best of the later layers has more, NaN for the last,

    each with its standard error as `..._error`; those of gains are paired, of the same samples. A
    sample of several classes is right where the probe's class is one of them. `details` holds the
    `ridge` that was chosen, and of how many `features` the layer has so many were seen.

    Args:
        samples: how many samples are left out of the fit, at most.
        features: of a layer with more values for a sample, a random projection to so many is seen.
        seed: of that projection.
        name: as for every `Measure`.

    Raises:
        ValueError: `samples` no int of at least 4, `features` no positive int, `seed` no int.

    Source: Alain & Bengio 2016.

    Example:

    >>> import keras
    >>> from keras_layer_entropy import analyze_model
    >>> model = keras.Sequential([keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])
    >>> x, y = np.random.default_rng(0).normal(size=(300, 4)), np.arange(300) % 3
    >>> x[:, 0] += y
    >>> found = analyze_model(model, (x, y), measures="linear_probe", verbose=0)["linear_probe"]
    >>> list(found.whole)[:3], bool(found.whole["accuracy"][0] > found.shuffled["accuracy"][0])
    (['accuracy', 'accuracy_error', 'gain'], True)
    """

    key = "linear_probe"
    title = "Recall of a linear probe"
    unit = "share of the class"
    largest = 1.0
    meaning = (
        "The share of the samples of a class that a linear classifier on the layer's outputs has "
        "right, samples that it was not fitted to: what can be read from the layer without any "
        "further hidden layer. 1 when all are right."
    )
    caveat = (
        "It says what can be read, not what the network uses. The classifier is a ridge regression "
        "onto one-hot labels, which may have fewer right than the network's own output; outputs of "
        "more values than the option features says are seen through a random projection. From few "
        "samples of many neurons it is too low."
    )
    whole = {
        "accuracy": Words(
            "Accuracy of a linear probe",
            "share of samples",
            "The share of all samples left out that the probe has right. Shuffled is the same for "
            "shuffled labels: what chance gives.",
        ),
        "accuracy_error": Words("Standard error of the accuracy", "share of samples", _ERROR),
        "gain": Words(
            "Gain over the layer before",
            "share of samples",
            "The accuracy of the probe minus that of the one of the layer before. Below two "
            "standard errors it says nothing.",
        ),
        "gain_error": Words("Standard error of the gain", "share of samples", _PAIRED),
        "later_gain": Words(
            "Gain of the best later layer",
            "share of samples",
            "What the best probe of a later layer has more. Below two standard errors no later "
            "layer is known to make the class easier to read.",
        ),
        "later_gain_error": Words("Standard error of that gain", "share of samples", _PAIRED),
    }
    panels = (
        Panel("beside_entropy", {"name": "accuracy"}),
        Panel("heatmap"),
    )
    needs_classes = True

    def __init__(
        self,
        samples: int = MOST_SAMPLES,
        features: int = 1024,
        seed: int = 0,
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(name, samples=samples, features=features, seed=seed)
        self.check(
            samples=(f"an int of at least {_FEWEST}", is_int(samples, _FEWEST)),
            features=("a positive int", is_int(features)),
            seed=("an int that is not negative", is_int(seed, 0)),
        )
        self.samples = samples

    def new_state(self, layer: LayerInfo, classes: int) -> _ClassProducts:
        features: Any = self.row_width(layer)  # a pass refuses layers of which it is not known
        return _ClassProducts(features, classes, self.row)

    def state_size(self, layer: LayerInfo, classes: int) -> int:
        features: Any = self.row_width(layer)
        return 8 * (features + 1 + classes) ** 2

    def row(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return projected(unmasked(tensors), self.options["features"], self.options["seed"])

    def row_width(self, layer: LayerInfo) -> int | None:
        wide = super().row_width(layer)
        return None if wide is None else min(wide, self.options["features"])

    def result(
        self, layers: Sequence[LayerInfo], states: Sequence[Any], samples: Samples
    ) -> MeasureResult:
        membership, found, details = np.asarray(samples.membership, np.float64), [], {}
        for layer, state, rows in zip(layers, states, samples.layers, strict=True):
            scored = None
            if not state.not_finite().any():
                scored = _scored(state.result(), rows, membership)
            found.append(scored)
            if scored is not None:
                seen = [state.features, super().row_width(layer)]
                details[layer.path] = {"ridge": [scored.ridge], "features": seen}
        known = [x for x in found if x is not None]
        held = known[0].held if known else 0
        return _as_result(found, membership[:held], self.unit, details)

    def verdict(self, profile: Profile, tolerance: float) -> str | None:
        found = profile[self.name]
        accuracy = found.whole["accuracy"]
        known = np.flatnonzero(np.isfinite(accuracy))
        if len(known) < 2:
            return None
        above = accuracy - found.shuffled["accuracy"] > 2 * found.whole["accuracy_error"]
        if not above[known].any():
            return "A linear probe reads no more of the class from any layer than chance gives."
        later = _exceeds(found.whole, "later_gain")
        settled = next(row for row in known if not later[known[known >= row]].any())
        rest = "and from no later layer more, as far as these samples tell"
        if settled == known[-1]:
            rest = f"the last layer, and {accuracy[known[0]]:.1%} from {profile.layers[known[0]]}"
        words = (
            f"A linear probe reads {accuracy[settled]:.1%} of held-out samples right from "
            f"{profile.layers[settled]}, {rest}."
        )
        sentences = [words, *_disagreements(profile, found, settled, tolerance)]
        return " ".join([*sentences, *_projections(found)])


@dataclasses.dataclass(frozen=True)
class _Scored:
    """Which of the first `held` samples a layer's probe has right, bool, and by chance."""

    right: np.ndarray
    by_chance: np.ndarray
    held: int
    ridge: float


def _scored(gram: np.ndarray, rows: np.ndarray, membership: np.ndarray) -> _Scored | None:
    """The `_Scored` of a layer from the sums of all samples and some of its rows, or None."""
    features = rows.shape[1]
    # Weights of 1 on average, whatever their scale: then the sum of them is the number of samples.
    each: float = membership.sum(axis=1).mean() if len(membership) else 0.0
    count = round(float(gram[features, features]) / each) if each > 0 else 0
    held = min(len(rows), count // 2)
    if held < _FEWEST:
        return None
    weight = membership / each
    columns = _columns(rows[:held], weight[:held])
    probe = fit_probe(gram / each - columns.T @ columns, features)
    half = held // 2
    # Kept samples come in random order: the label of a neighbour is that of any sample.
    others = np.roll(weight[:held], 1, axis=0)
    columns = _columns(rows[:half], others[:half])
    chance = fit_probe(columns.T @ columns, features)
    right = _right(probe(rows[:held]), weight[:held])
    return _Scored(right, _right(chance(rows[half:held]), others[half:]), held, probe.ridge)


def _columns(rows: np.ndarray, weight: np.ndarray) -> np.ndarray:
    columns = np.hstack([np.asarray(rows, np.float64), np.ones((len(rows), 1)), one_hot(weight)])
    return columns * np.sqrt(weight.sum(axis=1, keepdims=True))


def _right(predicted: np.ndarray, membership: np.ndarray) -> np.ndarray:
    return membership[np.arange(len(predicted)), predicted] > 0


def _as_result(
    found: Sequence[Any], membership: np.ndarray, unit: str, details: Mapping[str, Any]
) -> MeasureResult:
    """The `MeasureResult` of the `_Scored` of every layer (None: not known)."""
    layers, classes = len(found), membership.shape[1]
    weight = membership.sum(axis=1)
    per_class = np.full((layers, classes), np.nan)
    names = ("accuracy", "accuracy_error", "gain", "gain_error", "later_gain", "later_gain_error")
    whole, shuffled = {name: np.full(layers, np.nan) for name in names}, np.full(layers, np.nan)
    of_class = membership.sum(axis=0)
    known = [row for row, scored in enumerate(found) if scored is not None]
    for place, row in enumerate(known):
        right = found[row].right.astype(np.float64)
        per_class[row] = np.divide(
            right @ membership, of_class, out=np.full(classes, np.nan), where=of_class > 0
        )
        whole["accuracy"][row], whole["accuracy_error"][row] = _mean(right, weight)
        chance = found[row].by_chance.astype(np.float64)
        shuffled[row], _ = _mean(chance, weight[-len(chance) :])
        if place:
            before = found[known[place - 1]].right
            whole["gain"][row], whole["gain_error"][row] = _mean(right - before, weight)
        gains = [_mean(found[other].right - right, weight) for other in known[place + 1 :]]
        if gains:
            whole["later_gain"][row], whole["later_gain_error"][row] = max(gains)
    return MeasureResult(per_class, whole, {"accuracy": shuffled}, unit, details=details)


def _mean(values: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """The weighted mean and its standard error."""
    weight = weight / weight.sum()
    mean = float(weight @ values)
    return mean, float(np.sqrt(np.sum((weight * (values - mean)) ** 2)))


def _exceeds(whole: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """For which layers a number is above two of its standard errors, bool `[layers]`."""
    return np.nan_to_num(whole[name]) > 2 * np.nan_to_num(whole[f"{name}_error"])


def _disagreements(
    profile: Profile, found: MeasureResult, settled: int | np.integer, tolerance: float
) -> Iterator[str]:
    """Sentences on where the probe and the entropy speak against each other."""
    if "activation_entropy" not in profile.results:
        return
    trend = profile.trend(tolerance)
    gains = _exceeds(found.whole, "gain")
    needed = [
        f"{layer} ({found.whole['gain'][row]:+.1%})"
        for row, layer in enumerate(profile.layers)
        if gains[row] and trend[row] in ("flat", "rises")
    ]
    if needed:
        yield (
            f"Entropy does not fall over {listed(needed)}, but the share that a probe has right "
            "rises there: look twice before taking that out."
        )
    idle = [
        layer
        for row, layer in enumerate(profile.layers)
        if row > settled and trend[row] == "falls" and not gains[row]
    ]
    if idle:
        yield f"Entropy still falls over {listed(idle)}, where a probe gains nothing."


def _projections(found: MeasureResult) -> Iterator[str]:
    """A sentence on the layers of which a probe saw a projection."""
    sizes = {layer: x["features"].astype(int) for layer, x in found.details.items()}
    wide = [f"{layer} ({of:,d} values)" for layer, (seen, of) in sizes.items() if seen < of]
    if wide:
        seen = next(seen for seen, of in sizes.values() if seen < of)
        yield f"Of {listed(wide)} probes saw a random projection to {seen:,d}."
