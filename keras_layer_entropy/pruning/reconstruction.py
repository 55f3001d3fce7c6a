"""Which units the layers behind miss least once these have been refitted: Optimal Brain Surgeon."""

import dataclasses

import numpy as np

from keras_layer_entropy.measures.one_thread import one_thread

RIDGE = 1e-6  # relative to standardised features, as for `ridge_regression`


@dataclasses.dataclass(frozen=True)
class Taker:
    """A layer that takes units.

    Attributes:
        gram: `[features, features]`, sums of products of its centred features.
        kernel: `[features, targets]`.
        owners: `[features]`, the unit that each feature belongs to, -1 for none.
        weight: what a loss in this layer counts, beside one in others.
    """

    gram: np.ndarray
    kernel: np.ndarray
    owners: np.ndarray
    weight: float = 1.0


def least_missed(takers, choices):
    """Units in the order in which layers can do without them, one after the other.

    With G the Gram matrix of a layer's features, a ridge on its diagonal, and W its kernel, fitted
    to what it computes, a unit with the features R costs `tr(W_R' [(G^-1)_RR]^-1 W_R)` of the sum
    of squares of that, once the rest is refitted; it is divided by the whole sum of squares and
    added up over the layers. The unit that costs least goes, W and G^-1 are brought up to date, and
    so on.

    Args:
        takers: list of `Taker`.
        choices: list of (numbers of the units that may go, how many of them do).

    Returns:
        List of `(unit, cost)`.

    Source: Hassibi & Stork, *Second order derivatives for network pruning: Optimal Brain Surgeon*,
    1993.

    Example:

    >>> x = np.random.default_rng(0).normal(size=(50, 3))
    >>> x[:, 2] = x[:, 0] - x[:, 1] + 0.01 * x[:, 2]  # one of the three is hardly missed
    >>> taker = Taker(x.T @ x, np.array([[1.0], [1.0], [0.1]]), np.arange(3))
    >>> [unit for unit, _ in least_missed([taker], [([0, 1, 2], 1)])]
    [2]
    """
    states, found = [_State(taker) for taker in takers], []
    for units, count in choices:
        left = list(units)
        for _ in range(count):
            costs = sum((state.costs(left) for state in states), np.zeros(len(left)))
            place = int(np.argmin(costs))
            unit = left.pop(place)
            found.append((unit, float(costs[place])))
            for state in states:
                state.remove(unit)
    return found


def cheapest(takers, groups, savings, lump=1):
    """Units in the order in which they cost least for what they save.

    As `least_missed`, over several groups of units at once: the next to go are those that cost
    least of the group in which these cost least for what they save. Of a unit that several layers
    take, the roots of the costs add up, not the costs: what they miss shows in the same outputs.

    Args:
        takers: list of `Taker`, whose costs are multiplied with their weights.
        groups: list of (numbers of the units that may go, how many of them at most).
        savings: a function of numbers of units: what each of them saves now.
        lump: so many units go at a time, and first as many as leave a multiple of that.

    Yields:
        List of `(unit, cost)` of what goes together.

    Example:

    >>> x = np.random.default_rng(0).normal(size=(50, 3))
    >>> taker = Taker(x.T @ x, np.array([[4.0], [3.0], [2.0]]), np.arange(3))
    >>> tenfold = lambda units: np.where(units == 0, 10.0, 1.0)
    >>> [[unit for unit, _ in gone] for gone in cheapest([taker], [([0], 1), ([1, 2], 1)], tenfold)]
    [[0], [2]]
    """
    states = [_State(taker) for taker in takers]
    pools = [_Pool(units, most, states) for units, most in groups]
    while True:
        prices = [pool.price(savings, lump) for pool in pools]
        if not prices or np.isinf(min(prices)):
            return
        pool, gone = pools[int(np.argmin(prices))], []
        for _ in range(pool.next(lump)):
            gone.append(pool.pop())
            for state in pool.states:
                state.remove(gone[-1][0])
            for other in pools:
                if any(state in pool.states for state in other.states):
                    other.update()
        yield gone


class _Pool:
    """The units of one group that are left, and what they cost."""

    def __init__(self, units, most, states):
        self._units = list(units)
        self._least = len(self._units) - most
        self.states = [state for state in states if state.takes_any(self._units)]
        self.update()

    def update(self):
        """Asks anew what the units cost; to be called when one of its layers lost some."""
        roots = (np.sqrt(state.costs(self._units)) for state in self.states)
        self._costs = sum(roots, np.zeros(len(self._units))) ** 2

    def next(self, lump):
        """How many units go together, 0 for none."""
        left = len(self._units)
        count = left % lump or lump
        return count if left - count >= self._least else 0

    def price(self, savings, lump):
        """What the next units cost for what they save."""
        count = self.next(lump)
        if not count:
            return np.inf
        first = np.argsort(self._costs, kind="stable")[:count]
        saved = savings(np.array(self._units)[first]).sum()
        return self._costs[first].sum() / saved if saved > 0 else np.inf

    def pop(self):
        """Takes out the unit that costs least; `(unit, cost)`."""
        place = int(np.argmin(self._costs))
        return self._units.pop(place), float(self._costs[place])


class _State:
    """One layer, as units go."""

    @one_thread()
    def __init__(self, taker):
        self._weight = taker.weight
        scale = np.sqrt(np.maximum(np.diag(taker.gram), np.finfo(np.float64).tiny))
        standard = taker.gram / np.outer(scale, scale)
        whole = float(np.sum(taker.kernel * (taker.gram @ taker.kernel)))
        self._inverse = np.linalg.inv(standard + RIDGE * np.eye(len(standard)))
        self._kernel = taker.kernel * scale[:, None] / np.sqrt(max(whole, np.finfo(float).tiny))
        self._features = {}
        for feature, owner in enumerate(taker.owners.tolist()):
            if owner >= 0:
                self._features.setdefault(owner, []).append(feature)

    @one_thread()
    def costs(self, units):
        """What each unit costs now, `[units]`."""
        found, by_size = np.zeros(len(units)), {}
        for place, unit in enumerate(units):
            features = self._features.get(unit)
            if features:
                by_size.setdefault(len(features), []).append((place, features))
        for pairs in by_size.values():
            places, features = (np.array(x) for x in zip(*pairs, strict=True))
            blocks = self._inverse[features[:, :, None], features[:, None, :]]
            kernels = self._kernel[features]
            found[places] = np.sum(kernels * np.linalg.solve(blocks, kernels), axis=(1, 2))
        return self._weight * np.maximum(found, 0.0)

    def takes_any(self, units):
        """Whether it takes one of some units."""
        return not self._features.keys().isdisjoint(units)

    @one_thread()
    def remove(self, unit):
        """Lets a unit go."""
        gone = self._features.pop(unit, None)
        if not gone:
            return
        columns = self._inverse[:, gone]
        shares = np.linalg.solve(self._inverse[np.ix_(gone, gone)], columns.T)
        self._kernel = self._kernel - shares.T @ self._kernel[gone]
        self._inverse = self._inverse - columns @ shares
        self._kernel[gone] = 0.0
        # What is gone has nothing to do with the rest any more.
        self._inverse[gone] = self._inverse[:, gone] = 0.0
        self._inverse[gone, gone] = 1.0
