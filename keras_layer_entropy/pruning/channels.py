"""Which units there are in a model, what carries each of them, and which belong together."""

import copy
import dataclasses
import functools
import inspect
import re
from typing import Any

import keras
import numpy as np

from keras_layer_entropy.pruning.carriers import CARRIERS
from keras_layer_entropy.pruning.linear import adapted
from keras_layer_entropy.pruning.probing import known_sources, outputs_of, values_of
from keras_layer_entropy.pruning.ties import Ties
from keras_layer_entropy.recording.graph import flat_graph, shared_paths


@dataclasses.dataclass(frozen=True)
class Slice:
    """An axis of a variable whose entries belong to units.

    Attributes:
        path: of the layer.
        variable, axis: of it.
        ids: `[size of the axis]`, the unit of each entry.
        makes: whether it is a kernel that makes these units.
    """

    path: str
    variable: Any
    axis: int
    ids: np.ndarray
    makes: bool


@dataclasses.dataclass(frozen=True)
class Edit:
    """An attribute of an operation that says how many units there are.

    Attributes:
        path: of the operation.
        operation: whose attribute it is.
        attribute: its name.
        value: what it is, a function of a function that counts the units that are kept of some.
    """

    path: str
    operation: Any
    attribute: str
    value: Any


@dataclasses.dataclass(frozen=True)
class Channels:
    """The units of a model.

    Attributes:
        graph: `graph.Graph`.
        makers: path of a layer that makes units -> `[units]`, the number of each.
        takers: path of a layer -> `[features]`, which unit each feature of its kernel belongs to;
            of those layers that can be refitted once some are gone.
        slices, edits: what has to change with them.
        rebuilt: pairs of the path of a layer that is built for its units, and these.
        together: list of units that are normalised together, so that each depends on all.
        labels: number of a tensor -> axis -> `[size]`, the unit at each place.
        ties: `ties.Ties`, which units go together and which have to stay.
    """

    graph: Any
    makers: dict
    takers: dict
    slices: tuple
    edits: tuple
    rebuilt: tuple
    together: tuple
    labels: dict
    ties: Ties

    def roots(self, path):
        """Of each unit of a layer the number that it shares with all that it is tied to."""
        return self.ties.roots(self.makers[path])

    def reasons(self, path):
        """Number of a unit of a layer -> why it has to stay."""
        frozen = self.ties.reasons(self.makers[path])
        return {i: frozen[root] for i, root in enumerate(self.roots(path)) if root in frozen}

    def kept(self, ids, gone):
        """Places of the units that stay when those with the roots `gone` go."""
        return np.flatnonzero(~np.isin(self.ties.roots(ids), gone))

    def cut(self, number, array, gone, without=()):
        """A tensor of the model as it is when units with the roots `gone` have gone.

        Args:
            number: of the tensor.
            array: what it is with all units.
            gone: roots.
            without: axes that are left as they are.
        """
        for axis, ids in self.labels.get(number, {}).items():
            kept = self.kept(ids, gone)
            if axis not in without and len(kept) < len(ids):
                array = np.take(array, kept, axis=axis)
        return array


def find_channels(model):
    """The `Channels` of a built Sequential or functional model; it is not changed.

    Layers with weights are known by rules (`carriers`); all others are run on a few numbers, to
    see which unit each entry of their output comes from, and some times more with some of the units
    gone: what then gives something else freezes its units.

    Raises:
        ValueError: a subclassed model, or one that is not built.

    Example:

    >>> dense = keras.layers.Dense
    >>> inputs = keras.Input((4,))
    >>> x = dense(8, name="a")(inputs)
    >>> x = keras.layers.Add()([x, dense(8, name="b")(x)])
    >>> found = find_channels(keras.Model(inputs, dense(2, name="out")(x)))
    >>> found.roots("b").tolist() == found.roots("a").tolist(), found.reasons("out")[0]
    (True, 'it is an output of the model')
    """
    graph = flat_graph(model)
    finder = _Finder(graph)
    for call in graph.calls:
        finder.visit(call)
    for number in graph.outputs:
        for ids in finder.labels.get(number, {}).values():
            finder.ties.freeze(ids, "it is an output of the model")
    return finder.result()


class _Finder:
    """Goes through the calls of a graph and notes what becomes of units.

    `labels` maps the number of a tensor to axis -> `[size]`, the unit at each place.
    """

    def __init__(self, graph):
        self.graph = graph
        self.ties = Ties()
        self.labels = {}
        self._makers, self._takers = {}, {}
        self._bound, self._edits = {}, []
        self._rebuilt, self._together = [], []
        self._shared = shared_paths(graph)

    def visit(self, call):
        """Notes what a call does."""
        operation = call.operation
        rule = CARRIERS.get(type(operation))
        reason = f"it is a {type(operation).__name__}"
        if rule is not None:
            reason = next(filter(None, map(adapted, operation._flatten_layers())), None)
        if rule is not None and reason is None:
            found = rule(self, call, operation)
            found = found if isinstance(found, tuple) else (found,)
            self.labels.update(zip(call.outputs, found, strict=False))
        elif getattr(operation, "weights", ()):
            self.refuse(call, reason)
        else:
            self._probe(call)

    def refuse(self, call, reason):
        """Says why a layer cannot be thinned, nor what it takes; labels of its output, none."""
        for number in call.inputs:
            for units in self.labels.get(number, {}).values():
                self.freeze(units, f"{call.path} takes it and cannot be thinned: {reason}")
        return {}

    def named(self, call):
        """Name of an argument of a call -> number of the tensor that is given for it."""
        numbers = dict(zip(map(id, call.node.input_tensors), call.inputs, strict=True))
        return {name: numbers[id(x)] for name, x in _arguments(call).items() if id(x) in numbers}

    def is_given(self, call, name):
        """Whether something is given for an argument, a tensor or not."""
        return _arguments(call).get(name) is not None

    def given(self, call):
        """Axis -> units of the first input of a call."""
        return dict(self.labels.get(call.inputs[0], {}))

    def rank(self, call):
        """Number of axes of the first input of a call."""
        return len(self.graph.shapes[call.inputs[0]])

    def make(self, call, count, inner=None):
        """New units of a layer, or of one inside it; the same ones in every call of it."""
        path = call.path if inner is None else f"{call.path}/{inner.name}"
        if path not in self._makers:
            self._makers[path] = self.ties.new(count)
        return self._makers[path]

    def take(self, call, features):
        """Says which unit each feature belongs to that a layer's kernel takes."""
        if features is not None:
            self._takers[call.path] = features

    def bind(self, call, variable, axis, ids, makes=False):
        """Says which units the entries along an axis of a variable belong to, None for no unit.

        A variable that is used several times ties what it is used for. `makes` says that it is a
        kernel which makes them.
        """
        if variable is None:
            return
        if id(variable) in self.graph.arguments:
            other = self.graph.arguments[id(variable)]
            self.freeze(ids, f"{other} takes weights of {call.path} that belong to it")
        bound = (call.path, variable, ids, makes)
        before = self._bound.setdefault((id(variable), axis), bound)[2]
        if before is ids:
            return
        if before is None or ids is None:
            known = before if ids is None else ids
            self.ties.freeze(known, f"{call.path} uses weights for it elsewhere, too")
        else:
            self.ties.tie(before, ids)

    def normalise(self, call, ids, together=False):
        """Says that a layer is built for units, and whether it looks at all of them at once."""
        if ids is not None:
            self._rebuilt.append((call.path, ids))
            if together:
                self._together.append(ids)

    def edit(self, call, attribute, value):
        """Says which attribute of an operation counts units."""
        self._edits.append(Edit(call.path, call.operation, attribute, value))

    def freeze(self, ids, reason):
        """Says why units have to stay."""
        if ids is not None:
            self.ties.freeze(ids, reason)

    def tie(self, call, ids, others):
        """Says that units go together, of which one side may not be known."""
        if ids is not None and others is not None:
            self.ties.tie(ids, others)
        else:
            self.freeze(ids, f"{call.path} needs as many of it as it has of others")
            self.freeze(others, f"{call.path} needs as many of it as it has of others")

    def activate(self, call, activation, units):
        """Freezes units that the activation function inside a layer mixes."""
        x = np.random.default_rng(0).uniform(-1.0, 1.0, (4, len(units))).astype("float32")
        half = np.arange(len(units)) % 2 == 0
        function = activation or keras.activations.linear
        if isinstance(function, keras.layers.Layer):
            self.freeze(units, f"the activation of {call.path} is a layer")
            return
        whole, part = (
            np.asarray(keras.ops.convert_to_numpy(function(values))) for values in (x, x[:, half])
        )
        if whole.shape != x.shape or not np.allclose(whole[:, half], part, atol=1e-5):
            self.freeze(units, f"the activation function of {call.path} mixes it with others")

    def result(self):
        """The `Channels`."""
        slices = [
            Slice(path, variable, axis, ids, makes)
            for (_, axis), (path, variable, ids, makes) in self._bound.items()
            if ids is not None
        ]
        edits = {(id(edit.operation), edit.attribute): edit for edit in self._edits}
        return Channels(
            graph=self.graph,
            makers=self._makers,
            takers=self._takers,
            slices=tuple(slices),
            edits=tuple(edits.values()),
            rebuilt=tuple(self._rebuilt),
            together=tuple(self._together),
            labels=self.labels,
            ties=self.ties,
        )

    def _probe(self, call):
        """What becomes of units in an operation without weights."""
        shapes = [self.graph.shapes[number] for number in call.inputs]
        dtypes = [self.graph.dtypes[number] for number in call.inputs]
        labelled = [
            (place, axis, ids)
            for place, number in enumerate(call.inputs)
            for axis, ids in self.labels.get(number, {}).items()
        ]
        seen = {}
        for place, axis, ids in labelled:
            try:
                found = known_sources(call, shapes, dtypes, place, axis)
                if all(source is None for source in found):
                    raise ValueError("nothing of it is seen in what that gives")
                for number, source in zip(call.outputs, found, strict=True):
                    before = source and seen.setdefault((place, number, source.axis), axis)
                    if before not in (None, axis):
                        other = self.labels[call.inputs[place]][before]
                        self.ties.freeze(other, f"{call.path} takes it, and {_FOLDED}")
                        raise ValueError(_FOLDED)
            except Exception as error:  # noqa: BLE001 - operations may raise anything
                self.ties.freeze(ids, f"{call.path} takes it, and {_words(error)}")
                continue
            for number, source in zip(call.outputs, found, strict=True):
                if source is not None:
                    self.ties.tie(ids[source.merged[0]], ids[source.merged[1]])
                    self._label(call, number, source, ids)
        if labelled:
            self._check(call, shapes, dtypes)

    def _label(self, call, number, source, ids):
        labels = self.labels.setdefault(number, {})
        found = np.where(source.of < 0, -1, ids[source.of])
        before = labels.get(source.axis)
        if before is not None:
            both = (found >= 0) & (before >= 0)
            self.ties.tie(found[both], before[both])
            found = np.where(before < 0, found, before)
        labels[source.axis] = found

    def _check(self, call, shapes, dtypes):
        """Freezes units without which a call gives something else than the rest of what it gave."""
        for number in call.outputs:
            for axis, ids in self.labels.get(number, {}).items():
                constant = ids < 0
                if constant.any():
                    fresh = self.ties.new(int(constant.sum()))
                    self.ties.freeze(fresh, f"{call.path} gives a constant there")
                    self.labels[number][axis] = ids = ids.copy()
                    ids[constant] = fresh
        along = {}
        for number in call.outputs:
            for axis, ids in self.labels.get(number, {}).items():
                along.setdefault(axis, []).append(ids)
        labelled = [self.labels.get(number, {}) for number in call.inputs]
        everything = np.concatenate([ids for labels in labelled for ids in labels.values()])
        reason = f"{call.path} depends on how many there are"
        edits = self._tried(call, shapes, dtypes, everything)
        if edits is None and len(along) > 1:  # it may be those along one axis alone
            for ids in map(np.concatenate, along.values()):
                if self._tried(call, shapes, dtypes, ids) is None:
                    self.ties.freeze(ids, reason)
            edits = self._tried(call, shapes, dtypes, everything)
        if edits is None:
            self.ties.freeze(everything, reason)
        for attribute, value in edits or ():
            self.edit(call, attribute, value)

    def _tried(self, call, shapes, dtypes, units):
        """How a call differs once some of these units are gone, None if it gives something else."""
        taken = [self.labels.get(number, {}) for number in call.inputs]
        given = [self.labels.get(number, {}) for number in call.outputs]
        roots, edits = np.unique(self.ties.roots(units)), []
        free = roots[~np.isin(roots, list(self.ties.reasons(units)))]
        for gone in _patterns(free):
            if len(gone) in (0, len(roots)):
                continue
            values = values_of(shapes, dtypes, seed=len(gone))
            wanted = self._cut(outputs_of(call, values), given, gone)
            operation, edits = self._edited(call, given, gone)
            try:
                found = outputs_of(call, self._cut(values, taken, gone), operation)
                same = all(
                    a.shape == b.shape and np.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
                    for a, b in zip(found, wanted, strict=True)
                )
            except Exception:  # noqa: BLE001 - operations may raise anything
                same = False
            if not same or (edits and call.path in self._shared) or _says_shape(call.operation):
                return None
        return edits

    def _cut(self, arrays, labels, gone):
        found = []
        for array, axes in zip(arrays, labels, strict=True):
            for axis, ids in axes.items():
                array = np.compress(self._stays(ids, gone), array, axis=axis)
            found.append(array)
        return found

    def _edited(self, call, given, gone):
        """`(function, edits)`: what is called once units are gone, and how it differs."""
        operation = call.operation
        for name in _SHAPES:
            old = getattr(operation, name, None)
            if isinstance(old, tuple | list):
                first = isinstance(operation, keras.layers.Layer)  # without the samples
                value = functools.partial(_shape, old, given[0], first)
                changed = copy.copy(operation)
                vars(changed)[name] = value(lambda ids: int(self._stays(ids, gone).sum()))
                return changed.call, [(name, value)]
        return operation, []

    def _stays(self, ids, gone):
        return ~np.isin(self.ties.roots(ids), gone)


def _arguments(call):
    """Name of an argument of a call -> what is given for it."""
    given = call.node.arguments
    return inspect.signature(call.operation.call).bind(*given.args, **given.kwargs).arguments


def _words(error):
    """What an error says, without what Keras puts around it."""
    plain = re.sub(r"\x1b\[\d+m", "", f"{error}")
    lines = [line.strip() for line in plain.splitlines() if line.strip()] or [""]
    return lines[1] if lines[0].startswith("Exception encountered") and lines[1:] else lines[0]


def _patterns(roots):
    """Units that go in a trial: every other one; and one alone, which shifts halves and thirds."""
    return [roots[::2], roots[1::2], roots[:1], roots[-1:]]


def _says_shape(operation):
    """Whether a Lambda was told what shape it gives."""
    shape = getattr(operation, "_output_shape", None)
    return isinstance(operation, keras.layers.Lambda) and isinstance(shape, tuple | list)


_FOLDED = "it folds it together with units along another axis"
_SHAPES = ("target_shape", "newshape")  # attributes that hold the shape of what is given


def _shape(old, labels, first, kept):
    """A shape as it is once units are gone; its first axis is number `first` of the tensor."""
    return tuple(
        kept(labels[axis]) if n != -1 and axis in labels else n
        for axis, n in enumerate(old, start=int(first))
    )
