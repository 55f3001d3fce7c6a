"""States as plain arrays: those of parts of the data make that of the whole.

A state that is a `keras.metrics.Metric` like any other adds up, as it does across replicas. One
that does not, or that keeps its numbers more exactly than in its variables, has two methods of its
own: `arrays()`, a dict of arrays, and `set_arrays(arrays)`. Names begin with how they join:

- `sum/`: they are added;
- `first/`: the first of them whose first entry is not 0;
- `highest/`: of all rows those of highest `highest/priority`, `highest/most` of them.
"""

from collections.abc import Iterable, Mapping, Sequence

import keras
import numpy as np
from keras import ops

Arrays = dict[str, np.ndarray]


def arrays_of(metrics: Iterable[keras.metrics.Metric]) -> Arrays:
    """The states of metrics as arrays, `"<number>/<how they join>/<name>"` each.

    Args:
        metrics: list of `keras.metrics.Metric`.

    Raises:
        ValueError: a state that does not add up.

    Example:

    >>> mean = keras.metrics.Mean()
    >>> mean.update_state([1.0, 2.0])
    >>> {name: float(value) for name, value in arrays_of([mean]).items()}
    {'0/sum/0': 3.0, '0/sum/1': 2.0}
    """
    return {
        f"{number}/{name}": value
        for number, metric in enumerate(metrics)
        for name, value in _arrays(metric).items()
    }


def set_arrays(metrics: Iterable[keras.metrics.Metric], arrays: Mapping[str, np.ndarray]) -> None:
    """Sets the states of metrics to what `arrays_of` made of the same metrics."""
    for number, metric in enumerate(metrics):
        prefix = f"{number}/"
        own = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
        restore = getattr(metric, "set_arrays", None)
        if restore is not None:
            restore(own)
            continue
        for place, variable in enumerate(metric.variables):
            variable.assign(ops.cast(own[f"sum/{place}"], variable.dtype))


def joined(parts: Sequence[Mapping[str, np.ndarray]]) -> Arrays:
    """The state of the whole from those of its parts, in any order.

    Args:
        parts: what `arrays_of` made of the same metrics on each part.

    Example:

    >>> {name: float(x) for name, x in joined([{"0/sum/0": 1.0}, {"0/sum/0": 2.0}]).items()}
    {'0/sum/0': 3.0}
    """
    found = {}
    for name in parts[0]:
        rule = name.split("/")[1]
        if rule == "sum":
            found[name] = np.sum([part[name] for part in parts], axis=0)
        elif rule == "first":
            found[name] = next((part[name] for part in parts if part[name][0]), parts[0][name])
        elif name.endswith("/most"):
            found[name] = parts[0][name]
        else:
            group = name.rpartition("/")[0]
            priority = np.concatenate([part[f"{group}/priority"] for part in parts])
            highest = np.argsort(-priority, kind="stable")[: int(parts[0][f"{group}/most"])]
            found[name] = np.concatenate([part[name] for part in parts])[highest]
    return found


def _arrays(metric: keras.metrics.Metric) -> Arrays:
    own = getattr(metric, "arrays", None)
    if own is not None:
        return own()
    if any(variable.aggregation != "sum" for variable in metric.variables):
        raise ValueError(
            f"The state of {metric.name!r} ({type(metric).__name__}) does not add up, so that "
            "parts of the data cannot be joined: leave that measure, or that metric, out."
        )
    return {
        f"sum/{place}": np.asarray(ops.convert_to_numpy(variable), np.float64)
        for place, variable in enumerate(metric.variables)
    }
