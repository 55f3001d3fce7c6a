"""Samples that are compared in pairs: their distances, block by block of a table of all pairs.

Half precision is computed in float32; every other floating dtype is kept.
"""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg.blas
from keras import ops

from keras_layer_entropy.backend import Tensor, at_least_float32, is_traced
from keras_layer_entropy.measures.one_thread import in_threads

# Numbers of a pairwise table that are held at a time: 8 MiB of float32, a few times over.
BLOCK = 2**21
FEATURES = 256  # at a time, of wide tensors
_SHARES = 2  # of these, that are added up side by side
_TILE = 128  # rows and columns of a table that are turned at a time
# Steps of the grid from 0 to the longest vector: their products are whole numbers below 2^24, which
# float32 holds exactly, and they have 11 bits, all that TF32 multiplies with.
GRID = 2000


class Distances(NamedTuple):
    """Squared distances of all pairs of samples, in units of a square.

    Attributes:
        rows: indices `[k]` -> squared distances `[..., k, samples]`; exactly 0 of a sample to
            itself, or NaN where that holds NaN.
        unit: `[..., 1, 1]`; its square is what they are counted in.
    """

    rows: Callable[[Tensor], Tensor]
    unit: Tensor


def distances(t: Tensor) -> Distances:
    """The squared distances |t_i - t_j|^2 of samples `[..., samples, features]` that are centred.

    |t_i - t_j|^2 = |t_i|^2 + |t_j|^2 - 2 t_i't_j cancels where vectors are long and close. So each
    is divided into a point of a grid and what is left, t = whole + part: between grid points that
    formula is exact, and in the other terms one factor is small.

    Precision in float32, with A the longest vector: 2e-10 A^2 sqrt(features) (a plain product of
    rows: 1e-6 A^2); 1e-6 A^2 where float32 is multiplied as TF32 (instead of 1e-3 A^2).

    Example:

    >>> found = distances(ops.convert_to_tensor([[-1.5], [-0.5], [2.0]]))
    >>> table = found.rows(ops.arange(3)) * found.unit**2
    >>> ops.convert_to_numpy(table).round(3).tolist()
    [[0.0, 1.0, 12.25], [1.0, 0.0, 6.25], [12.25, 6.25, 0.0]]
    """
    longest = ops.sqrt(ops.max(row_products(t, t), axis=-1))[..., None, None]
    unit = ops.where(longest > 0, longest, 1.0) / GRID
    t = t / unit
    whole = ops.round(t)
    part = t - whole
    square = row_products(whole, whole)
    remainder = 2.0 * row_products(part, whole) + row_products(part, part)

    def rows(index: Tensor) -> Tensor:
        def select(x: Tensor, axis: int = -2) -> Tensor:
            return ops.take(x, index, axis=axis)

        exact = _sums(select(square, -1), square) - 2.0 * _products(select(whole), whole)
        rest = _products(select(whole), part) + _products(select(part), t)
        rest = _sums(select(remainder, -1), remainder) - 2.0 * rest
        distance = ops.maximum(exact + rest, 0.0)
        itself = index[:, None] == ops.arange(t.shape[-2])
        return ops.where(itself, 0.0 * distance, distance)  # not 0.0: NaN stays

    return Distances(rows, unit)


def centred_products(rows: np.ndarray) -> np.ndarray:
    """AA' of `[samples, features]` less their means, float64 `[samples, samples]`.

    Some features at a time, so that a large tensor is not held once more, in `_SHARES` sums side by
    side: what they come to does not depend on how many processors there are.

    Example:

    >>> centred_products(np.array([[1.0, 5.0], [3.0, 5.0]])).tolist()
    [[1.0, -1.0], [-1.0, 1.0]]
    """
    starts = range(0, rows.shape[1], FEATURES)
    shares = [starts[share::_SHARES] for share in range(min(_SHARES, len(starts)))]

    def added(share: range) -> np.ndarray:
        found = np.zeros((len(rows), len(rows)), order="F")
        for start in share:
            part = np.array(rows[:, start : start + FEATURES], np.float64)
            part -= part.mean(axis=0)
            # Of the upper half, into what is there.
            found = scipy.linalg.blas.dsyrk(1.0, part.T, 1.0, found, trans=1, overwrite_c=1)
        return found

    first, *others = in_threads(added, shares) or [added(starts)]
    for other in others:
        first += other
    for start in range(0, len(rows), _TILE):  # the other half; tiles stay in a processor's cache
        tile, rest = slice(start, start + _TILE), slice(start + _TILE, None)
        first[rest, tile] = first[tile, rest].T
        first[tile, tile] += np.triu(first[tile, tile], 1).T
    return first.T  # row by row


def shared_products() -> Callable[[Hashable, np.ndarray], np.ndarray]:
    """A function of a key and rows: their `centred_products`, read-only, made once for each key.

    Example:

    >>> products, rows = shared_products(), np.array([[1.0], [3.0]])
    >>> products("layer", rows) is products("layer", rows)
    True
    """
    made: dict[Hashable, np.ndarray] = {}

    def products(key: Hashable, rows: np.ndarray) -> np.ndarray:
        if key not in made:
            made[key] = centred_products(rows)
            made[key].flags.writeable = False
        return made[key]

    return products


def in_blocks(function: Callable[[Tensor], Tensor], number: int, row: int) -> Tensor:
    """`function(indices)` of 0..`number` in blocks, `[number, ...]`, for rows of `row` numbers."""
    blocks = -(-number // max(1, BLOCK // row))
    size = -(-number // blocks)
    # The last block is filled up with its last row.
    index = np.minimum(np.arange(blocks * size), number - 1).reshape(blocks, size).astype("int32")
    first = function(ops.convert_to_tensor(index[0]))
    if blocks > 1 and is_traced(first):  # a graph of one block
        found = ops.map(function, ops.convert_to_tensor(index))
        return ops.reshape(found, (blocks * size, *found.shape[2:]))[:number]
    rest = [function(ops.convert_to_tensor(block)) for block in index[1:]]
    return ops.concatenate([first, *rest])[:number]


def checked_samples(t: Tensor, membership: Tensor) -> tuple[Tensor, Tensor]:
    """Samples and their classes as tensors of one dtype; ValueError where shapes do not fit."""
    t = at_least_float32(t)
    membership = ops.cast(membership, t.dtype)
    check_shapes(t, membership)
    return t, membership


def check_shapes(t: Any, membership: Any) -> None:
    """ValueError where the shapes of samples and of their classes do not fit."""
    fits = len(t.shape) > 1 and len(membership.shape) == 2 and membership.shape[1] != 0
    if not fits or 0 in t.shape or len({t.shape[-2], membership.shape[0]} - {None}) > 1:
        raise ValueError(
            f"t has shape {tuple(t.shape)} and membership {tuple(membership.shape)}; expected "
            "[..., samples, features] and [samples, classes], none of them 0."
        )


def row_products(a: Tensor, b: Tensor) -> Tensor:
    """a_i'b_i of rows, `[..., samples]`."""
    return ops.einsum("...if,...if->...i", a, b)


def _products(a: Tensor, b: Tensor) -> Tensor:
    return ops.einsum("...if,...jf->...ij", a, b)


def _sums(a: Tensor, b: Tensor) -> Tensor:
    return a[..., :, None] + b[..., None, :]
