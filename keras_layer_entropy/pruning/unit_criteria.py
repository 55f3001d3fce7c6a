"""Which units go first: each criterion says of every unit what it costs to lose it."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_layer_entropy.analysis.analyzer import analyze_units
from keras_layer_entropy.analysis.unit_profile import UnitProfile
from keras_layer_entropy.backend import Data
from keras_layer_entropy.measures.entropy import binary_entropy
from keras_layer_entropy.pruning import patches
from keras_layer_entropy.pruning.channels import Channels
from keras_layer_entropy.pruning.reconstruction import Taker, least_missed
from keras_layer_entropy.pruning.repair import WIDEST, centred, whole_paths
from keras_layer_entropy.pruning.walking import Walk
from keras_layer_entropy.recording.passes import Source

GREEDY = "reconstruction"


@dataclasses.dataclass(frozen=True)
class UnitSituation:
    """What criteria look at.

    Attributes:
        model: the model.
        channels: its `channels.Channels`.
        inputs: what `walking.inputs_of` gave for the calibration data.
        data: these data, with labels for the criteria that need them.
        batch_size, steps: how to read them.
        seed: seed of `random`.
    """

    model: keras.Model
    channels: Channels
    inputs: list
    data: Data = None
    batch_size: int = 256
    steps: int | None = None
    seed: int = 0


def check_criterion(name: str) -> None:
    """Raises ValueError where there is no such criterion."""
    if name not in (GREEDY, *UNIT_CRITERIA):
        raise ValueError(f"criterion={name!r}; expected one of {(GREEDY, *UNIT_CRITERIA)}.")


def free(channels: Channels, path: str) -> tuple[list[int], int]:
    """The numbers of the units of a layer that may go, and how many units each stands for."""
    reasons = channels.reasons(path)
    roots = [root for i, root in enumerate(channels.roots(path).tolist()) if i not in reasons]
    units = list(dict.fromkeys(roots))
    return units, len(roots) // max(1, len(units))


def holds(roots: np.ndarray, units: list[int]) -> bool:
    """Whether any of some units is among others."""
    return bool(np.isin(roots, units).any())


def can_be_refitted(operation: keras.layers.Layer) -> bool:
    """Whether `repair` gives a layer, or the last one inside it, another kernel."""
    layer = patches.mixer(operation)
    return patches.obstacle(layer) is None and patches.features_of(layer) <= WIDEST


def first_to_go(
    situation: UnitSituation, criterion: str, wanted: dict[str, int]
) -> dict[int, float]:
    """The units that a criterion takes out of some layers.

    Args:
        situation: `UnitSituation`.
        criterion: a name in `UNIT_CRITERIA`.
        wanted: path of a layer -> how many units go.

    Returns:
        Number of a unit -> what the criterion says that it costs.

    Raises:
        ValueError: the criterion says nothing of a layer's units.
    """
    channels, gone = situation.channels, dict[int, float]()
    takers = list(takers_of(situation).values()) if criterion == GREEDY and wanted else []
    costs = {} if criterion == GREEDY else UNIT_CRITERIA[criterion](situation)
    for path, count in wanted.items():
        units, each = free(channels, path)
        left = [unit for unit in units if unit not in gone]  # of layers tied to one before
        more = count // each - (len(units) - len(left))
        if more <= 0:
            continue
        if criterion == GREEDY:
            own = [taker for taker in takers if holds(taker.owners, units)]
            if not own:
                raise ValueError(
                    f"No layer that could be refitted takes what {path!r} makes: name the units, "
                    'or choose criterion="magnitude", which asks for none.'
                )
            gone.update(least_missed(own, [(left, more)]))
        else:
            if unknown := [unit for unit in left if unit not in costs]:
                raise ValueError(
                    f"{criterion!r} says nothing of {len(unknown)} units of {path!r}: choose "
                    "another criterion, or name the units."
                )
            gone.update((unit, costs[unit]) for unit in sorted(left, key=costs.__getitem__)[:more])
    return gone


def takers_of(situation: UnitSituation) -> dict[str, Taker]:
    """Path -> `Taker` of each layer that takes units and can be refitted."""
    channels, walk = situation.channels, Walk(situation.model, situation.inputs)
    whole = whole_paths(walk.graph)
    grams: dict[str, tuple[keras.layers.Layer, np.ndarray]] = {}
    for call in walk.graph.calls:
        refitted = call.path in whole and can_be_refitted(call.operation)
        if call.path in channels.takers and refitted:
            layer = patches.mixer(call.operation)
            batches = (patches.taken(call, values) for values in walk.batches(call))
            some = patches.enough(layer, batches)
            gram = patches.gram(_with_ones(layer, some), patches.features_of(layer))
            before = grams[call.path][1] if call.path in grams else 0.0
            grams[call.path] = layer, before + gram
        walk.make(call)
    found = {}
    for path, (layer, gram) in grams.items():
        owners = np.tile(channels.ties.roots(channels.takers[path]), patches.taps_of(layer))
        if not np.isfinite(gram).all():
            raise ValueError(
                f"What {path!r} is given is not finite (NaN or infinite) for some of the "
                "calibration data: look at these data, and at the weights of the layers before it."
            )
        gram = centred(gram, patches.features_of(layer))
        found[path] = Taker(gram, patches.matrix(layer), owners)
    return found


def _with_ones(layer: keras.layers.Layer, batches: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    for x in batches:
        step = patches.at_a_time(layer, x)
        for start in range(0, len(x), step):
            rows = patches.rows(layer, x[start : start + step], more=1)
            rows[:, -1] = 1.0
            yield rows


def magnitude(situation: UnitSituation) -> dict[int, float]:
    """The norm of all kernels that make a unit."""
    channels, squares = situation.channels, dict[int, float]()
    for part in channels.slices:
        if part.makes:
            value = np.moveaxis(ops.convert_to_numpy(part.variable), part.axis, 0)
            sums = np.sum(value.reshape(len(value), -1).astype(np.float64) ** 2, axis=1)
            for unit, square in zip(channels.ties.roots(part.ids).tolist(), sums, strict=True):
                squares[unit] = squares.get(unit, 0.0) + float(square)
    return {unit: float(np.sqrt(square)) for unit, square in squares.items()}


def random(situation: UnitSituation) -> dict[int, float]:
    """Nothing: any order."""
    channels = situation.channels
    units = np.unique(np.concatenate([channels.roots(path) for path in channels.makers]))
    order = np.random.default_rng(situation.seed).permutation(len(units))
    return dict(zip(units.tolist(), order.astype(float).tolist(), strict=True))


def state_entropy(situation: UnitSituation) -> dict[int, float]:
    """The entropy of on and off (above 0 or not) of what layers are given of a unit, bits."""
    channels, walk = situation.channels, Walk(situation.model, situation.inputs)
    rates: dict[int, list[float]] = {}
    for call in walk.graph.calls:
        labels = channels.labels.get(call.inputs[0], {})
        if call.path in channels.takers:
            for axis, ids in labels.items():
                on = sum(
                    np.sum(np.moveaxis(x, axis, 0).reshape(len(ids), -1) > 0, axis=1)
                    for x in walk.given(call)[0]
                )
                count = sum(x.size for x in walk.given(call)[0]) / len(ids)
                for unit, rate in zip(channels.ties.roots(ids).tolist(), on / count, strict=True):
                    rates.setdefault(unit, []).append(rate)
        walk.make(call)
    return {unit: float(np.mean(binary_entropy(np.array(x)))) for unit, x in rates.items()}


def mutual_information(situation: UnitSituation) -> dict[int, float]:
    """What a unit tells of the class, bits."""
    return _mean(situation, lambda profile: profile.information_labels)


def feature_entropy(situation: UnitSituation) -> dict[int, float]:
    """How many places a unit's maps have loops at: those with the highest entropy go first."""
    return _mean(situation, lambda profile: -profile.mean_feature_entropy)


def redundancy(situation: UnitSituation) -> dict[int, float]:
    """How little of what a unit says is said by another one that stays."""
    return _mean(situation, _alone)


def _alone(profile: UnitProfile) -> Any:
    """1 minus the share of a unit's entropy that another has; of such two, one goes first."""
    if profile.pairwise is None:
        return np.full(profile.units, np.nan)
    entropy = np.diag(profile.pairwise)[:, None]
    # Of a unit that says nothing, everything is said by others.
    shares = np.divide(
        profile.pairwise, entropy, out=np.ones(profile.pairwise.shape), where=entropy > 0
    )
    np.fill_diagonal(shares, -np.inf)
    found, left = np.zeros(profile.units), np.ones(profile.units, bool)
    for _ in range(profile.units - 1):
        best = np.where(left, shares.max(axis=1), -np.inf)
        unit = int(np.argmax(best))
        found[unit], left[unit] = 1.0 - best[unit], False
        shares[:, unit] = -np.inf
    found[left] = 1.0
    return found


def _mean(situation: UnitSituation, score: Callable[[UnitProfile], np.ndarray]) -> dict[int, float]:
    """What profiles of units say, the mean over all layers that make a unit."""
    channels, found = situation.channels, dict[int, list[float]]()
    operations = {call.path: call.operation for call in channels.graph.calls}
    layers = [path for path in channels.makers if isinstance(operations.get(path), _ANALYZED)]
    if not layers:
        return {}
    if Source(situation.data, situation.batch_size, situation.steps).first()[1] is None:
        raise ValueError(
            "A criterion that asks what units tell of the class, of other units or of their maps "
            f"measures them class by class and needs labels: pass (x, y), or choose {GREEDY!r}."
        )
    profiles = analyze_units(
        situation.model, situation.data, layers=layers, batch_size=situation.batch_size,
        steps=situation.steps, verbose=0,
    )  # fmt: skip
    for profile in profiles:
        roots = channels.roots(profile.layer)
        for unit, value in zip(roots.tolist(), score(profile).tolist(), strict=True):
            if np.isfinite(value):
                found.setdefault(unit, []).append(value)
    return {unit: float(np.mean(values)) for unit, values in found.items()}


_ANALYZED = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
UNIT_CRITERIA: dict[str, Callable[[UnitSituation], dict[int, float]]] = {
    "magnitude": magnitude,
    "random": random,
    "state_entropy": state_entropy,
    "mutual_information": mutual_information,
    "redundancy": redundancy,
    "feature_entropy": feature_entropy,
}
