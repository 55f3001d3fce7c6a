"""A random subset of the samples, the same rows everywhere and in every pass."""

import numpy as np
import pytest
from keras import ops

from keras_layer_entropy.measures.kept_samples import KeptSamples, _hash


def stream(statistic, x, size=64, counts=None):
    """Streams rows `[samples, 2]` and their numbers through; the numbers of those that stay."""
    counts = np.ones(len(x), bool) if counts is None else counts
    number = np.arange(len(x), dtype="float32")[:, None]
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        statistic.update_state(
            [ops.convert_to_tensor(t[part]) for t in (x, number)],
            ops.convert_to_tensor(counts[part]),
        )
    rows, numbers = statistic.result()
    numbers = numbers[:, 0].astype(int)
    np.testing.assert_array_equal(rows, x[numbers])  # rows of one sample stay together
    assert len(set(numbers)) == len(numbers)
    return numbers


def make(most):
    return KeptSamples([2, 1], most)


@pytest.fixture
def rows(random):
    return random.normal(size=(1000, 2)).astype("float32")


def test_fewer_than_fit_are_all_kept(rows):
    assert sorted(stream(make(1200), rows)) == list(range(1000))


def test_the_subset_does_not_depend_on_batches(rows):
    one, many = stream(make(100), rows, 1000), stream(make(100), rows, 64)
    assert len(one) == 100
    np.testing.assert_array_equal(one, many)


def test_a_second_pass_keeps_the_same(rows):
    statistic = make(100)
    first = stream(statistic, rows)
    statistic.reset_state()
    assert all(len(part) == 0 for part in statistic.result())
    np.testing.assert_array_equal(stream(statistic, rows), first)


def test_samples_that_do_not_count_are_left_out(rows):
    counts = np.arange(1000) % 3 > 0
    kept = stream(make(700), rows, counts=counts)
    assert sorted(kept) == np.flatnonzero(counts).tolist()


@pytest.mark.tensorflow
def test_the_subset_is_random():
    x = np.zeros((20_000, 2), "float32")
    kept = stream(make(2000), x, 500)
    # 2,000 of 20,000: each tenth of the pass, each last digit and each half of the order of the
    # result holds 200 or 1,000 with a standard deviation of 13 or 21; five of them.
    assert np.abs(np.histogram(kept, 10, (0, 20_000))[0] - 200).max() < 65
    assert np.abs(np.bincount(kept % 10) - 200).max() < 65
    assert abs((kept[:1000] >= 10_000).sum() - 500) < 80
    # Neighbours in the result are no neighbours in the data (s.d. of the correlation 0.022).
    assert abs(np.corrcoef(kept[:-1], kept[1:])[0, 1]) < 0.11


def test_states_join(rows):
    parts = [KeptSamples([2, 1], 100, seed=seed) for seed in (1, 2)]
    for part, half in zip(parts, (rows[:500], rows[500:]), strict=True):
        stream(part, half)
    whole = make(100)
    whole.merge_state(parts)
    kept = whole.result()[0]
    assert len(kept) == 100
    own = [part.result()[0] for part in parts]
    from_first = np.array([(row == own[0]).all(axis=1).any() for row in kept])
    assert (
        sum((row == own[1]).all(axis=1).any() for row in kept[~from_first]) == (~from_first).sum()
    )
    # A random half of them from each part (standard deviation 5), in a random order: neighbours
    # come from the same part half of the time (s.d. 0.05).
    assert 30 <= from_first.sum() <= 70
    assert abs((from_first[1:] == from_first[:-1]).mean() - 0.5) < 0.2


@pytest.mark.tensorflow
@pytest.mark.parametrize("jit", [False, True])
def test_in_a_graph(rows, jit):
    import tensorflow as tf

    statistic = make(100)
    step = tf.function(statistic.update_state, jit_compile=jit)
    number = np.arange(1000, dtype="float32")[:, None]
    for start in range(0, 1000, 250):
        part = slice(start, start + 250)
        step([tf.constant(rows[part]), tf.constant(number[part])], tf.ones(250, tf.bool))
    np.testing.assert_array_equal(statistic.result()[1][:, 0], stream(make(100), rows))


def test_size_is_that_of_the_state():
    statistic = make(100)
    held = sum(4 * int(np.prod(v.shape)) for v in statistic.variables)
    assert KeptSamples.size([2, 1], 100) == pytest.approx(3 * held, abs=32)  # copies included


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_the_hash_is_lowbias32(seed):
    """In Python's own integers, from the page that it comes from."""

    def lowbias32(x):
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x = (x ^ (x >> shift)) * factor % 2**32
        return x ^ (x >> 16)

    numbers = [0, 1, 2, 1000, 2**20, 2**31 - 1]
    expected = [lowbias32((n + 1 + 0x9E3779B9 * seed) % 2**32) >> 1 for n in numbers]
    found = ops.convert_to_numpy(_hash(np.array(numbers, "int32"), seed))
    assert found.tolist() == [max(x, 1) for x in expected]
