"""Units that can only go together, and those that have to stay."""

import numpy as np


class Ties:
    """Numbered units: some are tied to one another, some are frozen, with a reason.

    Example:

    >>> ties = Ties()
    >>> one, other = ties.new(3), ties.new(3)
    >>> ties.tie(one, other)
    >>> ties.freeze(other[:1], "it is an output")
    >>> ties.roots(other).tolist(), ties.reasons(one)
    ([0, 1, 2], {0: 'it is an output'})
    """

    def __init__(self):
        self._parent = np.zeros(0, np.int64)
        self._frozen = {}

    def new(self, count):
        """The numbers of so many new units, `[count]`."""
        ids = np.arange(count) + len(self._parent)
        self._parent = np.concatenate([self._parent, ids])
        return ids

    def roots(self, ids):
        """One number for all units that are tied together: the lowest of them, `[len(ids)]`."""
        ids = np.asarray(ids)
        while True:
            above = self._parent[ids]
            if np.array_equal(above, ids):
                return ids
            ids = above

    def tie(self, ids, others):
        """Ties units pair by pair, of two arrays of one length."""
        ids, others = np.asarray(ids), np.asarray(others)
        if ids.shape != others.shape:
            raise ValueError(f"There are {len(ids)} and {len(others)} units to be tied.")
        while True:
            one, other = self.roots(ids), self.roots(others)
            apart = one != other
            if not apart.any():
                return
            low, high = np.minimum(one, other)[apart], np.maximum(one, other)[apart]
            np.minimum.at(self._parent, high, low)

    def tie_all(self, ids):
        """Ties all of some units to one another."""
        self.tie(ids[:-1], ids[1:])

    def freeze(self, ids, reason):
        """Says why some units have to stay; the first reason counts."""
        for unit in np.unique(ids).tolist():
            self._frozen.setdefault(unit, reason)

    def reasons(self, ids):
        """Root -> why it has to stay, of those among some units that have to."""
        wanted, found = set(self.roots(ids).tolist()), {}
        frozen = list(self._frozen)
        for root, unit in zip(self.roots(frozen).tolist() if frozen else (), frozen, strict=True):
            if root in wanted:
                found.setdefault(root, self._frozen[unit])
        return found
