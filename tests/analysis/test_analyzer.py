"""Every kind of model, data and option against NumPy written from the formulas."""

import concurrent.futures
import warnings

import keras
import models
import numpy as np
import pytest
import reference
from backends import some_on_each
from keras import layers, ops
from precision import roundings

from keras_layer_entropy import ActivationProbe, EntropyAnalyzer, analyze_model
from keras_layer_entropy.measures import ActivationEntropy
from keras_layer_entropy.recording.untrained import untrained

ALL_MEASURES = ("activation_entropy", "instability", "state_entropy")
# float32 activations of size 10 carry errors of 1e-6, which the entropy multiplies by a few.
FLOAT32 = dict(rtol=0, atol=1e-5)
# How values reach the statistics differs by backend: each kind of model is measured on each. What
# is then done with them does not, so that one of each way of calling layers is enough.
NOT_FROZEN = some_on_each(models.FLOAT32, [m for m in models.FLOAT32 if m is not models.frozen])
FEW = some_on_each(models.FLOAT32, (models.sequential, models.batch_normalized, models.subclassed))


def check_profile(profile, case, expected, *, state_atol=None, **tolerance):
    classes = len(profile.classes)
    state = tolerance if state_atol is None else {"rtol": 0, "atol": state_atol}
    assert profile.layers == tuple(expected)
    for row, (pattern, pre) in enumerate(expected.values()):
        given = (case.y % classes, classes)
        for name, want in (
            (
                "activation_entropy",
                reference.by_class(reference.activation_entropy, pattern, *given),
            ),
            ("instability", reference.by_class(reference.instability, pattern, *given)),
            ("state_entropy", reference.by_class(reference.state_entropy, pre, *given)),
        ):
            allowed = state if name == "state_entropy" else tolerance
            np.testing.assert_allclose(profile[name].per_class[row], want, **allowed, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("make", NOT_FROZEN, ids=lambda f: f.__name__)
def test_every_kind_of_model(make):
    case = make()
    expected = case.expected()
    before = {id(layer): dict(vars(layer)) for layer in case.model._flatten_layers()}

    y = case.y % (2 if make is models.single_sigmoid else models.CLASSES)
    # Two batches of one size, because JAX compiles for each.
    profile = analyze_model(
        case.model, (case.x, y), measures=ALL_MEASURES, batch_size=25, verbose=0
    )

    check_profile(profile, case, expected, **FLOAT32)
    assert profile.is_output == (*[False] * (len(expected) - 1), True)
    np.testing.assert_array_equal(profile.count, np.bincount(y))
    for layer in case.model._flatten_layers():
        assert vars(layer).keys() == before[id(layer)].keys()
        assert vars(layer).get("call") is None


@pytest.mark.parametrize("make", models.HALF, ids=lambda f: f.__name__)
def test_half_precision(make):
    case = make()
    expected = case.expected()

    profile = analyze_model(case.model, (case.x, case.y), measures=ALL_MEASURES, verbose=0)

    # Sum and bias of two layers are rounded, activations of some 4. What lies nearer to 0 than that
    # is on or off: one of 17 samples of a class, which is 0.32 bits of one unit of three or more.
    allowed = roundings(4 * 4, make.__name__)
    check_profile(profile, case, expected, rtol=0, atol=allowed, state_atol=0.11)
    assert {x.per_class.dtype for x in profile.results.values()} == {np.dtype("float64")}
    assert profile.is_output == (False, True)  # the softmax in float32 belongs to the last layer


@pytest.mark.parametrize("make", FEW, ids=lambda f: f.__name__)
def test_probe_predicts_outputs(make):
    case = make()
    expected = case.expected()

    outputs = ActivationProbe(case.model).predict(case.x, verbose=0)

    assert set(outputs) == set(expected)
    # The last layer's output is the model's: probabilities where the pattern is made of logits.
    expected["out"] = (case.model.predict(case.x, verbose=0), None)
    for path, (want, _) in expected.items():
        # float32 sums of some ten products of size 10.
        np.testing.assert_allclose(outputs[path], want, rtol=1e-4, atol=1e-4)


def test_patterns_and_normalizations():
    case = models.nested()
    expected = case.expected()
    for pattern, normalization, divisor in (
        ("mean_then_softmax", "log", np.log),
        ("softmax_then_mean", "none", np.ones_like),
        ("per_sample", lambda n: 2.0 * n, lambda n: 2.0 * n),
    ):
        measure = ActivationEntropy(pattern, normalization)
        profile = analyze_model(case.model, (case.x, case.y), measures=measure, verbose=0)
        for row, (values, _) in enumerate(expected.values()):
            nats = reference.by_class(
                reference.activation_entropy,
                values,
                case.y,
                models.CLASSES,
                pattern=pattern,
                normalize=False,
            )
            np.testing.assert_allclose(profile.entropy_nats[row], nats, **FLOAT32)
            units = np.float64(values.shape[-1])
            np.testing.assert_allclose(profile.entropy[row], nats / divisor(units), **FLOAT32)


@pytest.mark.parametrize("pattern", ["mean_then_softmax", "softmax_then_mean"])
def test_patterns_are_kept(pattern):
    case = models.nested()
    expected = case.expected()
    measure = ActivationEntropy(pattern, keep_patterns=True)
    profile = analyze_model(case.model, (case.x, case.y), measures=measure, verbose=0)
    assert set(profile.patterns) == set(expected)
    for layer, (values, _) in expected.items():
        rows = [values[case.y == c].reshape(-1, values.shape[-1]) for c in range(models.CLASSES)]
        want = {
            "mean_then_softmax": [reference.softmax(r.mean(axis=0)) for r in rows],
            "softmax_then_mean": [reference.softmax(r).mean(axis=0) for r in rows],
        }[pattern]
        np.testing.assert_allclose(profile.patterns[layer], want, **FLOAT32)
        # The entropy of what is kept is what is measured.
        np.testing.assert_allclose(
            reference.entropy(profile.patterns[layer]),
            profile.entropy_nats[profile.layers.index(layer)],
            **FLOAT32,
        )
    assert analyze_model(case.model, (case.x, case.y), verbose=0).patterns == {}


def test_patterns_of_single_samples():
    case = models.nested()
    expected = case.expected()
    found = ActivationProbe(case.model, patterns=True).predict(case.x, verbose=0)
    for layer, (values, _) in expected.items():
        np.testing.assert_allclose(found[layer], reference.softmax(values), **FLOAT32)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1, "sigmoid", name="out")])
    x = np.eye(4, dtype="float32")
    found = ActivationProbe(model, patterns=True).predict(x, verbose=0)["out"]
    on = model.predict(x, verbose=0)[:, 0]
    np.testing.assert_allclose(found, np.stack([1 - on, on], axis=-1), **FLOAT32)


def test_softmax_output_is_read_through_its_logits():
    model = keras.Sequential([keras.Input((10,)), layers.Dense(10, "softmax", name="out")])
    model.layers[-1].set_weights([40.0 * np.eye(10), np.zeros(10)])
    x, y = np.eye(10, dtype="float32"), np.arange(10)

    profile = analyze_model(model, (x, y), verbose=0)

    np.testing.assert_allclose(profile.entropy, 0.0, atol=1e-9)
    # The trap: the entropy of the same one-hot outputs, taken as activations.
    trap = reference.activation_entropy(model.predict(x, verbose=0)[:1])
    assert trap == pytest.approx(0.968, abs=5e-4)


@pytest.mark.tensorflow
def test_labels_in_every_form_agree():
    case = models.sequential()
    x, y = case.x, case.y
    want = analyze_model(case.model, (x, y), verbose=0).entropy
    one_hot = np.eye(models.CLASSES)[y]
    soft = 0.9 * one_hot + 0.1 / models.CLASSES
    for form in (y[:, None], y.astype("float32"), one_hot, one_hot.astype("int64"), soft):
        profile = analyze_model(case.model, (x, form), verbose=0)
        np.testing.assert_array_equal(profile.entropy, want)
        assert profile.classes == ("0", "1", "2")


def test_without_labels_everything_is_one_class():
    case = models.sequential()
    expected = case.expected()
    analyzer = EntropyAnalyzer(case.model)
    for data in (case.x, (case.x,), (case.x, None)):
        profile = analyzer.analyze(data, verbose=0)
        assert profile.classes == ("all",)
        assert profile.count.tolist() == [50]
        want = [reference.activation_entropy(a) for a, _ in expected.values()]
        np.testing.assert_allclose(profile.entropy[:, 0], want, **FLOAT32)


def test_sample_weights(random):
    case = models.sequential()
    expected = case.expected()
    weight = random.uniform(0, 2, size=50)
    weight[:10] = 0

    profile = analyze_model(case.model, (case.x, case.y, weight), verbose=0)

    for row, (pattern, _) in enumerate(expected.values()):
        want = [
            reference.activation_entropy(pattern[case.y == c], weight=weight[case.y == c])
            for c in range(models.CLASSES)
        ]
        np.testing.assert_allclose(profile.entropy[row], want, **FLOAT32)
    np.testing.assert_array_equal(profile.count, np.bincount(case.y[10:]))


def test_masked_positions_do_not_count(random):
    inputs = keras.Input((4,), dtype="int32")
    x = layers.Embedding(9, 8, mask_zero=True, name="embed")(inputs)
    x = layers.Dense(6, "relu", name="a")(x)
    outputs = layers.Dense(3, name="out")(layers.GlobalAveragePooling1D()(x))
    model = keras.Model(inputs, outputs)
    tokens, y = random.integers(0, 3, (50, 4)), np.arange(50) % 3
    tokens[:, 0] = 1  # an empty row would have no mean

    profile = analyze_model(model, (tokens, y), verbose=0)

    a = models.relu(models.linear(model.get_layer("a"), model.get_layer("embed")(tokens)))
    want = [reference.activation_entropy(a[y == c][tokens[y == c] != 0]) for c in range(3)]
    np.testing.assert_allclose(profile.entropy[0], want, **FLOAT32)


def test_labels_per_position(random):
    inputs = keras.Input((4, 8))
    model = keras.Model(
        inputs, layers.Dense(3, name="out")(layers.Dense(6, "relu", name="a")(inputs))
    )
    x = random.normal(size=(50, 4, 8)).astype("float32")
    y = random.integers(0, 3, (50, 4))

    profile = analyze_model(model, (x, y), verbose=0)

    a = models.relu(models.linear(model.get_layer("a"), x))
    want = [reference.activation_entropy(a[y == c]) for c in range(3)]
    np.testing.assert_allclose(profile.entropy[0], want, **FLOAT32)
    np.testing.assert_array_equal(profile.count, np.bincount(y.ravel()))


def test_convolution_channels_are_units(random):
    case = models.convolutional()
    profile = analyze_model(
        case.model, (case.x, case.y), layers=keras.layers.Conv2D, measures=ALL_MEASURES, verbose=0
    )

    maps = keras.ops.convert_to_numpy(case.model.get_layer("conv")(case.x))
    assert (profile.layers, profile.widths) == (("conv",), (4,))
    want = reference.by_class(reference.activation_entropy, maps, case.y, 3)
    np.testing.assert_allclose(profile.entropy[0], want, **FLOAT32)


def test_several_outputs_are_chosen_by_key():
    inputs = keras.Input((8,))
    x = layers.Dense(6, "relu", name="a")(inputs)
    model = keras.Model(
        inputs,
        {"kind": layers.Dense(3, name="kind")(x), "size": layers.Dense(1, name="size")(x)},
    )
    x, y = models.inputs_like(8), np.arange(50) % 3
    labels = {"kind": y, "size": np.ones((50, 1), "float32")}

    with pytest.raises(ValueError, match=r"labels for 2 outputs.*num_classes=\{'kind': None\}"):
        analyze_model(model, (x, labels), verbose=0)
    by_key = analyze_model(model, (x, labels), num_classes={"kind": None}, verbose=0)
    model.compile("sgd", {"kind": "sparse_categorical_crossentropy", "size": "mse"})
    by_loss = analyze_model(model, (x, labels), verbose=0)

    a = models.relu(models.linear(model.get_layer("a"), x))
    want = reference.by_class(reference.activation_entropy, a, y, 3)
    for profile in (by_key, by_loss):
        np.testing.assert_allclose(profile.entropy[0], want, **FLOAT32)
        assert profile.is_output == (False, True, True)


def test_model_metrics_are_those_of_evaluate():
    case = models.sequential()
    case.model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])

    profile = analyze_model(case.model, (case.x, case.y), batch_size=16, verbose=0)

    want = case.model.evaluate(case.x, case.y, verbose=0, return_dict=True)
    assert profile.metrics == pytest.approx(want, rel=1e-5)  # another order of float32 sums


@pytest.mark.tensorflow
def test_regression_targets_are_no_classes():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(4, name="a"), layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.warns(UserWarning, match="targets of a regression"):
        profile = analyze_model(model, (models.inputs_like(8), np.ones(50)), verbose=0)
    assert profile.classes == ("all",)


def test_analyzer_is_used_again_and_parts_add_up():
    case = models.nested()
    analyzer = EntropyAnalyzer(case.model)
    first = analyzer.analyze((case.x[:20], case.y[:20]), verbose=0)
    whole = analyzer.analyze((case.x, case.y), verbose=0)
    again = analyzer.analyze((case.x[:20], case.y[:20]), verbose=0)
    np.testing.assert_array_equal(first.entropy, again.entropy)
    assert (whole.count.sum(), first.count.sum()) == (50, 20)


@pytest.mark.tensorflow
def test_analyzer_refuses_data_of_another_kind():
    case = models.sequential()
    analyzer = EntropyAnalyzer(case.model)
    analyzer.analyze((case.x, case.y), verbose=0)
    with pytest.raises(ValueError, match="The data have no labels, unlike those measured first"):
        analyzer.analyze(case.x, verbose=0)


@pytest.mark.tensorflow
def test_too_many_classes_are_refused():
    # Three float32 for each of 9 units and for a weight in each of two layers: 132 bytes a class.
    case = models.sequential()
    with pytest.raises(ValueError, match=r"need 122.9 GiB: choose fewer layers.*num_classes=1"):
        analyze_model(case.model, (case.x, case.y), num_classes=10**9, verbose=0)
    profile = analyze_model(case.model, (case.x, case.y), num_classes=1, verbose=0)
    assert profile.classes == ("all",)


def test_batch_size_does_not_matter():
    case = models.subclassed()
    case.expected()
    values = [
        analyze_model(case.model, (case.x, case.y), batch_size=size, verbose=0).entropy
        for size in (7, 50)  # the last of 7 is a sample alone
    ]
    # Only the order of float32 additions differs.
    np.testing.assert_allclose(values[0], values[1], atol=1e-6)


@pytest.mark.tensorflow
def test_every_kind_of_data():
    import tensorflow as tf

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 5

        def __getitem__(self, i):
            return case.x[i * 10 : i * 10 + 10], case.y[i * 10 : i * 10 + 10]

    case = models.sequential()
    dataset = tf.data.Dataset.from_tensor_slices((case.x, case.y)).batch(16)
    want = analyze_model(case.model, (case.x, case.y), verbose=0)
    for data in (dataset, Batches(), (batch for batch in dataset.as_numpy_iterator())):
        profile = analyze_model(case.model, data, verbose=0)
        np.testing.assert_allclose(profile.entropy, want.entropy, atol=1e-6)
        np.testing.assert_array_equal(profile.count, want.count)
    some = analyze_model(case.model, dataset.repeat(), steps=2, verbose=0)
    assert some.count.sum() == 32


def test_generator_is_read_once():
    case = models.sequential()
    batches = ((case.x[i : i + 10], case.y[i : i + 10]) for i in range(0, 50, 10))
    assert analyze_model(case.model, batches, verbose=0).count.sum() == 50
    with pytest.raises(ValueError, match="can be read only once"):
        analyze_model(case.model, iter([(case.x, case.y)]), baseline=True, verbose=0)


@pytest.mark.slow
@pytest.mark.parametrize("make", FEW, ids=lambda f: f.__name__)
def test_baseline_is_the_untrained_twin(make):
    case = make()
    case.expected()
    weights = case.model.get_weights()
    y = case.y % (2 if make is models.single_sigmoid else models.CLASSES)
    analyzer = EntropyAnalyzer(case.model)

    def measure(seed):
        return analyzer.analyze((case.x, y), baseline=True, seed=seed, verbose=0)

    profile, same, other = measure(0), measure(0), measure(1)

    np.testing.assert_array_equal(profile.baseline.entropy, same.baseline.entropy)
    assert (profile.baseline.entropy != other.baseline.entropy).any()
    assert (profile.baseline.entropy != profile.entropy).any()
    assert profile.settings["baseline_seed"] == 0
    for before, after in zip(weights, case.model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_baseline_weights_have_the_initial_distribution():
    model = keras.Sequential([keras.Input((300,)), layers.Dense(200, name="a")])
    model.layers[0].set_weights([np.full((300, 200), 7.0), np.full(200, 7.0)])
    with untrained(model, seed=3):
        kernel, bias = model.get_weights()
    limit = np.sqrt(6 / 500)  # Glorot uniform
    assert np.abs(kernel).max() <= limit
    # 60,000 draws: the standard error of the deviation is 0.2 %.
    assert kernel.std() == pytest.approx(limit / np.sqrt(3), rel=0.02)
    assert not bias.any()


def test_baseline_keeps_what_was_not_trained():
    normalize = layers.Normalization()
    normalize.adapt(5 + models.inputs_like(8))
    model = keras.Sequential([normalize, layers.BatchNormalization(), layers.Dense(3, name="out")])
    x = models.inputs_like(8)
    model(x)
    adapted = [np.array(ops.convert_to_numpy(w)) for w in normalize.weights]
    assert len(adapted) == 3
    model.layers[1].moving_mean.assign(np.full(8, 3.0))
    with untrained(model):
        for weight, value in zip(normalize.weights, adapted, strict=True):
            np.testing.assert_array_equal(ops.convert_to_numpy(weight), value)
        assert not np.asarray(model.layers[1].moving_mean).any()
    assert np.asarray(model.layers[1].moving_mean).all()


@pytest.mark.tensorflow
def test_absent_class_is_nan_and_named():
    case = models.sequential()
    keep = case.y != 1
    with pytest.warns(UserWarning, match=r"No sample belongs to 1 of 3 classes \(1\)"):
        profile = analyze_model(case.model, (case.x[keep], case.y[keep]), verbose=0)
    assert np.isnan(profile.entropy[:, 1]).all()
    np.testing.assert_allclose(profile.mean, profile.entropy[:, [0, 2]].mean(axis=1), rtol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_activations_that_are_not_finite_are_named(bad):
    # Linear layers: on some machines the ReLU of NaN is 0.
    dense = [keras.layers.Dense(6, name="a"), keras.layers.Dense(3, name="out")]
    model = keras.Sequential([keras.Input((8,)), *dense])
    x, y = np.ones((50, 8)), np.arange(50) % 3
    x[np.flatnonzero(y == 2)[0], 0] = bad
    with pytest.warns(UserWarning, match="Layer 'a' has NaN or infinite activations.*2:"):
        profile = analyze_model(model, (x, y), verbose=0)
    assert np.isnan(profile.entropy[0]).tolist() == [False, False, True]


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full(50, 3), "50 labels are no class 0..2, for example 3"),
        (np.full(50, -1), "for example -1"),
        (np.full(50, 0.5), "for example 0.5"),
    ],
)
def test_labels_out_of_range(labels, message):
    case = models.sequential()
    with pytest.raises(ValueError, match=message):
        analyze_model(case.model, (case.x, labels), verbose=0)


def test_weightless_samples_may_have_any_label():
    case = models.sequential()
    y, weight = case.y.copy(), np.ones(50)
    y[:5], weight[:5] = 255, 0
    assert analyze_model(case.model, (case.x, y, weight), verbose=0).count.sum() == 45


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(layers="dens"), "There is no layer 'dens'.*It has"),
        (dict(layers=["a", "outt"]), "did you mean 'out'"),
        (dict(layers=keras.layers.Conv1D), "fits no layer"),
        (dict(layers=lambda layer: False), "fits no layer"),
        (dict(measures=("entropy",)), "measures='entropy'; expected some of"),
        (dict(measures=5), "measures=5; expected some of"),
        (dict(measures=()), "expected some of"),
        (dict(measures=["logdet", "logdet"]), "Several measures are called logdet"),
        (dict(num_classes=0), "num_classes=0; expected a positive int"),
        (dict(num_classes={"a": 1, "b": 2}), "expected exactly one"),
    ],
)
def test_bad_options(options, message):
    case = models.sequential()
    with pytest.raises(ValueError, match=message):
        analyze_model(case.model, (case.x, case.y), verbose=0, **options)


@pytest.mark.tensorflow
def test_bad_data():
    case = models.sequential()
    for empty in ((case.x[:0], case.y[:0]), iter([])):
        with pytest.raises(ValueError, match="hold no samples"):
            analyze_model(case.model, empty, verbose=0)
    with pytest.raises(ValueError, match="the data have no labels"):
        analyze_model(case.model, case.x, num_classes=3, verbose=0)
    with pytest.raises(ValueError, match="has no Dense layer"):
        analyze_model(keras.Sequential([layers.Flatten()]), (case.x, case.y), verbose=0)


@pytest.mark.tensorflow
def test_function_inside_the_model_is_explained():
    import tensorflow as tf

    class Decorated(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3)

        @tf.function
        def call(self, x):
            return self.dense(x)

    with pytest.raises(ValueError, match="take @tf.function off"):
        analyze_model(Decorated(), models.inputs_like(8), verbose=0)


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("scale", ["one", "varied"])
def test_a_million_samples_do_not_drift(scale, random):
    """float32 sums of 1e6 samples with mean 1e4 against float64."""
    model = keras.Sequential([keras.Input((8,)), layers.Identity()])
    spread = np.ones(8) if scale == "one" else np.linspace(0.5, 3, 8)
    blocks = [
        (1e4 + np.linspace(-1, 1, 8) + spread * random.normal(size=(1000, 8))).astype("float32")
        for _ in range(1000)
    ]
    profile = analyze_model(
        model, iter(blocks), layers=keras.layers.Identity, measures=ALL_MEASURES, verbose=0
    )

    mean = np.mean([block.astype(np.float64).mean(axis=0) for block in blocks], axis=0)
    want = reference.activation_entropy(mean[None])
    np.testing.assert_allclose(profile.entropy, want, rtol=0, atol=1e-5)
    soft = np.mean([reference.softmax(b.astype(np.float64)).mean(axis=0) for b in blocks], axis=0)
    own = np.mean([reference.activation_entropy(b, "per_sample") for b in blocks])
    want = reference.entropy(soft) / np.log(8) - own
    np.testing.assert_allclose(profile["instability"].per_class, want, rtol=0, atol=1e-5)


def test_float64_policy():
    keras.config.set_dtype_policy("float64")
    case = models.sequential()
    expected = case.expected()
    profile = analyze_model(case.model, (case.x, case.y), measures=ALL_MEASURES, verbose=0)
    check_profile(profile, case, expected, **FLOAT32)


@pytest.mark.tensorflow
def test_boolean_one_hot_and_plain_lists():
    case = models.sequential()
    want = analyze_model(case.model, (case.x, case.y), verbose=0)
    one_hot = np.eye(3, dtype=bool)[case.y]
    for labels in (one_hot, case.y.tolist()):
        found = analyze_model(case.model, (case.x, labels), verbose=0)
        np.testing.assert_array_equal(found.entropy, want.entropy)


@pytest.mark.tensorflow
def test_layers_that_do_not_fit_the_labels():
    inputs = keras.Input((4, 8))
    tokens = layers.Dense(3, name="tokens")(layers.Dense(6, name="a")(inputs))
    pooled = layers.Dense(2, name="pooled")(layers.GlobalAveragePooling1D()(inputs))
    model = keras.Model(inputs, [tokens, pooled])
    x, y = models.inputs_like(4, 8), np.zeros((50, 4), int)
    data = (x, (y, y[:, 0]))
    with pytest.raises(ValueError, match=r"Layer 'pooled' has activations of shape \(50, 2\)"):
        analyze_model(model, data, num_classes={0: None}, verbose=0)
    y[:, 1:3] = (1, 2)
    profile = analyze_model(model, data, num_classes={0: 3}, layers=["a", "tokens"], verbose=0)
    assert profile.count.tolist() == [100, 50, 50]


@pytest.mark.parametrize(
    "give",
    [
        lambda z: {"attention": None, "logits": z},
        lambda z: {"count": 3, "logits": z},
        lambda z: (None, z),
        lambda z: [z, None, 2.0],
    ],
)
def test_models_that_return_more_than_tensors(give):
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.a, self.out = layers.Dense(6, "relu", name="a"), layers.Dense(3, name="out")

        def call(self, x):
            return give(self.out(self.a(x)))

    model, x, y = Model(), models.inputs_like(8), np.arange(50) % 3
    profile = analyze_model(model, (x, y), verbose=0)
    a = models.relu(models.linear(model.a, x))
    want = reference.by_class(reference.activation_entropy, a, y, 3)
    np.testing.assert_allclose(profile.entropy[0], want, **FLOAT32)
    assert profile.is_output == (False, True)


@pytest.mark.tensorflow
def test_threads_measure_models_that_share_layers():
    """The twin's fresh weights are in the shared layer while its analysis lasts, and only then."""
    shared = layers.Dense(6, "relu", name="shared")
    built = [
        keras.Sequential([keras.Input((8,)), shared, layers.Dense(3, name=f"out{i}")])
        for i in range(2)
    ]
    x, y = models.inputs_like(8), np.arange(50) % 3

    def measure(model):
        return analyze_model(model, (x, y), baseline=True, verbose=0)

    want = [measure(model) for model in built]
    weights = [model.get_weights() for model in built]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        found = list(threads.map(measure, built * 3))
    for i, profile in enumerate(found):
        np.testing.assert_array_equal(profile.entropy, want[i % 2].entropy)
        np.testing.assert_array_equal(profile.baseline.entropy, want[i % 2].baseline.entropy)
    for model, before in zip(built, weights, strict=True):
        for weight, value in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(weight, value)


def own_loss(y, z):
    return ops.mean(ops.square(ops.cast(y, z.dtype) - z))


RANDOM = np.random.default_rng(0)
NO_CLASSES = {
    "boxes": RANDOM.uniform(0, 1, (50, 4)),
    "negative boxes": -RANDOM.uniform(0, 1, (50, 4)),
    "any numbers": RANDOM.normal(size=(50, 4)),
    "ids": RANDOM.integers(0, 9, (50, 4)),
    "-1 and 1": RANDOM.choice([-1, 1], (50, 4)),
    "one such row, at the end": np.concatenate([np.eye(4)[np.arange(49) % 4], [[0.2] * 4]]),
}
CLASSES = {
    "one-hot": np.eye(4)[np.arange(50) % 4],
    "integers": np.eye(4, dtype="int64")[np.arange(50) % 4],
    "smoothed": 0.9 * np.eye(4)[np.arange(50) % 4] + 0.025,
    "shares": RANDOM.dirichlet(np.ones(4), 50),
}


@pytest.mark.slow
@pytest.mark.parametrize("loss", [own_loss, None])
@pytest.mark.parametrize("kind", [*NO_CLASSES, *CLASSES])
def test_values_of_rows_are_looked_at_in_every_batch(kind, loss):
    model = keras.Sequential([keras.Input((5,)), layers.Dense(4, name="out")])
    if loss is not None:
        model.compile("sgd", loss)
    x = np.ones((50, 5))
    if kind in CLASSES:
        y = CLASSES[kind]
        profile = analyze_model(model, (x, y), batch_size=8, verbose=0)
        assert profile.count.tolist() == np.bincount(y.argmax(axis=1), minlength=4).tolist()
        return
    y = NO_CLASSES[kind]
    for num_classes in (None, 4):
        with pytest.raises(ValueError, match="no classes.*regression.*num_classes=1"):
            analyze_model(model, (x, y), batch_size=8, num_classes=num_classes, verbose=0)
    assert analyze_model(model, (x, y), num_classes=1, verbose=0).classes == ("all",)


@pytest.mark.parametrize(
    ("loss", "num_classes", "said"),
    [
        (own_loss, None, True),
        (None, None, True),
        ("categorical_crossentropy", None, True),
        ("binary_crossentropy", None, False),
        (own_loss, 4, False),
    ],
)
def test_rows_of_several_classes_or_none_are_said(loss, num_classes, said):
    model = keras.Sequential([keras.Input((5,)), layers.Dense(4, "sigmoid", name="out")])
    if loss is not None:
        model.compile("sgd", loss)
    y = np.eye(4, dtype="int64")[np.arange(50) % 4]
    y[:3], y[40:42] = 1, 0
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        data = (np.ones((50, 5)), y)
        profile = analyze_model(model, data, num_classes=num_classes, batch_size=8, verbose=0)
    assert profile.count.tolist() == y.sum(axis=0).tolist()
    assert (
        any("5 rows of labels hold several ones or none" in str(w.message) for w in found) == said
    )


@pytest.mark.parametrize("loss", ["hinge", "squared_hinge"])
def test_labels_of_hinge_losses(loss):
    model = keras.Sequential([keras.Input((5,)), layers.Dense(1, "tanh", name="out")])
    model.compile("sgd", loss)
    y = np.where(np.arange(50) % 5 < 2, -1.0, 1.0)
    assert analyze_model(model, (np.ones((50, 5)), y), verbose=0).count.tolist() == [20, 30]


def padded():
    """A model of sequences, its inputs, labels per step (0 in the padding), and what counts."""
    random = np.random.default_rng(0)
    x, y = random.integers(1, 10, (40, 7)), random.integers(1, 4, (40, 7))
    keep = np.arange(7) < random.integers(1, 7, (40, 1))
    x[~keep], y[~keep] = 0, 0
    embed = layers.Embedding(10, 4, mask_zero=True, embeddings_initializer="normal")
    steps = [embed, layers.Dense(5, "relu", name="h"), layers.Dense(4, name="out")]
    model = keras.Sequential([keras.Input((7,)), *steps])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model, x, y, keep


def test_masked_steps_count_nowhere():
    model, x, y, keep = padded()
    with pytest.warns(UserWarning, match=r"No sample belongs to 1 of 4 classes \(0\)"):
        profile = analyze_model(model, (x, y), batch_size=16, verbose=0)
    assert profile.count.tolist() == np.bincount(y[keep], minlength=4).tolist()
    out = ops.convert_to_numpy(model(x))
    want = reference.by_class(reference.activation_entropy, out[keep], y[keep], 4)
    np.testing.assert_allclose(profile.entropy[-1][1:], want[1:], **FLOAT32)
    assert np.isnan(profile.entropy[:, 0]).all()


@pytest.mark.filterwarnings("ignore:No sample belongs")
def test_labels_of_masked_steps_may_be_anything():
    model, x, y, keep = padded()
    model = keras.Model(model.inputs, model.outputs)  # TensorFlow's loss takes no such labels
    expected = analyze_model(model, (x, np.where(keep, y, 1)), verbose=0)
    for anything in (-100, 255):
        found = analyze_model(model, (x, np.where(keep, y, anything)), verbose=0)
        np.testing.assert_array_equal(found.count, expected.count)
    with pytest.raises(ValueError, match="for example 255"):
        analyze_model(model, (x, np.full_like(y, 255)), verbose=0)


def test_samples_of_padding_alone_do_not_count():
    """A label per sample: one step that is not masked makes a sample."""
    model, x, _, _ = padded()
    model = keras.Model(model.inputs, model.outputs)  # its loss is one of steps
    x, label = x.copy(), np.arange(40) % 4
    x[label == 3] = 0
    with pytest.warns(UserWarning, match=r"No sample belongs to 1 of 4 classes \(3\)"):
        assert analyze_model(model, (x, label), verbose=0).count.tolist() == [10, 10, 10, 0]
    assert analyze_model(model, x, verbose=0).count.tolist() == [30]


def test_a_layer_without_a_mask_counts_every_step():
    model, x, y, keep = padded()
    whole = layers.Dense(3, name="whole")(
        layers.Lambda(lambda t: t + 0.0)(model.inputs[0][..., None])
    )
    both = keras.Model(model.inputs, [model.outputs[0], whole])
    profile = analyze_model(both, (x, (y, y)), num_classes={0: 4}, verbose=0)
    assert profile.count.tolist() == np.bincount(y.ravel(), minlength=4).tolist()


@pytest.mark.filterwarnings("ignore:No sample belongs")
def test_samples_of_padding_alone_are_not_compared():
    model, x, _, _ = padded()
    model = keras.Model(model.inputs, model.outputs)
    x, label = x.copy(), np.arange(40) % 4
    x[label == 3] = 0
    options = dict(layers=["h"], measures="logdet", verbose=0)
    with_padding = analyze_model(model, (x, label), **options)
    without = analyze_model(model, (x[label < 3], label[label < 3]), **options)
    # Another order of the samples. JAX has no float64 by default: there the rounding of a variance,
    # 2^-24, counts beta = 100 x 7 inputs times in an entropy, 4e-5.
    atol = 0.0 if keras.backend.backend() == "tensorflow" else 5e-5
    for name in ("entropy", "labels"):
        found, want = (x["logdet"].whole[name] for x in (with_padding, without))
        np.testing.assert_allclose(found, want, rtol=1e-6, atol=atol)
