"""Compile a rewritten model like the old one, and carry over the state of its optimizer."""

import warnings

import keras
import numpy as np
from keras import tree
from keras.src.utils.tracking import DotNotTrackScope

from keras_layer_entropy.pruning.copying import Copies


def copy_compilation(model, new, variables, cuts=None):
    """Compiles `new` like `model`, with an optimizer that goes on where the old one stands.

    Args:
        model: the old model; where it was never compiled, nothing happens.
        new: the new model.
        variables: id of each variable of the old model that is in the new one, too -> its twin.
            Optimizer slots of all others, and of those with another shape now, start anew.
        cuts: id of a variable of the old model -> list of (axis, places that are kept); slots are
            cut like their variables.
    """
    if not model.compiled:
        return
    try:
        optimizer = _unbuilt_copy(model, variables)
    except Exception as error:
        raise ValueError(
            f"The optimizer of {model.name!r}, {type(model.optimizer).__name__}, cannot be copied: "
            f"{error}"
        ) from error
    new.compile(**{**fresh_metrics(model), "optimizer": optimizer})
    _copy_optimizer(model.optimizer, optimizer, new, variables, cuts or {})


def set_learning_rate(model, learning_rate):
    """Gives a compiled model another learning rate, or schedule; the optimizer's state stays."""
    old = model.optimizer
    inner = getattr(old, "inner_optimizer", old)
    if isinstance(inner._learning_rate, keras.Variable) and isinstance(learning_rate, float):
        inner.learning_rate = learning_rate
        return
    # Keras does not let a schedule be replaced.
    variables = {id(variable): variable for variable in model.variables}
    optimizer = _unbuilt_copy(model, variables)
    _replace_learning_rate(getattr(optimizer, "inner_optimizer", optimizer), learning_rate)
    model.compile(**{**fresh_metrics(model), "optimizer": optimizer})
    _copy_optimizer(old, optimizer, model, variables, {})


def restart_averages(model, variables):
    """Lets an optimizer that averages weights begin again with what some of them are now."""
    optimizer = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if optimizer is None or not optimizer.built or not optimizer.use_ema:
        return
    averages = optimizer._model_variables_moving_average
    for weight, average in zip(optimizer._trainable_variables, averages, strict=True):
        if any(weight is variable for variable in variables):
            assign_copy(average, weight)


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
        arguments[kind] = reset_copies(arguments.get(kind), copies)
    return arguments


def reset_copies(metrics, copies):
    """Copies, by a `Copies`, of a structure of metrics, with a state of their own."""
    for metric in tree.flatten(metrics):
        if isinstance(metric, keras.metrics.Metric):
            copies(metric).reset_state()
    return copies(metrics)


def recompile(model, **arguments):
    """`model.compile`, which keeps a loss or metrics that it is not given: here they go."""
    model._compile_loss = model._compile_metrics = None
    model.compile(**arguments)


def assign_copy(variable, other):
    """Gives a variable the value of another one, not its buffer: JAX donates buffers."""
    variable.assign(np.array(keras.ops.convert_to_numpy(other)))


def _unbuilt_copy(model, variables):
    """A copy of a model's optimizer without slots, that is still to be built."""
    copies = Copies(model)
    optimizers = _with_inner(model.optimizer)
    weights = [v for old in optimizers for v in getattr(old, "_trainable_variables", ())]
    slots = [slot for old in optimizers for slot in _slots(old)]
    for variable in (*weights, *slots):
        copies.keep(variable, variable)  # the copy lets go of them
    made = copies(model.optimizer)
    gone = set(map(id, slots))
    for old in optimizers:
        new = copies(old)
        _set_variables(new, [variable for variable in new._variables if id(variable) not in gone])
        new._trainable_variables, new._trainable_variables_indices = [], {}
        new.built = False
        vars(new).pop("_exclude_from_weight_decay_cache", None)
        excluded = vars(old).get("_exclude_from_weight_decay")
        if excluded:  # keys, which differ from backend to backend
            new._exclude_from_weight_decay = {
                new._var_key(variables[id(variable)])
                for variable in model.variables
                if id(variable) in variables and old._var_key(variable) in excluded
            }
    return made


def _with_inner(optimizer):
    """An optimizer and, where it is a `LossScaleOptimizer`, the one inside."""
    inner = getattr(optimizer, "inner_optimizer", None)
    return [optimizer] if inner is None else [optimizer, inner]


def _slots(optimizer):
    """What an optimizer keeps for each weight."""
    lists = [
        value
        for name, value in vars(optimizer).items()
        if name not in ("_variables", "_trainable_variables") and _is_of_weights(optimizer, value)
    ]
    return [slot for value in lists for slot in value if isinstance(slot, keras.Variable)]


def _is_of_weights(optimizer, value):
    """Whether a value is a list with something for each weight."""
    return isinstance(value, list) and 0 < len(value) == len(optimizer._trainable_variables)


def _replace_learning_rate(optimizer, learning_rate):
    old = optimizer._learning_rate
    variables = [variable for variable in optimizer._variables if variable is not old]
    if isinstance(learning_rate, float):
        with keras.name_scope(optimizer.name):
            learning_rate = keras.Variable(
                learning_rate,
                name="learning_rate",
                dtype=keras.config.floatx(),
                trainable=False,
                aggregation="only_first_replica",
            )
        variables.insert(1, learning_rate)
    _set_variables(optimizer, variables)
    optimizer._learning_rate = learning_rate


def _build(optimizer, variables):
    before = [(part, list(part._variables)) for part in _with_inner(optimizer)]
    optimizer.build(variables)
    # What `build` makes takes the place of the copies of what it made before.
    for part, made in before:
        held = {id(value) for value in vars(part).values()}
        gone = {id(variable) for variable in made if id(variable) not in held}
        _set_variables(part, [variable for variable in part._variables if id(variable) not in gone])


def _set_variables(optimizer, variables):
    with DotNotTrackScope():
        optimizer._variables = variables
    is_one, _ = optimizer._tracker.config["variables"]
    optimizer._tracker.config["variables"] = (is_one, optimizer._variables)  # TensorFlow wraps it
    optimizer._tracker.stored_ids["variables"] = set(map(id, variables))


def _copy_optimizer(old, new, model, variables, cuts):
    if not old.built:
        return
    if not new.built:
        # In the model's order, in which a loaded optimizer is built again; then what was trained
        # before it was frozen.
        order = {id(variable): variable for variable in model.trainable_variables}
        for variable in old._trainable_variables:
            if id(variable) in variables:
                order.setdefault(id(variables[id(variable)]), variables[id(variable)])
        _build(new, list(order.values()))
    accounted = _copy_slots(old, new, variables, cuts)
    if hasattr(old, "inner_optimizer"):  # LossScaleOptimizer
        _copy_optimizer(old.inner_optimizer, new.inner_optimizer, model, variables, cuts)
        accounted |= {id(variable) for variable in old.inner_optimizer.variables}
    lost = [variable.name for variable in old.variables if id(variable) not in accounted]
    if lost:
        warnings.warn(
            f"Some state of the optimizer {type(old).__name__} starts anew, because nothing tells "
            f"which weights it belongs to: {', '.join(lost[:5])}.",
            stacklevel=5,
        )


def _copy_slots(old, new, variables, cuts):
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
        elif _is_of_weights(old, value):
            for weight, slot in zip(trained, value, strict=True):
                if not isinstance(slot, keras.Variable):
                    continue
                accounted.add(id(slot))
                index = place.get(id(variables.get(id(weight))))
                if index is None:
                    continue
                axes = _axes_of_slot(name, slot, weight)
                found = [(axes[a], kept) for a, kept in cuts.get(id(weight), ()) if a in axes]
                kept_slot = cut(slot, found)
                if kept_slot.shape == tuple(twin[index].shape) and (
                    cuts.get(id(weight)) or weight.shape == variables[id(weight)].shape
                ):
                    twin[index].assign(kept_slot)
    return accounted


def cut(variable, cuts):
    """The value of a variable at some places of some axes: `cuts` is a list of (axis, places)."""
    value = np.array(keras.ops.convert_to_numpy(variable))
    for axis, kept in cuts:
        value = np.take(value, kept, axis=axis)
    return value


def _axes_of_slot(name, slot, weight):
    """Axis of a weight -> axis of a slot of it; Adafactor keeps means over one of two axes."""
    axes = list(range(len(weight.shape)))
    if name in _MEANS_OVER and len(axes) > 1:
        axes.remove(axes[_MEANS_OVER[name]])
    same = tuple(slot.shape) == tuple(weight.shape[axis] for axis in axes)
    return {axis: place for place, axis in enumerate(axes)} if same else {}


_MEANS_OVER = {"_r": -1, "_c": -2}
