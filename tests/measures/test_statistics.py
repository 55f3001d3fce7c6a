"""One contract for every streaming statistic: parts add up, and the whole is the formula."""

import numpy as np
import pytest
import reference
from backends import some_on_each
from keras import ops

from keras_layer_entropy.measures import topology
from keras_layer_entropy.measures.catalogue import ENTROPIES
from keras_layer_entropy.measures.statistics import MEASURES, FeatureEntropy
from keras_layer_entropy.recording.labels import LabelStatistic

CLASSES = 3
FORMULAS = {
    "activation_entropy": reference.activation_entropy,
    "instability": reference.instability,
    "state_entropy": reference.state_entropy,
}


SHAPES = {"feature_entropy": (7, 7)}  # of the positions, where a measure needs some


def make(measure, units=6):
    return MEASURES[measure](units, CLASSES, name="s")


def batches(random, units=6, shape=()):
    for size in (7, 1, 7, 7):  # few shapes: JAX compiles for each
        y = random.integers(0, CLASSES, size)
        yield (2 * random.normal(size=(size, *shape, units))).astype("float32"), y


def one_hot(y):
    return np.eye(CLASSES, dtype="float32")[y]


@pytest.mark.parametrize("shape", some_on_each([(), (4,), (2, 3)], [(), (2, 3)]), ids=str)
@pytest.mark.parametrize("units", [1, 6])
@pytest.mark.parametrize("measure", ENTROPIES)
def test_stream_is_the_formula(measure, units, shape, random):
    data = list(batches(random, units, shape))
    statistic = make(measure, units)
    for a, y in data:
        statistic.update_state(ops.convert_to_tensor(a), one_hot(y))
    a, y = (np.concatenate(parts) for parts in zip(*data, strict=True))
    want = reference.by_class(FORMULAS[measure], a, y, CLASSES)
    # float32 features of some hundred samples.
    np.testing.assert_allclose(statistic.result(), want, rtol=0, atol=2e-6)


@pytest.mark.parametrize("measure", MEASURES)
def test_parts_add_up(measure, random):
    data = list(batches(random, shape=SHAPES.get(measure, ())))
    whole, parts = make(measure), [make(measure) for _ in data]
    for part, (a, y) in zip(parts, data, strict=True):
        part.update_state(ops.convert_to_tensor(a), one_hot(y))
        whole.update_state(ops.convert_to_tensor(a), one_hot(y))
    merged = make(measure)
    merged.merge_state(parts)
    np.testing.assert_allclose(merged.result(), whole.result(), rtol=0, atol=1e-9)

    backwards = make(measure)
    backwards.merge_state(parts[::-1])
    np.testing.assert_allclose(backwards.result(), whole.result(), rtol=0, atol=1e-9)
    whole.merge_state([make(measure)])  # nothing added to it
    np.testing.assert_allclose(backwards.result(), whole.result(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("measure", MEASURES)
def test_reset_and_empty(measure, random):
    statistic = make(measure)
    assert np.isnan(statistic.result()).all()
    (a, y), *_ = batches(random, shape=SHAPES.get(measure, ()))
    statistic.update_state(ops.convert_to_tensor(a), one_hot(y))
    statistic.reset_state()
    assert np.isnan(statistic.result()).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("measure", MEASURES)
def test_bad_values_spoil_only_their_class(measure, bad, random):
    shape = (30, *SHAPES.get(measure, ()), 6)
    a, y = 2 * random.normal(size=shape).astype("float32"), np.arange(30) % CLASSES
    clean = make(measure)
    clean.update_state(ops.convert_to_tensor(a), one_hot(y))
    a[4, ..., 2] = bad  # a sample of class 1
    spoilt = make(measure)
    spoilt.update_state(ops.convert_to_tensor(a), one_hot(y))
    assert spoilt.not_finite().tolist() == [False, True, False]
    assert np.isnan(spoilt.result()).tolist() == [False, True, False]
    # The same float32 sums; with bad values about, each sample's mean is taken off first.
    np.testing.assert_allclose(spoilt.result()[[0, 2]], clean.result()[[0, 2]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("measure", ENTROPIES)
def test_weights_and_masks(measure, random):
    a = (2 * random.normal(size=(30, 4, 6))).astype("float32")
    y, mask = np.arange(30) % CLASSES, random.integers(0, 2, (30, 4)).astype(bool)
    masked = make(measure)
    masked.update_state(ops.convert_to_tensor(a), one_hot(y), ops.convert_to_tensor(mask))
    want = [FORMULAS[measure](a[y == c][mask[y == c]]) for c in range(CLASSES)]
    np.testing.assert_allclose(masked.result(), want, rtol=0, atol=2e-6)

    doubled = make(measure)
    weight = 1 + (np.arange(30) < 10)
    doubled.update_state(ops.convert_to_tensor(a), one_hot(y) * weight[:, None].astype("float32"))
    rows = np.repeat(np.arange(30), weight)
    want = reference.by_class(FORMULAS[measure], a[rows], y[rows], CLASSES)
    np.testing.assert_allclose(doubled.result(), want, rtol=0, atol=2e-6)


@pytest.mark.parametrize("jit", [False, True])
def test_sums_do_not_drift(jit):
    """0.1 added 100,000 times: plain float32 is off by 1e-2, the compensated sum by 1e-9."""
    count = 100_000
    statistic = LabelStatistic(2)
    step = np.array([0.1, 1.0, 0.0, 0.0], "float32")
    plain = np.float32(0)
    for _ in range(count):
        plain += step[0]
    _repeat(lambda: statistic.add(ops.convert_to_tensor(step)), statistic, count, jit)
    want = np.float64(step[0]) * count
    assert abs(plain / want - 1) > 1e-5
    np.testing.assert_allclose(statistic.total()[:2], [want, count], rtol=1e-9)


def _repeat(step, statistic, count, jit):
    import keras

    if keras.backend.backend() == "jax":
        import jax

        def body(_, state):
            with keras.StatelessScope(state_mapping=[(statistic._parts, state)]) as scope:
                step()
            return scope.get_current_value(statistic._parts)

        run = lambda state: jax.lax.fori_loop(0, count, body, state)  # noqa: E731
        statistic._parts.assign((jax.jit(run) if jit else run)(statistic._parts.value))
        return
    import tensorflow as tf

    @tf.function(jit_compile=jit)
    def run():
        for _ in tf.range(count):
            step()

    run()


def test_merging_keeps_the_rounding_errors():
    """1 and a thousand times 1e-8 apart: float32 would lose every one of them."""
    one, small = LabelStatistic(1), LabelStatistic(1)
    for statistic, value in ((one, 1.0), (small, 1e-8)):
        for _ in range(1000):
            statistic.add(ops.convert_to_tensor(np.array([value, 0, 0], "float32")))
    both, whole = LabelStatistic(1), 1000 * (1 + np.float64(np.float32(1e-8)))
    both.merge_state([one, small, LabelStatistic(1)])
    again = LabelStatistic(1)
    again.merge_state([both])  # its second part has to come along
    for statistic in (both, again):
        np.testing.assert_allclose(statistic.total()[0], whole, rtol=1e-12)


def test_labels_are_counted():
    statistic = LabelStatistic(3)
    membership = np.array([[1, 0, 0], [0, 0, 2.0], [0, 0, 1], [0, 0, 0]], "float32")
    label = np.array([0, 2, 2, 7])
    statistic.update_state(
        ops.convert_to_tensor(membership), ops.convert_to_tensor(label), label > 2
    )
    statistic.update_state(
        ops.convert_to_tensor(membership[:2]), ops.convert_to_tensor(label[:2]), label[:2] > 2
    )
    count, misfits, example = statistic.result()
    assert (count.tolist(), misfits, example) == ([2, 0, 3], 1, 7.0)


def test_feature_entropy_counts_births(random):
    """Images by class, unit and birth, each as often as its weight says."""
    maps, y = random.normal(size=(60, 8, 8, 2)).astype("float32"), np.arange(60) % CLASSES
    weight = 1 + np.arange(60) % 2
    statistic = FeatureEntropy(2, CLASSES, max_rank=20)
    membership = (one_hot(y) * weight[:, None]).astype("float32")
    for part in (slice(0, 35), slice(35, 60)):
        statistic.update_state(ops.convert_to_tensor(maps[part]), membership[part])
    found = np.asarray(topology.birth_index(np.moveaxis(maps, -1, 1), max_rank=20))
    counts = np.zeros((CLASSES, 2, 21))
    for births, c, w in zip(found, y, weight, strict=True):
        for unit, birth in enumerate(births):
            counts[c, unit, birth] += w
    np.testing.assert_array_equal(statistic.total()[..., :-1], counts)
    want = np.asarray(topology.feature_entropy(counts)).mean(axis=1)
    np.testing.assert_allclose(statistic.result(), want, atol=1e-6)  # float32 logarithms
    rates = (counts[..., 1:].sum(axis=-1) / counts.sum(axis=-1)).mean()
    assert statistic.layer_values()["feature_entropy_selective_rate"] == pytest.approx(rates)
