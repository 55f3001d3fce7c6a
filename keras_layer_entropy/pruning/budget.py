"""What a network costs while units go one by one, and what each of them saves."""

import collections
import copy
import math

import numpy as np

from keras_layer_entropy.pruning.cost import KEYS


class Budget:
    """What may remain of a model, as shares of what it costs, and how much does.

    A variable holds fewer numbers as units go along its axes, and a call does fewer operations as
    they go along those of its largest variable, or of what it gives where it has none: both are
    products over the axes of the shares that are left.

    Args:
        channels: `channels.Channels` of the model.
        flops: floating-point operations of each call of its graph, None where they are not known.
        target: `"flops"`, `"parameters"` -> share of the model's that may remain.

    Example:

    >>> import keras
    >>> from keras_layer_entropy.pruning.channels import find_channels
    >>> dense = keras.layers.Dense
    >>> model = keras.Sequential([keras.Input((4,)), dense(8, name="a"), dense(2)])
    >>> channels = find_channels(model)  # 4 * 8 + 8 parameters, and 8 * 2 + 2
    >>> budget = Budget(channels, [64, 32], {"parameters": 0.5})
    >>> units = channels.roots("a")
    >>> (58 * budget.savings(units[:2])).round(6).tolist()
    [7.0, 7.0]
    >>> {key: round(share, 3) for key, share in budget.left_without(units[:4]).items()}
    {'flops': 0.5, 'parameters': 0.517}
    >>> for unit in units[:4]: budget.take(unit)
    >>> budget.met, {key: round(share, 3) for key, share in budget.left.items()}
    (False, {'flops': 0.5, 'parameters': 0.517})
    """

    def __init__(self, channels, flops, target):
        self._target = dict(target)
        terms = [
            *(("flops", *term) for term in _calls(channels, flops)),
            *(("parameters", *term) for term in _variables(channels)),
        ]
        self._key = np.array([KEYS.index(key) for key, _, _ in terms])
        self._value = np.array([value for _, value, _ in terms], np.float64)
        self._whole = self._sums()
        self._kept, self._term, self._places = [], [], collections.defaultdict(list)
        for term, (_, _, axes) in enumerate(terms):
            for ids in axes:
                units, counts = np.unique(channels.ties.roots(ids), return_counts=True)
                for unit, count in zip(units.tolist(), counts.tolist(), strict=True):
                    self._places[unit].append((len(self._kept), count))
                self._kept.append(len(ids))
                self._term.append(term)

    @property
    def left(self):
        """Key -> share of the model's that is left."""
        shares = self._sums() / np.maximum(self._whole, 1.0)
        return dict(zip(KEYS, shares.tolist(), strict=True))

    @property
    def met(self):
        """Whether no more is left than may be."""
        return not any(self._exceeded())

    def aim_below(self, left, target):
        """Says what is left really, beside what may be: so much lower it aims from now on."""
        for key, share in target.items():
            self._target[key] = min(self._target[key], self.left[key] * share / left[key])

    def savings(self, units):
        """What each of some units saves now, a share of what the model costs, `[units]`.

        Of both keys together, but for those that are met already.
        """
        weights = np.array(self._exceeded()) / np.maximum(self._whole, 1.0)
        return np.array([
            sum(
                self._value[term] * weights[self._key[term]] * count / self._kept[axis]
                for axis, count in self._places[unit]
                for term in (self._term[axis],)
            )
            for unit in np.asarray(units).tolist()
        ])  # fmt: skip

    def take(self, unit):
        """Lets a unit go."""
        for axis, count in self._places[int(unit)]:
            kept = self._kept[axis]
            self._value[self._term[axis]] *= (kept - count) / kept
            self._kept[axis] = kept - count

    def left_without(self, units):
        """What `left` would be, were some more units gone."""
        other = copy.copy(self)
        other._value, other._kept = self._value.copy(), self._kept.copy()
        for unit in units:
            other.take(unit)
        return other.left

    def _sums(self):
        return np.bincount(self._key, self._value, minlength=len(KEYS))

    def _exceeded(self):
        left = self.left
        return [left[key] > self._target.get(key, 1.0) * (1 + 1e-9) for key in KEYS]


def _calls(channels, flops):
    """`(operations, axes)` of each call."""
    largest = {}  # path -> what is bound of its largest variable
    for part in channels.slices:
        parts = largest.setdefault(part.path, [part])
        if part.variable is parts[0].variable and part is not parts[0]:
            parts.append(part)
        elif math.prod(part.variable.shape) > math.prod(parts[0].variable.shape):
            largest[part.path] = [part]
    for call, count in zip(channels.graph.calls, flops, strict=True):
        if call.path in largest:
            axes = [part.ids for part in largest[call.path]]
        else:
            axes = list(channels.labels.get(call.outputs[0], {}).values())
        yield count or 0, axes


def _variables(channels):
    """`(numbers, axes)` of each variable."""
    axes = collections.defaultdict(list)
    for part in channels.slices:
        axes[id(part.variable)].append(part.ids)
    operations = {id(call.operation): call.operation for call in channels.graph.calls}
    variables = {
        id(v): v for operation in operations.values() for v in getattr(operation, "weights", ())
    }
    for key, variable in variables.items():
        yield math.prod(variable.shape), axes[key]
