"""What the chosen layers of a model do in one forward pass, and what belongs to them after it.

A layer's activation function may be a layer or operations of its own, behind a normalisation or
in another shape. So its output is followed from call to call, as long as every number in a tensor
comes from this layer alone.
"""

import collections
import dataclasses
import functools
from typing import Any

import keras
import numpy as np
from keras import ops, tree

# Keras keeps masks beside tensors and exports no reader for them.
from keras.src.backend.common.masking import get_keras_mask

from keras_layer_entropy.backend import attributes, graph_of
from keras_layer_entropy.measures.entropy import log_pattern, two_way
from keras_layer_entropy.recording.layer_kinds import (
    Effect,
    effect,
    example,
    family,
    is_linear,
    kind,
    name_of,
)
from keras_layer_entropy.recording.watching import standing

UNDECORATE = "take @tf.function off the model's code (Keras compiles it anyway)"


@dataclasses.dataclass
class Activation:
    """What one call of one layer gave.

    Attributes:
        path: the layer's path in the model; `#2`, `#3`, ... for further calls of a shared layer.
        output: what follows the activation function, `[batch, ..., units]`.
        pre_activation: what goes into it (the same tensor where there is none).
        inputs: what the layer was called with.
        function: name of the activation function, None where there is none.
        family: what that function gives: `"softmax"` over the units, `"sigmoid"`, `"other"`, or
            `"unknown"`.
        mask: the Keras mask of the layer's input, or None.
        is_output: whether `output` is an output of the model.
        unit_axis: the axis of the units, 1 for images with channels first.
        kind: the class of the layer.
    """

    path: str
    output: Any
    pre_activation: Any
    inputs: Any = None
    function: str | None = None
    family: str = "other"
    mask: Any = None
    is_output: bool = False
    unit_axis: int = -1
    kind: type = keras.Layer

    @property
    def units(self):
        """Number of units."""
        return self.output.shape[self.unit_axis]

    @property
    def may_be_distribution(self):
        """Whether it is an output by a function that nobody knows: perhaps another softmax."""
        return self.is_output and self.family == "unknown" and self.units > 1

    def features(self):
        """What statistics read, a dict of tensors with the units last.

        `output`, `pre_activation` and, where there is one, `mask` are the attributes; `pattern` is
        the output, but the logits of a softmax, of output sigmoids and of a single sigmoid unit.
        """
        logits = self.family == "softmax" or (
            self.family == "sigmoid" and (self.is_output or self.units == 1)
        )
        features = {
            "pattern": self.pre_activation if logits else self.output,
            "pre_activation": self.pre_activation,
            "output": self.output,
        }
        if self.unit_axis != -1:
            features = {k: ops.moveaxis(v, self.unit_axis, -1) for k, v in features.items()}
        return features | {"mask": self.mask} if self._mask_fits() else features

    def _mask_fits(self):
        """Whether the mask, which is the input's, is of the output's positions."""
        if self.mask is None:
            return False
        pairs = list(zip(self.mask.shape, self.output.shape, strict=False))
        known = all(one == other for one, other in pairs if None not in (one, other))
        return known and len(self.mask.shape) < len(self.output.shape)

    def sample_pattern(self):
        """The activation pattern of each sample: `[batch, ..., units]`, which add up to 1."""
        values = self.features()["pattern"]
        if self.may_be_distribution:
            logs, fits = log_pattern(values)
            values = ops.where(ops.all(fits), logs, ops.cast(values, "float32"))
        return ops.softmax(two_way(ops.cast(values, "float32")), axis=-1)


@dataclasses.dataclass(frozen=True)
class _Followed:
    """A tensor that still holds a layer's output, perhaps in another form.

    Attributes:
        tensor: held, because ids are used again.
        activation: of the layer.
        units: the unit that each number is of, an array of an example's shape.
        state: `"raw"` before an activation function; `"open"` after an operation that is one, or
            the beginning of one; `"closed"` after any other.
        elementwise: whether there is nothing in a number but this one of the layer's output.
        undo: functions that bring the tensor back into the shape of the layer's output.
    """

    tensor: Any
    activation: Activation
    units: Any
    state: str
    elementwise: bool = True
    undo: tuple = ()

    def undone(self, tensor):
        """`tensor`, a function of this one, in the shape of the layer's output."""
        for undo in reversed(self.undo):
            tensor = undo(tensor)
        return tensor

    def moved(self, tensor, move):
        """The same numbers in another form."""
        if move.axes is None:
            undo = functools.partial(_reshaped_like, self.tensor)
            units = self.units.reshape(move.shape)
        else:
            undo = functools.partial(ops.transpose, axes=np.argsort(move.axes).tolist())
            units = self.units.transpose(move.axes)
        return dataclasses.replace(self, tensor=tensor, units=units, undo=(*self.undo, undo))

    def has_units_along(self, axes):
        """Whether different units lie along these axes."""
        return bool((self.units.min(axis=axes) != self.units.max(axis=axes)).any())


class Recording:
    """What was recorded of one forward pass.

    Attributes:
        outputs: what the model returned last, None if it was not called as a whole.
        followed: id of a tensor -> `_Followed`.
        place: where in the model's code the pass is: how many passes there were, and the turns of
            the shared layers that are running.
        turns: for each layer that is running, the turns of those that it calls several times.
    """

    def __init__(self):
        self.outputs = None
        self.followed = {}
        self.place = [0]
        self.turns = []
        self._recorded = []  # (path, place, Activation)

    @property
    def out_of_reach(self):
        """Paths of what ran inside a loop or a function of its own, and not beside the outputs."""
        outputs = [x for x in tree.flatten(self.outputs) if ops.is_tensor(x)]
        return [
            x.path
            for x in self.activations
            if outputs and graph_of(x.output) is not graph_of(outputs[0])
        ]

    @property
    def activations(self):
        """List of `Activation` in the order of the calls; of one layer, in that of the code."""
        calls = collections.defaultdict(list)
        for path, place, activation in self._recorded:
            calls[path].append((place, activation))
        for path, of_path in calls.items():
            of_path.sort(key=lambda call: call[0])
            for number, (_, activation) in enumerate(of_path, start=1):
                activation.path = path if number == 1 else f"{path}#{number}"
        in_turn = {path: iter(of_path) for path, of_path in calls.items()}
        return [next(in_turn[path])[1] for path, _, _ in self._recorded]

    def add(self, activation, tensor):
        """Adds a call, whose output is followed from now on."""
        place = (*self.place, len(self._recorded))
        self._recorded.append((activation.path, place, activation))
        shape = example(tensor.shape)
        units = np.moveaxis(np.zeros(shape, int), activation.unit_axis, -1)
        units = np.moveaxis(units + np.arange(units.shape[-1]), -1, activation.unit_axis)
        state = "raw" if activation.function is None else "closed"
        self.followed[id(tensor)] = _Followed(tensor, activation, units, state)


def watch_target(recording, path, layer):
    """What has to be watched, for `watching.watched`, to record a chosen layer."""
    wrapper = layer if isinstance(layer, keras.layers.TimeDistributed) else None
    layer = layer.layer if wrapper else layer
    applied = []
    target = functools.partial(_target, recording, path, layer, applied)
    if wrapper:
        calls = [(wrapper, "call", functools.partial(_step_by_step, recording, layer, target))]
    else:
        calls = [(layer, call_of(layer), target)]
    if callable(attributes(layer).get("activation")) and not is_linear(layer):
        calls.append((layer, "activation", functools.partial(_applied, applied)))
    return calls


def _step_by_step(recording, layer, target, original, inputs, *args, **kwargs):
    """Records a Dense layer inside TimeDistributed, which runs it out of reach inside a loop.

    It works on the last axis alone, so that on the whole sequence it gives the same, but for
    rounding: it is called once more, and the model goes on with what it computed itself.
    """
    returned = original(inputs, *args, **kwargs)
    whole = target(getattr(layer, call_of(layer)), inputs)
    followed = recording.followed[id(whole)]
    recording.followed[id(returned)] = dataclasses.replace(followed, tensor=returned)
    return returned


def watch_follower(recording, effects, operation, alone):
    """What has to be watched to follow layers' outputs through an operation.

    Args:
        effects: what operations were found to do; filled up.
        alone: whether nothing else takes what the operation is given.
    """
    follow = functools.partial(_follow, recording, effects, operation, alone)
    return [(operation, call_of(operation), follow)]


def watch_turns(recording, layers):
    """What has to be watched to know in which turn the model's code calls its layers.

    Keras runs a functional model from its inputs on by depth, in another order than that in which
    it was made.
    """
    turns = {id(layer): _turns(layer) for layer in layers}
    calls = {
        id(operation): (
            *(operation, call_of(operation)),
            functools.partial(_take_turn, recording, operation),
        )
        for found in turns.values()
        for operation, _ in found
    }
    begins = [
        (layer, call_of(layer), functools.partial(_begin_turns, recording, turns[id(layer)]))
        for layer in layers
        if calls and layer._layers
    ]
    return [*begins, *calls.values()]  # a layer takes its own turn before it begins those inside


def watch_outputs(recording, model, guess):
    """What has to be watched to know the outputs of a model.

    Args:
        guess: whether the last layer is the output where none is seen to be.
    """
    return [(model, call_of(model), functools.partial(_outputs, recording, guess))]


def call_of(operation):
    """The name of the method that runs an operation."""
    # Operation.__call__ looks here for quantized layers.
    return "quantized_call" if getattr(operation, "quantization_mode", None) else "call"


def _applied(applied, original, x, *args, **kwargs):
    """Keeps input and output of a layer's own activation function."""
    output = original(x, *args, **kwargs)
    applied.append((x, output))
    return output


def _target(recording, path, layer, applied, original, *args, **kwargs):
    """Records what a chosen layer returns."""
    applied.clear()
    returned = original(*args, **kwargs)
    output = tree.flatten(returned)[0]
    inputs = args[0] if args else next(iter(kwargs.values()))
    activation = Activation(path, output, output, inputs, mask=get_keras_mask(inputs))
    activation.kind = type(layer)
    if getattr(layer, "data_format", None) == "channels_first" and len(output.shape) > 2:
        activation.unit_axis = 1
    if type(layer).__module__.partition(".")[0] != "keras":
        activation.family = "unknown"
    # Only what is applied last, once and outside of loops is the layer's activation function.
    if len(applied) == 1 and applied[0][1] is output:
        function = standing(layer, "activation")
        activation.pre_activation, activation.function = applied[0][0], name_of(function)
        activation.family = _own_family(activation, function)
    recording.add(activation, output)
    return returned


def _own_family(activation, function):
    """The `family` of a layer's own activation function."""
    name, axes = family(function)
    given = activation.pre_activation
    if name == "softmax":
        dimensions = len(given.shape)
        units = activation.unit_axis % dimensions
        return name if units in [axis % dimensions for axis in axes] else "other"
    if name == "unknown" and activation.unit_axis == -1 and not _has_weights(function):
        found = effect(function, [given.shape], [_dtype(given)])
        return found.family if found else name
    return name


def _follow(recording, effects, operation, alone, original, *args, **kwargs):
    """Lets what is computed of a layer's output, number by number, count as its activation."""
    tensors = _tensors(args, kwargs)
    before = [recording.followed.get(id(tensor)) for tensor in tensors]
    known = bool(before) and None not in before
    known = known and all(one.activation is before[0].activation for one in before)
    # Before the call, in which the operation may call others that are followed, too.
    fresh = known and before[0].activation.function is None
    output = original(*args, **kwargs)
    if not known or not ops.is_tensor(output):
        return output
    found = _effect_of(effects, operation, before, args, kwargs)
    one, alone = _as_one(before, found), alone or len(before) > 1
    if one is None:
        return output
    number = keras.backend.is_float_dtype(_dtype(output))
    if fresh and one.state == "raw" and number and found.begins and _fits(one, output):
        after = _begun(one, operation, found, output)
    elif one.state == "open" and alone and number and _extends(one, found, output):
        one.activation.output = one.undone(output)
        after = dataclasses.replace(one, tensor=output)
    else:
        after = _passed_on(one, found, output)
    if after is not None:
        recording.followed[id(output)] = after
    return output


def _as_one(before, found):
    """The tensor that an operation is given; of several that it joins, number by number, the one
    that stands for them; None where it does something else with them."""
    if found is None:
        return None
    if len(before) == 1:
        return before[0]
    if found.kind != "element-wise" or not all(
        one.elementwise and one.undo == before[0].undo for one in before
    ):
        return None
    states = {one.state for one in before}
    # With the raw output, what was an activation turns out to be a part of one.
    begun = "open" in states or ("raw" in states and len(states) > 1)
    state = "open" if begun else states.pop()
    numbers = [x for x in before if keras.backend.is_float_dtype(_dtype(x.tensor))]
    return dataclasses.replace((numbers or before)[0], state=state)


def _begun(one, operation, found, output):
    """An activation function that follows a layer."""
    activation, function = one.activation, _function_of(operation)
    name, axes = family(function)
    if name == "unknown":
        name, axes = found.family, (-1,)
    along = name == "softmax" or found.kind == "distribution" or not _same_shape(one.tensor, output)
    if name == "softmax" and not one.has_units_along(axes):
        name = "other"
    activation.pre_activation, activation.output = one.undone(one.tensor), one.undone(output)
    activation.function, activation.family = name_of(function), name
    state = "closed" if isinstance(operation, keras.Layer) else "open"
    elementwise = one.elementwise and not along
    return dataclasses.replace(one, tensor=output, state=state, elementwise=elementwise)


def _passed_on(one, found, output):
    """What follows no more than the output itself, in another form."""
    if found.kind == "moves":
        return one.moved(output, found)
    if found.kind == "normalization" and one.state != "raw":
        return None
    if not _same_shape(one.tensor, output):
        return None
    elementwise = one.elementwise and found.extends
    return dataclasses.replace(one, tensor=output, elementwise=elementwise)


def _effect_of(effects, operation, before, args, kwargs):
    """The `Effect` of an operation on tensors that are followed, or None."""
    known = None if is_linear(operation) else kind(operation)
    name, _ = family(_function_of(operation))
    if known and (known != "activation" or name != "unknown"):
        return Effect("element-wise" if known == "activation" and name != "softmax" else known)
    if known is None and _has_weights(operation):
        return None
    shapes = [one.units.shape for one in before]
    key = (id(operation), *shapes)
    if key not in effects:
        run = functools.partial(_run_on, operation, [x.tensor for x in before], args, kwargs)
        found = effect(run, shapes, [_dtype(one.tensor) for one in before])
        effects[key] = found or (Effect(known) if known else None)
    return effects[key]


def _run_on(operation, tensors, args, kwargs, *values):
    """Runs an operation on other values, without masks."""
    values = {id(tensor): value for tensor, value in zip(tensors, values, strict=True)}

    def replaced(x):
        return values.get(id(x)) if ops.is_tensor(x) else x

    args, kwargs = tree.map_structure(replaced, (args, kwargs))
    return getattr(operation, call_of(operation))(*args, **kwargs)


def _tensors(args, kwargs):
    """The different tensors among the arguments of a call, without masks."""
    kwargs = {name: value for name, value in kwargs.items() if "mask" not in name}
    return list({id(x): x for x in tree.flatten((args, kwargs)) if ops.is_tensor(x)}.values())


def _function_of(operation):
    """The function that an operation applies."""
    if isinstance(operation, keras.layers.Activation):
        return standing(operation, "activation")
    return operation


def _has_weights(operation):
    return bool(getattr(operation, "variables", ()))


def _fits(one, output):
    """Whether an output can be brought into the shape of the layer's."""
    return not one.undo or _same_shape(one.tensor, output)


def _extends(one, found, output):
    """Whether an operation goes on with the activation function that others began."""
    return found.extends and _same_shape(one.tensor, output)


def _same_shape(one, other):
    return tuple(one.shape) == tuple(other.shape)


def _reshaped_like(tensor, values):
    return ops.reshape(values, ops.shape(tensor))


def _dtype(tensor):
    return keras.backend.standardize_dtype(tensor.dtype)


def _outputs(recording, guess, original, *args, **kwargs):
    """Marks what the model returns."""
    recording.place[0] += 1
    recording.outputs = original(*args, **kwargs)
    outputs = [x for x in tree.flatten(recording.outputs) if ops.is_tensor(x)]
    activations = recording.activations
    for output in outputs:
        if (one := recording.followed.get(id(output))) is not None:
            one.activation.is_output = True
    if guess and activations and not any(x.is_output for x in activations):
        # A head that ends in a bare function hides the layer: it is the last one, most likely.
        last = activations[-1]
        widths = [x.shape[last.unit_axis] for x in outputs if len(x.shape)]
        last.is_output = last.family != "sigmoid" and (last.units == 1 or last.units in widths)
    return recording.outputs


def _turns(layer):
    """The operations that a functional model calls several times: list of (operation, turns).

    Turns are the places, in the model's code, of the calls in the order in which Keras runs them.
    """
    if not isinstance(layer, keras.Function):
        return []
    nodes = collections.defaultdict(list)
    for depth in sorted(layer._nodes_by_depth, reverse=True):
        for node in layer._nodes_by_depth[depth]:
            nodes[id(node.operation)].append(node)
    repeated = [(found[0].operation, found) for found in nodes.values() if len(found) > 1]
    return [
        (operation, [operation._inbound_nodes.index(node) for node in found])
        for operation, found in repeated
    ]


def _begin_turns(recording, turns, original, *args, **kwargs):
    """Runs a layer that calls others."""
    recording.turns.append({id(operation): iter(order) for operation, order in turns})
    try:
        return original(*args, **kwargs)
    finally:
        recording.turns.pop()


def _take_turn(recording, operation, original, *args, **kwargs):
    """Runs an operation that is called several times."""
    turns = recording.turns[-1] if recording.turns else {}
    recording.place.append(next(turns.get(id(operation), iter(())), 0))
    try:
        return original(*args, **kwargs)
    finally:
        recording.place.pop()
