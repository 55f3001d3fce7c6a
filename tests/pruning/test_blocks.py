"""Blocks taken out of models of many kinds, against what NumPy or the same model gives."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_layer_entropy import choose_blocks, load_model, prune_model, remove_blocks, save_model
from keras_layer_entropy.pruning import block_plan
from keras_layer_entropy.pruning.block_parts import chosen_blocks, find_blocks
from keras_layer_entropy.pruning.parts import Plan

IMAGES = np.random.default_rng(0).normal(size=(40, 6, 6, 4)).astype("float32")
WORDS = np.random.default_rng(1).normal(size=(60, 5, 8)).astype("float32")
VECTORS = np.random.default_rng(2).normal(size=(200, 8)).astype("float32")


def conv(units, size=3, **options):
    return layers.Conv2D(units, size, padding="same", **options)


def basic(x, name, units=4):
    y = layers.ReLU()(layers.BatchNormalization()(conv(units, use_bias=False)(x)))
    y = layers.BatchNormalization(name=f"last_{name}")(conv(units, use_bias=False)(y))
    return layers.ReLU()(layers.Add(name=name)([y, x]))


def before_activation(x, name):
    y = layers.ReLU()(layers.BatchNormalization()(x))
    return x + conv(4, name=f"last_{name}")(layers.ReLU()(conv(6)(y)))


def gated(x, name):
    y = conv(4, activation="relu")(x)
    gate = layers.Dense(4, "sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(y))
    y = conv(4, 1, name=f"last_{name}")(layers.Multiply()([y, gate]))
    return layers.Add(name=name)([x, layers.Dropout(0.5)(y)])


def attention(x, name):
    normal = layers.LayerNormalization()(x)
    y = layers.MultiHeadAttention(2, 4)(normal, normal)
    return layers.Add(name=name)([x, layers.Dense(8, name=f"last_{name}")(y)])


def feed_forward(x, name):
    y = keras.Sequential([layers.Dense(32, "gelu"), layers.Dense(8)])(x)
    return layers.Add(name=name)([layers.Dense(8, name=f"last_{name}")(y), x])


def mixing(x, name):
    y = layers.Permute((2, 1))(layers.LayerNormalization()(x))
    y = layers.Permute((2, 1))(layers.Dense(5)(layers.Dense(7, "gelu")(y)))
    return layers.Add(name=name)([x, layers.Dense(8, name=f"last_{name}")(y)])


BLOCKS = {
    basic: IMAGES,
    before_activation: IMAGES,
    gated: IMAGES,
    attention: WORDS,
    feed_forward: WORDS,
    mixing: WORDS,
}


def network(block, x, blocks=2):
    """A network of some blocks, with normalisations that do something."""
    inputs = keras.Input(x.shape[1:])
    y = inputs
    for number in range(blocks):
        y = block(y, f"sum_{number}")
    pooled = layers.GlobalAveragePooling2D() if x.ndim == 4 else layers.GlobalAveragePooling1D()
    model = keras.Model(inputs, layers.Dense(3, name="out")(pooled(y)))
    random = np.random.default_rng(3)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            for weight in layer.weights:
                weight.assign(random.uniform(0.5, 1.5, weight.shape))
    return model


def name_of(model, number):
    """The name of a sum: an operation's is Keras's own."""
    return [x for x in find_blocks(model)[0].values() if x.form == "residual"][number].path


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.__name__)
def test_without_data_it_is_the_model_whose_branch_gives_zero(block):
    x = BLOCKS[block]
    model = network(block, x)
    with pytest.warns(UserWarning, match="nothing is refitted"):
        smaller = remove_blocks(model, name_of(model, 0))
    assert smaller.count_params() < model.count_params()
    last = model.get_layer("last_sum_0")
    for weight in last.weights[:2]:  # kernel and bias, or gamma and beta
        weight.assign(np.zeros(weight.shape))
    if isinstance(last, layers.BatchNormalization):
        last.moving_mean.assign(np.zeros(4))
    # The same operations on the same numbers, compiled in another order: float32's rounding.
    np.testing.assert_allclose(smaller.predict(x), model.predict(x), atol=1e-5)


def test_the_model_itself_stays_as_it_was():
    model = network(basic, IMAGES)
    before = [np.array(ops.convert_to_numpy(weight)) for weight in model.weights]
    remove_blocks(model, "sum_0", IMAGES)
    for weight, was in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(weight), was)


def inner(model, *names):
    """What some layers give, as arrays."""
    return keras.Model(model.inputs, [model.get_layer(name).output for name in names])


def least_squares(x, z):
    """Fitted values of z on x and 1."""
    x = np.hstack([x, np.ones((len(x), 1))])
    return x @ np.linalg.lstsq(x, z, rcond=None)[0]


def patches(x, size):
    """`[rows, size * size * channels]` of images, padded with zeros."""
    reach = size // 2
    padded = np.pad(x, [(0, 0), (reach, reach), (reach, reach), (0, 0)])
    height, width = x.shape[1:3]
    taps = itertools.product(range(size), range(size))
    parts = [padded[:, i : i + height, j : j + width] for i, j in taps]
    return np.concatenate(parts, axis=-1).reshape(-1, size * size * x.shape[-1])


@pytest.mark.parametrize("size", [1, 3])
def test_a_convolution_that_stands_in_is_the_least_squares_fit_to_the_sum(size):
    model = network(gated, IMAGES)
    smaller = remove_blocks(model, "sum_1", IMAGES, stand_in=size)
    x, wanted = inner(model, "sum_0", "sum_1").predict(IMAGES)
    given = inner(smaller, "sum_1_linear").predict(IMAGES)
    fitted = least_squares(patches(x.astype("float64"), size), wanted.reshape(-1, 4))
    # A thousandth of the spread, here and below: the ridge, and float32 in both networks.
    np.testing.assert_allclose(given.reshape(-1, 4), fitted, atol=1e-3 * wanted.std())


def test_a_dense_layer_stands_in_on_vectors_and_sequences():
    model = network(feed_forward, WORDS)
    smaller = remove_blocks(model, "sum_1", WORDS)
    x, wanted = inner(model, "sum_0", "sum_1").predict(WORDS)
    given = inner(smaller, "sum_1_linear").predict(WORDS)
    fitted = least_squares(x.reshape(-1, 8).astype("float64"), wanted.reshape(-1, 8))
    np.testing.assert_allclose(given.reshape(-1, 8), fitted, atol=1e-3 * wanted.std())


def test_neighbours_share_one_stand_in():
    model = network(feed_forward, WORDS, blocks=3)
    smaller = remove_blocks(model, ["sum_1", "sum_2"], WORDS)
    names = [layer.name for layer in smaller.layers]
    assert "sum_2_linear" in names
    assert "sum_1_linear" not in names
    x, wanted = inner(model, "sum_0", "sum_2").predict(WORDS)
    given = inner(smaller, "sum_2_linear").predict(WORDS)
    fitted = least_squares(x.reshape(-1, 8).astype("float64"), wanted.reshape(-1, 8))
    np.testing.assert_allclose(given.reshape(-1, 8), fitted, atol=1e-3 * wanted.std())


def test_neighbours_between_which_something_is_taken_have_each_their_own():
    model = network(basic, IMAGES, blocks=3)
    smaller = remove_blocks(model, ["sum_1", "sum_2"], IMAGES)
    assert {"sum_1_linear", "sum_2_linear"} <= {layer.name for layer in smaller.layers}


def test_a_branch_that_is_linear_is_replaced_without_loss():
    inputs = keras.Input((6, 6, 4))
    y = conv(4, 1)(conv(16)(inputs))
    x = layers.ReLU()(layers.Add(name="sum")([inputs, y]))
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    smaller = remove_blocks(model, "sum", IMAGES)
    assert smaller.get_layer("sum_linear").kernel_size == (3, 3)
    new = np.random.default_rng(5).normal(size=(20, 6, 6, 4)).astype("float32")
    # Exact but for the ridge of 1e-6 and float32, beside outputs of a spread of about 1.
    np.testing.assert_allclose(smaller.predict(new), model.predict(new), atol=1e-3)


@pytest.mark.parametrize("stand_in", [None, "auto"])
def test_data_that_are_not_finite_choose_nothing(stand_in):
    x = np.random.default_rng(0).normal(size=(20, 6, 6, 4)).astype("float32")
    x[7, 2, 2, 3] = np.nan
    model = network(basic, x)
    with pytest.raises(ValueError, match="not finite .* look at these data"):
        choose_blocks(model, x, stand_in=stand_in)


def test_layers_behind_are_fitted_to_what_they_did_on_what_they_are_given():
    inputs = keras.Input((8,))
    x = layers.Dense(8, "tanh", name="first")(inputs)
    x = layers.Add(name="sum")([x, layers.Dense(8, "relu")(x)])
    x = layers.Dense(6, "relu", name="behind")(x)
    model = keras.Model(inputs, layers.Dense(2, name="out")(x))
    smaller = remove_blocks(model, "sum", VECTORS, stand_in=None)
    given, was = (
        inner(each, "first", "behind", "out").predict(VECTORS) for each in (smaller, model)
    )
    np.testing.assert_array_equal(given[0], was[0])
    kernel, bias = map(ops.convert_to_numpy, model.get_layer("behind").weights)
    summed = inner(model, "sum").predict(VECTORS) @ kernel + bias
    fitted = np.maximum(least_squares(was[0].astype("float64"), summed), 0.0)
    np.testing.assert_allclose(given[1], fitted, atol=1e-3)
    # The last one is fitted on what the one before it gives now.
    np.testing.assert_allclose(
        given[2], least_squares(given[1].astype("float64"), was[2]), atol=1e-3
    )


@pytest.mark.parametrize("normalised", [True, False])
def test_what_stays_of_a_projection_makes_up_for_the_branch(normalised):
    inputs = keras.Input((6, 6, 4))
    x = conv(4, activation="relu", name="first")(inputs)
    branch = conv(5, 1)(conv(7, strides=2, activation="relu")(x))
    short = layers.Conv2D(5, 1, strides=2, name="short", use_bias=not normalised)(x)
    if normalised:
        short = layers.BatchNormalization(name="normal")(short)
    x = layers.Add(name="sum")([short, branch])
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(layers.ReLU()(x)))
    if normalised:
        random = np.random.default_rng(3)
        for weight in model.get_layer("normal").weights:
            weight.assign(random.uniform(0.5, 1.5, weight.shape))
    assert find_blocks(model)[0]["sum"].form == "projection"
    smaller = remove_blocks(model, "sum", IMAGES)
    x, wanted = inner(model, "first", "sum").predict(IMAGES)
    given = inner(smaller, "normal" if normalised else "short").predict(IMAGES)
    fitted = least_squares(x[:, ::2, ::2].reshape(-1, 4).astype("float64"), wanted.reshape(-1, 5))
    np.testing.assert_allclose(given.reshape(-1, 5), fitted, atol=1e-3 * wanted.std())


def test_a_convolution_goes_with_what_belongs_to_it():
    inputs = keras.Input((6, 6, 4))
    x = conv(4, name="first", activation="relu")(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(conv(4, name="second")(x)))
    model = keras.Model(inputs, conv(2, name="third")(x))
    smaller = remove_blocks(model, "second", IMAGES)
    assert [layer.name for layer in smaller.layers[1:]] == ["first", "third"]
    x, wanted = inner(model, "first", "third").predict(IMAGES)
    fitted = least_squares(patches(x.astype("float64"), 3), wanted.reshape(-1, 2))
    np.testing.assert_allclose(
        smaller.predict(IMAGES).reshape(-1, 2), fitted, atol=1e-3 * wanted.std()
    )


@keras.saving.register_keras_serializable("test_blocks")
class Encoder(layers.Layer):
    """A block whose code nobody can read."""

    def __init__(self, width, **options):
        super().__init__(**options)
        self.width = width
        self.first, self.second = layers.Dense(4 * width, "gelu"), layers.Dense(width)

    def build(self, shape):
        self.first.build(shape)
        self.second.build((*shape[:-1], 4 * self.width))

    def call(self, x, padding_mask=None):
        y = self.second(self.first(x))
        return x + (y if padding_mask is None else y * padding_mask[..., None])

    def get_config(self):
        return {**super().get_config(), "width": self.width}


@keras.saving.register_keras_serializable("test_blocks")
class Backbone(keras.Model):
    """A functional model under a class of its own, whose configuration makes all its blocks."""

    def __init__(self, depth=3, **options):
        inputs = {"words": keras.Input((5, 8)), "mask": keras.Input((5,))}
        x = inputs["words"]
        for number in range(depth):
            x = Encoder(8, name=f"encoder_{number}")(x, padding_mask=inputs["mask"])
        super().__init__(inputs, layers.Dense(2, name="head")(x), **options)
        self.depth = depth

    def get_config(self):
        return {"depth": self.depth}


TEXTS = {"words": WORDS, "mask": np.ones((60, 5), "float32")}


def test_composite_layers_go_as_they_are_called(tmp_path):
    model = Backbone()
    assert list(find_blocks(model)[0]) == ["encoder_0", "encoder_1", "encoder_2"]
    smaller = remove_blocks(model, ["encoder_0", "encoder_1"], TEXTS)
    assert type(smaller) is not Backbone
    assert "encoder_1_linear" in {x.name for x in smaller.layers}
    with pytest.warns(UserWarning, match="nothing is refitted"):
        cut = remove_blocks(model, ["encoder_1"])
    wanted = model.get_layer("encoder_2")(model.get_layer("encoder_0")(WORDS))
    wanted = ops.convert_to_numpy(model.get_layer("head")(wanted))
    np.testing.assert_allclose(cut.predict(TEXTS), wanted, atol=1e-5)  # float32, compiled
    save_model(smaller, tmp_path / "smaller.keras")
    again = load_model(tmp_path / "smaller.keras")
    np.testing.assert_allclose(again.predict(TEXTS), smaller.predict(TEXTS), atol=1e-6)


def test_a_model_of_its_own_class_is_a_plain_one_only_once_it_is_another():
    from keras_layer_entropy.pruning.rewrite import without

    model = Backbone()
    same, _ = without(model, None)
    assert type(same) is Backbone
    np.testing.assert_array_equal(same.predict(TEXTS), model.predict(TEXTS))


def test_composite_layers_that_cannot_go_say_why():
    class Pair(Encoder):
        def call(self, x):
            y = super().call(x)
            return y, y

    class Wide(Encoder):
        def call(self, x):
            return self.first(x)

    inputs = keras.Input((5, 8))
    x, _ = Pair(8, name="pair")(inputs)
    model = keras.Model(inputs, Wide(8, name="wide")(x))
    blocks, reasons = find_blocks(model)
    assert not blocks
    assert "several tensors" in reasons["pair"]
    assert "two shapes" in reasons["wide"]


def test_each_call_of_a_layer_is_a_block_of_its_own():
    encoder, add = Encoder(8, name="encoder"), layers.Add(name="add")
    inputs = keras.Input((5, 8))
    x = encoder(encoder(inputs))
    x = add([x, layers.Dense(8, "relu", name="a")(x)])
    x = add([x, layers.Dense(8, "relu", name="b")(x)])
    model = keras.Model(inputs, layers.Dense(2)(x))
    assert set(find_blocks(model)[0]) == {"encoder", "encoder#2", "add", "add#2"}
    with pytest.warns(UserWarning, match="nothing is refitted"):
        smaller = remove_blocks(model, ["encoder#2", "add#2"])
    x = encoder(WORDS)
    x = x + model.get_layer("a")(x)
    wanted = ops.convert_to_numpy(model.layers[-1](x))
    np.testing.assert_allclose(smaller.predict(WORDS), wanted, atol=1e-5)  # float32, compiled


def test_blocks_inside_nested_models():
    inside = keras.Input((8,))
    x = layers.Add(name="sum")([inside, layers.Dense(8, "relu", name="branch")(inside)])
    block = keras.Model(inside, layers.Dense(8, name="end")(x), name="block")
    inputs = keras.Input((8,))
    model = keras.Model(inputs, layers.Dense(2)(block(inputs)))
    smaller = remove_blocks(model, "block/sum", VECTORS, stand_in=1)
    assert [x.name for x in smaller.get_layer("block").layers[1:]] == ["sum_linear", "end"]
    twice = keras.Model(inputs, layers.Dense(2)(block(block(inputs))))
    blocks, reasons = find_blocks(twice)
    assert not blocks
    assert "called several times" in reasons["block/sum"]


def test_it_trains_on_with_the_state_of_its_optimizer():
    model = network(basic, IMAGES)
    model.compile("adam", "mse")
    y = np.random.default_rng(4).normal(size=(40, 3)).astype("float32")
    model.fit(IMAGES, y, verbose=0)
    smaller = remove_blocks(model, "sum_0", IMAGES)
    assert int(smaller.optimizer.iterations) == int(model.optimizer.iterations)
    slots = {variable.path: variable for variable in smaller.optimizer.variables}
    fresh = [slot for path, slot in slots.items() if "sum_0_linear" in path]
    assert fresh
    assert not any(ops.convert_to_numpy(slot).any() for slot in fresh)
    kept = [path for path in slots if "out_kernel" in path or "out/kernel" in path]
    assert kept
    assert all(ops.convert_to_numpy(slots[path]).any() for path in kept)
    before = ops.convert_to_numpy(smaller.get_layer("sum_0_linear").kernel)
    smaller.fit(IMAGES, y, verbose=0)
    assert np.any(ops.convert_to_numpy(smaller.get_layer("sum_0_linear").kernel) != before)


def test_channels_first():
    inputs = keras.Input((4, 6, 6))
    y = conv(8, activation="relu", data_format="channels_first")(inputs)
    y = conv(4, data_format="channels_first")(y)
    x = layers.Add(name="sum")([inputs, y])
    model = keras.Model(inputs, layers.GlobalAveragePooling2D(data_format="channels_first")(x))
    if keras.backend.backend() == "tensorflow":
        pytest.skip("TensorFlow has no convolution of channels that come first on a processor")
    x = np.moveaxis(IMAGES, -1, 1)
    smaller = remove_blocks(model, "sum", x)
    given, wanted = inner(smaller, "sum_linear").predict(x), inner(model, "sum").predict(x)
    fitted = least_squares(
        patches(IMAGES.astype("float64"), 3), np.moveaxis(wanted, 1, -1).reshape(-1, 4)
    )
    np.testing.assert_allclose(
        np.moveaxis(given, 1, -1).reshape(-1, 4), fitted, atol=1e-3 * wanted.std()
    )


def test_sums_that_are_no_blocks_say_why():
    inputs, other = keras.Input((8,)), keras.Input((8,))
    a, b = layers.Dense(8)(inputs), layers.Dense(8)(other)
    x = layers.Add(name="of_two_inputs")([a, b])
    y = layers.Dense(8, "relu")(x)
    x = layers.Add(name="used_twice")([x, y])
    x = layers.Add(name="three")([x, y, layers.Dense(8)(x)])
    x = layers.Add(name="without_weights")([x, layers.ReLU()(x)])
    model = keras.Model([inputs, other], [layers.Dense(2)(x), y])
    _, reasons = find_blocks(model)
    words = {
        "of_two_inputs": "nor both from one tensor",
        "used_twice": "goes elsewhere",
        "three": "more than two",
        "without_weights": "no weights",
    }
    assert reasons.keys() == words.keys()
    for name, part in words.items():
        assert part in reasons[name]


@pytest.mark.parametrize(
    ("blocks", "options", "words"),
    [
        ("nothing", {}, "is no block of .*sum_0"),
        ([], {}, "No block is named"),
        ("sum_0", {"stand_in": 2}, "an odd number"),
        ("sum_0", {"stand_in": True}, "an odd number"),
        ("sum_0", {"stand_in": 9}, "kernel size 9 has"),
        (Plan(), {}, "No block is named"),
    ],
)
def test_what_cannot_be_is_said(blocks, options, words):
    with pytest.raises(ValueError, match=words):
        remove_blocks(network(gated, IMAGES), blocks, IMAGES, **options)


def test_data_that_are_not_finite():
    bad = IMAGES.copy()
    bad[3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        remove_blocks(network(basic, IMAGES), "sum_0", bad)


def test_the_branch_that_says_nothing_goes_first():
    model = network(feed_forward, WORDS, blocks=4)
    for weight in model.get_layer("last_sum_2").weights:
        weight.assign(1e-3 * ops.convert_to_numpy(weight))
    plan = choose_blocks(model, WORDS, most=1)
    assert [part.path for part in plan.parts] == ["sum_2"]
    assert "change by" in plan.predictions[0].words
    assert set(plan.reasons) == {"sum_0", "sum_1", "sum_3"}
    assert Plan.from_json(plan.to_json()) == plan
    smaller = remove_blocks(model, plan, WORDS)
    assert smaller.count_params() == plan.costs[1].parameters


@pytest.mark.parametrize("last", [False, True], ids=["inside", "the outputs"])
def test_what_a_block_costs_is_the_change_of_the_outputs_without_it(last):
    model = network(feed_forward, WORDS, blocks=1 if last else 2)
    if last:
        model = keras.Model(model.inputs, model.get_layer("sum_0").output)
    plan = choose_blocks(model, WORDS, stand_in=None)
    with pytest.warns(UserWarning, match="nothing is refitted"):
        cut = remove_blocks(model, "sum_0")
    outputs, changed = model.predict(WORDS), cut.predict(WORDS)
    spread = np.sqrt(np.sum((outputs - outputs.mean(0)) ** 2))
    wanted = np.sqrt(np.sum((changed - outputs) ** 2)) / spread
    found = {p.path: x.loss for p, x in zip(plan.parts, plan.predictions, strict=True)}
    np.testing.assert_allclose(found["sum_0"], wanted, rtol=1e-3)  # float32 in both


def test_large_tensors_are_looked_at_for_fewer_samples(monkeypatch):
    """As if only the first batch of 128 had been given."""
    model = network(feed_forward, WORDS)
    x = np.random.default_rng(0).normal(size=(300, 5, 8)).astype("float32")
    whole, part = (choose_blocks(model, each).predictions for each in (x, x[:128]))
    monkeypatch.setattr(block_plan, "_MOST", 1)
    few = choose_blocks(model, x).predictions
    assert [each.loss for each in few] == [each.loss for each in part]
    assert [each.loss for each in few] != [each.loss for each in whole]


def test_it_goes_on_until_the_target_and_says_where_that_is_out_of_reach():
    model = network(feed_forward, WORDS, blocks=4)
    plan = choose_blocks(model, WORDS, target={"parameters": 0.6})
    before, after = plan.costs
    assert after.parameters <= 0.6 * before.parameters
    with pytest.warns(UserWarning, match="out of reach"):
        choose_blocks(model, WORDS, target={"parameters": 0.01})


def test_blocks_are_named_by_themselves_or_by_a_layer_inside():
    model = network(feed_forward, WORDS, blocks=3)
    blocks, reasons = chosen_blocks(model, ["sum_0", "last_sum_1"], keep="sum_0")
    assert list(blocks) == ["sum_1"]
    assert "to be kept" in reasons["sum_0"]
    assert "not among" in reasons["sum_2"]
    with pytest.raises(ValueError, match="'sum_9' is no block"):
        chosen_blocks(model, "sum_9")


def digits_network(blocks=4):
    """`(model, data, validation)`: a trained residual network on ten digits."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x, y = (found.data / 16).astype("float32"), found.target
    inputs = keras.Input((64,))
    hidden = layers.Dense(32, "relu")(inputs)
    for number in range(blocks):
        hidden = feed_forward_of(hidden, number)
    model = keras.Model(inputs, layers.Dense(10, "softmax", name="out")(hidden))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x[:1200], y[:1200], epochs=8, verbose=0)
    return model, (x[:1200], y[:1200]), (x[1200:], y[1200:])


def feed_forward_of(x, number):
    branch = layers.Dense(32, name=f"end_{number}")(layers.Dense(64, "relu")(x))
    return layers.Add(name=f"sum_{number}")([x, branch])


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("epochs", [0, 1])
def test_a_search_takes_out_blocks_while_accuracy_stays(epochs):
    model, data, validation = digits_network()
    result = prune_model(model, data, validation, remove="blocks", epochs=epochs)
    assert result.removed
    assert set(result.removed) <= {f"sum_{number}" for number in range(4)}
    predicted = result.model.predict(validation[0], verbose=0).argmax(1)
    before = model.predict(validation[0], verbose=0).argmax(1)
    drop = np.mean(before == validation[1]) - np.mean(predicted == validation[1])
    assert drop <= 0.01 + 1e-9
    costs = [step.parameters for step in result.steps if step.accepted]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] == result.model.count_params()
    if not epochs:  # all of it is made anew from the original
        again = remove_blocks(model, list(result.removed), data, batch_size=128)
        assert again.count_params() == result.model.count_params()


@pytest.mark.slow
@pytest.mark.tensorflow
def test_a_search_for_blocks_goes_on_until_its_target_and_heeds_names():
    model, data, validation = digits_network()
    result = prune_model(
        model, data, validation, remove="blocks", epochs=0, target={"parameters": 0.5}, keep="sum_0"
    )
    assert result.target_met
    assert "sum_0" not in result.removed
    assert result.reasons["sum_0"] == "it is to be kept"
    assert result.model.count_params() <= 0.5 * model.count_params()
    with pytest.raises(ValueError, match="'sum_9' is no block"):
        prune_model(model, data, validation, remove="blocks", layers=["sum_9"])
    with pytest.raises(ValueError, match="refit=False is for layers"):
        prune_model(model, data, validation, remove="blocks", refit=False)


def test_what_a_model_inside_holds_of_the_model_around_it_stays():
    """It is called later than the model inside, and is not gone."""
    inside = keras.Input((8,))
    block = keras.Model(inside, layers.Dense(8, name="end")(inside), name="block")
    inputs = keras.Input((8,))
    shared = layers.Dense(8, "relu", name="branch")
    x = block(inputs)
    x = layers.Add(name="sum")([x, layers.Dense(8, "relu")(x)])
    model = keras.Model(inputs, shared(x))
    block.friend = shared
    with pytest.warns(UserWarning, match="nothing is refitted"):
        smaller = remove_blocks(model, "sum")
    assert smaller.get_layer("block").friend is smaller.get_layer("branch")


def test_branches_of_a_layer_that_is_called_elsewhere_are_blocks():
    dense, inputs = layers.Dense(8, "relu", name="shared"), keras.Input((8,))
    x = layers.Add(name="one")([inputs, dense(inputs)])
    x = layers.Add(name="two")([x, dense(x)])
    blocks, reasons = find_blocks(keras.Model(inputs, layers.Dense(2, name="out")(x)))
    assert list(blocks) == ["one", "two"]
    assert not reasons


def test_both_branches_of_a_sum_can_go():
    inputs = keras.Input((6, 6, 4))
    x = conv(4, activation="relu", name="first")(inputs)
    branch = conv(4, 1)(conv(7, activation="relu")(x))
    x = layers.Add(name="sum")([conv(4, name="short")(x), branch])
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(layers.ReLU()(x)))
    assert find_blocks(model)[0]["sum"].form == "projection"
    smaller = remove_blocks(model, ["sum", "short"], IMAGES)
    first = keras.Model(inputs, model.get_layer("first").output).predict(IMAGES)
    np.testing.assert_allclose(smaller.predict(IMAGES), first.mean(axis=(1, 2)), atol=1e-5)


def test_what_is_inside_a_block_goes_with_it():
    model = network(basic, IMAGES, blocks=1)
    last = model.get_layer("last_sum_0")  # next to nothing comes of the branch
    last.gamma.assign(np.full(4, 1e-6))
    last.beta.assign(np.zeros(4))
    (inside,) = [
        block.path
        for block in find_blocks(model)[0].values()
        if block.form == "convolution" and "last_sum_0" in block.members
    ]
    plan = choose_blocks(model, IMAGES, stand_in=None, blocks=["sum_0", inside])
    assert [part.path for part in plan.parts] == ["sum_0"]
    assert plan.reasons[inside] == "it is inside sum_0, and goes with it"


def test_what_a_block_saves_is_what_the_model_without_it_does_not_have():
    for block, x in ((feed_forward, WORDS), (gated, IMAGES)):
        model = network(block, x, blocks=1)
        plan = choose_blocks(model, x, blocks=["sum_0"])
        before, after = plan.costs
        saves = plan.parts[0].saves
        assert saves.parameters == before.parameters - after.parameters
        assert saves.flops == before.flops - after.flops


def test_neighbours_whose_middle_is_taken_elsewhere_have_each_their_own():
    model = network(feed_forward, WORDS, blocks=3)
    model = keras.Model(model.inputs, [model.outputs[0], model.get_layer("sum_1").output])
    smaller = remove_blocks(model, ["sum_1", "sum_2"], WORDS)
    assert smaller.get_layer("sum_2_linear").input is smaller.get_layer("sum_1_linear").output


@pytest.mark.tensorflow  # products in float32, as JAX has them here, leave more than the ridge
def test_what_the_data_leave_open_passes_through_a_stand_in():
    model = network(feed_forward, WORDS)
    few = WORDS[:1]  # five places of eight features
    with pytest.warns(UserWarning, match="takes 8 features, and the calibration data have 5"):
        smaller = remove_blocks(model, "sum_0", few)
    # Of features of a spread of 1, what no difference of the data points to.
    around_mean = few[0] - few[0].mean(axis=0)
    *_, across = np.linalg.svd(around_mean / np.sum(around_mean**2, axis=0))[2][4:]
    kernel = ops.convert_to_numpy(smaller.get_layer("sum_0_linear").kernel)
    np.testing.assert_allclose(across @ kernel, across, atol=1e-3)  # the ridge, float32


def test_members_are_those_of_the_branch_alone():
    blocks, _ = find_blocks(network(basic, IMAGES))
    graph_of_both = [set(blocks[name].calls) for name in ("sum_0", "sum_1")]
    assert [len(calls) for calls in graph_of_both] == [6, 6]  # five layers and the sum
    assert not graph_of_both[0] & graph_of_both[1]
