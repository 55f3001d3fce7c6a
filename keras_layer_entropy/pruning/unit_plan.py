"""How many units go from which layer, so that a network costs what it may."""

import dataclasses
import math
import warnings
from collections.abc import Collection, Iterator, Mapping

import keras
import numpy as np
from keras import tree

from keras_layer_entropy.backend import Data
from keras_layer_entropy.measures.measure import is_int, listed
from keras_layer_entropy.pruning.budget import Budget
from keras_layer_entropy.pruning.channels import Channels, find_channels
from keras_layer_entropy.pruning.cost import Cost, check_target, cost_of, is_met, shares
from keras_layer_entropy.pruning.effects import effects
from keras_layer_entropy.pruning.flops import count_flops
from keras_layer_entropy.pruning.parts import Part, Plan, Prediction
from keras_layer_entropy.pruning.reconstruction import Taker, cheapest
from keras_layer_entropy.pruning.rewrite import thinned
from keras_layer_entropy.pruning.unit_criteria import (
    GREEDY,
    UNIT_CRITERIA,
    UnitSituation,
    check_criterion,
    free,
    takers_of,
)
from keras_layer_entropy.pruning.units import calibration_source
from keras_layer_entropy.pruning.walking import inputs_of
from keras_layer_entropy.recording.layers import LayerChoice, choose_layers


def choose_units(
    model: keras.Model,
    calibration_data: Data,
    *,
    target: Mapping[str, float],
    criterion: str = GREEDY,
    layers: LayerChoice = None,
    keep: str | Collection[str] = (),
    multiple_of: int = 1,
    batch_size: int = 256,
    steps: int | None = None,
    seed: int = 0,
) -> Plan:
    """The units that can go so that a model costs what it may, for `remove_units`.

    With the criterion `"reconstruction"` units of all layers compete: those go first that cost
    least for what they save. What a unit costs is the part of what the layers behind compute that
    they miss once they are refitted (`reconstruction.least_missed`), times the effect of these
    layers on the outputs of the model (`effects.effects`). Other criteria say nothing of units of
    other layers: with them, the same share of each layer goes.

    Args:
        model: a built Sequential or functional model; it is not changed.
        calibration_data: as for `remove_units`.
        target: `"flops"`, `"parameters"` -> share of those of the model that may remain; all hold.
        criterion: as for `remove_units`.
        layers: layers whose units may go, as for `ActivationProbe`, with those tied to them; None
            for all.
        keep: names or paths of layers that keep their units.
        multiple_of: as many units are left of each layer that loses some, or a multiple of that.
        batch_size, steps, seed: as for `remove_units`.

    Returns:
        `Plan` of parts of the kind `"unit"`, one for each group of layers that are tied to one
        another, with the costs before and after. Where the target is out of reach, it is all that
        can go, with a warning.

    Raises:
        ValueError: a target that is none; no such layer or criterion; data that do not fit, or
            have no labels for a criterion that needs them.

    Example:

    >>> dense = keras.layers.Dense
    >>> model = keras.Sequential([keras.Input((4,)), dense(8, "relu", name="a"), dense(2)])
    >>> plan = choose_units(model, np.random.normal(size=(100, 4)), target={"parameters": 0.5})
    >>> [cost.parameters for cost in plan.costs], len(plan.parts[0].indices)
    ([58, 23], 5)
    """
    check_criterion(criterion)
    check_target(target)
    if not is_int(multiple_of):
        raise ValueError(f"multiple_of={multiple_of!r}; expected an int of at least 1.")
    channels = find_channels(model)
    source = calibration_source(model, calibration_data, batch_size, steps)
    inputs = inputs_of(model, source)
    situation = UnitSituation(model, channels, inputs, calibration_data, batch_size, steps, seed)
    one = tree.map_structure(lambda part: part[:1], source.first()[0])
    flops = count_flops(model, one)
    if flops.unknown and "flops" in target:
        warnings.warn(
            f"Nothing is known of the operations of {listed(list(flops.unknown))}: the target is "
            "of those of the rest.",
            stacklevel=2,
        )
    groups, reasons = groups_of(model, channels, layers, keep, multiple_of)
    budget = Budget(channels, flops.per_call, target)
    weights: dict[str, float] = {}
    if criterion == GREEDY:
        takers = takers_of(situation)
        weights = effects(model, inputs, takers)
        lumps = _by_cost(takers, weights, groups, reasons, budget, multiple_of)
    else:
        lumps = _alike(situation, criterion, groups, reasons, multiple_of)
    before = after = cost_of(model, one)
    gone: dict[int, float] = {}
    while not is_met(target, before, after):
        more = dict(_until_met(lumps, budget))
        if not more:
            warnings.warn(_out_of_reach(before, after, target), stacklevel=2)
            break
        gone.update(more)
        smaller = thinned(model, channels, np.array(sorted(gone)))
        after = cost_of(smaller, one)
        budget.aim_below(shares(before, after), target)  # it does not know of biases, say
    thinner = [group for group in groups if not gone.keys().isdisjoint(group.units)]
    changed = {path for group in thinner for path in group.makers}
    for path in (path for group in groups for path in group.makers):
        reasons.setdefault(path, "other units cost less for what they save")
    whole = Budget(channels, flops.per_call, {})
    parts = [_part(group, gone, situation, criterion, before, whole, weights) for group in thinner]
    return Plan(
        parts=tuple(part for part, _ in parts),
        predictions=tuple(said for _, said in parts),
        reasons={path: why for path, why in reasons.items() if path not in changed},
        costs=(before, after),
    )


@dataclasses.dataclass(frozen=True)
class Group:
    """Layers that make the same units.

    Attributes:
        makers: their paths.
        units: numbers of the units that may go.
    """

    makers: tuple[str, ...]
    units: tuple[int, ...]


def groups_of(
    model: keras.Model,
    channels: Channels,
    layers: LayerChoice,
    keep: str | Collection[str],
    multiple_of: int = 1,
) -> tuple[list[Group], dict[str, str]]:
    """`(groups, reasons)`: what may go, and path of a layer of which nothing may -> why.

    Args:
        model: the model.
        channels: its `channels.Channels`.
        layers, keep, multiple_of: as for `choose_units`.
    """
    kept = choose_layers(model, [keep] if isinstance(keep, str) else list(keep)) if keep else {}
    chosen = channels.makers if layers is None else choose_layers(model, layers)
    makers: dict[int, list[str]] = {}
    for path in channels.makers:
        for unit in free(channels, path)[0]:
            makers.setdefault(unit, []).append(path)
    units: dict[tuple[str, ...], list[int]] = {}
    for unit, makers_of_it in makers.items():
        units.setdefault(tuple(makers_of_it), []).append(unit)
    groups, reasons = [], {}
    for path in channels.makers:
        if not free(channels, path)[0]:
            reasons[path] = next(iter(channels.reasons(path).values()))
    for paths, members in units.items():
        reason = None
        if any(path in kept for path in paths):
            reason = "it is to be kept, or tied to a layer that is"
        elif not any(path in chosen for path in paths):
            reason = "it is not among the layers that may go"
        elif len(members) == 1:
            reason = "nothing would be left of it"
        elif len(members) <= multiple_of:
            reason = f"it has {len(members)} units, and multiples of {multiple_of} are to be left"
        if reason is None:
            groups.append(Group(paths, tuple(members)))
        else:
            reasons.update(dict.fromkeys(paths, reason))
    return groups, reasons


def _by_cost(
    takers: dict[str, Taker], weights: dict[str, float], groups: list[Group],
    reasons: dict[str, str], budget: Budget, multiple_of: int,
) -> Iterator[list[tuple[int, float]]]:  # fmt: skip
    """Units of all layers, those first that cost least for what they save."""
    weighted = [dataclasses.replace(taker, weight=weights[p]) for p, taker in takers.items()]
    owned = {unit for taker in weighted for unit in taker.owners.tolist()}
    open_ones = []
    for group in groups:
        if owned.issuperset(group.units):
            open_ones.append((group.units, len(group.units) - 1))
        else:
            reason = "no layer that could be refitted takes what it makes"
            reasons.update(dict.fromkeys(group.makers, reason))
    yield from cheapest(weighted, open_ones, budget.savings, multiple_of)


def _alike(
    situation: UnitSituation, criterion: str, groups: list[Group], reasons: dict[str, str],
    multiple_of: int,
) -> Iterator[list[tuple[int, float]]]:  # fmt: skip
    """Units in the order of a criterion within their layer, the same share of all layers."""
    costs, lumps = UNIT_CRITERIA[criterion](situation), []
    for group in groups:
        if unknown := [unit for unit in group.units if unit not in costs]:
            reason = f"{criterion!r} says nothing of {len(unknown)} of its units"
            reasons.update(dict.fromkeys(group.makers, reason))
            continue
        order = sorted(group.units, key=costs.__getitem__)
        end = len(order) % multiple_of or multiple_of
        start = 0
        while end < len(order):
            lumps.append((end / len(order), order[start:end]))
            start, end = end, end + multiple_of
    if groups and not lumps:
        raise ValueError(
            f"{criterion!r} says nothing of any layer of {situation.model.name!r} whose units may "
            f"go: expected another criterion, {GREEDY!r} say."
        )
    for _, units in sorted(lumps):
        yield [(unit, costs[unit]) for unit in units]


def _until_met(
    lumps: Iterator[list[tuple[int, float]]], budget: Budget
) -> Iterator[tuple[int, float]]:
    """Takes units until the budget is met."""
    while not budget.met:
        lump = next(lumps, None)
        if lump is None:
            return
        for unit, cost in lump:
            budget.take(unit)
            yield unit, cost


def _part(
    group: Group, gone: dict[int, float], situation: UnitSituation, criterion: str, before: Cost,
    whole: Budget, weights: dict[str, float],
) -> tuple[Part, Prediction]:  # fmt: skip
    """What goes of a group, and what is said of it."""
    channels = situation.channels
    path, *others = group.makers
    indices = np.flatnonzero(np.isin(channels.roots(path), [u for u in group.units if u in gone]))
    left = whole.left_without(unit for unit in group.units if unit in gone)
    saves = Cost(
        dense_layers=0,
        parameters=round(before.parameters * (1 - left["parameters"])),
        flops=round(before.flops * (1 - left["flops"])),
        latency={},
    )
    consumers = [
        taker
        for taker, ids in channels.takers.items()
        if np.isin(channels.ties.roots(ids), group.units).any()
    ]
    part = Part(
        kind="unit", path=path, indices=tuple(indices.tolist()), members=tuple(others),
        consumers=tuple(consumers), saves=saves,
    )  # fmt: skip
    loss = math.fsum(gone[unit] for unit in group.units if unit in gone)
    how = "that cost least for what they save" if criterion == GREEDY else f"lowest in {criterion}"
    width = len(channels.makers[path])
    # A loss is a share of squares, times the effect of what takes the units: times that again.
    seen = [weights[path] for path in consumers if path in weights]
    change = math.sqrt(max(loss, 0.0) * float(np.mean(seen))) if seen else None
    return part, Prediction(loss, f"{len(indices)} of {width} units, {how}", change)


def _out_of_reach(before: Cost, after: Cost, target: Mapping[str, float]) -> str:
    left = listed([f"{key} {shares(before, after)[key]:.3f}" for key in target])
    return f"target={dict(target)} is out of reach: the least that can remain is {left}."
