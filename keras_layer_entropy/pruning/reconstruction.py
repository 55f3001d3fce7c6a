"""Which units the layers behind miss least once these have been refitted: Optimal Brain Surgeon."""

import dataclasses

import numpy as np

RIDGE = 1e-6  # relative to standardised features, as for `ridge_regression`


@dataclasses.dataclass(frozen=True)
class Taker:
    """A layer that takes units.

    Attributes:
        gram: `[features, features]`, sums of products of its centred features.
        kernel: `[features, targets]`.
        owners: `[features]`, the unit that each feature belongs to, -1 for none.
    """

    gram: np.ndarray
    kernel: np.ndarray
    owners: np.ndarray


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
            costs = sum(state.costs(left) for state in states)
            place = int(np.argmin(costs))
            unit = left.pop(place)
            found.append((unit, float(costs[place])))
            for state in states:
                state.remove(unit)
    return found


class _State:
    """One layer, as units go."""

    def __init__(self, taker):
        scale = np.sqrt(np.maximum(np.diag(taker.gram), np.finfo(np.float64).tiny))
        standard = taker.gram / np.outer(scale, scale)
        whole = float(np.sum(taker.kernel * (taker.gram @ taker.kernel)))
        self._inverse = np.linalg.inv(standard + RIDGE * np.eye(len(standard)))
        self._kernel = taker.kernel * scale[:, None] / np.sqrt(max(whole, np.finfo(float).tiny))
        self._features = {}
        for feature, owner in enumerate(taker.owners.tolist()):
            if owner >= 0:
                self._features.setdefault(owner, []).append(feature)

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
        return found

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
