"""The calls of a model in stretches, each made in one go: what follows from a tensor inside it."""

from keras import ops

from keras_layer_entropy.backend import traced
from keras_layer_entropy.pruning.walking import mask_of, masked
from keras_layer_entropy.recording.graph import run

_OFTEN = 12  # runs, after which tracing is worth what it takes


class Stretches:
    """The calls of a model, in stretches that end where something is asked for or replaced.

    In a stretch each call takes what others of it give, so that all of it changes, or nothing. On
    TensorFlow, which takes longer to make many operations one by one than to compute them, one that
    runs often is traced.

    Args:
        graph: `Graph` of a model.
        cuts: numbers of the tensors that are asked for or replaced.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from keras_layer_entropy.recording.graph import flat_graph
    >>> layers = [keras.layers.Rescaling(scale, name=f"times_{scale}") for scale in (2, 3, 5)]
    >>> graph = flat_graph(keras.Sequential([keras.Input((1,)), *layers]))
    >>> stretches = Stretches(graph, {graph.calls[0].outputs[0]})
    >>> values = stretches.values([np.ones((1, 1))])
    >>> {number: float(tensor[0, 0]) for number, (tensor, _) in values.items()}
    {0: 1.0, 1: 2.0, 3: 30.0}
    >>> changed = stretches.changed(values, {1: np.full((1, 1), 3.0)})
    >>> {number: float(tensor[0, 0]) for number, (tensor, _) in changed.items()}
    {1: 3.0, 3: 45.0}
    """

    def __init__(self, graph, cuts):
        place, members = {}, []  # number of a tensor -> the stretch that makes it
        for call in graph.calls:
            before = {place[number] for number in call.inputs if number in place}
            if len(before) == 1 and not cuts & set(call.inputs):
                (index,) = before
                members[index].append(call)
            else:
                index = len(members)
                members.append([call])
            place.update(dict.fromkeys(call.outputs, index))
        wanted = {*cuts, *graph.outputs}
        for call in graph.calls:
            wanted.update(x for x in call.inputs if place.get(x) != place[call.outputs[0]])
        self._stretches = [_Stretch(calls, wanted) for calls in members]

    def values(self, inputs):
        """What there is between the stretches: number -> (tensor, its mask or None).

        Args:
            inputs: of the model, arrays or tensors.
        """
        return self.changed({}, dict(enumerate(inputs)))

    def changed(self, values, instead):
        """What changes with some tensors, these among it: number -> (tensor, its mask or None).

        Args:
            values: what `values` gave.
            instead: number of a tensor of `cuts` -> what it is; its mask stays.
        """
        found = {
            number: (ops.convert_to_tensor(x), values.get(number, (None, None))[1])
            for number, x in instead.items()
        }
        for stretch in self._stretches:
            if not found.keys().isdisjoint(stretch.inputs):
                known = (found.get(number) or values[number] for number in stretch.inputs)
                made = zip(stretch.outputs, stretch(list(known)), strict=True)
                found.update((number, pair) for number, pair in made if number not in instead)
        return found


class _Stretch:
    """Some calls, each of which but the first takes what another one gives.

    Args:
        calls: list of `Call`.
        wanted: numbers of tensors that are asked for.
    """

    def __init__(self, calls, wanted):
        made = {number for call in calls for number in call.outputs}
        self.inputs = tuple(dict.fromkeys(x for c in calls for x in c.inputs if x not in made))
        self.outputs = tuple(number for number in made if number in wanted)
        self._calls, self._runs, self._made = calls, 0, self._one_by_one

    def __call__(self, pairs):
        """`(tensor, mask)` of each of its outputs, for those of its inputs."""
        self._runs += 1
        if self._runs == _OFTEN:
            self._made = traced(self._one_by_one)
        return self._made(pairs)

    def _one_by_one(self, pairs):
        values = dict(zip(self.inputs, pairs, strict=True))
        for call in self._calls:
            given = run(call, [masked(*values[number]) for number in call.inputs])
            # PyTorch would hold all that a tensor comes of.
            made = [(ops.stop_gradient(ops.convert_to_tensor(x)), mask_of(x)) for x in given]
            values.update(zip(call.outputs, made, strict=True))
        return [values[number] for number in self.outputs]
