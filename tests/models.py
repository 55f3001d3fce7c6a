"""Models of every kind that people build, with inputs and what their layers must give.

Each function returns `(model, x, truth)`; `truth(layer, x)` computes, in NumPy float64 from the
weights, for each path `(pattern, pre_activation)`: what the activation pattern is made of, and
what goes into the activation function.
"""

import dataclasses

import keras
import numpy as np
from keras import layers, ops

CLASSES = 3


@dataclasses.dataclass
class Case:
    model: keras.Model
    x: object
    truth: object

    @property
    def y(self):
        """Class ids: every class occurs."""
        samples = len(next(iter(self.x.values())) if isinstance(self.x, dict) else self.x)
        return np.random.default_rng(5).permutation(np.arange(samples) % CLASSES)

    def expected(self):
        """`{path: (pattern, pre_activation)}`; the weights are made large and uneven first."""
        self.model(self.x)
        random = np.random.default_rng(7)
        for variable in self.model.variables:
            if keras.backend.is_float_dtype(variable.dtype):
                positive = "variance" in variable.path or "gamma" in variable.path
                value = random.normal(size=variable.shape) * (0.9 if "bias" in variable.path else 1)
                variable.assign(np.abs(value) + 0.5 if positive else value)
        found = {layer.name: layer for layer in self.model._flatten_layers()}
        return self.truth(found, self.x)


def dense(units, activation=None, **kwargs):
    return layers.Dense(units, activation, **kwargs)


def inputs_like(*shape, samples=50):
    return np.random.default_rng(3).normal(size=(samples, *shape)).astype("float32")


def linear(layer, x):
    x = keras.ops.convert_to_numpy(x).astype(np.float64)
    out = x @ np.asarray(layer.kernel, np.float64)
    return out if layer.bias is None else out + np.asarray(layer.bias, np.float64)


def normalized(layer, x):
    mean, variance, gamma, beta = (
        np.asarray(v, np.float64)
        for v in (layer.moving_mean, layer.moving_variance, layer.gamma, layer.beta)
    )
    return (x - mean) / np.sqrt(variance + layer.epsilon) * gamma + beta


def relu(x):
    return np.maximum(x, 0)


def _a_then_out(hidden=relu, pool=lambda x: x):
    def truth(found, x):
        a = linear(found["a"], x)
        out = linear(found["out"], pool(hidden(a)))
        return {"a": (hidden(a), a), "out": (out, out)}

    return truth


def sequential():
    model = keras.Sequential(
        [keras.Input((8,)), dense(6, "relu", name="a"), dense(CLASSES, "softmax", name="out")]
    )
    return Case(model, inputs_like(8), _a_then_out())


def unbuilt_sequential():
    model = keras.Sequential([dense(6, "relu", name="a"), dense(CLASSES, name="out")])
    return Case(model, inputs_like(8), _a_then_out())


def functional():
    inputs = keras.Input((8,))
    x = layers.Dropout(0.5)(dense(6, "sigmoid", name="a")(inputs))
    model = keras.Model(inputs, dense(CLASSES, name="out")(x))
    return Case(model, inputs_like(8), _a_then_out(lambda a: 1 / (1 + np.exp(-a))))


def nested():
    inner = keras.Sequential([dense(5, "relu", name="b")], name="inner")
    block = keras.Sequential([dense(6, "relu", name="a"), inner], name="block")
    inputs = keras.Input((8,))
    model = keras.Model(inputs, dense(CLASSES, name="out")(block(inputs)))

    def truth(found, x):
        a = linear(found["a"], x)
        b = linear(found["b"], relu(a))
        out = linear(found["out"], relu(b))
        return {"block/a": (relu(a), a), "block/inner/b": (relu(b), b), "out": (out, out)}

    return Case(model, inputs_like(8), truth)


def shared():
    inputs = keras.Input((8,))
    twice = dense(8, "relu", name="twice")
    model = keras.Model(inputs, dense(CLASSES, name="out")(twice(twice(inputs))))

    def truth(found, x):
        first = linear(found["twice"], x)
        second = linear(found["twice"], relu(first))
        out = linear(found["out"], relu(second))
        return {"twice": (relu(first), first), "twice#2": (relu(second), second), "out": (out, out)}

    return Case(model, inputs_like(8), truth)


def batch_normalized():
    inputs = keras.Input((8,))
    x = dense(6, use_bias=False, name="a")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.Activation("tanh")(dense(6, name="b")(x))
    model = keras.Model(inputs, layers.Softmax()(dense(CLASSES, name="out")(x)))

    def truth(found, x):
        a = normalized(found["norm"], linear(found["a"], x))
        b = linear(found["b"], relu(a))
        out = linear(found["out"], np.tanh(b))
        return {"a": (relu(a), a), "b": (np.tanh(b), b), "out": (out, out)}

    return Case(model, inputs_like(8), truth)


def operations():
    inputs = keras.Input((8,))
    x = ops.relu(dense(6, name="a")(inputs))
    model = keras.Model(inputs, ops.softmax(dense(CLASSES, name="out")(x)))
    return Case(model, inputs_like(8), _a_then_out())


def skip_connection():
    inputs = keras.Input((8,))
    x = dense(8, "relu", name="a")(inputs)
    x = layers.Add()([x, dense(8, "relu", name="b")(x)])
    model = keras.Model(inputs, dense(CLASSES, name="out")(x))

    def truth(found, x):
        a = linear(found["a"], x)
        b = linear(found["b"], relu(a))
        out = linear(found["out"], relu(a) + relu(b))
        return {"a": (relu(a), a), "b": (relu(b), b), "out": (out, out)}

    return Case(model, inputs_like(8), truth)


def several_inputs():
    first, second = keras.Input((8,), name="first"), keras.Input((4,), name="second")
    x = layers.Concatenate()([dense(6, "relu", name="a")(first), dense(5, name="b")(second)])
    model = keras.Model({"first": first, "second": second}, dense(CLASSES, name="out")(x))

    def truth(found, x):
        a, b = linear(found["a"], x["first"]), linear(found["b"], x["second"])
        out = linear(found["out"], np.concatenate([relu(a), b], axis=-1))
        return {"a": (relu(a), a), "b": (b, b), "out": (out, out)}

    return Case(model, {"first": inputs_like(8), "second": inputs_like(4)}, truth)


def sequence():
    inputs = keras.Input((4, 8))
    x = layers.GlobalAveragePooling1D()(dense(6, "relu", name="a")(inputs))
    model = keras.Model(inputs, dense(CLASSES, name="out")(x))
    return Case(model, inputs_like(4, 8), _a_then_out(pool=lambda x: x.mean(axis=1)))


def time_distributed():
    inputs = keras.Input((None, 8))
    x = layers.TimeDistributed(dense(6, "relu", name="a"), name="td")(inputs)
    model = keras.Model(inputs, dense(CLASSES, name="out")(layers.GlobalAveragePooling1D()(x)))

    def truth(found, x):
        expected = _a_then_out(pool=lambda x: x.mean(axis=1))(found, x)
        return {"td/a": expected["a"], "out": expected["out"]}

    return Case(model, inputs_like(4, 8), truth)


def convolutional():
    inputs = keras.Input((8, 8, 1))
    x = layers.MaxPooling2D(name="pool")(
        layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    )
    x = dense(6, "relu", name="a")(layers.Flatten()(x))
    model = keras.Model(inputs, dense(CLASSES, name="out")(x))

    def truth(found, x):
        flat = keras.ops.convert_to_numpy(found["pool"](found["conv"](x))).reshape(len(x), -1)
        return _a_then_out()(found, flat)

    return Case(model, inputs_like(8, 8, 1), truth)


class Block(layers.Layer):
    def __init__(self, units, name):
        super().__init__(name=name)
        self.steps = [[dense(units, name=f"{name}_a")], dense(units, "relu", name=f"{name}_b")]
        self.norm = layers.BatchNormalization(name=f"{name}_norm")
        self.relu = layers.ReLU()

    def call(self, x, training=False):
        x = self.relu(self.norm(self.steps[0][0](x), training=training))
        return self.steps[1](x)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.blocks = [Block(6, name="first"), Block(5, name="second")]
        self.head = dense(CLASSES, name="out")

    def call(self, inputs, training=False):
        x = inputs
        for block in self.blocks:
            x = block(x, training=training)
        return self.head(x)


def subclassed():
    def truth(found, x):
        expected = {}
        for block in ("first", "second"):
            a = normalized(found[f"{block}_norm"], linear(found[f"{block}_a"], x))
            b = linear(found[f"{block}_b"], relu(a))
            x = relu(b)
            expected |= {f"{block}/{block}_a": (relu(a), a), f"{block}/{block}_b": (x, b)}
        out = linear(found["out"], x)
        return expected | {"out": (out, out)}

    return Case(Subclassed(), inputs_like(8), truth)


def single_sigmoid():
    model = keras.Sequential(
        [keras.Input((8,)), dense(6, "relu", name="a"), dense(1, "sigmoid", name="out")]
    )
    return Case(model, inputs_like(8), _a_then_out())


def frozen():
    case = sequential()
    case.model.trainable = False
    return case


def mixed_float16():
    return _mixed("mixed_float16")


def mixed_bfloat16():
    return _mixed("mixed_bfloat16")


def _mixed(policy):
    keras.config.set_dtype_policy(policy)
    inputs = keras.Input((8,))
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(dense(6, name="a")(inputs)))
    x = layers.Activation("softmax", dtype="float32")(dense(CLASSES, name="out")(x))
    model = keras.Model(inputs, x)
    keras.config.set_dtype_policy("float32")

    def truth(found, x):
        a = normalized(found["norm"], linear(found["a"], x))
        out = linear(found["out"], relu(a))
        return {"a": (relu(a), a), "out": (out, out)}

    return Case(model, inputs_like(8), truth)


FLOAT32 = [
    *(sequential, unbuilt_sequential, functional, nested, shared, batch_normalized, operations),
    *(skip_connection, several_inputs, sequence, time_distributed, convolutional, subclassed),
    *(single_sigmoid, frozen),
]
HALF = [mixed_float16, mixed_bfloat16]
