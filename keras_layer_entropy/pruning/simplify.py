"""Take out of a model what changes no output."""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_layer_entropy.pruning import kernels
from keras_layer_entropy.pruning.channels import Channels, Slice, find_channels
from keras_layer_entropy.pruning.optimizer_state import restart_averages
from keras_layer_entropy.pruning.rewrite import rewritten, thinned, without
from keras_layer_entropy.pruning.sameness import affine, find_sameness
from keras_layer_entropy.recording.graph import Call, Graph, flat_graph, shared_paths

_NOISE = (
    *(layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D),
    *(layers.AlphaDropout, layers.GaussianDropout, layers.GaussianNoise),
)


def simplify_model(model: keras.Model) -> keras.Model:
    """The model without what changes no output, known from its weights alone.

    What goes, over and over until nothing does:

    - dropout and noise, `Identity` and `Activation("linear")`;
    - `BatchNormalization` at inference, y = s x + t with s = gamma / sqrt(variance + epsilon) and
      t = beta - s mean: into the kernel and bias of the layer that gives x, W s and b s + t, where
      that has no activation function; else into those of all layers that take y, s W and b + t W,
      where these do not pad, or t is 0;
    - the first of two linear layers in a row, into the second, where the product of their kernels
      is no larger than the two: two `Dense`, a convolution and one of single points in either order
      (where the second pads, only if the first has no bias);
    - units that are 0, or another constant, *by their weights*, whatever the model is given; the
      constant goes into the bias of the layers that take it. Before a convolution that pads only
      0 goes: the border does not see a constant. And units of which the layers behind take nothing;
    - all but one of units with the same weights to the last bit; the layers behind take that one
      with the sum of their kernels (not a separable convolution, which filters each in its way).

    Units that are tied, as in residual sums, go where that holds for the whole. A unit that is
    never on for some data is no constant by its weights, and stays; so does one of each layer.

    Layers are rewritten if they are Dense, convolutions (transposed, depthwise, separable) or
    `EinsumDense` on the last axis, of exactly these classes, called once, in float32 or float64,
    with weights that nothing else uses and no constraint or regularizer of their activity, and not
    quantized or fine-tuned with LoRA. What is called with `training=True`, and layers that are
    outputs of the model, stay, as their names do. `ActivityRegularization` stays: it adds to the
    loss. All else is as it was: names, weights, trainable flags, the state of seeds.

    The outputs are the same at inference, up to rounding; gradients are not. A model that is to be
    trained on trains differently without its normalisation and dropout, and the losses of weight
    regularizers are those of the new weights. Where a layer was frozen and the normalisation after
    it was not, or the other way round, what was folded is frozen if the layer was.

    Args:
        model: a built Sequential or functional model, nested as you like; it is not changed.

    Returns:
        A new `keras.Model`, compiled like the old one, its optimizer's state cut like the weights;
        a copy where there is nothing to take out.

    Raises:
        ValueError: a subclassed model, one that is not built, or one with a layer that is in two
            models inside it.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 3)), layers.Conv2D(4, 3, use_bias=False, name="conv"),
    ...     layers.BatchNormalization(name="bn"), layers.ReLU(name="relu"),
    ...     layers.Dropout(0.5, name="dropout"), layers.Flatten(name="flatten"),
    ...     layers.Dense(2, name="out")])
    >>> simpler = simplify_model(model)
    >>> [layer.name for layer in simpler.layers], simpler.get_layer("conv").use_bias
    (['conv', 'relu', 'flatten', 'out'], True)
    """
    simpler, _ = without(model, None)
    while True:
        rewritable = _Rewritable(flat_graph(simpler))
        changed = (step(simpler, rewritable) for step in _STEPS)
        after = next((model for model in changed if model is not None), None)
        if after is None:
            return simpler
        simpler = after


class _Rewritable:
    """Which layers of a graph may be given other weights."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.shared = shared_paths(graph)
        self._held = collections.Counter(
            id(weight)
            for layer in {id(call.operation): call.operation for call in graph.calls}.values()
            for weight in getattr(layer, "weights", ())
        )

    def goes(self, call: Call) -> bool:
        """Whether a call may be left out of the graph, as far as its place in it says."""
        graph, output = self.graph, call.outputs[0]
        return (
            len(call.inputs) == len(call.outputs) == 1
            and not call.training
            and output not in graph.outputs
            and graph.dtypes[call.inputs[0]] == graph.dtypes[output]
        )

    def alone(self, call: Call) -> bool:
        """Whether a layer is called once and nothing else uses its weights."""
        return call.path not in self.shared and all(
            self._held[id(weight)] == 1 and id(weight) not in self.graph.arguments
            for weight in getattr(call.operation, "weights", ())
        )

    def kernel(self, call: Call) -> bool:
        """Whether the kernel and bias of a layer can be others."""
        layer = call.operation
        return (
            kernels.obstacle(layer) is None
            and self.alone(call)
            and layer.activity_regularizer is None
            and not any(x for name, x in vars(layer).items() if name.endswith("_constraint"))
        )

    def linear(self, call: Call) -> bool:
        """Whether the kernel can be another, and what it gives goes on as it is to one call."""
        return (
            self.kernel(call)
            and call.operation.activation in (None, keras.activations.linear)
            and call.outputs[0] not in self.graph.outputs
            and len(self.graph.consumers(call.outputs[0])) == 1
        )

    def normalization(self, call: Call) -> bool:
        """Whether it is a normalisation that may go."""
        return (
            type(call.operation) is layers.BatchNormalization
            and self.alone(call)
            and self.goes(call)
        )

    def on_channels(self, normalization: Call, call: Call) -> bool:
        """Whether a normalisation is of the axis that a layer makes or takes."""
        rank = len(self.graph.shapes[normalization.inputs[0]])
        axis = kernels.channel_axis(call.operation, rank)
        return normalization.operation.axis % rank == axis

    def producer(self, call: Call) -> Call | None:
        """The call that gives what one takes, None for inputs of the model."""
        (given,) = call.inputs
        return next((other for other in self.graph.calls if given in other.outputs), None)


def _without_noise(model: keras.Model, can: _Rewritable) -> keras.Model | None:
    """Without what passes on what it is given."""
    calls = collections.defaultdict(list)
    for call in can.graph.calls:
        calls[call.path].append(call)
    gone = [
        of_layer[0].operation
        for of_layer in calls.values()
        if _passes_on(of_layer[0].operation) and all(map(can.goes, of_layer))
    ]
    return rewritten(model, gone, {}) if gone else None


def _passes_on(layer: Any) -> bool:
    if type(layer) is layers.Activation:
        return layer.activation is keras.activations.linear
    return type(layer) in (*_NOISE, layers.Identity)


def _folded_before(model: keras.Model, can: _Rewritable) -> keras.Model | None:
    """Normalisations folded into the layers that they come after."""
    gone, changes = [], {}
    for call in filter(can.normalization, can.graph.calls):
        before = can.producer(call)
        if before is None or not can.linear(before) or not can.on_channels(call, before):
            continue
        layer = before.operation
        scale, shift = affine(call.operation)
        weights = kernels.rescaled(layer, units=scale)
        weights["bias"] = kernels.bias_of(layer) * scale + shift
        gone.append(call.operation)
        changes[before.path] = (kernels.with_bias(layer), weights)
    return rewritten(model, gone, changes) if gone else None


def _folded_after(model: keras.Model, can: _Rewritable) -> keras.Model | None:
    """Normalisations folded into the layers that take what they give."""
    gone, changes = [], {}
    for call in filter(can.normalization, can.graph.calls):
        scale, shift = affine(call.operation)
        takers = can.graph.consumers(call.outputs[0])
        if not takers or not all(
            can.kernel(taker)
            and can.on_channels(call, taker)
            and (kernels.sees_no_border(taker.operation) or not shift.any())
            for taker in takers
        ):
            continue
        gone.append(call.operation)
        for taker in takers:
            layer = taker.operation
            attributes, weights = {}, kernels.rescaled(layer, features=scale)
            if shift.any():
                attributes = kernels.with_bias(layer)
                weights["bias"] = kernels.bias_of(layer) + kernels.given_constants(layer, shift)
            changes[taker.path] = (attributes, weights)
    return rewritten(model, gone, changes) if gone else None


def _merged(model: keras.Model, can: _Rewritable) -> keras.Model | None:
    """Two linear layers in a row as one, the second."""
    gone, changes = [], {}
    used: set[str] = set()
    for first in filter(can.linear, can.graph.calls):
        (second,) = can.graph.consumers(first.outputs[0])
        one, other = first.operation, second.operation
        pair = {first.path, second.path}
        if used & pair or not can.kernel(second) or not _multiply(one, other):
            continue
        kernel, next_kernel = kernels.kernel_of(one), kernels.kernel_of(other)
        # One of them is of single points, so that the taps are those of the other.
        product = np.einsum("sgfm,tgmu->stgfu", kernel, next_kernel, dtype=np.float64)
        product = product.reshape(-1, *product.shape[2:])
        if product.size > kernel.size + next_kernel.size:
            continue
        attributes: dict[str, Any] = {"use_bias": one.bias is not None or other.bias is not None}
        if kernels.is_pointwise(one):
            weights = kernels.weights_of(other, product)
        else:
            weights = kernels.weights_of(one, product)
            attributes |= {name: getattr(one, name) for name in _OF_TAPS}
        if attributes["use_bias"]:
            moved = kernels.given_constants(other, kernels.bias_of(one))
            weights["bias"] = kernels.bias_of(other) + moved
        used |= pair
        gone.append(one)
        changes[second.path] = (attributes, weights)
    return rewritten(model, gone, changes) if gone else None


_OF_TAPS = ("kernel_size", "strides", "padding", "dilation_rate")


def _multiply(one: Any, other: Any) -> bool:
    """Whether a layer whose kernel is the product of both is the same as one after the other."""
    if type(one) is not type(other) or one.compute_dtype != other.compute_dtype:
        return False
    if type(one) is layers.Dense:
        return True
    if not kernels.is_convolution(one) or not kernels.is_convolution(other):
        return False
    if kernels.is_pointwise(one):
        seen = kernels.sees_no_border(other) or not kernels.bias_of(one).any()
    else:
        seen = kernels.is_pointwise(other)
    return seen and one.data_format == other.data_format


@dataclasses.dataclass(frozen=True)
class _Taker:
    """A layer of one group that takes units.

    Attributes:
        layer, path: the layer.
        roots, symbols, constants: `[features]`, of what each feature is, NaN where it is no
            constant.
        unread: `[features]`, whether its kernel is zero for it.
        rewritable: whether its weights can be others.
    """

    layer: Any
    path: str
    roots: np.ndarray
    symbols: np.ndarray
    constants: np.ndarray
    unread: np.ndarray
    rewritable: bool

    def does_without(self) -> np.ndarray:
        """`[features]`, whether it can do without it, its bias being another."""
        shifted = self.rewritable and kernels.sees_no_border(self.layer)
        return self.unread | (self.constants == 0) | (shifted & np.isfinite(self.constants))

    def without(self, dead: np.ndarray, twins: dict[int, int]) -> dict[str, np.ndarray]:
        """Name of a weight -> array, where it is another once constants and twins have gone."""
        found = {}
        moved = np.isin(self.roots, dead) & ~self.unread & (self.constants != 0)
        if moved.any():
            shift = kernels.given_constants(self.layer, np.where(moved, self.constants, 0.0))
            found["bias"] = kernels.bias_of(self.layer) + shift
        here = [twin for twin in twins if twin in self.roots]
        if here:
            kernel = kernels.kernel_of(self.layer).copy()
            for twin in here:
                kernel[:, :, self.roots == twins[twin]] += kernel[:, :, self.roots == twin]
            found |= kernels.weights_of(self.layer, kernel)
        return found


def _without_units(model: keras.Model, can: _Rewritable) -> keras.Model | None:
    """Without units that are constants, that nothing takes, or that others are the same as."""
    channels = find_channels(model)
    takers, needed = _takers(channels, can)
    if not takers:
        return None
    made = channels.ties.roots(np.concatenate([*channels.makers.values(), np.zeros(0, int)]))
    free = np.setdiff1d(made, [*channels.ties.reasons(made), *channels.ties.roots(needed)])
    clung_to = np.concatenate([taker.roots[~taker.does_without()] for taker in takers])
    dead = np.setdiff1d(free, clung_to)
    twins = _twins(takers, set(np.setdiff1d(free, dead).tolist()))
    gone = _leaving_one(channels, np.union1d(dead, list(twins)).astype(int))
    if not len(gone):
        return None
    dead = np.intersect1d(dead, gone)
    twins = {twin: kept for twin, kept in twins.items() if twin in gone}
    weights = {taker.path: taker.without(dead, twins) for taker in takers if taker.rewritable}
    changes = {taker.path: taker for taker in takers if weights.get(taker.path)}
    unbiased = {
        path: (kernels.with_bias(taker.layer), {"bias": np.zeros_like(weights[path]["bias"])})
        for path, taker in changes.items()
        if "bias" in weights[path] and taker.layer.bias is None
    }
    if unbiased:  # constants move there in the next round
        return rewritten(model, [], unbiased)
    for path, taker in changes.items():
        for name, value in weights[path].items():
            getattr(taker.layer, name).assign(value)
    smaller = thinned(model, channels, gone)
    twin_of = {call.path: call.operation for call in flat_graph(smaller).calls}
    restart_averages(smaller, [v for path in changes for v in twin_of[path].variables])
    return smaller


def _takers(channels: Channels, can: _Rewritable) -> tuple[list[_Taker], np.ndarray]:
    """The layers that take units, and the numbers of units that have to stay on account of one."""
    sameness = find_sameness(channels)
    takers, needed = [], [np.zeros(0, int), *channels.together]
    for call in channels.graph.calls:
        layer, given = call.operation, call.inputs[0]
        if getattr(layer, "activity_regularizer", None) is not None:  # it adds to the loss
            needed += [ids for x in call.outputs for ids in channels.labels.get(x, {}).values()]
        if not getattr(layer, "weights", ()) or type(layer) in _PASSING:
            continue
        if kernels.obstacle(layer):
            needed += [ids for x in call.inputs for ids in channels.labels.get(x, {}).values()]
            needed += [part.ids for part in channels.slices if _takes_inside(part, call)]
            continue
        kernel = kernels.kernel_of(layer)
        axis = kernels.channel_axis(layer, len(channels.graph.shapes[given]))
        ids = channels.labels.get(given, {}).get(axis)
        if ids is not None and kernel.shape[1] == 1:  # of several groups each goes as one
            symbols = sameness.symbols[given][axis]
            takers.append(
                _Taker(
                    layer=layer,
                    path=call.path,
                    roots=channels.ties.roots(ids),
                    symbols=symbols,
                    constants=sameness.values(symbols),
                    unread=~(kernel != 0).any(axis=(0, 1, 3)),
                    rewritable=can.kernel(call),
                )
            )
    return takers, np.concatenate(needed)


def _takes_inside(part: Slice, call: Call) -> bool:
    """Whether a kernel of a layer takes units: heads and states are taken where they are made."""
    return part.path == call.path and not part.makes and part.variable.name.endswith("kernel")


_PASSING = (layers.BatchNormalization, layers.PReLU)


def _twins(takers: list[_Taker], free: set[int]) -> dict[int, int]:
    """Root of a unit -> root of another of the free ones, that gives all layers the same."""
    gives = collections.defaultdict(list)
    for number, taker in enumerate(takers):
        merges = taker.rewritable and not kernels.is_separable(taker.layer)
        for root, symbol in zip(taker.roots.tolist(), taker.symbols.tolist(), strict=True):
            gives[root].append((number, symbol if merges else -1 - root))
    alike = collections.defaultdict(list)
    for root in sorted(free & gives.keys()):
        alike[tuple(gives[root])].append(root)
    return {root: kept for kept, *others in alike.values() for root in others}


def _leaving_one(channels: Channels, gone: np.ndarray) -> np.ndarray:
    """The units that go, but for one of each layer that would lose all."""
    for ids in channels.makers.values():
        if not len(channels.kept(ids, gone)):
            gone = np.setdiff1d(gone, channels.ties.roots(ids)[0])
    return gone


_STEPS: tuple[Callable[[keras.Model, _Rewritable], keras.Model | None], ...] = (
    _without_noise,
    _folded_before,
    _folded_after,
    _merged,
    _without_units,
)
