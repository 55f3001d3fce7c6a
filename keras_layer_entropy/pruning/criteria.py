"""Which part goes first: each criterion says of every part what it costs to lose it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_layer_entropy.analysis.profile import EntropyProfile
from keras_layer_entropy.analysis.unit_profile import UnitProfile
from keras_layer_entropy.backend import Data
from keras_layer_entropy.measures.entropy import FLAT_TOLERANCE
from keras_layer_entropy.measures.gram import LinearFit
from keras_layer_entropy.pruning.effects import Outputs, distance
from keras_layer_entropy.pruning.evaluation import evaluate
from keras_layer_entropy.pruning.layer_parts import LayerPart
from keras_layer_entropy.pruning.parts import Part, Prediction
from keras_layer_entropy.pruning.refit import WIDEST, as_inputs, linear_fits
from keras_layer_entropy.pruning.surgery import take_out
from keras_layer_entropy.pruning.walking import inputs_of
from keras_layer_entropy.recording.graph import flat_graph
from keras_layer_entropy.recording.passes import Source


@dataclasses.dataclass(frozen=True)
class Situation:
    """What criteria look at.

    Attributes:
        student: the model as it is now.
        teacher: the model that was trained last.
        profile: `EntropyProfile` of the student, with activation_entropy and state_entropy.
        train_data, validation_data: data.
        batch_size: batch size for arrays.
        tolerance: below this gradient a layer is flat.
        seed: seed of `random`, and of kernels that have to be made anew.
        refit: whether a removal is followed by a regression.
        train_steps, validation_steps: number of batches of these data, None for all.
    """

    student: keras.Model
    teacher: keras.Model
    profile: EntropyProfile
    train_data: Data
    validation_data: Data
    batch_size: int = 256
    tolerance: float = FLAT_TOLERANCE
    seed: int = 0
    refit: bool = True
    train_steps: int | None = None
    validation_steps: int | None = None

    def without(self, part: Part) -> tuple[keras.Model, dict[str, float]]:
        """`(model, residuals)`, the student without a part, the same whoever asks."""
        keras.utils.set_random_seed(self.seed)
        return take_out(
            self.student,
            self.teacher,
            [part.path],
            self.train_data if self.refit else None,
            self.batch_size,
            steps=self.train_steps,
        )


def rank(
    criterion: str, situation: Situation, parts: Sequence[LayerPart]
) -> dict[LayerPart, Prediction]:
    """What a criterion says of the parts that it would take out.

    Args:
        criterion: a name in `CRITERIA`.
        situation: `Situation`.
        parts: list of `Part`, what may go.

    Returns:
        `Part` -> `Prediction`, the first to go first.

    Raises:
        ValueError: no such criterion.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"criterion={criterion!r}; expected one of {tuple(CRITERIA)}.")
    return _sorted(CRITERIA[criterion](situation, parts)) if parts else {}


def _sorted(predictions: Mapping[Any, Prediction]) -> dict[Any, Prediction]:
    return dict(sorted(predictions.items(), key=lambda item: item[1].loss))


def entropy_gradient(
    situation: Situation, parts: Sequence[LayerPart]
) -> dict[LayerPart, Prediction]:
    """The paper's: where entropy falls by less than the tolerance, flattest or rising first."""
    profile, found = situation.profile, {}
    gradients = dict(zip(profile.layers, profile.gradient, strict=True))
    trend = dict(zip(profile.layers, profile.trend(situation.tolerance), strict=True))
    for part in parts:
        gradient = float(gradients[part.path])
        if gradient < situation.tolerance:  # the first layer has none, NaN
            how = "rises" if trend[part.path] == "rises" else "is flat"
            words = f"entropy {how} (gradient {gradient:+.3f}, tolerance {situation.tolerance:g})"
            found[part] = Prediction(gradient, words)
    return found


def state_entropy(situation: Situation, parts: Sequence[LayerPart]) -> dict[LayerPart, Prediction]:
    """Lowest entropy of the on/off states of neurons, bits."""
    means = situation.profile["state_entropy"].mean
    bits = dict(zip(situation.profile.layers, map(float, means), strict=True))
    return {
        part: Prediction(bits[part.path], f"on/off state entropy of {bits[part.path]:.3f} bits")
        for part in parts
    }


def linearity(situation: Situation, parts: Sequence[LayerPart]) -> dict[LayerPart, Prediction]:
    """Smallest relative residual of the regression that a removal would need.

    How well what the next layers compute is already a linear function of what the layer is given:
    0 is a perfect fit. One pass over the training data ranks all layers.
    """
    fits = _direct_fits(situation, parts)
    models = (situation.student, situation.teacher)
    data, steps = (situation.train_data, situation.batch_size), situation.train_steps
    found = {}
    for part in parts:
        residuals = [fit.residual for (x, _), fit in fits.items() if x == part.path]
        # What others are given is known once the part is out.
        if not part.direct and not part.fixed:
            _, removed = take_out(*models, [part.path], *data, steps=steps)
            residuals = list(removed.values())
        loss = float(np.mean(residuals)) if residuals else 1.0
        words = f"the next layers are linear in its input but for {loss:.2%}"
        found[part] = Prediction(loss, words if residuals else "nothing tells how linear")
    return found


def _direct_fits(
    situation: Situation, parts: Sequence[LayerPart]
) -> dict[tuple[str, str], LinearFit]:
    """(path of a part, path of a layer behind) -> what makes up for the part there, in one pass."""
    pairs = [
        (part.path, consumer)
        for part in parts
        for consumer in part.consumers
        if part.direct and part.input_shape[-1] <= WIDEST
    ]
    if not pairs:
        return {}
    return linear_fits(
        situation.student,
        situation.teacher,
        pairs,
        situation.train_data,
        situation.batch_size,
        steps=situation.train_steps,
    )


def output_change(situation: Situation, parts: Sequence[LayerPart]) -> dict[LayerPart, Prediction]:
    """Smallest change of the outputs once the next layers are refitted to what it is given.

    As `choose_blocks` measures it of blocks: relative to the spread of the outputs over some
    samples. The regressions of all layers take one pass over the training data.
    """
    fits = _direct_fits(situation, parts)
    source = Source(as_inputs(situation.student, situation.train_data), situation.batch_size, 1)
    inputs = inputs_of(situation.student, source)
    graph = flat_graph(situation.student)
    given = {graph.calls_of(part.path)[0].inputs[0] for part in parts}
    made = {call.outputs[0] for _, path in fits for call in graph.calls_of(path)}
    outputs, found = Outputs(situation.student, inputs, given | made), {}
    for part in parts:
        own = {consumer: fit for (path, consumer), fit in fits.items() if path == part.path}
        if own:
            loss = outputs.change(_refitted(outputs, part, own))
        else:  # what others are given is known once the part is out
            loss = distance(situation.without(part)[0], situation.student, inputs)
        words = f"outputs change by {loss:.1%} once the next layers are refitted"
        found[part] = Prediction(loss, words, loss)
    return found


def _refitted(outputs: Outputs, part: LayerPart, fits: Mapping[str, Any]) -> dict[int, Any]:
    """Number of what each consumer gives -> that, fitted to what a part is given."""
    found = {}
    given = outputs.value(outputs.graph.calls_of(part.path)[0].inputs[0])
    for path, fit in fits.items():
        (call,) = outputs.graph.calls_of(path)
        before = given.astype(np.float64) @ fit.kernel + fit.bias
        was = outputs.value(call.outputs[0])
        shaped = ops.convert_to_tensor(before.reshape(was.shape), was.dtype)
        found[call.outputs[0]] = ops.convert_to_numpy(call.operation.activation(shaped))
    return found


def loss_gap(situation: Situation, parts: Sequence[LayerPart]) -> dict[LayerPart, Prediction]:
    """Smallest rise of the validation loss after removing and refitting each: the oracle."""
    validation = (situation.validation_data, situation.batch_size, situation.validation_steps)
    found: dict[LayerPart, Prediction] = {}
    first: Any = None
    now = evaluate(situation.student, *validation).loss
    for part in parts:
        smaller, residuals = situation.without(part)
        gap = evaluate(smaller, *validation).loss - now
        found[part] = Prediction(gap, f"validation loss {gap:+.4f} without it")
        if first is None or gap < found[first].loss:
            first, cut = part, (smaller, residuals)
    return {**found, first: dataclasses.replace(found[first], cut=cut)}


def random(situation: Situation, parts: Sequence[LayerPart]) -> dict[LayerPart, Prediction]:
    """Any of them."""
    order = np.random.default_rng(situation.seed).permutation(len(parts))
    return {
        part: Prediction(float(place), "at random")
        for part, place in zip(parts, order, strict=True)
    }


def last(situation: Situation, parts: Sequence[LayerPart]) -> dict[LayerPart, Prediction]:
    """The deepest first."""
    return {part: Prediction(-float(i), "the deepest") for i, part in enumerate(parts)}


CRITERIA = {
    "entropy_gradient": entropy_gradient,
    "state_entropy": state_entropy,
    "linearity": linearity,
    "output_change": output_change,
    "loss_gap": loss_gap,
    "random": random,
    "last": last,
}


def rank_units(criterion: str, profile: UnitProfile) -> dict[Part, Prediction]:
    """The units of a convolution in the order in which a criterion would do without them.

    It is a ranking and no more; `remove_units` chooses by what the layers behind miss.

    Args:
        criterion: a name in `RANKINGS`.
        profile: `UnitProfile` of the layer.

    Returns:
        `Part` -> `Prediction`, the first to go first; unit 3 of the layer `conv` is called
        `conv[3]`. Units of which nothing is known are left out.

    Raises:
        ValueError: no such criterion.

    Example:

    >>> from keras_layer_entropy import UnitProfile
    >>> profile = UnitProfile(
    ...     layer="conv", classes=("a",), count=[5], information_labels=[0.9, 0.8],
    ...     feature_entropy=[[1.0], [3.0]], selective_rate=[[1.0], [0.5]])
    >>> found = rank_units("feature_entropy", profile)
    >>> [(part.name, prediction.words) for part, prediction in found.items()][0]
    ('conv[1]', 'feature entropy of 3.000 nats (a loop in 50% of the images)')
    """
    if criterion not in RANKINGS:
        raise ValueError(f"criterion={criterion!r}; expected one of {tuple(RANKINGS)}.")
    return _sorted(RANKINGS[criterion](profile))


def feature_entropy(profile: UnitProfile) -> dict[Part, Prediction]:
    """Highest topological feature entropy, nats, averaged over the classes."""
    entropy, rate = profile.mean_feature_entropy, profile.mean_selective_rate
    return {
        Part(kind="unit", path=profile.layer, indices=(unit,)): Prediction(
            -float(entropy[unit]),
            f"feature entropy of {entropy[unit]:.3f} nats (a loop in {rate[unit]:.0%} of the "
            "images)",
        )
        for unit in range(profile.units)
        if np.isfinite(entropy[unit])
    }


RANKINGS = {"feature_entropy": feature_entropy}
