"""Choose layers in any model and record their outputs in one forward pass.

Keras 3 has no hooks, and `layer.output` fails for subclassed, nested and unbuilt models and
silently shows the first call of a shared layer. So the `call` of the chosen layers is wrapped
while the model runs, and only then, as Keras does it itself to calibrate GPTQ.
"""

import collections
import contextlib
import dataclasses
import difflib
import functools
import threading
import warnings
from typing import Any

import keras
from keras import tree

# Keras keeps masks beside tensors and exports no reader for them.
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask

from keras_layer_entropy.layer_kinds import is_linear, kind
from keras_layer_entropy.measures.entropy import two_way

_SOFTMAX = {"softmax", "softmax_v2", "log_softmax", "log_softmax_v2", "Softmax", "LogSoftmax"}
_SIGMOID = {"sigmoid", "log_sigmoid", "logistic", "expit", "Sigmoid", "LogSigmoid"}
_UNDECORATE = "take @tf.function off the model's code (Keras compiles it anyway)"


@dataclasses.dataclass
class Activation:
    """What one call of one layer gave.

    Attributes:
        path: the layer's path in the model; `#2`, `#3`, ... for further calls of a shared layer.
        output: what follows the activation function, `[batch, ..., units]`.
        pre_activation: what goes into it (the same tensor where there is none).
        inputs: what the layer was called with.
        function: name of the activation function, None where there is none.
        mask: the Keras mask of the layer's input, or None.
        is_output: whether `output` is an output of the model.
        unit_axis: the axis of the units, 1 for images with channels first.
        is_convolution: whether the layer is a `Conv2D`.
    """

    path: str
    output: Any
    pre_activation: Any
    inputs: Any = None
    function: str | None = None
    mask: Any = None
    is_output: bool = False
    unit_axis: int = -1
    is_convolution: bool = False

    @property
    def units(self):
        """Number of units."""
        return self.output.shape[self.unit_axis]

    def features(self):
        """What statistics read, a dict of tensors with the units last.

        `output`, `pre_activation` and, where there is one, `mask` are the attributes; `pattern` is
        the output, but the logits of a softmax, of output sigmoids and of a single sigmoid unit.
        """
        logits = self.function in _SOFTMAX or (
            self.function in _SIGMOID and (self.is_output or self.units == 1)
        )
        features = {
            "pattern": self.pre_activation if logits else self.output,
            "pre_activation": self.pre_activation,
            "output": self.output,
        }
        if self.unit_axis != -1:
            features = {k: keras.ops.moveaxis(v, self.unit_axis, -1) for k, v in features.items()}
        return features if self.mask is None else features | {"mask": self.mask}

    def sample_pattern(self):
        """The activation pattern of each sample: `[batch, ..., units]`, which add up to 1."""
        values = keras.ops.cast(self.features()["pattern"], "float32")
        return keras.ops.softmax(two_way(values), axis=-1)


class ActivationProbe(keras.Model):
    """A model whose outputs are the outputs of layers inside another model.

    It works for any model: Sequential (built or not), functional, nested, with shared layers,
    subclassed. A Dense layer's output is what follows its activation function, also where
    normalisation and activation are layers of their own. (An activation that a subclassed model
    applies as a bare function is not seen: what the layer returns is what is recorded.)

    Args:
        model: any Keras model. It is left as it is.
        layers: which layers; None for every `Dense`. A name (`"dense_1"`), a path
            (`"block/dense_1"`), a layer class (`keras.layers.Conv2D`), a predicate
            `layer -> bool`, a layer itself, or a list of these.
        patterns: give each sample's activation pattern, the softmax over the layer's units (of the
            logits, where the layer itself ends in softmax), in place of the layer's output.

    Raises:
        ValueError: no such layer.

    Example:

    >>> import numpy as np
    >>> block = keras.Sequential([keras.layers.Dense(8, "relu", name="inner")], name="block")
    >>> model = keras.Sequential([block, keras.layers.Dense(2, name="logits")])
    >>> outputs = ActivationProbe(model).predict(np.ones((5, 3)), verbose=0)
    >>> {path: output.shape for path, output in outputs.items()}
    {'block/inner': (5, 8), 'logits': (5, 2)}
    """

    def __init__(self, model, layers=None, patterns=False):
        if not isinstance(model, keras.Model):
            raise ValueError(
                f"model is a {type(model).__name__}; expected a keras.Model (load_model opens one)."
            )
        super().__init__(name="activation_probe")
        self.model = model
        self.recorder = Recorder(model, layers)
        self.patterns = patterns

    def call(self, inputs, training=False):
        _, activations = self.record(inputs, training=training)
        return {a.path: a.sample_pattern() if self.patterns else a.output for a in activations}

    def record(self, inputs, training=False):
        """`(outputs of the model, list of Activation in the order of the forward pass)`."""
        kwargs = {"training": training} if self.model._call_has_training_arg else {}
        build(self.model, inputs)
        with self.recorder.recording() as recording:
            outputs = self.model(inputs, **kwargs)
        self.recorder.check(recording.activations)
        return outputs, recording.activations

    def build(self, input_shape):
        """The model inside builds itself when it is called."""

    def _open_name_scope(self):
        # Variables that the model makes in here are to be named as in a call of its own.
        return contextlib.nullcontext()


class Recorder:
    """Wraps the chosen layers of a model while `recording`, and only then.

    Several threads may record at once (`MirroredStrategy` runs each replica in its own): the
    layers are wrapped when the first begins and put back when the last ends, and each thread
    fills its own list. A thread that does not record runs the layers as they are.

    Args:
        model, layers: as for `ActivationProbe`.
    """

    def __init__(self, model, layers=None):
        self.model = model
        self._layers = layers
        self._lock = threading.Lock()
        self._threads = 0
        self._wrapped = contextlib.ExitStack()
        self._local = threading.local()
        # Checked at once, unless the layers are still to be made in the first call.
        if model.built:
            choose_layers(model, layers)

    @contextlib.contextmanager
    def recording(self):
        """Records what the model does inside the block; yields the `Recording` that fills up."""
        with self._lock:
            if self._threads == 0:
                self._wrap_layers()
            self._threads += 1
        self._local.recording = Recording()
        try:
            yield self._local.recording
        finally:
            self._local.recording = None
            with self._lock:
                self._threads -= 1
                if self._threads == 0:
                    self._wrapped.close()

    def check(self, activations):
        """Raises or warns where chosen layers were not called."""
        called = {activation.path.partition("#")[0] for activation in activations}
        idle = [path for path in choose_layers(self.model, self._layers) if path not in called]
        if not activations:
            raise ValueError(
                f"None of the chosen layers {idle} could be recorded in the forward pass of "
                f"{self.model.name!r}: choose layers that its `call` runs, and {_UNDECORATE}."
            )
        if idle:
            warnings.warn(
                f"The layers {idle} do not run in the forward pass of {self.model.name!r} and "
                "are left out.",
                stacklevel=3,
            )

    def _wrap_layers(self):
        with contextlib.ExitStack() as stack:
            # An unbuilt Sequential already holds its layers, an unbuilt subclassed model may not.
            for path, layer in _choose(self.model, self._layers).items():
                if isinstance(layer, keras.layers.TimeDistributed):
                    self._wrap_time_distributed(stack, layer, path)
                else:
                    self._wrap(stack, layer, functools.partial(_target, path=path, layer=layer))
            for layer in _followers(self.model):
                self._wrap_follower(stack, layer)
            every_dense = self._layers is None or keras.layers.Dense in _listed(self._layers)
            self._wrap(stack, self.model, functools.partial(_outputs, every_dense=every_dense))
            self._wrapped = stack.pop_all()

    def _wrap_time_distributed(self, stack, wrapper, path):
        # TimeDistributed runs its layer step by step, out of reach inside a loop. A Dense layer
        # works on the last axis alone, so that on the whole sequence it gives the same.
        layer = wrapper.layer
        if not isinstance(layer, keras.layers.Dense):
            raise ValueError(
                f"{path!r} is a {type(layer).__name__} inside TimeDistributed, where its outputs "
                f"cannot be recorded: choose other layers, or apply it without the wrapper."
            )

        def whole_sequence(recording, original, inputs, **_):
            return layer.call(inputs)

        self._wrap(stack, layer, functools.partial(_target, path=path, layer=layer))
        self._wrap(stack, wrapper, whole_sequence)

    def _wrap_follower(self, stack, operation):
        # A float32 activation after a float16 layer is called with a cast copy, which no identity
        # connects with what was recorded: so the cast is moved from `__call__` into the wrapper.
        casts = getattr(operation, "_convert_input_args", False)

        def call(recording, original, *args, **kwargs):
            tensor = args[0] if args else next(iter(kwargs.values()))
            if casts:
                args, kwargs = tree.map_structure(
                    functools.partial(_cast, operation), (args, kwargs)
                )
            if recording is None:
                return original(*args, **kwargs)
            return _follow(recording, operation, tensor, original, args, kwargs)

        self._wrap(stack, operation, call, always=True)
        if casts:
            stack.enter_context(replaced_attributes(operation, {"_convert_input_args": False}))

    def _wrap(self, stack, operation, call, always=False):
        """Replaces `operation.call` by `call(recording, original, ...)` in threads that record, or,
        with None for the recording, `always`."""
        # Operation.__call__ looks here for quantized layers.
        name = "quantized_call" if getattr(operation, "quantization_mode", None) else "call"
        original = getattr(operation, name)

        @functools.wraps(original)
        def wrapper(*args, **kwargs):
            recording = getattr(self._local, "recording", None)
            if recording is None and not always:
                return original(*args, **kwargs)
            return call(recording, original, *args, **kwargs)

        stack.enter_context(replaced_attributes(operation, {name: wrapper}))


class Recording:
    """What was recorded of one forward pass.

    Attributes:
        activations: list of `Activation`, in the order of the calls.
        outputs: what the model returned last, None if it was not called as a whole.
    """

    def __init__(self):
        self.activations = []
        self.outputs = None
        self._calls = collections.Counter()
        # What the next layer may continue: id of a tensor -> (tensor, Activation). The tensor is
        # held because ids are used again.
        self.tails = {}
        # Every output and what other layers only pass on of it: id -> (tensor, Activation).
        self.ends = {}

    def add(self, activation, tensor):
        self._calls[activation.path] += 1
        if self._calls[activation.path] > 1:
            activation.path += f"#{self._calls[activation.path]}"
        self.activations.append(activation)
        self.ends[id(tensor)] = (tensor, activation)
        if activation.function is None:
            self.tails[id(tensor)] = (tensor, activation)


def _target(recording, original, *args, path, layer, **kwargs):
    """Records what a chosen layer returns."""
    with _spied_activation(layer) as seen:
        returned = original(*args, **kwargs)
    output = tree.flatten(returned)[0]
    function, pre_activation = None, output
    # Only what is applied last, once and outside of loops is the layer's activation function.
    if len(seen) == 1 and seen[0][2] is output:
        function, pre_activation, _ = seen[0]
    inputs = args[0] if args else next(iter(kwargs.values()))
    mask = get_keras_mask(inputs)
    activation = Activation(path, output, pre_activation, inputs, function, mask)
    activation.is_convolution = isinstance(layer, keras.layers.Conv2D)
    if getattr(layer, "data_format", None) == "channels_first" and len(output.shape) > 2:
        activation.unit_axis = 1
    recording.add(activation, output)
    return returned


def _follow(recording, layer, tensor, original, args, kwargs):
    """Lets an activation that follows a recorded layer, perhaps after normalisation and dropout,
    count as that layer's own."""
    inputs = args[0] if args else next(iter(kwargs.values()))
    output = original(*args, **kwargs)
    _, ended = recording.ends.get(id(tensor), (None, None))
    if kind(layer) == "passing" or is_linear(layer):
        if ended is not None:
            recording.ends[id(output)] = (output, ended)
        if not is_linear(layer):
            return output
    _, activation = recording.tails.pop(id(tensor), (None, None))
    if activation is None:
        return output
    if kind(layer) in ("normalization", "dropout") or is_linear(layer):
        recording.tails[id(output)] = (output, activation)
    else:
        activation.pre_activation, activation.output = inputs, output
        activation.function = _name(getattr(layer, "activation", None) or layer)
        recording.ends[id(output)] = (output, activation)
    return output


def _outputs(recording, original, *args, every_dense, **kwargs):
    """Marks what the model returns."""
    outputs = recording.outputs = original(*args, **kwargs)
    flat = tree.flatten(outputs)
    for activation in recording.activations:
        if _graph(activation.output) is not _graph(flat[0]):
            raise ValueError(
                f"The outputs of {activation.path!r} cannot be recorded, because it runs inside a "
                f"loop or a tf.function of its own: {_UNDECORATE}, or choose other layers."
            )
    for output in flat:
        tensor, activation = recording.ends.get(id(output), (None, None))
        if tensor is output:
            activation.is_output = True
    if (
        every_dense
        and recording.activations
        and not any(x.is_output for x in recording.activations)
    ):
        # A head that ends in a bare function hides the layer: it is the last one, most likely.
        recording.activations[-1].is_output = recording.activations[-1].function not in _SIGMOID
    return outputs


def build(model, inputs):
    """Calls a model that is not built yet, so that its layers are.

    To build, Keras runs a subclassed model in a scratch graph, whose tensors must not be recorded.
    """
    if not all(layer.built for layer in model._flatten_layers()):
        model(inputs)


def choose_layers(model, layers=None):
    """The chosen layers, path -> layer, in the order in which the model holds them.

    Args and errors as for `ActivationProbe`. A layer inside `TimeDistributed` comes as its
    wrapper.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="logits")])
    >>> list(choose_layers(model))
    ['logits']
    """
    chosen = _choose(model, layers)
    if not chosen:
        raise ValueError(
            f"{model.name!r} has no Dense layer"
            if layers is None
            else f"layers={layers!r} fits no layer of {model.name!r}"
        )
    return chosen


def _choose(model, layers):
    everything = {}
    for path, layer in _walk(model):
        # Only functional models see to it that names are unique.
        copies = sum(1 for other in everything if other.partition("@")[0] == path)
        everything[f"{path}@{copies + 1}" if copies else path] = layer
    layers = _listed([keras.layers.Dense] if layers is None else layers)
    chosen = {}
    if not isinstance(layers, list | tuple | set) or not all(
        isinstance(choice, str | type) or callable(choice) for choice in layers
    ):
        raise ValueError(
            f"layers={layers!r}; expected names, paths, layers, layer classes or predicates."
        )
    for choice in layers:
        fitting = [path for path, layer in everything.items() if _fits(choice, path, layer)]
        if isinstance(choice, str) and choice in everything:  # a path, whatever else has that name
            fitting = [choice]
        if not fitting and isinstance(choice, str):
            close = difflib.get_close_matches(choice, everything, n=3, cutoff=0.4)
            raise ValueError(
                f"There is no layer {choice!r} in {model.name!r}; "
                + (f"did you mean {' or '.join(map(repr, close))}? " if close else "")
                + f"It has {list(everything)}."
            )
        chosen.update(dict.fromkeys(fitting))
    return {path: layer for path, layer in everything.items() if path in chosen}


def _listed(layers):
    return [layers] if isinstance(layers, str | type) or callable(layers) else layers


def _fits(choice, path, layer):
    if isinstance(layer, keras.layers.TimeDistributed):
        layer = layer.layer
    if isinstance(choice, str):
        return choice in (path, layer.name)
    if isinstance(choice, keras.Layer):
        return choice is layer
    if isinstance(choice, type):
        return isinstance(layer, choice)
    return bool(choice(layer))


def _walk(layer, prefix="", seen=None):
    """Yields (path, layer) for everything inside `layer`, each layer once."""
    seen = {id(layer)} if seen is None else seen
    # Keras has no public list of the layers inside a layer that is no model.
    for child in layer._flatten_layers(include_self=False, recursive=False):
        if id(child) in seen or isinstance(child, keras.layers.InputLayer):
            continue
        seen.add(id(child))
        path = prefix + child.name
        if isinstance(child, keras.layers.TimeDistributed):
            seen.add(id(child.layer))
            path = f"{path}/{child.layer.name}"
        yield path, child
        yield from _walk(child, f"{path}/", seen)


def _followers(model):
    """Layers and operations that may belong to the layer before them."""
    for layer in model._flatten_layers():
        if kind(layer) is not None:
            yield layer
        for operation in getattr(layer, "operations", ()):
            if not isinstance(operation, keras.Layer) and kind(operation) is not None:
                yield operation


def _name(function):
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def _cast(layer, x):
    """What `Layer.__call__` does with its arguments first."""
    converted = layer.dtype_policy.convert_input(x, layer.autocast, layer.input_dtype)
    mask = get_keras_mask(x)
    if mask is not None:
        set_keras_mask(converted, mask)
    return converted


def _graph(tensor):
    """The TensorFlow graph of a symbolic tensor; None for any other tensor."""
    try:
        return tensor.graph
    except AttributeError:
        return None


@contextlib.contextmanager
def _spied_activation(layer):
    """Yields a list that gets (name, input, output) of the layer's own activation function."""
    seen = []
    function = getattr(layer, "activation", None)
    if not callable(function) or function is keras.activations.linear:
        yield seen
        return

    def spy(x, *args, **kwargs):
        output = function(x, *args, **kwargs)
        seen.append((_name(function), x, output))
        return output

    with replaced_attributes(layer, {"activation": spy}):
        yield seen


@contextlib.contextmanager
def replaced_attributes(target, values):
    """Sets instance attributes for a while, past Keras's tracking; puts back what was there."""
    before = {name: vars(target)[name] for name in values if name in vars(target)}
    vars(target).update(values)
    try:
        yield
    finally:
        for name in values:
            if name in before:
                vars(target)[name] = before[name]
            else:
                del vars(target)[name]
