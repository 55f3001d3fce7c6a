"""When the first loop appears in what a convolution unit sees.

Source: Zhao & Zhang, *Quantitative Performance Assessment of CNN Units via Topological Entropy
Calculation*, ICLR 2022, arXiv 2103.09716.

One unit's map U of one image, `[m, m]`, is read as a graph: the m vertices are its rows and its
columns, and the edge ij weighs max(U_ij, U_ji). Edges enter from the heaviest down, equal ones
together, and the clique complex of what has entered is watched: each triangle is filled. The rank
at which it first has a loop (first Betti number over Z2 above 0) is the birth.
"""

import functools
import math
from typing import Any

import numpy as np
from keras import ops

from keras_layer_entropy.backend import Tensor, at_least_float32, compiled, is_traced

MAX_DENSITY, MAX_RANK = 0.8, 50  # the limits of Zhao & Zhang
WORD = 32  # bits of an int32
FEW, BLOCK, LARGE_BLOCK = 128, 256, 2**22  # maps, and numbers in maps
TIED_BYTES = 2**22  # of cocycles at a time: what a processor's cache holds


def birth_index(maps: Tensor, max_density: float = MAX_DENSITY, max_rank: int = MAX_RANK) -> Tensor:
    """Birth index of the first loop in each map: its rank - 1, or 0 where there is none.

    Rank r is the r-th largest of a map's distinct edge weights. A birth is the first rank after
    which, with all edges of that rank in, the first Betti number is not 0. It counts as none in
    rank 1, whose index is 0 (that takes four equal largest edges), beyond index `max_rank`, and
    beyond rank ceil(max_density m (m - 1) / 2). Only the order of the weights matters.

    Of 128 maps or more it compiles itself, which takes seconds when an m is new to it.

    Args:
        maps: tensor `[..., m, m]`, what follows the unit's activation function; m must be known
            when a graph is traced. Half precision and integers are compared in float32; subnormal
            numbers may count as 0.
        max_density: in 0..1, which ranks count, as a share of all pairs of vertices.
        max_rank: largest birth index, a positive int.

    Returns:
        int32 tensor `[...]`, in 0..max_rank; -1 for a map with a value that is NaN or infinite,
        which `one_hot` turns into a row of zeros: such an image is not counted at all.

    Raises:
        ValueError: fewer than two dimensions, maps that are not square or are empty, parameters
            out of range.

    Source: Zhao & Zhang 2022.

    Example:

    >>> import numpy as np
    >>> u = np.zeros((4, 4))
    >>> u[0, 1], u[3, 2], u[1, 3], u[2, 0] = 9.0, 8.0, 7.0, 6.0  # the fourth edge closes a square
    >>> int(birth_index(u))
    3
    >>> u[0, 3] = 6.5  # a diagonal that comes first: two triangles, both filled
    >>> int(birth_index(u))
    0
    """
    if not 0 <= max_density <= 1:
        raise ValueError(f"max_density={max_density}; expected a share, in 0..1.")
    if max_rank < 1 or max_rank != int(max_rank):
        raise ValueError(f"max_rank={max_rank}; expected a positive int.")
    maps = _square(maps)
    m = maps.shape[-1]
    shape = ops.shape(maps)[:-2]
    maps = ops.reshape(maps, (-1, m, m))
    limit = min(int(max_rank) + 1, math.ceil(max_density * (m * (m - 1) // 2)))
    at_once = is_traced(maps) or maps.shape[0] < FEW
    return ops.reshape((_of_maps if at_once else _of_many)(maps, limit), shape)


def _of_maps(maps: Tensor, limit: int) -> Tensor:
    """Birth indices `[maps]` of `maps` `[maps, m, m]`, of ranks up to `limit`."""
    finite = ops.all(ops.isfinite(maps), axis=(1, 2))
    if maps.shape[1] < 4 or maps.shape[0] == 0:
        births = ops.zeros_like(finite, dtype="int32")
    else:
        maps = ops.where(finite[:, None, None], maps, 0.0)
        births = _births(ops.maximum(maps, ops.swapaxes(maps, 1, 2)), limit)
    return ops.where(finite, births, -1)


def _of_many(maps: Tensor, limit: int) -> Tensor:
    """The same in blocks of two sizes, the last one filled up, so that little is compiled."""
    count, m, _ = maps.shape
    large = max(BLOCK, LARGE_BLOCK // m**2)
    found, start = [], 0
    while start < count:
        size = large if count - start >= large else BLOCK
        block = maps[start : start + size]
        if block.shape[0] < size:
            block = ops.pad(block, ((0, size - block.shape[0]), (0, 0), (0, 0)))
        found.append(_compiled()(block, limit))
        start += size
    return ops.concatenate(found)[:count]


@functools.cache
def _compiled() -> Any:
    return compiled(_of_maps)


def _births(weights: Tensor, limit: int) -> Tensor:
    """Birth indices `[maps]` from symmetric `weights` `[maps, m, m]`, of ranks up to `limit`.

    Most maps are decided by their `limit` heaviest edges. Those in which equal weights matter are
    then taken up again, as many at a time as memory allows.
    """
    m = weights.shape[-1]
    weights = ops.where(np.eye(m, dtype=bool), -math.inf, weights)  # no edge leads back
    births, undecided = _births_but_for_ties(weights, limit)
    some = max(1, TIED_BYTES // (4 * _words(m) * m * (m - 1) // 2))
    if weights.shape[0] is not None:
        some = min(some, weights.shape[0])
    queue = ops.argsort(ops.where(undecided, 0, 1))
    waiting = ops.sum(ops.cast(undecided, "int32"))

    def take_up(start: Tensor, births: Tensor) -> tuple[Tensor, Tensor]:
        # The last map may be taken up several times: it comes out the same.
        here = ops.take(queue, ops.minimum(start + ops.arange(some), waiting - 1))
        found = _births_with_ties(ops.take(weights, here, axis=0), limit)
        return start + some, ops.scatter_update(births, here[:, None], found)

    return ops.while_loop(lambda start, _: start < waiting, take_up, (0, births))[1]


def _births_but_for_ties(weights: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Birth indices, and for which maps they are not known because of equal weights.

    As long as there is no loop, an edge makes one exactly if its ends are connected already and
    have no common neighbour: with one, the triangle that they form fills whatever the edge closes
    (Mayer-Vietoris). Edges of one rank may come in any order. Without such an edge there is no
    loop; there is one if the ends of such an edge have no common neighbour by its equals either, as
    it may then come last; else it is not known here.
    """
    m = weights.shape[-1]
    ends = np.stack(np.triu_indices(m, 1)).astype("int32")
    edges = ops.take(ops.reshape(weights, (-1, m * m)), ends[0] * m + ends[1], axis=1)
    seen = min(limit + 1, edges.shape[1])
    values, edge = ops.top_k(edges, seen)
    rank = _ranks(values, ops.min(edges, axis=1, keepdims=True), limit)
    by_step = [ops.transpose(x) for x in (values, edge, rank)]

    def enter(
        step: Tensor, labels: Tensor, doubt: Tensor, birth: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        value, edge, rank = (ops.take(x, step, axis=0) for x in by_step)
        u, v = (ops.take(end, edge) for end in ends)
        # Through whom both are connected first.
        common = ops.max(ops.minimum(_pick(weights, u), _pick(weights, v)), axis=1)
        label_u, label_v = _pick(labels, u), _pick(labels, v)
        loop = (label_u == label_v) & (common <= value)
        loop = loop & (rank <= limit) & (birth == 0) & ((doubt == 0) | (doubt == rank))
        labels = ops.where(labels == label_v[:, None], label_u[:, None], labels)
        birth = ops.where(loop & (common < value), rank, birth)
        return step + 1, labels, ops.where(loop, rank, doubt), birth

    def unfinished(step: Tensor, labels: Tensor, doubt: Tensor, birth: Tensor) -> Tensor:
        rank = ops.take(by_step[2], ops.minimum(step, seen - 1), axis=0)
        open_ = ((doubt == 0) & (rank <= limit)) | ((doubt == rank) & (birth == 0))
        return (step < seen) & ops.any(open_)

    none = ops.zeros_like(by_step[2][0])
    doubt, birth = ops.while_loop(unfinished, enter, (0, _own_labels(weights), none, none))[-2:]
    undecided = (birth == 0) & ((doubt > 0) | (by_step[2][-1] <= limit))
    return ops.maximum(birth - 1, 0), undecided


def _births_with_ties(weights: Tensor, limit: int) -> Tensor:
    """Birth indices, looking for loops only when all edges of a rank are in.

    The edges that are in carry a basis of the cocycles modulo coboundaries, over Z2: one bit for
    each cocycle, its value on that edge. The bits in use are `live`; the Betti number is how many
    they are. A new edge uv must get value(uw) + value(wv) for each common neighbour w. Where two of
    these differ, some cocycles do not extend: one bit of the difference is eliminated from all
    edges. Without a common neighbour the value is free: a new cocycle, 1 on uv alone, if u and v
    are connected already; if not, that would be a coboundary.
    """
    m = weights.shape[-1]
    ends = np.stack(np.triu_indices(m, 1)).astype("int32")
    total = ends.shape[1]
    number = np.full((m, m), total, "int32")  # of each edge; none leads from a vertex to itself
    number[ends[0], ends[1]] = number[ends[1], ends[0]] = np.arange(total)

    edges = ops.take(ops.reshape(weights, (-1, m * m)), ends[0] * m + ends[1], axis=1)
    order = ops.argsort(-edges, axis=1)
    values = _pick(edges, order)
    rank = _ranks(values, values[:, -1:], limit)
    entry = ops.cast(ops.argsort(order, axis=1), "int32")
    entry = ops.pad(entry, ((0, 0), (0, 1)), constant_values=total)
    entry = ops.take(entry, number, axis=1)  # [maps, m, m], the step in which each edge enters

    def enter(
        step: Tensor, labels: Tensor, cocycles: Tensor, live: Tensor, births: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        u, v = (ops.take(end, _pick(order, step)) for end in ends)
        uw, vw = _pick(entry, u), _pick(entry, v)
        common = (uw < step[:, None]) & (vw < step[:, None])
        sums = ops.bitwise_xor(_pick(cocycles, uw), _pick(cocycles, vw))
        sums = ops.where(common[..., None], sums, 0)
        value = _pick(sums, ops.argmax(common, axis=1))
        apart = ops.where(common[..., None], ops.bitwise_xor(sums, value[:, None]), 0)
        apart = _pick(apart, ops.argmax(ops.any(apart != 0, axis=2), axis=1))
        # Either a bit goes, or, when nothing is apart, the edge enters.
        bit = _lowest_bit(apart)
        has_it = ops.any(ops.bitwise_and(cocycles, bit[:, None]) != 0, axis=2)
        cocycles = ops.bitwise_xor(cocycles, ops.where(has_it[..., None], apart[:, None], 0))
        live = ops.bitwise_xor(live, bit)

        enters = ~ops.any(apart != 0, axis=1)
        label_u, label_v = _pick(labels, u), _pick(labels, v)
        loop = enters & (label_u == label_v) & ~ops.any(common, axis=1)
        fresh = ops.where(loop[:, None], _lowest_bit(ops.bitwise_not(live)), 0)
        live = ops.bitwise_or(live, fresh)
        value = ops.where(enters[:, None], ops.bitwise_or(value, fresh), 0)
        at = ops.stack([ops.arange(ops.shape(step)[0]), step], axis=1)
        cocycles = ops.scatter_update(cocycles, at, value)
        joins = (labels == label_v[:, None]) & enters[:, None]
        labels = ops.where(joins, label_u[:, None], labels)

        here, after = _pick(rank, step), _pick(rank, step + 1)
        complete = enters & (births < 0) & (here < after)
        births = ops.where(complete & (after > limit), 0, births)
        births = ops.where(complete & ops.any(live != 0, axis=1), here - 1, births)
        return ops.where(enters & (births < 0), step + 1, step), labels, cocycles, live, births

    zero = ops.zeros_like(order[:, 0])
    no_bits = ops.zeros_like(zero[:, None, None] + np.zeros((total + 1, _words(m)), "int32"))
    # A constant map is not sent here, but XLA may move this loop to where nothing is asked yet.
    births = ops.where(rank[:, 0] > limit, 0, -1)
    start = (zero, _own_labels(weights), no_bits, no_bits[:, 0], births)
    return ops.while_loop(lambda *state: ops.any(state[-1] < 0), enter, start)[-1]


def _ranks(values: Tensor, lowest: Tensor, limit: int) -> Tensor:
    """The ranks of `values` `[maps, edges]` that fall along the last axis.

    The lowest of all values gets rank `limit` + 1: with it the graph is complete and has no loops.
    """
    steps = np.arange(values.shape[1])
    # Not by slices: XLA on CPU takes the top k by a full sort, ten times slower, if they are cut.
    begins = (values < ops.take(values, np.maximum(steps - 1, 0), axis=1)) | (steps == 0)
    rank = ops.cumsum(ops.cast(begins, "int32"), axis=1)
    return ops.where(values > lowest, rank, limit + 1)


def _pick(x: Tensor, index: Tensor) -> Tensor:
    """`x[i, index[i]]` for each map i; `x` `[maps, n, ...]`, `index` `[maps]` or `[maps, k]`."""
    n = x.shape[1]
    first = n * ops.arange(ops.shape(x)[0], dtype="int32")
    first = first if len(index.shape) == 1 else first[:, None]
    return ops.take(ops.reshape(x, (-1, *x.shape[2:])), first + ops.cast(index, "int32"), axis=0)


def _own_labels(weights: Tensor) -> Tensor:
    """Each vertex a component of its own."""
    vertices = np.arange(weights.shape[-1], dtype="int32")
    return ops.zeros_like(weights[:, 0], dtype="int32") + vertices


def _lowest_bit(words: Tensor) -> Tensor:
    """The lowest bit that is set in `words` `[maps, words]`, with all other bits cleared."""
    place = ops.argmax(words != 0, axis=1)
    mine = ops.where(ops.arange(words.shape[1]) == place[:, None], words, 0)
    return ops.bitwise_and(mine, -mine)


def _words(m: int) -> int:
    """How many int32 hold a bit for each independent loop that m vertices can have at a time.

    They are at most floor((m - 2)^2 / 4), as in a complete bipartite graph. By induction: take away
    u and then v, the ends of an edge, where v has another neighbour. Each takes as many loops along
    as there are components among its neighbours, less one. Pick a vertex from each component at u
    but the one with v, and from each at v: the former are no neighbours of v, so all differ, and
    both together take at most (m - 2) - 1 loops.
    """
    return -(-((m - 2) ** 2 // 4) // WORD)


def _square(maps: Tensor) -> Tensor:
    maps = ops.stop_gradient(at_least_float32(maps))  # births are steps: nothing to differentiate
    if len(maps.shape) < 2 or not maps.shape[-1] or maps.shape[-1] != maps.shape[-2]:
        raise ValueError(
            f"maps has shape {tuple(maps.shape)}; expected [..., m, m], m at least 1. Resize maps "
            "of another form first, and move channels in front of them."
        )
    return maps
