"""Compile a rewritten model like the old one, and carry over the state of its optimizer."""

import warnings

import keras
import numpy as np
from keras import tree

from keras_layer_entropy.model_files import custom_objects
from keras_layer_entropy.pruning.copying import Copies


def copy_compilation(model, new, variables):
    """Compiles `new` like `model`, with an optimizer that goes on where the old one stands.

    Args:
        model: the old model; where it was never compiled, nothing happens.
        new: the new model.
        variables: id of each surviving variable of the old model -> its twin. Optimizer slots of
            all others start anew.
    """
    if not model.compiled:
        return
    try:
        with keras.saving.custom_object_scope(custom_objects(model)):
            optimizer = type(model.optimizer).from_config(model.optimizer.get_config())
            new.compile(**{**fresh_metrics(model), "optimizer": optimizer})
    except Exception as error:
        raise ValueError(
            f"The optimizer of {model.name!r} cannot be made again from its get_config(): {error}"
        ) from error
    _copy_state(model.optimizer, new.optimizer, new, variables)


def set_learning_rate(model, learning_rate):
    """Gives a compiled model another learning rate, or schedule; the optimizer's state stays."""
    old = model.optimizer
    inner = getattr(old, "inner_optimizer", old)
    if isinstance(inner._learning_rate, keras.Variable) and isinstance(learning_rate, float):
        inner.learning_rate = learning_rate
        return
    # Keras does not let a schedule be replaced.
    with keras.saving.custom_object_scope(custom_objects(model)):
        optimizer = type(old).from_config(old.get_config())
    made = getattr(optimizer, "inner_optimizer", optimizer)
    made = type(made).from_config({**made.get_config(), "learning_rate": learning_rate})
    if inner is old:
        optimizer = made
    else:
        optimizer.inner_optimizer = made
    model.compile(**{**fresh_metrics(model), "optimizer": optimizer})
    _copy_state(old, model.optimizer, model, {id(v): v for v in model.variables})
    if isinstance(made._learning_rate, keras.Variable):
        made.learning_rate = learning_rate


def learning_rate_of(model):
    """The learning rate of a compiled model, a float, or its schedule."""
    inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    rate = inner._learning_rate
    return float(rate) if isinstance(rate, keras.Variable) else rate


def fresh_metrics(model):
    """The arguments that a model was compiled with, with metrics of their own state."""
    arguments = dict(model._compile_config.config)
    copies = Copies(model)
    for kind in ("metrics", "weighted_metrics"):
        metrics = tree.flatten(arguments.get(kind))
        arguments[kind] = copies(arguments.get(kind))
        for metric in metrics:
            if isinstance(metric, keras.metrics.Metric):
                copies(metric).reset_state()
    return arguments


def assign_copy(variable, other):
    """Gives a variable the value of another one, not its buffer: JAX donates buffers."""
    variable.assign(np.array(keras.ops.convert_to_numpy(other)))


def _copy_state(old, new, model, variables):
    if not old.built:
        return
    if not new.built:
        # In the model's order, in which a loaded optimizer is built again; then what was trained
        # before it was frozen.
        order = {id(variable): variable for variable in model.trainable_variables}
        for variable in old._trainable_variables:
            if id(variable) in variables:
                order.setdefault(id(variables[id(variable)]), variables[id(variable)])
        new.build(list(order.values()))
    accounted = _copy_slots(old, new, variables)
    if hasattr(old, "inner_optimizer"):  # LossScaleOptimizer
        _copy_state(old.inner_optimizer, new.inner_optimizer, model, variables)
        accounted |= {id(variable) for variable in old.inner_optimizer.variables}
    lost = [variable.name for variable in old.variables if id(variable) not in accounted]
    if lost:
        warnings.warn(
            f"Some state of the optimizer {type(old).__name__} starts anew, because nothing tells "
            f"which weights it belongs to: {', '.join(lost[:5])}.",
            stacklevel=5,
        )


def _copy_slots(old, new, variables):
    """Copies single variables and lists of one variable per weight; ids of what was seen."""
    trained = old._trainable_variables
    place = {id(v): i for i, v in enumerate(new._trainable_variables)}
    accounted = set()
    for name, value in vars(old).items():
        if name in ("_variables", "_trainable_variables"):
            continue
        twin = getattr(new, name, None)
        if isinstance(value, keras.Variable) and not isinstance(twin, keras.Variable):
            accounted.add(id(value))  # a learning rate that a schedule has replaced
        elif isinstance(value, keras.Variable):
            assign_copy(twin, value)
            accounted.add(id(value))
        elif isinstance(value, list) and len(value) == len(trained):
            for weight, slot in zip(trained, value, strict=True):
                if not isinstance(slot, keras.Variable):
                    continue
                accounted.add(id(slot))
                index = place.get(id(variables.get(id(weight))))
                if index is not None and twin[index].shape == slot.shape:
                    assign_copy(twin[index], slot)
    return accounted
