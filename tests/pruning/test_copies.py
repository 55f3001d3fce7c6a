"""A model made again is the model, with variables of its own, whatever its layers are made of."""

import functools

import keras
import numpy as np
import pytest
from backends import some_on_each
from keras import layers, ops

from keras_layer_entropy import remove_layer
from keras_layer_entropy.pruning.rewrite import _account, without

STRETCH = 3.0


def outputs(model, x):
    return keras.ops.convert_to_numpy(model(x))


def like(*shape):
    return np.random.default_rng(3).normal(size=(40, *shape)).astype("float32")


def around(*middle, x=None, before=8):
    """Layers of a kind between Dense layers, one of which can go."""
    inputs = keras.Input((8,))
    y = layers.Dense(before, "relu", name="a")(inputs)
    for layer in middle:
        y = layer(y)
    y = layers.Dense(6, "tanh", name="b")(layers.Flatten()(y))
    return keras.Model(inputs, layers.Dense(3, name="out")(y)), like(8) if x is None else x


class Gate(layers.Layer):
    """Its configuration leaves out everything."""

    def __init__(self, start=0.0, **kwargs):
        super().__init__(**kwargs)
        self.start = start

    def get_config(self):
        return {}

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], shape[-1]), name="w")

    def call(self, x):
        return x * ops.sigmoid(ops.matmul(x, self.w) + self.start)


def configuration_without_names():
    return around(Gate(0.7), Gate(name="mine"))


class Positional(layers.Layer):
    """Keras cannot make a configuration of it."""

    def __init__(self, scale, /, function):
        super().__init__()
        self.scale, self.function = scale, function

    def call(self, x):
        return self.function(x) * self.scale


def no_configuration_at_all():
    shift = 0.25
    return around(Positional(2.0, lambda t: ops.tanh(t) + shift))


class Parts(layers.Layer):
    """Holds layers, variables, seeds and metrics in every way."""

    def __init__(self):
        super().__init__()
        self.first = layers.Dense(8, name="first")
        self.steps = [layers.Dense(8), {"deep": (layers.Dense(8), layers.BatchNormalization())}]
        self.net = keras.Sequential([keras.Input((8,)), layers.Dense(8, "relu")])
        inputs = keras.Input((8,))
        self.graph = keras.Model(inputs, layers.Dense(8)(layers.Dropout(0.4)(inputs)))
        self.noise = keras.random.SeedGenerator(5)
        self.seen = keras.metrics.Mean(name="seen")
        self.helper = Helper()
        self.apply = functools.partial(self.shifted, by=0.5)

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")
        self.counter = self.add_weight(shape=(), dtype="int32", trainable=False, name="counter")
        for layer in (self.first, self.steps[0], *self.steps[1]["deep"]):
            layer.build(shape)

    def shifted(self, x, by):
        return x * self.scale + by

    def call(self, x, training=False):
        x = self.steps[0](self.first(x))
        dense, norm = self.steps[1]["deep"]
        x = self.graph(self.net(norm(dense(x), training=training)), training=training)
        if training:
            self.counter.assign_add(1)
            x = x + 0.01 * keras.random.normal(ops.shape(x), seed=self.noise)
        return self.helper(self.apply(x))


class Helper:
    """No layer, but holds a variable."""

    def __init__(self):
        self.offset = keras.Variable(np.full(8, 0.3, "float32"), name="offset", trainable=False)

    def __call__(self, x):
        return x + self.offset


def parts_in_every_way():
    return around(Parts())


class Tied(layers.Layer):
    """Uses the weights of another layer."""

    def __init__(self, other):
        super().__init__()
        self.other = other

    def call(self, x):
        return ops.matmul(x, ops.transpose(self.other.kernel))


def weights_tied_by_a_layer():
    first = layers.Dense(5, name="first")
    return around(first, Tied(first))


def weights_tied_by_an_operation():
    inputs = keras.Input((4,), dtype="int32")
    embed = layers.Embedding(9, 6, name="embed")
    x = layers.Dense(6, "relu", name="a")(embed(inputs))
    x = layers.Dense(6, "tanh", name="b")(x)
    x = layers.Dense(9, name="out")(x)
    model = keras.Model(inputs, ops.matmul(x, embed.embeddings))
    return model, np.random.default_rng(0).integers(0, 9, (40, 4)).astype("int32")


def weights_of_the_model_itself():
    model, x = around()
    model.temperature = model.add_weight(shape=(), initializer="ones", name="temperature")
    model.extra = layers.Dense(2, name="extra")
    model.extra.build((None, 8))
    model.note = {"data": ["mnist"]}
    return model, x


class Sub(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = layers.Dense(8, "relu")

    def call(self, x):
        return self.inner(x)


class Own(keras.Model):
    """A functional model with a constructor of its own."""

    def __init__(self, units):
        inputs = keras.Input((8,))
        super().__init__(inputs, layers.Dense(units, "relu")(inputs))
        self.units = units


def models_inside():
    own, sub = Own(8), Sub()
    sub.build((None, 8))
    for inner in (own, sub):
        inner.compile("sgd", "mse", metrics=["mae"])
    return around(sub, own, keras.Sequential([keras.Input((8,)), layers.Dense(8)]))


def live_functions():
    factor = 1.5
    return around(
        layers.Lambda(lambda t: t * factor + STRETCH),
        layers.Lambda(stretched, arguments={"by": 2.0}),
        layers.Activation(lambda t: t / (1 + ops.abs(t)) * factor),
    )


def stretched(x, by):
    return x * STRETCH * by


class Unregistered(keras.regularizers.Regularizer):
    def __init__(self, strength):
        self.strength = strength

    def __call__(self, w):
        return self.strength * ops.sum(ops.abs(w))


def objects_that_nobody_registered():
    return around(
        layers.Dense(
            8,
            kernel_regularizer=Unregistered(0.1),
            bias_constraint=lambda b: ops.clip(b, -1, 1),
            kernel_initializer=lambda shape, dtype=None: ops.ones(shape, dtype) * 0.1,
        )
    )


def adapters():
    model, x = around(layers.Dense(8, name="lora"))
    model.get_layer("lora").enable_lora(2, lora_alpha=3)
    return model, x


def quantized():
    model, x = around(layers.Dense(8, name="int8"), layers.Dense(8, name="int4"))
    model.get_layer("int8").quantize("int8")
    model.get_layer("int4").quantize("int4")
    return model, x


def half_precision():
    return around(layers.Dense(8, dtype="bfloat16"), layers.Dense(8, dtype="mixed_float16"))


def recurrent():
    return around(
        layers.Reshape((2, 4)),
        layers.Bidirectional(layers.LSTM(4, return_sequences=True)),
        layers.GRU(4, recurrent_dropout=0.2, seed=3),
    )


def attention_and_convolutions():
    attention = layers.MultiHeadAttention(2, 4, name="attend")
    return around(
        layers.Reshape((4, 2)),
        layers.Conv1D(8, 3, padding="same"),
        lambda x: attention(query=x, value=x, key=x),
        layers.LayerNormalization(),
        layers.TimeDistributed(layers.Dense(4)),
    )


def changed_after_it_was_made():
    model, x = around(layers.Dropout(0.1, name="drop"), layers.LeakyReLU(name="leak"))
    model.get_layer("drop").rate = 0.7
    model.get_layer("leak").negative_slope = 0.9
    return model, x


def normalized_inputs():
    adapted = layers.Normalization(name="adapted")
    adapted.adapt(like(8) * 3 + 1)
    model, x = around()
    return keras.Sequential([keras.Input((8,)), adapted, *model.layers[1:]]), x


FORMS = [
    *(configuration_without_names, no_configuration_at_all, parts_in_every_way),
    *(weights_tied_by_a_layer, weights_tied_by_an_operation, weights_of_the_model_itself),
    *(models_inside, live_functions, objects_that_nobody_registered, adapters, quantized),
    *(half_precision, recurrent, attention_and_convolutions, changed_after_it_was_made),
    normalized_inputs,
]


@pytest.fixture(params=some_on_each(FORMS, (parts_in_every_way, weights_tied_by_an_operation)))
def form(request):
    model, x = request.param()
    random = np.random.default_rng(7)
    for layer in model._flatten_layers():
        for variable in layer._trainable_variables:
            if keras.backend.is_float_dtype(variable.dtype):
                variable.assign(variable + random.normal(size=variable.shape) * 0.3)
    return model, x


def variables(model):
    """Every variable by what holds it, in order."""
    found = []
    for layer in model._flatten_layers():
        own = [*layer._trainable_variables, *layer._non_trainable_variables]
        own += [generator.state for generator in layer._seed_generators]
        own += [v for metric in layer._metrics for v in metric.variables]
        found += [(layer.name, variable) for variable in own]
    return found


def as_bits(variable):
    return np.asarray(ops.convert_to_numpy(variable)).tobytes()


@pytest.mark.slow
def test_a_copy_is_the_model_with_variables_of_its_own(form):
    model, x = form
    copy, fresh = without(model, None)
    mine, others = variables(model), variables(copy)
    assert fresh == []
    assert len(mine) == len(others)
    assert not {id(v) for _, v in mine} & {id(v) for _, v in others}
    for (name, variable), (other, copied) in zip(mine, others, strict=True):
        assert (name, variable.path, variable.dtype) == (other, copied.path, copied.dtype)
        assert variable.trainable == copied.trainable
        assert as_bits(variable) == as_bits(copied)
    np.testing.assert_array_equal(outputs(model, x), outputs(copy, x))
    counts = [[len(x._metrics) for x in m._flatten_layers()] for m in (model, copy)]
    assert counts[0] == counts[1]

    # What is trained is what is asked, and the model itself does not change.
    before = [as_bits(v) for _, v in mine]
    copy.compile("sgd", "mse", run_eagerly=True)
    copy.fit(x, outputs(copy, x) * 0 + 1.0, batch_size=20, verbose=0)
    assert [as_bits(v) for _, v in mine] == before
    out = copy.get_layer("out").kernel
    changed = [v for (_, v), old in zip(others, before, strict=True) if as_bits(v) != old]
    assert any(variable is out for variable in changed)


def test_what_is_left_is_the_same(form):
    model, x = form
    calls = dict.fromkeys(("a", "b"))
    kept = {(name, v.path): as_bits(v) for name, v in variables(model) if name not in calls}
    smaller = remove_layer(model, "b")
    found = {(name, v.path): as_bits(v) for name, v in variables(smaller)}
    changed = {key for key, value in kept.items() if found.get(key) != value}
    assert {name for name, _ in changed} <= {"out"}  # takes another number of features now
    assert np.isfinite(outputs(smaller, x).astype("float32")).all()


def test_half_of_a_shared_state_is_not_left_behind():
    """What an operation takes of a layer is the layer's, in the copy too."""
    model, x = weights_tied_by_an_operation()
    model.get_layer("out").bias.assign(np.ones(9))
    copy, _ = without(model, None)
    embed = copy.get_layer("embed").embeddings
    embed.assign(embed * 0)
    np.testing.assert_array_equal(outputs(copy, x), 0.0)
    assert np.abs(outputs(model, x)).min() > 0


@pytest.mark.tensorflow
def test_what_a_model_holds_besides_its_graph_is_copied():
    model, _ = weights_of_the_model_itself()
    copy, _ = without(model, None)
    assert copy.temperature is not model.temperature
    assert copy.extra is not model.extra
    assert copy.extra.name == "extra"
    assert copy.note == {"data": ["mnist"]}
    assert copy.note["data"] is not model.note["data"]


@pytest.mark.tensorflow
@pytest.mark.parametrize("kind", ["functional", "Sequential"])
def test_weights_that_nothing_but_the_model_lists_are_copied(kind):
    model, x = around()
    if kind == "Sequential":
        model = keras.Sequential(model.layers)
    model.add_weight(shape=(2,), initializer="ones", name="listed", trainable=True)
    model.add_weight(shape=(), initializer="ones", name="counted", trainable=False)
    smaller = remove_layer(model, "b", x)
    assert "listed" in [variable.name for variable in smaller.trainable_variables]
    assert "counted" in [variable.name for variable in smaller.non_trainable_variables]
    assert not {id(v) for v in model.variables} & {id(v) for v in smaller.variables}


@pytest.mark.tensorflow
def test_variables_that_keras_does_not_know_of_are_the_copys_own():
    model, x = parts_in_every_way()
    copy, _ = without(model, None)
    layer = next(layer for layer in copy.layers if isinstance(layer, Parts))
    expected = np.asarray(model(x))
    layer.helper.offset.assign(layer.helper.offset + 1.0)
    np.testing.assert_array_equal(np.asarray(model(x)), expected)
    assert np.abs(np.asarray(copy(x)) - expected).max() > 0


@pytest.mark.tensorflow
def test_adapters_can_be_trained_on():
    model, x = adapters()
    copy, _ = without(model, None)
    layer = copy.get_layer("lora")
    base = as_bits(layer._kernel)
    copy.compile("sgd", "mse", run_eagerly=True)
    copy.fit(x, np.asarray(copy(x)) + 1, epochs=2, verbose=0)
    assert np.abs(np.asarray(layer.lora_kernel_b)).max() > 0
    assert as_bits(layer._kernel) == base
    assert as_bits(model.get_layer("lora").lora_kernel_b) != as_bits(layer.lora_kernel_b)


@pytest.mark.tensorflow
def test_a_nested_model_keeps_the_shape_that_it_takes():
    block = keras.Sequential([keras.Input((8,)), layers.Dense(8, name="in")], name="block")
    inputs = keras.Input(batch_shape=(5, 8))
    x = layers.Dense(8, "relu", name="a")(inputs)
    model = keras.Model(inputs, layers.Dense(3, name="out")(block(x)))
    copy, _ = without(model, None)
    assert copy.get_layer("block").input_shape == (None, 8)
    smaller = remove_layer(model, "a", like(8)[:5])
    assert smaller.get_layer("block").input_shape == (None, 8)


@pytest.mark.tensorflow
def test_functions_stay_the_same_objects():
    model, _ = live_functions()
    copy, _ = without(model, None)
    functions = [
        [x.function for x in m.layers if isinstance(x, layers.Lambda)] for m in (model, copy)
    ]
    assert functions[0] == functions[1]


@pytest.mark.tensorflow
def test_a_function_that_meets_one_thing_twice_stays_the_same_object():
    scale = [2.0]
    scale.append(scale)  # a circle
    again = scale
    model, _ = around(layers.Lambda(lambda x: x * scale[0] * again[0], name="twice"))
    copy, _ = without(model, None)
    assert copy.get_layer("twice").function is model.get_layer("twice").function


@pytest.mark.tensorflow
def test_a_function_that_closes_over_a_layer_of_the_model_gets_the_copy():
    first = layers.Dense(8, name="first")
    model, x = around(first, layers.Lambda(lambda t: ops.matmul(t, first.kernel)))
    copy, _ = without(model, None)
    copy.get_layer("first").kernel.assign(np.zeros((8, 8)))
    assert np.ptp(np.asarray(copy(x)), axis=0).max() == 0
    assert np.ptp(np.asarray(model(x)), axis=0).max() > 0


@pytest.mark.tensorflow
def test_a_compiled_function_inside_a_layer_is_the_copys_own():
    import tensorflow as tf

    class Compiled(layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = layers.Dense(8)
            self.run = tf.function(lambda t: self.inner(t))
            self.raw = tf.Variable(np.ones(8, "float32"))

        def build(self, shape):
            self.inner.build(shape)

        def call(self, t):
            return self.run(t) * self.raw

    model, x = around(Compiled())
    copy, _ = without(model, None)
    np.testing.assert_array_equal(outputs(model, x), outputs(copy, x))
    layer = next(layer for layer in copy.layers if isinstance(layer, Compiled))
    layer.raw.assign(np.zeros(8))
    layer.inner.bias.assign(np.full(8, 5.0))
    assert np.ptp(np.asarray(copy(x)), axis=0).max() == 0
    assert np.ptp(np.asarray(model(x)), axis=0).max() > 0


@pytest.mark.tensorflow
def test_text_layers_keep_their_words():
    inputs = keras.Input((1,), dtype="string")
    words = layers.StringLookup(output_mode="one_hot", name="words")
    words.adapt(["cat", "dog", "bird"])
    x = layers.Dense(5, "relu", name="b")(layers.Dense(4, name="a")(words(inputs)))
    model = keras.Model(inputs, layers.Dense(2, name="out")(x))
    import tensorflow as tf

    given = tf.constant([["cat"], ["fish"], ["bird"]])
    copy, _ = without(model, None)
    np.testing.assert_array_equal(np.asarray(model(given)), np.asarray(copy(given)))
    copy.get_layer("words").set_vocabulary(["fish", "cow", "hen"])
    assert words.get_vocabulary()[1:] != copy.get_layer("words").get_vocabulary()[1:]


def exclusions(model):
    return [v.path for v in model.trainable_variables if not model.optimizer._use_weight_decay(v)]


@pytest.mark.tensorflow
@pytest.mark.parametrize("how", ["names", "variables"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_exclusions_from_weight_decay_stay(how, wrapped):
    model, x = around()
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.1)
    out = model.get_layer("out")
    chosen = {"var_names": ["bias"]} if how == "names" else {"var_list": [out.kernel]}
    optimizer.exclude_from_weight_decay(**chosen)
    model.compile(keras.optimizers.LossScaleOptimizer(optimizer) if wrapped else optimizer, "mse")
    model.fit(x, np.ones((40, 3)), verbose=0)
    smaller = remove_layer(model, "b")
    inner = smaller.optimizer.inner_optimizer if wrapped else smaller.optimizer
    kept = [v.path for v in smaller.trainable_variables if not inner._use_weight_decay(v)]
    biases = [v.path for v in smaller.trainable_variables if v.name == "bias"]
    assert kept == (biases if how == "names" else ["out/kernel"])


class Slowing(keras.optimizers.SGD):
    """Has settings and state that its configuration leaves out."""

    def __init__(self, brake):
        super().__init__(lambda: 0.1 * brake, momentum=0.9)
        self.brake = brake

    def get_config(self):
        raise NotImplementedError


def test_an_optimizer_of_ones_own_goes_on():
    model, x = around()
    y = np.ones((40, 3), "float32")
    model.compile(Slowing(0.5), "mse", run_eagerly=keras.backend.backend() == "tensorflow")
    model.fit(x, y, shuffle=False, verbose=0)
    copy, _ = without(model, None)
    assert copy.optimizer is not model.optimizer
    assert copy.optimizer.brake == 0.5
    assert copy.optimizer.momentums[0] is not model.optimizer.momentums[0]
    histories = [m.fit(x, y, shuffle=False, verbose=0, epochs=2).history for m in (model, copy)]
    assert histories[0] == histories[1]


@pytest.mark.tensorflow
def test_averages_begin_again_with_what_was_refitted():
    model, x = around()
    model.compile(keras.optimizers.SGD(0.01, use_ema=True), "mse")
    model.fit(x, np.ones((40, 3)), epochs=2, verbose=0)
    for average in model.optimizer._model_variables_moving_average:
        average.assign(average + 1.0)
    smaller = remove_layer(model, "b", x)
    optimizer = smaller.optimizer
    averages = optimizer._model_variables_moving_average
    for weight, average in zip(optimizer._trainable_variables, averages, strict=True):
        same = as_bits(weight) == as_bits(average)
        assert same == weight.path.startswith("out/"), weight.path


@pytest.mark.tensorflow
def test_the_metrics_of_a_copy_count_for_themselves():
    model, x = around()
    model.compile("sgd", "mse", metrics=[keras.metrics.MeanMetricWrapper(lambda t, p: p - t)])
    model.evaluate(x, np.ones((40, 3)), verbose=0)
    copy, _ = without(model, None)
    result = copy.evaluate(x, np.ones((40, 3)), verbose=0, return_dict=True)
    assert result == model.evaluate(x, np.ones((40, 3)), verbose=0, return_dict=True)


@pytest.mark.tensorflow
def test_a_model_stays_under_its_strategy():
    import tensorflow as tf

    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model, x = around()
    smaller = remove_layer(model, "b", x)
    assert smaller._distribute_strategy is strategy
    assert type(smaller.get_layer("out").kernel.value) is type(model.get_layer("out").kernel.value)


@pytest.mark.tensorflow
def test_a_variable_without_a_place_is_an_error():
    model, _ = around()
    copy, _ = without(model, None)
    twins = dict(zip(map(id, model.variables), copy.variables, strict=True))
    _account(model, copy, twins, [], "it")
    kernel = model.get_layer("a").kernel
    for lost in (None, kernel):  # no copy of it, and it itself
        with pytest.raises(ValueError, match="where in it the variables a/kernel belong"):
            _account(model, copy, {**twins, id(kernel): lost}, [], "it")


@pytest.mark.tensorflow
def test_a_layer_of_another_width_keeps_all_but_its_kernel():
    model, _ = around()
    out = model.get_layer("out")
    out.bias.assign([1.0, 2.0, 3.0])
    out.kernel.trainable = False
    with pytest.warns(UserWarning, match="kernels of out start anew"):
        smaller = remove_layer(model, "b")
    new = smaller.get_layer("out")
    np.testing.assert_array_equal(np.asarray(new.bias), [1.0, 2.0, 3.0])
    assert new.kernel.shape == (8, 3)
    assert [(v.path, v.trainable) for v in new.variables] == [
        (v.path, v.trainable) for v in out.variables
    ]


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="of modules of PyTorch")
def test_modules_of_pytorch_are_copied_with_what_they_hold():
    import torch

    wrapped = layers.TorchModuleWrapper(torch.nn.Linear(8, 3), output_shape=(None, 3), name="w")
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(8, "relu"), wrapped, layers.Dense(2, name="out")]
    )
    copy, _ = without(model, None)
    twin = copy.get_layer("w")
    assert twin.module is not wrapped.module
    assert twin.module.weight is twin.weights[0].value  # what is trained is what is asked
    listed = {id(part) for layer in copy.layers for part in layer.parameters()}
    assert not listed & {id(part) for part in model.parameters()}
    before = [as_bits(v) for v in model.weights]
    x, y = like(4), like(2)
    for each in (copy, model):
        each.compile("sgd", "mse")
        each.fit(x, y, batch_size=5, shuffle=False, verbose=0)
        if each is copy:
            assert [as_bits(v) for v in model.weights] == before
    assert [as_bits(v) for v in model.weights] == [as_bits(v) for v in copy.weights]
