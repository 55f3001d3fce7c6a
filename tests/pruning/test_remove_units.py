"""Units taken out of models of many kinds, against the same model with these units zeroed."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_layer_entropy import choose_units, load_model, save_model
from keras_layer_entropy.pruning import patches, repair, unit_criteria, walking
from keras_layer_entropy.pruning.channels import find_channels
from keras_layer_entropy.pruning.reconstruction import Taker, least_missed
from keras_layer_entropy.pruning.rewrite import thinned
from keras_layer_entropy.pruning.units import remove_units

# All of it is calls of Keras; on other backends the example of `remove_units` runs it.
pytestmark = pytest.mark.tensorflow


class Zeroed:
    """Zeroes some units along the last axis of a tensor, or does nothing."""

    def __init__(self, gone=(), on=True):
        self._gone, self._on = list(gone), on

    def __call__(self, x, each=1, axis=-1):
        if not self._on:
            return x
        mask = np.ones(x.shape[axis] // each)
        mask[self._gone] = 0.0
        shape = [1] * len(x.shape)
        shape[axis] = -1
        return x * np.repeat(mask, each).reshape(shape).astype(x.dtype)


def conv(name="a", units=6, **options):
    return layers.Conv2D(units, 3, padding="same", name=name, **options)


def out(x):
    return layers.Dense(3, name="out")(layers.GlobalAveragePooling2D()(x))


# Each builds a model from a function that zeroes units: where it stands, the units are visible.
def plain_dense(zero):
    inputs = keras.Input((5,))
    return inputs, layers.Dense(3)(zero(layers.Dense(6, "tanh", name="a")(inputs)))


def normalised(zero):
    inputs = keras.Input((8, 8, 3))
    x = layers.ReLU()(layers.BatchNormalization()(conv()(inputs)))
    return inputs, out(layers.Conv2D(4, 3)(zero(x)))


def without_bias(zero):
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(scale=False)(conv(use_bias=False)(inputs))
    return inputs, out(layers.Conv2D(4, 1, use_bias=False)(zero(layers.Activation("elu")(x))))


def depthwise(zero):
    inputs = keras.Input((8, 8, 3))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, activation="relu")(conv()(inputs))
    return inputs, out(layers.Conv2D(4, 1)(zero(x, each=2)))


def depthwise_as_groups(zero):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, groups=6, strides=2)(conv()(inputs))
    return inputs, out(layers.Conv2D(4, 1)(zero(x)))


def separable(zero):
    inputs = keras.Input((8, 8, 3))
    return inputs, out(layers.SeparableConv2D(4, 3, depth_multiplier=2)(zero(conv()(inputs))))


def made_by_separable(zero):
    inputs = keras.Input((8, 8, 3))
    return inputs, out(zero(layers.SeparableConv2D(6, 3, name="a")(inputs)))


def transposed(zero):
    inputs = keras.Input((8, 8, 3))
    x = zero(layers.Conv2DTranspose(6, 3, strides=2, name="a", activation="relu")(inputs))
    return inputs, out(layers.Conv2DTranspose(4, 3)(x))


def prelu(zero):
    inputs = keras.Input((8, 8, 3))
    x = layers.PReLU(alpha_initializer="normal", shared_axes=[1, 2])(conv()(inputs))
    return inputs, out(zero(layers.PReLU(alpha_initializer="normal")(x)))


def flattened(zero):
    inputs = keras.Input((4, 4, 3))
    x = layers.Flatten()(layers.MaxPooling2D()(zero(conv()(inputs))))
    return inputs, layers.Dense(3)(layers.Dropout(0.5)(x))


def reshaped(zero):
    inputs = keras.Input((4, 4, 3))
    x = layers.Reshape((4 * 4, 6))(zero(conv()(inputs)))
    return inputs, layers.Dense(3)(layers.Reshape((16 * 6,))(layers.Permute((2, 1))(x)))


def reshaped_by_ops(zero):
    inputs = keras.Input((4, 4, 3), batch_size=2)
    x = ops.reshape(zero(conv()(inputs)), (2, 16, 6))
    x = ops.transpose(x, (0, 2, 1)) * 2.0
    return inputs, layers.Dense(3)(layers.Flatten()(x))


def residual(zero):
    inputs = keras.Input((8, 8, 3))
    x = zero(conv("a")(inputs))
    x = layers.Add()([x, zero(conv("b")(layers.ReLU()(x)))])
    return inputs, out(layers.ZeroPadding2D()(layers.UpSampling2D()(x)))


def concatenated(zero):
    inputs = keras.Input((8, 8, 3))
    x = layers.Concatenate()([conv("b", 4)(inputs), zero(conv("a")(inputs)), inputs])
    return inputs, out(layers.Cropping2D()(x))


def gated(zero):
    inputs = keras.Input((8, 8, 3))
    x = zero(conv()(inputs))
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(6, 1, activation="sigmoid", name="gate")(layers.Conv2D(2, 1)(gate))
    return inputs, out(layers.Multiply()([x, gate]))


def embedded(zero):
    inputs = keras.Input((7,), dtype="int32")
    x = zero(layers.Embedding(10, 6, name="a")(inputs))
    x = layers.Conv1D(4, 3, padding="causal", dilation_rate=2)(x)
    return inputs, layers.Dense(3)(layers.GlobalMaxPooling1D()(x))


def einsum(zero):
    inputs = keras.Input((7, 5))
    x = zero(layers.EinsumDense("abc,cd->abd", (None, 6), bias_axes="d", name="a")(inputs))
    x = layers.EinsumDense("...c,cd->...d", 4, activation="gelu")(x)
    return inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x))


def nested(zero):
    inputs = keras.Input((5,))
    inner = keras.Sequential([keras.Input((5,)), layers.Dense(6, "relu", name="a")], name="block")
    behind = keras.Sequential([keras.Input((6,)), layers.Dense(4, "relu", name="b")], name="next")
    return inputs, layers.Dense(3)(behind(zero(inner(inputs))))


def volumes(zero):
    inputs = keras.Input((4, 4, 4, 2))
    x = zero(layers.Conv3D(6, 2, name="a")(inputs))
    x = layers.Conv3DTranspose(4, 2)(layers.Cropping3D(1)(x))
    return inputs, layers.Dense(3)(layers.GlobalAveragePooling3D()(x))


def tokens_mixed(zero):
    """A Mixer's block: units along two axes of one tensor."""
    inputs = keras.Input((5, 4))
    x = layers.Permute((2, 1))(layers.Dense(6, name="channels")(inputs))
    x = layers.Dense(5)(zero(layers.Dense(6, "gelu", name="a")(x)))
    return inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(layers.Permute((2, 1))(x)))


SAME = (
    *(plain_dense, normalised, without_bias, depthwise, depthwise_as_groups, separable),
    *(made_by_separable, transposed, prelu, flattened, reshaped, reshaped_by_ops, residual),
    *(concatenated, gated, embedded, einsum, nested, volumes, tokens_mixed),
)


def built(build, zero, random=None, like=None):
    """A model with weights that are all random, moving statistics too, or with those of another."""
    keras.utils.clear_session()  # so that names are the same
    model = keras.Model(*build(zero))
    if like is None:
        for variable in model.variables:
            if "seed" not in variable.path:
                value = random.normal(size=variable.shape)
                variable.assign(np.abs(value) + 0.5 if "variance" in variable.path else value)
    else:
        twins = {variable.path: variable for variable in like.variables}
        for variable in model.variables:
            variable.assign(np.array(twins[variable.path]))
    return model


def data_for(model, random, samples=2):
    (tensor,) = model.inputs
    shape = (samples, *tensor.shape[1:])
    if "int" in tensor.dtype:
        return random.integers(0, 10, shape)
    return random.normal(size=shape)


def path_of(model, name):
    (path,) = [p for p in find_channels(model).makers if p.split("/")[-1] == name]
    return path


def quietly(model, units, *data, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return remove_units(model, units, *data, **options)


@pytest.mark.slow
@pytest.mark.parametrize("build", SAME, ids=lambda build: build.__name__)
def test_what_is_left_is_as_if_units_were_zero(build, random, float64, tmp_path):
    """To rounding in float64; a control: the outputs without zeroing are others."""
    gone = [1, 2, 4]
    model = built(build, Zeroed(on=False), random)
    zeroed = built(build, Zeroed(gone), like=model)
    smaller = quietly(model, {path_of(model, "a"): gone})
    x = data_for(model, random)
    found, expected = np.asarray(smaller(x)), np.asarray(zeroed(x))
    spread = expected.std()
    np.testing.assert_allclose(found, expected, atol=1e-9 * max(spread, 1.0))
    assert np.abs(np.asarray(model(x)) - expected).max() > 1e-3 * spread
    assert smaller.count_params() < model.count_params()
    assert [layer.name for layer in smaller.layers] == [layer.name for layer in model.layers]

    save_model(smaller, tmp_path / "m.keras")
    again = load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(np.asarray(again(x)), found, rtol=1e-12)
    again.compile("adam", "mse")
    again.fit(x, np.zeros(found.shape), verbose=0)


def grouped(zero):
    """Two groups of three channels, which make two units each."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, groups=2, name="grouped")(zero(conv()(inputs)))
    return inputs, out(x * (np.array([1.0, 1, 0, 0]) if zero._on else 1.0))


def group_normalised(zero):
    inputs = keras.Input((8, 8, 3))
    return inputs, out(zero(layers.GroupNormalization(2)(conv()(inputs))))


@pytest.mark.slow
@pytest.mark.parametrize("build", [grouped, group_normalised])
def test_groups_go_as_one(build, random, float64):
    gone = [3, 4, 5]
    model = built(build, Zeroed(on=False), random)
    zeroed = built(build, Zeroed(gone), like=model)
    x = data_for(model, random)
    smaller = quietly(model, {"a": gone})
    np.testing.assert_allclose(np.asarray(smaller(x)), np.asarray(zeroed(x)), atol=1e-9)
    with pytest.raises(ValueError, match=r"Units 3, 4 and 5 of 'a' go together.*but 3 are named"):
        remove_units(model, {"a": [3]})


@pytest.mark.parametrize("kind", ["LayerNormalization", "RMSNormalization"])
def test_normalisations_over_units_are_of_what_remains(kind, random, float64):
    inputs = keras.Input((5,))
    x = getattr(layers, kind)(name="norm")(layers.Dense(6, name="a")(inputs))
    model = keras.Model(inputs, layers.Dense(3, name="out")(x))
    for variable in model.variables:
        variable.assign(random.normal(size=variable.shape))
    smaller, kept = quietly(model, {"a": [0, 5]}), [1, 2, 3, 4]
    x = data_for(model, random)
    h = np.asarray(model.get_layer("a")(x))[:, kept]
    norm = model.get_layer("norm")
    if kind == "RMSNormalization":
        h = h / np.sqrt((h**2).mean(1, keepdims=True) + norm.epsilon)
        h = h * np.asarray(norm.scale)[kept]
    else:
        h = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + norm.epsilon)
        h = h * np.asarray(norm.gamma)[kept] + np.asarray(norm.beta)[kept]
    kernel, bias = map(np.asarray, model.get_layer("out").weights)
    np.testing.assert_allclose(np.asarray(smaller(x)), h @ kernel[kept] + bias, atol=1e-9)


def test_shared_layers_lose_the_same_units_in_every_call(random, float64):
    first, second = keras.Input((5,)), keras.Input((5,))
    encoder, head = layers.Dense(6, "tanh", name="a"), layers.Dense(3, name="head")
    outputs = layers.Subtract()([head(encoder(first)), head(encoder(second))])
    model = keras.Model([first, second], outputs)
    kernel = np.array(head.kernel)
    smaller = quietly(model, {"a": [2]})
    kernel[2] = 0.0
    head.kernel.assign(kernel)
    x = list(random.normal(size=(2, 4, 5)))
    np.testing.assert_allclose(np.asarray(smaller(x)), np.asarray(model(x)), atol=1e-9)


def test_layers_that_are_tied(random):
    """Compared with what one reads off the pictures: by hand, for four small networks."""

    def groups(build):
        model = keras.Model(*build(Zeroed(on=False)))
        found, channels = {}, find_channels(model)
        for path in channels.makers:
            if not channels.reasons(path):
                found.setdefault(channels.roots(path)[0], set()).add(path)
        return sorted(map(sorted, found.values()))

    assert groups(residual) == [["a", "b"]]
    assert groups(gated) == [["a", "gate"], ["conv2d"]] or groups(gated)[0] == ["a", "gate"]
    assert groups(concatenated) == [["a"], ["b"]]
    assert ["a"] in groups(tokens_mixed)


def frozen(make, units=6):
    """Why unit 0 of a layer has to stay, before what `make` does."""
    inputs = keras.Input((4, 5))
    x = make(layers.Dense(units, name="a")(inputs))
    model = keras.Model(inputs, layers.Dense(3, name="out")(x))
    return find_channels(model).reasons("a").get(0)


def in_two(x):
    """An operation that counts: halves of what there is."""
    first, second = ops.split(x, 2, axis=-1)
    return ops.concatenate([ops.relu(first), ops.tanh(second)], axis=-1)


def in_two_by_code(x):
    half = x.shape[-1] // 2
    return ops.concatenate([ops.relu(x[..., :half]), ops.tanh(x[..., half:])], axis=-1)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (in_two, "depends on how many there are"),
        (lambda x: layers.Lambda(in_two_by_code)(x), "depends on how many there are"),
        (lambda x: layers.Lambda(lambda t: t, output_shape=(4, 6))(x), "depends on how many"),
        (lambda x: x * layers.Dense(1)(x), None),
        (lambda x: layers.Softmax(axis=1)(x), None),
        (lambda x: ops.clip(x, -0.5, 0.5), None),
        (lambda x: layers.ReLU(threshold=2.0)(x), None),
        (lambda x: ops.matmul(x, ops.transpose(x, (0, 2, 1))), "it mixes them"),
        (lambda x: layers.Softmax()(x), "softmax takes it, and it mixes them"),
        (lambda x: layers.UnitNormalization()(x), "it mixes them"),
        (lambda x: ops.mean(x, axis=-1, keepdims=True), "it mixes them"),
        (lambda x: x + np.arange(6.0, dtype="float32"), "depends on how many there are"),
        (lambda x: layers.Rescaling(list(np.arange(6.0)))(x), "depends on how many there are"),
        (lambda x: layers.ConvLSTM1D(4, 1)(x[..., None]), "cannot be thinned: it is a ConvLSTM1D"),
        (lambda x: x[..., :3] * x[..., 3:], "depends on how many there are"),
    ],
)  # fmt: skip
def test_units_that_have_to_stay(make, reason):
    found = frozen(make)
    assert found is None if reason is None else reason in found


@pytest.mark.parametrize("make", [in_two, lambda x: layers.Lambda(in_two_by_code)(x)])
def test_operations_that_count_units(make):
    """Of eight units every other one may go and the halves are halves still; not one alone."""
    assert "depends on how many there are" in frozen(make, units=8)


def test_functions_inside_layers_that_mix_units():
    inputs = keras.Input((5,))
    x = layers.Dense(6, "softmax", name="a")(inputs)
    model = keras.Model(inputs, layers.Dense(3, name="out")(x))
    assert find_channels(model).reasons("a")[0] == (
        "the activation function of a mixes it with others"
    )
    assert find_channels(model).reasons("out")[2] == "it is an output of the model"


# What is refitted.
REFITTED = {
    "dense": ((5,), lambda: layers.Dense(4)),
    "one_by_one": ((6, 6, 3), lambda: layers.Conv2D(4, 1)),
    "same": ((7, 6, 3), lambda: layers.Conv2D(4, 3, padding="same", strides=2)),
    "valid": ((9, 8, 3), lambda: layers.Conv2D(4, (3, 2), dilation_rate=2)),
    "without_bias": ((6, 6, 3), lambda: layers.Conv2D(4, 3, use_bias=False)),
    "causal": ((12, 3), lambda: layers.Conv1D(4, 3, padding="causal", dilation_rate=2)),
    "steps": ((12, 3), lambda: layers.Conv1D(4, 3, strides=3, padding="same")),
    "volumes": ((4, 4, 4, 2), lambda: layers.Conv3D(4, 2, padding="same")),
    "einsum": ((7, 5), lambda: layers.EinsumDense("abc,cd->abd", (None, 4), bias_axes="d")),
}  # fmt: skip


def maker(shape):
    rank = len(shape) - 1
    if rank < 2:
        return layers.Dense(6, "tanh", name="a")
    return {2: layers.Conv2D, 3: layers.Conv3D}[rank](6, 2, activation="tanh", name="a")


def patches_of(layer, x):
    """What a kernel is multiplied with, by convolutions that pick one number each."""
    if isinstance(layer, layers.Dense | layers.EinsumDense):
        return x.reshape(-1, x.shape[-1])
    taps = layer.kernel.shape[:-1]
    pick = np.eye(int(np.prod(taps)), dtype=x.dtype).reshape(*taps, -1)
    options = {"padding": layer.padding}
    if layer.padding == "causal":
        reach = (layer.kernel_size[0] - 1) * layer.dilation_rate[0]
        x, options = np.pad(x, [(0, 0), (reach, 0), (0, 0)]), {"padding": "valid"}
    found = np.asarray(
        ops.conv(x, pick, strides=layer.strides, dilation_rate=layer.dilation_rate, **options)
    )
    return found.reshape(-1, found.shape[-1])


@pytest.mark.parametrize("kind", REFITTED)
def test_the_refit_is_least_squares(kind, random):
    """Fitted values are those of `numpy.linalg.lstsq` on the same rows, to 1e-4 of their size:
    the products are summed in float32."""
    shape, make = REFITTED[kind]
    inputs = keras.Input(shape)
    model = keras.Model(inputs, make()(maker(shape)(inputs)))
    x = random.normal(size=(80, *shape)).astype("float32")
    smaller = remove_units(model, {"a": [0, 3]}, x)
    layer = smaller.layers[-1]
    given = np.asarray(smaller.layers[-2](x))
    rows = patches_of(layer, given).astype(np.float64)
    if layer.bias is not None:
        rows = np.hstack([rows, np.ones((len(rows), 1))])
    target = np.asarray(model(x), np.float64).reshape(len(rows), -1)
    best = rows @ np.linalg.lstsq(rows, target, rcond=None)[0]
    found = np.asarray(smaller(x)).reshape(best.shape)
    np.testing.assert_allclose(found, best, atol=1e-4 * np.sqrt((target**2).mean()))
    assert np.abs(best - target).max() > 0.01  # there is something to lose


def test_the_last_layer_of_a_branch_makes_up_for_the_sum(random):
    """Its target is the sum as it was minus what else is in it now, through a normalisation."""
    dense = layers.Dense
    inputs = keras.Input((6,))
    start = dense(8, name="start")(inputs)
    first = layers.Add(name="first")([start, dense(8, name="b")(dense(9, "relu", name="a")(start))])
    branch = dense(8, name="d", use_bias=False)(dense(9, "relu", name="c")(first))
    branch = layers.BatchNormalization(name="norm")(branch)
    model = keras.Model(inputs, dense(3, name="out")(layers.Add(name="sum")([branch, first])))
    for variable in model.get_layer("norm").variables:
        variable.assign(0.5 + random.uniform(size=variable.shape))
    x = random.normal(size=(300, 6)).astype("float32")
    smaller = remove_units(model, {"a": list(range(5)), "c": [0, 1]}, x)

    def value(network, name):
        inner = keras.Model(network.inputs, network.get_layer(name).output)
        return np.asarray(inner(x), np.float64)

    rows = np.hstack([value(smaller, "c"), np.ones((300, 1))])
    wanted = value(model, "sum") - value(smaller, "first")
    best = rows @ np.linalg.lstsq(rows, wanted, rcond=None)[0]
    np.testing.assert_allclose(value(smaller, "norm"), best, atol=1e-3)
    plain = value(model, "norm")  # what a fit to the branch alone would aim at
    assert np.abs(wanted - plain).max() > 0.1


def test_later_layers_make_up_for_earlier_ones(random):
    """A layer behind, which lost nothing itself, is fitted to what it is given now."""
    dense = layers.Dense
    model = keras.Sequential([
        keras.Input((5,)), dense(12, "relu", name="a"), dense(4, "relu", name="b"),
        dense(3, name="out"),
    ])  # fmt: skip
    x = random.normal(size=(400, 5)).astype("float32")
    smaller = remove_units(model, {"a": 0.5}, x)
    hidden = keras.Model(smaller.inputs, smaller.get_layer("b").output)(x)
    rows = np.hstack([np.asarray(hidden, np.float64), np.ones((400, 1))])
    best = rows @ np.linalg.lstsq(rows, np.asarray(model(x), np.float64), rcond=None)[0]
    np.testing.assert_allclose(np.asarray(smaller(x)), best, atol=1e-3)


def test_what_a_unit_costs_is_what_least_squares_loses(random):
    """One after the other, for blocks of three features, against regressions without them."""
    x = random.normal(size=(200, 15)) @ random.normal(size=(15, 15))
    x -= x.mean(0)
    kernel = random.normal(size=(15, 4))
    z = x @ kernel
    owners = np.tile(np.arange(5), 3)
    order = least_missed([Taker(x.T @ x, kernel, owners)], [([0, 1, 2, 3, 4], 3)])

    def lost(units):
        rows = x[:, ~np.isin(owners, units)]
        rest = z - rows @ np.linalg.lstsq(rows, z, rcond=None)[0]
        return (rest**2).sum() / (z**2).sum()

    gone = []
    for unit, cost in order:
        costs = {u: lost([*gone, u]) - lost(gone) for u in range(5) if u not in gone}
        assert unit == min(costs, key=costs.get)
        # A ridge of 1e-6 of standardised features.
        assert cost == pytest.approx(costs[unit], rel=1e-2)
        gone.append(unit)


def test_a_share_takes_what_is_missed_least(random):
    """Units that others can replace go first: copies, and those that nothing comes of."""
    dense = layers.Dense
    model = keras.Sequential([keras.Input((6,)), dense(8, "relu", name="a"), dense(3, name="out")])
    kernel, bias = map(np.array, model.get_layer("a").weights)
    kernel[:, 5], bias[5] = 2.0 * kernel[:, 2], 2.0 * bias[2]
    kernel[:, 6] = 0.0
    model.get_layer("a").set_weights([kernel, bias])
    x = random.normal(size=(500, 6)).astype("float32")
    smaller = remove_units(model, {"a": 0.25}, x)
    np.testing.assert_allclose(np.asarray(smaller(x)), np.asarray(model(x)), atol=1e-3)
    left = np.asarray(smaller.get_layer("a").kernel)
    assert left.shape == (6, 6)
    assert not (left == 0).all(axis=0).any()


def test_a_share_by_magnitude(random):
    inputs = keras.Input((6,))
    x = layers.Dense(8, name="a")(inputs)
    x = layers.Add()([x, layers.Dense(8, name="b")(x)])
    model = keras.Model(inputs, layers.Dense(3)(x))
    # `a` makes the units, `b` their second share of the sum.
    norms = np.sqrt(sum(
        (np.asarray(model.get_layer(name).kernel, np.float64) ** 2).sum(axis=0) for name in "ab"
    ))  # fmt: skip
    data = random.normal(size=(50, 6)).astype("float32")
    with pytest.warns(UserWarning, match="Tied to a, and thinned with it: b"):
        smaller = remove_units(model, {"a": 0.5}, data, criterion="magnitude")
    kept = np.sort(np.argsort(norms)[4:])
    np.testing.assert_array_equal(
        np.asarray(smaller.get_layer("a").kernel), np.asarray(model.get_layer("a").kernel)[:, kept]
    )


def test_a_share_of_units_that_several_layers_take(random):
    """A residual stream: chosen by what all that take it would miss together."""
    inputs = keras.Input((6,))
    x = layers.Dense(10, name="a")(inputs)
    x = layers.Add()([x, layers.Dense(10, name="c")(layers.Dense(5, "relu", name="b")(x))])
    model = keras.Model(inputs, layers.Dense(3, name="out")(x))
    data = random.normal(size=(300, 6)).astype("float32")
    with pytest.warns(UserWarning, match="Tied to a, and thinned with it: c"):
        smaller = remove_units(model, {"a": 0.4, "b": 0.4}, data)
    widths = [smaller.get_layer(name).units for name in "abc"]
    assert widths == [6, 3, 6]
    # Ten numbers of six inputs: what is left can still be told.
    assert (
        np.corrcoef(np.asarray(smaller(data)).ravel(), np.asarray(model(data)).ravel())[0, 1] > 0.9
    )


OPTIMIZERS = [
    *("SGD", "Adam", "AdamW", "Adamax", "Nadam", "RMSprop", "Adagrad", "Adadelta", "Ftrl"),
    *("Lion", "Lamb", "Adafactor", "Muon"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_slots_are_cut_like_their_weights(name, random):
    make = getattr(keras.optimizers, name)
    optimizer = make(momentum=0.9) if name == "SGD" else make()
    dense = layers.Dense
    model = keras.Sequential([
        keras.Input((6,)), dense(6, "relu", name="a"), dense(6, "relu", name="b"), dense(2),
    ])  # fmt: skip
    model.compile(optimizer, "mse")
    x, y = random.normal(size=(64, 6)).astype("float32"), np.zeros((64, 2), "float32")
    model.fit(x, y, verbose=0)
    smaller = quietly(model, {"a": [1, 4]})
    kept = [0, 2, 3, 5]
    seen = 0
    for old, new in zip(model.optimizer.variables, smaller.optimizer.variables, strict=True):
        value, found = np.asarray(old), np.asarray(new)
        if value.shape != found.shape:
            seen += 1
            axes = [
                i for i, (n, m) in enumerate(zip(value.shape, found.shape, strict=True)) if n != m
            ]
            for axis in axes:
                value = np.take(value, kept, axis=axis)
        np.testing.assert_array_equal(found, value, err_msg=old.path)
        assert value.size < 2 or np.any(value) or "_v" in old.path
    assert seen >= 2
    smaller.fit(x, y, verbose=0)


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ({"a": [6]}, "'a' has the units 0 to 5; there is no unit 6"),
        ({"a": [-1]}, "there is no unit -1"),
        ({"a": [0, 1, 2, 3, 4, 5]}, "names all 6 units: some have to stay"),
        ({"a": []}, "expected a list of indices, or a share, a float"),
        ({"a": 3}, "expected a list of indices, or a share, a float"),
        ({"a": [0.5]}, "expected a list of indices, or a share, a float"),
        ({"a": 1.0}, "expected a share between 0 and 1, of 6 units at least one and not all"),
        ({"a": 0.01}, "expected a share between 0 and 1"),
        ({"out": 0.5}, "'out' cannot be thinned: it is an output of the model"),
        ({"out": [0]}, "Unit 0 of 'out' has to stay: it is an output of the model"),
        ({"nowhere": [0]}, "nowhere"),
        ({"flat": [0]}, r"'flat' makes no units that could be taken out\."),
        ({"group": [0]}, "out of it alone: they go with those of the layer before it, name that"),
        ({}, "expected a dict"),
        (["a"], "expected a dict"),
        ({"a": 0.5, "b": 0.3}, "'a' and 'b' are tied, .* 0.5 and 0.3 are given: name one of them"),
        ({"a": [0], "b": [1]}, "Units 0 and 1 of 'a' go together, or with layers that are tied"),
    ],
)  # fmt: skip
def test_bad_units_are_one_clear_error(units, message):
    inputs = keras.Input((4,))
    x = layers.Dense(6, name="a")(inputs)
    x = layers.Add()([x, layers.Dense(6, name="b")(x)])
    x = layers.GroupNormalization(3, name="group")(x)
    model = keras.Model(inputs, layers.Dense(2, name="out")(layers.Flatten(name="flat")(x)))
    with pytest.raises(ValueError, match=message), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        remove_units(model, units, np.zeros((4, 4)))


def test_bad_data_are_one_clear_error(random):
    dense = layers.Dense
    model = keras.Sequential([keras.Input((4,)), dense(6, "relu", name="a"), dense(2, name="out")])
    weights = model.get_weights()
    x = random.normal(size=(50, 4)).astype("float32")
    with pytest.raises(ValueError, match="Without calibration_data= nothing tells which units"):
        remove_units(model, {"a": 0.5})
    with pytest.warns(UserWarning, match="Without calibration_data= nothing is refitted"):
        remove_units(model, {"a": [0]})
    with pytest.raises(ValueError, match="not finite"):
        remove_units(model, {"a": 0.5}, np.full_like(x, np.nan))
    for bad in (np.nan, np.inf):
        one_bad = np.where(np.arange(50)[:, None] == 7, bad, x)
        with pytest.raises(ValueError, match="What 'out' is given is not finite"):
            choose_units(model, one_bad, target={"flops": 0.5})
    with pytest.raises(ValueError, match="model='model.keras'; expected a keras.Model"):
        remove_units("model.keras", {"a": 0.5}, x)
    with pytest.raises(ValueError, match="criterion='taste'; expected one of"):
        remove_units(model, {"a": 0.5}, x, criterion="taste")
    subclassed = type("Mine", (keras.Model,), {"call": lambda self, x: x})()
    with pytest.raises(ValueError, match="is a subclassed model"):
        remove_units(subclassed, {"a": 0.5}, x)
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def at_most(features, monkeypatch):
    """Layers that take more features, and are given more samples or places, are not refitted."""
    for module in (repair, unit_criteria):
        monkeypatch.setattr(module, "WIDEST", features)


def test_what_cannot_be_refitted_is_told(random, monkeypatch):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="wide")(conv()(inputs))
    model = keras.Model(inputs, out(x))
    data = random.normal(size=(10, 8, 8, 3)).astype("float32")
    at_most(40, monkeypatch)
    with pytest.warns(UserWarning, match="wide is not refitted: .*more than 40 features.*places"):
        remove_units(model, {"a": [0]}, data)
    with pytest.raises(ValueError, match="No layer that could be refitted takes what 'a' makes"):
        remove_units(model, {"a": 0.5}, data)


@pytest.mark.slow
def test_mobilenet_without_a_third_of_all_units(random, float64):
    """Every group thinned, all statistics random: as the network with the kernels zeroed."""

    def network():
        return keras.applications.MobileNetV2(input_shape=(32, 32, 3), weights=None, classes=7,
                                              classifier_activation=None)  # fmt: skip

    model, zeroed = network(), network()
    for variable in model.variables:
        if len(variable.shape) == 1:
            value = random.uniform(0.5, 1.5, variable.shape)
            variable.assign(value if "variance" in variable.path else value - 1.0)
    zeroed.set_weights(model.get_weights())
    channels, gone = find_channels(model), []
    for path in channels.makers:
        if not channels.reasons(path):
            roots = np.unique(channels.roots(path))
            gone += (
                random.permutation(roots)[: len(roots) // 3].tolist()
                if not set(roots) & set(gone)
                else []
            )
    smaller = thinned(model, channels, np.array(gone))
    twins = {variable.path: variable for variable in zeroed.variables}
    for part in channels.slices:
        if part.variable.path.endswith("kernel") and not part.makes:
            value = np.moveaxis(np.array(twins[part.variable.path]), part.axis, 0)
            value[np.isin(channels.ties.roots(part.ids), gone)] = 0.0
            twins[part.variable.path].assign(np.moveaxis(value, 0, part.axis))
    x = random.normal(size=(4, 32, 32, 3))
    found, expected = np.asarray(smaller(x)), np.asarray(zeroed(x))
    np.testing.assert_allclose(found, expected, atol=1e-9 * expected.std())
    assert np.abs(np.asarray(model(x)) - expected).max() > expected.std(axis=0).max()
    assert smaller.count_params() < 0.55 * model.count_params()


def test_choices_by_a_mask_tie_what_is_chosen_from():
    inputs, mask = keras.Input((7, 5)), keras.Input((7, 1), dtype="bool")
    a, b = (layers.Dense(6, "tanh", name=name)(inputs) for name in "ab")
    model = keras.Model([inputs, mask], layers.Dense(3)(ops.where(mask, a, b)))
    channels = find_channels(model)
    np.testing.assert_array_equal(channels.roots("a"), channels.roots("b"))


def test_a_gate_of_one_unit_ties_nothing(random, float64):
    inputs = keras.Input((7, 5))
    x = layers.Dense(6, "tanh", name="a")(inputs)
    x = layers.Multiply()([x, layers.Dense(1, "sigmoid", name="gate")(x)])
    model = keras.Model(inputs, layers.Dense(3, name="out")(x))
    smaller = quietly(model, {"a": [1, 3]})
    for name in ("gate", "out"):
        kernel = np.array(model.get_layer(name).kernel)
        kernel[[1, 3]] = 0.0
        model.get_layer(name).kernel.assign(kernel)
    x = data_for(model, random)
    np.testing.assert_allclose(np.asarray(smaller(x)), np.asarray(model(x)), atol=1e-9)


def test_units_along_two_axes_that_are_folded_into_one_stay():
    inputs = keras.Input((5, 4))
    x = layers.Permute((2, 1))(layers.Dense(6, name="a")(inputs))
    x = layers.Flatten()(layers.Dense(3, name="b")(x))
    channels = find_channels(keras.Model(inputs, layers.Dense(2)(x)))
    for name in "ab":
        assert set(channels.reasons(name).values()) == {
            "flatten takes it, and it folds it together with units along another axis"
        }


def test_weights_that_an_operation_takes_stay_as_they_are():
    inputs = keras.Input((5,))
    b = layers.Dense(6, name="b")
    hidden = b(inputs)
    outputs = [layers.Dense(3)(layers.Dense(6)(inputs) + b.bias), layers.Dense(2)(hidden)]
    reasons = find_channels(keras.Model(inputs, outputs)).reasons("b")
    assert len(reasons) == 6
    assert "takes weights of b" in reasons[0]


def test_no_layer_loses_all_of_its_units(random):
    inputs = keras.Input((5,))
    halves = [layers.Dense(3, name=name)(inputs) for name in "ac"]
    x = layers.Add()([layers.Concatenate()(halves), layers.Dense(6, name="b")(inputs)])
    model = keras.Model(inputs, layers.Dense(3)(x))
    x = random.normal(size=(40, 5)).astype("float32")
    for data in (None, x):
        with pytest.raises(ValueError, match="'a' would lose all of its units"):
            quietly(model, {"b": [0, 1, 2]}, data)


def test_a_share_of_what_can_go_only_together(random):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, groups=2)(conv()(inputs))
    model = keras.Model(inputs, out(x))
    x = random.normal(size=(4, 8, 8, 3)).astype("float32")
    with pytest.raises(ValueError, match="Of 'a' 3 units go together: 2, which the share is"):
        quietly(model, {"a": 0.34}, x)

    inputs = keras.Input((5,))
    x = ops.pad(layers.Dense(4, name="small")(inputs), [(0, 0), (0, 2)])
    model = keras.Model(inputs, layers.Dense(3)(x + layers.Dense(6, name="b")(inputs)))
    x = random.normal(size=(40, 5)).astype("float32")
    with pytest.raises(ValueError, match="Of 'b' only 4 units may go, and the share is 5 of them"):
        quietly(model, {"b": 0.83}, x)


def least_squares(rows, target):
    """What is left of a target, relative, once a linear function of rows and 1 is taken off."""
    rows = np.hstack([rows, np.ones((len(rows), 1))]).astype(np.float64)
    rest = target - rows @ np.linalg.lstsq(rows, target, rcond=None)[0]
    return (rest**2).sum() / ((target - target.mean(0)) ** 2).sum()


def relative(found, target):
    return ((found - target) ** 2).sum() / ((target - target.mean(0)) ** 2).sum()


def test_units_that_another_takes_who_cannot_be_refitted(random, monkeypatch):
    """They are chosen before, so that what is behind the other is fitted to what it gives then."""
    inputs = keras.Input((8, 8, 3))
    x = conv("a", 12, activation="relu")(inputs)
    both = [
        layers.Conv2D(4, 1, activation="relu", name="p")(x),
        layers.Conv2D(8, 3, padding="same", activation="relu", name="t")(x),
    ]
    both = layers.GlobalAveragePooling2D(name="pool")(layers.Concatenate()(both))
    model = keras.Model(inputs, layers.Dense(3)(both))
    x = random.normal(size=(60, 8, 8, 3)).astype("float32")
    at_most(50, monkeypatch)
    with pytest.warns(UserWarning, match="t is not refitted"):
        smaller = remove_units(model, {"a": 0.5}, x)
    rows = np.asarray(keras.Model(smaller.inputs, smaller.get_layer("pool").output)(x))
    target = np.asarray(model(x), np.float64)
    best = least_squares(rows, target)
    assert relative(np.asarray(smaller(x)), target) < best + 0.01


@pytest.mark.parametrize("kind", [layers.LayerNormalization, layers.GroupNormalization])
def test_normalisations_without_weights(kind, random):
    options = {"groups": 1} if kind is layers.GroupNormalization else {}
    inputs = keras.Input((8,))
    x = kind(center=False, scale=False, **options)(layers.Dense(16, "relu", name="a")(inputs))
    model = keras.Model(inputs, layers.Dense(4)(x))
    model.get_layer("a").bias.assign(np.arange(16) / 4.0)
    x = random.normal(size=(400, 8)).astype("float32")
    smaller = remove_units(model, {"a": 0.5}, x)
    rows = np.asarray(keras.Model(smaller.inputs, smaller.layers[-2].output)(x))
    target = np.asarray(model(x), np.float64)
    found = relative(np.asarray(smaller(x)), target)
    assert found < least_squares(rows, target) + 1e-3


@pytest.mark.parametrize("on_processor", [True, False])
def test_large_means_leave_small_deviations(on_processor, random, monkeypatch):
    """Products of means of 300 would leave nothing of deviations of 1 in float32."""
    monkeypatch.setattr(patches, "_CHEAP", 0)  # as of many features
    monkeypatch.setattr(patches, "on_processor", lambda: on_processor)  # else by Keras
    inputs = keras.Input((32, 32, 16))
    shift = keras.initializers.Constant(300.0)
    x = layers.Conv2D(64, 1, activation="relu", name="a", bias_initializer=shift)(inputs)
    model = keras.Model(inputs, layers.Conv2D(16, 1)(x))
    x = random.normal(size=(64, 32, 32, 16)).astype("float32")
    smaller = remove_units(model, {"a": [0]}, x)
    target = np.asarray(model(x), np.float64).reshape(-1, 16)
    # 63 numbers of 16 inputs: what is missing can be made up for.
    assert relative(np.asarray(smaller(x)).reshape(-1, 16), target) < 1e-3


def test_normalisations_that_are_not_over_units_take_no_bias(random):
    dense = layers.Dense
    inputs = keras.Input((6, 5))
    x = dense(6, use_bias=False, name="b")(dense(6, "relu", name="a")(inputs))
    x = layers.BatchNormalization(axis=1, name="norm")(x)
    model = keras.Model(inputs, dense(3)(layers.Flatten()(x)))
    data = random.normal(size=(200, 6, 5)).astype("float32")
    smaller = remove_units(model, {"a": [0, 1]}, data)
    for name, other in zip(model.get_layer("norm").weights, smaller.get_layer("norm").weights,
                           strict=True):  # fmt: skip
        np.testing.assert_array_equal(np.asarray(name), np.asarray(other))


def test_normalisations_of_others_too_take_no_bias(random):
    dense = layers.Dense
    inputs, norm = keras.Input((5,)), layers.BatchNormalization()
    outputs = [norm(dense(6, use_bias=False)(dense(6, "relu", name=name)(inputs))) for name in "ac"]
    model = keras.Model(inputs, outputs)
    x = random.normal(size=(100, 5)).astype("float32")
    smaller = remove_units(model, {"a": [0, 1]}, x)
    np.testing.assert_allclose(np.asarray(smaller(x)[1]), np.asarray(model(x)[1]), atol=1e-6)


def test_constraints_are_kept(random):
    inputs = keras.Input((5,))
    x = layers.Dense(12, "relu", name="a")(inputs)
    x = layers.Dense(3, kernel_constraint="non_neg", name="out")(x)
    model = keras.Model(inputs, x)
    model.get_layer("out").kernel.assign(np.abs(random.normal(size=(12, 3))))
    x = random.normal(size=(200, 5)).astype("float32")
    with pytest.warns(UserWarning, match="weights of out were projected onto their constraint, No"):
        smaller = remove_units(model, {"a": 0.5}, x)
    assert np.asarray(smaller.get_layer("out").kernel).min() >= 0
    # The bias is the best one for that kernel.
    rest = np.asarray(model(x)) - np.asarray(smaller(x))
    np.testing.assert_allclose(rest.mean(0), 0.0, atol=1e-4)


def test_few_samples_are_told(random):
    dense = layers.Dense
    model = keras.Sequential([keras.Input((8,)), dense(32, "relu", name="a"), dense(3, name="out")])
    x = random.normal(size=(16, 8)).astype("float32")
    with pytest.warns(UserWarning, match="out takes 28 features, and the calibration data have 16"):
        remove_units(model, {"a": [0, 1, 2, 3]}, x)


class Counting(layers.Layer):
    """Counts its calls, as users' layers may."""

    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.calls.assign_add(1.0)
        return x


def test_nothing_of_the_model_moves(random):
    """Moving statistics, states, seeds, counters, losses."""
    inputs = keras.Input((4, 5), batch_size=8)
    x = layers.Dense(6, "relu", name="a", activity_regularizer="l2")(inputs)
    x = layers.BatchNormalization()(x, training=True)
    x = layers.Dropout(0.5)(layers.Dense(6, name="b")(x), training=True)
    x = layers.LSTM(4, stateful=True)(Counting()(x))
    model = keras.Model(inputs, layers.Dense(3)(x))
    before = [np.array(v) for layer in model.layers for v in layer.variables]
    states = [np.array(s) for s in model.layers[-2].states]
    attributes = [set(vars(layer)) for layer in model.layers]
    x = random.normal(size=(24, 4, 5)).astype("float32")
    smaller = quietly(model, {"a": [0, 1]}, x)
    after = [np.array(v) for layer in model.layers for v in layer.variables]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(states, model.layers[-2].states, strict=True):
        np.testing.assert_array_equal(one, np.array(other))
    assert attributes == [set(vars(layer)) for layer in model.layers]
    assert model.losses == []
    counted = next(layer for layer in smaller.layers if isinstance(layer, Counting))
    assert float(counted.calls) == 0.0


@pytest.mark.parametrize("wanted", [[0, 1, 2], 0.34])
def test_layers_behind_a_group_normalisation_are_refitted(wanted, random):
    inputs = keras.Input((8, 8, 3))
    x = layers.GroupNormalization(2)(conv("first")(inputs))
    x = layers.GroupNormalization(3)(conv("a", 9)(x))
    model = keras.Model(inputs, out(layers.Conv2D(4, 3)(x)))
    x = random.normal(size=(20, 8, 8, 3)).astype("float32")
    smaller = remove_units(model, {"a": wanted}, x)
    assert smaller.get_layer("a").filters == 6


def test_sums_that_spread_one_of_their_terms(random):
    first, second = keras.Input((12, 5)), keras.Input((1, 5))
    dense = layers.Dense
    added = dense(6)(dense(8, "relu", name="b")(second))
    model = keras.Model([first, second], dense(3)(layers.Add()([dense(6, name="a")(first), added])))
    x = [random.normal(size=(30, n, 5)).astype("float32") for n in (12, 1)]
    smaller = quietly(model, {"b": 0.5, "a": [0]}, x)  # a list of one array for each input
    assert smaller(x).shape == (30, 12, 3)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision(policy, random):
    """Two residual blocks; the outputs stay near, to what half precision leaves."""
    keras.config.set_dtype_policy(policy)
    try:
        inputs = x = keras.Input((6,))
        x = layers.Dense(8)(x)
        for name in "ab":
            branch = layers.Dense(8)(layers.Dense(12, "relu", name=name)(x))
            x = layers.Add()([x, branch])
        model = keras.Model(inputs, layers.Dense(3, dtype="float32")(x))
    finally:
        keras.config.set_dtype_policy("float32")
    data = random.normal(size=(300, 6)).astype("float32")
    smaller = remove_units(model, {"a": 0.5, "b": 0.5}, data)
    assert relative(np.asarray(smaller(data)), np.asarray(model(data))) < 0.05


def test_units_along_another_axis_than_the_last(random):
    inputs = keras.Input((5, 4))
    x = layers.Permute((2, 1))(layers.Dense(6, "gelu", name="a")(layers.Permute((2, 1))(inputs)))
    x = layers.Permute((2, 1))(layers.Dense(4, "relu", name="b")(x))
    model = keras.Model(inputs, layers.Dense(3, name="out")(x))
    data = random.normal(size=(100, 5, 4)).astype("float32")
    smaller = remove_units(model, {"a": [0, 3]}, data)
    rows = np.asarray(keras.Model(smaller.inputs, smaller.layers[-2].output)(data))
    target = np.asarray(model(data), np.float64).reshape(-1, 3)
    found = relative(np.asarray(smaller(data)).reshape(-1, 3), target)
    assert found < least_squares(rows.reshape(-1, 4), target) + 1e-3


def test_models_of_a_fixed_batch_size(random):
    inputs = keras.Input((5,), batch_size=4)
    model = keras.Model(inputs, layers.Dense(3)(layers.Dense(6, "relu", name="a")(inputs)))
    smaller = quietly(
        model, {"a": 0.5}, random.normal(size=(10, 5)).astype("float32"), batch_size=4
    )
    assert smaller.inputs[0].shape == (4, 5)


def test_memory_that_patches_take_is_bounded(random, monkeypatch):
    """One sample at a time gives what all at once give, but for the order of sums."""
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, out(layers.Conv2D(4, 3)(conv(activation="relu")(inputs))))
    x = random.normal(size=(30, 8, 8, 3)).astype("float32")
    whole = remove_units(model, {"a": [0, 1]}, x)
    monkeypatch.setattr(patches, "_MOST", 2000)
    assert patches.at_a_time(model.layers[2], x[..., [0] * 6]) == 1
    pieces = remove_units(model, {"a": [0, 1]}, x)
    np.testing.assert_allclose(np.asarray(pieces(x)), np.asarray(whole(x)), atol=1e-4)


def test_activations_that_are_too_large_lie_in_files(random, monkeypatch):
    """The same numbers to the last bit; a masked sequence, too, whose masks stay in memory."""
    inputs = keras.Input((12,), dtype="int32")
    x = layers.Embedding(20, 6, mask_zero=True)(inputs)
    x = layers.Dense(8, "relu", name="b")(layers.LSTM(5)(layers.Dense(6, name="a")(x)))
    model = keras.Model(inputs, layers.Dense(3, name="c")(x))
    data, units = random.integers(0, 20, (300, 12)), {"a": [0, 1], "b": [2]}
    whole = quietly(model, units, data)
    files, made = np.memmap, []
    monkeypatch.setattr(walking, "MOST", 10_000)
    monkeypatch.setattr(np, "memmap", lambda *args, **kw: made.append(1) or files(*args, **kw))
    found = quietly(model, units, data)
    assert len(made) > 10
    for one, other in zip(found.weights, whole.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_requests_that_contradict_each_other(random):
    inputs = keras.Input((5,))
    block = keras.Sequential([keras.Input((5,)), layers.Dense(6, name="a")], name="block")
    x = layers.Add()([block(inputs), layers.Dense(6, name="b")(inputs)])
    model = keras.Model(inputs, layers.Dense(3)(x))
    x = random.normal(size=(40, 5)).astype("float32")
    with pytest.raises(ValueError, match="names 'block/a' twice"):
        quietly(model, {"a": [0], "block/a": [1]}, x)
    with pytest.raises(ValueError, match="Units of 'b', or of layers tied to it, are named"):
        quietly(model, {"a": [0, 1], "b": 0.5}, x)
    both = quietly(model, {"a": np.float32(0.5), "b": 0.5}, x)
    assert both.get_layer("b").units == 3
    assert quietly(model, {"a": range(2), "b": {0, 1}}, x).get_layer("b").units == 4


def test_a_nested_model_that_was_opened(random, tmp_path):
    """Keras has built a Sequential model of two layers in it twice, and tracks both graphs."""
    inputs = keras.Input((5,))
    block = keras.Sequential([keras.Input((5,)), layers.Dense(6, "relu", name="a")], name="block")
    two = [layers.Dense(4, name="b"), layers.Dense(3, name="c")]
    behind = keras.Sequential([keras.Input((6,)), *two], name="next")
    keras.Model(inputs, behind(block(inputs))).save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    x = random.normal(size=(40, 5)).astype("float32")
    smaller = quietly(model, {"block/a": [0, 3]}, x)
    assert smaller.get_layer("next").get_layer("b").kernel.shape == (4, 4)
    assert smaller.count_params() == 5 * 4 + 4 + 4 * 4 + 4 + 4 * 3 + 3
