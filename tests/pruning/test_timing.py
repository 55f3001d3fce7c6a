"""How long calls take, and what of that goes with which part."""

import json
import time

import keras
import numpy as np
import pytest

from keras_layer_entropy.pruning import Cost, Part, Plan, Prediction, choose_blocks, choose_units
from keras_layer_entropy.pruning.flops import count_flops
from keras_layer_entropy.pruning.timing import least_left, time_calls, timed, times_of
from keras_layer_entropy.recording.graph import flat_graph

dense = keras.layers.Dense


def residual_network(batch=None):
    """A stem, two branches that are added to it, one of them nested, and a head."""
    inputs = keras.Input((6,), batch_size=batch)
    x = dense(6, "relu", name="stem")(inputs)
    y = dense(8, "relu", name="wide")(x)
    x = keras.layers.Add(name="sum")([x, dense(6, name="narrow")(y)])
    branch = keras.Sequential([keras.Input((6,)), dense(6, "relu", name="inner")], name="branch")
    x = keras.layers.Add(name="last")([x, branch(x)])
    return keras.Model(inputs, dense(3, name="head")(x))


@pytest.fixture
def model():
    return residual_network()


@pytest.fixture
def times(model):
    """A number of its own for each call, so that each sum of some is another."""
    return {call.path: 2.0**i for i, call in enumerate(flat_graph(model).calls)}


class Sleeps(keras.layers.Layer):
    """A layer that takes at least 50 ms: a system may let a process sleep longer, never shorter."""

    def call(self, x):
        time.sleep(0.05)
        return x


def test_each_call_takes_its_own_time():
    model = keras.Sequential([keras.Input((8,)), dense(4), Sleeps(), dense(1)])
    weights = [np.array(weight) for weight in model.get_weights()]
    times = time_calls(model, np.ones((1, 8)))
    assert len(times) == 3
    assert min(times) > 0
    assert times[1] >= 50
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_calls_are_given_a_batch_of_256():
    """What is timed is what a layer is called with: it writes down the sizes."""
    sizes = []

    class Looks(keras.layers.Layer):
        def call(self, x):
            sizes.append(x.shape[0])
            return x

    for batch, expected in ((None, 256), (4, 4)):  # where a model takes no others
        inputs = keras.Input((6,), batch_size=batch)
        model = keras.Model(inputs, dense(2)(Looks()(inputs)))
        sizes.clear()
        time_calls(model, np.ones((1, 6)))
        assert set(sizes) == {expected}


def test_a_layer_takes_its_calls_and_those_of_its_members(model, times):
    parts = [
        Part(kind="layer", path="wide", members=("wide",)),
        Part(kind="layer", path="wide", members=("wide", "narrow")),
    ]
    found = times_of(model, parts, list(times.values()))
    assert found == [times["wide"], times["wide"] + times["narrow"]]


def test_a_block_takes_all_of_its_calls(model, times):
    parts = [Part(kind="block", path=path) for path in ("sum", "last")]
    found = times_of(model, parts, list(times.values()))
    # Without the branch there is nothing to add either.
    whole = times["wide"] + times["narrow"] + times["sum"]
    assert found == [whole, times["branch/inner"] + times["last"]]


def test_units_take_their_share_of_all_calls_that_they_are_along(model, times):
    """Two of eight of `wide`: a quarter of that call, and of the one that takes them.

    Two of six of `stem`, which are those of all that is added to it: a third of what makes or takes
    them, five ninths where both is so.
    """
    parts = [
        Part(kind="unit", path="wide", indices=(1, 5)),
        Part(kind="unit", path="stem", indices=(0, 2), members=("narrow", "branch/inner")),
    ]
    found = times_of(model, parts, list(times.values()))
    third = ("stem", "wide", "narrow", "sum", "last", "head")
    expected = [
        (times["wide"] + times["narrow"]) / 4,
        sum(times[path] for path in third) / 3 + times["branch/inner"] * 5 / 9,
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)  # float64


def test_shares_of_times_that_are_short_are_the_same(model, times):
    parts = [Part(kind="unit", path="wide", indices=(1,)), Part(kind="block", path="sum")]
    found = times_of(model, parts, list(times.values()))
    short = times_of(model, parts, [1e-6 * time for time in times.values()])
    np.testing.assert_allclose(short, 1e-6 * np.array(found), rtol=1e-9)  # of sums of nine digits


def test_what_is_left_once_all_parts_are_gone(model):
    """Each call counts once, however many parts it goes with; the model is that of 6 features."""
    plan = Plan((
        Part(kind="block", path="sum", members=("wide", "narrow")),
        Part(kind="layer", path="wide", members=("wide",)),
        Part(kind="unit", path="wide", indices=(1, 5)),
        Part(kind="unit", path="stem", indices=(0, 2), members=("narrow", "branch/inner")),
    ))  # fmt: skip
    found = least_left(plan, model, np.ones((1, 6)))
    # Of two thirds of the units: stem, inner, the sum behind it, and head; 1 for a ReLU.
    flops = {"stem": 2 * 36 + 6 + 6, "inner": 2 * 36 + 6 + 6, "last": 6, "head": 2 * 18 + 3}
    left = (flops["stem"] + flops["last"] + flops["head"]) * 2 / 3 + flops["inner"] * 4 / 9
    assert found["flops"] == pytest.approx(left / count_flops(model).total, rel=1e-9)
    left = (42 + 21) * 2 / 3 + 42 * 4 / 9
    assert found["parameters"] == pytest.approx(left / model.count_params(), rel=1e-9)


@pytest.mark.parametrize(("batch", "size"), [(None, 256), (16, 16)])
def test_a_plan_has_times_and_the_model_the_sum_of_its_calls(batch, size):
    model = residual_network(batch)
    x = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    units = choose_units(model, x, target={"flops": 0.8})
    blocks = choose_blocks(model, x)
    kinds = [*units.parts, *blocks.parts, Part(kind="layer", path="wide", members=("wide",),
                                               saves=Cost(1, 56, 112, {}))]  # fmt: skip
    said = tuple(Prediction(0.5, "words", 0.25) for _ in kinds)
    before = Plan(tuple(kinds), said, {"head": "why"}, units.costs)
    plan = timed(before, model, x[:1])
    assert plan.parts == before.parts  # but for what they save
    assert [part.saves.flops for part in plan.parts] == [part.saves.flops for part in kinds]
    assert plan.costs[1] == before.costs[1]
    (whole,) = plan.costs[0].latency.items()
    assert whole[0] == size
    for part in plan.parts:
        assert 0 < part.saves.latency[size] < whole[1]
    read = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert read.predictions == said
    assert [part.saves for part in read.parts] == [part.saves for part in plan.parts]
    assert read.costs == plan.costs
    # Every layer of the model, as if it were a part: together all of the time.
    calls = [
        Part(kind="layer", path=call.path, members=(call.path,), saves=Cost(0, 0, 0, {}))
        for call in flat_graph(model).calls
    ]
    every = Plan(tuple(calls), tuple(Prediction(0.0, "") for _ in calls), {}, units.costs)
    every = timed(every, model, x[:1])
    total = sum(part.saves.latency[size] for part in every.parts)
    assert total == pytest.approx(every.costs[0].latency[size], rel=1e-9)
