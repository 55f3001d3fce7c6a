"""Take blocks out of a model's configuration, and make the model again with its state.

`clone_model(call_function=)` fails for Sequential models and does not reach nested ones. The
serialized configuration holds everything: references to what a removed layer gave are replaced by
what it was given, and the state is carried over layer by layer.
"""

import copy
import tempfile

import keras
import numpy as np
from keras import ops

from keras_layer_entropy.model_files import custom_objects
from keras_layer_entropy.pruning.graph import flat_graph, opened
from keras_layer_entropy.pruning.optimizer_state import assign_copy, copy_compilation


def without(model, block):
    """The model without a block: a new model, with the weights and state of the old one.

    Args:
        model: a built Sequential or functional model; it is not changed.
        block: `blocks.Block`; None to copy the model as it is.

    Returns:
        `(model, fresh)`: the new model, compiled like the old one, and the paths of layers whose
        kernels had to be made anew, because they take another number of features now.

    Raises:
        ValueError: Keras cannot make the model without the block.

    Example: see `surgery.remove_layer`.
    """
    config = keras.saving.serialize_keras_object(model)
    config.pop("compile_config", None)
    _drop_build_configs(config)
    if block is not None:
        _resize_nested_inputs(config, model, block)
        for path in block.members:
            _cut(config, path.split("/"), model)
    try:
        new = keras.saving.deserialize_keras_object(
            config, custom_objects=custom_objects(model), safe_mode=False
        )
    except Exception as error:
        what = f"without {block.path!r}" if block is not None else "again"
        raise ValueError(f"Keras cannot make {model.name!r} {what}: {error}") from error
    pairs = list(_layer_pairs(model, new))
    survivors, fresh = {}, []
    for path, old, twin in pairs:
        if not _copy_state(old, twin, survivors):
            fresh.append(path)
    unexpected = [path for path in fresh if block is None or path not in block.consumers]
    if unexpected:
        raise ValueError(
            f"The weights of {', '.join(unexpected)} in {model.name!r} do not fit any more without "
            f"{block.path!r}: keep that layer."
        )
    for old, twin in [(model, new), *((old, twin) for _, old, twin in pairs)]:
        twin.trainable = old.trainable  # parents first, because they set it for what they hold
        if twin.dtype_policy.name != old.dtype_policy.name:  # models and inputs don't save theirs
            twin.dtype_policy = old.dtype_policy
    for variable in model.variables:
        if id(variable) in survivors:
            survivors[id(variable)].trainable = variable.trainable
    copy_compilation(model, new, survivors)
    return new, fresh


def _cut(config, names, model):
    """Rewires everything that takes the output of a layer to what the layer takes."""
    inner = config["config"]
    if len(names) > 1:
        entry = next(x for x in inner["layers"] if _name(x) == names[0])
        _cut(entry, names[1:], model.get_layer(names[0]))
        return
    entry = next(x for x in inner["layers"] if _name(x) == names[0])
    inner["layers"].remove(entry)
    if "inbound_nodes" not in entry:  # Sequential: a list
        return
    source = next(_references(entry["inbound_nodes"]))
    for other in inner["layers"]:
        for reference in _references(other["inbound_nodes"]):
            if reference["config"]["keras_history"][0] == names[0]:
                reference["config"] = copy.deepcopy(source["config"])
    name, node, tensor = source["config"]["keras_history"]
    # Outputs count the nodes of a functional model from one, because it has one of its own.
    origin = next(o for o in opened(model).operations if o.name == name)
    if opened(origin) is origin:
        node += 1
    inner["output_layers"] = _replaced(inner["output_layers"], names[0], [name, node, tensor])


def _references(structure):
    """Yields the serialized tensors in a part of a configuration."""
    if isinstance(structure, dict):
        if structure.get("class_name") == "__keras_tensor__":
            yield structure
            return
        structure = structure.values()
    elif not isinstance(structure, list | tuple):
        return
    for part in structure:
        yield from _references(part)


def _replaced(outputs, name, replacement):
    """The output references with those to layer `name` replaced."""
    if isinstance(outputs, dict):
        return {key: _replaced(value, name, replacement) for key, value in outputs.items()}
    if isinstance(outputs, list | tuple):
        if len(outputs) == 3 and isinstance(outputs[0], str):
            return list(replacement) if outputs[0] == name else outputs
        return [_replaced(value, name, replacement) for value in outputs]
    return outputs


def _resize_nested_inputs(config, model, block):
    """Gives nested models that take the block's output the shape that they get now."""
    if block.input_shape == block.output_shape:
        return
    graph = flat_graph(model)
    tensor = graph.calls_of(block.members[-1])[0].outputs[0]
    for path, calls in graph.nested.items():
        if tensor not in calls[0]:
            continue
        entry = config
        for name in path.split("/"):
            entry = next(x for x in entry["config"]["layers"] if _name(x) == name)
        inputs = [x for x in entry["config"]["layers"] if x["class_name"] == "InputLayer"]
        for layer, given in zip(inputs, calls[0], strict=False):
            if given == tensor:
                layer["config"]["batch_shape"] = list(block.input_shape)
        if "build_input_shape" in entry["config"]:
            entry["config"]["build_input_shape"] = list(block.input_shape)


def _drop_build_configs(structure):
    # The shapes that layers were built with: with other inputs they have others.
    if isinstance(structure, dict):
        structure.pop("build_config", None)
        structure = structure.values()
    elif not isinstance(structure, list | tuple):
        return
    for part in structure:
        _drop_build_configs(part)


def _name(entry):
    return entry.get("name") or entry["config"]["name"]


def _layer_pairs(old, new, prefix=""):
    """Yields (path, layer, its twin) for the layers that both models hold, at every depth."""
    layers, twins = (x._flatten_layers(include_self=False, recursive=False) for x in (old, new))
    if opened(old) is None:
        # A layer names what it holds anew every time, but holds it in the same order.
        pairs = list(zip(layers, twins, strict=True))
    else:
        by_name = {twin.name: twin for twin in twins}
        pairs = [(layer, by_name[layer.name]) for layer in layers if layer.name in by_name]
    for layer, twin in pairs:
        yield prefix + layer.name, layer, twin
        yield from _layer_pairs(layer, twin, f"{prefix}{layer.name}/")


def _copy_state(layer, twin, survivors):
    """Carries over what a layer itself holds; False where its kernel has another shape now.

    Adds the id of each surviving variable -> its twin to `survivors`.
    """
    mine, other = _own_variables(layer), _own_variables(twin)
    for variable, copied in zip(mine, other, strict=True):
        if variable.shape == copied.shape:
            assign_copy(copied, variable)
            survivors[id(variable)] = copied
    if any(id(variable) not in survivors for variable in mine):
        return False
    store = {}
    layer.save_own_variables(store)  # for what follows from weights, as in Normalization
    if store:
        twin.load_own_variables({k: np.array(ops.convert_to_numpy(v)) for k, v in store.items()})
    if hasattr(layer, "save_assets"):  # vocabularies
        with tempfile.TemporaryDirectory() as directory:
            layer.save_assets(directory)
            twin.load_assets(directory)
    return True


def _own_variables(layer):
    seeds = [generator.state for generator in layer._seed_generators]
    return [*layer._trainable_variables, *layer._non_trainable_variables, *seeds]
