"""Read `.h5` files, and `.keras` files of Keras 2.

In an `.h5` file the weights of each layer of the model are a list with names; in a `.keras` file
they are numbered, in groups that mirror the attributes of layers.
"""

import functools
import re

import h5py
import keras
from keras.src.utils.naming import to_snake_case

from keras_layer_entropy.model_files.inspection import parsed
from keras_layer_entropy.model_files.keras2.configuration import layer, name_of, with_modules
from keras_layer_entropy.model_files.keras2.rebuilding import (
    Parts,
    configured_name,
    fill,
    in_order,
    in_part,
    layers_in,
)
from keras_layer_entropy.model_files.keras2.training import OptimizerState

# Weights that have another name in Keras 3.
_RENAMED = {"depthwise_kernel": "kernel"}
_WITHOUT_NUMBER = re.compile(r":\d+$")  # of the output of an operation: kernel:0


def read_h5(file):
    """An `h5py.File` of Keras 2 as `Parts`."""
    config, training = configurations(file)
    return Parts(layer(config), training, functools.partial(_restore_h5, file, config))


def read_modern_h5(file):
    """An `h5py.File` of Keras 3 as `Parts`.

    Keras's own reader loses axes that are lists and takes some texts for functions.
    """
    config, training = configurations(file)
    return Parts(with_modules(config), training, functools.partial(_restore_h5, file, config))


def read_pair(config, file):
    """The configuration of an architecture and an `h5py.File` of its weights as `Parts`."""
    config = _as_model(config)
    return Parts(layer(config), None, functools.partial(_restore_h5, file, config))


def configurations(file):
    """What an `.h5` file says of the layers, and of how they were compiled, or None."""
    if "model_config" not in file.attrs:
        raise ValueError("it holds weights only, no layers. Save the whole model, model.save(path)")
    training = file.attrs.get("training_config")
    config = _as_model(parsed(file.attrs["model_config"], "model_config"))
    return (
        config,
        None if training is None else parsed(training, "training_config"),
    )


def _as_model(config):
    if isinstance(config.get("config"), list):  # Sequential until Keras 2.1
        return {**config, "config": {"name": "sequential", "layers": config["config"]}}
    return config


def _text(value):
    return value.decode() if isinstance(value, bytes) else str(value)


def _listed(group):
    """`(name, value)` of each weight that a group lists."""
    names = [_text(name) for name in group.attrs.get("weight_names", ())]
    if len(set(names)) < len(names):
        raise ValueError(f"{group.name} has two weights of one name: it was not written to its end")
    return [(name, group[name][()]) for name in names]


def _restore_h5(file, config, model):
    groups = file.get("model_weights", file)  # of a file of weights alone
    names = iter(_own_names(groups, config))
    for each, part in layers_in(model, config):
        name = configured_name(each) or next(names, None)
        variables = [
            variable
            for kind in ("trainable", "non_trainable")
            for variable in in_part(part, each, kind)
        ]
        listed = _listed(groups[name]) if name in groups else []
        for variable, weight, value in _paired(variables, listed, name):
            fill(variable, value, weight)
    group = file.get("optimizer_weights")
    return None if group is None else _state(_listed(group), in_order(model, config, "trainable"))


def _own_names(groups, config):
    """Names of the layers that the configuration does not name, as those of one's own."""
    known = [configured_name(each) for each in config["config"]["layers"]]
    names = [_text(name) for name in groups.attrs.get("layer_names", ())]
    return [name for name in names if name not in known]


def _paired(variables, listed, owner):
    """Variables and weights that belong together: by the end of the name, then in order."""
    if len(variables) != len(listed):
        raise ValueError(
            f"The layer {owner!r} has {len(variables)} weights, but the file has {len(listed)}."
        )
    left, pairs = list(variables), []
    for name, value in listed:
        parts = _WITHOUT_NUMBER.sub("", name).split("/")
        own = (parts[-1], _RENAMED.get(parts[-1]))
        fitting = [v for v in left if v.path.split("/")[-2:] == parts[-2:]]
        fitting += [v for v in left if v.path.split("/")[-1] in own]
        if not fitting:
            raise ValueError(f"The weight {name!r} has no place in the layer {owner!r}.")
        pairs.append((fitting[0], name, value))
        left = [v for v in left if v is not fitting[0]]
    return pairs


def _state(listed, trainable):
    """The state of the optimizer from its list of weights."""
    if not listed:
        return None
    (name, iterations), *rest = listed
    if not name.endswith(":0"):  # of Keras 3
        return OptimizerState(variables=tuple(value for _, value in listed))
    if not name.endswith("iter:0"):
        return OptimizerState(iterations, in_order=tuple(value for _, value in rest))
    slots = {}  # TensorFlow 2.10 and before: Adam/dense/kernel/m:0
    for name, value in rest:
        slots.setdefault(_WITHOUT_NUMBER.sub("", name).rpartition("/")[2], []).append(value)
    ids = [id(variable) for variable in trainable]
    by_name = {  # slots of other variables too, once trained and frozen since: whose, is not told
        slot: dict(zip(ids, values, strict=True)) if len(values) == len(ids) else {}
        for slot, values in slots.items()
    }
    return OptimizerState(iterations, by_name=by_name)


def read_keras(config, weights):
    """A `.keras` file of Keras 2 as `Parts`.

    Args:
        config: what its config.json holds.
        weights: `h5py.File` of its model.weights.h5.
    """
    restore = functools.partial(_restore, weights, config)
    return Parts(layer(config), config.get("compile_config"), restore)


def _restore(file, config, model):
    loaded = []
    _read_group(file, model, config, loaded)
    groups = [file[name] for name in ("layers", "_layer_checkpoint_dependencies") if name in file]
    for group in groups:
        group.visititems(lambda _, item: _check_loaded(item, loaded))
    group = file.get("optimizer/inner_optimizer/vars", file.get("optimizer/vars"))
    values = [group[str(i)][()] for i in range(len(group))] if group else []
    return OptimizerState(values[0], in_order=tuple(values[1:])) if values else None


def _check_loaded(item, loaded):
    random = any(name in item.name for name in ("seed_generator", "_random_generator"))
    if isinstance(item, h5py.Dataset) and item.name not in loaded and not random:
        raise ValueError(f"The weight {item.name} in the file has no place in the model.")


def _read_group(group, part, config, loaded):
    """Gives `part` what `group` holds for it and for the layers inside it."""
    own = group.get("vars")
    if own is not None and len(own) and not isinstance(part, keras.Model):
        variables = part._trainable_variables + part._non_trainable_variables
        for i, variable in enumerate(variables):
            if str(i) not in own:
                raise ValueError(f"The file has no {variable.path}.")
            fill(variable, own[str(i)][()], variable.path)
            loaded.append(own[str(i)].name)
    for name, child, about in _children(group, part, config):
        if name in group:
            _read_group(group[name], child, about, loaded)


def _children(group, part, config):
    """`(group name, layer, configuration)` of each layer inside a model or layer."""
    if isinstance(part, keras.Model):
        layers = config["config"]["layers"]
        names = _numbered([about["class_name"] for about in layers])
        inputs = ("InputLayer",)
        return [
            (f"layers/{name}", part.get_layer(name_of(about["config"]["name"])), about)
            for name, about in zip(names, layers, strict=True)
            if about["class_name"] not in inputs
        ]
    found = []
    for name in group:
        child = getattr(part, name, None)
        if isinstance(child, keras.Layer):
            inner = config["config"].get(name) if config else None
            found.append((name, child, inner))
        elif isinstance(child, list):
            names = _numbered([type(each).__name__ for each in child])
            found += [(f"{name}/{n}", each, None) for n, each in zip(names, child, strict=True)]
    return found


def _numbered(class_names):
    """The names that layers have in the file: of their classes, numbered in each class."""
    seen, names = {}, []
    for name in map(to_snake_case, class_names):
        names.append(f"{name}_{seen[name]}" if name in seen else name)
        seen[name] = seen.get(name, 0) + 1
    return names
