"""How much of what a layer gives shows in what the network gives."""

import numpy as np

from keras_layer_entropy.pruning.stretches import Stretches
from keras_layer_entropy.pruning.walking import Walk, array_of
from keras_layer_entropy.recording.graph import flat_graph

SAMPLES = 64
_SIZE = 0.1  # of what is added, beside the spread of what a layer gives
_LEAST = 1e-7  # probability, as in Keras's losses


def effects(model, inputs, paths):
    """The effect of layers on the outputs of a model.

    To what a layer gives for each sample, a tenth is added of how another sample differs from the
    mean. The effect is the root mean square of the change of the outputs, relative to their spread
    over the samples, divided by 0.1: it is 1 for a layer that gives the outputs. Outputs that are
    probabilities are compared by their logarithms.

    Args:
        model: a built Sequential or functional model; it is not changed.
        inputs: what `walking.inputs_of` gave for it; the first `SAMPLES` samples are used.
        paths: of layers. Of one that is called several times, the call with the largest effect
            counts; of several outputs, the mean.

    Returns:
        Path -> effect.

    Example:

    >>> import keras
    >>> dense = keras.layers.Dense
    >>> model = keras.Sequential([keras.Input((4,)), dense(8, name="a"), dense(2, name="b")])
    >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    >>> found = effects(model, [[x]], ["a", "b"])
    >>> {path: round(effect, 2) for path, effect in found.items()}  # all is linear
    {'a': 1.0, 'b': 1.0}
    """
    calls = [call for call in flat_graph(model).calls if call.path in paths]
    outputs, found = Outputs(model, inputs, {call.outputs[0] for call in calls}), {}
    for call in calls:
        number = call.outputs[0]
        if number in outputs.graph.outputs:
            found[call.path] = 1.0
        else:
            change = outputs.change({number: _disturbed(outputs.value(number))}) / _SIZE
            found[call.path] = max(found.get(call.path, 0.0), change)
    return found


class Outputs:
    """What a model gives for some samples, and how that changes with what is inside.

    Args:
        model, inputs: as for `effects`.
        inside: numbers of the tensors that are looked at or replaced.
    """

    def __init__(self, model, inputs, inside):
        self.graph = flat_graph(model)
        self._stretches = Stretches(self.graph, inside)
        self._values = self._stretches.values([batches[0][:SAMPLES] for batches in inputs])
        self._wanted = [_scores(self._values[number]) for number in self.graph.outputs]
        _check_finite(model, self._wanted)

    def value(self, number):
        """A tensor by its number, an array."""
        return array_of(self._values[number][0])

    def change(self, instead):
        """The root mean square change of the outputs, relative to their spread over the samples.

        Args:
            instead: number of a tensor inside the model -> what it is in place of what it was.
        """
        changed = self._stretches.changed(self._values, instead)
        given = [_scores(changed.get(n, self._values[n])) for n in self.graph.outputs]
        sizes = [_distance(a, b) for a, b in zip(given, self._wanted, strict=True)]
        return float(np.mean(sizes))


def distance(model, other, inputs):
    """How far the outputs of a model are from those of another one, as `Outputs.change` says it.

    Args:
        model, other: built Sequential or functional models of the same inputs and outputs.
        inputs: what `walking.inputs_of` gave for `other`; all samples are used.
    """
    found, wanted = (
        [_scores((np.concatenate(batches), None)) for batches in _outputs(each, inputs)]
        for each in (model, other)
    )
    _check_finite(other, wanted)
    return float(np.mean([_distance(a, b) for a, b in zip(found, wanted, strict=True)]))


def _check_finite(model, outputs):
    """Raises where nothing could be compared with what a model gives."""
    if not all(np.isfinite(array).all() for array in outputs):
        raise ValueError(
            f"What {model.name!r} gives is not finite (NaN or infinite) for some of the "
            "calibration data: look at these data, and at its weights."
        )


def _outputs(model, inputs):
    walk = Walk(model, inputs)
    for call in walk.graph.calls:
        walk.make(call)
    return [walk.value(number) for number in walk.graph.outputs]


def _disturbed(x):
    return x + (_SIZE * np.roll(x - x.mean(axis=0), 1, axis=0)).astype(x.dtype)


def _distance(found, wanted):
    """Root mean square of a change, relative to the spread over the samples."""
    spread = np.sum((wanted - wanted.mean(axis=0)) ** 2)
    return np.sqrt(np.sum((found - wanted) ** 2) / max(spread, np.finfo(float).tiny))


def _scores(pair):
    """Outputs as they are, `[samples, ...]`, but for probabilities: their logarithms."""
    outputs = array_of(pair[0]).astype(np.float64)
    if outputs.min() < 0 or not np.allclose(outputs.sum(axis=-1), 1.0, atol=1e-2):
        return outputs
    logarithms = np.log(np.maximum(outputs, _LEAST))
    return logarithms - logarithms.mean(axis=-1, keepdims=True)
