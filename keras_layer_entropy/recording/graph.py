"""The calls inside a Sequential or functional model as one flat graph, nested models opened."""

import collections
import dataclasses
import itertools
from typing import Any

import keras
from keras.src.models.functional import Functional


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a layer or operation that is no Sequential or functional model.

    Attributes:
        path: slash path of the layer.
        operation: the layer or operation.
        inputs, outputs: numbers of the tensors that go in and come out.
        node: Keras's node of the call.
        training: whether it, or a model around it, is called with `training=True`.
    """

    path: str
    operation: Any
    inputs: tuple
    outputs: tuple
    node: Any = dataclasses.field(repr=False)
    training: bool = False


@dataclasses.dataclass(frozen=True)
class Graph:
    """Calls in the order of the forward pass.

    Attributes:
        calls: tuple of `Call`.
        outputs: numbers of the tensors that the model returns.
        nested: path of each nested model -> numbers of the tensors it is called with.
        shapes, dtypes: number of a tensor -> its shape and dtype.
        arguments: id of each variable that a call takes as an argument -> path of the call.
    """

    calls: tuple
    outputs: tuple
    nested: dict
    shapes: dict
    dtypes: dict
    arguments: dict

    def calls_of(self, path):
        """All calls of one layer."""
        return [call for call in self.calls if call.path == path]

    def consumers(self, tensor):
        """The calls that take a tensor."""
        return [call for call in self.calls if tensor in call.inputs]

    def reaches(self, tensor, stops):
        """Where a tensor goes: `(stopping, passed, outputs)`.

        The calls that it reaches first for which `stops(call)`, those that it passes through
        before, and the outputs of the model that it reaches through these alone.
        """
        reached, stopping, passed = {tensor}, [], []
        for call in self.calls:  # in order, so that each call comes after what it takes
            if reached.intersection(call.inputs):
                if stops(call):
                    stopping.append(call)
                else:
                    passed.append(call)
                    reached.update(call.outputs)
        return stopping, passed, [output for output in self.outputs if output in reached]


def flat_graph(model):
    """The graph of a model.

    Args:
        model: a built Sequential or functional model.

    Raises:
        ValueError: a subclassed model, or one that is not built.

    Example:

    >>> dense = keras.layers.Dense
    >>> block = keras.Sequential([keras.Input((3,)), dense(8, name="a")], name="block")
    >>> model = keras.Sequential([keras.Input((3,)), block, dense(2, name="logits")])
    >>> [call.path for call in flat_graph(model).calls]
    ['block/a', 'logits']
    """
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"model={model!r}; expected a keras.Model (load_model opens what was saved)."
        )
    functional = opened(model)
    if functional is None and isinstance(model, keras.Sequential):
        raise ValueError(
            f"{model.name!r} is not built, so that its shapes are not known: give it a "
            "keras.Input(shape) first, or call it on a batch."
        )
    if functional is None:
        raise ValueError(
            f"{model.name!r} is a subclassed model ({type(model).__name__}), whose call is code "
            "that cannot be rewritten. analyze_model works on it; to take layers out, make it "
            "functional: keras.Model(inputs, outputs) from the same layers."
        )
    graph = Graph([], (), {}, {}, {}, {})
    numbers = itertools.count()
    bound = {id(tensor): next(numbers) for tensor in functional.inputs}
    for tensor in functional.inputs:
        _describe(graph, bound[id(tensor)], tensor)
    outputs = _collect(functional, "", bound, graph, numbers)
    held = {}
    for call in graph.calls:
        other = held.setdefault(id(call.operation), call.path)
        if other != call.path and getattr(call.operation, "weights", ()):
            raise ValueError(
                f"One layer of {model.name!r} is in two nested models, {other!r} and "
                f"{call.path!r}: a Keras configuration does not keep that, so that the model "
                "cannot be made again without a layer."
            )
    return dataclasses.replace(graph, calls=tuple(graph.calls), outputs=tuple(outputs))


def opened(operation):
    """The functional model inside a Sequential or functional one; None for anything else."""
    if isinstance(operation, keras.Sequential):
        return operation._functional if type(operation).call is keras.Sequential.call else None
    # A subclass may have a call of its own.
    is_graph = isinstance(operation, Functional) and type(operation).call is Functional.call
    return operation if is_graph else None


def _collect(functional, prefix, bound, graph, numbers, training=False):
    """Appends the calls of a functional model; returns the numbers of its outputs.

    `bound` maps the ids of its tensors to their numbers.
    """
    for depth in sorted(functional._nodes_by_depth, reverse=True):
        for node in functional._nodes_by_depth[depth]:
            if node.is_input:
                continue
            path = prefix + node.operation.name
            given = tuple(bound[id(tensor)] for tensor in node.input_tensors)
            values = keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
            graph.arguments.update((id(x), path) for x in values if isinstance(x, keras.Variable))
            told = training or node.arguments.kwargs.get("training") not in (None, False)
            inner = opened(node.operation)
            if inner is None:
                results = [next(numbers) for _ in node.output_tensors]
                graph.calls.append(Call(path, node.operation, given, tuple(results), node, told))
            else:
                given = nested_inputs(inner, node.arguments.args, node.arguments.kwargs)
                numbered = [bound[id(tensor)] for tensor in given]
                graph.nested.setdefault(path, []).append(tuple(numbered))
                within = dict(zip(map(id, inner.inputs), numbered, strict=True))
                results = _collect(inner, f"{path}/", within, graph, numbers, told)
            for number, tensor in zip(results, node.output_tensors, strict=True):
                bound[id(tensor)] = number
                _describe(graph, number, tensor)
    return [bound[id(tensor)] for tensor in functional.outputs]


def _describe(graph, number, tensor):
    graph.shapes.setdefault(number, tensor.shape)
    graph.dtypes.setdefault(number, tensor.dtype)


def run(call, values, operation=None):
    """The outputs of a call, a flat list, for values of its inputs; nothing is moved by it.

    Args:
        call: `Call`.
        values: list of arrays or tensors, one for each of its inputs.
        operation: what is called in place of its operation.
    """
    given = dict(zip(map(id, call.node.input_tensors), values, strict=True))
    args, kwargs = call.node.arguments.fill_in(given)
    with keras.StatelessScope():  # states, seeds and losses stay as they are
        return keras.tree.flatten((operation or call.operation)(*args, **kwargs))


def nested_inputs(inner, args, kwargs):
    """The symbolic tensors that a nested model is called with, in the order of its inputs."""
    given = (*args, *kwargs.values())[0]
    if isinstance(given, dict) and not isinstance(inner._inputs_struct, dict):
        given = [given[tensor._keras_history.operation.name] for tensor in inner.inputs]
    tensors = [x for x in keras.tree.flatten(given) if isinstance(x, keras.KerasTensor)]
    return tensors[: len(inner.inputs)]


def first_tensor(args, kwargs):
    """The first symbolic tensor that an operation is called with."""
    tensors = keras.tree.flatten((args, kwargs))
    return next(tensor for tensor in tensors if isinstance(tensor, keras.KerasTensor))


def shared_paths(graph):
    """Paths of layers that are called more than once."""
    calls = collections.Counter(id(call.operation) for call in graph.calls)
    return {call.path for call in graph.calls if calls[id(call.operation)] > 1}


def turns(graph, whole, waiting=None):
    """An order in which calls can be made, those of one layer together where that is possible.

    They come apart where one of them takes what comes of another.

    Args:
        graph: `Graph`.
        whole: a function of an operation: whether its calls are to be together.
        waiting: index of a call -> number of a tensor that it does not take, but waits for.

    Returns:
        List of tuples of indices of `graph.calls`.

    Example:

    >>> a, b, c = (keras.layers.Dense(3, name=name) for name in "abc")
    >>> one, other = keras.Input((3,)), keras.Input((3,))
    >>> model = keras.Model([one, other], [c(a(one)), a(b(other))])
    >>> graph = flat_graph(model)
    >>> [[graph.calls[i].path for i in turn] for turn in turns(graph, lambda layer: True)]
    [['b'], ['a', 'a'], ['c']]
    """
    calls, waits = graph.calls, waiting or {}
    siblings = collections.defaultdict(list)
    for index, call in enumerate(calls):
        siblings[id(call.operation) if whole(call.operation) else index].append(index)
    groups = {index: group for group in siblings.values() for index in group}
    coming = {number for call in calls for number in call.outputs}
    left, found = dict.fromkeys(range(len(calls))), []
    while left:
        ready = [i for i in left if not coming.intersection((*calls[i].inputs, waits.get(i)))]
        together = (groups[i] for i in ready if set(groups[i]) <= set(ready))
        # Else one call of several is made, and the others when they can be.
        turn = tuple(next(together, ready[:1]))
        found.append(turn)
        for index in turn:
            del left[index]
            groups[index].remove(index)
            coming.difference_update(calls[index].outputs)
    return found
