"""All measures together, as users ask for them: in one pass, in `fit`, on the command line."""

import csv
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from command_lines import call
from keras import layers

from keras_layer_entropy import (
    ActivationProbe,
    EntropyAnalyzer,
    EntropyMonitor,
    EntropyProfile,
    analyze_model,
    plots,
    report,
    save_model,
)
from keras_layer_entropy.datasets import DatasetSpec
from keras_layer_entropy.measures import (
    MEASURES,
    ActivationEntropy,
    LogDet,
    MutualInformation,
    feature_entropy,
    pairs,
)
from keras_layer_entropy.measures.births import birth_index
from keras_layer_entropy.measures.measure import LayerInfo, Samples
from keras_layer_entropy.measures.registry import get_measures, parse_measure

CLASSES = 3


def small_cnn(height=8, width=8, activation="relu"):
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((height, width, 1)),
            layers.Conv2D(4, 3, activation=activation, padding="same", name="conv"),
            layers.Flatten(),
            layers.Dense(12, "tanh", name="hidden"),
            layers.Dense(CLASSES, "softmax", name="output"),
        ]
    )
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


def images(random, samples=60, height=8, width=8):
    x = random.normal(size=(samples, height, width, 1)).astype("float32")
    return x, random.permutation(np.arange(samples) % CLASSES)


def births(maps):
    """Feature entropy of each unit over maps `[samples, height, width, units]`, by counting."""
    found = np.asarray(birth_index(np.moveaxis(maps, -1, 0)))
    counts = np.array([np.bincount(unit, minlength=51) for unit in found])
    return np.asarray(feature_entropy.feature_entropy(counts))


@pytest.mark.slow
def test_one_pass_measures_everything(random):
    model, (x, y) = small_cnn(), images(random)
    profile = analyze_model(model, (x, y), measures=tuple(MEASURES), batch_size=25, verbose=0)
    assert profile.layers == ("conv", "hidden", "output")
    assert profile.is_output == (False, False, True)
    assert list(profile.results) == list(MEASURES)
    for name, result in profile.results.items():
        assert set(result.whole) == set(MEASURES[name].whole)

    seen = ActivationProbe(model, profile.layers).predict(x, verbose=0)
    for c in range(CLASSES):
        want = births(seen["conv"][y == c]).mean()
        assert profile["feature_entropy"].per_class[0, c] == pytest.approx(want, abs=1e-5)
    assert np.isnan(profile["feature_entropy"].per_class[1:]).all()

    # The kept samples are all of them, in an order of their own, which shows in nothing but the
    # shuffled values.
    flat = [seen[layer].reshape(len(x), -1) for layer in profile.layers]
    samples = Samples(x.reshape(len(x), -1), flat, np.eye(CLASSES, dtype="float32")[y])
    dense = Samples(samples.inputs, flat[1:], samples.membership)
    for measure in (LogDet(), MutualInformation()):
        infos = [LayerInfo(layer, 0, {}) for layer in profile.layers[1:]]
        want, found = measure.result(infos, None, dense), profile[measure.name]
        # float32 activations of another batch size; float32 determinants on JAX.
        close = dict(rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(found.per_class[1:], want.per_class, **close)
        assert np.isnan(found.per_class[0]).all()  # beside Dense layers
        for name, values in want.whole.items():
            within = close
            if (measure.name, name) == ("mutual_information", "input"):
                # In another order samples get other noise.
                within = dict(atol=4 * max(x["input_error"] for x in want.details.values()))
            np.testing.assert_allclose(found.whole[name][1:], values, err_msg=name, **within)


def test_products_of_samples_are_made_once(random, monkeypatch):
    """For both measures, of the one layer with more numbers than there are samples."""
    made, centred_products = [], pairs.centred_products

    def counted(rows):
        made.append(rows.shape)
        return centred_products(rows)

    monkeypatch.setattr(pairs, "centred_products", counted)
    model, data = small_cnn(), images(random)
    layers, measures = ["conv", "hidden"], ("logdet", "mutual_information")
    analyzer = EntropyAnalyzer(model, layers=layers, measures=measures)
    for passes in (1, 2):  # and anew in each pass
        analyzer.analyze(data, verbose=0)
        assert made == [(60, 8 * 8 * 4)] * passes


@pytest.mark.slow
@pytest.mark.tensorflow
def test_batches_and_compiling_change_nothing(random):
    model, (x, y) = small_cnn(), images(random, 90)
    measures = ("logdet", "mutual_information", "feature_entropy")
    one, many = (
        analyze_model(model, (x, y), measures=measures, batch_size=size, verbose=0)
        for size in (90, 2)  # 45 batches are compiled where that pays
    )
    for name, result in one.results.items():
        found = many[name]
        np.testing.assert_allclose(found.per_class, result.per_class, rtol=1e-3, atol=1e-3)
        for key, values in result.columns(name).items():
            np.testing.assert_allclose(found.columns(name)[key], values, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.tensorflow
def test_maps_that_are_not_square_are_resized(random):
    model, (x, y) = small_cnn(6, 9), images(random, height=6, width=9)
    profile = analyze_model(model, (x, y), measures="feature_entropy", verbose=0)
    maps = ActivationProbe(model, "conv").predict(x, verbose=0)["conv"]
    square = np.asarray(keras.ops.image.resize(maps, (9, 9), data_format="channels_last"))
    want = [births(square[y == c]).mean() for c in range(CLASSES)]
    np.testing.assert_allclose(profile["feature_entropy"].per_class[0], want, atol=1e-5)


@pytest.mark.tensorflow
def test_noise_is_that_of_maps_of_the_same_size(random):
    model, data = small_cnn(), images(random)
    profile = analyze_model(model, data, measures="feature_entropy", verbose=0)
    noise = profile["feature_entropy"].whole["noise"]
    # 100 maps of 8 x 8: the entropy of about 12 outcomes, with a standard deviation of some 0.08.
    want = births(random.normal(size=(1000, 8, 8, 1)))[0]
    assert noise[0] == pytest.approx(want, abs=0.3)
    assert np.isnan(noise[1:]).all()


@pytest.mark.tensorflow
def test_options(random):
    model, data = small_cnn(), images(random, 200)
    measures = {"logdet": {"beta": 2.0, "samples": 50}, "mutual_information": {"noise": 0.5}}
    profile = analyze_model(model, data, measures=measures, layers="hidden", verbose=0)
    assert profile.measures["logdet"].options == {"beta": 2.0, "samples": 50}
    assert profile.measures["mutual_information"].options["samples"] == 2000
    # No more than the logarithm of the number of samples that were kept.
    kernel = {"estimator": "kernel", "variance": 1e-9, "samples": 50}
    few = {"mutual_information": kernel}
    alone = analyze_model(model, data, layers="hidden", measures=few, verbose=0)
    assert alone["mutual_information"].whole["input"] == pytest.approx(np.log2(50), abs=1e-4)
    for wrong, words in (
        ({"logdet": {"gamma": 1}}, r"logdet has the options \('beta', 'samples', 'name'\)"),
        ({"state_entropy": {"beta": 1}}, r"state_entropy has the options \('name',\)"),
        (("entropy",), r"expected some of \('activation_entropy', "),
        ((), "expected some of"),
    ):
        with pytest.raises(ValueError, match=words):
            get_measures(wrong)


@pytest.mark.tensorflow
def test_samples_of_weight_0_are_not_compared(random):
    model, (x, y) = small_cnn(), images(random)
    weight = np.float32(np.arange(60) % 2)
    half = analyze_model(model, (x, y, weight), measures="logdet", verbose=0)
    alone = analyze_model(model, (x[1::2], y[1::2]), measures="logdet", verbose=0)
    for name in ("entropy", "input", "labels"):
        found, want = half["logdet"].whole[name], alone["logdet"].whole[name]
        np.testing.assert_allclose(found, want, rtol=1e-3)


@pytest.mark.tensorflow
def test_masked_positions_are_zero(random):
    model = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Embedding(20, 4, mask_zero=True),
            layers.Dense(3, name="dense"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(CLASSES, name="out"),
        ]
    )
    x, y = random.integers(1, 20, (40, 5)), np.arange(40) % CLASSES
    x[:, 3:] = 0
    profile = analyze_model(model, (x, y), measures={"logdet": {"beta": 1.0}}, verbose=0)
    rows = ActivationProbe(model, "dense").predict(x, verbose=0)["dense"][:, :3].reshape(40, -1)
    samples = Samples(x, [rows], np.ones((40, 1)))
    want = LogDet(beta=1.0).result(None, None, samples).whole["entropy"]
    np.testing.assert_allclose(profile["logdet"].whole["entropy"][0], want, rtol=1e-3)


@pytest.mark.tensorflow
def test_labels_for_each_position_cannot_be_compared(random):
    model = keras.Sequential([keras.Input((5, 4)), layers.Dense(3, name="dense")])
    data = random.normal(size=(20, 5, 4)), random.integers(0, 3, (20, 5))
    with pytest.raises(ValueError, match="mutual_information compares whole samples: pass num_cl"):
        analyze_model(model, data, measures="mutual_information", verbose=0)


@pytest.mark.tensorflow
def test_samples_of_different_size_cannot_be_compared(random):
    import tensorflow as tf

    model = keras.Sequential([keras.Input((None, 4)), layers.Dense(3, name="dense")])
    parts = [random.normal(size=(8, steps, 4)).astype("float32") for steps in (5, 7)]
    data = tf.data.Dataset.from_generator(
        lambda: iter(parts), output_signature=tf.TensorSpec((None, None, 4))
    )
    with pytest.raises(ValueError, match="compares samples with one another, which have to be"):
        analyze_model(model, data, measures="logdet", verbose=0)


@pytest.mark.tensorflow
def test_what_needs_maps_says_so_where_there_are_none(random):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="dense")])
    data = random.normal(size=(30, 4)), np.arange(30) % 3
    with pytest.warns(UserWarning, match="None of the layers dense has a feature_entropy"):
        profile = analyze_model(model, data, measures="feature_entropy", verbose=0)
    assert np.isnan(profile["feature_entropy"].per_class).all()


@pytest.mark.tensorflow
def test_activations_that_are_not_finite_are_told(random):
    model, (x, y) = small_cnn(activation="tanh"), images(random)  # ReLU may turn NaN into 0
    x[y == 1] = np.nan
    with pytest.warns(UserWarning, match="The mutual_information of class 0, 1, 2 is not known"):
        profile = analyze_model(model, (x, y), measures="mutual_information", verbose=0)
    assert np.isnan(profile["mutual_information"].per_class).all()
    with pytest.warns(UserWarning, match="'conv' has NaN or infinite activations for class 1:"):
        profile = analyze_model(model, (x, y), measures="feature_entropy", verbose=0)
    assert np.isnan(profile["feature_entropy"].per_class[0]).tolist() == [False, True, False]


@pytest.mark.tensorflow
def test_too_many_samples_are_refused(random):
    model, data = small_cnn(), images(random)
    with pytest.raises(ValueError, match=r"GiB: .* or keep fewer samples for logdet"):
        analyze_model(model, data, measures={"logdet": {"samples": 10**8}}, verbose=0)


@pytest.mark.tensorflow
def test_save_and_load_and_twin(random, tmp_path):
    measures = ("activation_entropy", "logdet", "feature_entropy")
    profile = analyze_model(
        small_cnn(), images(random), measures=measures, baseline=True, verbose=0
    )
    assert set(profile.baseline["logdet"].whole) == set(profile["logdet"].whole)
    profile.save(tmp_path / "profile.json")
    loaded = EntropyProfile.load(tmp_path / "profile.json")
    for name, values in profile["logdet"].columns("logdet").items():
        np.testing.assert_array_equal(loaded["logdet"].columns("logdet")[name], values)
    profile.to_csv(tmp_path / "profile.csv")
    with open(tmp_path / "profile.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    want = profile["logdet"].whole["input"]
    for row in rows:
        at = profile.layers.index(row["layer"])
        found = float(row["logdet_input"] or "nan")  # of the convolution it is not measured
        np.testing.assert_equal(found, want[at])


@pytest.mark.tensorflow
def test_monitor_inside_fit(random):
    model, (x, y) = small_cnn(), images(random, 96)
    monitor = EntropyMonitor(measures=("activation_entropy", "mutual_information", "logdet"))
    history = model.fit(
        x, y, validation_data=(x, y), epochs=2, verbose=0, callbacks=[monitor]
    ).history
    want = analyze_model(model, (x, y), measures="logdet", verbose=0)
    # The same weights, seen in the validation pass of `fit`.
    np.testing.assert_allclose(
        monitor.profiles[-1]["logdet"].whole["input"], want["logdet"].whole["input"], rtol=1e-3
    )  # fmt: skip
    assert history["val_hidden_logdet_input"][-1] == pytest.approx(
        want["logdet"].whole["input"][0], rel=1e-3
    )
    assert {"val_hidden_mutual_information", "val_output_logdet"} <= set(history)
    figure = plots.information_plane(monitor.profiles)
    assert len(figure.axes[0].collections[0].get_offsets()) == 2  # epochs


@pytest.mark.slow
@pytest.mark.tensorflow
def test_command_line(tmp_path):
    """All measures of a network with convolutions: one table each, one CSV, one report."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, activation="relu", name="conv"),
            layers.Flatten(),
            layers.Dense(10, "softmax", name="output"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    spec = DatasetSpec("digits", split="validation", shape=(8, 8, 1))
    path = save_model(model, tmp_path / "model", dataset=spec)
    names = ["activation_entropy", "state_entropy", "logdet", "mutual_information",
             "feature_entropy"]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code, out, err = call(
            "analyze", "--model", path, "--measures", ",".join(names),
            "--output", tmp_path / "result", "--report", tmp_path / "report.html",
        )  # fmt: skip
    assert code == 0, err
    for measure in ("logdet", "mutual_information", "feature_entropy"):
        assert f"{MEASURES[measure].title} ({MEASURES[measure].unit})" in out
    assert "…" not in out  # nothing is cut in a terminal of 80 columns
    profile = EntropyProfile.load(tmp_path / "result" / "profile.json")
    assert list(profile.results) == names
    with open(tmp_path / "result" / "profile.csv") as file:
        columns = set(csv.DictReader(file).fieldnames)
    page = (tmp_path / "report.html").read_text()
    for name in names:
        assert name in columns
        assert f"{MEASURES[name].title} <code>{name}</code>" in page
        for key, words in MEASURES[name].whole.items():
            assert f"{name}_{key}" in columns
            assert f"{words.title} <code>{name}_{key}</code>" in page
    assert "Information plane" in page


@pytest.mark.tensorflow
def test_convolutions_that_come_along_change_no_verdict(random):
    """Beside feature entropy of convolutions the Dense layers are judged as without it."""
    model = small_cnn()
    data = images(random)
    alone = analyze_model(model, data, verbose=0, baseline=True)
    both = analyze_model(
        model, data, measures=[ActivationEntropy(keep_patterns=True), "feature_entropy"],
        verbose=0, baseline=True,
    )  # fmt: skip
    assert both.layers == ("conv", "hidden", "output")
    np.testing.assert_allclose(both.entropy, [[np.nan] * CLASSES, *alone.entropy], atol=1e-6)
    np.testing.assert_allclose(both.gradient, [np.nan, *alone.gradient], atol=1e-6)
    assert both.flat() == alone.flat()
    assert both.is_monotone(1.0)  # no layer can rise by more
    assert both.is_monotone() == alone.is_monotone()
    assert both.judged.tolist() == [False, True, True]
    assert report.summary(both) == report.summary(alone)
    assert both.trend() == ("", "", "output")
    chosen = analyze_model(
        model, data, layers=("conv", "output"), verbose=0,
        measures=("activation_entropy", "feature_entropy"),
    )  # fmt: skip
    assert np.isfinite(chosen.entropy).all()


@pytest.mark.tensorflow
def test_a_profile_of_some_of_its_layers(random):
    measures = [ActivationEntropy(keep_patterns=True), "logdet"]
    profile = analyze_model(
        small_cnn(), images(random), measures=measures, baseline=True, verbose=0
    )
    part = profile.of_layers(["output"])
    assert (part.layers, part.widths, part.is_output) == (("output",), (CLASSES,), (True,))
    np.testing.assert_array_equal(part.entropy, profile.entropy[1:])
    np.testing.assert_array_equal(part.baseline.entropy, profile.baseline.entropy[1:])
    for name, values in profile["logdet"].columns("logdet").items():
        np.testing.assert_array_equal(part["logdet"].columns("logdet")[name], values[1:])
    assert list(part.patterns) == ["output"]
    with pytest.raises(ValueError, match=r"There are no layers \['x'\]"):
        profile.of_layers(["x"])


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("measures", "message"),
    [
        ({"logdet": {"beta": -1.0}}, "beta=-1.0 of logdet; expected a positive number, or None"),
        ({"logdet": {"samples": 1}}, "samples=1 of logdet; expected an int of at least 2"),
        ({"logdet": {"samples": 2.5}}, "samples=2.5"),
        ({"mutual_information": {"noise": 0}}, "noise=0 of mutual_information"),
        ({"feature_entropy": {"max_rank": 0}}, "max_rank=0 of feature_entropy; expected a posit"),
        ({"feature_entropy": {"max_density": 2.0}}, "max_density=2.0 .* in 0..1"),
        ({"logdet": 5}, r"\{'logdet': 5\}; logdet has the options"),
    ],
)
def test_options_are_checked_at_once(measures, message):
    with pytest.raises(ValueError, match=message):
        EntropyMonitor(data=(np.ones((2, 2)), np.ones(2)), measures=measures)


@pytest.mark.tensorflow
def test_what_maps_cannot_have_is_said(random):
    segmenter = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Conv2D(CLASSES, 3, padding="same")]
    )
    x, y = random.normal(size=(6, 8, 8, 1)), random.integers(0, CLASSES, (6, 8, 8))
    with pytest.raises(ValueError, match=r"labels or weights of shape \(6, 8, 8\): pass num_cl"):
        analyze_model(segmenter, (x, y), measures="feature_entropy", verbose=0)
    profile = analyze_model(segmenter, (x, y), measures="feature_entropy", num_classes=1, verbose=0)
    assert np.isfinite(profile["feature_entropy"].per_class).all()

    tiny = keras.Sequential([keras.Input((3, 3, 1)), layers.Conv2D(2, 1), layers.Flatten(),
                             layers.Dense(CLASSES)])  # fmt: skip
    data = random.normal(size=(30, 3, 3, 1)), np.arange(30) % CLASSES
    profile = analyze_model(tiny, data, measures="feature_entropy", verbose=0)
    assert np.isnan(profile["feature_entropy"].per_class).all()  # three vertices have no loop
    assert np.isnan(profile["feature_entropy"].whole["noise"]).all()


@pytest.mark.tensorflow
def test_texts_have_no_logdet():
    import tensorflow as tf

    words = layers.TextVectorization(10, output_sequence_length=4)
    words.adapt(["a b", "c d e"])
    model = keras.Sequential(
        [keras.Input((), dtype="string"), words, layers.Embedding(10, 3),
         layers.GlobalAveragePooling1D(), layers.Dense(2)]
    )  # fmt: skip
    data = tf.data.Dataset.from_tensor_slices((["a b", "c", "d e", "a"], [0, 1, 1, 0])).batch(2)
    with pytest.raises(ValueError, match="which holds no numbers here: leave that measure out"):
        analyze_model(model, data, measures="logdet", verbose=0)
    profile = analyze_model(model, data, measures="mutual_information", verbose=0)
    assert np.isfinite(profile["mutual_information"].per_class).all()


@pytest.mark.slow
@pytest.mark.tensorflow
def test_several_replicas_keep_the_samples_of_all(random):
    """In a process of its own, because devices are divided before TensorFlow starts."""
    code = """
import numpy as np, tensorflow as tf, keras
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from keras_layer_entropy import analyze_model
# The last batch has a sample for one replica, and none for the other.
x = np.random.default_rng(0).normal(size=(97, 4)).astype("float32")
y = np.arange(97) % 3
found = []
both = ("logdet", "mutual_information")
for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, "tanh"),
                                  keras.layers.Dense(3)])
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for measures in (both, both[1:]):  # the second looks at no inputs: there are no columns of them
        profile = analyze_model(model, (x, y), measures=measures, batch_size=32, verbose=0)
        found.append({k: v for name, result in profile.results.items()
                      for k, v in {name: result.per_class, **result.columns(name)}.items()})
for one, several in zip(found[:2], found[2:]):
    for name, values in one.items():
        if not name.endswith("_shuffled"):  # these depend on the order
            np.testing.assert_allclose(several[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
print("the same")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[-2] == "the same", done.stderr[-2000:]


@pytest.mark.tensorflow
def test_a_normalization_of_ones_own_beside_convolutions(random, tmp_path):
    """Where the entropy is not measured there is nothing that it was divided by."""
    measures = [ActivationEntropy(normalization=lambda n: n**0.5), "feature_entropy"]
    profile = analyze_model(small_cnn(), images(random), measures=measures, verbose=0)
    profile.save(tmp_path / "p.json")
    loaded = EntropyProfile.load(tmp_path / "p.json")
    np.testing.assert_allclose(loaded.entropy_nats, profile.entropy_nats)
    np.testing.assert_allclose(
        loaded["activation_entropy"].normalizer, [np.nan, 12**0.5, CLASSES**0.5]
    )
    assert "normalization=<lambda>" in loaded.report(tmp_path / "r.html").read_text().replace(
        "&lt;", "<"
    ).replace("&gt;", ">")


@pytest.mark.tensorflow
def test_a_layer_that_overflows_is_the_one_that_is_named(random):
    dense = layers.Dense
    model = keras.Sequential(
        [keras.Input((4,)), dense(6, "relu", name="a"),
         dense(6, lambda t: keras.ops.exp(1e3 * keras.ops.abs(t)), name="b"),
         dense(CLASSES, name="out")]
    )  # fmt: skip
    data = random.normal(size=(30, 4)), np.arange(30) % CLASSES
    with pytest.warns(UserWarning, match="'b' has NaN or infinite"):
        profile = analyze_model(
            model, data, measures=["activation_entropy", "state_entropy"], verbose=0
        )
    assert report.summary(profile).startswith("No entropy of b")


@pytest.mark.tensorflow
def test_tensorboard_where_a_measure_is_of_no_layer(random, tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(CLASSES, name="out")])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = random.normal(size=(30, 4)), np.arange(30) % CLASSES
    measures = ["activation_entropy", "feature_entropy"]
    monitor = EntropyMonitor(data=(x, y), measures=measures, log_dir=tmp_path)
    with pytest.warns(UserWarning, match="None of the layers out has a feature_entropy"):
        model.fit(x, y, epochs=2, verbose=0, callbacks=[monitor])
    assert len(monitor.profiles) == 2


@pytest.mark.tensorflow
def test_dense_layers_on_maps_have_a_feature_entropy_beside_convolutions(random):
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Conv2D(2, 3), layers.Dense(3, "relu", name="on_maps"),
         layers.Flatten(), layers.Dense(CLASSES)]
    )  # fmt: skip
    profile = analyze_model(model, images(random), measures="feature_entropy", verbose=0)
    known = np.isfinite(profile["feature_entropy"].mean)
    assert known.tolist() == [True, True, False]


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("measures", "message"),
    [
        (["logdet", LogDet()], "Several measures are called logdet"),
        ([LogDet(name="count")], "'count', which is that of a column of every profile"),
        ([LogDet(name="state_entropy")], "name='state_entropy' is that of StateEntropy"),
        (["activation_entropy", LogDet(name="entropy")], "number called 'entropy', which is that"),
        ([LogDet(name="x"), MutualInformation(name="x_input")], "'x_input', which is that of 'x'"),
    ],
)
def test_names_that_get_into_each_others_way(measures, message):
    with pytest.raises(ValueError, match=message):
        get_measures(measures)


@pytest.mark.tensorflow
def test_words_that_are_no_options():
    for wrong in ({"activation_entropy": {"keep_patterns": "false"}}, {"logdet": {"name": 3}}):
        with pytest.raises(ValueError, match="keep_patterns='false'|name=3"):
            get_measures(wrong)
    with pytest.raises(ValueError, match="each option once; found 'beta=2'"):
        parse_measure("logdet:beta=1:beta=2")
