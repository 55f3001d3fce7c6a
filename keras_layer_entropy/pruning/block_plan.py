"""Which blocks go, so that a network costs what it may."""

import dataclasses
import itertools
import math
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from keras_layer_entropy.backend import Data
from keras_layer_entropy.pruning import patches
from keras_layer_entropy.pruning.block_parts import Block, chosen_blocks, parameters_of
from keras_layer_entropy.pruning.blocks import without_blocks
from keras_layer_entropy.pruning.cost import Cost, check_target, cost_of, is_met, shares
from keras_layer_entropy.pruning.effects import SAMPLES, Outputs
from keras_layer_entropy.pruning.flops import count_flops
from keras_layer_entropy.pruning.parts import LARGER, Part, Plan, Prediction, larger
from keras_layer_entropy.pruning.repair import StandIn
from keras_layer_entropy.pruning.stand_ins import (
    AUTO,
    check_stand_in,
    make_identity,
    make_stand_in,
)
from keras_layer_entropy.pruning.units import calibration_source
from keras_layer_entropy.pruning.walking import Walk, inputs_of
from keras_layer_entropy.recording.graph import Graph, flat_graph

_MOST = 2**31  # bytes of what goes into the blocks, held while these are looked at


def choose_blocks(
    model: keras.Model,
    calibration_data: Data,
    *,
    target: Mapping[str, float] | None = None,
    most: int | None = None,
    stand_in: str | int | None = AUTO,
    blocks: str | Collection[str] | None = None,
    keep: str | Collection[str] = (),
    batch_size: int = 256,
    steps: int | None = None,
) -> Plan:
    """The blocks that can go so that a model costs what it may, for `remove_blocks`.

    Of each block alone: a linear layer is fitted to what comes out of it (`stand_in`), and the rest
    of the network goes on from what that gives for some samples. What a block costs to lose is the
    root mean square change of the outputs, relative to their spread over the samples; of outputs
    that are probabilities, of their logarithms. Layers behind, which `remove_blocks` refits, are as
    they were here. Those go first that cost least; with a target, whose squared cost is least for
    what they save of it.

    Args:
        model: a built Sequential or functional model; it is not changed.
        calibration_data: as for `remove_blocks`; of large maps as many samples are looked at as fit
            into 2 GiB, one batch at least.
        target: `"flops"`, `"parameters"` -> share of those of the model that may remain; all hold.
        most: how many blocks go at most; with neither, the plan holds all that can go.
        stand_in: as for `remove_blocks`.
        blocks: names of blocks, or of layers inside, that may go; None for all.
        keep: names of blocks, or of layers inside, that stay.
        batch_size, steps: as for `remove_blocks`.

    Returns:
        `Plan` of parts of the kind `"block"`, with the costs before and after. Where the target is
        out of reach, it is all that can go, with a warning.

    Raises:
        ValueError: a target that is none, no such block; data that do not fit.

    Example:

    >>> x = inputs = keras.Input((8,))
    >>> for number in (1, 2):
    ...     branch = keras.layers.Dense(32, "relu")(x)
    ...     x = keras.layers.Add(name=f"sum_{number}")([x, keras.layers.Dense(8)(branch)])
    >>> model = keras.Model(inputs, keras.layers.Dense(2, name="out")(x))
    >>> plan = choose_blocks(model, np.random.normal(size=(100, 8)), most=1)
    >>> len(plan.parts), plan.parts[0].kind, [cost.parameters for cost in plan.costs]
    (1, 'block', [1122, 642])
    """
    check_stand_in(stand_in)
    if target is not None:
        check_target(target)
    if most is not None and most < 1:
        raise ValueError(f"most={most!r}; expected at least 1, or None.")
    found, reasons = chosen_blocks(model, blocks, keep)
    source = calibration_source(model, calibration_data, batch_size, steps)
    one = tree.map_structure(lambda part: part[:1], source.first()[0])
    before = after = cost_of(model, one)
    predicted = _predicted(model, found, inputs_of(model, source), stand_in, one)
    for block in list(predicted):
        if why := _not_worth_it(block, target or {}):
            reasons[block.path] = why
            del predicted[block]
    order = sorted(
        predicted, key=lambda x: predicted[x].loss ** 2 / _worth(x.saves, before, target or {})
    )
    chosen: list[Block] = []
    for block in order:
        if (target is not None and is_met(target, before, after)) or len(chosen) == most:
            break
        if _around(block, chosen) is None:
            chosen.append(block)
            if target is not None:
                after = cost_of(without_blocks(model, [x.path for x in chosen], stand_in), one)
    if chosen and target is None:
        after = cost_of(without_blocks(model, [x.path for x in chosen], stand_in), one)
    if target is not None and not is_met(target, before, after):
        left = shares(before, after)
        warnings.warn(
            f"target={dict(target)} is out of reach: without all that can go "
            + " and ".join(f"{left[key]:.1%} of the {key}" for key in target)
            + " are left.",
            stacklevel=2,
        )
    for block in order:
        around = _around(block, chosen)
        if around is not None:
            reasons[block.path] = f"it is inside {around.path}, and goes with it"
        elif block not in chosen:
            reasons[block.path] = "other blocks cost less for what they save"
    return Plan(
        parts=tuple(_plain(block) for block in chosen),
        predictions=tuple(predicted[block] for block in chosen),
        reasons=reasons,
        costs=(before, after),
    )


def _not_worth_it(block: Block, target: Mapping[str, float]) -> str | None:
    """Why a block is not offered for what it saves; None where it is."""
    assert block.saves is not None
    if "flops" in target and block.saves.flops is None:
        return (
            "nothing is known of its operations, so that a target of FLOPs says nothing of it: "
            "name one of parameters, or of latency in a search"
        )
    return LARGER if larger(block.saves) else None


def _around(block: Block, others: list[Block]) -> Block | None:
    """The first of some blocks that a block is inside of."""
    return next((other for other in others if set(block.calls) < set(other.calls)), None)


def _plain(block: Block) -> Part:
    """A block as a plan holds it."""
    return Part(kind="block", path=block.path, members=block.members, saves=block.saves)


def _worth(saves: Cost | None, whole: Cost, target: Mapping[str, float]) -> float:
    """The share of what a target is of that a block saves; 1 without a target."""
    if not target:
        return 1.0
    saved = [max(getattr(saves, key) or 0, 0) / max(1, getattr(whole, key) or 0) for key in target]
    return max(float(np.mean(saved)), 1e-9)


def _predicted(
    model: keras.Model,
    blocks: dict[str, Block],
    inputs: list,
    stand_in: str | int | None,
    one: Any,
) -> dict[Block, Prediction]:
    """Each block, with what it saves -> what it costs to lose it."""
    flops, graph = count_flops(model, one).per_call, flat_graph(model)
    ends = {block.made: block for block in blocks.values()}
    layers = {block.made: _fresh(graph, block, stand_in) for block in blocks.values()}
    wanted = {block.given for block in blocks.values()}
    most = min(_fitting(graph.shapes, wanted), _enough(graph.shapes, blocks, layers))
    inputs = [_first(batches, most) for batches in inputs]
    outputs, walk = Outputs(model, inputs, {*wanted, *ends}), Walk(model, inputs)
    held: dict[int, list] = {number: walk.value(number) for number in range(len(inputs))}
    found: dict[Block, Prediction] = {}
    for call in walk.graph.calls:
        walk.make(call)
        held.update((x, walk.value(x)) for x in call.outputs if x in wanted)
        block = ends.get(call.outputs[0])
        if block is None:
            continue
        layer, instead, words = layers[block.made], outputs.value(block.given), "nothing"
        if layer is not None:
            given = list(patches.enough(layer, held[block.given]))
            StandIn(layer, layer.name, given, walk.value(block.made)).fit()
            instead, words = np.asarray(ops.convert_to_numpy(layer(instead))), _words(layer)
        change = outputs.change({block.made: instead})
        saves = _saves(walk.graph, block, flops, layer, held[block.given][0].shape)
        whole = dataclasses.replace(block, saves=saves)
        said = f"outputs change by {change:.1%} with {words} instead"
        found[whole] = Prediction(change, said, change)
    return found


def _fresh(graph: Graph, block: Block, stand_in: str | int | None) -> Any:
    """A stand-in that passes on what it takes; None where there is none."""
    layer = make_stand_in(graph, block, stand_in)
    if layer is not None:
        layer.build(graph.shapes[block.given])
        make_identity(layer)
    return layer


def _fitting(shapes: dict, wanted: set[int]) -> int:
    """The number of samples for which some tensors take no more than `_MOST` bytes.

    Of large maps few samples are enough: each gives as many rows as it has places.
    """
    numbers = sum(math.prod(size or 1 for size in shapes[x][1:]) for x in wanted)
    return _MOST // max(1, 4 * numbers)


def _enough(shapes: dict, blocks: dict[str, Block], layers: dict[int, Any]) -> float:
    """The number of samples that every stand-in can be fitted to, as `patches.enough` has it."""
    pairs = [(layers[x.made], shapes[x.given]) for x in blocks.values() if layers[x.made]]
    if any(None in shape[1:] for _, shape in pairs):
        return math.inf  # only the data tell
    empty = ((layer, np.empty((0, *shape[1:]))) for layer, shape in pairs)
    return max((patches.samples_enough(layer, x) for layer, x in empty), default=0)


def _first(batches: list, samples: float) -> list:
    """The first batches that hold so many samples, and those that the outputs are told by."""
    starts = itertools.accumulate((len(batch) for batch in batches), initial=0)
    most = max(SAMPLES, samples)
    return [batch for batch, start in zip(batches, starts, strict=False) if start < most]


def _words(layer: Any) -> str:
    size = getattr(layer, "kernel_size", None)
    return "a Dense layer" if size is None else f"a {'x'.join(map(str, size))} convolution"


def _saves(
    graph: Graph, block: Block, flops: tuple[int | None, ...], layer: Any, shape: tuple[int, ...]
) -> Cost:
    """The `Cost` of what goes, less that of what stands in for it and takes tensors of a shape."""
    operations = {id(graph.calls[i].operation): graph.calls[i].operation for i in block.calls}
    dense = sum(isinstance(x, keras.layers.Dense) for x in operations.values())
    known = [flops[i] for i in block.calls]
    counts = [count for count in known if count is not None]
    parameters = parameters_of(graph, block.calls)
    total = sum(counts) if len(counts) == len(known) else None
    if layer is not None:
        parameters -= layer.count_params()
        dense -= isinstance(layer, keras.layers.Dense)
        if total is not None:
            alone = keras.Sequential([keras.Input(shape[1:]), layer])
            total -= count_flops(alone).total
    return Cost(dense, parameters, total, {})
