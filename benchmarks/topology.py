"""Births of loops against GUDHI and Ripser: microseconds per map, one run, interleaved, medians.

    pip install gudhi ripser
    python benchmarks/topology.py

Both take one map after the other, on one core. GUDHI is used in three ways:

- Rips: a `RipsComplex` of the matrix of ranks, all edges;
- whole: the same complex by NumPy arrays (`SimplexTree.insert_batch`);
- restricted: by arrays too, the 51 heaviest edges alone, sorted out beforehand. They are enough for
  births up to index 50 where no weights are equal; where some are, 51 edges may be part of a rank.

Every way has to find the same births. `birth_index` is called as a user calls it, with arrays of
NumPy, and inside of a graph; with ties, on the same maps in half precision, and in steps of a
tenth, of which a rank has 3, 9 and 31 edges among the heaviest.
"""

import math
import time

import gudhi
import numpy as np
import ripser
import tensorflow as tf

from keras_layer_entropy.measures.births import birth_index

SIZES = {14: 4096, 28: 1024, 56: 256}  # maps of each size
ROUNDS = 9
FEW_MAPS = 64  # of them, for the libraries, whose time per map does not depend on their number
MAX_DENSITY, MAX_RANK = 0.8, 50


def edges_of(maps):
    """Ends, `[2, edges]`, and ranks, `[edges]`, of all edges of a map."""
    ends = np.stack(np.triu_indices(len(maps), 1))
    return ends, _ranks(np.maximum(maps, maps.T)[tuple(ends)])


def _ranks(weights):
    return np.unique(-weights, return_inverse=True)[1] + 1.0


def _distances(m, ends, ranks):
    distances = np.zeros((m, m))
    distances[ends[0], ends[1]] = distances[ends[1], ends[0]] = ranks
    return distances


def _loops(tree, **options):
    tree.compute_persistence(homology_coeff_field=2, **options)
    return tree.persistence_intervals_in_dimension(1)


def _tree(m, ends, ranks):
    tree = gudhi.SimplexTree()
    tree.insert_batch(np.arange(m)[None], np.zeros(m))
    tree.insert_batch(ends, ranks)
    tree.expansion(2)
    return tree


def gudhi_rips(map_):
    """Intervals of the loops: the whole complex, from distances."""
    distances = _distances(len(map_), *edges_of(map_))
    return _loops(gudhi.RipsComplex(distance_matrix=distances).create_simplex_tree(2))


def gudhi_whole(map_):
    """Intervals of the loops: the whole complex, from arrays."""
    return _loops(_tree(len(map_), *edges_of(map_)))


def gudhi_restricted(map_):
    """Intervals of the loops: the heaviest edges alone."""
    ends = np.stack(np.triu_indices(len(map_), 1))
    weights = np.maximum(map_, map_.T)[tuple(ends)]
    heaviest = np.argpartition(-weights, MAX_RANK + 1)[: MAX_RANK + 1]
    tree = _tree(len(map_), ends[:, heaviest], _ranks(weights[heaviest]))
    # Few edges may make no triangle, and the highest dimension is left out unless asked for.
    return _loops(tree, persistence_dim_max=True)


def ripser_whole(map_):
    """Intervals of the loops: the whole complex, by Ripser."""
    distances = _distances(len(map_), *edges_of(map_))
    return ripser.ripser(distances, maxdim=1, distance_matrix=True)["dgms"][1]


OTHERS = {
    "GUDHI, Rips": gudhi_rips,
    "GUDHI, whole": gudhi_whole,
    "GUDHI, restricted": gudhi_restricted,
    "Ripser": ripser_whole,
}


def births(loops_of, maps):
    """Birth indices of maps from the intervals of their loops."""
    limit = min(math.ceil(MAX_DENSITY * math.comb(maps.shape[-1], 2)), MAX_RANK + 1)
    first = [min(loops_of(map_)[:, 0], default=math.inf) for map_ in maps]
    return np.array([int(rank) - 1 if rank <= limit else 0 for rank in first])


def speed(sizes=None, rounds=ROUNDS):
    """Rows `(m, {way: median microseconds per map})`; the libraries' ways are `OTHERS`."""
    in_graph = tf.function(birth_index)
    rows = []
    for m, count in (sizes or SIZES).items():
        maps = np.random.default_rng(0).normal(size=(count, m, m)).astype("float32")
        tensor = tf.constant(maps)
        few = maps[:FEW_MAPS]
        ways = {way: lambda loops_of=f, few=few: births(loops_of, few) for way, f in OTHERS.items()}
        tied = {"half precision": maps.astype("float16"), "steps of 0.1": maps.round(1)}
        ways["called"] = lambda x=maps: birth_index(x).numpy()
        ways["in a tf.function"] = lambda x=tensor: in_graph(x).numpy()
        for ties, x in tied.items():
            ways[f"called, {ties}"] = lambda x=x: birth_index(x).numpy()
        times = {way: [] for way in ways}
        want = {way: list(births(gudhi_rips, few)) for way in ways}
        want |= {f"called, {k}": list(births(gudhi_rips, x[:FEW_MAPS])) for k, x in tied.items()}
        for round_ in range(rounds + 1):  # the first one compiles
            for way, run in ways.items():
                start = time.perf_counter()
                found = run()
                elapsed = time.perf_counter() - start
                if list(found[:FEW_MAPS]) != want[way]:
                    raise AssertionError(f"{way} finds other births at m = {m}.")
                if round_:
                    times[way].append(1e6 * elapsed / len(found))
        rows.append((m, {way: float(np.median(t)) for way, t in times.items()}))
    return rows


def table():
    """Prints a table: microseconds per map, and how many times as fast as each library."""
    print(
        "\n| map | way | microseconds per map | " + " | ".join(f"x {way}" for way in OTHERS) + " |"
    )
    print("|---|---|---|" + "---|" * len(OTHERS))
    for m, times in speed():
        for way, each in times.items():
            ratios = " | ".join(f"{times[other] / each:.1f}" for other in OTHERS)
            print(f"| {m} x {m} | {way} | {each:.1f} | {ratios} |", flush=True)


if __name__ == "__main__":
    table()
