"""Which Dense layer a search takes out next."""

import dataclasses
import math
from typing import Any

import keras

from keras_layer_entropy.pruning.choices import layers_of
from keras_layer_entropy.pruning.cost import Cost
from keras_layer_entropy.pruning.criteria import Situation, rank
from keras_layer_entropy.pruning.flops import Flops, count_flops
from keras_layer_entropy.pruning.layer_parts import LayerPart, removable_layers
from keras_layer_entropy.pruning.parts import LARGER, Plan, larger
from keras_layer_entropy.pruning.rewrite import without
from keras_layer_entropy.pruning.standing import Move, Moves, Standing
from keras_layer_entropy.recording.graph import flat_graph
from keras_layer_entropy.recording.layers import choose


def layer_moves(standing: Standing) -> Moves:
    """The layers that could go, each with what the criterion says.

    Args:
        standing: `Standing`.

    Returns:
        `Moves`.
    """
    parts, reasons = _parts(standing)
    rejected = {step.part: step for step in standing.rejected("layer")}
    stop = standing.enough
    open_ones = [] if stop else [p for path, p in parts.items() if path not in rejected]
    criterion = standing.options.criterion or "output_change"
    ranked = rank(criterion, _situation(standing), open_ones) if open_ones else {}
    for path, part in parts.items():
        if path in rejected:
            reasons[path] = standing.below(rejected[path])
        elif part not in ranked:
            reasons[path] = stop or "the criterion does not choose it"
    candidates = []
    if ranked:
        part, prediction = next(iter(ranked.items()))
        move = Move(
            kind="layer",
            part=part.path,
            members=part.members[1:],
            criterion=criterion,
            score=prediction.loss,
            reason=prediction.words,
            make=lambda: prediction.cut or _situation(standing).without(part),
        )
        candidates.append(move)
    return Moves(tuple(candidates), Plan(tuple(ranked), tuple(ranked.values()), reasons))


def _parts(standing: Standing) -> tuple[dict[str, LayerPart], dict[str, str]]:
    """As `removable_layers` of the model as it stands, of the layers that may go."""
    options = standing.options
    chosen, kept = layers_of(standing.original, options)
    if len(options.kinds) > 1 and not choose(standing.model, None)[0]:
        return {}, {}  # nothing of this kind
    found, reasons = removable_layers(standing.model, refit=options.refit)
    for path in found:
        if path in kept:
            reasons[path] = "it is to be kept"
        elif chosen is not None and path not in chosen:
            reasons[path] = "it is not among the layers that may go"
    flops, parts = count_flops(standing.model, standing.sample), {}
    for path, part in found.items():
        if path not in reasons:
            try:
                saves = _saved(standing.model, part, standing.sample, flops)
                if larger(saves):
                    reasons[path] = LARGER
                else:
                    parts[path] = dataclasses.replace(part, saves=saves)
            except Exception as error:  # noqa: BLE001 - layers and backends may raise anything
                reasons[path] = f"{error}".partition("\n")[0]
    return parts, reasons


def _situation(standing: Standing) -> Situation:
    options = standing.options
    return Situation(
        student=standing.model,
        teacher=standing.base("layer"),
        profile=standing.profile,
        train_data=standing.train_data(),
        validation_data=standing.validation_data,
        batch_size=options.batch_size,
        tolerance=options.tolerance,
        seed=standing.seed,
        refit=options.refit,
        train_steps=options.steps_per_epoch,
        validation_steps=options.validation_steps,
    )


def _saved(model: keras.Model, part: LayerPart, sample: Any, flops: Flops) -> Cost:
    """What a model saves without a part; errors of Keras where it cannot make or run that."""
    if part.input_shape == part.output_shape:
        calls = zip(flat_graph(model).calls, flops.per_call, strict=True)
        gone = [(call.operation, count) for call, count in calls if call.path in part.members]
        weights = {id(v): v for operation, _ in gone for v in getattr(operation, "weights", ())}
        parameters = sum(math.prod(variable.shape) for variable in weights.values())
        counts = [count for _, count in gone if count is not None]
        operations = sum(counts) if len(counts) == len(gone) else None
    else:
        smaller, _ = without(model, part)
        smaller(sample)  # layers that are built no longer look at shapes
        parameters = model.count_params() - smaller.count_params()
        operations = flops.total - count_flops(smaller, sample).total
    return Cost(dense_layers=1, parameters=parameters, flops=operations, latency={})
