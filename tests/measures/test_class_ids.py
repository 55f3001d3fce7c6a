"""Sums per class by ids are those by weights in each class, however they were added."""

import numpy as np
import pytest
from backends import some_on_each
from keras import ops

from keras_layer_entropy.measures import ActivationEntropy, Instability, StateEntropy, class_sums
from keras_layer_entropy.measures.class_sums import ClassIds, count_samples
from keras_layer_entropy.measures.measure import LayerInfo

CLASSES, UNITS, NONE = 7, 4, 2
MEASURES = (ActivationEntropy, Instability, StateEntropy)
# float32 sums of some ten samples of size 2.
CLOSE = dict(rtol=0, atol=2e-5)


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch):
    monkeypatch.setattr(class_sums, "MANY", 3)
    monkeypatch.setattr(class_sums, "TURNS", 3)


def state_of(measure):
    return measure().new_state(LayerInfo("layer", UNITS, {}), CLASSES)


def of_ids(y, weights=None):
    weights = np.ones(y.shape, "float32") if weights is None else weights
    ids = ClassIds(
        ops.convert_to_tensor(y.astype("int32")), ops.convert_to_tensor(weights), CLASSES
    )
    return ids.grouped()


def batches(random, shape=(), number=7):
    """Some of all classes, and one of a class alone; no sample is of class `NONE`."""
    for size in ((6, 1, 6, 6, 1, 6, 6) * 9)[:number]:
        y = random.integers(0, CLASSES - 1, (size, *shape[:1]))
        y = y + (y >= NONE)
        yield (2 * random.normal(size=(size, *shape, UNITS))).astype("float32"), y


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("weighted", some_on_each([False, True], [True]))
@pytest.mark.parametrize("shape", some_on_each([(), (3,), (3, 2)], [(), (3, 2)]), ids=str)
def test_it_is_the_sum_by_weights(measure, weighted, shape, random):
    """Labels of samples; of steps; of steps with further positions that share one."""
    one, other = state_of(measure), state_of(measure)
    for number, (a, y) in enumerate(batches(random, shape)):
        weights = random.integers(0, 3, y.shape).astype("float32") if weighted else None
        ids, mask = of_ids(y, weights), None
        if number % 2 and shape:
            mask = ops.convert_to_tensor(random.integers(0, 2, a.shape[:2]).astype(bool))
        one.update_state(ops.convert_to_tensor(a), ids, mask)
        other.update_state(ops.convert_to_tensor(a), ids.dense(), mask)
        np.testing.assert_allclose(one.total(), other.total(), **CLOSE)
        np.testing.assert_array_equal(count_samples(ids), count_samples(ids.dense()))
    assert one.total()[NONE].tolist() == [0.0] * one.total().shape[1]
    assert not one.not_finite().any()


def test_in_turns_everything_is_kept(random):
    """What was added is in the compensated sums, all of it, after as many batches as there are
    turns, and nothing is lost on the way."""
    state, whole = state_of(ActivationEntropy), 0.0
    for a, y in batches(random):
        state.update_state(ops.convert_to_tensor(a), of_ids(y))
        rows = np.concatenate([np.ones((len(a), 1)), a], axis=1)
        whole = whole + np.eye(CLASSES)[y].T @ rows
        np.testing.assert_allclose(state.total(), whole, **CLOSE)
    nothing = ops.zeros((6, UNITS)), of_ids(np.zeros(6, int), np.zeros(6, "float32"))
    assert np.abs(ops.convert_to_numpy(state._recent)).max() > 0
    for _ in range(class_sums.TURNS):
        state.update_state(*nothing)
    assert np.abs(ops.convert_to_numpy(state._recent)).max() == 0
    np.testing.assert_allclose(state.total(), whole, **CLOSE)
    state.reset_state()
    assert np.abs(state.total()).max() == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("measure", MEASURES)
def test_what_is_not_finite_spoils_its_class_alone(measure, bad, random):
    (a, _), y = next(batches(random)), np.array([0, 1, 2, 0, 1, 2])
    clean, spoilt, none = (state_of(measure) for _ in range(3))
    clean.update_state(ops.convert_to_tensor(a), of_ids(y))
    a[4, 2] = bad
    spoilt.update_state(ops.convert_to_tensor(a), of_ids(y))
    assert np.flatnonzero(spoilt.not_finite()).tolist() == [1]
    rest = [0, 2, 3, 4, 5, 6]
    # With bad values about, each sample's mean over the units is taken off, which changes nothing.
    found, wanted = (x.of_means(ops.softmax)[rest, 1:] for x in (spoilt, clean))
    if measure is ActivationEntropy:
        np.testing.assert_allclose(found, wanted, **CLOSE)
    none.update_state(ops.convert_to_tensor(a), of_ids(y, np.float32([1, 1, 1, 1, 0, 1])))
    assert not none.not_finite().any()  # it does not count


@pytest.mark.parametrize("measure", MEASURES)
def test_parts_add_up(measure, random):
    whole, parts = state_of(measure), []
    for a, y in batches(random):
        parts.append(state_of(measure))
        for state in (whole, parts[-1]):
            state.update_state(ops.convert_to_tensor(a), of_ids(y))
    merged = state_of(measure)
    merged.merge_state(parts)
    np.testing.assert_allclose(merged.total(), whole.total(), **CLOSE)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_size_that_is_said_is_that_of_the_state(measure):
    numbers = sum(int(np.prod(v.shape)) for v in state_of(measure).variables)
    assert measure().state_size(LayerInfo("layer", UNITS, {}), CLASSES) == 4 * numbers


def test_means_are_looked_at_in_blocks(monkeypatch, random):
    state = state_of(ActivationEntropy)
    for a, y in batches(random):
        state.update_state(ops.convert_to_tensor(a), of_ids(y))
    whole = state.of_means(lambda mean: mean)
    assert np.isnan(whole[NONE]).all()
    monkeypatch.setattr(class_sums, "_BLOCK", 2 * (1 + UNITS))  # two classes
    np.testing.assert_array_equal(state.of_means(lambda mean: mean), whole)
    np.testing.assert_array_equal(state.total().shape, (CLASSES, 1 + UNITS))
