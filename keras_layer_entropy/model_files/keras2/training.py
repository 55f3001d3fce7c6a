"""How a Keras 2 model was compiled, in the words of Keras 3, and the state of its optimizer."""

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_layer_entropy.model_files.keras2.configuration import made_by, name_of, value_of

# Of each optimizer: its slots in the order in which Keras 2 made them (those of one tuple variable
# by variable, tuple after tuple), by the names that they have in Keras 3.
_ADAM = (("_momentums", "_velocities"), ("_velocity_hats",))
_IN_ORDER = {
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "SGD": (("momentums",),),
    "RMSprop": (("_velocities",), ("_momentums",), ("_average_gradients",)),
    "Adagrad": (("_accumulators",),),
    "Adadelta": (("_accumulated_grads", "_accumulated_delta_vars"),),
    "Adamax": (("_m", "_u"),),
    "Ftrl": (("_accumulators", "_linears"),),
    "Lion": (("_momentums",),),
}
# The same of the optimizers until TensorFlow 2.10, whose slots have names of their own.
_BY_NAME = {
    "Adam": {"m": "_momentums", "v": "_velocities", "vhat": "_velocity_hats"},
    "SGD": {"momentum": "momentums"},
    "RMSprop": {"rms": "_velocities", "momentum": "_momentums", "mg": "_average_gradients"},
    "Adagrad": {"accumulator": "_accumulators"},
    "Adadelta": {"accum_grad": "_accumulated_grads", "accum_var": "_accumulated_delta_vars"},
    "Adamax": {"m": "_m", "v": "_u"},
    "Ftrl": {"accumulator": "_accumulators", "linear": "_linears"},
}
_REDUCTIONS = {"auto": "sum_over_batch_size", "none": None}


@dataclasses.dataclass(frozen=True)
class OptimizerState:
    """What an optimizer had accumulated, in one of three forms.

    Attributes:
        iterations: number of steps.
        in_order: every slot in the order in which Keras 2 made them (from TensorFlow 2.11 on).
        by_name: slot name -> id of the model's variable -> value (until TensorFlow 2.10).
        variables: every variable of an optimizer of Keras 3.
    """

    iterations: Any = None
    in_order: tuple | None = None
    by_name: dict | None = None
    variables: tuple | None = None


def compile_arguments(training, outputs):
    """Arguments of `model.compile`.

    Args:
        training: `training_config` or `compile_config` as Keras 2 wrote it.
        outputs: number of outputs of the model.

    Returns:
        Dict of keyword arguments, their objects made.

    Raises:
        ValueError: Keras 3 has no such loss, metric or optimizer, or no such option of it.
    """
    optimizer = training.get("optimizer_config") or training["optimizer"]
    arguments = {
        "optimizer": _optimizer(optimizer),
        "loss": _mapped(_loss, training.get("loss")),
        "loss_weights": training.get("loss_weights"),
    }
    for key in ("metrics", "weighted_metrics"):
        metrics = _mapped(_metric, training.get(key))
        if outputs == 1 and isinstance(metrics, list) and len(metrics) == 1:
            metrics = metrics[0] if isinstance(metrics[0], list) else metrics
        arguments[key] = metrics
    return arguments


def _mapped(make, value):
    if isinstance(value, list):
        return [_mapped(make, item) for item in value]
    if isinstance(value, dict) and "class_name" not in value:
        return {name_of(key): _mapped(make, item) for key, item in value.items()}
    return None if value is None else make(value)


def _made(config, namespace):
    name = config["class_name"].rpartition(">")[2]
    cls = getattr(namespace, name, None)
    if not isinstance(cls, type):
        raise ValueError(f"Keras 3 has no {name!r} in {namespace.__name__}")
    return keras.saving.deserialize_keras_object(
        made_by(cls, namespace.__name__, dict(config["config"]))
    )


def _function(name, *namespaces):
    found = [getattr(namespace, name, None) for namespace in namespaces]
    found = [function for function in found if callable(function)]
    if not found:
        raise ValueError(f"Keras 3 has no function {name!r}")
    return found[0]


def _loss(config):
    if isinstance(config, dict) and config["class_name"] == "function":
        config = config["config"]
    if isinstance(config, str):
        return keras.losses.get(config) and config
    options = dict(config["config"])
    if "reduction" in options:
        options["reduction"] = _REDUCTIONS.get(options["reduction"], options["reduction"])
    return _made(config | {"config": options}, keras.losses)


def _metric(config):
    if isinstance(config, dict) and config["class_name"] == "function":
        config = config["config"]
    if isinstance(config, str):
        return config
    if config["class_name"] != "MeanMetricWrapper":
        return _made(config, keras.metrics)
    name, function = config["config"]["name"], config["config"]["fn"]
    if name in ("accuracy", "acc"):  # chosen by the shapes of labels and outputs
        return name
    function = function["config"] if isinstance(function, dict) else function
    return keras.metrics.MeanMetricWrapper(_function(function, keras.metrics, keras.losses), name)


def _optimizer(config):
    if isinstance(config, str):
        return keras.optimizers.get(config)
    options = dict(config["config"])
    if "inner_optimizer" in options:
        inner = _optimizer(options.pop("inner_optimizer"))
        return keras.optimizers.LossScaleOptimizer(
            inner,
            **{k: options[k] for k in ("initial_scale", "dynamic_growth_steps") if options.get(k)},
        )
    if isinstance(options.get("learning_rate"), dict):
        options["learning_rate"] = value_of("learning_rate", options["learning_rate"])
    elif options.get("decay"):  # lr / (1 + decay * step)
        options["learning_rate"] = {
            "module": "keras.optimizers.schedules",
            "class_name": "InverseTimeDecay",
            "config": {
                "initial_learning_rate": options["learning_rate"],
                "decay_steps": 1,
                "decay_rate": options.pop("decay"),
            },
            "registered_name": None,
        }
    return _made(config | {"config": options}, keras.optimizers)


def restore_optimizer(optimizer, state, trainable):
    """Gives a built optimizer the state that it had in Keras 2.

    Args:
        optimizer: `keras.optimizers.Optimizer`.
        state: `OptimizerState`.
        trainable: the model's trainable variables in the order in which Keras 2 had them.

    Raises:
        ValueError: it is of another kind or shape; nothing is changed.
    """
    if state.variables is not None:
        if len(state.variables) not in (len(optimizer.variables), 2):  # 2: it had not begun
            raise ValueError("it is that of other weights")
        _fill_all(list(zip(optimizer.variables, state.variables, strict=False)))
        return
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    kind = type(optimizer).__name__
    if state.by_name is not None:
        names = _BY_NAME.get(kind, {})
        slots = {
            names.get(name): [values.get(id(variable)) for variable in trainable]
            for name, values in state.by_name.items()
        }
    else:
        slots = _split(optimizer, _IN_ORDER.get(kind, ()), state.in_order, len(trainable))
    order = [id(variable) for variable in optimizer._trainable_variables]
    pairs = []
    for name, values in slots.items():
        mine = getattr(optimizer, name or "", None)
        if mine == []:
            continue  # with a momentum of 0 nothing of it is used
        if not mine or any(value is None for value in values):
            raise ValueError(f"{kind} has no {name} of every variable")
        pairs += [
            (mine[order.index(id(variable))], value)
            for variable, value in zip(trainable, values, strict=True)
        ]
    _fill_all([*pairs, (optimizer.iterations, state.iterations)])


def _fill_all(pairs):
    if any(tuple(mine.shape) != np.shape(value) for mine, value in pairs):
        raise ValueError("its shapes are not those of the weights")
    for mine, value in pairs:
        mine.assign(value)


def _split(optimizer, groups, values, count):
    """Slot name -> one value for each variable."""
    if optimizer.use_ema:
        groups = (("_model_variables_moving_average",), *groups)
    slots, values = {}, list(values)
    for group in groups:
        part, values = values[: count * len(group)], values[count * len(group) :]
        if part and len(part) < count * len(group):
            break
        slots |= {name: part[i :: len(group)] for i, name in enumerate(group) if part}
    if values:
        raise ValueError(f"{len(values)} values of its state have no place")
    return slots
