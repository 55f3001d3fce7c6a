"""Which blocks can be taken out of a model: residual branches, composite layers, convolutions."""

import collections
import dataclasses
import math
from collections.abc import Collection
from typing import Any

import keras
from keras import layers

from keras_layer_entropy.pruning.parts import Part
from keras_layer_entropy.recording.graph import Call, Graph, first_tensor, flat_graph, opened
from keras_layer_entropy.recording.layer_kinds import kind

CONVOLUTIONS = (
    *(layers.Conv1D, layers.Conv2D, layers.Conv3D),
    *(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose),
    *(layers.DepthwiseConv1D, layers.DepthwiseConv2D),
    *(layers.SeparableConv1D, layers.SeparableConv2D),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block(Part):
    """Calls that can be left out together: what comes in goes on in place of what comes out.

    Called by the path of the sum that a residual branch joins, of the composite layer or of the
    convolution; the second call of a layer is `path#2`. `members` are the layers that go.

    Attributes:
        form: `"residual"`, a branch beside what is added to it as it is; `"projection"`, a branch
            beside another from the same tensor, which stays; `"composite"`, a layer with layers
            inside; `"convolution"`, one with its normalisation, activation and dropout.
        calls: indices in `flat_graph(model).calls` of all calls that go.
        given, made: numbers of the tensors before and after it in that graph; of a projection, what
            the other branch gives is `given`.
        lost: number of the tensor that is no longer added to that, of a projection.
        node, tensor: Keras's node of the last call, and what goes on in its place.
    """

    kind: str = "block"
    form: str
    calls: tuple[int, ...] = ()
    given: int = -1
    made: int = -1
    lost: int | None = None
    node: Any = dataclasses.field(default=None, repr=False, compare=False)
    tensor: Any = dataclasses.field(default=None, repr=False, compare=False)


def find_blocks(model: keras.Model) -> tuple[dict[str, Block], dict[str, str]]:
    """`(blocks, reasons)`: what can go, and why other sums and composite layers cannot.

    In a sum a + b, b is what goes on where a is made from b: all calls go whose results only go
    into a. Where neither is made from the other and both only from one tensor, the branch with more
    parameters goes. A layer of another library with layers inside goes where what it is given first
    and what it gives have one shape; a convolution, with what belongs to it, likewise.

    Args:
        model: a built Sequential or functional model; it is not changed.

    Returns:
        Two dicts by name, in the order of the forward pass.

    Raises:
        ValueError: a subclassed model.

    Example:

    >>> x = inputs = keras.Input((8,))
    >>> for number in (1, 2):
    ...     branch = layers.Dense(8, "relu", name=f"branch_{number}")(x)
    ...     x = layers.Add(name=f"sum_{number}")([x, branch])
    >>> blocks, reasons = find_blocks(keras.Model(inputs, layers.Dense(2)(x)))
    >>> [(name, block.form, block.members) for name, block in blocks.items()]
    [('sum_1', 'residual', ('branch_1',)), ('sum_2', 'residual', ('branch_2',))]
    """
    return _Finder(flat_graph(model)).found()


def chosen_blocks(
    model: keras.Model, names: Any, keep: str | Collection[str] = ()
) -> tuple[dict[str, Block], dict[str, str]]:
    """As `find_blocks`, of some of them.

    Args:
        model: the model.
        names: a name, or a list of names, of blocks that may go, or of layers inside; None for all.
        keep: names of those that stay.

    Raises:
        ValueError: a name that is none.
    """
    blocks, reasons = find_blocks(model)
    wanted = None if names is None else _named(model, blocks, reasons, names)
    kept = _named(model, blocks, reasons, keep)
    for name in list(blocks):
        if name in kept:
            reasons[name] = "it is to be kept"
        elif wanted is not None and name not in wanted:
            reasons[name] = "it is not among those that may go"
        if name in reasons:
            del blocks[name]
    return blocks, reasons


def _named(
    model: keras.Model,
    blocks: dict[str, Block],
    reasons: dict[str, str],
    names: Any,
) -> set[str]:
    given = [names] if isinstance(names, str) else names
    if not isinstance(given, Collection) or not all(isinstance(name, str) for name in given):
        raise ValueError(f"{names!r} names no blocks; expected a name, or a list of names.")
    found: set[str] = set()
    for name in given:
        hits = {key for key, block in blocks.items() if name == key or name in block.members}
        if not hits and name not in reasons:
            raise ValueError(
                f"{name!r} is no block of {model.name!r}, and in none; it has "
                f"{', '.join(blocks) or 'none that can go'}."
            )
        found |= hits
    return found


class _Finder:
    """Looks for the blocks of a graph."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._makers = {x: i for i, call in enumerate(graph.calls) for x in call.outputs}
        self._takers = collections.defaultdict(list)
        for index, call in enumerate(graph.calls):
            for number in call.inputs:
                self._takers[number].append(index)
        # Sets of numbers as bits: of the tensors that each tensor is made from, itself among them.
        self._from: dict[int, int] = {}
        for number in graph.shapes:
            if number not in self._makers:
                self._from[number] = 1 << number
        for call in graph.calls:
            given = 0
            for number in call.inputs:
                given |= self._from[number]
            for number in call.outputs:
                self._from[number] = given | 1 << number
        self._names = _names_of(graph)
        self._repeated = {path for path, calls in graph.nested.items() if len(calls) > 1}

    def found(self) -> tuple[dict[str, Block], dict[str, str]]:
        blocks: dict[str, Block] = {}
        reasons: dict[str, str] = {}
        for index, call in enumerate(self._graph.calls):
            found = self._at(index, call)
            if isinstance(found, str):
                reasons[self._names[index]] = found
            elif found is not None:
                blocks[found.path] = found
        sums = [x for x in blocks.values() if x.form in ("residual", "projection")]
        # A layer that is all of a branch goes as the branch.
        whole = {x.members[0] for x in sums if len(x.members) == 1}
        return {name: x for name, x in blocks.items() if name not in whole}, reasons

    def _at(self, index: int, call: Call) -> Block | str | None:
        """The block that ends in a call, or why there is none; None where none is to be seen."""
        is_sum = _is_sum(call.operation)
        if not (is_sum or _is_composite(call.operation) or self._ends_convolution(index)):
            return None
        if self._graph.shapes[call.outputs[0]] is None:
            return None
        repeated = [path for path in self._repeated if call.path.startswith(f"{path}/")]
        if repeated:
            return f"it is inside {repeated[0]}, which is called several times"
        if is_sum:
            return self._sum(index, call)
        if _is_composite(call.operation):
            return self._composite(index, call)
        return self._convolution(index)

    def _sum(self, index: int, call: Call) -> Block | str | None:
        if len(set(call.inputs)) != 2 or len(call.inputs) != 2:
            several = len(set(call.inputs)) > 2
            return "it adds more than two tensors" if several else None
        shapes = {self._graph.shapes[number] for number in (*call.inputs, call.outputs[0])}
        if len(shapes) != 1:
            return None  # a bias, positions, a number: one is spread over the other
        for branch, rest in (call.inputs, call.inputs[::-1]):
            if self._from[branch] >> rest & 1:
                members = self._only_into(branch, rest, index)
                return self._residual("residual", index, call, rest, branch, members)
        parts = {x: self._only_into(x, y, index) for x, y in (call.inputs, call.inputs[::-1])}
        entries = [self._entries(calls) for calls in parts.values()]
        if not all(parts.values()) or entries[0] != entries[1] or len(entries[0]) != 1:
            return "neither of what it adds is made from the other, nor both from one tensor"
        (entry,) = entries[0]
        if not keras.backend.is_float_dtype(self._graph.dtypes[entry]):
            return "both of what it adds are looked up by the same numbers"
        branch, rest = sorted(call.inputs, key=lambda x: self._parameters(parts[x]), reverse=True)
        return self._residual("projection", index, call, rest, branch, parts[branch])

    def _residual(
        self, form: str, index: int, call: Call, rest: int, branch: int, members: tuple[int, ...]
    ) -> Block | str:
        if not members:
            return "what it adds goes elsewhere, too"
        if not any(getattr(self._graph.calls[i].operation, "weights", ()) for i in members):
            return "what it adds has no weights"
        place = call.inputs.index(rest)
        return self._block(
            form, index, (*members, index), rest,
            tensor=call.node.input_tensors[place], lost=branch if form == "projection" else None,
        )  # fmt: skip

    def _composite(self, index: int, call: Call) -> Block | str:
        tensor = first_tensor(call.node.arguments.args, call.node.arguments.kwargs)
        given = call.inputs[[id(x) for x in call.node.input_tensors].index(id(tensor))]
        if len(call.outputs) > 1:
            return "it gives several tensors"
        shapes, dtypes = self._graph.shapes, self._graph.dtypes
        if shapes[given] != shapes[call.outputs[0]] or dtypes[given] != dtypes[call.outputs[0]]:
            return "what it is given and what it gives are of two shapes or kinds"
        return self._block("composite", index, (index,), given, tensor=tensor)

    def _ends_convolution(self, index: int) -> bool:
        """Whether the next call does not belong to a convolution that this one belongs to."""
        return self._chain(index) is not None

    def _chain(self, index: int) -> tuple[int, ...] | None:
        """The calls of a convolution that ends in a call, None where none does."""
        graph, calls, here = self._graph, [index], index
        takers = self._takers[graph.calls[index].outputs[0]]
        if len(takers) == 1 and _belongs(graph.calls[takers[0]]):
            return None
        while _belongs(graph.calls[here]):
            given = graph.calls[here].inputs[0]
            if len(self._takers[given]) != 1 or given not in self._makers:
                return None
            here = self._makers[given]
            calls.append(here)
        is_convolution = type(graph.calls[here].operation) in CONVOLUTIONS
        return tuple(reversed(calls)) if is_convolution else None

    def _convolution(self, index: int) -> Block | None:
        chain = self._chain(index) or ()
        graph, first, last = self._graph, self._graph.calls[chain[0]], self._graph.calls[index]
        given, made = first.inputs[0], last.outputs[0]
        if graph.shapes[given] != graph.shapes[made] or graph.dtypes[given] != graph.dtypes[made]:
            return None
        if made in graph.outputs or first.path.rpartition("/")[0] != last.path.rpartition("/")[0]:
            return None
        return self._block(
            "convolution", index, chain, given, chain[0], tensor=first.node.input_tensors[0]
        )

    def _block(
        self,
        form: str,
        index: int,
        calls: tuple[int, ...],
        given: int,
        named_by: int | None = None,
        **others: Any,
    ) -> Block:
        last = self._graph.calls[index]
        gone = calls[:-1] if form in ("residual", "projection") else calls  # all but the sum
        return Block(
            path=self._names[index if named_by is None else named_by],
            form=form,
            members=tuple({self._graph.calls[i].path: None for i in gone}),
            calls=calls,
            given=given,
            made=last.outputs[0],
            node=last.node,
            **others,
        )

    def _only_into(self, branch: int, rest: int, index: int) -> tuple[int, ...]:
        """The calls whose results only go into one of the tensors of a sum."""
        found = {index}
        for place in range(index - 1, -1, -1):
            call = self._graph.calls[place]
            used = [taker for number in call.outputs for taker in self._takers[number]]
            if (
                used
                and found.issuperset(used)
                and not any(self._from[rest] >> number & 1 for number in call.outputs)
                and not set(call.outputs).intersection(self._graph.outputs)
            ):
                found.add(place)
        return tuple(sorted(found - {index}))

    def _entries(self, calls: tuple[int, ...]) -> set[int]:
        """The tensors that some calls take from elsewhere."""
        made = {number for i in calls for number in self._graph.calls[i].outputs}
        return {number for i in calls for number in self._graph.calls[i].inputs} - made

    def _parameters(self, calls: tuple[int, ...]) -> int:
        return parameters_of(self._graph, calls)


def parameters_of(graph: Graph, calls: Collection[int]) -> int:
    """How many parameters the layers of some calls have, those aside that are called elsewhere.

    Args:
        graph: `Graph`.
        calls: indices of its calls.
    """
    elsewhere = {id(x.operation) for i, x in enumerate(graph.calls) if i not in set(calls)}
    operations = {id(graph.calls[i].operation): graph.calls[i].operation for i in calls}
    return sum(
        math.prod(weight.shape)
        for key, operation in operations.items()
        if key not in elsewhere
        for weight in getattr(operation, "weights", ())
    )


def _names_of(graph: Graph) -> list[str]:
    """A name for each call: its path, and which call of that it is from the second on."""
    seen: collections.Counter[str] = collections.Counter()
    names = []
    for call in graph.calls:
        seen[call.path] += 1
        names.append(call.path if seen[call.path] == 1 else f"{call.path}#{seen[call.path]}")
    return names


def _belongs(call: Call) -> bool:
    return kind(call.operation) in ("activation", "normalization", "dropout")


def _is_sum(operation: Any) -> bool:
    """Whether an operation is Keras's addition, as a layer or as `+`."""
    is_keras = type(operation).__module__.startswith("keras.src.")
    return is_keras and type(operation).__name__ == "Add"


def _is_composite(operation: Any) -> bool:
    """Whether an operation is a layer of nobody knows what code, with kernels inside."""
    if not isinstance(operation, layers.Layer) or opened(operation) is not None:
        return False
    if type(operation).__module__.startswith("keras.src."):
        return False
    _, *inside = layers_in(operation)
    return any(len(weight.shape) > 1 for layer in inside for weight in layer.weights)


def layers_in(operation: Any) -> list[Any]:
    """A layer and all layers inside it; none of an operation that is no layer."""
    is_layer = isinstance(operation, layers.Layer)
    return list(operation._flatten_layers()) if is_layer else []
