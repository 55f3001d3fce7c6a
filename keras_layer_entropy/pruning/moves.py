"""What a search does next, of all kinds of parts that may go."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np

from keras_layer_entropy.pruning.block_moves import block_moves
from keras_layer_entropy.pruning.cost import KEYS, Cost, cost_of, counted, shares
from keras_layer_entropy.pruning.effects import distance
from keras_layer_entropy.pruning.layer_moves import layer_moves
from keras_layer_entropy.pruning.parts import Part, Plan, Prediction
from keras_layer_entropy.pruning.standing import Move, Moves, Standing
from keras_layer_entropy.pruning.unit_moves import unit_moves
from keras_layer_entropy.pruning.units import calibration_source
from keras_layer_entropy.pruning.walking import inputs_of
from keras_layer_entropy.recording.graph import Call, flat_graph

_NOTHING = 1e-3  # a change of the outputs that the larger saving is worth
Made = tuple[keras.Model, dict[str, float]]

_KINDS: dict[str, Callable[[Standing], Moves]] = {
    "blocks": block_moves,
    "layers": layer_moves,
    "units": unit_moves,
}


def next_moves(standing: Standing) -> Moves:
    """What can be done next, and a plan of all that may go.

    While a limit on quality holds a search back, units wait until no whole part is left to try, and
    are not asked for: what is thinned and goes later was thinned for nothing, and each step is a
    training.

    Args:
        standing: `Standing`.

    Returns:
        `Moves`.
    """
    found: dict[str, Moves] = {}
    for kind in standing.options.kinds:  # units last
        whole = any(moves.candidates for moves in found.values())
        if kind != "units" or not whole or standing.quality.drop == math.inf:
            found[kind] = _KINDS[kind](standing)
    plans = [moves.plan for moves in found.values()]
    return Moves(
        candidates=tuple(move for moves in found.values() for move in moves.candidates),
        plan=Plan(
            parts=tuple(part for plan in plans for part in plan.parts),
            predictions=tuple(said for plan in plans for said in plan.predictions),
            reasons=_reasons({kind: moves.plan for kind, moves in found.items()}),
            costs=plans[0].costs if len(plans) == 1 else (),
        ),
    )


def whole_plan(standing: Standing) -> Plan:
    """A plan of all parts that may go, each by itself, with what the model costs.

    Of several kinds: all blocks and layers, and of each group of layers the units that the target
    takes, or those of a first batch without one; those first whose squared change of the outputs is
    least for what they save. Of one kind, those that go until the target is reached.

    Args:
        standing: `Standing`.
    """
    kinds, options = standing.options.kinds, standing.options
    if len(kinds) == 1:
        plan = next_moves(standing).plan
        return dataclasses.replace(plan, costs=plan.costs or standing.costs[1:])
    # A target ends a list of blocks.
    without = dataclasses.replace(standing, options=dataclasses.replace(options, target=None))
    plans = {kind: _KINDS[kind](without if kind == "blocks" else standing).plan for kind in kinds}
    pairs = [
        pair for plan in plans.values() for pair in zip(plan.parts, plan.predictions, strict=True)
    ]
    weighty = [call.path for call in flat_graph(standing.model).calls if _has_weights(call)]
    pairs.sort(
        key=lambda pair: _price(pair[0], pair[1], weighty, standing.costs[1], options.target)
    )
    return Plan(
        parts=tuple(part for part, _ in pairs),
        predictions=tuple(said for _, said in pairs),
        reasons=_reasons(plans, every=True),
        costs=standing.costs[1:],
    )


def _price(
    part: Part,
    said: Prediction,
    weighty: list[str],
    whole: Cost,
    target: Mapping[str, float] | None,
) -> float:
    """What a part is predicted to cost for what it saves."""
    assert part.saves is not None
    assert said.change is not None
    gone = 0 if part.kind == "unit" else sum(path in part.members for path in weighty)
    share = _share(whole, whole - part.saves, 1 - gone / max(1, len(weighty)), target)
    return max(said.change, _NOTHING) ** 2 / share


def _reasons(plans: dict[str, Plan], every: bool = False) -> dict[str, str]:
    """Why what no plan takes out stays, of each kind where they say different things.

    With `every`, also why what goes in one way does not in another.
    """
    chosen = {part.path for plan in plans.values() for part in plan.parts}
    found: dict[str, dict[str, str]] = {}
    for kind, plan in plans.items():
        for path, why in plan.reasons.items():
            if every or path not in chosen:
                found.setdefault(path, {})[kind] = why
    words = {"blocks": "as a block, ", "layers": "as a layer, ", "units": "of its units, "}
    return {
        path: next(iter(whys.values()))
        if len(set(whys.values())) == 1 and path not in chosen
        else "; ".join(words[kind] + why for kind, why in whys.items())
        for path, whys in found.items()
    }


def cheapest_move(standing: Standing, moves: Sequence[Move]) -> tuple[Move, Made]:
    """The move that costs least for what it saves, and what comes of it.

    Of several kinds every one is made and refitted. What it costs is how much further the outputs
    are then from those of the network that was trained last, squared (`effects.distance`, on the
    calibration data; under a thousandth counts as that); it is divided by the share that it saves:
    of what the target counts, and without one the mean of FLOPs, parameters and depth.

    Args:
        standing: `Standing`.
        moves: one `Move` of each kind, at least one.

    Returns:
        `(move, (model, residuals))`.
    """
    if len(moves) == 1:
        return moves[0], moves[0].make()
    data, steps = standing.calibration()
    source = calibration_source(standing.model, data, standing.options.batch_size, steps)
    inputs = inputs_of(standing.model, source)
    now = distance(standing.model, standing.teacher, inputs) ** 2
    best, price = None, math.inf
    for move in moves:
        made = move.make()
        change = max(distance(made[0], standing.teacher, inputs) ** 2 - now, _NOTHING**2)
        share = _saved(standing, made[0])
        if best is None or change / share < price:
            best, price = (move, made), change / share
    assert best is not None
    return best


def _saved(standing: Standing, model: keras.Model) -> float:
    """The share that a model saves of what the present one costs."""
    depths = [_depth(each) for each in (standing.model, model)]
    cost = cost_of(model, standing.sample)
    return _share(standing.costs[1], cost, depths[1] / depths[0], standing.options.target)


def _share(before: Cost, after: Cost, depth: float, target: Mapping[str, float] | None) -> float:
    """The share that is saved, of what a target counts, else of all and of depth; at least 1e-9.

    Depth, the number of calls of layers with weights, is what small batches wait for.
    """
    left = shares(before, after)
    found = [left[key] for key in counted(target or {})] or [*(left[key] for key in KEYS), depth]
    return max(1 - float(np.mean(found)), 1e-9)


def _depth(model: keras.Model) -> int:
    return sum(map(_has_weights, flat_graph(model).calls))


def _has_weights(call: Call) -> bool:
    return bool(getattr(call.operation, "weights", ()))
