"""How much of what a layer gives shows in what the network gives."""

import numpy as np
from keras import ops

from keras_layer_entropy.pruning.graph import flat_graph, run
from keras_layer_entropy.pruning.walking import mask_of, masked

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
    graph, found = flat_graph(model), {}
    values = {number: (batches[0][:SAMPLES], None) for number, batches in enumerate(inputs)}
    for call in graph.calls:
        values.update(_made(call, values))
    wanted = [_scores(values[number]) for number in graph.outputs]
    for place, call in enumerate(graph.calls):
        if call.path in paths and call.outputs[0] not in graph.outputs:
            changed = {call.outputs[0]: _disturbed(values[call.outputs[0]])}
            for later in graph.calls[place + 1 :]:
                if not changed.keys().isdisjoint(later.inputs):
                    changed.update(_made(later, {**values, **changed}))
            given = [_scores(changed.get(n, values[n])) for n in graph.outputs]
            sizes = [_distance(a, b) for a, b in zip(given, wanted, strict=True)]
            found[call.path] = max(found.get(call.path, 0.0), float(np.mean(sizes)) / _SIZE)
        elif call.path in paths:
            found[call.path] = 1.0
    return found


def _made(call, values):
    """Number -> (array, mask or None) of what a call gives."""
    given = run(call, [masked(*values[number]) for number in call.inputs])
    pairs = [(np.asarray(ops.convert_to_numpy(tensor)), mask_of(tensor)) for tensor in given]
    return dict(zip(call.outputs, pairs, strict=True))


def _disturbed(pair):
    x, mask = pair
    return x + (_SIZE * np.roll(x - x.mean(axis=0), 1, axis=0)).astype(x.dtype), mask


def _distance(found, wanted):
    """Root mean square of a change, relative to the spread over the samples."""
    spread = np.sum((wanted - wanted.mean(axis=0)) ** 2)
    return np.sqrt(np.sum((found - wanted) ** 2) / max(spread, np.finfo(float).tiny))


def _scores(pair):
    """Outputs as they are, `[samples, ...]`, but for probabilities: their logarithms."""
    outputs = pair[0].astype(np.float64)
    if outputs.min() < 0 or not np.allclose(outputs.sum(axis=-1), 1.0, atol=1e-2):
        return outputs
    logarithms = np.log(np.maximum(outputs, _LEAST))
    return logarithms - logarithms.mean(axis=-1, keepdims=True)
