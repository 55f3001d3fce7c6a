"""Take blocks out of a model, and refit what is left."""

import warnings
from collections.abc import Collection
from typing import Any

import keras
import numpy as np

from keras_layer_entropy.backend import Data
from keras_layer_entropy.measures.measure import listed
from keras_layer_entropy.pruning.block_parts import Block, find_blocks
from keras_layer_entropy.pruning.copying import Bypass
from keras_layer_entropy.pruning.optimizer_state import restart_averages
from keras_layer_entropy.pruning.parts import Plan
from keras_layer_entropy.pruning.repair import Pairs, repair
from keras_layer_entropy.pruning.rewrite import bypassed
from keras_layer_entropy.pruning.stand_ins import (
    AUTO,
    check_stand_in,
    make_identity,
    make_stand_in,
)
from keras_layer_entropy.pruning.units import calibration_source
from keras_layer_entropy.pruning.walking import inputs_of
from keras_layer_entropy.recording.graph import Graph, flat_graph
from keras_layer_entropy.recording.layers import choose_layers


def remove_blocks(
    model: keras.Model,
    blocks: str | Collection[str] | Plan,
    calibration_data: Data = None,
    *,
    stand_in: str | int | None = AUTO,
    batch_size: int = 256,
    steps: int | None = None,
) -> keras.Model:
    """The model without some blocks: what came into each goes on in place of what came out.

    Blocks are residual branches, composite layers of other libraries, and convolutions of one
    shape (`block_parts.find_blocks`). With calibration data a linear layer stands in for a branch
    or a composite layer where that is worth it, and all layers behind are refitted in closed form,
    in the order of the forward pass: each kernel becomes the ridge regression of what it computed
    before on what it is given now; a stand-in is fitted to what came out of its block. No labels,
    no training. Neighbours, one of which takes what the other gives, share one stand-in.

    Args:
        model: a built Sequential or functional model, nested as you like; it is not changed.
        blocks: name of a block, that of the sum that a branch joins, say (`"conv2_block3_add"`), or
            several; or the `Plan` of `choose_blocks`.
        calibration_data: `(x, y)` or `x` arrays, a `tf.data.Dataset` or a `PyDataset`; labels are
            not used. All of it is held in memory; what the layers give for it, beyond a GiB of each
            model, in temporary files. Without, what remains keeps its weights, with a warning, and
            nothing stands in for anything.
        stand_in: what stands in for a branch or composite layer, as for
            `stand_ins.make_stand_in`: `"auto"`, a kernel size, or None for nothing.
        batch_size: batch size for arrays.
        steps: number of batches of the calibration data to read, None for all.

    Returns:
        A new `keras.Model`, compiled like the old one; stand-ins are called `<block>_linear` and
        start with fresh slots of the optimizer.

    Raises:
        ValueError: no such block, or one that cannot go, with the reason; a stand-in as large as
            its block; data that do not fit or lead to values that are not finite.

    Example:

    >>> x = inputs = keras.Input((8,))
    >>> for number in (1, 2):
    ...     branch = keras.layers.Dense(32, "relu")(x)
    ...     x = keras.layers.Add(name=f"sum_{number}")([x, keras.layers.Dense(8)(branch)])
    >>> model = keras.Model(inputs, keras.layers.Dense(2, name="out")(x))
    >>> smaller = remove_blocks(model, "sum_2", np.random.normal(size=(100, 8)))
    >>> [layer.name for layer in smaller.layers[-3:]]
    ['sum_1', 'sum_2_linear', 'out']
    """
    return take_out_blocks(
        model, blocks, calibration_data, stand_in, batch_size=batch_size, steps=steps
    )[0]


def take_out_blocks(
    model: keras.Model,
    blocks: str | Collection[str] | Plan,
    calibration_data: Data,
    stand_in: str | int | None = AUTO,
    *,
    batch_size: int = 256,
    steps: int | None = None,
) -> tuple[keras.Model, dict[str, float]]:
    """`remove_blocks` with what came of the regressions.

    Returns:
        `(model, residuals)`: the new model, and path -> relative residual of its regression.
    """
    check_stand_in(stand_in)
    graph, chosen = flat_graph(model), _chosen(model, blocks)
    if calibration_data is None:
        warnings.warn(
            "Without calibration_data= nothing is refitted, and nothing stands in for "
            f"{listed([block.path for block in chosen])}: what is behind is given something else.",
            stacklevel=3,
        )
        return _without(model, graph, chosen, None)[0], {}
    source = calibration_source(model, calibration_data, batch_size, steps)
    inputs = inputs_of(model, source)
    smaller, pairs = _without(model, graph, chosen, stand_in)
    for call in pairs.stand_ins.values():
        make_identity(call.operation)
    residuals, _ = repair(smaller, model, inputs, {}, _whole, pairs=pairs)
    refitted = choose_layers(smaller, list(residuals)).values() if residuals else ()
    restart_averages(smaller, [variable for layer in refitted for variable in layer.variables])
    return smaller, residuals


def without_blocks(
    model: keras.Model, blocks: Collection[str], stand_in: str | int | None
) -> keras.Model:
    """The model without some blocks, with stand-ins that are not fitted to anything."""
    return _without(model, flat_graph(model), _chosen(model, blocks), stand_in)[0]


def _whole(_number: int, array: np.ndarray, _axes: tuple[int, ...] = ()) -> np.ndarray:
    """No unit of a tensor is gone."""
    return array


def _chosen(model: keras.Model, names: str | Collection[str] | Plan) -> list[Block]:
    """The blocks that are named, in the order of the forward pass, those inside others aside."""
    if isinstance(names, Plan):
        if other := [part.name for part in names.parts if part.kind != "block"]:
            raise ValueError(f"The plan has parts that are no blocks: {', '.join(other)}.")
        names = [part.path for part in names.parts]
    given = [names] if isinstance(names, str) else list(names)
    if not given:
        raise ValueError("No block is named: there is nothing to take out.")
    blocks, reasons = find_blocks(model)
    for name in given:
        if name in reasons:
            raise ValueError(f"{name!r} cannot be taken out of {model.name!r}: {reasons[name]}.")
        if name not in blocks:
            raise ValueError(
                f"{name!r} is no block of {model.name!r}; it has "
                f"{listed(list(blocks)) or 'none that can go'}."
            )
    found = [block for name, block in blocks.items() if name in given]
    return [
        block
        for block in found
        if not any(block is not other and set(block.calls) < set(other.calls) for other in found)
    ]


def _without(
    model: keras.Model, graph: Graph, blocks: list[Block], stand_in: str | int | None
) -> tuple[keras.Model, Pairs]:
    """The model without blocks, and which calls of it are which."""
    bypasses: list[Bypass] = []
    for block in blocks:
        layer, tensor = make_stand_in(graph, block, stand_in), block.tensor
        before = next((x for x in bypasses if x.layer and x.node.outputs[0] is tensor), None)
        # Of neighbours the second stand-in takes what the first one took.
        if layer is not None and before is not None and _goes_only_into(graph, block):
            tensor = before.tensor
        bypasses.append(Bypass(block.node, tensor, layer))
    what = f"{model.name!r} without {listed([block.path for block in blocks])}"
    new, nodes = bypassed(model, bypasses, what)
    return new, _pairs(graph, flat_graph(new), nodes, blocks)


def _goes_only_into(graph: Graph, block: Block) -> bool:
    """Whether what a block takes goes nowhere else."""
    takers = {i for i, call in enumerate(graph.calls) if block.given in call.inputs}
    return takers <= set(block.calls) and block.given not in graph.outputs


def _pairs(graph: Graph, smaller: Graph, nodes: list[Any], blocks: list[Block]) -> Pairs:
    """Which call of the smaller graph is which of the larger one."""
    came_from = {id(new): id(old) for old, new in nodes}
    places: dict[int, list[int]] = {}
    for index, call in enumerate(graph.calls):
        places.setdefault(id(call.node), []).append(index)
    ends = {id(block.node) for block in blocks}
    same, stand_ins = {}, {}
    numbers = {number: number for number in range(min(c.outputs[0] for c in graph.calls))}
    for call in smaller.calls:
        old = came_from[id(call.node)]
        index = places[old].pop(0)  # of models that are called several times, in their order
        if old in ends:
            stand_ins[index] = call
        else:
            same[index] = call
            numbers.update(zip(graph.calls[index].outputs, call.outputs, strict=True))
    # Where the other branch is gone, too, nothing is left to make up for the lost one.
    lost = {numbers[x.given]: x.lost for x in blocks if x.lost is not None and x.given in numbers}
    return Pairs(same, stand_ins, lost)
