"""Compile a model again; metrics like others, with a state of their own."""

import copy

import keras


def fresh_metric(metric):
    """A metric like another one, with a state of its own; names and functions stay what they are.

    A metric that its `get_config` does not tell whole (Keras cannot find a function of somebody's
    own again, and a class may leave out its arguments) is copied as it is, and reset.

    Example:

    >>> import numpy as np
    >>> def miss(y_true, y_pred):
    ...     return y_true - y_pred
    >>> metric = keras.metrics.MeanMetricWrapper(miss, name="miss")
    >>> metric.update_state(np.ones(1), np.zeros(1))
    >>> twin = fresh_metric(metric)
    >>> twin.name, float(twin.result()), float(metric.result())
    ('miss', 0.0, 1.0)
    """
    if not isinstance(metric, keras.metrics.Metric):
        return metric
    if type(metric) is keras.metrics.MeanMetricWrapper:
        arguments = dict(name=metric.name, dtype=metric.dtype, **metric._fn_kwargs)
        return keras.metrics.MeanMetricWrapper(metric._fn, **arguments)
    if type(metric).__module__.partition(".")[0] == "keras":
        return type(metric).from_config(metric.get_config())
    try:
        twin = copy.deepcopy(metric)
    except Exception:  # whatever somebody's class holds that cannot be copied  # noqa: BLE001
        return type(metric).from_config(metric.get_config())
    twin.reset_state()
    return twin


def recompile(model, **arguments):
    """`model.compile`, which keeps a loss or metrics that it is not given: here they go."""
    model._compile_loss = model._compile_metrics = None
    model.compile(**arguments)
