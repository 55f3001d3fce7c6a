"""The untrained twin of a model: the same network with fresh weights, for a while."""

import contextlib
import copy

import numpy as np
from keras import ops


@contextlib.contextmanager
def untrained(model, seed=0):
    """Inside the block every layer of `model` that learns has fresh weights; afterwards its own.

    Layers without trainable weights (an adapted `Normalization`, say) stay as they are.

    Args:
        model: a built model.
        seed: seed of the initial weights.

    Raises:
        ValueError: a layer that cannot be made afresh from its configuration.

    Example:

    >>> import keras
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> before = model.get_weights()
    >>> with untrained(model, seed=1):
    ...     bool((model.get_weights()[0] != before[0]).all())
    True
    >>> bool((model.get_weights()[0] == before[0]).all())
    True
    """
    random = np.random.default_rng(seed)
    fresh = {}
    for layer in model._flatten_layers():
        if layer._trainable_variables:
            for variable, value in zip(_weights(layer), _fresh_values(layer, random), strict=True):
                fresh[id(variable)] = (variable, value)
    before = [(v, ops.convert_to_numpy(v)) for v, _ in fresh.values()]
    try:
        for variable, value in fresh.values():
            variable.assign(value)
        yield
    finally:
        for variable, value in before:
            variable.assign(value)


def _fresh_values(layer, random):
    """Initial values of the layer's own variables, from a twin made from its configuration."""
    try:
        config = _seeded(copy.deepcopy(layer.get_config()), random)
        twin = type(layer).from_config({**config, "trainable": True})
        twin.build_from_config(layer.get_build_config())
        values = [ops.convert_to_numpy(variable) for variable in _weights(twin)]
        shapes = [variable.shape for variable in _weights(layer)]
        if [value.shape for value in values] != [tuple(shape) for shape in shapes]:
            raise ValueError("its weights have other shapes than those of a fresh twin")
    except Exception as error:
        raise ValueError(
            f"The untrained twin needs a fresh {type(layer).__name__} {layer.name!r}, but it "
            f"cannot be made from its get_config(): {error}. Implement get_config() and build(), "
            "or measure without the baseline."
        ) from error
    return values


def _weights(layer):
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def _seeded(config, random):
    """The configuration with a new seed for everything random in it."""
    if isinstance(config, dict):
        if "seed" in config:
            config["seed"] = int(random.integers(2**31))
        for value in config.values():
            _seeded(value, random)
    elif isinstance(config, list | tuple):
        for value in config:
            _seeded(value, random)
    return config
