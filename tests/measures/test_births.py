"""Births of loops against GUDHI and graphs known by heart; entropies against NumPy.

Births are integers: all comparisons of them are exact.
"""

import functools
import inspect
import itertools
import math

import gudhi
import keras
import numpy as np
import pytest
from backends import compiled, some_on_each
from keras import ops

from keras_layer_entropy.measures import births, feature_entropy
from keras_layer_entropy.measures.feature_entropy import birth_entropy, selective_rate


@functools.cache
def compiled_birth_index(max_density=0.8, max_rank=50):
    return compiled(lambda maps: births.birth_index(maps, max_density, max_rank))


def births_of(maps, **parameters):
    found = compiled_birth_index(**parameters)(ops.convert_to_tensor(maps))
    return ops.convert_to_numpy(found)


def reference(map_, max_density=0.8, max_rank=50):
    m = len(map_)
    i, j = np.triu_indices(m, 1)
    rank = np.unique(-np.maximum(map_, map_.T)[i, j], return_inverse=True)[1] + 1.0
    complex_ = gudhi.SimplexTree()
    complex_.insert_batch(np.arange(m)[None], np.zeros(m))
    complex_.insert_batch(np.stack([i, j]), rank)
    complex_.expansion(2)
    complex_.compute_persistence(homology_coeff_field=2, persistence_dim_max=True)
    loops = complex_.persistence_intervals_in_dimension(1)
    first = min((birth for birth, death in loops if birth < death), default=math.inf)
    if first > math.ceil(max_density * len(i)) or first - 1 > max_rank:
        return 0
    return int(first) - 1


def references(maps, **parameters):
    return [reference(map_, **parameters) for map_ in maps]


def random_maps(kind, count, m, random):
    u = random.uniform(size=(count, m, m)).astype("float32")
    share = random.uniform(size=(count, 1, 1)).astype("float32")
    return {
        "distinct": lambda: u,
        "normal": lambda: random.normal(size=u.shape).astype("float32"),
        "2 levels": lambda: np.float32(u > share),
        "4 levels": lambda: np.floor(4 * u),
        "8 bits": lambda: np.floor(256 * u),
        "levels and signed zeros": lambda: np.trunc(40 * (u - share)),
        "sparse": lambda: np.maximum(u - np.sqrt(share), 0),
        "saturated": lambda: np.minimum(u, 0.5 + 0.5 * share),
        # Many edges in one rank, but sparse enough for loops to remain.
        "sparse levels": lambda: np.ceil(12 * np.maximum(u - 1 + share * 4 / m, 0) * m / 4),
        "symmetric": lambda: np.maximum(u, u.transpose(0, 2, 1)),
        "resized": lambda: u[:, np.arange(m) // 2][:, :, np.arange(m) // 2],
        "constant": lambda: u[:, :1, :1] + np.zeros_like(u),
    }[kind]()


KINDS = (
    "distinct", "normal", "2 levels", "4 levels", "8 bits", "levels and signed zeros", "sparse",
    "saturated", "sparse levels", "symmetric", "resized", "constant",
)  # fmt: skip
# How many of each kind and size m: 10,200 maps in all.
SIZES = {3: 30, 4: 180, 5: 180, 7: 200, 10: 160, 14: 84, 28: 12, 56: 3, 112: 1}


@pytest.mark.slow
@pytest.mark.parametrize("m", some_on_each(list(SIZES), [5, 14]))
def test_equals_gudhi(m, random):
    maps = np.concatenate([random_maps(kind, SIZES[m], m, random) for kind in KINDS])
    np.testing.assert_array_equal(births_of(maps), references(maps))


@pytest.mark.slow
@pytest.mark.parametrize(
    "limits", some_on_each([(0.0, 50), (0.3, 50), (0.37, 4), (1.0, 5), (1.0, 500)], [(0.37, 4)])
)
def test_limits_are_those_of_the_definition(limits, random):
    limits = dict(zip(("max_density", "max_rank"), limits, strict=True))
    maps = np.concatenate([random_maps(kind, 40, 7, random) for kind in KINDS])
    found = births.birth_index(maps, **limits)
    np.testing.assert_array_equal(found, references(maps, **limits))


def graph(*groups):
    """A map of 32 vertices, the edges of the first group heaviest, then those of the second, ..."""
    u = np.zeros((32, 32), "float32")
    for level, edges in enumerate(groups):
        for i, j in edges:
            u[i, j] = len(groups) - level
    return u


def square(a, b, c, d):
    return [(a, b), (b, c), (c, d), (d, a)]


def between(left, right):
    return list(itertools.product(left, right))


def subdivided(triangles):
    """Edges of the barycentric subdivision: a clique complex of the same shape."""
    faces = sorted(
        {
            face
            for t in triangles
            for size in (1, 2, 3)
            for face in itertools.combinations(sorted(t), size)
        }
    )
    return [
        (i, j) for (i, a), (j, b) in itertools.permutations(enumerate(faces), 2) if set(a) < set(b)
    ]


SPHERE = [(0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)]
PROJECTIVE_PLANE = [  # a loop over Z2, and none over fields where 2 is not 0
    (0, 1, 3), (0, 1, 4), (0, 2, 3), (0, 2, 5), (0, 4, 5),
    (1, 2, 4), (1, 2, 5), (1, 3, 5), (2, 3, 4), (3, 4, 5),
]  # fmt: skip


# The 225 loops of K(16, 16), as many as 32 vertices can have, are all there when vertex 16 is
# joined to its own side, which makes a cone: edges enter by rows.
CONE = between(range(16), range(16, 32)) + between([16], range(17, 32))


@pytest.mark.tensorflow  # JAX compiles for each size anew
@pytest.mark.parametrize(
    ("map_", "index"),
    [
        (graph([(0, 1)], [(3, 2)], [(1, 3)], [(2, 0)]), 3),
        (graph([(0, 1)], [(3, 2)], [(1, 3)], [(2, 0), (0, 3)]), 0),
        (graph([(0, 1)], square(0, 1, 2, 3)[1:]), 1),
        (graph(square(0, 1, 2, 3)), 0),  # in rank 1, the index of which is 0
        # A loop that the rest of its rank fills, and one that comes two ranks later.
        (graph([(0, 1)], [*square(0, 1, 2, 3)[1:], (0, 2)], square(4, 5, 6, 7)[1:], [(4, 5)]), 3),
        (graph([(30, 31)], subdivided(SPHERE)), 0),
        (graph([(30, 31)], subdivided(PROJECTIVE_PLANE)), 1),
        (graph(CONE[:1], CONE[1:]), 0),
        (graph(CONE[:1], CONE[1:-1]), 1),
        (graph(CONE[:1], CONE[1:-1], CONE[-1:]), 1),
        (graph(CONE[:1], CONE[1:], [(0, 1)], [(2, 3)]), 0),
    ],
)
def test_graphs_known_by_heart(map_, index):
    assert births_of(map_) == index == reference(map_)


def test_more_loops_at_a_time_than_a_word_has_bits():
    """Two sets of 7 vertices joined, 36 loops, then all edges of one set: no loop is left."""
    m = 14
    first = np.arange(m) < m // 2
    map_ = np.where(first[:, None] & first, 1.0, 2.0).astype("float32")
    assert reference(map_) == 0
    assert births_of(map_).item() == 0


@pytest.mark.tensorflow  # no backend in it
def test_words_hold_the_loops_of_complete_bipartite_graphs():
    for m in range(4, 113):
        assert 32 * births._words(m) >= (m // 2 - 1) * ((m + 1) // 2 - 1)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_fewer_than_four_vertices_have_no_loop(m, random):
    assert births_of(random.normal(size=(20, m, m))).tolist() == [0] * 20


@pytest.mark.tensorflow  # compared on each backend above
def test_scale_and_diagonal_and_transposition_change_nothing(random):
    maps = random.normal(size=(100, 14, 14)).astype("float32")
    maps[:40] = np.round(8 * maps[:40])
    want = births_of(maps)
    assert len(set(want)) > 5
    for same in (maps / 2, maps.transpose(0, 2, 1), maps + 9 * np.eye(14, dtype="float32")):
        np.testing.assert_array_equal(births_of(same), want)


@pytest.mark.parametrize(
    "shape", some_on_each([(), (1,), (6,), (2, 3), (2, 1, 3), (0,), (2, 0)], [(), (2, 3), (2, 0)])
)
def test_leading_axes_are_kept(shape, random):
    maps = random.normal(size=(*shape, 7, 7)).astype("float32")
    found = ops.convert_to_numpy(births.birth_index(maps))
    assert found.shape == shape
    assert found.dtype == np.int32
    assert found.ravel().tolist() == references(maps.reshape(-1, 7, 7))


@pytest.mark.slow
@pytest.mark.parametrize("jit", some_on_each([True, False], [True]))
@pytest.mark.parametrize(
    # One map that is all ties: XLA moves loops out of loops there, to where they must end as well.
    ("kinds", "count"),
    [(("distinct", "8 bits", "constant"), 50), (("constant",), 1)],
)
def test_a_compiled_graph_and_eager_agree(jit, kinds, count, random):
    maps = np.concatenate([random_maps(kind, count, 10, random) for kind in kinds])
    found = compiled(births.birth_index, jit)(ops.convert_to_tensor(maps))
    np.testing.assert_array_equal(found, births.birth_index(maps))


@pytest.mark.tensorflow
def test_a_graph_for_batches_of_any_size(random):
    import tensorflow as tf

    graph_ = tf.function(
        births.birth_index, input_signature=[tf.TensorSpec((None, None, 7, 7), tf.float32)]
    )
    for shape in ((2, 3), (1, 1), (20, 40), (0, 3)):
        maps = np.round(20 * random.uniform(size=(*shape, 7, 7))).astype("float32")
        assert graph_(maps).numpy().ravel().tolist() == references(maps.reshape(-1, 7, 7))
    with pytest.raises(ValueError, match=r"shape \(None, None, None\); expected \[\.\.\., m, m\]"):
        tf.function(births.birth_index).get_concrete_function(
            tf.TensorSpec((None, None, None), tf.float32)
        )


@pytest.mark.tensorflow  # memory: 512 units, 100 images, and how tied maps are taken in parts
def test_a_whole_layer_in_one_call(random):
    maps = random.normal(size=(512, 100, 14, 14)).astype("float32")
    maps[:, ::3] = np.round(6 * maps[:, ::3])  # more than are taken up at a time
    found = births_of(maps)
    some = np.linspace(0, 51_199, 300).astype(int)
    np.testing.assert_array_equal(found.ravel()[some], references(maps.reshape(-1, 14, 14)[some]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype", some_on_each(["float16", "bfloat16", "uint8", "int32", "bool"], ["bfloat16"])
)
def test_other_dtypes(dtype, random):
    maps = ops.cast(random.uniform(0, 255, size=(60, 10, 10)).astype("float32"), dtype)
    wide = ops.convert_to_numpy(ops.cast(maps, "float32"))
    np.testing.assert_array_equal(births_of(maps), references(wide))


@pytest.mark.tensorflow  # JAX has no float64 unless told to
def test_float64_is_kept(random):
    maps = 1 + 1e-12 * random.uniform(size=(60, 10, 10))  # all equal in float32
    found = births_of(maps)
    assert found.tolist() == references(maps)
    assert found.max() > 0


def test_what_is_not_finite_is_marked_and_leaves_the_others_alone(random):
    maps = random.normal(size=(5, 7, 7)).astype("float32")
    want = births_of(maps)
    maps[0, 1, 2], maps[2, 3, 3], maps[4, 6, 5] = np.nan, np.inf, -np.inf
    found = births_of(maps)
    assert found.tolist() == [-1, want[1], -1, want[3], -1]
    counts = ops.sum(ops.one_hot(found, 51), axis=0)
    assert float(ops.sum(counts)) == 2
    assert births_of(maps[0, :3, :3]) == -1  # where nothing is computed too


def test_no_gradient_flows(random):
    maps = random.normal(size=(2, 6, 6)).astype("float32")
    if keras.backend.backend() == "jax":
        import jax

        gradient = jax.jit(jax.grad(lambda x: (x * births.birth_index(x)[:, None, None]).sum()))(
            maps
        )
    elif keras.backend.backend() == "torch":
        x = ops.convert_to_tensor(maps).requires_grad_()
        (x * births.birth_index(x)[:, None, None]).sum().backward()
        gradient = ops.convert_to_numpy(x.grad)
    else:
        import tensorflow as tf

        x = tf.constant(maps)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = x * ops.cast(births.birth_index(x), "float32")[:, None, None]
        gradient = tape.gradient(y, x)
    want = np.broadcast_to(births_of(maps)[:, None, None], maps.shape)  # as if births were constant
    np.testing.assert_array_equal(gradient, want)


@pytest.mark.slow
@pytest.mark.tensorflow  # thousands of maps; what a backend could change is compared above
@pytest.mark.parametrize(
    ("m", "units", "known"), [(7, 60, 1.92), (14, 60, 2.19), (28, 20, 2.68), (56, 10, 3.10)]
)
def test_noise(m, units, known, random):
    for draw in (random.uniform, random.normal):
        maps = draw(size=(units, 100, m, m)).astype("float32")
        counts = ops.sum(ops.one_hot(births_of(maps), 51), axis=1)
        found = float(ops.mean(feature_entropy.feature_entropy(counts)))
        # H of 100 maps varies by 0.09 from draw to draw at most, and the known values come from
        # few draws, the means here from many.
        assert found == pytest.approx(known, abs=0.09)


COUNTS = np.array(
    [[10, 45, 45, 0], [0, 1, 2, 5], [90, 10, 0, 0], [91, 4, 5, 0], [7, 0, 0, 0], [0, 0, 0, 0]]
)


def counted(row):
    """Selective rate and birth entropy, written from the formulas."""
    with np.errstate(invalid="ignore"):
        p = row[1:] / np.float64(row[1:].sum())
        rate = np.float64(row[1:].sum()) / row.sum()
    return rate, -sum(x * math.log(x) for x in p if x) if row[1:].any() else math.nan


def combined(row, min_rate, penalty):
    rate, entropy = counted(row)
    share = {"unselective": 1 - rate, "printed": rate}[penalty]
    return entropy if rate >= min_rate else share * math.log(3)


# A few float32 operations on numbers about 1.
FLOAT32 = dict(rtol=1e-6, atol=1e-6)


@pytest.mark.tensorflow  # no backend in it
def test_limits_are_the_same_wherever_they_may_be_left_out():
    def defaults(function):
        known = inspect.signature(function).parameters
        return {name: known[name].default for name in ("max_density", "max_rank")}

    published = {"max_density": 0.8, "max_rank": 50}
    for function in (
        births.birth_index,
        feature_entropy.noise_entropy,
        feature_entropy.BirthCounts,
        feature_entropy.FeatureEntropy,
    ):
        assert defaults(function) == published, function


def test_rate_and_entropy_equal_numpy():
    want = np.array([counted(row) for row in COUNTS])
    for counts in (COUNTS, COUNTS.astype("float32"), COUNTS.reshape(2, 3, 4)):
        shape = counts.shape[:-1]
        rate, entropy = (
            selective_rate(counts),
            birth_entropy(counts),
        )
        np.testing.assert_allclose(rate, want[:, 0].reshape(shape), **FLOAT32)
        np.testing.assert_allclose(entropy, want[:, 1].reshape(shape), **FLOAT32)


@pytest.mark.parametrize("penalty", feature_entropy.PENALTIES)
@pytest.mark.parametrize("min_rate", [0.1, 0.09, 0.5, 1.0])
def test_feature_entropy_equals_numpy(min_rate, penalty):
    want = [combined(row, min_rate, penalty) for row in COUNTS]
    assert math.isnan(want[-1])
    found = feature_entropy.feature_entropy(COUNTS, min_rate, penalty)
    np.testing.assert_allclose(found, want, **FLOAT32)
    graph_ = compiled(lambda counts: feature_entropy.feature_entropy(counts, min_rate, penalty))
    np.testing.assert_allclose(graph_(ops.convert_to_tensor(COUNTS)), want, **FLOAT32)


def test_a_unit_without_births_is_worst_and_one_that_never_changes_is_best():
    counts = np.zeros((2, 51))
    counts[0, 0] = counts[1, 7] = 100
    worst, best = ops.convert_to_numpy(feature_entropy.feature_entropy(counts))
    assert worst == pytest.approx(math.log(50), rel=1e-6)
    assert best == 0
    assert not np.signbit(best)
    assert float(feature_entropy.feature_entropy(counts, penalty="printed")[0]) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: births.birth_index(np.ones(4)), r"shape \(4,\); expected \[\.\.\., m, m\]"),
        (lambda: births.birth_index(np.ones((2, 4, 5))), r"\(2, 4, 5\).*Resize"),
        (lambda: births.birth_index(np.ones((2, 0, 0))), r"\(2, 0, 0\).*m at least 1"),
        (lambda: births.birth_index(np.eye(4), max_density=1.1), "max_density=1.1; expected"),
        (lambda: births.birth_index(np.eye(4), max_density=math.nan), "max_density=nan"),
        (lambda: births.birth_index(np.eye(4), max_rank=0), "max_rank=0; expected a positive"),
        (lambda: births.birth_index(np.eye(4), max_rank=2.5), "max_rank=2.5; expected"),
        (
            lambda: selective_rate(np.ones((3, 1))),
            r"counts has shape \(3, 1\); expected",
        ),
        (lambda: birth_entropy(np.float32(3)), r"counts has shape \(\); expected"),
        (
            lambda: feature_entropy.feature_entropy(COUNTS, 0.0),
            "min_rate=0.0; expected .* birth_entropy",
        ),
        (lambda: feature_entropy.feature_entropy(COUNTS, 1.5), "min_rate=1.5; expected"),
        (
            lambda: feature_entropy.feature_entropy(COUNTS, penalty="p"),
            "Unknown penalty 'p'; expected",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("count", [1, 4, 7, 8, 9])
def test_maps_with_ties_are_taken_up_some_at_a_time(count, monkeypatch, random):
    """Four at a time: the last of them may be fewer, or none."""
    m = 10
    monkeypatch.setattr(births, "TIED_BYTES", 4 * 4 * births._words(m) * m * (m - 1) // 2)
    maps = np.concatenate(
        [random_maps("8 bits", count, m, random), random_maps("distinct", 6, m, random)]
    )[random.permutation(count + 6)]
    # In a graph of its own: what was compiled elsewhere took up all of them at a time.
    found = compiled(lambda x: births.birth_index(x))(ops.convert_to_tensor(maps))
    np.testing.assert_array_equal(ops.convert_to_numpy(found), references(maps))


@pytest.mark.tensorflow
def test_a_single_rank(random):
    maps = np.concatenate([random_maps(kind, 30, 7, random) for kind in KINDS])
    found = births.birth_index(maps, max_rank=1)
    np.testing.assert_array_equal(found, references(maps, max_rank=1))
    assert set(ops.convert_to_numpy(found)) == {0, 1}


@pytest.mark.slow
@pytest.mark.parametrize("count", [births.FEW - 1, births.BLOCK, 700])
def test_maps_in_blocks_of_two_sizes(count, random, monkeypatch):
    """What is compiled for blocks, the last one filled up, is what all maps give at once."""
    monkeypatch.setattr(births, "LARGE_BLOCK", 25 * 300)  # 700 are 300, 300 and 100 of 256
    maps = random.normal(size=(count, 5, 5)).astype("float32").round(1)
    maps[-1, 2, 3] = np.nan
    found = ops.convert_to_numpy(births.birth_index(maps))
    expected = ops.convert_to_numpy(births._of_maps(ops.convert_to_tensor(maps), 8))
    np.testing.assert_array_equal(found, expected)
    assert found[-1] == -1
    assert len(np.unique(found)) > 4
