"""Which block a search takes out next."""

import collections
import warnings

import keras

from keras_layer_entropy.pruning.block_parts import chosen_blocks, find_blocks
from keras_layer_entropy.pruning.block_plan import choose_blocks
from keras_layer_entropy.pruning.blocks import take_out_blocks
from keras_layer_entropy.pruning.choices import blocks_of
from keras_layer_entropy.pruning.cost import counted, shares
from keras_layer_entropy.pruning.parts import Plan
from keras_layer_entropy.pruning.standing import Move, Moves, Standing

_SHARED = "it is one of several calls of a layer, of which remove_blocks takes out single ones"


def block_moves(standing: Standing) -> Moves:
    """The blocks that could go, each with how much the outputs change without it.

    Args:
        standing: `Standing`.

    Returns:
        `Moves`.
    """
    names, reasons = _open(standing)
    stop, plan, candidates = standing.enough, Plan(), list[Move]()
    if names and stop is None:
        plan = _plan_of(standing, names)
    for name in names:
        reasons[name] = stop or plan.reasons.get(name, "")
    reasons = {name: why for name, why in reasons.items() if why}
    if plan.parts:
        part, prediction = plan.parts[0], plan.predictions[0]
        move = Move(
            kind="block",
            part=part.path,
            members=part.members,
            criterion="output_change",
            score=prediction.loss,
            reason=prediction.words,
            make=lambda: _without(standing, part.path),
        )
        candidates.append(move)
    return Moves(tuple(candidates), Plan(plan.parts, plan.predictions, reasons, plan.costs))


def _plan_of(standing: Standing, names: list[str]) -> Plan:
    """The blocks that go until the target is reached; without one, all, the first to go first."""
    options, now = standing.options, shares(*standing.costs)
    wanted = counted(options.target or {})
    target = {k: share / now[k] for k, share in wanted.items() if now[k] > share} or None
    data, steps = standing.calibration()
    with warnings.catch_warnings():  # whether the target is reached is told at the end
        warnings.filterwarnings("ignore", "target=.* is out of reach")
        return choose_blocks(
            standing.model, data, target=target, stand_in=options.stand_in, blocks=names,
            batch_size=options.batch_size, steps=steps,
        )  # fmt: skip


def _open(standing: Standing) -> tuple[list[str], dict[str, str]]:
    """Names of the blocks that may go now, and why others may not."""
    options = standing.options
    allowed, reasons = chosen_blocks(standing.original, *blocks_of(standing.original, options))
    rejected = {step.part: step for step in standing.rejected("block")}
    now, _ = find_blocks(standing.model)
    calls = collections.Counter(id(block.node.operation) for block in now.values())
    names = []
    for name, block in now.items():
        if name in rejected:
            reasons[name] = standing.below(rejected[name])
        elif name in allowed and calls[id(block.node.operation)] > 1:
            reasons[name] = _SHARED
        elif name in allowed:
            names.append(name)
    return names, reasons


def _without(standing: Standing, name: str) -> tuple[keras.Model, dict[str, float]]:
    """The model without a block, and the residuals of the regressions.

    What was only refitted is made again from the model that was trained last, without all that is
    gone since: no regression is fitted to what another one gave.
    """
    names, base = [name], standing.base("block")
    if base is not standing.model:
        names += [step.part for step in standing.steps if step.accepted]
    data, steps = standing.calibration()
    options = standing.options
    return take_out_blocks(
        base, names, data, options.stand_in, batch_size=options.batch_size, steps=steps
    )
