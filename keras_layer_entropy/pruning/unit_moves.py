"""Which units a search takes out next."""

import dataclasses
import math
import warnings

import keras
import numpy as np

from keras_layer_entropy.pruning.channels import find_channels
from keras_layer_entropy.pruning.choices import layers_of
from keras_layer_entropy.pruning.cost import KEYS, counted, shares
from keras_layer_entropy.pruning.parts import Part, Plan
from keras_layer_entropy.pruning.standing import Move, Moves, Standing
from keras_layer_entropy.pruning.unit_criteria import GREEDY
from keras_layer_entropy.pruning.unit_plan import choose_units, groups_of
from keras_layer_entropy.pruning.units import take_out_units
from keras_layer_entropy.recording.layers import choose

_LEAST = 0.01  # of the original, which is worth another training
_TRIES = 3  # batches without which quality fell too far, each half as large as the one before


def unit_moves(standing: Standing) -> Moves:
    """The batch of units that could go next.

    Args:
        standing: `Standing`.

    Returns:
        `Moves`.
    """
    stop, rejected = standing.enough, standing.rejected("unit")
    if stop is None and len(rejected) == _TRIES:
        stop = standing.below(rejected[-1])
    plan = Plan()
    if stop is None:
        share = 1.0 - float(standing.options.step_share) / 2 ** len(rejected)
        plan = plan_of(standing, least=share)
        stop = "nothing more can go"
        if plan.parts and standing.options.target is None and _little(standing, plan):
            stop, plan = f"a batch saves less than {_LEAST:.0%} of what the original costs", Plan()
    if not plan.parts:
        return Moves((), Plan(reasons=_reasons(standing, stop)))
    units = _as_the_original_counts(standing, plan)
    count = sum(map(len, units.values()))
    left = shares(standing.costs[0], plan.costs[1])
    criterion = _criterion(standing)
    move = Move(
        kind="unit",
        part=f"{_counted(count, 'unit')} of {_counted(len(units), 'layer')}",
        members=tuple(units),
        criterion=criterion,
        score=math.fsum(prediction.loss for prediction in plan.predictions),
        reason=f"{criterion}, down to {left['flops']:.1%} of the FLOPs and "
        f"{left['parameters']:.1%} of the parameters",
        make=lambda: _without(standing, plan, units),
        units=units,
    )
    return Moves((move,), dataclasses.replace(plan, reasons=_of_whole(standing, plan.reasons)))


def _little(standing: Standing, plan: Plan) -> bool:
    """Whether a plan saves so little of the original's cost that it is not worth a look."""
    now, then = (shares(standing.costs[0], cost) for cost in plan.costs)
    return all(now[key] - then[key] < _LEAST for key in KEYS)


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'s' if count > 1 else ''}"


def plan_of(standing: Standing, least: float = 0.0) -> Plan:
    """The units that go until the target is reached, or a share of the present costs is left."""
    options, now = standing.options, shares(*standing.costs)
    wanted = counted(options.target or {})
    target = {
        key: max(least, share / now[key]) for key, share in wanted.items() if now[key] > share
    }
    # Nothing tells how many units a latency takes; the search asks again after each batch.
    target = target or {"flops": least}
    layers, keep = _choice(standing)
    if layers == []:
        return Plan()
    data, steps = standing.calibration()
    with warnings.catch_warnings():  # whether the target is reached is told at the end
        warnings.filterwarnings("ignore", "target=.* is out of reach")
        return choose_units(
            standing.model, data, target=target, criterion=_criterion(standing), layers=layers,
            keep=keep, multiple_of=options.multiple_of, batch_size=options.batch_size, steps=steps,
            seed=standing.seed,
        )  # fmt: skip


def _criterion(standing: Standing) -> str:
    return standing.options.criterion or GREEDY


def _without(
    standing: Standing, plan: Plan, units: dict[str, tuple[int, ...]]
) -> tuple[keras.Model, dict[str, float]]:
    """The model without a batch of units, and the residuals of the regressions.

    What was only refitted is made again from the model that was trained last, without all that is
    gone since: no regression is fitted to what another one gave.
    """
    base = standing.base("unit")
    if base is not standing.model:
        gone = standing.gone
        parts = [
            Part(kind="unit", path=path, indices=(*gone.get(path, ()), *units.get(path, ())))
            for path in {**gone, **units}
        ]
        plan = Plan(tuple(parts))
    data, steps = standing.calibration()
    size = standing.options.batch_size
    return take_out_units(base, plan, data, batch_size=size, steps=steps)


def _as_the_original_counts(standing: Standing, plan: Plan) -> dict[str, tuple[int, ...]]:
    """Path of each layer that loses units -> indices of these, as the original counts them."""
    channels, found = find_channels(standing.model), {}
    units = [channels.roots(part.path)[list(part.indices)] for part in plan.parts]
    for path in channels.makers:
        now = np.flatnonzero(np.isin(channels.roots(path), np.concatenate(units)))
        if len(now):
            gone = standing.gone.get(path, ())
            left = np.setdiff1d(np.arange(now[-1] + len(gone) + 1), gone)
            found[path] = tuple(left[now].tolist())
    return found


def _reasons(standing: Standing, stop: str) -> dict[str, str]:
    """Path of each layer that has all of its units still -> why."""
    channels, (layers, keep) = find_channels(standing.model), _choice(standing)
    if layers == []:
        return dict.fromkeys(channels.makers, "it is not among the layers that may go")
    groups, reasons = groups_of(
        standing.model, channels, layers, keep, standing.options.multiple_of
    )
    for group in groups:
        reasons.update(dict.fromkeys(group.makers, stop))
    return _of_whole(standing, reasons)


def _choice(standing: Standing) -> tuple[list[str] | None, list[str]]:
    """As `layers_of`, of the layers that are still there."""
    layers, keep = layers_of(standing.original, standing.options)
    left, _ = choose(standing.model, keras.Layer)
    return (
        None if layers is None else [path for path in layers if path in left],
        [path for path in keep if path in left],
    )


def _of_whole(standing: Standing, reasons: dict[str, str]) -> dict[str, str]:
    thinned = {path for step in standing.steps if step.accepted for path in step.members}
    return {path: why for path, why in reasons.items() if path not in thinned}
