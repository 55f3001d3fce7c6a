"""Record what chosen layers of any model do in one forward pass.

Keras 3 has no hooks, and `layer.output` fails for subclassed, nested and unbuilt models and
silently shows the first call of a shared layer. So the `call` of the chosen layers is wrapped
while the model runs, and only then, as Keras does it itself to calibrate GPTQ.
"""

import collections
import contextlib
import warnings

import keras

from keras_layer_entropy.recording.following import (
    UNDECORATE,
    Recording,
    watch_follower,
    watch_outputs,
    watch_target,
    watch_turns,
)
from keras_layer_entropy.recording.layer_kinds import kind
from keras_layer_entropy.recording.layers import choose, choose_layers, listed, said_of
from keras_layer_entropy.recording.watching import watched


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
        for path, layer in choose(model, self._layers)[0].items():
            calls += watch_target(recording, path, layer)
        followers = _followers(model)
        for operation, alone in followers:
            calls += watch_follower(recording, self._effects, operation, alone)
        calls += watch_turns(recording, model._flatten_layers())
        every_dense = self._layers is None or keras.layers.Dense in listed(self._layers)
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
        if hidden := choose(self.model, self._layers)[1]:
            warnings.warn(f"{said_of(hidden)}: left out.", stacklevel=3)


def build(model, inputs):
    """Calls a model that is not built yet, so that its layers are.

    To build, Keras runs a subclassed model in a scratch graph, whose tensors must not be recorded.
    """
    if not all(layer.built for layer in model._flatten_layers()):
        model(inputs)


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
