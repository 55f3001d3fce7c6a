"""Make a model again without some of its layers, everything else being as it was."""

import keras

from keras_layer_entropy.backend import strategy_scope
from keras_layer_entropy.pruning.copying import Copies
from keras_layer_entropy.pruning.graph import flat_graph
from keras_layer_entropy.pruning.optimizer_state import assign_copy, copy_compilation
from keras_layer_entropy.recording.passes import own_variables


def without(model, part):
    """The model without a part: a new model, with the weights and state of the old one.

    Args:
        model: a built Sequential or functional model; it is not changed.
        part: `layer_parts.LayerPart`; None to copy the model as it is.

    Returns:
        `(model, fresh)`: the new model, compiled like the old one, and the paths of layers whose
        kernels had to be made anew, because they take another number of features now.

    Raises:
        ValueError: Keras cannot make the model without the part, or a variable has no place in it.

    Example: see `surgery.remove_layer`.
    """
    graph = flat_graph(model)
    gone, renewed = _operations(graph, part)
    copies = Copies(model, gone, renewed.values())
    what = f"{model.name!r} without {part.path!r}" if part is not None else f"{model.name!r}"
    with strategy_scope(model):
        try:
            new = copies(model)
        except Exception as error:
            raise ValueError(f"Keras cannot make {what}: {error}") from error
        survivors = {id(old): twin for old, twin in copies.pairs(keras.Variable)}
        fresh = [
            path for path, layer in renewed.items() if _restore(layer, copies(layer), survivors)
        ]
        _account(model, new, survivors, [*gone, *renewed.values()], what)
        for old, twin in copies.pairs(keras.Model):
            copy_compilation(old, twin, survivors)
    return new, fresh


def _operations(graph, part):
    """The operations of a part; path -> layer of those that take another width without it."""
    if part is None:
        return [], {}
    first = {call.path: call.operation for call in reversed(graph.calls)}
    same = part.input_shape == part.output_shape
    renewed = {} if same else {path: first[path] for path in part.consumers}
    return [first[path] for path in part.members], renewed


def _restore(layer, twin, survivors):
    """Gives a layer that was built anew what still fits; whether anything did not."""
    anew = False
    for variable, copied in zip(own_variables(layer), own_variables(twin), strict=True):
        survivors[id(variable)] = copied
        copied.trainable, copied._path = variable.trainable, variable.path
        if variable.shape == copied.shape:
            assign_copy(copied, variable)
        else:
            anew = True
    return anew


def _account(model, new, survivors, changed, what):
    """Raises where a variable of the old model is not, once and of its own, in the new one."""
    there = {id(variable) for variable in _variables(new)}
    excused = {id(v) for layer in changed for v in getattr(layer, "variables", ())}
    lost = [
        variable.path
        for variable in _variables(model)
        if id(variable) in there
        or (id(survivors.get(id(variable))) not in there and id(variable) not in excused)
    ]
    if lost:
        raise ValueError(
            f"{what} cannot be made: nothing tells where in it the variables "
            f"{', '.join(lost[:5])} belong. Let the layers that use them hold them as attributes."
        )


def _variables(model):
    return [variable for layer in model._flatten_layers() for variable in own_variables(layer)]
