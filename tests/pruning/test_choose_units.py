"""`choose_units`, and searches that take out units."""

import dataclasses
import json
import warnings

import keras
import numpy as np
import pytest

from keras_layer_entropy import choose_units, prune_model, remove_units
from keras_layer_entropy.pruning import Plan, PruningOptions, patches, plan
from keras_layer_entropy.pruning.budget import Budget
from keras_layer_entropy.pruning.channels import find_channels
from keras_layer_entropy.pruning.effects import effects
from keras_layer_entropy.pruning.flops import count_flops
from keras_layer_entropy.pruning.outcome import compared
from keras_layer_entropy.pruning.reconstruction import Taker, cheapest
from keras_layer_entropy.pruning.rewrite import thinned
from keras_layer_entropy.pruning.unit_criteria import UNIT_CRITERIA

# All of it is calls of Keras; on other backends the examples of the modules run it.
pytestmark = pytest.mark.tensorflow

dense = keras.layers.Dense


@pytest.fixture
def random():
    return np.random.default_rng(0)


def residual_network():
    """A convolution, a block that is added to it, and a head."""
    layers = keras.layers
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(inputs)
    y = layers.Conv2D(12, 3, padding="same", use_bias=False, name="inner")(x)
    y = layers.ReLU()(layers.BatchNormalization(name="normal")(y))
    y = layers.Conv2D(8, 3, padding="same", name="outer")(y)
    x = layers.GlobalAveragePooling2D()(layers.Add()([x, y]))
    return keras.Model(inputs, dense(3, "softmax", name="head")(x))


def perceptron(units=(20, 12), features=6):
    """A trained one that tells which of three numbers is the greatest."""
    keras.utils.set_random_seed(0)
    hidden = [dense(n, "relu", name=f"hidden_{i}") for i, n in enumerate(units)]
    model = keras.Sequential([keras.Input((features,)), *hidden, dense(3, "softmax", name="head")])
    model.compile(
        keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    model.fit(*numbers(600, features), epochs=15, verbose=0)
    return model


def numbers(count, features=6, seed=0):
    x = np.random.default_rng(seed).normal(size=(count, features)).astype("float32")
    return x, x[:, :3].argmax(axis=1)


@pytest.mark.parametrize("build", [residual_network, perceptron])
def test_a_budget_counts_what_is_left(build, random):
    """As the thinned model has it: parameters to the last one; operations but for those of biases
    and activations, which go with what a layer makes, here less than 5 % of what a layer does."""
    model = build()
    channels = find_channels(model)
    flops = count_flops(model)
    budget = Budget(channels, flops.per_call, {"flops": 0.1})
    free = [path for path in channels.makers if not channels.reasons(path)]
    units = np.unique(np.concatenate([channels.roots(path) for path in free]))
    gone = random.permutation(units)[: len(units) // 2]
    for unit in gone:
        before, saved = dict(budget.left), budget.savings([unit])[0]
        budget.take(unit)
        # What it said that a unit saves, before it took it; it adds up over axes, and does not
        # multiply: that is more where a unit lies along both axes of a kernel.
        assert before["flops"] - budget.left["flops"] <= saved * (1 + 1e-9)
        assert before["flops"] - budget.left["flops"] >= saved * 0.8
    smaller = thinned(model, channels, gone)
    assert budget.left["parameters"] == pytest.approx(
        smaller.count_params() / model.count_params(), rel=1e-12
    )
    assert budget.left["flops"] == pytest.approx(count_flops(smaller).total / flops.total, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["flops", "parameters"])
@pytest.mark.parametrize("criterion", ["reconstruction", *UNIT_CRITERIA])
def test_no_more_is_left_than_may_be(key, criterion):
    model, data = perceptron(), numbers(200)
    if criterion == "feature_entropy":  # Dense layers have no maps
        with pytest.raises(ValueError, match="says nothing of any layer"):
            choose_units(model, data, target={key: 0.5}, criterion=criterion)
        return
    found = choose_units(model, data, target={key: 0.5}, criterion=criterion)
    smaller = remove_units(model, found, data[0])
    before, after = found.costs
    assert (before.parameters, after.parameters) == (model.count_params(), smaller.count_params())
    assert after.flops == count_flops(smaller).total
    share = getattr(after, key) / getattr(before, key)
    # One unit more that stays would be too much: none of them is 6 % of the model.
    assert 0.44 < share <= 0.5
    assert {part.path for part in found.parts} <= {"hidden_0", "hidden_1"}
    assert found.reasons["head"].startswith("the activation function of head mixes it")
    if criterion not in ("reconstruction",):  # the same share of each layer
        shares = [
            len(part.indices) / len(find_channels(model).makers[part.path]) for part in found.parts
        ]
        assert max(shares) - min(shares) < 0.1


def test_the_cheapest_for_what_they_save_go_first(random):
    """Against choosing by hand, with costs of least squares on what is left (to 1e-4: the ridge),
    multiplied with the layer's weight; of each group so many stay as have to."""
    x, w = random.normal(size=(300, 6)), random.normal(size=(6, 2))
    other, v = random.normal(size=(300, 4)), random.normal(size=(4, 3))
    x, other = x - x.mean(axis=0), other - other.mean(axis=0)
    takers = [
        Taker(x.T @ x, w, np.arange(6), weight=2.0),
        Taker(other.T @ other, v, 6 + np.arange(4), weight=0.5),
    ]
    saves = np.array([1.0] * 6 + [3.0] * 4)
    order = [
        unit for lump in cheapest(takers, [(range(6), 4), (range(6, 10), 3)], saves.__getitem__)
        for unit, _ in lump
    ]  # fmt: skip

    def missed(rows, kernel, left):
        wanted = rows @ kernel
        fit, *_ = np.linalg.lstsq(rows[:, left], wanted, rcond=None)
        return np.sum((rows[:, left] @ fit - wanted) ** 2) / np.sum(wanted**2)

    left, by_hand = {0: list(range(6)), 1: list(range(4))}, []
    while True:
        prices = {}
        for group, (rows, kernel, weight, least, first) in enumerate(
            [(x, w, 2.0, 2, 0), (other, v, 0.5, 1, 6)]
        ):
            if len(left[group]) > least:
                now = missed(rows, kernel, left[group])
                costs = {
                    u: weight * (missed(rows, kernel, [k for k in left[group] if k != u]) - now)
                    for u in left[group]
                }
                unit = min(costs, key=costs.get)
                prices[group] = costs[unit] / saves[first + unit], unit, first + unit
        if not prices:
            break
        group = min(prices, key=lambda g: prices[g][0])
        left[group].remove(prices[group][1])
        by_hand.append(prices[group][2])
    assert order == by_hand
    assert len(order) == 7


def test_lumps_leave_multiples(random):
    x = random.normal(size=(100, 11))
    takers = [Taker(x.T @ x, random.normal(size=(11, 3)), np.arange(11))]
    lumps = cheapest(takers, [(range(11), 10)], lambda units: np.ones(len(units)), 4)
    assert [len(lump) for lump in lumps] == [3, 4]
    model = perceptron()
    found = choose_units(model, numbers(200)[0], target={"flops": 0.5}, multiple_of=4)
    smaller = remove_units(model, found, numbers(200)[0])
    assert {smaller.get_layer(f"hidden_{i}").units % 4 for i in range(2)} == {0}


def test_multiples_that_are_none_or_too_many(random):
    model, x = perceptron(), numbers(50)[0]
    for given in (0, 2.5, True, "2"):
        with pytest.raises(ValueError, match="expected an int of at least 1"):
            choose_units(model, x, target={"flops": 0.5}, multiple_of=given)
    with pytest.warns(UserWarning, match="out of reach|cannot be reached|best"):
        plan = choose_units(model, x, target={"flops": 0.01}, multiple_of=12)
    assert "12 units, and multiples of 12" in plan.reasons["hidden_1"]


@pytest.mark.slow
@pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
def test_units_that_never_change_cost_nothing(value):
    """Data of which all samples are alike: no regression tells the units apart."""
    model, x = perceptron(), np.full((60, 6), value, "float32")
    plan = choose_units(model, x, target={"flops": 0.5})
    assert plan.parts
    smaller = remove_units(model, {"hidden_0": 0.5}, x)
    before, after = (each.predict(x, verbose=0) for each in (model, smaller))
    np.testing.assert_allclose(after, before, atol=1e-5)  # float32; the biases take it all in


@pytest.mark.slow
def test_inputs_that_are_not_finite_are_told_before_a_search():
    x, y = numbers(300)
    bad = x.copy()
    bad[[7, 9], 2] = np.nan, np.inf
    for name, parts in (
        ("train_data", ((bad, y), (x, y))),
        ("validation_data", ((x, y), (bad, y))),
    ):
        with pytest.raises(ValueError, match=f"{name} are NaN or infinite in 2 samples, the first"):
            prune_model(perceptron(), *parts, remove="units", target={"flops": 0.5}, epochs=0)


def test_effects_are_what_a_change_does_to_the_outputs(random):
    """From the formula, on a network of two linear layers and a softmax, where logarithms of
    probabilities less their mean are logits less their mean: linear, to float32."""
    a, b = dense(5, name="a"), dense(4, "softmax", name="b")
    model = keras.Sequential([keras.Input((3,)), a, b])
    x = random.normal(size=(64, 3)).astype("float32")
    found = effects(model, [[x]], ["a", "b"])
    hidden = x @ np.asarray(a.kernel)
    change = np.roll(hidden - hidden.mean(axis=0), 1, axis=0) @ np.asarray(b.kernel)
    logits = hidden @ np.asarray(b.kernel)
    change, logits = (z - z.mean(axis=1, keepdims=True) for z in (change, logits))
    expected = np.sqrt(np.sum(change**2) / np.sum((logits - logits.mean(axis=0)) ** 2))
    assert found["a"] == pytest.approx(expected, rel=1e-4)
    assert found["b"] == 1.0


def test_effects_of_what_hardly_matters_are_small(random):
    """A branch that is scaled by 1e-3 before it joins a sum has a thousandth of the effect."""
    inputs = keras.Input((6,))
    main, branch = dense(6, name="main")(inputs), dense(6, name="branch")(inputs)
    x = keras.layers.Add()([main, keras.layers.Rescaling(1e-3)(branch)])
    model = keras.Model(inputs, keras.layers.Identity()(x))
    found = effects(model, [[random.normal(size=(64, 6)).astype("float32")]], ["main", "branch"])
    assert found["branch"] < 3e-3 < 0.3 < found["main"]


def test_a_plan_of_units_through_a_file(random):
    model, x = residual_network(), random.normal(size=(30, 8, 8, 2)).astype("float32")
    found = choose_units(model, x, target={"flops": 0.6, "parameters": 0.7})
    again = Plan.from_json(json.loads(json.dumps(found.to_json())))
    assert again == found
    assert np.array_equal(
        remove_units(model, again, x).predict(x, verbose=0),
        remove_units(model, found, x).predict(x, verbose=0),
    )
    with pytest.raises(ValueError, match="plan is empty"):
        remove_units(model, Plan(), x)
    layer = dataclasses.replace(found.parts[0], kind="layer")
    with pytest.raises(ValueError, match="parts that are no units"):
        remove_units(model, Plan((layer,), found.predictions[:1]), x)


def test_tied_layers_are_one_part_and_kept_together(random):
    model, x = residual_network(), random.normal(size=(30, 8, 8, 2)).astype("float32")
    found = choose_units(model, x, target={"flops": 0.1})
    (stem,) = [part for part in found.parts if part.path == "stem"]
    assert stem.members == ("outer",)
    assert set(stem.consumers) == {"inner", "head"}
    alone = choose_units(model, x, target={"flops": 0.7}, keep="outer")
    assert [part.path for part in alone.parts] == ["inner"]
    assert alone.reasons["stem"] == "it is to be kept, or tied to a layer that is"
    only = choose_units(model, x, target={"flops": 0.7}, layers="outer")
    assert [part.path for part in only.parts] == ["stem"]
    assert only.reasons["inner"] == "it is not among the layers that may go"


def test_out_of_reach_is_told(random):
    model, x = residual_network(), random.normal(size=(30, 8, 8, 2)).astype("float32")
    with pytest.warns(UserWarning, match="out of reach: the least that can remain is flops 0.0"):
        found = choose_units(model, x, target={"flops": 0.01})
    smaller = remove_units(model, found, x)
    assert [smaller.get_layer(name).filters for name in ("stem", "inner", "outer")] == [1, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "target", [0.5, {}, {"flop": 0.5}, {"flops": 50}, {"flops": 0.0}, {"flops": "half"}]
)
def test_a_target_that_is_none(target):
    with pytest.raises(ValueError, match="expected a dict of some of 'flops'.*'parameters'"):
        choose_units(perceptron(), numbers(100)[0], target=target)
    with pytest.raises(ValueError, match="expected a dict of some of 'flops'.*'parameters'"):
        PruningOptions(remove="units", target=target)


def test_labels_are_asked_for_where_they_are_needed():
    with pytest.raises(ValueError, match="label"):
        choose_units(
            perceptron(), numbers(100)[0], target={"flops": 0.5}, criterion="mutual_information"
        )


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [0, 2])
def test_a_search_takes_units_out_until_the_target(epochs):
    """The widths are those of the original less what is said to be gone; what is refitted only is
    refitted to the original: the same as taking all of it out at once, to float32."""
    model, data = perceptron(), numbers(600)
    result = prune_model(
        model, data, numbers(300, seed=1), remove="units", target={"flops": 0.4}, epochs=epochs,
        calibration_samples=200, step_share=0.3,
    )  # fmt: skip
    assert result.target_met
    assert len(result.steps) > 1
    assert not result.removed
    assert {step.criterion for step in result.steps} == {"reconstruction"}
    flops = [step.flops for step in result.steps]
    assert flops == sorted(flops, reverse=True)
    assert flops[-1] <= 0.4 * count_flops(model).total < flops[-2]
    assert all(step.accepted and step.quality_retrained > 0.6 for step in result.steps)
    for path, gone in result.units.items():
        assert len(set(gone)) == len(gone)
        assert result.model.get_layer(path).units == model.get_layer(path).units - len(gone)
    if not epochs:
        first = np.random.default_rng(len(result.steps) - 1).permutation(600)[:200]
        at_once = remove_units(
            model, {k: list(v) for k, v in result.units.items()}, data[0][np.sort(first)]
        )
        x = numbers(100, seed=2)[0]
        assert np.allclose(
            result.model.predict(x, verbose=0), at_once.predict(x, verbose=0), atol=1e-4
        )


@pytest.mark.slow
def test_a_batch_that_costs_too_much_is_halved():
    model, data = perceptron(units=(6,)), numbers(600)
    result = prune_model(
        model, data, numbers(300, seed=1), remove="units", epochs=0, step_share=0.9,
        max_drop=0.0, calibration_samples=200,
    )  # fmt: skip
    rejected = [step for step in result.steps if not step.accepted]
    assert len(rejected) == 3
    assert result.target_met is None
    sizes = [sum(map(len, step.units.values())) for step in rejected]
    assert sizes[0] > sizes[-1]
    if not result.units:
        assert result.reasons["hidden_0"].startswith("without it accuracy is")
    assert result.model.get_layer("hidden_0").units == 6 - len(result.units.get("hidden_0", ()))


@pytest.mark.slow
def test_a_search_goes_on_where_it_was():
    model, data, validation = perceptron(), numbers(600), numbers(300, seed=1)
    options = PruningOptions(
        remove="units", target={"flops": 0.5}, epochs=0, calibration_samples=200, step_share=0.3
    )
    states = []
    whole = prune_model(
        model, data, validation, options, on_step=lambda m, step: states.append((m, step))
    )
    first = states[0]
    again = prune_model(model, data, validation, options, resume=(first[0], [first[1]]))
    assert again.units == whole.units
    assert len(again.steps) == len(whole.steps)
    x = numbers(50, seed=3)[0]
    assert np.allclose(
        again.model.predict(x, verbose=0), whole.model.predict(x, verbose=0), atol=1e-6
    )


@pytest.mark.slow
def test_a_layer_that_is_tied_to_several():
    """A Dense layer is added to two others, side by side: half of its units goes with the one, half
    with the other. All that goes is recorded, and counted as the original counts it."""
    inputs = keras.Input((6,))
    wide = dense(12, name="wide")(inputs)
    halves = [dense(6, name=name)(keras.layers.ReLU()(wide)) for name in ("left", "right")]
    x = keras.layers.Add()([wide, keras.layers.Concatenate()(halves)])
    model = keras.Model(inputs, dense(3, "softmax", name="head")(keras.layers.ReLU()(x)))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    data = numbers(300)
    model.fit(*data, epochs=2, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # half-trained: whatever its accuracy is
        result = prune_model(
            model, data, data, remove="units", target={"flops": 0.3}, epochs=0, step_share=0.4,
            max_drop=1.0,
        )  # fmt: skip
    search = compared(model, result, data, data)
    found = search.widths
    gone = found["wide"].gone
    assert result.units == {
        path: thinning.gone for path, thinning in found.items() if thinning.gone
    }
    assert found["left"].gone == tuple(unit for unit in gone if unit < 6)
    assert found["right"].gone == tuple(unit - 6 for unit in gone if unit >= 6)
    assert found["left"].gone
    assert found["right"].gone
    assert found["wide"].tied == ("left", "right")
    assert found["left"].tied == ("wide",)
    for name in ("wide", "left", "right", "head"):
        width = result.model.get_layer(name).units
        assert (found[name].before, found[name].after) == (model.get_layer(name).units, width)
        assert width == found[name].before - len(found[name].gone)
    assert sum(int(step.part.split()[0]) for step in result.steps) == 2 * len(gone)


@pytest.mark.slow
def test_networks_without_dense_layers(random):
    """Units go all the same; entropies are those of the layers that make them."""
    layers = keras.layers
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(8, 3, activation="relu", name="first")(inputs)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(3, 1, name="last")(x))
    model = keras.Model(inputs, layers.Softmax()(x))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    x = random.normal(size=(120, 6, 6, 2)).astype("float32")
    data = x, np.arange(120) % 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # untrained: whatever its accuracy is
        result = prune_model(
            model, data, data, remove="units", target={"parameters": 0.6}, epochs=0, step_share=1.0
        )
        assert result.target_met
        assert result.before.layers == result.after.layers == ("first", "last")
        assert compared(model, result, data, data).costs[0].dense_layers == 0
        none = keras.Sequential([keras.Input((6, 6, 3)), layers.GlobalAveragePooling2D()])
        none.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        with pytest.raises(ValueError, match="has no layers that make units"):
            prune_model(none, (x[..., [0, 1, 1]], data[1]), (x[..., [0, 1, 1]], data[1]),
                        remove="units", epochs=0)  # fmt: skip


@pytest.mark.slow
def test_layers_that_were_merged_in_the_end_have_no_units_left():
    model = keras.Sequential([
        keras.Input((6,)), dense(8, name="first"), dense(10, name="second"), dense(3, "softmax"),
    ])  # fmt: skip
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    data = numbers(300)
    model.fit(*data, epochs=2, verbose=0)
    result = prune_model(
        model, data, data, remove="units", target={"flops": 0.6}, epochs=0, step_share=1.0,
        simplify=True,
    )  # fmt: skip
    widths = compared(model, result, data, data).widths
    there = {layer.name for layer in result.model.layers}
    assert not {"first", "second"} <= there
    assert {path for path, found in widths.items() if found.after} == there


@pytest.mark.slow
def test_a_target_out_of_reach_is_no_success():
    model, data = perceptron(), numbers(300)
    result = prune_model(
        model, data, data, remove="units", target={"flops": 0.001}, epochs=0, step_share=1.0
    )
    assert result.target_met is False
    assert [result.model.get_layer(f"hidden_{i}").units for i in range(2)] == [1, 1]


@pytest.mark.slow
def test_a_plan_says_what_would_go():
    model, data = perceptron(), numbers(300)
    found = plan(model, data, data, remove="units", target={"flops": 0.5})
    assert found.costs[1].flops <= 0.5 * found.costs[0].flops
    assert {part.kind for part in found.parts} == {"unit"}
    assert all(
        part.saves.flops > 0 and "units" in said.words
        for part, said in zip(found.parts, found.predictions, strict=True)
    )


@pytest.mark.slow
def test_layers_go_until_a_target():
    hidden = [dense(12, "relu", name=f"hidden_{i}") for i in range(4)]
    model = keras.Sequential([keras.Input((6,)), *hidden, dense(3, "softmax", name="head")])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = prune_model(
            model, numbers(200), numbers(200), criterion="last", target={"flops": 0.6}, epochs=0
        )
    assert len(result.removed) == 2
    assert result.target_met
    assert result.quality.drop == np.inf
    assert result.reasons["hidden_1"] == "the target is reached"


def test_effects_heed_masks(random):
    """Padding is no key of attention: a change of it shows in nothing, so that the effect of what
    gives the keys is the same without the padding, to float32."""
    tokens, query = keras.Input((None,), dtype="int32"), keras.Input((5, 4))
    x = keras.layers.Embedding(9, 6, mask_zero=True, name="tokens")(tokens)
    x = keras.layers.MultiHeadAttention(3, 2)(query, x)
    model = keras.Model([tokens, query], dense(2)(keras.layers.Flatten()(x)))
    short = random.integers(1, 9, (64, 3))
    asked = random.normal(size=(64, 5, 4)).astype("float32")
    padded = np.concatenate([short, np.zeros_like(short)], axis=1)
    found = [effects(model, [[x], [asked]], ["tokens"])["tokens"] for x in (short, padded)]
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.slow
def test_what_changes_no_output_goes_at_the_end():
    """Outputs to float32; normalisation and dropout are there until then."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    hidden = [dense(12, name="hidden"), layers.BatchNormalization(), layers.ReLU(),
              layers.Dropout(0.1)]  # fmt: skip
    model = keras.Sequential([keras.Input((6,)), *hidden, dense(3, "softmax", name="head")])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(*numbers(300), epochs=30, verbose=0)
    options = {"remove": "units", "target": {"parameters": 0.7}, "epochs": 0}
    seen = []
    found = [
        prune_model(model, numbers(300), numbers(300), simplify=simplify, **options,
                    on_step=lambda smaller, step: seen.append(len(smaller.layers)))
        for simplify in (False, True)
    ]  # fmt: skip
    assert set(seen) == {5}
    plain, simple = (result.model for result in found)
    assert [len(plain.layers), len(simple.layers)] == [5, 3]
    x = numbers(50, seed=1)[0]
    assert np.allclose(plain.predict(x, verbose=0), simple.predict(x, verbose=0), atol=1e-5)
    assert simple.evaluate(*numbers(50), verbose=0)[1] > 0.5


@pytest.mark.parametrize(
    ("layer", "shape", "batches"),
    [
        (keras.layers.Conv2D(4, 3), (10, 10, 2), 2),  # 15 samples have 50 rows for 18 features
        (keras.layers.Conv1D(4, 3), (4, 20), 12),  # 1,500 samples, of two rows each, for 60
        (dense(4), (30,), 12),  # 1,500 samples for 30
        (dense(4), (100,), 16),  # 5,000, more than there are
    ],
)
def test_a_choice_looks_at_no_more_samples_than_say_enough(layer, shape, batches):
    layer.build((None, *shape))
    given = [np.zeros((128, *shape), "float32")] * 16
    assert len(list(patches.enough(layer, given))) == batches
