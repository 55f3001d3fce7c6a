"""Layers of all kinds refitted to what they did, against `numpy.linalg.lstsq` on rows made here."""

import itertools
import warnings

import keras
import numpy as np
import pytest
from keras import layers

from keras_layer_entropy.measures.gram import fit_to, ridge_regression, ridge_regression_of_few
from keras_layer_entropy.pruning import repair
from keras_layer_entropy.pruning.units import remove_units

# The regressions are NumPy's; what differs between backends is run by the examples and by
# `test_rows_of_transposed_convolutions_are_those_of_every_backend`.
tensorflow = pytest.mark.tensorflow


def array(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor), np.float64)


def value(model, name, x):
    inner = keras.Model(model.inputs, model.get_layer(name).output)
    return array(inner(x))


def with_ones(rows, layer):
    return np.hstack([rows, np.ones((len(rows), 1))]) if layer.bias is not None else rows


def best_fit(rows, target):
    return rows @ np.linalg.lstsq(rows, target, rcond=None)[0]


def agree(found, best, target):
    """To 1e-4 of the size of the target: products are summed in float32."""
    np.testing.assert_allclose(found, best, atol=1e-4 * np.sqrt((target**2).mean()))


def rows_of_transposed(layer, x):
    """For each place o and tap t the input i with `o + before = stride i + dilation t`, or 0."""
    taps, strides, dilations = layer.kernel_size, layer.strides, layer.dilation_rate
    if layer.data_format == "channels_first":
        x = np.moveaxis(x, 1, -1)
    sizes = x.shape[1:-1]
    reach = [(k - 1) * d + 1 for k, d in zip(taps, dilations, strict=True)]
    if layer.padding == "same":
        given = [n * s for n, s in zip(sizes, strides, strict=True)]
        before = [max(r - s, 0) // 2 for r, s in zip(reach, strides, strict=True)]
    else:
        given = [(n - 1) * s + max(r, s) for n, s, r in zip(sizes, strides, reach, strict=True)]
        before = [0] * len(sizes)
    found = np.zeros((len(x), *given, *taps, x.shape[-1]))
    for place in itertools.product(*map(range, given)):
        for tap in itertools.product(*map(range, taps)):
            there = [
                (o + b - t * d, s)
                for o, b, t, d, s in zip(place, before, tap, dilations, strides, strict=True)
            ]
            index = tuple(n // s for n, s in there)
            if all(n % s == 0 for n, s in there) and all(
                0 <= i < n for i, n in zip(index, sizes, strict=True)
            ):
                found[(slice(None), *place, *tap)] = x[(slice(None), *index)]
    return found.reshape(-1, np.prod(taps) * x.shape[-1])


def rows_of_separable(layer, x):
    """What a depthwise kernel gives, without padding."""
    kernel = array(layer.depthwise_kernel)
    *taps, channels, each = kernel.shape
    sizes = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:-1], taps, layer.strides, strict=True)]
    found = 0.0
    for tap in itertools.product(*map(range, taps)):
        index = [
            slice(t, t + (n - 1) * s + 1, s)
            for t, n, s in zip(tap, sizes, layer.strides, strict=True)
        ]
        found = found + x[(slice(None), *index)][..., None] * kernel[tap]
    return found.reshape(-1, channels * each)


KINDS = {
    "transposed": ((5, 5, 3), rows_of_transposed,
                   lambda: layers.Conv2DTranspose(4, 3, strides=2)),
    "transposed_same": ((5, 5, 3), rows_of_transposed,
                        lambda: layers.Conv2DTranspose(4, (3, 2), strides=2, padding="same",
                                                       use_bias=False)),
    "transposed_steps": ((8, 3), rows_of_transposed,
                         lambda: layers.Conv1DTranspose(4, 2, strides=3)),
    "transposed_volumes": ((4, 4, 4, 2), rows_of_transposed,
                           lambda: layers.Conv3DTranspose(4, 2)),
    "separable": ((8, 8, 3), rows_of_separable,
                  lambda: layers.SeparableConv2D(4, 3, strides=2, depth_multiplier=2)),
    "separable_steps": ((9, 3), rows_of_separable,
                        lambda: layers.SeparableConv1D(4, 3, use_bias=False)),
    "two_axes": ((4, 5), lambda layer, x: x.reshape(-1, np.prod(x.shape[2:])),
                 lambda: layers.EinsumDense("abcd,cde->abe", (None, 4), bias_axes="e")),
}  # fmt: skip


def maker(kind, shape):
    if kind == "two_axes":
        return layers.EinsumDense("abc,cde->abde", (None, 6, 3), activation="tanh", name="a")
    rank = len(shape) - 1
    make = {1: layers.Conv1D, 2: layers.Conv2D, 3: layers.Conv3D}[rank]
    return make(6, 2, activation="tanh", name="a")


@tensorflow
@pytest.mark.parametrize("kind", KINDS)
def test_the_refit_is_least_squares(kind, random):
    shape, rows_of, make = KINDS[kind]
    inputs = keras.Input(shape)
    model = keras.Model(inputs, make()(maker(kind, shape)(inputs)))
    x = random.normal(size=(60, *shape)).astype("float32")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        smaller = remove_units(model, {"a": [0, 3]}, x)
    layer = smaller.layers[-1]
    rows = with_ones(rows_of(layer, value(smaller, "a", x)), layer)
    target = array(model(x)).reshape(len(rows), -1)
    best = best_fit(rows, target)
    agree(array(smaller(x)).reshape(best.shape), best, target)
    assert np.abs(best - target).max() > 0.01  # there is something to lose


@tensorflow
@pytest.mark.parametrize("kind", ["transposed", "two_axes"])
def test_shares_of_what_they_take(kind, random):
    """A copy of another unit goes first, and nothing is lost."""
    shape, _, make = KINDS[kind]
    inputs = keras.Input(shape)
    model = keras.Model(inputs, make()(maker(kind, shape)(inputs)))
    kernel = array(model.get_layer("a").kernel)
    if kind == "two_axes":
        kernel[:, 4] = kernel[:, 1]
    else:
        kernel[..., 4] = kernel[..., 1]
    model.get_layer("a").kernel.assign(kernel)
    x = random.normal(size=(60, *shape)).astype("float32")
    smaller = remove_units(model, {"a": 0.17}, x)
    agree(array(smaller(x)), array(model(x)), array(model(x)))


@pytest.mark.parametrize(
    ("padding", "dilation", "stride"), [("same", 1, 2), ("valid", 2, 1), ("same", 1, 3)]
)
def test_rows_of_transposed_convolutions_are_those_of_every_backend(
    padding, dilation, stride, random
):
    """To rounding of float32."""
    from keras_layer_entropy.pruning import patches

    layer = layers.Conv2DTranspose(
        4, (3, 2), strides=stride, padding=padding, dilation_rate=dilation
    )
    x = random.normal(size=(2, 4, 5, 3)).astype("float32")
    try:
        expected = keras.ops.convert_to_numpy(layer(x)).reshape(-1, 4)
    except Exception as error:
        if "do not yet support dilation" not in str(error):
            raise
        pytest.skip("TensorFlow has no dilated transposed convolutions on this processor.")
    found = rows_of_transposed(layer, x) @ patches.matrix(layer)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    rows = keras.ops.convert_to_numpy(patches.rows(layer, x))
    np.testing.assert_allclose(rows, rows_of_transposed(layer, x), atol=1e-5)


@tensorflow
@pytest.mark.parametrize("gone", [{"a": [0, 3]}, {"a": [0, 3], "b": [2, 3]}])
def test_each_group_is_a_regression(gone, random):
    inputs = keras.Input((7, 7, 3))
    x = layers.Conv2D(6, 1, activation="tanh", name="a")(inputs)
    x = layers.Conv2D(8, 1, activation="relu", name="b")(x)
    model = keras.Model(inputs, layers.Dense(2)(layers.Conv2D(12, 2, groups=4, name="g")(x)))
    x = random.normal(size=(40, 7, 7, 3)).astype("float32")
    smaller = remove_units(model, gone, x)
    layer, given, left = smaller.get_layer("g"), value(smaller, "b", x), [0, 1, 2, 3]
    if "b" in gone:
        left = [0, 2, 3]
    assert layer.groups == len(left)
    for place, group in enumerate(left):
        channels = given[..., 2 * place : 2 * place + 2]
        taps = [channels[:, i : i + 6, j : j + 6] for i in (0, 1) for j in (0, 1)]
        rows = with_ones(np.stack(taps, axis=-2).reshape(-1, 8), layer)
        target = value(model, "g", x)[..., 3 * group : 3 * group + 3].reshape(-1, 3)
        found = value(smaller, "g", x)[..., 3 * place : 3 * place + 3].reshape(-1, 3)
        agree(found, best_fit(rows, target), target)


def siamese(deeper=False):
    """Two towers of the same layers, of which one may have a layer before."""
    first, second = keras.Input((5,)), keras.Input((5,))
    encoder = layers.Dense(8, "tanh", name="a")
    head = layers.Dense(3, "tanh", name="head")
    given = layers.Dense(5, name="before")(second) if deeper else second
    towers = [head(encoder(x)) for x in (first, given)]
    return keras.Model([first, second], layers.Concatenate(name="both")(towers))


@tensorflow
@pytest.mark.parametrize("deeper", [False, True])
@pytest.mark.parametrize("units", [[1, 4, 6], 0.375])
def test_a_layer_of_two_towers_is_fitted_to_both(deeper, units, random):
    model = siamese(deeper)
    x = [random.normal(size=(70, 5)).astype("float32") for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        smaller = remove_units(model, {"a": units}, x)
    assert smaller.get_layer("a").units == 5
    given = [x[0], value(smaller, "before", x) if deeper else x[1]]
    hidden = [array(smaller.get_layer("a")(part)) for part in given]
    rows = np.vstack([np.hstack([part, np.ones((70, 1))]) for part in hidden]).astype(np.float64)
    outputs = array(model(x))
    target = np.arctanh(np.vstack([outputs[:, :3], outputs[:, 3:]]))
    found = array(smaller(x))
    found = np.arctanh(np.vstack([found[:, :3], found[:, 3:]]))
    agree(found, best_fit(rows, target), target)


@tensorflow
def test_calls_that_depend_on_one_another_are_not_refitted(random):
    inputs = keras.Input((5,))
    x = layers.Dense(6, "tanh", name="a")(inputs)
    again = layers.Dense(6, "tanh", name="again")
    model = keras.Model(inputs, layers.Dense(2, name="out")(again(again(x))))
    data = random.normal(size=(50, 5)).astype("float32")
    with pytest.warns(UserWarning, match="again is not refitted: it is called several times, on"):
        smaller = remove_units(model, {"a": [0]}, data)
    inner = keras.Model(smaller.inputs, smaller.layers[-1].input)
    rows = with_ones(array(inner(data)), smaller.layers[-1])
    target = array(model(data))
    # The ridge of 1e-6 is seen where features are much alike.
    np.testing.assert_allclose(array(smaller(data)), best_fit(rows, target), atol=1e-3)


def ridge_by_lstsq(x, z, ridge):
    """The ridge regression on standardised features as least squares with more rows."""
    centre, size = x.mean(0), np.sqrt(((x - x.mean(0)) ** 2).sum(0))
    standard = (x - centre) / np.where(size > 0, size, 1.0)
    rows = np.vstack([standard, np.sqrt(ridge) * np.eye(x.shape[1])])
    target = np.vstack([z - z.mean(0), np.zeros((x.shape[1], z.shape[1]))])
    kernel = np.linalg.lstsq(rows, target, rcond=None)[0] / np.where(size > 0, size, 1.0)[:, None]
    return kernel, z.mean(0) - centre @ kernel


@pytest.mark.parametrize("ridge", [1e-6, 0.1])
def test_regressions_on_fewer_samples_than_features(ridge, random):
    """Of features that come in blocks, one of which never changes. To the rounding of what lstsq
    squares: the condition number of its rows is 1e3."""
    x = random.normal(size=(30, 5000)) + 3.0
    x[:, 7] = 2.0
    z = random.normal(size=(30, 3))
    kernel, bias = ridge_by_lstsq(x[:, :400], z, ridge)
    fit = ridge_regression_of_few(x[:, :400], z, ridge)
    np.testing.assert_allclose(fit.kernel, kernel, atol=1e-9)
    np.testing.assert_allclose(fit.bias, bias, atol=1e-8)
    whole = ridge_regression_of_few(x, z, ridge)
    np.testing.assert_allclose(whole.kernel[7], 0.0)
    rest = z - x @ whole.kernel - whole.bias
    expected = (rest**2).sum() / ((z - z.mean(0)) ** 2).sum()
    assert whole.residual == pytest.approx(expected, rel=1e-6)
    assert fit_to(whole.kernel, x, z).residual == pytest.approx(expected, rel=1e-6)
    # What samples leave open is as in the kernel that is given to begin with.
    start = random.normal(size=(400, 3))
    kernel, _ = ridge_by_lstsq(x[:, :400], z - x[:, :400] @ start, ridge)
    columns = np.hstack([x[:, :400], np.ones((30, 1)), z])
    found = ridge_regression_of_few(x[:, :400], z, ridge, start=start)
    other = ridge_regression(columns.T @ columns, 400, ridge, start=start)
    np.testing.assert_allclose(found.kernel, start + kernel, atol=1e-9)
    np.testing.assert_allclose(other.kernel, start + kernel, atol=1e-6)
    with pytest.raises(ValueError, match="not finite"):
        ridge_regression_of_few(x * np.nan, z)
    with pytest.raises(ValueError, match="no samples"):
        ridge_regression_of_few(x[:0], z[:0])


@tensorflow
@pytest.mark.parametrize("use_bias", [True, False])
def test_wide_layers_are_fitted_to_few_samples(use_bias, random, monkeypatch):
    """As with the matrix of features times features, on other samples, too: both in float64 of rows
    in float32, with a ridge of 1e-6."""
    inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(6, 1, activation="tanh", name="a")(inputs)
    x = layers.Flatten(name="flat")(x)
    model = keras.Model(inputs, layers.Dense(3, name="out", use_bias=use_bias)(x))
    x = random.normal(size=(50, 4, 4, 3)).astype("float32")
    others = random.normal(size=(50, 4, 4, 3)).astype("float32")
    words = "out takes 64 features, and the calibration data have 50 samples"
    with pytest.warns(UserWarning, match=words):
        wide = remove_units(model, {"a": [0, 3]}, x)
    monkeypatch.setattr(repair, "WIDEST", 60)
    with pytest.warns(UserWarning, match=words):
        found = remove_units(model, {"a": [0, 3]}, x)
    for data in (x, others):
        np.testing.assert_allclose(array(found(data)), array(wide(data)), atol=2e-3)
    monkeypatch.setattr(repair, "WIDEST", 40)
    words = "more than 40 features, and the calibration data have more than 40 samples"
    with pytest.warns(UserWarning, match=words):
        remove_units(model, {"a": [0, 3]}, x)


@tensorflow
@pytest.mark.parametrize("tower", [0, 1])
def test_shares_of_what_two_towers_take(tower, random):
    """A unit that one tower never has is missed by the other."""
    model = siamese()
    encoder, head = model.get_layer("a"), model.get_layer("head")
    kernel = array(encoder.kernel)
    kernel[:, 3] = [0, 0, 0, 0, 1.0]
    kernel[4, [0, 1, 2, 4, 5, 6, 7]] = 0.0
    encoder.kernel.assign(kernel)
    head.kernel.assign(np.ones((8, 3)))
    x = [random.normal(size=(70, 5)).astype("float32") for _ in range(2)]
    x[tower][:, 4] = 0.0
    left = array(remove_units(model, {"a": 0.5}, x).get_layer("a").kernel)
    assert (left == kernel[:, [3]]).all(axis=0).any()


@tensorflow
@pytest.mark.parametrize("widest", [8192, 60])
def test_few_samples_leave_the_rest_as_it_was(widest, random, monkeypatch):
    """Other samples come out better than without a refit, though the features are more numbers."""
    inputs = keras.Input((4, 4, 3))
    x = layers.Flatten()(layers.Conv2D(6, 1, activation="relu", name="a")(inputs))
    model = keras.Model(inputs, layers.Dense(3, name="out")(x))
    monkeypatch.setattr(repair, "WIDEST", widest)
    x, others = random.normal(size=(2, 40, 4, 4, 3)).astype("float32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        refitted, plain = remove_units(model, {"a": [0, 3]}, x), remove_units(model, {"a": [0, 3]})
    missed = [((array(m(others)) - array(model(others))) ** 2).mean() for m in (refitted, plain)]
    assert missed[0] < missed[1]
