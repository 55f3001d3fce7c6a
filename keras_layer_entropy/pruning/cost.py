"""What a model costs: parameters, floating-point operations, measured latency."""

import dataclasses
import numbers
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_layer_entropy.pruning.flops import count_flops
from keras_layer_entropy.pruning.graph import opened

KEYS = ("flops", "parameters")  # what a target may be of


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a model.

    Attributes:
        dense_layers: number of Dense layers.
        parameters: number of parameters.
        flops: floating-point operations of a forward pass of one sample (`count_flops`), without
            those in `uncounted`; None where they were not counted, as of a subclassed model.
        latency: batch size -> median milliseconds of `predict_on_batch`.
        uncounted: paths of the layers and operations whose `flops` are not known.
    """

    dense_layers: int
    parameters: int
    flops: int | None
    latency: dict[int, float]
    uncounted: tuple[str, ...] = ()


def compare_costs(
    models: Sequence[keras.Model], x: Any, batch_sizes: Iterable[int] = (1, 256), rounds: int = 30
) -> list[Cost]:
    """The costs of models, their latencies measured in turn in one run.

    Args:
        models: list of built models that take the same inputs.
        x: inputs, at least one sample; repeated to fill a batch.
        batch_sizes: batch sizes to measure latency at.
        rounds: calls of each model at each batch size, after a warm-up.

    Returns:
        List of `Cost`.

    Example:

    >>> import keras
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, use_bias=False)])
    >>> (cost,) = compare_costs([model], np.ones((1, 4)), rounds=3)
    >>> cost.parameters, cost.flops
    (12, 24)
    """
    latencies: list[dict[int, float]] = [{} for _ in models]
    for size in batch_sizes:
        batch = tree.map_structure(lambda part, n=size: np.resize(part, (n, *part.shape[1:])), x)
        times = np.zeros((rounds + 2, len(models)))
        for row in times:
            for i, model in enumerate(models):
                start = time.perf_counter()
                model.predict_on_batch(batch)
                row[i] = time.perf_counter() - start
        for i, median in enumerate(np.median(times[2:], axis=0)):
            latencies[i][size] = float(1000 * median)
    return [cost_of(model, x, latency) for model, latency in zip(models, latencies, strict=True)]


def cost_of(model: keras.Model, x: Any, latency: Mapping[int, float] | None = None) -> Cost:
    """The `Cost` of a model whose latency was measured, or was not.

    Args:
        model: a built model.
        x: inputs, at least one sample.
        latency: batch size -> milliseconds.
    """
    dense_layers = sum(isinstance(layer, keras.layers.Dense) for layer in model._flatten_layers())
    flops: int | None = None
    uncounted: tuple[str, ...] = (model.name,)
    if opened(model) is not None:  # else its calls are code
        found = count_flops(model, x)
        flops, uncounted = found.total, found.unknown
    return Cost(dense_layers, model.count_params(), flops, dict(latency or {}), uncounted)


def shares(before: Cost, after: Cost) -> dict[str, float]:
    """Each of `KEYS` -> what of it is left, a share.

    Example:

    >>> shares(Cost(1, 100, 1000, {}), Cost(1, 50, 250, {}))
    {'flops': 0.25, 'parameters': 0.5}
    """
    return {key: (getattr(after, key) or 0) / max(1, getattr(before, key) or 0) for key in KEYS}


def saved(before: Cost, after: Cost, target: Mapping[str, float] | None) -> float:
    """The share of a cost that is saved, the mean over what a target is of; without one, of all.

    At least 1e-9, so that what saves nothing is the dearest.
    """
    left = shares(before, after)
    return max(1 - float(np.mean([left[key] for key in target or KEYS])), 1e-9)


def is_met(target: Mapping[str, float], before: Cost, after: Cost) -> bool:
    """Whether no more is left than may be."""
    left = shares(before, after)
    return all(left[key] <= share for key, share in target.items())


def check_target(target: Mapping[str, float]) -> None:
    """Raises ValueError for a target that is none."""
    good = isinstance(target, Mapping) and target and not set(target) - set(KEYS)
    if not good or not all(_is_share(share) for share in target.values()):
        raise ValueError(
            f"target={target!r}; expected a dict of some of {KEYS} and the share of those of the "
            "model that may remain, between 0 and 1: {'flops': 0.5}."
        )


def _is_share(value: object) -> bool:
    return isinstance(value, numbers.Real) and 0 < float(value) < 1
