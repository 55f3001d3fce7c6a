"""A model made again from its parts: layers, weights, compilation, optimizer state."""

import copy
import dataclasses
import warnings
from collections.abc import Callable

import keras
import numpy as np
from keras.src.backend.common.masking import get_keras_mask
from keras.src.layers.merging.base_merge import Merge
from keras.src.utils.naming import auto_name

from keras_layer_entropy.model_files.keras2.configuration import name_of
from keras_layer_entropy.model_files.keras2.training import compile_arguments, restore_optimizer


@dataclasses.dataclass(frozen=True)
class Parts:
    """A model as it was found in a file.

    Attributes:
        config: for `keras.saving.deserialize_keras_object`.
        training: how it was compiled, or None.
        restore: model -> `OptimizerState` or None; gives every weight its value, or raises
            ValueError.
    """

    config: dict
    training: dict | None
    restore: Callable


def rebuild(saved):
    """The model as a `keras.Model`.

    Args:
        saved: `Parts`, inspected.

    Raises:
        ValueError: it cannot be made, or a weight has no place.
    """
    model = keras.saving.deserialize_keras_object(copy.deepcopy(saved.config), safe_mode=True)
    if not model.built:
        raise ValueError(f"The model {model.name!r} does not tell the shape of its inputs.")
    state = saved.restore(model)
    _check_masks(model)
    for part in model._flatten_layers():
        if not part.trainable and not isinstance(part, keras.Model):
            for weight in part.weights:  # of layers that it made when it was built, too
                weight.trainable = False
        if hasattr(part, "finalize_state"):  # what a Normalization computes from its weights
            part.finalize_state()
    if saved.training is not None:
        _compile(model, saved, state)
    return model


def reserve_names(config):
    """Names that Keras makes up, of operations on masks, shall not be those of the layers."""
    layers = config["config"].get("layers", ())
    names = {layer["config"].get("name") for layer in layers}
    for class_name in {layer["class_name"] for layer in layers}:
        while auto_name(class_name) in names:
            pass


def _check_masks(model):
    """Keras 2 joined the masks of merged tensors by "and", Keras 3 otherwise."""
    for part in model._flatten_layers():
        for node in part._inbound_nodes if isinstance(part, Merge) else ():
            masks = [get_keras_mask(tensor) for tensor in node.input_tensors]
            if any(mask is not masks[0] for mask in masks):
                warnings.warn(
                    f"{part.name!r} merges tensors with different masks, which Keras 3 joins in "
                    "another way: compare the outputs before you rely on the model.",
                    stacklevel=5,
                )


def _compile(model, saved, state):
    try:
        model.compile(**compile_arguments(saved.training, len(model.outputs)))
    except (ValueError, TypeError, KeyError) as error:
        warnings.warn(
            f"The model was loaded without its loss and metrics, which cannot be made: {error}",
            stacklevel=5,
        )
        return
    model.optimizer.build(model.trainable_variables)
    try:
        if state is None:
            raise ValueError("it is not in the file")
        restore_optimizer(model.optimizer, state, in_order(model, saved.config, "trainable"))
    except ValueError as error:
        warnings.warn(
            f"The optimizer starts without its state: {error}. Training goes on from the saved "
            "weights, but with fresh moments.",
            stacklevel=5,
        )


def in_order(model, config, kind):
    """The model's "trainable" or "non_trainable" weights, in the order of its configuration."""
    found = {}
    for each, part in layers_in(model, config):
        found |= {id(variable): variable for variable in in_part(part, each, kind)}
    return list(found.values())


def in_part(part, config, kind):
    """The same of a layer or model and its configuration."""
    is_model = isinstance(part, keras.Model) and "layers" in config["config"]
    return in_order(part, config, kind) if is_model else getattr(part, f"{kind}_weights")


def layers_in(model, config):
    """`(configuration, layer)` of each layer in a model that may have weights.

    By their names; those without one in the configuration, of one's own, in their order.
    """
    abouts = [each for each in config["config"]["layers"] if each["class_name"] != "InputLayer"]
    names = [configured_name(each) for each in abouts]
    named = {id(model.get_layer(name_of(name))) for name in names if name is not None}
    others = [
        part
        for part in model.layers
        if id(part) not in named and not isinstance(part, keras.layers.InputLayer)
    ]
    if len(others) != names.count(None):
        raise ValueError(f"{names.count(None)} layers without a name, but {len(others)} to be them")
    rest = iter(others)
    return [
        (each, next(rest) if name is None else model.get_layer(name_of(name)))
        for each, name in zip(abouts, names, strict=True)
    ]


def configured_name(config):
    """The name that a layer's configuration gives it; None where it gives none."""
    return config["config"].get("name")


def fill(variable, value, name):
    """Assigns a value of exactly its shape."""
    if tuple(variable.shape) != np.shape(value):
        raise ValueError(
            f"The weight {name} has shape {np.shape(value)}; {variable.path} expects "
            f"{tuple(variable.shape)}."
        )
    variable.assign(value)
