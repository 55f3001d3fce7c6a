"""Make a model again without some of its layers, everything else being as it was."""

import collections
import copy
import functools

import keras

from keras_layer_entropy.backend import strategy_scope
from keras_layer_entropy.pruning.copying import Copies, forget_weights, left_out
from keras_layer_entropy.pruning.optimizer_state import copy_compilation, cut, restart_averages
from keras_layer_entropy.recording.graph import flat_graph
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
    gone, renewed = _operations(flat_graph(model), part)
    what = f"{model.name!r} without {part.path!r}" if part is not None else f"{model.name!r}"
    edits = {path: (layer, forget_weights) for path, layer in renewed.items()}
    return _remade(model, left_out(gone), edits, {}, what)[:2]


def bypassed(model, bypasses, what):
    """The model without some calls and what only goes into them.

    Args:
        model: a built Sequential or functional model; it is not changed.
        bypasses: list of `copying.Bypass`.
        what: the new model in words.

    Returns:
        `(model, nodes)`: the new model, compiled like the old one, with new slots of its optimizer
        for new layers; and pairs of Keras's nodes, those of the old model and those in their place.

    Raises:
        ValueError: Keras cannot make it.
    """
    new, _, nodes = _remade(model, bypasses, {}, {}, what)
    return new, nodes


def thinned(model, channels, gone):
    """The model without some units: a new model, with the weights and state of the old one.

    Args:
        model: a built Sequential or functional model; it is not changed.
        channels: its `channels.Channels`.
        gone: numbers of the units that go, as `Channels.roots` gives them.

    Returns:
        The new model, compiled like the old one, its optimizer's slots sliced like the weights.

    Raises:
        ValueError: Keras cannot make the model without them.
    """
    cuts = collections.defaultdict(list)
    changes = {}  # path -> attributes; none where a layer is only built anew
    operations = {call.path: call.operation for call in channels.graph.calls}
    for part in channels.slices:
        kept = channels.kept(part.ids, gone)
        if len(kept) < len(part.ids):
            cuts[id(part.variable)].append((part.axis, kept))
            changes.setdefault(part.path, {})
    for path, ids in channels.rebuilt:
        if len(channels.kept(ids, gone)) < len(ids):
            changes.setdefault(path, {})
    for edit in channels.edits:
        before, after = (
            edit.value(lambda ids, gone=x: len(channels.kept(ids, gone))) for x in ((), gone)
        )
        if after != before:
            changes.setdefault(edit.path, {})[edit.attribute] = after
    edits = {
        path: (operations[path], functools.partial(_change, attributes))
        for path, attributes in changes.items()
    }
    new, fresh, _ = _remade(model, [], edits, cuts, f"{model.name!r} without some units")
    if fresh:
        raise ValueError(
            f"Nothing tells how {fresh[0]} of {model.name!r} goes on with fewer units."
        )
    return new


def rewritten(model, gone, changes):
    """The model without some operations and with other weights in some layers.

    Args:
        model: a built Sequential or functional model; it is not changed.
        gone: operations that are left out: what they take goes on in their place.
        changes: path of a layer -> (attributes, weights), what it is built anew with, if with
            anything, and name of a weight -> array.

    Returns:
        The new model, compiled like the old one; optimizer slots of weights of another shape, and
        of new ones, start anew.

    Raises:
        ValueError: Keras cannot make it.
    """
    operations = {call.path: call.operation for call in flat_graph(model).calls}
    edits = {
        path: (operations[path], functools.partial(_change, attributes))
        for path, (attributes, _) in changes.items()
        if attributes
    }
    new, _, _ = _remade(model, left_out(gone), edits, {}, f"a simpler {model.name!r}")
    operations = {call.path: call.operation for call in flat_graph(new).calls}
    changed = []
    for path, (_, weights) in changes.items():
        for name, value in weights.items():
            changed.append(getattr(operations[path], name))
            changed[-1].assign(value)
    restart_averages(new, changed)
    return new


def _remade(model, bypasses, edits, cuts, what):
    """A copy of a model, paths of layers of which some weights are new, and pairs of calls.

    Args:
        model: the model.
        bypasses: list of `Bypass`.
        edits: path -> (operation, what its copy is given to before it is called).
        cuts: id of a variable -> list of (axis, places that are kept).
        what: the new model in words.
    """
    copies = Copies(model, bypasses, edits.values())
    with strategy_scope(model):
        try:
            new = copies(model)
        except Exception as error:
            raise ValueError(f"Keras cannot make {what}: {error}") from error
        survivors = {id(old): twin for old, twin in copies.pairs(keras.Variable)}
        changed = {p: x for p, (x, _) in edits.items() if isinstance(x, keras.layers.Layer)}
        fresh = [
            path
            for path, layer in changed.items()
            if _restore(layer, copies(layer), survivors, cuts)
        ]
        _account(model, new, survivors, [*copies.gone, *changed.values()], what)
        for old, twin in copies.pairs(keras.Model):
            copy_compilation(old, twin, survivors, cuts)
    return new, fresh, copies.nodes


def _change(attributes, twin):
    """Gives the copy of an operation other attributes; it is built for these when it is called."""
    for name, value in attributes.items():
        *within, last = name.split(".")
        setattr(functools.reduce(getattr, within, twin), last, value)
    automatic = getattr(twin, "_auto_config", None)
    if automatic is not None and attributes.keys() & automatic.config.keys():
        twin._auto_config = copy.copy(automatic)
        twin._auto_config.config = {**automatic.config, **attributes}
    if isinstance(twin, keras.layers.Layer):
        forget_weights(twin)


def _operations(graph, part):
    """The operations of a part; path -> layer of those that take another width without it."""
    if part is None:
        return [], {}
    first = {call.path: call.operation for call in reversed(graph.calls)}
    same = part.input_shape == part.output_shape
    renewed = {} if same else {path: first[path] for path in part.consumers}
    return [first[path] for path in part.members], renewed


def _restore(layer, twin, survivors, cuts):
    """Gives a layer that was built anew what still fits; whether anything did not."""
    anew = False
    before, after = _variables(layer), _variables(twin)
    # A bias that was not there before comes last.
    for variable, copied in zip(before, after, strict=len(after) <= len(before)):
        survivors[id(variable)] = copied
        copied.trainable, copied._path = variable.trainable, variable.path
        value = cut(variable, cuts.get(id(variable), ()))
        if value.shape == tuple(copied.shape):
            copied.assign(value)
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


def _variables(layer):
    return [variable for inner in layer._flatten_layers() for variable in own_variables(inner)]
