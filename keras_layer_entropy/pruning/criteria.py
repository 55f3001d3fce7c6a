"""Which layer goes first: each criterion gives every layer that may go a score, lowest first."""

import dataclasses
from typing import Any

import numpy as np

from keras_layer_entropy.measures.entropy import FLAT_TOLERANCE
from keras_layer_entropy.pruning.evaluation import evaluate
from keras_layer_entropy.pruning.refit import WIDEST, linear_fits
from keras_layer_entropy.pruning.surgery import take_out


@dataclasses.dataclass(frozen=True)
class Situation:
    """What criteria look at.

    Attributes:
        student: the model as it is now.
        teacher: the model that was trained last.
        blocks: path -> `Block` of the layers that may go.
        profile: `EntropyProfile` of the student, with activation_entropy and state_entropy.
        train_data, validation_data: data.
        batch_size: batch size for arrays.
        tolerance: below this gradient a layer is flat.
        seed: seed of `random`.
        refit: whether a removal is followed by a regression.
        train_steps, validation_steps: number of batches of these data, None for all.
    """

    student: Any
    teacher: Any
    blocks: dict
    profile: Any
    train_data: Any
    validation_data: Any
    batch_size: int = 256
    tolerance: float = FLAT_TOLERANCE
    seed: int = 0
    refit: bool = True
    train_steps: int | None = None
    validation_steps: int | None = None


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A part that may go: its path, its score (lowest goes first), and the reason in words."""

    part: str
    score: float
    reason: str


def rank(criterion, situation):
    """The layers that a criterion would take out, the first to go first.

    Args:
        criterion: a name in `CRITERIA`.
        situation: `Situation`.

    Returns:
        List of `Candidate`.

    Raises:
        ValueError: no such criterion.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"criterion={criterion!r}; expected one of {tuple(CRITERIA)}.")
    if not situation.blocks:
        return []
    return sorted(CRITERIA[criterion](situation), key=lambda candidate: candidate.score)


def entropy_gradient(situation):
    """The paper's: where entropy falls by less than the tolerance, flattest or rising first."""
    profile, found = situation.profile, []
    gradients = dict(zip(profile.layers, profile.gradient, strict=True))
    trend = dict(zip(profile.layers, profile.trend(situation.tolerance), strict=True))
    for path in situation.blocks:
        gradient = float(gradients[path])
        if gradient < situation.tolerance:  # the first layer has none, NaN
            how = "rises" if trend[path] == "rises" else "is flat"
            words = f"entropy {how} (gradient {gradient:+.3f}, tolerance {situation.tolerance:g})"
            found.append(Candidate(path, gradient, words))
    return found


def state_entropy(situation):
    """Lowest entropy of the on/off states of neurons, bits."""
    means = situation.profile["state_entropy"].mean
    bits = dict(zip(situation.profile.layers, means, strict=True))
    return [
        Candidate(path, float(bits[path]), f"on/off state entropy of {bits[path]:.3f} bits")
        for path in situation.blocks
    ]


def linearity(situation):
    """Smallest relative residual of the regression that a removal would need.

    How well what the next layers compute is already a linear function of what the block is given:
    0 is a perfect fit. One pass over the training data ranks all layers.
    """
    pairs = [
        (path, consumer)
        for path, block in situation.blocks.items()
        for consumer in block.consumers
        if block.direct and block.input_shape[-1] <= WIDEST
    ]
    models = (situation.student, situation.teacher)
    data, steps = (situation.train_data, situation.batch_size), situation.train_steps
    fits = linear_fits(*models, pairs, *data, steps=steps) if pairs else {}
    found = []
    for path, block in situation.blocks.items():
        residuals = [fit.residual for (x, _), fit in fits.items() if x == path]
        # What others are given is known once the block is out.
        if not block.direct and not block.fixed:
            _, removed = take_out(*models, [path], *data, steps=steps)
            residuals = list(removed.values())
        score = float(np.mean(residuals)) if residuals else 1.0
        words = f"the next layers are linear in its input but for {score:.2%}"
        found.append(Candidate(path, score, words if residuals else "nothing tells how linear"))
    return found


def loss_gap(situation):
    """Smallest rise of the validation loss after removing and refitting each: the oracle."""
    validation = (situation.validation_data, situation.batch_size, situation.validation_steps)
    now, found = evaluate(situation.student, *validation).loss, []
    for path in situation.blocks:
        smaller, _ = take_out(
            situation.student,
            situation.teacher,
            [path],
            situation.train_data if situation.refit else None,
            situation.batch_size,
            steps=situation.train_steps,
        )
        gap = evaluate(smaller, *validation).loss - now
        found.append(Candidate(path, gap, f"validation loss {gap:+.4f} without it"))
    return found


def random(situation):
    """Any of them."""
    order = np.random.default_rng(situation.seed).permutation(len(situation.blocks))
    return [
        Candidate(path, float(place), "at random")
        for path, place in zip(situation.blocks, order, strict=True)
    ]


def last(situation):
    """The deepest first."""
    paths = list(situation.blocks)
    return [Candidate(path, -float(i), "the deepest") for i, path in enumerate(paths)]


CRITERIA = {
    "entropy_gradient": entropy_gradient,
    "state_entropy": state_entropy,
    "linearity": linearity,
    "loss_gap": loss_gap,
    "random": random,
    "last": last,
}


def rank_units(criterion, profile):
    """The units of a convolution in the order in which a criterion would do without them.

    It is a ranking and no more: nothing takes units out.

    Args:
        criterion: a name in `UNIT_CRITERIA`.
        profile: `UnitProfile` of the layer.

    Returns:
        List of `Candidate`, the first to go first; unit 3 of the layer `conv` is called `conv[3]`.
        Units of which nothing is known are left out.

    Raises:
        ValueError: no such criterion.

    Example:

    >>> from keras_layer_entropy import UnitProfile
    >>> profile = UnitProfile(
    ...     layer="conv", classes=("a",), count=[5], information_labels=[0.9, 0.8],
    ...     feature_entropy=[[1.0], [3.0]], selective_rate=[[1.0], [0.5]])
    >>> first, second = rank_units("feature_entropy", profile)
    >>> first.part, first.reason
    ('conv[1]', 'feature entropy of 3.000 nats (a loop in 50% of the images)')
    """
    if criterion not in UNIT_CRITERIA:
        raise ValueError(f"criterion={criterion!r}; expected one of {tuple(UNIT_CRITERIA)}.")
    return sorted(UNIT_CRITERIA[criterion](profile), key=lambda candidate: candidate.score)


def feature_entropy(profile):
    """Highest topological feature entropy, nats, averaged over the classes."""
    entropy, rate = profile.mean_feature_entropy, profile.mean_selective_rate
    return [
        Candidate(
            f"{profile.layer}[{unit}]",
            -float(entropy[unit]),
            f"feature entropy of {entropy[unit]:.3f} nats (a loop in {rate[unit]:.0%} of the "
            "images)",
        )
        for unit in range(profile.units)
        if np.isfinite(entropy[unit])
    ]


UNIT_CRITERIA = {"feature_entropy": feature_entropy}
