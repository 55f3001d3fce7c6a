"""Every kind of `fit` in the tests is repeated, plain and beside a monitor, to change nothing.

From where a test's own `fit` ended, the same `fit` runs twice more from one state: weights, the
optimizer's state and History have to be equal to the bit. Then everything is as the test left it.
A kind is what layers, loss, optimizer, metrics and data are of, and what `fit` and `compile` are
told; the first of a kind in each process is repeated.
"""

import collections
import functools
import random
import warnings

import keras
import numpy as np

from keras_layer_entropy import EntropyMonitor
from keras_layer_entropy.recording.passes import own_variables

tally = collections.Counter()
_kinds = set()
_inside = False


def repeating(plain):
    """`fit` of Keras that is repeated, plain and beside a monitor, and compared."""

    @functools.wraps(plain)
    def fit(model, *args, **kwargs):
        global _inside
        if _inside:  # a callback's own
            return plain(model, *args, **kwargs)
        _inside = True
        try:
            history = plain(model, *args, **kwargs)
            _compare(plain, model, args, kwargs)
            return history
        finally:
            _inside = False

    return fit


def _compare(plain, model, args, kwargs):
    kwargs = {**kwargs, "callbacks": None, "verbose": 0}  # callbacks have a state of their own
    data = (*args[:1], kwargs.get("x"), kwargs.get("validation_data"))
    if any(hasattr(part, "__next__") or isinstance(part, keras.utils.PyDataset) for part in data):
        tally["left out, because their data go on from where they are"] += 1
        return
    if (kind := _kind(model, args, kwargs)) in _kinds:
        tally["left out, because one of their kind was compared"] += 1
        return
    _kinds.add(kind)
    before, standing = _state(model), dict(vars(model))
    randoms = random.getstate(), np.random.get_state()
    try:
        wanted = _run(plain, model, args, kwargs, before)
        monitor = EntropyMonitor()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                found = _run(plain, model, args, {**kwargs, "callbacks": [monitor]}, before)
            except ValueError as error:
                if "no Dense layer" not in str(error):
                    raise
                tally["refused before they began, for want of a Dense layer"] += 1
                return
        asides = [w for w in said if "steps aside" in str(w.message)]
        if _differing(wanted, found) and any(
            _differing(wanted, _run(plain, model, args, kwargs, before)) for _ in range(3)
        ):
            # Data that reshuffle themselves; eager sums that threads add up in another order.
            tally["left out, because a plain run does not repeat itself to the bit"] += 1
            return
        how = "stepped aside" if asides else "measured" if monitor.profiles else "had no pass"
        tally[f"compared, beside a monitor that {how}"] += 1
        for name, (one, other) in _paired(wanted, found).items():
            np.testing.assert_array_equal(one, other, err_msg=f"{name}, beside a monitor")
    finally:
        _restore(model, before)
        model.history = standing.get("history")
        random.setstate(randoms[0])
        np.random.set_state(randoms[1])


def _kind(model, args, kwargs):
    """What one fit has in common with another that repeats it as well."""
    compiled = model._compile_config.config
    values = keras.tree.flatten((args, kwargs, compiled.get("loss"), compiled.get("metrics")))
    told = {k: v for k, v in {**kwargs, **compiled}.items() if isinstance(v, bool | int | str)}
    told.pop("epochs", None)
    layers = model._flatten_layers()
    return (
        frozenset((type(x).__qualname__, getattr(x, "dtype", None), x.trainable) for x in layers),
        type(model.optimizer).__qualname__,
        frozenset(type(value).__qualname__ for value in values),
        frozenset(map(repr, told.items())),
    )


def _run(plain, model, args, kwargs, state):
    """`(state, History)` after a fit that begins in a state."""
    _restore(model, state)
    keras.utils.set_random_seed(2)
    history = plain(model, *args, **kwargs).history
    return _state(model), history


def _paired(wanted, found):
    """Name -> (in the plain run, beside the monitor) of all that has to be equal."""
    states = zip(wanted[0], found[0], strict=True)
    pairs = {variable.path: (one, other) for (variable, one), (_, other) in states}
    return pairs | {key: (values, found[1][key]) for key, values in wanted[1].items()}


def _differing(wanted, found):
    pairs = _paired(wanted, found).values()
    return not all(np.array_equal(*pair, equal_nan=True) for pair in pairs)


def _state(model):
    """Every variable that training moves, with its value."""
    held = [v for layer in model._flatten_layers() for v in own_variables(layer)]
    variables = {id(v): v for v in (*model.variables, *held, *model.optimizer.variables)}
    return [
        (v, np.array(keras.ops.convert_to_numpy(v)))
        for v in variables.values()
        if "string" not in str(v.dtype)
    ]


def _restore(model, state):
    for variable, value in state:
        variable.assign(value)
