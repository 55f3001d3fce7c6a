"""How long the calls of a model take, and what of that its parts take."""

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_layer_entropy.pruning.block_parts import find_blocks
from keras_layer_entropy.pruning.budget import Budget
from keras_layer_entropy.pruning.channels import find_channels
from keras_layer_entropy.pruning.cost import BATCH
from keras_layer_entropy.pruning.flops import count_flops
from keras_layer_entropy.pruning.parts import Part, Plan
from keras_layer_entropy.pruning.walking import Walk, batch_of
from keras_layer_entropy.recording.graph import Call, flat_graph, run

_FINE = 1e9


def timed(plan: Plan, model: keras.Model, x: Any) -> Plan:
    """A plan with the time that each part takes, in `Part.saves.latency` and `Plan.costs`.

    Args:
        plan: `Plan` for the model, with what each part saves and what the model costs.
        model: a built Sequential or functional model; it is not changed.
        x: inputs, one sample or more; repeated to fill a batch of 256.

    Returns:
        `Plan`; times are those of `time_calls`, shared out by `times_of`.
    """
    times = time_calls(model, x)
    # Some models take batches of one size alone.
    size = flat_graph(model).shapes[0][0] or BATCH
    parts = []
    for part, spent in zip(plan.parts, times_of(model, plan.parts, times), strict=True):
        assert part.saves is not None
        saves = dataclasses.replace(part.saves, latency={size: spent})
        parts.append(dataclasses.replace(part, saves=saves))
    first, *others = plan.costs
    whole = dataclasses.replace(first, latency={size: sum(times)})
    return dataclasses.replace(plan, parts=tuple(parts), costs=(whole, *others))


def time_calls(model: keras.Model, x: Any) -> tuple[float, ...]:
    """Milliseconds that each call of a model takes for a batch of 256 samples, made by itself.

    Each call is made twice, for the first time is that of preparations; the faster one counts. A
    whole model that is compiled takes less than the sum: what is made in one go there, and what it
    costs to call a layer from Python, are not known apart. So the shares are an approximation.

    Args:
        model, x: as for `timed`.

    Returns:
        A time for each of `flat_graph(model).calls`.

    Example:

    >>> layers = [keras.layers.Dense(64, "relu", name="a"), keras.layers.Dense(2, name="b")]
    >>> times = time_calls(keras.Sequential([keras.Input((8,)), *layers]), np.ones((1, 8)))
    >>> len(times), all(spent > 0 for spent in times)
    (2, True)
    """
    walk, times = Walk(model, batch_of(model, x, BATCH)), []
    for call in walk.graph.calls:
        given = [_on_device(value) for value in next(walk.batches(call))]
        (first, _), (second, made) = (_milliseconds(call, given) for _ in range(2))
        times.append(min(first, second))
        walk.put(call, [made])
    return tuple(times)


def _milliseconds(call: Call, given: list) -> tuple[float, list]:
    """How long a call takes, and what it gives."""
    start = time.perf_counter()
    made = run(call, given)
    for tensor in made:
        ops.convert_to_numpy(ops.reshape(tensor, (-1,))[:1])  # it may only have been asked for
    return 1000 * (time.perf_counter() - start), made


def _on_device(value: Any) -> Any:
    """An array of numbers as a tensor: to bring it there is no part of a call."""
    numbers = isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
    return ops.convert_to_tensor(value) if numbers else value


def times_of(model: keras.Model, parts: Sequence[Part], times: Sequence[float]) -> list[float]:
    """What of the time of a model goes with each of some parts, were it the only one to go.

    With a layer or a block go its calls: what stands in for a block is not counted, nor that what
    is behind a layer may take more or less then. With units a call takes less in proportion to the
    axes that they are along, as it does fewer operations (`budget.Budget`).

    Args:
        model: a built Sequential or functional model.
        parts: list of `Part` of any kinds.
        times: the time of each of `flat_graph(model).calls`.

    Returns:
        A time for each part.

    Example:

    >>> layers = [keras.layers.Dense(4, name=name) for name in "abc"]
    >>> model = keras.Sequential([keras.Input((4,)), *layers])
    >>> parts = [Part(kind="layer", path="b", members=("b",)),
    ...          Part(kind="unit", path="a", indices=(0,))]
    >>> [round(x, 6) for x in times_of(model, parts, [4.0, 2.0, 1.0])]  # of a and of b a quarter
    [2.0, 1.5]
    """
    split, found = _Split(model, parts), []
    for part in parts:
        left = split.left([part], times)
        found.append(sum(times) - left)
    return [float(spent) for spent in found]


def least_left(plan: Plan, model: keras.Model, x: Any) -> dict[str, float]:
    """`"flops"`, `"parameters"` -> about the share of a model that is left once all parts are gone.

    Nothing stands in for blocks here, so that hardly less can be left.

    Args:
        plan, model, x: as for `timed`.

    Example:

    >>> layers = [keras.layers.Dense(4, use_bias=False, name=name) for name in "abc"]
    >>> model = keras.Sequential([keras.Input((4,)), *layers])
    >>> plan = Plan((Part(kind="layer", path="b", members=("b",)),))
    >>> {key: round(share, 3) for key, share in least_left(plan, model, np.ones((1, 4))).items()}
    {'flops': 0.667, 'parameters': 0.667}
    """
    split, calls = _Split(model, plan.parts), flat_graph(model).calls
    counts = [float(count or 0) for count in count_flops(model, x).per_call]
    weights = {id(call.operation): getattr(call.operation, "weights", ()) for call in calls}
    # Weights of a layer that is called several times are those of its first call.
    sizes = [
        float(sum(math.prod(v.shape) for v in weights.pop(id(call.operation), ())))
        for call in calls
    ]
    amounts = {"flops": counts, "parameters": sizes}
    return {key: split.left(plan.parts, x) / max(sum(x), 1.0) for key, x in amounts.items()}


class _Split:
    """What goes of the calls of a model with parts."""

    def __init__(self, model: keras.Model, parts: Sequence[Part]) -> None:
        kinds = {part.kind for part in parts}
        self._calls = flat_graph(model).calls
        self._blocks = find_blocks(model)[0] if "block" in kinds else {}
        self._channels: Any = find_channels(model) if "unit" in kinds else None
        self._budgets: dict[tuple[float, ...], Budget] = {}  # of what each call has

    def left(self, parts: Sequence[Part], amounts: Sequence[float]) -> float:
        """What is left of an amount that each call has, once some parts are gone."""
        whole, gone, units = sum(amounts), set[int](), set[int]()
        for part in parts:
            if part.kind == "unit":
                roots = self._channels.roots(part.path)[list(part.indices)]
                units.update(roots.tolist())
            elif part.kind == "block":
                gone.update(self._blocks[part.path].calls)
            else:
                gone.update(i for i, call in enumerate(self._calls) if call.path in part.members)
        rest = [0.0 if i in gone else amount for i, amount in enumerate(amounts)]
        if not units or not sum(rest):
            return sum(rest)
        if (budget := self._budgets.get(tuple(rest))) is None:
            # A budget counts whole operations: times are too few for it.
            budget = Budget(self._channels, [_FINE * amount / whole for amount in rest], {})
            self._budgets[tuple(rest)] = budget
        return sum(rest) * budget.left_without(units)["flops"]
