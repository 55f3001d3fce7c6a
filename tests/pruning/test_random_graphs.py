"""Units taken out of networks drawn at random, against what is known from how they are drawn."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_layer_entropy.pruning.channels import find_channels
from keras_layer_entropy.pruning.units import remove_units

# All of it is calls of Keras; on other backends the example of `remove_units` runs it.
pytestmark = pytest.mark.tensorflow

STAYS = 0  # the unit that all are tied to that have to stay
ACTIVATIONS = (None, "relu", "tanh", "sigmoid", "elu")


class Drawn:
    """A network drawn at random, with the units of every tensor as a hand would note them.

    A value is a tensor and `[channels]`, the number of the unit at each place of its last axis.
    Pairs of units that are tied have one root, the lower one.

    Attributes:
        makers: name of a layer -> its units.
        takers: `(layer, units)`, those that the features of its kernel are.
    """

    def __init__(self, seed):
        keras.utils.clear_session()
        self.random = np.random.default_rng(seed)
        self._parent = [STAYS]
        self.makers, self.takers = {}, []
        self._rank = int(self.random.integers(1, 3))
        inputs = keras.Input((6,) * self._rank + (3,))
        first = (inputs, np.full(3, STAYS))
        x = self._reduced(self._grown([first, self._conv(first)], self._MAPS, 4))
        x, units = self._reduced(self._grown([x, self._dense(x)], self._ROWS, 2))
        out = layers.Dense(3, name="out")
        self.takers.append((out, units))
        self.model = keras.Model(inputs, out(x))
        for variable in self.model.variables:
            value = self.random.normal(size=variable.shape)
            value = value / np.sqrt(max(1, np.prod(variable.shape[:-1])))
            variable.assign(np.abs(value) + 0.5 if "variance" in variable.path else value)

    def root(self, unit):
        while self._parent[unit] != unit:
            unit = self._parent[unit]
        return unit

    def roots(self, units):
        return np.array([self.root(unit) for unit in units])

    def _tie(self, units, others):
        for one, other in zip(units, others, strict=True):
            low, high = sorted((self.root(one), self.root(other)))
            self._parent[high] = low

    def _grown(self, values, kinds, steps):
        """Values that come of so many steps, each from one or two of the last ones."""
        for _ in range(steps):
            step = kinds[self.random.integers(len(kinds))]
            values.append(step(self, self._one_of(values)))
            if self.random.random() < 0.5:
                step = self._JOINTS[self.random.integers(len(self._JOINTS))]
                values.append(step(self, self._one_of(values), values))
        return values

    def _one_of(self, values):
        return values[-1 - self.random.integers(min(3, len(values)))]

    def _reduced(self, values):
        """One row of all of them, so that none is without effect."""
        rows = [self._row(value) for value in values]
        return layers.Concatenate()([x for x, _ in rows]), np.concatenate([u for _, u in rows])

    def _row(self, value):
        x, units = value
        if len(x.shape) == 2:
            return value
        if self.random.random() < 0.3:
            return layers.Flatten()(x), np.tile(units, int(np.prod(x.shape[1:-1])))
        return self._of_rank("Global", "Pooling")()(x), units

    def _of_rank(self, before, after):
        kind = self.random.choice(["Average", "Max"]) if after == "Pooling" else ""
        return getattr(layers, f"{before}{kind}{after}{self._rank}D")

    def _made(self, layer, value, *others):
        """What a layer with new units makes of values that are as wide."""
        for _, units in others:
            self._tie(value[1], units)
        self.takers.append((layer, value[1]))
        found = [layer(x) for x, _ in (value, *others)]
        width = found[0].shape[-1]
        units = np.arange(width) + len(self._parent)
        self._parent.extend(units.tolist())
        self.makers[layer.name] = units
        return [(x, units) for x in found]

    def _layer(self, value, width=None, **options):
        """A `Dense` layer for rows, a convolution for maps."""
        options = {
            "activation": ACTIVATIONS[self.random.integers(len(ACTIVATIONS))],
            "use_bias": bool(self.random.random() < 0.7),
            **options,
        }
        width = width or int(self.random.integers(3, 7))
        size = options.pop("kernel_size", int(self.random.integers(1, 4)))
        if len(value[0].shape) == 2:
            return layers.Dense(width, **options)
        return self._of_rank("", "Conv")(width, size, padding="same", **options)

    # Steps from one value.
    def _conv(self, value):
        return self._made(self._layer(value), value)[0]

    _dense = _conv

    def _normalised(self, value):
        x = layers.BatchNormalization(scale=bool(self.random.random() < 0.7))(value[0])
        return layers.Activation(self.random.choice(ACTIVATIONS[1:]))(x), value[1]

    def _pooled(self, value):
        if min(value[0].shape[1:-1]) < 3:
            return value
        return self._of_rank("", "Pooling")(2, padding="same")(value[0]), value[1]

    def _depthwise(self, value):
        times = int(self.random.integers(1, 3))
        layer = self._of_rank("Depthwise", "Conv")(3, depth_multiplier=times, padding="same")
        return layer(value[0]), np.repeat(value[1], times)

    def _grouped(self, value):
        """Two groups; each goes as one, with the two units that it makes."""
        x, units = value
        if len(units) % 2:
            return self._conv(value)
        halves = units.reshape(2, -1)
        for half in halves:
            self._tie(half[1:], half[:-1])
        return self._of_rank("", "Conv")(4, 1, groups=2)(x), np.repeat(halves[:, 0], 2)

    def _gated(self, value):
        """Every channel times a number that all of them decide on."""
        x, units = value
        squeezed = value
        if len(x.shape) > 2:
            squeezed = self._of_rank("Global", "Pooling")(keepdims=True)(x), units
        layer = self._layer(squeezed, kernel_size=1)
        squeezed = self._made(layer, squeezed)[0]
        layer = self._layer(squeezed, len(units), kernel_size=1, activation="sigmoid")
        gate, others = self._made(layer, squeezed)[0]
        self._tie(units, others)
        return layers.Multiply()([x, gate]), units

    def _masked(self, value):
        """Every place times a number."""
        layer = self._layer(value, 1, activation="sigmoid")
        return layers.Multiply()([value[0], self._made(layer, value)[0][0]]), value[1]

    # Steps from two values of one shape, but for their channels.
    def _fitting(self, value, values, width):
        """Another value of the same shape, made if there is none."""
        x, _ = value
        fit = [
            other
            for other in values
            if other[0] is not x
            and other[0].shape[:-1] == x.shape[:-1]
            and width in (None, len(other[1]))
        ]
        if fit and self.random.random() < 0.5:
            return fit[self.random.integers(len(fit))]
        return self._made(self._layer(value, width), value)[0]

    def _summed(self, value, values):
        other = self._fitting(value, values, len(value[1]))
        self._tie(value[1], other[1])
        kind = self.random.choice(["Add", "Subtract", "Maximum", "Average", "Multiply"])
        return getattr(layers, kind)()([value[0], other[0]]), value[1]

    def _concatenated(self, value, values):
        both = value, self._fitting(value, values, None)
        x = layers.Concatenate()([x for x, _ in both])
        return x, np.concatenate([units for _, units in both])

    def _shared(self, value, values):
        """One layer for both, and the difference of what it gives for them."""
        other = self._fitting(value, values, len(value[1]))
        (one, units), (other, _) = self._made(self._layer(value), value, other)
        return layers.Subtract()([one, other]), units

    _MAPS = (_conv, _conv, _normalised, _pooled, _depthwise, _grouped, _gated, _masked)
    _ROWS = (_dense, _normalised, _gated)
    _JOINTS = (_summed, _summed, _concatenated, _shared)


def free(drawn):
    """Lists of units that may go, each of one group: of layers that share some of them."""
    groups = []
    for units in drawn.makers.values():
        roots = set(drawn.roots(units).tolist()) - {STAYS}
        groups = [g for g in groups if not g & roots] + [
            roots.union(*(g for g in groups if g & roots))
        ]
    return [sorted(group) for group in groups if group]


def chosen(drawn, groups):
    """Three of ten of some units at random, so that every layer keeps one."""
    gone = set()
    for group in groups:
        wanted = max(1, round(0.3 * len(group)))
        for unit in drawn.random.permutation(group).tolist():
            left = [set(drawn.roots(u).tolist()) - gone for u in drawn.makers.values()]
            if wanted and {unit} not in left:
                gone.add(unit)
                wanted -= 1
    return gone


def numbered(roots):
    """Numbers of parts in the order in which they come, which are those of the same partition."""
    first = {}
    return [first.setdefault(root, len(first)) for root in roots.tolist()]


def without_kernels_of(drawn, gone, x):
    """What the network gives when no kernel takes anything of some units."""
    before = [np.array(layer.kernel) for layer, _ in drawn.takers]
    for (layer, units), kernel in zip(drawn.takers, before, strict=True):
        layer.kernel.assign(kernel * ~np.isin(drawn.roots(units), list(gone))[:, None])
    found = ops.convert_to_numpy(drawn.model(x))
    for (layer, _), kernel in zip(drawn.takers, before, strict=True):
        layer.kernel.assign(kernel)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_units_of_a_random_network(seed, float64):
    """Ties and what has to stay as noted while drawing; what is left as if kernels took nothing of
    what went, to rounding in float64; a control: the outputs of the whole network are others."""
    drawn = Drawn(seed)
    model, groups, channels = drawn.model, free(drawn), find_channels(drawn.model)
    makers = [name for name, units in drawn.makers.items() if len(units) > 1]
    expected = np.concatenate([drawn.roots(drawn.makers[name]) for name in makers])
    found = np.concatenate([channels.roots(name) for name in makers])
    stays = [i in channels.reasons(name) for name in makers for i in range(len(drawn.makers[name]))]
    stays = np.array(stays)
    np.testing.assert_array_equal(stays, expected == STAYS)
    assert numbered(found[~stays]) == numbered(expected[~stays])

    one = groups[drawn.random.integers(len(groups))]
    x = drawn.random.normal(size=(8, *model.input_shape[1:]))
    for gone in filter(None, (chosen(drawn, [one]), chosen(drawn, groups))):
        named = {
            name: np.flatnonzero(np.isin(drawn.roots(units), list(gone))).tolist()
            for name, units in drawn.makers.items()
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nothing is refitted
            smaller = remove_units(
                model, {name: places for name, places in named.items() if places}
            )
        assert smaller.count_params() < model.count_params()
        expected = without_kernels_of(drawn, gone, x)
        spread = expected.std(axis=0).mean()
        found = ops.convert_to_numpy(smaller(x))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * spread)
    assert np.abs(ops.convert_to_numpy(model(x)) - expected).max() > 0.1 * spread
