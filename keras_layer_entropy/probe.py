"""Choose layers in any model and record their outputs in one forward pass.

Keras 3 has no hooks, and `layer.output` fails for subclassed, nested and unbuilt models and
silently shows the first call of a shared layer. So the `call` of the chosen layers is wrapped
while the model runs, and only then, as Keras does it itself to calibrate GPTQ.
"""

import collections
import contextlib
import difflib
import warnings

import keras

from keras_layer_entropy.following import (
    UNDECORATE,
    Recording,
    watch_follower,
    watch_outputs,
    watch_target,
    watch_turns,
)
from keras_layer_entropy.layer_kinds import kind
from keras_layer_entropy.watching import watched


class ActivationProbe(keras.Model):
    """A model whose outputs are the outputs of layers inside another model.

    It works for any model: Sequential (built or not), functional, nested, with shared layers,
    subclassed. A Dense layer's output is what follows its activation function, also where
    normalisation and activation are layers or operations of their own. (An activation that a
    subclassed model applies as a bare function is not seen: what the layer returns is what is
    recorded.) Further calls of a shared layer are called `name#2`, `name#3`, ... in the order in
    which the model's code calls it.

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
        self.recorder.check(recording)
        return outputs, recording.activations

    def build(self, input_shape):
        """The model inside builds itself when it is called."""

    def _open_name_scope(self):
        # Variables that the model makes in here are to be named as in a call of its own.
        return contextlib.nullcontext()


class Recorder:
    """Watches the chosen layers of a model while `recording`, and only then.

    Several threads may record at once, with one recorder or several, also models that share
    layers: each sees what it does itself, and the layers are put back when the last has ended.

    Args:
        model, layers: as for `ActivationProbe`.
    """

    def __init__(self, model, layers=None):
        self.model = model
        self._layers = layers
        self._effects = {}
        # Checked at once, unless the layers are still to be made in the first call.
        if model.built:
            choose_layers(model, layers)

    @contextlib.contextmanager
    def recording(self):
        """Records what the model does inside the block; yields the `Recording` that fills up."""
        recording, model, calls = Recording(), self.model, []
        # An unbuilt Sequential already holds its layers, an unbuilt subclassed model may not.
        for path, layer in _choose(model, self._layers)[0].items():
            calls += watch_target(recording, path, layer)
        followers = _followers(model)
        for operation, alone in followers:
            calls += watch_follower(recording, self._effects, operation, alone)
        calls += watch_turns(recording, model._flatten_layers())
        every_dense = self._layers is None or keras.layers.Dense in _listed(self._layers)
        calls += watch_outputs(recording, model, guess=every_dense)
        with watched(calls, uncast=_that_may_cast(model, followers)):
            yield recording

    def check(self, recording):
        """Raises or warns where chosen layers were not called, or out of reach."""
        activations = recording.activations
        for path in recording.out_of_reach:
            raise ValueError(
                f"The outputs of {path!r} cannot be recorded, because it runs inside a loop or a "
                f"tf.function of its own: {UNDECORATE}, or choose other layers."
            )
        called = {activation.path.partition("#")[0] for activation in activations}
        idle = [path for path in choose_layers(self.model, self._layers) if path not in called]
        if not activations:
            raise ValueError(
                f"None of the chosen layers {idle} could be recorded in the forward pass of "
                f"{self.model.name!r}: choose layers that its `call` runs, and {UNDECORATE}."
            )
        if idle:
            warnings.warn(
                f"The layers {idle} do not run in the forward pass of {self.model.name!r} and "
                "are left out.",
                stacklevel=3,
            )
        if hidden := _choose(self.model, self._layers)[1]:
            warnings.warn(f"{_said_of(hidden)}: left out.", stacklevel=3)


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
    chosen, hidden = _choose(model, layers)
    if not chosen and hidden:
        raise ValueError(
            f"{_said_of(hidden)}: choose other layers, or apply them without the wrapper."
        )
    if not chosen:
        raise ValueError(
            f"{model.name!r} has no Dense layer"
            if layers is None
            else f"layers={layers!r} fits no layer of {model.name!r}"
        )
    return chosen


def _choose(model, layers):
    """The chosen layers, path -> layer; and of those out of reach, path -> where they are."""
    everything, places = {}, {}
    for path, layer, wrapper in _walk(model):
        # Only functional models see to it that names are unique.
        copies = sum(1 for other in everything if other.partition("@")[0] == path)
        path = f"{path}@{copies + 1}" if copies else path
        everything[path] = layer
        if wrapper is not None:
            places[path] = wrapper
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
        one = isinstance(choice, str | keras.Layer)
        if fitting and one and (hidden := {p: places[p] for p in fitting if p in places}):
            raise ValueError(
                f"{_said_of(hidden)}: choose other layers, or apply them without the wrapper."
            )
        chosen.update(dict.fromkeys(fitting))
    return (
        {path: x for path, x in everything.items() if path in chosen and path not in places},
        {path: wrapper for path, wrapper in places.items() if path in chosen},
    )


def _said_of(hidden):
    """What is said of layers that are out of reach, path -> where they are."""
    where = " and ".join(dict.fromkeys(hidden.values()))
    return f"The layers {list(hidden)} are inside {where}, where outputs cannot be recorded"


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


def _walk(layer, prefix="", wrapper=None, seen=None):
    """Yields (path, layer, wrapper) for everything inside `layer`, each layer once.

    The wrapper is the kind of layer, if any, that runs it step by step, out of reach in a loop.
    """
    seen = {id(layer)} if seen is None else seen
    # Keras has no public list of the layers inside a layer that is no model.
    for child in layer._flatten_layers(include_self=False, recursive=False):
        if id(child) in seen or isinstance(child, keras.layers.InputLayer):
            continue
        seen.add(id(child))
        path, around, inner = prefix + child.name, wrapper, wrapper
        if isinstance(child, keras.layers.TimeDistributed):
            seen.add(id(child.layer))
            path = f"{path}/{child.layer.name}"
            inner = wrapper or "TimeDistributed"
            around = wrapper if isinstance(child.layer, keras.layers.Dense) else inner
        yield path, child, around
        if isinstance(child, keras.layers.TimeDistributed):
            yield from _walk(child.layer, f"{path}/", inner, seen)
        if isinstance(child, keras.layers.RNN):
            inner = wrapper or type(child).__name__
        yield from _walk(child, f"{path}/", inner, seen)


def _followers(model):
    """What may belong to the layer before it: (operation, whether it alone takes its inputs)."""
    found = []
    for layer in model._flatten_layers():
        if kind(layer) or not (layer.variables or isinstance(layer, keras.Model)):
            found.append((layer, False))
        if isinstance(layer, keras.Function):
            found += [(x, y) for x, y in _alone(layer) if not isinstance(x, keras.Layer)]
    return found


def _alone(graph):
    """The operations of a functional model, and whether nothing else takes what each is given."""
    nodes = [n for depth in graph._nodes_by_depth.values() for n in depth if n.operation]
    taken = collections.Counter(id(x) for node in nodes for x in node.input_tensors)
    taken.update(map(id, graph.outputs))
    for node in nodes:
        yield node.operation, all(taken[id(x)] == 1 for x in node.input_tensors)


def _that_may_cast(model, followers):
    """The followers whose inputs may be cast to another dtype first."""
    layers = [x for x, _ in followers if getattr(x, "_convert_input_args", False)]
    return layers if len({x.compute_dtype for x in model._flatten_layers()}) > 1 else []


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
