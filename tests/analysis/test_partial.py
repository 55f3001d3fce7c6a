"""Parts of an analysis that join: the same as an analysis of the whole, however it is cut.

Sums of parts are added as float64; what a local pass adds up in two floats agrees to 1e-6, counts
and kept samples to the bit.
"""

import itertools

import keras
import models
import numpy as np
import pytest
from backends import some_on_each
from keras import layers

from keras_layer_entropy import EntropyAnalyzer, PartialAnalysis, analyze_model
from keras_layer_entropy.measures import ActivationHistogram, LogDet, MutualInformation

MEASURES = [
    *("activation_entropy", "state_entropy", "instability", "linear_probe"),
    *("activation_health", ActivationHistogram(rows=100)),
    *(LogDet(samples=40), MutualInformation(samples=40)),
]
CUTS = (0, 17, 18, 60, 90)  # uneven ones, one of a single sample


def network(classes=3):
    model = keras.Sequential([
        keras.Input((4,)), layers.Dense(8, "relu", name="a"), layers.Dense(6, "tanh", name="b"),
        layers.Dense(classes, "softmax", name="out"),
    ])  # fmt: skip
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def data(classes=3, shape=(4,), samples=90):
    random = np.random.default_rng(0)
    x = random.normal(size=(samples, *shape)).astype("float32")
    return x, random.integers(0, classes, samples)


def parts(model, x, y, order=(0, 1, 2, 3), **options):
    """By two analyzers, as on two machines."""
    cuts = list(itertools.pairwise(CUTS))
    machines = [EntropyAnalyzer(model, **options) for _ in range(2)]
    return [
        machines[i % 2].analyze_part((x[a:b], y[a:b]), start=a, batch_size=16, verbose=0)
        for i in order
        for a, b in [cuts[i]]
    ]


def assert_same(found, want):
    assert found.layers == want.layers
    np.testing.assert_array_equal(found.count, want.count)
    for name, result in want.results.items():
        both = {"classes": (found[name].per_class, result.per_class)}
        both |= {key: (found[name].whole[key], x) for key, x in result.whole.items()}
        for key, pair in both.items():
            np.testing.assert_allclose(*pair, rtol=0, atol=1e-6, err_msg=f"{name}, {key}")
    assert found.metrics.keys() == want.metrics.keys()
    for name, value in want.metrics.items():
        assert found.metrics[name] == pytest.approx(value, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "order", some_on_each([(0, 1, 2, 3), (2, 0, 3, 1)], [(2, 0, 3, 1)]), ids=str
)
def test_parts_are_the_whole(order, tmp_path):
    model, (x, y) = network(), data()
    want = analyze_model(model, (x, y), measures=MEASURES, batch_size=16, verbose=0)
    paths = []
    for number, part in enumerate(parts(model, x, y, order, measures=MEASURES)):
        paths.append(tmp_path / f"{number}.npz")
        part.save(paths[-1])
    whole = PartialAnalysis.joined([PartialAnalysis.load(path) for path in paths])
    found = EntropyAnalyzer(model, measures=MEASURES).profile_of(whole, data=(x, y))
    assert_same(found, want)
    assert want["logdet"].whole["input"].min() > 0.01  # it is no comparison of nothing
    assert want.metrics.keys() == {"loss", "accuracy"}


@pytest.mark.tensorflow
def test_joining_in_two_steps_is_the_same():
    model, (x, y) = network(), data()
    a, b, c, d = parts(model, x, y, measures=MEASURES)
    one = PartialAnalysis.joined([a, b, c, d]).arrays
    other = PartialAnalysis.joined(
        [PartialAnalysis.joined([d, b]), PartialAnalysis.joined([c, a])]
    ).arrays
    for name, array in one.items():
        np.testing.assert_allclose(other[name], array, rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.tensorflow
@pytest.mark.filterwarnings("ignore:No sample belongs to", "ignore:The logdet of class")
def test_many_classes():
    model, (x, y) = network(200), data(200)
    options = {"measures": ["activation_entropy", LogDet(samples=40)], "num_classes": 200}
    want = analyze_model(model, (x, y), batch_size=16, verbose=0, **options)
    whole = PartialAnalysis.joined(parts(model, x, y, **options))
    assert whole.arrays["1/sum/counts"].dtype == np.int64
    assert_same(EntropyAnalyzer(model, **options).profile_of(whole, (x, y)), want)


@pytest.mark.tensorflow
def test_convolutions():
    case = models.convolutional()
    x, y = case.x[:90], case.y[:90]
    x, y = np.resize(x, (90, *x.shape[1:])), np.resize(y, 90)
    options = {"measures": ["activation_entropy", "feature_entropy"]}
    want = analyze_model(case.model, (x, y), verbose=0, **options)
    whole = PartialAnalysis.joined(parts(case.model, x, y, **options))
    assert_same(EntropyAnalyzer(case.model, **options).profile_of(whole, (x, y)), want)


def test_an_output_whose_function_nobody_knows():
    """One part alone may look like distributions; the whole decides."""
    scaled = layers.Lambda(lambda z: keras.ops.softmax(z) * 1.0)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8, "relu"), layers.Dense(3), scaled])
    x, y = data()
    want = analyze_model(model, (x, y), verbose=0, batch_size=16)
    whole = PartialAnalysis.joined(parts(model, x, y))
    assert_same(EntropyAnalyzer(model).profile_of(whole, (x, y)), want)


def test_it_measures_the_whole_again_after_a_part():
    model, (x, y) = network(), data()
    analyzer = EntropyAnalyzer(model, measures=MEASURES)
    want = analyzer.analyze((x, y), batch_size=16, verbose=0)
    analyzer.analyze_part((x[50:], y[50:]), start=50, batch_size=16, verbose=0)
    assert_same(analyzer.analyze((x, y), batch_size=16, verbose=0), want)


def test_what_was_not_measured_alike_does_not_join(tmp_path):
    model, (x, y) = network(), data()
    part = parts(model, x, y)[0]
    other_layers = parts(model, x, y, layers=["a"])[0]
    with pytest.raises(ValueError, match=r"cannot be joined, layers: \['a', 'b', 'out'\] and"):
        PartialAnalysis.joined([part, other_layers])
    fewer = EntropyAnalyzer(model, measures=[LogDet(samples=30)])
    more = EntropyAnalyzer(model, measures=[LogDet(samples=40)])
    made = [each.analyze_part((x, y), verbose=0) for each in (fewer, more)]
    with pytest.raises(ValueError, match="samples=30.*samples=40"):
        PartialAnalysis.joined(made)
    model.layers[0].kernel.assign(model.layers[0].kernel * 2.0)
    with pytest.raises(ValueError, match="cannot be joined, weights"):
        EntropyAnalyzer(model).profile_of(part, (x, y))
    with pytest.raises(ValueError, match="no parts"):
        PartialAnalysis.joined([])


def test_bad_input(tmp_path):
    model, (x, y) = network(), data()
    model = keras.Sequential(model.layers)  # not compiled: the loss, too, minds other labels
    analyzer = EntropyAnalyzer(model)
    part = analyzer.analyze_part((x, y), verbose=0)
    with pytest.raises(ValueError, match="has seen no data yet"):
        EntropyAnalyzer(model).profile_of(part)
    misfit = analyzer.analyze_part((x, np.where(y == 2, 7, y)), verbose=0)
    joined = PartialAnalysis.joined([part, misfit])
    with pytest.raises(ValueError, match="labels are no class 0..2, for example 7"):
        analyzer.profile_of(joined)
    path = tmp_path / "part.npz"
    part.save(path)
    with pytest.raises(FileExistsError):
        part.save(path)
    part.save(path, overwrite=True)
    with pytest.raises(ValueError, match=r"ends in \.npz"):
        part.save(tmp_path / "part.json")
    for name, content in (("text.npz", b"no archive"), ("cut.npz", path.read_bytes()[:200])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="is no part of an analysis"):
            PartialAnalysis.load(tmp_path / name)
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    with pytest.raises(ValueError, match="is no part of an analysis"):
        PartialAnalysis.load(tmp_path / "other.npz")
    with pytest.raises(ValueError, match="There is no file"):
        PartialAnalysis.load(tmp_path / "nothing.npz")
