"""One contract for every measure by sums: parts add up, and the whole is the formula."""

import numpy as np
import pytest
import reference
from backends import some_on_each
from keras import ops

from keras_layer_entropy.measures import (
    ActivationEntropy,
    FeatureEntropy,
    Instability,
    StateEntropy,
    births,
    feature_entropy,
)
from keras_layer_entropy.measures.measure import LayerInfo
from keras_layer_entropy.recording.labels import LabelStatistic

CLASSES = 3
FORMULAS = {
    ActivationEntropy: reference.activation_entropy,
    Instability: reference.instability,
    StateEntropy: reference.state_entropy,
}
MEASURES = (*FORMULAS, FeatureEntropy)
SHAPES = {FeatureEntropy: (7, 7)}  # of the positions, where a measure needs some


class Stream:
    """The state of a measure in one layer, and what the measure makes of it."""

    def __init__(self, measure, units=6, **options):
        self.measure, self.layer = measure(**options), LayerInfo("layer", units, {})
        self.state = self.measure.new_state(self.layer, CLASSES)

    def add(self, a, *rest):
        self.state.update_state(ops.convert_to_tensor(a), *rest)
        return self

    def result(self):
        return self.measure.result([self.layer], [self.state], None)

    def values(self):
        return self.result().per_class[0]


def batches(random, units=6, shape=()):
    for size in (7, 1, 7, 7):  # few shapes: JAX compiles for each
        y = random.integers(0, CLASSES, size)
        yield (2 * random.normal(size=(size, *shape, units))).astype("float32"), y


def one_hot(y):
    return np.eye(CLASSES, dtype="float32")[y]


@pytest.mark.parametrize("shape", some_on_each([(), (4,), (2, 3)], [(), (2, 3)]), ids=str)
@pytest.mark.parametrize("units", [1, 6])
@pytest.mark.parametrize("measure", FORMULAS)
def test_stream_is_the_formula(measure, units, shape, random):
    data = list(batches(random, units, shape))
    stream = Stream(measure, units)
    for a, y in data:
        stream.add(a, one_hot(y))
    a, y = (np.concatenate(parts) for parts in zip(*data, strict=True))
    want = reference.by_class(FORMULAS[measure], a, y, CLASSES)
    # float32 features of some hundred samples.
    np.testing.assert_allclose(stream.values(), want, rtol=0, atol=2e-6)


@pytest.mark.parametrize("measure", MEASURES)
def test_parts_add_up(measure, random):
    data = list(batches(random, shape=SHAPES.get(measure, ())))
    whole, parts = Stream(measure), [Stream(measure).add(a, one_hot(y)) for a, y in data]
    for a, y in data:
        whole.add(a, one_hot(y))
    states = [part.state for part in parts]
    for order in (states, states[::-1]):
        merged = Stream(measure)
        merged.state.merge_state(order)
        np.testing.assert_allclose(merged.values(), whole.values(), rtol=0, atol=1e-9)
    merged.state.merge_state([Stream(measure).state])  # nothing added to it
    np.testing.assert_allclose(merged.values(), whole.values(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("measure", MEASURES)
def test_reset_and_empty(measure, random):
    stream = Stream(measure)
    assert np.isnan(stream.values()).all()
    (a, y), *_ = batches(random, shape=SHAPES.get(measure, ()))
    stream.add(a, one_hot(y)).state.reset_state()
    assert np.isnan(stream.values()).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("measure", MEASURES)
def test_bad_values_spoil_only_their_class(measure, bad, random):
    shape = (30, *SHAPES.get(measure, ()), 6)
    a, y = 2 * random.normal(size=shape).astype("float32"), np.arange(30) % CLASSES
    clean = Stream(measure).add(a, one_hot(y))
    a[4, ..., 2] = bad  # a sample of class 1
    spoilt = Stream(measure).add(a, one_hot(y))
    assert spoilt.state.not_finite().tolist() == [False, True, False]
    assert np.isnan(spoilt.values()).tolist() == [False, True, False]
    # The same float32 sums; with bad values about, each sample's mean is taken off first.
    np.testing.assert_allclose(spoilt.values()[[0, 2]], clean.values()[[0, 2]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("measure", FORMULAS)
def test_weights_and_masks(measure, random):
    a = (2 * random.normal(size=(30, 4, 6))).astype("float32")
    y, mask = np.arange(30) % CLASSES, random.integers(0, 2, (30, 4)).astype(bool)
    masked = Stream(measure).add(a, one_hot(y), ops.convert_to_tensor(mask))
    want = [FORMULAS[measure](a[y == c][mask[y == c]]) for c in range(CLASSES)]
    np.testing.assert_allclose(masked.values(), want, rtol=0, atol=2e-6)

    weight = 1 + (np.arange(30) < 10)
    doubled = Stream(measure).add(a, one_hot(y) * weight[:, None].astype("float32"))
    rows = np.repeat(np.arange(30), weight)
    want = reference.by_class(FORMULAS[measure], a[rows], y[rows], CLASSES)
    np.testing.assert_allclose(doubled.values(), want, rtol=0, atol=2e-6)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_size_that_is_said_is_that_of_the_state(measure):
    stream = Stream(measure)
    numbers = sum(int(np.prod(v.shape)) for v in stream.state.variables)
    assert stream.measure.state_size(stream.layer, CLASSES) == 4 * numbers


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
    if keras.backend.backend() == "torch":
        for _ in range(count):
            step()
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
    stream = Stream(FeatureEntropy, units=2, max_rank=20)
    membership = (one_hot(y) * weight[:, None]).astype("float32")
    found = []
    for part in (slice(0, 30), slice(30, 60)):  # of one shape: JAX compiles each for 10 s
        stream.add(maps[part], membership[part])
        found.extend(np.asarray(births.birth_index(np.moveaxis(maps[part], -1, 1), max_rank=20)))
    counts = np.zeros((CLASSES, 2, 21))
    for of_image, c, w in zip(found, y, weight, strict=True):
        for unit, birth in enumerate(of_image):
            counts[c, unit, birth] += w
    np.testing.assert_array_equal(stream.state.counts(), counts)
    want = np.asarray(feature_entropy.feature_entropy(counts))
    # float32 logarithms.
    np.testing.assert_allclose(stream.values(), want.mean(axis=1), atol=1e-6)
    result = stream.result()
    np.testing.assert_allclose(result.details["layer"]["feature_entropy"], want.T, atol=1e-6)
    rates = (counts[..., 1:].sum(axis=-1) / counts.sum(axis=-1)).mean()
    assert result.whole["selective_rate"][0] == pytest.approx(rates)


def test_weights_below_nothing_are_no_samples():
    statistic = LabelStatistic(3)
    membership = np.array([[-1, 0, 0], [0, 0, 2.0]], "float32")
    label = ops.convert_to_tensor(np.array([0, 2]))
    statistic.update_state(ops.convert_to_tensor(membership), label, label > 2)
    assert statistic.result()[0].tolist() == [0, 0, 1]
