"""Copies of live Keras objects, with variables of their own.

A configuration holds what its author put into it: own layers leave out their names or arguments,
lambdas lose what they close over, adapters are merged. So nothing is serialized here. An object is
copied with the attributes that it has now, and only graphs are made anew, by calling the copies.
"""

import collections
import copy
import dataclasses
import functools
import types
from typing import Any

import keras
import numpy as np
from keras import ops, tree
from keras.src.initializers.random_initializers import RandomInitializer
from keras.src.models.functional import Functional
from keras.src.models.model import Trainer
from keras.src.ops.node import Node
from keras.src.random.seed_generator import make_default_seed
from keras.src.utils.tracking import Tracker

from keras_layer_entropy import backend
from keras_layer_entropy.backend import attributes, is_torch_module
from keras_layer_entropy.pruning.linear import ATTENTION
from keras_layer_entropy.recording.graph import first_tensor, nested_inputs
from keras_layer_entropy.recording.passes import own_variables

# What `compile` and `fit` leave on a model: it is compiled anew.
_TRAINING = {
    *("optimizer", "history", "train_function", "test_function", "predict_function"),
    *("_compile_config", "_compile_loss", "_compile_metrics", "_loss_tracker", "_jax_state"),
    *("_compiled_trainable_state", "_eval_epoch_iterator"),
    *("stop_training", "stop_evaluating", "stop_predicting"),
}
# What a layer gets from `__new__`, or from the calls of one graph.
_OF_ITS_OWN = {"build", "quantize", "_inbound_nodes", "_outbound_nodes", "_losses", "_loss_ids"}
_LIBRARIES = {"builtins", "jax", "jaxlib", "numpy", "tensorflow", "torch"}
_STATEFUL = (
    *(keras.Variable, keras.Operation, keras.Metric, keras.Optimizer),
    keras.random.SeedGenerator,
)


@dataclasses.dataclass(frozen=True)
class Bypass:
    """A call that is not made.

    Attributes:
        node: Keras's node of the call, of one output.
        tensor: what goes on in its place, a tensor of the same graph before it.
        layer: a new layer through which that goes; None for none.
    """

    node: Any
    tensor: Any
    layer: Any = None


def left_out(operations):
    """`Bypass`es of all calls of operations: what they take first goes on in their place."""
    nodes = (node for operation in operations for node in operation._inbound_nodes)
    return [
        Bypass(node, first_tensor(node.arguments.args, node.arguments.kwargs))
        for node in nodes
        if not node.is_input
    ]


class Copies:
    """Makes copies, one of each object: what is shared in the original is shared in the copy.

    Variables, layers, operations, metrics and seed generators are copied, and containers and
    objects that hold any. All else is the same object: functions, initializers, constants. A
    function gets copies only of what it closes over of the model itself.

    Args:
        model: the model that is copied, `Copies(model)(model)`; it is not changed.
        bypasses: list of `Bypass`; what only goes into calls that are not made is left out, too.
        edits: pairs of an operation and a function that its copy is given to, before it is called
            for the first time.

    Attributes:
        nodes: pairs of a call of the model, Keras's node, and the one in its place.
    """

    def __init__(self, model, bypasses=(), edits=()):
        self._bypasses = {id(bypass.node): bypass for bypass in bypasses}
        self.nodes = []
        self._copied = model
        self._edits = {id(operation): edit for operation, edit in edits}
        self._changed = set(self._edits)
        self._parts = {id(model)}
        for layer in model._flatten_layers():
            self._parts.update(map(id, (layer, *own_variables(layer))))
        self._memo = {}  # id -> (original, copy); the original is held because ids are used again
        self._deep = {}  # the same of what PyTorch holds, for `copy.deepcopy`

    def __call__(self, value):
        """The copy of anything, or the same object where there is nothing in it to copy."""
        if id(value) in self._memo:
            return self._memo[id(value)][1]
        if isinstance(value, keras.Variable):
            return self._variable(value)
        if _graph_of(value) is not None:
            return self._model(value, [tensor.shape for tensor in _graph_of(value).inputs])
        if isinstance(value, (*_STATEFUL, Tracker)):
            return self._object(value)
        if is_torch_module(value):
            return copy.deepcopy(value, self._deep)
        if isinstance(value, tuple):
            return self._tuple(value)
        if isinstance(value, list | dict | set):
            return self._container(value)
        return self._other(value) if self._holds_state(value, set()) else value

    @functools.cached_property
    def gone(self):
        """The layers and operations that the copy does not call."""
        if not self._bypasses:
            return []
        graph = _graph_of(self._copied)
        called = {id(operation) for operation in self._operations(graph, self._called_in)}
        return [x for x in self._operations(graph, _nodes_of) if id(x) not in called]

    def _operations(self, graph, nodes_of):
        """The operations of some nodes of a graph, and of the graphs inside them."""
        for node in nodes_of(graph):
            yield node.operation
            inner = _graph_of(node.operation)
            if inner is not None:
                yield from self._operations(inner, nodes_of)

    def _called_in(self, graph):
        """The nodes of a graph that are made in the copy."""
        nodes = _nodes_of(graph)
        needed = self._needed(graph, nodes)
        return [n for n in nodes if id(n) in needed and id(n) not in self._bypasses]

    def pairs(self, kind):
        """`(original, copy)` of every object of a class."""
        return [pair for pair in self._memo.values() if isinstance(pair[0], kind)]

    def keep(self, old, new):
        """Lets `new` be the copy of `old`."""
        self._memo[id(old)] = (old, new)
        return new

    def _variable(self, old):
        new = keras.Variable(
            np.array(ops.convert_to_numpy(old)),
            dtype=old._dtype,
            trainable=old.trainable,
            autocast=old._autocast,
            aggregation=old.aggregation,
            synchronization=old.synchronization,
            name=old.name,
        )
        for name, attribute in vars(old).items():
            if name != "_value" and not name.startswith("_self_"):  # of TensorFlow's tracking
                vars(new)[name] = attribute
        if backend.name() == "torch":  # a module of PyTorch's own may hold the same tensor
            new._value = copy.deepcopy(old._value, self._deep)
        return self.keep(old, new)

    def _object(self, old):
        make = type(old).__new__ if isinstance(old, keras.Operation) else object.__new__
        new = self.keep(old, make(type(old)))
        skipped = _OF_ITS_OWN if isinstance(old, keras.Operation) else set()
        if isinstance(old, keras.Model):
            skipped = skipped | _TRAINING
        for name in set(vars(new)) - skipped:
            del vars(new)[name]
        for name, value in vars(old).items():
            if name not in skipped:
                vars(new)[name] = self(value)
        if isinstance(old, keras.Operation):
            vars(new).update(_inbound_nodes=[], _outbound_nodes=[], _losses=[], _loss_ids=set())
        if isinstance(old, keras.Model):
            Trainer.__init__(new)
        if isinstance(old, Tracker):
            stores = {name: store for name, (_, store) in new.config.items()}
            new.stored_ids = {name: set(map(id, store)) for name, store in stores.items()}
        return new

    def _tuple(self, value):
        parts = [self(part) for part in value]
        if all(new is old for new, old in zip(parts, value, strict=True)):
            return value
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)

    def _container(self, value):
        kind = next(k for k in (collections.OrderedDict, dict, set, list) if isinstance(value, k))
        # TensorFlow wraps what its modules hold, and wraps it again.
        wrapped = type(value).__module__.startswith("tensorflow")
        new = self.keep(value, kind() if wrapped else type(value).__new__(type(value)))
        # Past what Keras does when something is added: all of it is in its lists already.
        if issubclass(kind, dict):
            for key, part in value.items():
                kind.__setitem__(new, self(key), self(part))
        else:
            (kind.update if kind is set else kind.extend)(new, map(self, value))
        if isinstance(value, collections.defaultdict):
            new.default_factory = value.default_factory
        if hasattr(new, "__dict__"):
            vars(new).update((name, self(part)) for name, part in vars(value).items())
        return new

    def _other(self, value):
        if isinstance(value, types.MethodType):
            return types.MethodType(value.__func__, self(value.__self__))
        if isinstance(value, functools.partial):
            keywords = {name: self(part) for name, part in value.keywords.items()}
            return functools.partial(self(value.func), *map(self, value.args), **keywords)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if hasattr(value, "python_function"):  # tf.function
            return self.keep(value, value._clone(self(value.python_function)))
        if hasattr(value, "assign"):  # tf.Variable
            return self.keep(value, copy.deepcopy(value))
        return self._object(value)

    def _function(self, old):
        cells = [types.CellType() for _ in old.__closure__]
        new = types.FunctionType(
            old.__code__, old.__globals__, old.__name__, old.__defaults__, tuple(cells)
        )
        self.keep(old, new)
        new.__kwdefaults__ = old.__kwdefaults__
        vars(new).update(vars(old))
        for cell, twin in zip(old.__closure__, cells, strict=True):
            if _is_filled(cell):
                twin.cell_contents = self(cell.cell_contents)
        return new

    def _holds_state(self, value, seen, of_model=False):
        """Whether anything in a value is to be copied; `of_model` asks for parts of the model."""
        if id(value) in seen:
            return False
        seen.add(id(value))
        if isinstance(value, _STATEFUL) or _is_tensorflow_variable(value):
            return not of_model or id(value) in self._parts
        of_model = of_model or isinstance(value, types.FunctionType)
        return any(self._holds_state(part, seen, of_model) for part in _parts_of(value))

    def _model(self, old, shapes):
        """The copy of a Sequential or functional model that is called with tensors of `shapes`."""
        graph = _graph_of(old)
        inputs = [self._input(*pair) for pair in zip(graph.inputs, shapes, strict=True)]
        outputs = self._run(graph, inputs)
        inputs = tree.pack_sequence_as(graph._inputs_struct, inputs)
        kind = self._class_of(old)
        new = self.keep(old, kind.__new__(kind))
        if graph is old:
            Functional.__init__(new, inputs, outputs, name=old.name)
        else:
            keras.Sequential.__init__(new, name=old.name)
            new._layers = self._layers_of(old)
            new._functional = self.keep(graph, Functional(inputs, outputs, name=graph.name))
            new.built = True
        self._complete(old, new)
        return new

    def _class_of(self, model):
        """The class of the copy of a Sequential or functional model.

        One with a constructor of its own makes from its configuration the network that it was
        written for: where the copy is another, it is a plain one.
        """
        own = isinstance(model, Functional) and type(model).__init__ is not Functional.__init__
        return Functional if own and self._changes(model) else type(model)

    def _changes(self, graph):
        """Whether the copy of a graph, or of one in it, is another."""
        nodes = _nodes_of(graph)
        operations = {id(node.operation): node.operation for node in nodes}
        inner = filter(None, map(_graph_of, operations.values()))
        return (
            not self._changed.isdisjoint(operations)
            or len(self._needed(graph, nodes)) < len(nodes)
            or any(id(node) in self._bypasses for node in nodes)
            or any(self._changes(other) for other in inner)
        )

    def _run(self, graph, inputs):
        """The outputs of the copy of a graph, in their structure.

        An operation that is called several times is called in the order of the original, by which
        its calls are known.
        """
        tensors = dict(zip(map(id, graph.inputs), inputs, strict=True))
        nodes = _nodes_of(graph)
        needed = self._needed(graph, nodes)
        nodes = [node for node in nodes if id(node) in needed]
        turns = collections.defaultdict(list)
        for node in nodes:
            turns[id(node.operation)].append(node)
        for operation_nodes in turns.values():
            order = operation_nodes[0].operation._inbound_nodes
            operation_nodes.sort(key=order.index, reverse=True)
        while nodes:
            left = []
            for node in nodes:
                turn = turns[id(node.operation)]
                if turn[-1] is node and all(id(x) in tensors for x in self._given(node)):
                    turn.pop()
                    outputs = self._made(node, tensors)
                    tensors.update(zip(map(id, node.outputs), tree.flatten(outputs), strict=True))
                else:
                    left.append(node)
            nodes = left
        outputs = [tensors[id(tensor)] for tensor in graph.outputs]
        return tree.pack_sequence_as(graph._outputs_struct, outputs)

    def _needed(self, graph, nodes):
        """Ids of the nodes that the outputs of a graph depend on."""
        makers = {id(tensor): node for node in nodes for tensor in node.outputs}
        wanted, found = list(graph.outputs), set()
        while wanted:
            node = makers.get(id(wanted.pop()))
            if node is not None and id(node) not in found:
                found.add(id(node))
                wanted += self._given(node)
        return found

    def _given(self, node):
        """The tensors that a call takes, or what goes in its place."""
        bypass = self._bypasses.get(id(node))
        return node.input_tensors if bypass is None else [bypass.tensor]

    def _made(self, node, tensors):
        """What the copy of a call gives, or what goes in its place."""
        bypass = self._bypasses.get(id(node))
        if bypass is None:
            args, kwargs = node.arguments.fill_in(tensors)
            outputs = self._call(node.operation, *args, **kwargs)
        else:
            outputs = tensors[id(bypass.tensor)]
            if bypass.layer is None:
                return outputs
            outputs = bypass.layer(outputs)
        made = tree.flatten(outputs)[0]._keras_history
        self.nodes.append((node, made.operation._inbound_nodes[made.node_index]))
        return outputs

    def _layers_of(self, sequential):
        """The layers of the copy of a Sequential model."""
        instead = {id(bypass.node.operation): bypass.layer for bypass in self._bypasses.values()}
        gone = set(map(id, self.gone))
        found = [
            instead.get(id(layer)) if id(layer) in gone else self(layer)
            for layer in sequential._layers
        ]
        return [layer for layer in found if layer is not None]

    def _input(self, tensor, shape):
        old = tensor._keras_history.operation
        config = old.get_config()
        if not _agree(tensor.shape, shape):
            config["batch_shape"] = tuple(shape)
        new = self.keep(old, type(old).from_config(config))
        new._dtype_policy = old._dtype_policy
        return new.output

    def _call(self, operation, *args, **kwargs):
        """Calls the copy of an operation on tensors of the new graph."""
        graph = _graph_of(operation)
        if graph is not None and id(operation) not in self._memo:
            given = nested_inputs(graph, args, kwargs)
            self._model(operation, [tensor.shape for tensor in given])
        twin = self(operation)
        if id(operation) in self._edits:
            self._edits.pop(id(operation))(twin)
        return twin(*self(args), **self(kwargs))

    def _complete(self, old, new):
        """What a Sequential or functional model has besides its graph."""
        for name in ("_dtype_policy", "_trainable", "_path", "_parent_path"):
            vars(new)[name] = vars(old)[name]
        if type(new) is not type(old):  # what its own code holds is of no use to the other
            return
        gone = set(map(id, self.gone))
        for name, value in attributes(old).items():
            held = value if isinstance(value, list | tuple) else [value]
            if (
                name not in attributes(new)
                and name not in _TRAINING
                and gone.isdisjoint(map(id, held))
            ):
                setattr(new, name, self(value))
        for name, (_, store) in old._tracker.config.items():
            for part in store:
                if id(part) in gone or _is_stale(part, old):
                    continue
                if not new._tracker.is_in_store(name, self(part)):
                    new._tracker.add_to_store(name, self(part))


def forget_weights(layer):
    """Leaves a layer as it was before it was built.

    Initializers without a seed draw one when they are made, which the layer that comes from a file
    does anew: they draw again here, so that `keras.utils.set_random_seed` decides.
    """
    for name, value in list(vars(layer).items()):
        if isinstance(value, RandomInitializer) and value._init_seed is None:
            vars(layer)[name] = again = copy.copy(value)
            again.seed = make_default_seed()
    for name in ("trainable_variables", "non_trainable_variables"):
        layer._tracker.config[name][1].clear()
        layer._tracker.stored_ids[name].clear()
    layer._tracker.unlock()
    if type(layer) in ATTENTION:
        layer._tracker.config["layers"][1].clear()
        layer._tracker.stored_ids["layers"].clear()
    for inner in layer._flatten_layers(include_self=False, recursive=False):
        forget_weights(inner)
    layer.built = False
    if getattr(layer.input_spec, "axes", True):  # it says how wide what it takes is
        layer.input_spec = None


def _graph_of(value):
    """The functional model behind a functional or built Sequential one; None for all else."""
    if isinstance(value, keras.Sequential):
        return value._functional
    return value if isinstance(value, Functional) else None


def _nodes_of(graph):
    """The calls of a graph, Keras's nodes, each after those that it may depend on."""
    depths = sorted(graph._nodes_by_depth, reverse=True)
    return [n for depth in depths for n in graph._nodes_by_depth[depth] if not n.is_input]


def _is_stale(part, model):
    """Whether a part is the graph of a Sequential model that it has replaced since.

    One that was opened has built itself twice, and Keras keeps track of both graphs.
    """
    return (
        isinstance(model, keras.Sequential)
        and isinstance(part, Functional)
        and part is not model._functional
        and not any(part is layer for layer in model._layers)
    )


def _agree(shape, other):
    """Whether two shapes can be those of one tensor."""
    pairs = zip(shape, other, strict=False)
    return len(shape) == len(other) and all(a is None or b is None or a == b for a, b in pairs)


def _parts_of(value):
    """What a container, a function or any other object refers to, where that may be state."""
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set):
        return list(value)
    if isinstance(value, types.MethodType):
        return [value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, types.FunctionType):
        return [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
    if hasattr(value, "python_function"):  # tf.function
        return [value.python_function]
    if isinstance(value, (type, types.ModuleType, keras.KerasTensor, Node)):
        return []
    if type(value).__module__.partition(".")[0] in _LIBRARIES:
        return []
    return list(getattr(value, "__dict__", {}).values())


def _is_filled(cell):
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _is_tensorflow_variable(value):
    """`tf.Variable`, on whose account TensorFlow need not be imported."""
    return any(base.__name__ == "BaseResourceVariable" for base in type(value).__mro__)
