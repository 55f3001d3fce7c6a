"""Make the fixtures in `keras2/`: small models as Keras 2 saves them.

To make them all again, or only some kinds of them:

    pip install -e '.[test]'
    python tests/model_files/make_keras2_fixtures.py
    python tests/model_files/make_keras2_fixtures.py cnn lstm

It needs tf_keras, which is Keras 2 for TensorFlow 2.16 and newer. The kinds `tf215_*` and `tf212_*`
come from older releases; the script makes them where such a release is installed, in a virtual
environment of its own:

    pip install 'tensorflow==2.15.*' 'numpy<2'    # or 'tensorflow==2.12.*'
    python tests/model_files/make_keras2_fixtures.py

The kinds `tf24_*` have the layout from before TensorFlow 2.5, which had no keras_metadata.pb. The
kinds `refused_*` hold code of their own, or no Keras model.

Each `<kind>.zip` holds one model, saved after a few training steps, and what it computes:

    saved_model/    TensorFlow SavedModel
    model.h5        HDF5
    model.keras     Keras's own zip archive; HDF5 again in TensorFlow 2.12
    data.npz
        x           inputs; x_0, x_1, ... in the order of `model.inputs` where there are several
        y_0, ...    `model.predict(x)`, in the order of `model.outputs`
        x_names, y_names    their keys, where they are dicts
      and where the model is compiled and draws no random numbers:
        targets     what it is trained on; targets_0, ... where there are several
        after_0, ...   the weights after one more `train_on_batch(x, targets)` from the saved state,
                       in the order of `model.weights`
        after_names    their names, `layer/variable`
        loss           what that `train_on_batch` returned: the loss, then the metrics
        loss_names     and their names

Files of the same content differ from run to run in times and in identifiers that Keras draws.
"""

import functools
import json
import os
import pathlib
import tempfile
import zipfile
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import app
from tensorflow import keras  # Loads on first use, after `main` chose Keras 2.

DIRECTORY = pathlib.Path(__file__).parent / "keras2"
SAMPLES = 6
STEPS = 3
# Name -> function that writes the files of the kind into a directory.
KINDS = {}
FORMATS = ("saved_model", "h5", "keras")
# Kinds that are made with older releases too.
ALSO_OLD = ("adam", "skip", "nested", "cnn", "lstm", "legacy_adam")


class Case(NamedTuple):
    model: Any
    x: Any
    # None: the model is not compiled.
    targets: Any = None


def register(name, make, **options):
    """Registers a function that returns a `Case`; the options are those of `write_case`."""
    KINDS[name] = functools.partial(write_case, make, **options)


def kind(**options):
    """Decorates a function for `register`."""

    def decorate(make):
        register(make.__name__, make, **options)
        return make

    return decorate


def write_case(
    make, directory, formats=FORMATS, traces=False, steps=STEPS, random=False, change=None
):
    """Writes the files of a `Case`.

    Args:
        make: () -> `Case`.
        directory: where to write.
        formats: those that Keras can write this model in.
        traces: whether the SavedModel holds traced functions, which is Keras's default.
        steps: how many training steps come before saving.
        random: whether training draws random numbers.
        change: takes the directory of the SavedModel and changes it.
    """
    model, x, targets = make()
    for _ in range(steps if targets is not None else 0):
        model.train_on_batch(x, targets)
    y = model.predict(x, verbose=0)
    data = numbered("x", x) | {f"y_{i}": wide(v) for i, v in enumerate(tf.nest.flatten(y))}
    data |= {f"{n}_names": sorted(v) for n, v in (("x", x), ("y", y)) if isinstance(v, dict)}
    if "saved_model" in formats:
        model.save(directory / "saved_model", save_format="tf", save_traces=traces)
    if "h5" in formats:
        model.save(directory / "model.h5", save_format="h5")
    if "keras" in formats:
        model.save(directory / "model.keras", save_format="keras")
    if change:
        change(directory / "saved_model")
    if targets is not None and not random:
        data |= numbered("targets", targets)
        data["loss"] = np.atleast_1d(model.train_on_batch(x, targets))
        data["loss_names"] = model.metrics_names
        data |= {f"after_{i}": wide(value) for i, value in enumerate(model.get_weights())}
        data["after_names"] = [weight.name.removesuffix(":0") for weight in model.weights]
    np.savez(directory / "data.npz", **data)


def numbered(name, values):
    """Arrays by name; only several ones are numbered."""
    values = tf.nest.flatten(values)
    if len(values) == 1:
        return {name: values[0]}
    return {f"{name}_{i}": value for i, value in enumerate(values)}


def wide(value):
    """The array, with no floats narrower than float32."""
    value = np.asarray(value)
    return value.astype("float32") if value.dtype.itemsize == 2 else value


def features(*shape):
    return np.random.normal(size=(SAMPLES, *shape)).astype("float32")


def tokens(length=7, vocabulary=11):
    """Integers; the rows end in zeros."""
    values = np.random.randint(1, vocabulary, size=(SAMPLES, length)).astype("int32")
    return np.where(np.arange(length) < np.arange(SAMPLES)[:, None] + 2, values, 0)


def classes(count=3):
    return np.random.randint(count, size=SAMPLES).astype("int32")


def regression(model, x):
    """The case of a model that learns random values."""
    model.compile(keras.optimizers.SGD(0.05), "mse")
    return Case(model, x, tf.nest.map_structure(lambda y: features(*y.shape[1:]), model.output))


def classification(layers, x, optimizer="adam"):
    """The case of a Sequential model of three classes."""
    model = keras.Sequential(layers)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Case(model, x, classes())


def stack(x, *layers):
    return regression(keras.Sequential([keras.Input(x.shape[1:], dtype=x.dtype), *layers]), x)


def graph(x, connect):
    """The case of a functional model; `connect` takes inputs like `x` and returns outputs."""
    inputs = tf.nest.map_structure(lambda a: keras.Input(a.shape[1:], dtype=a.dtype), x)
    return regression(keras.Model(inputs, connect(inputs)), x)


def side_by_side(x, *layers):
    """The case of a model in which each layer takes the model's inputs."""

    def connect(inputs):
        outputs = [keras.layers.Flatten()(layer(inputs)) for layer in layers]
        return keras.layers.Dense(2)(keras.layers.Concatenate()(outputs))

    return graph(x, connect)


def small_network(name, width=4):
    inputs = keras.Input((5,))
    hidden = keras.layers.Dense(6, "relu")(inputs)
    outputs = keras.layers.BatchNormalization()(keras.layers.Dense(width)(hidden))
    return keras.Model(inputs, outputs, name=name)


# Sequential models.


@kind(traces=True, random=True)
def mlp():
    layers = [
        keras.Input((5,)),
        keras.layers.Dense(8, "relu"),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(4, "tanh"),
        keras.layers.Dense(3, "softmax"),
    ]
    return classification(layers, features(5))


@kind()
def mlp_input_shape():
    layers = [
        keras.layers.Dense(6, "relu", input_shape=(5,)),
        keras.layers.Dense(3, "softmax"),
    ]
    return classification(layers, features(5))


@kind()
def mlp_called():
    """Its input shape comes from the data."""
    layers = [keras.layers.Dense(6, "relu"), keras.layers.Dense(3, "softmax")]
    return classification(layers, features(5))


@kind()
def mlp_not_compiled():
    layers = [
        keras.Input((5,)),
        keras.layers.Dense(6, "sigmoid", bias_initializer="normal"),
        keras.layers.Dense(3, bias_initializer="normal"),
    ]
    return Case(keras.Sequential(layers), features(5))


@kind(steps=0)
def mlp_not_trained():
    """Compiled, its optimizer never used."""
    layers = [keras.Input((5,)), keras.layers.Dense(6, "relu"), keras.layers.Dense(3, "softmax")]
    return classification(layers, features(5))


@kind()
def mlp_fixed_batch():
    layers = [
        keras.Input((5,), batch_size=SAMPLES, name="pixels"),
        keras.layers.Dense(6, "relu", name="hidden"),
        keras.layers.Dense(3, "softmax", name="label"),
    ]
    return classification(layers, features(5))


@kind()
def mlp_frozen():
    layers = [
        keras.Input((5,)),
        keras.layers.Dense(6, "relu", bias_initializer="normal", trainable=False),
        keras.layers.BatchNormalization(trainable=False),
        keras.layers.Dense(4, "relu", use_bias=False),
        keras.layers.BatchNormalization(center=False, scale=False, momentum=0.9),
        keras.layers.Dense(3, "softmax"),
    ]
    return classification(layers, features(5))


# Functional models.


@kind()
def skip():
    def connect(x):
        a = keras.layers.Dense(6, "relu")(x)
        b = keras.layers.Dense(6, "tanh")(a)
        return keras.layers.Dense(3)(keras.layers.Add()([a, b]))

    return graph(features(5), connect)


@kind()
def several():
    """Lists of inputs and outputs."""

    def connect(inputs):
        x = keras.layers.Concatenate()(inputs)
        x = keras.layers.Dense(6, "relu")(x)
        return [keras.layers.Dense(3)(x), keras.layers.Dense(2, "tanh")(x)]

    return graph([features(5), features(4)], connect)


@kind()
def several_named():
    """Dicts of inputs and outputs, of losses and metrics; not in alphabetical order."""
    inputs = {"width": keras.Input((5,), name="width"), "height": keras.Input((4,), name="height")}
    x = keras.layers.Concatenate()([inputs["width"], inputs["height"]])
    x = keras.layers.Dense(6, "relu")(x)
    outputs = {
        "score": keras.layers.Dense(2, name="score")(x),
        "label": keras.layers.Dense(3, "softmax", name="label")(x),
    }
    model = keras.Model(inputs, outputs)
    model.compile(
        "adam",
        loss={"label": "sparse_categorical_crossentropy", "score": keras.losses.Huber(0.5)},
        loss_weights={"label": 1.0, "score": 0.3},
        metrics={"label": ["accuracy"], "score": [keras.metrics.MeanAbsoluteError(name="error")]},
    )
    x = {"width": features(5), "height": features(4)}
    return Case(model, x, {"label": classes(), "score": features(2)})


@kind()
def shared_layer():
    def connect(inputs):
        shared = keras.layers.Dense(4, "tanh")
        return keras.layers.Dense(3)(keras.layers.Subtract()([shared(x) for x in inputs]))

    return graph([features(5), features(5)], connect)


@kind()
def names_with_slashes():
    def connect(x):
        x = keras.layers.Dense(6, "relu", name="block1/hidden")(x)
        x = keras.layers.BatchNormalization(name="block1/hidden/bn")(x)
        return keras.layers.Dense(3, name="block2/hidden")(x)

    return graph(features(5), connect)


@kind()
def merging():
    def connect(inputs):
        pairs = [
            layer(inputs)
            for layer in (
                keras.layers.Add(),
                keras.layers.Subtract(),
                keras.layers.Multiply(),
                keras.layers.Average(),
                keras.layers.Maximum(),
                keras.layers.Minimum(),
                keras.layers.Concatenate(axis=1),
            )
        ]
        dots = [
            keras.layers.Dot(axes=(2, 2))(inputs),
            keras.layers.Dot(axes=1, normalize=True)(inputs),
        ]
        outputs = [keras.layers.Flatten()(x) for x in pairs + dots]
        return keras.layers.Dense(2)(keras.layers.concatenate(outputs))

    return graph([features(3, 2), features(3, 2)], connect)


# Models in models.


@kind(traces=True)
def nested():
    """Functional in Sequential."""
    return stack(features(5), small_network("inner"), keras.layers.Dense(3))


@kind()
def nested_sequential_in_functional():
    def connect(x):
        inner = keras.Sequential(
            [keras.Input((5,)), keras.layers.Dense(6, "relu"), keras.layers.Dense(5)], name="inner"
        )
        return keras.layers.Dense(3)(keras.layers.Add()([x, inner(x)]))

    return graph(features(5), connect)


@kind()
def nested_outputs():
    """Models whose outputs are the model's: Sequential, functional, and the second call of one."""

    def connect(x):
        inner = keras.Sequential([keras.Input((5,)), keras.layers.Dense(5)], name="inner")
        return [inner(inner(x)), small_network("other", 3)(x)]

    return graph(features(5), connect)


@kind(traces=True)
def time_distributed_frozen():
    """Lists of weights in another order than Keras 3's; without traces they are not written."""
    inner = [keras.layers.Dense(3, trainable=False), keras.layers.Dense(3, "tanh")]
    return stack(
        features(4, 3),
        keras.layers.TimeDistributed(keras.Sequential([*inner, keras.layers.Dense(3)])),
        keras.layers.Bidirectional(keras.layers.LSTM(2)),
    )


@kind()
def frozen_attention():
    def connect(x):
        attention = keras.layers.MultiHeadAttention(2, 3, trainable=False)
        return keras.layers.Dense(2)(attention(x, x))

    return graph(features(4, 3), connect)


@kind()
def merged_masks():
    def connect(x):
        masked = keras.layers.Masking()(x)
        plain = keras.layers.Dense(3)(x)
        return keras.layers.LSTM(2)(keras.layers.Concatenate()([masked, plain]))

    return graph(features(4, 3), connect)


@kind()
def refused_training_argument():
    return graph(features(5), lambda x: keras.layers.BatchNormalization()(x, training=True))


@kind()
def nested_shared():
    """A functional model called twice in another."""

    def connect(inputs):
        inner = small_network("inner")
        return keras.layers.Dense(3)(keras.layers.Average()([inner(x) for x in inputs]))

    return graph([features(5), features(5)], connect)


@kind()
def nested_sequential():
    """Sequential in Sequential, the inner one without an input shape of its own."""
    inner = keras.Sequential([keras.layers.Dense(6, "relu"), keras.layers.Dense(4)], name="inner")
    return stack(features(5), inner, keras.layers.Dense(3))


@kind()
def nested_deep():
    def connect(x):
        middle = keras.Sequential(
            [small_network("inner"), keras.layers.Dense(5, "tanh")], name="middle"
        )
        return keras.layers.Dense(3)(middle(x))

    return graph(features(5), connect)


@kind()
def nested_frozen():
    """As in transfer learning: a frozen base, called for inference."""

    def connect(x):
        base = small_network("base")
        base.trainable = False
        return keras.layers.Dense(3)(base(x, training=False))

    return graph(features(5), connect)


# Images.


@kind(traces=True)
def cnn():
    layers = [
        keras.Input((8, 8, 3)),
        keras.layers.Conv2D(4, 3, padding="same"),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(6, 3, strides=2, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(3, "softmax"),
    ]
    return classification(layers, features(8, 8, 3))


@kind()
def cnn_global_pooling():
    layers = [
        keras.Input((8, 8, 3)),
        keras.layers.Conv2D(4, (3, 2), dilation_rate=2, use_bias=False),
        keras.layers.BatchNormalization(epsilon=0.01),
        keras.layers.Activation("relu"),
        keras.layers.Conv2D(4, 1, groups=2),
        keras.layers.GlobalAveragePooling2D(keepdims=True),
        keras.layers.Flatten(),
        keras.layers.Dense(3, "softmax"),
    ]
    return classification(layers, features(8, 8, 3))


@kind()
def conv_1d():
    return stack(
        features(12, 3),
        keras.layers.Conv1D(4, 3, padding="causal", dilation_rate=2),
        keras.layers.SeparableConv1D(4, 3, depth_multiplier=2),
        keras.layers.DepthwiseConv1D(3, depth_multiplier=2),
        keras.layers.Conv1DTranspose(3, 2, strides=2),
        keras.layers.GlobalMaxPooling1D(),
    )


@kind()
def conv_2d():
    return stack(
        features(8, 8, 3),
        keras.layers.DepthwiseConv2D(3, depth_multiplier=2, activation="relu"),
        keras.layers.SeparableConv2D(4, 3, padding="same"),
        keras.layers.Conv2DTranspose(3, 3, strides=2, padding="same", output_padding=1),
        keras.layers.GlobalMaxPooling2D(),
    )


@kind()
def conv_3d():
    return stack(
        features(4, 4, 4, 2),
        keras.layers.Conv3D(3, 2, activation="relu"),
        keras.layers.Conv3DTranspose(3, 2),
        keras.layers.GlobalAveragePooling3D(),
    )


@kind()
def locally_connected():
    """Layers that Keras 3 does not have."""
    return stack(
        features(4, 4, 2),
        keras.layers.LocallyConnected2D(2, 3),
        keras.layers.Reshape((4, 2)),
        keras.layers.LocallyConnected1D(2, 2, strides=2),
    )


@kind()
def pooling_1d():
    return side_by_side(
        features(8, 3),
        keras.layers.MaxPooling1D(2),
        keras.layers.AveragePooling1D(3, strides=2, padding="same"),
        keras.layers.GlobalMaxPooling1D(),
        keras.layers.GlobalAveragePooling1D(),
    )


@kind()
def pooling_2d():
    return side_by_side(
        features(8, 8, 2),
        keras.layers.MaxPooling2D((2, 3), strides=1, padding="same"),
        keras.layers.AveragePooling2D(3, padding="same"),
        keras.layers.GlobalMaxPooling2D(),
        keras.layers.GlobalAveragePooling2D(data_format="channels_last"),
    )


@kind()
def pooling_3d():
    return side_by_side(
        features(4, 4, 4, 2),
        keras.layers.MaxPooling3D(),
        keras.layers.AveragePooling3D(2, strides=1),
        keras.layers.GlobalMaxPooling3D(),
        keras.layers.GlobalAveragePooling3D(),
    )


@kind()
def sizes_1d():
    return stack(
        features(6, 2),
        keras.layers.ZeroPadding1D((1, 2)),
        keras.layers.Cropping1D((2, 1)),
        keras.layers.UpSampling1D(2),
        keras.layers.Conv1D(2, 3),
    )


@kind()
def sizes_2d():
    return side_by_side(
        features(4, 4, 2),
        keras.layers.ZeroPadding2D(((1, 0), (0, 2))),
        keras.layers.Cropping2D(((1, 0), (0, 2))),
        keras.layers.UpSampling2D((2, 1)),
        keras.layers.UpSampling2D(2, interpolation="bilinear"),
    )


@kind()
def sizes_3d():
    return side_by_side(
        features(3, 3, 3, 2),
        keras.layers.ZeroPadding3D(1),
        keras.layers.Cropping3D((1, 0, 1)),
        keras.layers.UpSampling3D((1, 2, 1)),
    )


# Normalization, regularization, activations, shapes.


@kind()
def normalization_layers():
    return stack(
        features(5, 4),
        keras.layers.LayerNormalization(epsilon=0.01),
        keras.layers.GroupNormalization(2),
        keras.layers.Dense(6),
        keras.layers.LayerNormalization(axis=[1, 2], center=False),
        keras.layers.BatchNormalization(axis=1),
        keras.layers.UnitNormalization(),
    )


@kind()
def spectral_normalization():
    return stack(features(5), keras.layers.SpectralNormalization(keras.layers.Dense(4)))


@kind(random=True)
def noise():
    return stack(
        features(6, 4),
        keras.layers.GaussianNoise(0.1),
        keras.layers.Conv1D(4, 1),
        keras.layers.SpatialDropout1D(0.2),
        keras.layers.GaussianDropout(0.1),
        keras.layers.AlphaDropout(0.1),
        keras.layers.Dropout(0.2, noise_shape=(None, 1, 4), seed=3),
        keras.layers.Dense(2),
    )


@kind(random=True)
def spatial_dropout():
    return side_by_side(
        features(4, 4, 2),
        keras.layers.SpatialDropout2D(0.2),
        keras.Sequential(
            [keras.layers.Reshape((2, 2, 4, 2)), keras.layers.SpatialDropout3D(0.2)], name="volume"
        ),
    )


@kind()
def activity_regularization():
    return stack(
        features(5),
        keras.layers.Dense(6, "relu", activity_regularizer="l2"),
        keras.layers.ActivityRegularization(l1=0.01, l2=0.02),
        keras.layers.Dense(3),
    )


@kind()
def activations():
    return side_by_side(
        features(5),
        keras.layers.LeakyReLU(alpha=0.2),
        keras.layers.PReLU(alpha_initializer=keras.initializers.Constant(0.3)),
        keras.layers.ELU(alpha=0.7),
        keras.layers.Softmax(),
        keras.layers.ReLU(max_value=1.0, negative_slope=0.1, threshold=0.2),
        keras.layers.ReLU(6.0),
        keras.layers.Activation("gelu"),
        keras.layers.Activation("swish"),
        keras.layers.Activation(keras.activations.selu),
        keras.layers.Activation("linear"),
        keras.layers.Dense(2, "softplus"),
        keras.layers.Dense(2, keras.activations.exponential),
    )


@kind()
def refused_hard_sigmoid():
    return stack(features(5), keras.layers.Dense(4, "hard_sigmoid"), keras.layers.Dense(2))


@kind()
def refused_random_crop():
    return stack(features(9, 8, 3), keras.layers.RandomCrop(4, 4), keras.layers.Flatten())


@kind()
def prelu_shared_axes():
    return stack(
        features(8, 8, 2),
        keras.layers.Conv2D(3, 3),
        keras.layers.PReLU(shared_axes=[1, 2]),
        keras.layers.Softmax(axis=(1, 2)),
        keras.layers.GlobalMaxPooling2D(),
    )


@kind()
def thresholded_relu():
    """A layer that Keras 3 does not have."""
    return stack(features(5), keras.layers.Dense(6), keras.layers.ThresholdedReLU(theta=0.2))


@kind()
def shapes():
    return stack(
        features(6),
        keras.layers.RepeatVector(4),
        keras.layers.Permute((2, 1)),
        keras.layers.Reshape((2, -1)),
        keras.layers.Dense(3),
        keras.layers.Flatten(),
        keras.layers.Dense(2),
    )


@kind()
def einsum():
    return stack(
        features(4, 5),
        keras.layers.EinsumDense("abc,cd->abd", output_shape=(None, 3), bias_axes="d"),
        keras.layers.Flatten(),
    )


@kind()
def weight_options():
    """Regularizers, constraints and initializers."""
    return stack(
        features(5),
        keras.layers.Dense(
            6,
            kernel_regularizer=keras.regularizers.l2(0.01),
            bias_regularizer="l1",
            kernel_constraint=keras.constraints.max_norm(0.9),
            kernel_initializer=keras.initializers.HeNormal(seed=3),
            bias_initializer=keras.initializers.Constant(0.1),
        ),
        keras.layers.Dense(
            5,
            kernel_regularizer=keras.regularizers.L1L2(0.01, 0.02),
            kernel_constraint="non_neg",
            kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "uniform"),
            bias_constraint=keras.constraints.MinMaxNorm(0.1, 0.8, rate=0.5),
        ),
        keras.layers.Dense(
            4,
            kernel_regularizer=keras.regularizers.OrthogonalRegularizer(0.01, mode="columns"),
            kernel_constraint=keras.constraints.UnitNorm(axis=0),
            kernel_initializer=keras.initializers.Orthogonal(gain=0.5),
        ),
        keras.layers.Dense(
            3,
            kernel_initializer=keras.initializers.TruncatedNormal(stddev=0.2),
            bias_initializer=keras.initializers.RandomUniform(-0.1, 0.1),
        ),
    )


# Sequences.


@kind(traces=True)
def lstm():
    return stack(features(7, 3), keras.layers.LSTM(5), keras.layers.Dense(3))


@kind()
def lstm_text():
    layers = [
        keras.layers.Embedding(11, 4, mask_zero=True, input_length=7),
        keras.layers.LSTM(5, return_sequences=True, unit_forget_bias=False),
        keras.layers.LSTM(4, go_backwards=True),
        keras.layers.Dense(3, "softmax"),
    ]
    return classification(layers, tokens())


@kind()
def embedding():
    return stack(
        tokens(),
        keras.layers.Embedding(11, 4, embeddings_regularizer="l2"),
        keras.layers.GlobalAveragePooling1D(),
        keras.layers.Dense(3),
    )


@kind()
def gru():
    return stack(
        features(7, 3),
        keras.layers.GRU(4, return_sequences=True),
        keras.layers.GRU(5, reset_after=False),
    )


@kind()
def simple_rnn():
    return stack(
        features(7, 3),
        keras.layers.SimpleRNN(4, return_sequences=True),
        keras.layers.SimpleRNN(5, activation="relu", use_bias=False),
    )


@kind()
def bidirectional():
    return stack(
        tokens(),
        keras.layers.Embedding(11, 4, mask_zero=True),
        keras.layers.Bidirectional(keras.layers.LSTM(3, return_sequences=True)),
        keras.layers.Bidirectional(
            keras.layers.GRU(4),
            backward_layer=keras.layers.GRU(4, activation="relu", go_backwards=True),
            merge_mode="sum",
        ),
        keras.layers.Dense(2),
    )


@kind()
def time_distributed():
    return stack(
        features(4, 6, 6, 2),
        keras.layers.TimeDistributed(keras.layers.Conv2D(3, 3)),
        keras.layers.TimeDistributed(keras.layers.Flatten()),
        keras.layers.TimeDistributed(
            keras.Sequential([keras.layers.Dense(5, "relu"), keras.layers.Dense(5)])
        ),
        keras.layers.TimeDistributed(small_network("step")),
    )


@kind()
def stacked_cells():
    cells = [keras.layers.LSTMCell(4), keras.layers.GRUCell(3), keras.layers.SimpleRNNCell(3)]
    return stack(
        features(7, 3),
        keras.layers.RNN(cells, return_sequences=True),
        keras.layers.RNN(keras.layers.GRUCell(4, reset_after=False)),
    )


@kind()
def encoder_decoder():
    """States are outputs, and inputs, of layers."""

    def connect(inputs):
        _, *states = keras.layers.LSTM(4, return_state=True)(inputs[0])
        x = keras.layers.LSTM(4, return_sequences=True)(inputs[1], initial_state=states)
        return keras.layers.TimeDistributed(keras.layers.Dense(3))(x)

    return graph([features(7, 3), features(5, 2)], connect)


@kind()
def conv_lstm():
    return stack(
        features(3, 5, 5, 2),
        keras.layers.ConvLSTM2D(3, 3, recurrent_activation="sigmoid"),
        keras.layers.GlobalAveragePooling2D(),
    )


@kind()
def masking():
    case = stack(
        features(7, 3),
        keras.layers.Masking(0.5),
        keras.layers.Dense(4),
        keras.layers.GRU(3),
    )
    case.x[:, 4:] = 0.5
    return case


@kind()
def multi_head_attention():
    """A transformer block."""

    def connect(x):
        attended = keras.layers.MultiHeadAttention(2, 3)(x, x)
        x = keras.layers.LayerNormalization()(keras.layers.Add()([x, attended]))
        attended = keras.layers.MultiHeadAttention(2, 4, value_dim=3, use_bias=False)(
            query=x, value=x, use_causal_mask=True
        )
        x = keras.layers.LayerNormalization()(keras.layers.Add()([x, attended]))
        x = keras.layers.Add()([x, keras.layers.Dense(6)(keras.layers.Dense(8, "gelu")(x))])
        return keras.layers.Dense(3)(keras.layers.GlobalAveragePooling1D()(x))

    return graph(features(5, 6), connect)


@kind()
def attention():
    def connect(inputs):
        outputs = [
            keras.layers.Attention()(inputs),
            keras.layers.Attention(use_scale=True, score_mode="concat")(inputs),
            keras.layers.AdditiveAttention()(inputs),
        ]
        return keras.layers.Dense(2)(keras.layers.Concatenate()(outputs))

    return graph([features(4, 3), features(5, 3)], connect)


# Preprocessing.


@kind()
def normalization():
    """Adapted to data, and of given statistics."""
    x = features(5) * 3 + 1
    adapted = keras.layers.Normalization()
    adapted.adapt(x)
    return stack(
        x,
        adapted,
        keras.layers.Dense(4),
        keras.layers.Normalization(mean=[1.0, 2.0, 3.0, 4.0], variance=2.0),
        keras.layers.Dense(3),
    )


@kind(random=True)
def image_preprocessing():
    return stack(
        np.random.randint(256, size=(SAMPLES, 9, 8, 3)).astype("uint8"),
        keras.layers.Rescaling(1 / 127.5, offset=-1),
        keras.layers.Resizing(8, 8),
        keras.layers.CenterCrop(6, 5),
        keras.layers.RandomFlip("horizontal"),
        keras.layers.RandomRotation(0.1),
        keras.layers.RandomZoom(0.1, seed=3),
        keras.layers.RandomTranslation(0.1, 0.1),
        keras.layers.RandomContrast(0.1),
        keras.layers.Conv2D(3, 3),
        keras.layers.Flatten(),
    )


@kind()
def rescaling():
    return stack(
        np.random.randint(256, size=(SAMPLES, 4, 4, 1)).astype("uint8"),
        keras.layers.Rescaling(1 / 255),
        keras.layers.Flatten(),
        keras.layers.Dense(3),
    )


@kind()
def discretization():
    return stack(
        features(5),
        keras.layers.Discretization([-1.0, 0.0, 0.5]),
        keras.layers.Embedding(4, 3),
        keras.layers.Flatten(),
        keras.layers.Dense(2),
    )


@kind()
def integer_lookup():
    return stack(
        np.random.randint(40, 50, size=(SAMPLES, 4)).astype("int64"),
        keras.layers.IntegerLookup(vocabulary=[42, 45, 41, 48]),
        keras.layers.Embedding(5, 3),
        keras.layers.Flatten(),
        keras.layers.Dense(2),
    )


@kind()
def category_encoding():
    return stack(
        tokens(3, 5),
        keras.layers.CategoryEncoding(5, output_mode="multi_hot"),
        keras.layers.Dense(2),
    )


# Types.


def with_policy(policy):
    keras.mixed_precision.set_global_policy(policy)
    layers = [
        keras.Input((5,)),
        keras.layers.Dense(6, "relu"),
        keras.layers.BatchNormalization(),
        keras.layers.Dense(3),
        keras.layers.Activation("softmax", dtype="float32"),
    ]
    return classification(layers, features(5), keras.optimizers.Adam(0.01))


for _policy in ("mixed_float16", "mixed_bfloat16", "float64"):
    register(_policy, functools.partial(with_policy, _policy))


# Losses, metrics and optimizers.


def optimized(optimizer):
    """The case of a small MLP; `optimizer` makes its optimizer."""
    layers = [
        keras.Input((5,)),
        keras.layers.Dense(6, "relu"),
        keras.layers.Dense(4, "tanh"),
        keras.layers.Dense(3, "softmax"),
    ]
    return classification(layers, features(5), optimizer())


OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "adam_amsgrad": lambda: keras.optimizers.Adam(0.01, amsgrad=True),
    "adam_schedule": lambda: keras.optimizers.Adam(
        keras.optimizers.schedules.ExponentialDecay(0.01, decay_steps=2, decay_rate=0.7)
    ),
    "adam_clipnorm": lambda: keras.optimizers.Adam(0.01, clipnorm=0.05),
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "sgd": lambda: keras.optimizers.SGD(0.05),
    "sgd_momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    "sgd_nesterov": lambda: keras.optimizers.SGD(
        keras.optimizers.schedules.PiecewiseConstantDecay([2, 10], [0.05, 0.02, 0.01]),
        momentum=0.9,
        nesterov=True,
    ),
    "sgd_ema": lambda: keras.optimizers.SGD(
        0.05, use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=2
    ),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.01, momentum=0.5, centered=True),
    "adagrad": lambda: keras.optimizers.Adagrad(0.05),
    "adadelta": lambda: keras.optimizers.Adadelta(0.5),
    "adamax": lambda: keras.optimizers.Adamax(0.01, global_clipnorm=0.5),
    "nadam": lambda: keras.optimizers.Nadam(0.01, clipvalue=0.1),
    "ftrl": lambda: keras.optimizers.Ftrl(0.05, l1_regularization_strength=0.01),
    "lion": lambda: keras.optimizers.Lion(0.01),
    "adafactor": lambda: keras.optimizers.Adafactor(0.01),
    "legacy_adam": lambda: keras.optimizers.legacy.Adam(0.01),
    "legacy_adam_decay": lambda: keras.optimizers.legacy.Adam(0.01, decay=0.1, amsgrad=True),
    "legacy_adam_schedule": lambda: keras.optimizers.legacy.Adam(
        keras.optimizers.schedules.ExponentialDecay(0.01, decay_steps=2, decay_rate=0.7)
    ),
    "legacy_sgd": lambda: keras.optimizers.legacy.SGD(0.05),
    "legacy_sgd_momentum": lambda: keras.optimizers.legacy.SGD(0.05, momentum=0.9, nesterov=True),
    "legacy_rmsprop": lambda: keras.optimizers.legacy.RMSprop(0.01, momentum=0.5, centered=True),
    "legacy_adagrad": lambda: keras.optimizers.legacy.Adagrad(0.05),
    "legacy_nadam": lambda: keras.optimizers.legacy.Nadam(0.01),
}
for _name, _optimizer in OPTIMIZERS.items():
    register(_name, functools.partial(optimized, _optimizer))


@kind()
def loss_object():
    case = stack(features(5), keras.layers.Dense(6, "relu"), keras.layers.Dense(3))
    case.model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[
            keras.metrics.SparseCategoricalAccuracy(name="hits"),
            keras.metrics.SparseTopKCategoricalAccuracy(k=2),
        ],
        weighted_metrics=["accuracy"],
    )
    return case._replace(targets=classes())


@kind()
def binary_metrics():
    case = stack(features(5), keras.layers.Dense(6, "relu"), keras.layers.Dense(1, "sigmoid"))
    case.model.compile(
        "rmsprop",
        keras.losses.BinaryCrossentropy(label_smoothing=0.1),
        metrics=[keras.metrics.AUC(num_thresholds=10), keras.metrics.Precision(), "accuracy"],
    )
    return case._replace(targets=classes(2)[:, None])


@kind(random=True)
def custom_loss():
    """Its layers are Keras's, its loss and its metric are not."""

    def squared(y_true, y_pred):
        return keras.backend.mean((y_true - y_pred) ** 2, axis=-1)

    case = stack(features(5), keras.layers.Dense(6, "relu"), keras.layers.Dense(3))
    case.model.compile("adam", squared, metrics=[squared])
    return case


# The layout from before TensorFlow 2.5.


def as_tf24(directory):
    """Moves the metadata from keras_metadata.pb into saved_model.pb."""
    from tensorflow.core.protobuf import saved_model_pb2
    from tf_keras.protobuf import saved_metadata_pb2

    file = directory / "keras_metadata.pb"
    metadata = saved_metadata_pb2.SavedMetadata.FromString(file.read_bytes())
    file.unlink()
    (directory / "fingerprint.pb").unlink()
    file = directory / "saved_model.pb"
    saved_model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    nodes = saved_model.meta_graphs[0].object_graph_def.nodes
    for node in metadata.nodes:
        saved = nodes[node.node_id].user_object
        saved.metadata = json.dumps(without_later_keys(json.loads(node.metadata)))
        saved.version.producer = 1
    file.write_bytes(saved_model.SerializeToString())


def without_later_keys(value):
    """Drops what TensorFlow 2.4 did not write."""
    later = {"build_config", "full_save_spec", "module", "registered_name", "shared_object_id"}
    if isinstance(value, dict):
        return {k: without_later_keys(v) for k, v in value.items() if k not in later}
    if isinstance(value, list):
        return [without_later_keys(v) for v in value]
    return value


register(
    "tf24_mlp",
    functools.partial(optimized, OPTIMIZERS["legacy_adam"]),
    formats=("saved_model",),
    change=as_tf24,
)
register("tf24_nested", nested, formats=("saved_model",), change=as_tf24)
register("tf24_cnn", cnn, formats=("saved_model",), change=as_tf24)


# What a reader that runs no code of the file has to refuse.


@kind()
def refused_lambda():
    return stack(
        features(5), keras.layers.Dense(4), keras.layers.Lambda(lambda x: x * 2.0, name="twice")
    )


@kind()
def refused_operations():
    return graph(features(5), lambda x: keras.layers.Dense(3)(tf.nn.relu(x) * 2.0))


@kind()
def refused_slice():
    return graph(features(4, 5), lambda x: keras.layers.Dense(3)(x[:, 0]))


@kind()
def refused_custom_activation():
    def bent(x):
        return tf.where(x > 0, x, x / 2)

    return stack(features(5), keras.layers.Dense(4, bent), keras.layers.Dense(3))


def twice_layer():
    class Twice(keras.layers.Layer):
        def call(self, inputs):
            return inputs * 2.0

    return Twice


@kind()
def refused_custom_layer():
    return stack(features(5), keras.layers.Dense(3), twice_layer()())


@kind()
def refused_registered_layer():
    register_layer = keras.utils.register_keras_serializable(package="fixtures")
    return stack(features(5), keras.layers.Dense(3), register_layer(twice_layer())())


@kind(formats=("saved_model", "keras"), traces=True)
def refused_subclassed_model():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden = keras.layers.Dense(4, "relu")
            self.outputs_layer = keras.layers.Dense(3)

        def call(self, inputs):
            return self.outputs_layer(self.hidden(inputs))

        def get_config(self):
            return {}

    model = Subclassed()
    model.compile("adam", "mse")
    return Case(model, features(5), features(3))


def refused_module(directory):
    """A SavedModel without Keras's metadata."""
    module = tf.Module()
    module.kernel = tf.Variable(features(3)[:5])
    module.call = tf.function(
        lambda x: x @ module.kernel, input_signature=[tf.TensorSpec((None, 5))]
    )
    tf.saved_model.save(module, directory / "saved_model")


def refused_export(directory):
    """A SavedModel by Keras 3, for serving only."""
    import keras as keras3

    model = keras3.Sequential([keras3.Input((5,)), keras3.layers.Dense(3)])
    model.export(directory / "saved_model", verbose=False)


KINDS |= {"refused_module": refused_module, "refused_export": refused_export}


def pack(directory, path):
    """Writes the files of `directory` as a zip archive without times."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(directory.rglob("*")):
            if file.is_file():
                info = zipfile.ZipInfo(str(file.relative_to(directory)))
                archive.writestr(info, file.read_bytes(), zipfile.ZIP_DEFLATED, compresslevel=9)


def main(argv):
    release = tuple(map(int, tf.__version__.split(".")[:2]))
    if release < (2, 16):
        kinds = {"tf{}{}_{}".format(*release, name): KINDS[name] for name in ALSO_OLD}
    else:
        kinds = KINDS
        os.environ["TF_USE_LEGACY_KERAS"] = "1"
    if unknown := set(argv[1:]) - set(kinds):
        raise app.UsageError(f"No such kinds: {', '.join(sorted(unknown))}.")
    DIRECTORY.mkdir(exist_ok=True)
    for name in argv[1:] or kinds:
        keras.backend.clear_session()
        keras.mixed_precision.set_global_policy("float32")
        keras.utils.set_random_seed(1)
        path = DIRECTORY / f"{name}.zip"
        with tempfile.TemporaryDirectory() as directory:
            kinds[name](pathlib.Path(directory))
            pack(pathlib.Path(directory), path)
        print(f"{path.name}: {path.stat().st_size / 1e3:.1f} kB")


if __name__ == "__main__":
    app.run(main)
