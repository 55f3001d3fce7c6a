"""Which Dense layer a search takes out next."""

import dataclasses
import math
from typing import Any

import keras

from keras_layer_entropy.pruning.cost import Cost
from keras_layer_entropy.pruning.criteria import Situation, rank
from keras_layer_entropy.pruning.graph import flat_graph
from keras_layer_entropy.pruning.layer_parts import LayerPart, removable_layers
from keras_layer_entropy.pruning.parts import Plan, Prediction
from keras_layer_entropy.pruning.rewrite import without
from keras_layer_entropy.pruning.standing import Move, Moves, Standing
from keras_layer_entropy.recording.layers import choose_layers


def layer_moves(standing: Standing) -> Moves:
    """The layers that could go, each with what the criterion says.

    Args:
        standing: `Standing`.

    Returns:
        `Moves`.
    """
    parts, reasons = _parts(standing)
    rejected = {step.part: step for step in standing.rejected}
    stop = standing.enough
    open_ones = [] if stop else [p for path, p in parts.items() if path not in rejected]
    ranked = _ranked(standing, open_ones)
    for path, part in parts.items():
        if path in rejected:
            reasons[path] = standing.below(rejected[path])
        elif part not in ranked:
            reasons[path] = stop or "the criterion does not choose it"
    first = None
    if ranked:
        part, prediction = next(iter(ranked.items()))
        first = Move(
            part=part.path,
            members=part.members[1:],
            score=prediction.loss,
            reason=prediction.words,
            make=lambda: prediction.cut or _situation(standing).without(part),
        )
    return Moves(first, Plan(tuple(ranked), tuple(ranked.values()), reasons))


def _ranked(standing: Standing, parts: list[LayerPart]) -> dict[LayerPart, Prediction]:
    if not parts:
        return {}
    return rank(str(standing.options.criterion), _situation(standing), parts)


def _parts(standing: Standing) -> tuple[dict[str, LayerPart], dict[str, str]]:
    """As `removable_layers` of the model as it stands, of the layers that may go."""
    options, keep = standing.options, list(standing.options.keep)
    chosen = choose_layers(standing.original, options.layers)
    kept = choose_layers(standing.original, keep) if keep else {}
    found, reasons = removable_layers(standing.model, refit=options.refit)
    for path in found:
        if path in kept:
            reasons[path] = "it is to be kept"
        elif path not in chosen:
            reasons[path] = "it is not among the layers that may go"
    parts = {}
    for path, part in found.items():
        if path not in reasons:
            try:
                saves = _saved(standing.model, part, standing.sample)
                parts[path] = dataclasses.replace(part, saves=saves)
            except Exception as error:  # noqa: BLE001 - layers and backends may raise anything
                reasons[path] = f"{error}".partition("\n")[0]
    return parts, reasons


def _situation(standing: Standing) -> Situation:
    options = standing.options
    return Situation(
        student=standing.model,
        teacher=standing.teacher,
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


def _saved(model: keras.Model, part: LayerPart, sample: Any) -> Cost:
    """What a model saves without a part; errors of Keras where it cannot make or run that."""
    if part.input_shape == part.output_shape:
        gone = [call.operation for call in flat_graph(model).calls if call.path in part.members]
        weights = {id(v): v for operation in gone for v in getattr(operation, "weights", ())}
        saved = sum(math.prod(variable.shape) for variable in weights.values())
    else:
        smaller, _ = without(model, part)
        smaller(sample)  # layers that are built no longer look at shapes
        saved = model.count_params() - smaller.count_params()
    return Cost(dense_layers=1, parameters=saved, flops=None, latency={})
