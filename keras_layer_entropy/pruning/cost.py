"""What a model costs: parameters, floating-point operations, measured latency."""

import dataclasses
import numbers
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_layer_entropy.measures.measure import listed
from keras_layer_entropy.pruning.flops import count_flops
from keras_layer_entropy.recording.graph import opened

KEYS = ("flops", "parameters")  # what is counted, and a target may be of
_LATENCY = re.compile(r"latency(?:@([1-9]\d*))?")  # what is measured, at a batch size
BATCH = 256  # samples, where nobody says how many


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

    def __sub__(self, saves: "Cost") -> "Cost":
        """What is left of it without what saves so much; FLOPs that are not known save nothing."""
        times = {k: t - saves.latency[k] for k, t in self.latency.items() if k in saves.latency}
        return dataclasses.replace(
            self,
            dense_layers=self.dense_layers - saves.dense_layers,
            parameters=self.parameters - saves.parameters,
            flops=None if self.flops is None else self.flops - (saves.flops or 0),
            latency=times,
        )


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
        x: inputs, at least one sample; None where the model leaves no sizes open.
        latency: batch size -> milliseconds.
    """
    cost = dataclasses.replace(size_of(model), latency=dict(latency or {}))
    if opened(model) is None:  # its calls are code
        return cost
    found = count_flops(model, x)
    return dataclasses.replace(cost, flops=found.total, uncounted=found.unknown)


def size_of(model: keras.Model) -> Cost:
    """The `Cost` of a built model whose operations are not counted."""
    dense_layers = sum(isinstance(layer, keras.layers.Dense) for layer in model._flatten_layers())
    return Cost(dense_layers, model.count_params(), None, {}, (model.name,))


def shares(before: Cost, after: Cost) -> dict[str, float]:
    """Each of `KEYS` -> what of it is left, a share; and latencies, if they were measured.

    Example:

    >>> shares(Cost(1, 100, 1000, {1: 4.0}), Cost(1, 50, 250, {1: 3.0}))
    {'flops': 0.25, 'parameters': 0.5, 'latency@1': 0.75}
    """
    left = {key: (getattr(after, key) or 0) / max(1, getattr(before, key) or 0) for key in KEYS}
    for size, time_before in before.latency.items():
        if size in after.latency:
            left[f"latency@{size}"] = after.latency[size] / time_before
    return left


def is_met(target: Mapping[str, float], before: Cost, after: Cost) -> bool:
    """Whether no more is left than may be; of a latency that was not measured, all is."""
    left = shares(before, after)
    return all(left.get(key, 1.0) <= share for key, share in target.items())


def counted(target: Mapping[str, float]) -> dict[str, float]:
    """What of a target is counted, and not measured."""
    return {key: share for key, share in target.items() if key in KEYS}


def batch_sizes(target: Mapping[str, float]) -> tuple[int, ...]:
    """The batch sizes at which a target says what latency may remain."""
    found = [_LATENCY.fullmatch(key) for key in target]
    return tuple(int(match[1] or BATCH) for match in found if match)


def with_sizes(target: Mapping[str, float]) -> dict[str, float]:
    """A target that says of each latency at which batch size.

    Example:

    >>> with_sizes({"flops": 0.5, "latency": 0.7})
    {'flops': 0.5, 'latency@256': 0.7}
    """
    return {f"latency@{BATCH}" if key == "latency" else key: x for key, x in target.items()}


def check_target(target: Mapping[str, float], *, measured: bool = False) -> None:
    """Raises ValueError for a target that is none.

    Args:
        target: what was given.
        measured: whether it may be of `"latency"`, too, that of a batch of 256, or of
            `"latency@1"`, say.
    """
    good = isinstance(target, Mapping) and target and all(map(_is_share, target.values()))
    if good and all(key in KEYS or (measured and _is_latency(key)) for key in target):
        return
    kinds = listed([*map(repr, KEYS), *(["'latency'", "'latency@1'"] if measured else [])])
    hint = ""
    if isinstance(target, Mapping) and any(map(_is_latency, target)) and not measured:
        hint = " Latency is known once it is measured: prune_model does that after each step."
    raise ValueError(
        f"target={target!r}; expected a dict of some of {kinds} and the share of those of the "
        f"model that may remain, between 0 and 1: {{'flops': 0.5}}.{hint}"
    )


def _is_latency(key: object) -> bool:
    return isinstance(key, str) and _LATENCY.fullmatch(key) is not None


def _is_share(value: object) -> bool:
    return isinstance(value, numbers.Real) and 0 < float(value) < 1
