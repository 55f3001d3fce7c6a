"""What an operation without weights does to the units of its inputs, found by running it.

Half of the units are changed at a time, by the bits of their numbers, and then the other half: an
entry of the output that reacts to exactly one of the two, for every bit, has one source, whose
number can be read off; one that reacts to both has several; one that never reacts is a constant.
"""

import dataclasses
import warnings

import keras
import numpy as np
from keras import ops

from keras_layer_entropy.pruning.ties import Ties
from keras_layer_entropy.recording.graph import run

_UNKNOWN = 8  # size of an axis of which the shape says nothing
_DRAWS = ((0.2, 1.0), (-3.0, 3.0))  # ranges of values: some functions are flat in one of them
_FEW, _MANY = 2, 32  # samples; many where they are small, of which some reach every piece
_SMALL = 1024  # numbers in a sample
_MOST = 256  # calls whose sources are remembered
_known: dict = {}
_DESCRIBED = tuple(  # layers whose configuration is all that they do
    f"keras.src.layers.{folder}."
    for folder in ("activations", "merging", "pooling", "regularization", "reshaping")
)
_FUNCTIONS = keras.activations.relu.__module__


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the entries of an output come from.

    Attributes:
        axis: the axis of the output along which the units lie.
        of: `[size of the axis]`, the unit of the input, -1 where it is a constant.
        merged: `[2, pairs]`, units of the input that cannot be told apart along this axis.
    """

    axis: int
    of: np.ndarray
    merged: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((2, 0), int))


def values_of(shapes, dtypes, seed, draw=0):
    """Values for tensors of some shapes, so that no axis is unknown.

    Args:
        shapes, dtypes: of each tensor; the first axis is that of the samples.
        seed: of the values.
        draw: which range they lie in.
    """
    random = np.random.default_rng(seed)
    largest = max(np.prod([n or _UNKNOWN for n in shape[1:]]) for shape in shapes)
    samples = _MANY if largest <= _SMALL else _FEW
    found = []
    for shape, dtype in zip(shapes, dtypes, strict=True):
        size = [samples if axis == 0 else n or _UNKNOWN for axis, n in enumerate(shape)]
        if shape[:1] and shape[0] is not None:
            size[0] = shape[0]
        if "float" in dtype:
            values = random.uniform(*_DRAWS[draw], size).astype("float32")
        else:
            values = random.integers(0, 2, size).astype(dtype)
        found.append(values)
    return found


def sources(call, shapes, dtypes, place, axis):
    """What becomes of the units along an axis of one input of a call.

    Args:
        call: `graph.Call`.
        shapes, dtypes: of its inputs.
        place: which of these.
        axis: of that input, along which its units lie.

    Returns:
        List of `Source` or None, one for each output: None where nothing of the units is in it.

    Raises:
        ValueError: an output mixes units.
    """
    draws = []
    for draw in range(len(_DRAWS)):
        values = values_of(shapes, dtypes, seed=draw, draw=draw)
        draws.append((values, outputs_of(call, values)))
    units = draws[0][0][place].shape[axis]
    numbers = np.arange(units)
    codes = [np.zeros(y.shape, np.int64) for y in draws[0][1]]
    seen, mixed = ([np.zeros(y.shape, bool) for y in draws[0][1]] for _ in range(2))
    for bit in range(max(1, int(units - 1).bit_length())):
        reacts = []
        for polarity in (0, 1):
            chosen = (numbers >> bit) & 1 == polarity
            reacts.append(_reacts(call, draws, place, axis, chosen))
        for i, (to_0, to_1) in enumerate(zip(*reacts, strict=True)):
            codes[i] |= to_1.astype(np.int64) << bit
            mixed[i] |= to_0 & to_1
            seen[i] |= to_0 | to_1
    for i in range(len(codes)):
        if mixed[i].any():
            raise ValueError("it mixes them")
    return [_along_one_axis(*found, units) for found in zip(codes, seen, strict=True)]


def known_sources(call, shapes, dtypes, place, axis):
    """`sources`, found once for calls that are alike: a search meets the same ones at each step."""
    words = description(call)
    if words is None:
        return sources(call, shapes, dtypes, place, axis)
    key = words, str(shapes), str(dtypes), place, axis
    if key not in _known:
        found = sources(call, shapes, dtypes, place, axis)
        if len(_known) >= _MOST:
            _known.clear()
        _known[key] = found
    return _known[key]


def description(call):
    """What a layer without weights does to its inputs, in words; None where these cannot say all.

    Of two calls with one description, and inputs of equal shapes and types, `sources` are equal.
    """
    layer, function = call.operation, getattr(call.operation, "activation", None)
    if not type(layer).__module__.startswith(_DESCRIBED):
        return None
    if function is not None and getattr(function, "__module__", "") != _FUNCTIONS:
        return None
    places = {id(tensor): place for place, tensor in enumerate(call.node.input_tensors)}
    arguments = call.node.arguments.args, call.node.arguments.kwargs
    given = keras.tree.map_structure(lambda x: places.get(id(x), repr(x)), arguments)
    return repr((type(layer), {**layer.get_config(), "name": None}, given))


def outputs_of(call, values, operation=None):
    """The outputs of a call as float64 arrays; arguments as for `graph.run`."""
    values = list(map(ops.convert_to_tensor, values))  # layers take longer over arrays
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on a few units an operation may look odd
        outputs = run(call, values, operation)
    return [np.asarray(ops.convert_to_numpy(y), np.float64) for y in outputs]


def _reacts(call, draws, place, axis, chosen):
    """Boolean arrays like the outputs: where these change with the chosen units."""
    found = None
    for values, before in draws:
        changed = list(values)
        shape = [-1 if i == axis else 1 for i in range(values[place].ndim)]
        # Not alike everywhere: what is the same for all of them, a softmax over places may ignore.
        step = np.random.default_rng(0).uniform(0.03, 0.07, values[place].shape).astype("float32")
        changed[place] = values[place] + step * chosen.reshape(shape)
        after = outputs_of(call, changed)
        with np.errstate(invalid="ignore"):
            pairs = zip(after, before, strict=True)
            reacts = [np.abs(a - b) > 1e-5 * (np.abs(b) + 1e-2) for a, b in pairs]
        found = reacts if found is None else [a | b for a, b in zip(found, reacts, strict=True)]
    return found


def _along_one_axis(codes, seen, units):
    """The `Source` of an output from the source of each of its entries, or None."""
    if not seen.any():
        return None
    if units == 1:
        axes = [axis for axis in range(codes.ndim - 1, 0, -1) if codes.shape[axis] == 1]
        if not axes:
            raise ValueError("it spreads it over others")
        return Source(axes[0], np.zeros(1, np.int64))
    best = None
    for axis in range(codes.ndim - 1, 0, -1):
        rows = np.moveaxis(codes, axis, 0).reshape(codes.shape[axis], -1)
        there = np.moveaxis(seen, axis, 0).reshape(codes.shape[axis], -1)
        lowest = np.where(there, rows, np.iinfo(np.int64).max).min(axis=1)
        highest = np.where(there, rows, -1).max(axis=1)
        if ((highest < 0) | (lowest == highest)).all():
            return Source(axis, highest)
        pairs = np.unique(
            np.stack([np.broadcast_to(lowest[:, None], rows.shape)[there], rows[there]]), axis=1
        )
        ties = Ties()
        ties.new(units)  # numbered from 0, as they are
        ties.tie(*pairs)
        left = len(np.unique(ties.roots(pairs[1])))
        if best is None or left > best[0]:
            best = (left, Source(axis, np.where(highest < 0, -1, lowest), pairs))
    if best is None:
        raise ValueError("it puts them into the axis of the samples")
    return best[1]
